-- Stores an intermediate result; returns whether the job was held.
write_although_memory_is_short()
local id, job = ARGV[2], held(ARGV[2], ARGV[3])
if not job then return '0' end
call('HSET', KEYS.results, id, ARGV[4])
job[RESULT] = true
touch(id)
finish()
return '1'

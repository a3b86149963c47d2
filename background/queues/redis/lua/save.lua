-- Stores an intermediate result; returns whether the claim holds the job.
allow_writes_above_memory_limit()
local id, job = ARGV[2], held(ARGV[2], ARGV[3])
if not job then return '0' end
call('HSET', KEYS.results, id, ARGV[4])
job[RESULT] = true
touch(id)
finish()
return '1'

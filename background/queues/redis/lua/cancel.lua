-- Cancels a job, or asks its worker to; returns the state before.
write_although_memory_is_short()
advance(100)
local id, job = ARGV[2], get(ARGV[2])
local state = job and job[STATE] or ''
if state == 'running' then
  job[CANCELLED] = true
  touch(id)
elseif job and not FINAL[state] then
  stop(id, 'cancelled')
end
finish()
return state

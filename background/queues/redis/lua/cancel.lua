-- Cancels a job, or requests its cancellation while it runs; returns the state before.
allow_writes_above_memory_limit()
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

-- Makes the transitions that are due, and deletes jobs past their retention, up to a number of jobs
-- each; returns the counts of due, reclaimed, expired and deleted jobs.
allow_writes_above_memory_limit()
local most = tonumber(ARGV[2])
local due, reclaimed, expired = advance(most)
local ids = call('ZRANGEBYSCORE', KEYS.kept, '-inf', now, 'LIMIT', 0, most)
fetch(ids)
for _, id in ipairs(ids) do
  if jobs[id] then touch(id) else call('ZREM', KEYS.kept, id) end
end
finish()
return string.format('%d %d %d %d', due, reclaimed, expired, #ids)

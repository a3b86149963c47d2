-- Makes the transitions that are due, and deletes jobs past their retention, up to a number of jobs
-- each; returns the counts of due, reclaimed, expired and deleted jobs, and whether there may be more.
allow_writes_above_memory_limit()
local most, deleted = tonumber(ARGV[2]), 0
local due, reclaimed, expired, more = advance(most)
local ids = call('ZRANGEBYSCORE', KEYS.kept, '-inf', now, 'LIMIT', 0, most)
fetch(ids)
for _, id in ipairs(ids) do
  if jobs[id] and is_past_retention(jobs[id]) then
    deleted = deleted + 1
    touch(id)
  else
    correct(id)
  end
end
finish()
more = more or #ids == most
return string.format('%d %d %d %d %d', due, reclaimed, expired, deleted, more and 1 or 0)

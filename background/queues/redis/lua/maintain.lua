-- Makes the transitions that time demands, and deletes jobs past their retention, for at most so
-- many jobs; returns how many.
write_although_memory_is_short()
local most = tonumber(ARGV[2])
local due, reclaimed, expired = advance(most)
local ids = call('ZRANGEBYSCORE', KEYS.kept, '-inf', now, 'LIMIT', 0, most)
fetch(ids)
for _, id in ipairs(ids) do
  if jobs[id] then touch(id) else call('ZREM', KEYS.kept, id) end
end
finish()
return string.format('%d %d %d %d', due, reclaimed, expired, #ids)

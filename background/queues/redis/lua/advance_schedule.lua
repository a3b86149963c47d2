-- Stores the latest tick of a schedule, if the expected one or none is stored; returns the stored one.
-- An entry that can't be read is replaced, as if there was none, and returned after a question mark.
allow_writes_above_memory_limit()
local name, expected, tick, retention = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local function split(value)
  local stored, before = string.match(value, '^(%S+) (%S+)$')
  local time = tonumber(stored or '')
  before = tonumber(before or '')
  -- Python's datetime has no time after the year 9999.
  if before and time and time >= 0 and time < 253402128000 then return stored, before end
end
local entry = call('HGET', KEYS.schedules, name)
local stored, before
if entry then stored, before = split(entry) end
if stored and before > now and stored ~= expected then return stored end
if not stored then
  local entries = call('HGETALL', KEYS.schedules)
  for i = 1, #entries, 2 do
    local _, ends = split(entries[i + 1])
    if ends and ends <= now then call('HDEL', KEYS.schedules, entries[i]) end
  end
end
call('HSET', KEYS.schedules, name, tick .. ' ' .. text(now + retention))
return entry and not stored and '?' .. entry or tick

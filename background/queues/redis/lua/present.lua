-- Returns the version of the format, or 0, and the names of the keys that must exist, but do not.
--
-- The counts show which indexes have entries. Whether there are results, errors, dependants or
-- changes of scheduled jobs, only records show; those of some jobs are read if such a key is missing.
local MOST = 19 -- the last place of the jobs whose records are read
local missing = {}

local function exists(key) return call('EXISTS', key) == 1 end

local function need(name, key)
  if not exists(key) then missing[#missing + 1] = name end
end

local function sample(key, is_needed)
  local ids = call('ZREVRANGE', key, 0, MOST)
  for _, record in ipairs(#ids > 0 and call('HMGET', KEYS.jobs, unpack(ids)) or {}) do
    local read, job = pcall(decode, record)
    if read and job then
      is_needed.results = is_needed.results or job[RESULT]
      is_needed.errors = is_needed.errors or job[ERROR]
      is_needed.dependants = is_needed.dependants or job[BLOCKED] > 0
      is_needed.changing = is_needed.changing or not FINAL[job[STATE]] and job[AT]
    end
  end
end

local states, has_records, has_ended = {}, false, false
local counts = call('HGETALL', KEYS.counts)
for i = 1, #counts, 2 do
  local state = string.match(counts[i], ' (%l+)$')
  if state and (tonumber(counts[i + 1]) or 0) > 0 then
    states[state] = true
    has_ended = has_ended or FINAL[state]
    has_records = has_records or state ~= 'ready'
  end
end
if #counts > 0 or exists(KEYS.order) or exists(KEYS.messages) then
  need('number', KEYS.number)
  need('order', KEYS.order)
  need('messages', KEYS.messages)
  need('counts', KEYS.counts)
end
if has_records then need('jobs', KEYS.jobs) end
if states.ready then need('ready', KEYS.ready) end
if has_ended then need('kept', KEYS.kept) end
local is_needed = {changing = states.running}
if has_records and not (exists(KEYS.results) and exists(KEYS.errors) and exists(KEYS.dependants)
  and exists(KEYS.changing)) then
  sample(KEYS.order, is_needed)
  sample(KEYS.kept, is_needed)
end
if is_needed.results then need('results', KEYS.results) end
if is_needed.errors then need('errors', KEYS.errors) end
if is_needed.dependants then need('dependants', KEYS.dependants) end
if is_needed.changing then need('changing', KEYS.changing) end
return (call('GET', KEYS.version) or '0') .. ' ' .. table.concat(missing, ' ')

-- Runs a page of a pass that compares all jobs with the indexes and counts, and corrects these.
--
-- A pass scans the indexes first, for jobs that `order` does not have. It then follows `order` up
-- to the job that is the latest at that time, compares each job with its entries, and counts it.
-- Scripts that change a job up to the cursor, or a later job, change the new counts, too (see
-- `tally`). At the end the new counts replace the stored ones.
--
-- Returns whether there is more to do for this owner, and the number of corrections at the end of
-- a pass.
allow_writes_above_memory_limit()
local owner, most, interval = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if ARGV[5] == '1' then request_repair() end

local function state(field) return call('HGET', KEYS.repair, field) or '' end
local cursor, limit = tonumber(state('cursor')), tonumber(state('limit')) or math.huge
local step, scanned = string.match(state('scan'), '^([1-4]) (%d+)$')
step = tonumber(step or '')
if cursor or step then
  if state('owner') ~= owner and (tonumber(state('until')) or 0) > now then return '0 0' end
else
  local after = tonumber(state('next'))
  if after and after > now and state('requested') == '' then return '0 0' end
  call('DEL', KEYS.repair)
  step, scanned = 1, '0'
end

-- The indexes, and patterns that find the id in their entries.
local INDEXES = {KEYS.ready, KEYS.changing, KEYS.kept, KEYS.dependants}
local NUMBERED = '^[^%z]*%z' .. string.rep('%x', 14) .. '(.+)$'
local PATTERNS = {NUMBERED, '^(.+)$', '^(.+)$', '^[^ ]+ ([^ ]+) (%d+)$'}
local work = 0 -- the number of entries and jobs that were read

-- Corrects jobs in a page of an index, if `order` does not have them.
local function scan()
  local key, entries = INDEXES[step]
  scanned, entries = unpack(call('ZSCAN', key, scanned, 'COUNT', most))
  for i = 1, #entries, 2 do
    local id, place = string.match(entries[i], PATTERNS[step])
    if not id or not call('ZSCORE', KEYS.order, id) then
      if id then correct(id) end
      if not (id and jobs[id]) then expect(key, entries[i], false) end
    elseif key == KEYS.dependants then
      local job = load(id)
      local is_blocked = job and job[BLOCKED] > 0 and tonumber(place) <= job[DEPENDENCIES]
      if not is_blocked then expect(key, entries[i], false) end
    end
  end
  work = work + #entries / 2
  if scanned == '0' then step = step + 1 end
end

-- Compares a job with its dependencies; returns their number.
local function compare_dependencies(id, job)
  local dependencies = select(8, head(id))
  if not dependencies then
    discard(id)
    return 0
  end
  local ids, blocked, final = {}, 0, nil
  for dependency in string.gmatch(dependencies, '[^,]+') do ids[#ids + 1] = dependency end
  fetch(ids)
  for place, dependency in ipairs(ids) do
    local upstream = load(dependency)
    local is = upstream and upstream[STATE]
    local entry = dependency .. ' ' .. id .. ' ' .. place
    if is and not FINAL[is] then
      blocked = blocked + 1
      expect(KEYS.dependants, entry, 0)
      if not upstream[HAS_DEPENDANTS] then
        upstream[HAS_DEPENDANTS] = true
        touch(dependency)
      end
    elseif is and is ~= 'succeeded' then
      final = final or fail(id, job, dependency, is)
    elseif expect(KEYS.dependants, entry, false) then -- otherwise its end was handled
      if is then
        pass_result(id, place, dependency)
      else
        final = final or fail(id, job, dependency, 'missing')
      end
    end
  end
  if not final and job[BLOCKED] ~= blocked then
    corrections = corrections + 1
    job[BLOCKED] = blocked
    touch(id)
    if blocked == 0 then final = release(id, job) end
  end
  if final then stop(id, final) end
  return #ids
end

-- Corrects the entries of a page of jobs, and counts these; returns whether it was the last page.
local function follow()
  local first = cursor == -math.huge and '-inf' or '(' .. text(cursor)
  local page =
    call('ZRANGEBYSCORE', KEYS.order, first, text(limit), 'WITHSCORES', 'LIMIT', 0, most)
  local count = #page / 2
  local is_full = count == most
  -- Wrong scores may be equal, and more jobs may have the last one: the next page has these. If all
  -- are equal, the corrections separate them, and the next page begins at the same score.
  local are_equal = is_full and page[2] == page[#page]
  if is_full and not are_equal then
    while page[2 * count] == page[#page] do count = count - 1 end
  end
  local ids, before = {}, corrections
  for i = 1, count do ids[i] = page[2 * i - 1] end
  fetch(ids)
  local size, done = 0, 0
  for i, id in ipairs(ids) do
    local is_read = jobs[id] == nil or jobs[id] and jobs[id][BLOCKED] > 0
    if is_read then size = size + call('HSTRLEN', KEYS.messages, id) end
    correct(id)
    local job, compared = jobs[id], 0
    if job and job[BLOCKED] > 0 then compared = compare_dependencies(id, job) end
    work, done = work + 1 + compared, i
    if not are_equal and (size > 2000000 or work > 2 * most or #aside > 20) then break end
  end
  flush()
  if not are_equal or corrections == before then cursor = tonumber(page[2 * done]) or cursor end
  for i = 1, done do
    local id = ids[i]
    local job = states[id] and jobs[id]
    if job and tonumber(job[NUMBER], 16) <= cursor then
      local field = job[QUEUE] .. ' ' .. states[id]
      recount[field] = (recount[field] or 0) + 1
    end
  end
  return not is_full and done == count
end

-- Replaces the stored counts by the new ones.
local function replace_counts()
  local new, counts = {}, {}
  local fields, stored = call('HGETALL', KEYS.repair), call('HGETALL', KEYS.counts)
  for i = 1, #fields, 2 do
    local field, count = string.match(fields[i], '^=(.*)$'), fields[i + 1]
    if field and (tonumber(count) or 0) > 0 then
      new[field] = count
      counts[#counts + 1], counts[#counts + 2] = field, count
    end
  end
  for i = 1, #stored, 2 do
    if new[stored[i]] ~= stored[i + 1] then corrections = corrections + 1 end
    new[stored[i]] = nil
  end
  for _ in pairs(new) do corrections = corrections + 1 end
  call('DEL', KEYS.counts)
  bulk('HSET', KEYS.counts, counts)
end

-- Returns the number of the latest job, as far as it is stored, and the last score in `order`.
local function latest()
  local id, score = unpack(call('ZRANGE', KEYS.order, -1, -1, 'WITHSCORES'))
  return tonumber(call('GET', KEYS.number) or '') or 0, tonumber(score or '') or 0, id
end

-- Raises the number of the latest job, if it was lost.
local function correct_number()
  local number, last, id = latest()
  local job = last > number and load(id)
  if job and tonumber(job[NUMBER], 16) == last then
    call('SET', KEYS.number, string.format('%.0f', last))
  end
end

while not cursor and work < most do
  scan()
  if step > #INDEXES then
    local number, last = latest()
    cursor, limit = -math.huge, last > number and math.huge or number -- one of them is wrong
  end
end
local is_complete = cursor and work < most and follow()
finish()
if not is_complete then
  if cursor then
    call('HDEL', KEYS.repair, 'scan')
    call('HSET', KEYS.repair, 'cursor', text(cursor), 'limit', text(limit))
  else
    call('HSET', KEYS.repair, 'scan', step .. ' ' .. scanned)
  end
  corrections = corrections + (tonumber(state('corrections')) or 0)
  call('HSET', KEYS.repair, 'owner', owner, 'until', text(now + 15), 'corrections', corrections)
  return '1 0'
end
replace_counts()
correct_number()
corrections = corrections + (tonumber(state('corrections')) or 0)
local is_requested = state('requested') ~= ''
call('DEL', KEYS.repair)
call('HSET', KEYS.repair, 'next', text(now + interval))
if is_requested then request_repair() end
return (is_requested and 1 or 0) .. ' ' .. corrections

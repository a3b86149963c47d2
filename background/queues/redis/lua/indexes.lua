-- The indexes and counts.
--
-- A script changes records only. At its end, `finish` derives the indexes and the counts from the
-- changed records, and wakes waiters, so the indexes always match the records.

local touched, is_touched = {}, {} -- ids of changed jobs
local results = {} -- by id: results of jobs that ended in this script
local deltas, wakes, ended = {}, {}, {} -- changes of counts, queues to wake, ids of ended jobs
local recount = {} -- changes of the counts that a repair makes
local counted, limit -- a repair has counted the jobs up to a number, and those above another one
local corrections = 0 -- entries of indexes that did not match their jobs

local function touch(id)
  if not is_touched[id] then
    is_touched[id] = true
    touched[#touched + 1] = id
  end
end

local function member(id, job)
  return job[QUEUE] .. '\0' .. job[NUMBER] .. id
end

local function tally(job, state, by)
  local field = job[QUEUE] .. ' ' .. state
  deltas[field] = (deltas[field] or 0) + by
  if counted == nil then
    counted, limit = unpack(call('HMGET', KEYS.repair, 'cursor', 'limit'))
    counted, limit = tonumber(counted or '') or false, tonumber(limit or '') or math.huge
  end
  local number = counted and tonumber(job[NUMBER], 16)
  if number and (number <= counted or number > limit) then
    recount[field] = (recount[field] or 0) + by
  end
end

-- Sets aside a job whose message is missing.
local function discard(id)
  local job, state = jobs[id], states[id]
  call('ZREM', KEYS.ready, member(id, job))
  if state then tally(job, state, -1) end
  set_aside(id, cmsgpack.pack(job))
end

-- Corrects an entry of an index: it has the score, or does not exist if that is false.
local function expect(key, entry, score)
  local stored = call('ZSCORE', key, entry)
  if score and tonumber(stored or '') ~= score then
    call('ZADD', key, text(score), entry)
  elseif score or not stored then
    return false
  else
    call('ZREM', key, entry)
  end
  corrections = corrections + 1
  return true
end

-- Corrects the entries of a job in the indexes. Sets it aside if a part of it is missing.
local function correct(id)
  local job = load(id)
  if job and fresh[id] then
    -- An entry of another index shows that the job had a record, unless it is ready.
    if not call('ZSCORE', KEYS.ready, member(id, job))
      and (call('ZSCORE', KEYS.changing, id) or call('ZSCORE', KEYS.kept, id)) then
      job = set_aside(id)
    end
  elseif job and call('HEXISTS', KEYS.messages, id) == 0 then
    job = discard(id)
  end
  local state, at = states[id], times[id]
  local number = job and tonumber(job[NUMBER], 16)
  if expect(KEYS.order, id, number) then request_repair() end -- it may be counted twice, or never
  expect(KEYS.changing, id, not FINAL[state] and at)
  expect(KEYS.kept, id, FINAL[state] and at)
  if job then expect(KEYS.ready, member(id, job), state == 'ready' and 0) end
end

local function delete(ids)
  local outcomes, errors, previous = {}, {}, {}
  for _, id in ipairs(ids) do
    local job = jobs[id]
    if job[RESULT] then outcomes[#outcomes + 1] = id end
    if job[ERROR] then errors[#errors + 1] = id end
    for place = 1, job[DEPENDENCIES] do previous[#previous + 1] = id .. ' ' .. place end
    jobs[id] = false
  end
  bulk('HDEL', KEYS.jobs, ids)
  bulk('HDEL', KEYS.messages, ids)
  bulk('ZREM', KEYS.order, ids)
  bulk('HDEL', KEYS.results, outcomes)
  bulk('HDEL', KEYS.errors, errors)
  bulk('HDEL', KEYS.previous, previous)
end

local fail_dependants -- ends the dependants of a job that was set aside (see `transitions.lua`)

-- Writes the changed records and their index entries, and deletes jobs past their retention.
local function flush()
  while #aside > 0 do fail_dependants(table.remove(aside)) end
  local records, old = {}, {}
  local ready, unready, changing, unchanging, kept, unkept = {}, {}, {}, {}, {}, {}
  local function update(id, job)
    local was, at_was, is, at = states[id], times[id], job[STATE], job[AT]
    local final = FINAL[is]
    if final and job[AWAITED] then
      ended[#ended + 1] = id
      job[AWAITED] = false
    end
    if final and at <= now then
      old[#old + 1] = id
      is, at = nil, false
    else
      records[#records + 1] = id
      records[#records + 1] = cmsgpack.pack(job)
    end
    if was ~= is then
      if was then tally(job, was, -1) end
      if is then tally(job, is, 1) end
      if was == 'ready' then unready[#unready + 1] = member(id, job) end
      if is == 'ready' then
        ready[#ready + 1] = 0
        ready[#ready + 1] = member(id, job)
        wakes[job[QUEUE]] = true
      end
    end
    if at_was and (not at or FINAL[was] ~= final) then
      local list = FINAL[was] and unkept or unchanging
      list[#list + 1] = id
    end
    if at and (at ~= at_was or FINAL[was] ~= final) then
      local list = final and kept or changing
      list[#list + 1] = text(at)
      list[#list + 1] = id
      -- Waiters poll once a second, so later changes need no notification.
      if not final and at < now + 1 then wakes[job[QUEUE]] = true end
    end
    states[id], times[id], fresh[id] = is, at, nil
  end
  for _, id in ipairs(touched) do
    if jobs[id] then update(id, jobs[id]) end -- otherwise it was set aside
  end
  touched, is_touched = {}, {}
  bulk('ZREM', KEYS.ready, unready)
  bulk('ZREM', KEYS.changing, unchanging)
  bulk('ZREM', KEYS.kept, unkept)
  delete(old)
  bulk('HSET', KEYS.jobs, records)
  bulk('ZADD', KEYS.ready, ready)
  bulk('ZADD', KEYS.changing, changing)
  bulk('ZADD', KEYS.kept, kept)
end

-- Writes all changes, and notifies waiters.
local function finish()
  flush()
  for field, by in pairs(deltas) do
    -- A count that is no number, or too small, was damaged; it is wrong until the repair.
    local count = by ~= 0 and redis.pcall('HINCRBY', KEYS.counts, field, by)
    if count == 0 or type(count) == 'table' then call('HDEL', KEYS.counts, field) end
    if count and (type(count) == 'table' or count < 0) then request_repair() end
  end
  for field, by in pairs(recount) do
    if type(redis.pcall('HINCRBY', KEYS.repair, '=' .. field, by)) == 'table' then
      call('DEL', KEYS.repair)
      request_repair()
    end
  end
  for queue in pairs(wakes) do
    if call('HDEL', KEYS.idle, queue) == 1 then call('PUBLISH', ARGV[1], '+' .. queue) end
  end
  if #ended > 0 then call('PUBLISH', ARGV[1], '=' .. table.concat(ended, ' ')) end
end

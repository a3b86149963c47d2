-- The transitions of jobs, and the indexes.
--
-- A script changes records only. At its end, `finish` derives the indexes and the counts from the
-- changed records, and wakes waiters, so the indexes always match the records.

local touched, is_touched = {}, {} -- ids of changed jobs
local results = {} -- by id: results of jobs that ended in this script
local deltas, wakes, ended = {}, {}, {} -- changes of counts, queues to wake, ids of ended jobs

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

-- Writes the changed records and their index entries, and deletes jobs past their retention.
local function flush()
  local records, old = {}, {}
  local ready, unready, changing, unchanging, kept, unkept = {}, {}, {}, {}, {}, {}
  for _, id in ipairs(touched) do
    local job = jobs[id]
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
    states[id], times[id] = is, at
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
    if by ~= 0 and call('HINCRBY', KEYS.counts, field, by) == 0 then
      call('HDEL', KEYS.counts, field)
    end
  end
  for queue in pairs(wakes) do
    if call('HDEL', KEYS.idle, queue) == 1 then call('PUBLISH', ARGV[1], '+' .. queue) end
  end
  if #ended > 0 then call('PUBLISH', ARGV[1], '=' .. table.concat(ended, ' ')) end
end

-- The fields: queue, retention, dead retention, handler, delay, at, expires, dependencies.
local HEAD = '([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^\n]*)\n'

local function head(id)
  return string.match(call('HGET', KEYS.messages, id), '^%x+ [^ ]* [^ ]* ' .. HEAD)
end

local function earlier(a, b)
  return a and b and math.min(a, b) or a or b
end

-- Makes a job ready after a delay; returns the final state for `stop` if the job ends instead.
local function schedule(id, job, delay, at)
  local due = at == '' and now + delay or tonumber(at)
  touch(id)
  if due > now then
    job[STATE], job[DUE], job[AT] = 'scheduled', due, earlier(due, job[EXPIRES])
  elseif job[JOIN] then
    return 'succeeded'
  else
    job[STATE], job[DUE], job[AT] = 'ready', false, job[EXPIRES]
  end
end

-- Handles the end of a dependency of a job; returns the final state for `stop` if the job ends.
local function dependency_ended(id, place, dependency, state)
  local job = get(id)
  if not job or job[STATE] ~= 'scheduled' or job[BLOCKED] == 0 then return end
  if state ~= 'succeeded' then
    local message = 'job ' .. dependency .. ', which it depends on, is ' .. state
    call('HSET', KEYS.errors, id, cjson.encode({type = 'background.queues.JobFailedError', message = message}))
    job[ERROR] = true
    return 'dead'
  end
  local result = results[dependency]
  if result == nil then result = call('HGET', KEYS.results, dependency) end
  if result then call('HSET', KEYS.previous, id .. ' ' .. place, result) end
  job[BLOCKED] = job[BLOCKED] - 1
  touch(id)
  if job[BLOCKED] == 0 then
    local _, _, _, _, delay, at = head(id)
    return schedule(id, job, delay, at)
  end
end

-- Removes the remaining dependencies of a job.
local function unblock(id, job)
  local _, _, _, _, _, _, _, dependencies = head(id)
  local place, entries = 0, {}
  for dependency in string.gmatch(dependencies, '[^,]+') do
    place = place + 1
    entries[place] = dependency .. ' ' .. id .. ' ' .. place
  end
  bulk('ZREM', KEYS.dependants, entries)
  job[BLOCKED] = 0
end

-- Moves a job to a final state, and the jobs that end because of that.
local function stop(id, state)
  local ending = {{id, state}}
  while #ending > 0 do
    id, state = unpack(table.remove(ending))
    local job = jobs[id]
    if job[BLOCKED] > 0 then unblock(id, job) end
    job[STATE], job[DUE], job[EXPIRES] = state, false, false
    job[FINISHED] = now
    job[AT] = now + (state == 'dead' and job[DEAD_RETENTION] or job[RETENTION])
    touch(id)
    if job[HAS_DEPENDANTS] then
      job[HAS_DEPENDANTS] = false
      local first, last = '[' .. id .. ' ', '(' .. id .. '!'
      for _, entry in ipairs(call('ZRANGEBYLEX', KEYS.dependants, first, last)) do
        local dependant, place = string.match(entry, ' ([^ ]*) (%d+)$')
        local final = dependency_ended(dependant, place, id, state)
        if final then ending[#ending + 1] = {dependant, final} end
      end
      call('ZREMRANGEBYLEX', KEYS.dependants, first, last)
    end
  end
end

-- Makes the transitions that are due, for up to `most` jobs; returns their counts.
local function advance(most)
  local due, reclaimed, expired = 0, 0, 0
  local ids = call('ZRANGEBYSCORE', KEYS.changing, '-inf', now, 'LIMIT', 0, most)
  if #ids == 0 then return due, reclaimed, expired end
  fetch(ids)
  for _, id in ipairs(ids) do
    local job = jobs[id]
    if not job then
      call('ZREM', KEYS.changing, id)
    elseif FINAL[job[STATE]] or not job[AT] or job[AT] > now then
      -- an earlier transition in this loop has changed this job, too
    elseif job[STATE] == 'running' then
      reclaimed = reclaimed + 1
      local lost = job[LOST] or {}
      lost[#lost + 1] = {job[ATTEMPT], job[TOKEN], job[STARTED], now, job[CONFIRMED]}
      if #lost > 20 then table.remove(lost, 1) end
      job[LOST] = lost
      if job[CONFIRMED] then
        job[CRASHES] = job[CRASHES] + 1
      else
        job[UNCONFIRMED] = job[UNCONFIRMED] + 1
      end
      if job[CANCELLED] then
        stop(id, 'cancelled')
      else
        job[STATE], job[AT] = 'ready', false
        touch(id)
      end
    elseif job[EXPIRES] and job[EXPIRES] <= now then
      expired = expired + 1
      stop(id, 'expired')
    else
      due = due + 1
      local final = schedule(id, job, 0, '')
      if final then stop(id, final) end
    end
  end
  flush()
  return due, reclaimed, expired
end

-- Appends a job to an answer: a line with its state and the lengths of the parts that follow.
local function show(shown, id, job, message)
  message = message or ''
  local result = job[RESULT] and call('HGET', KEYS.results, id)
  local error = job[ERROR] and call('HGET', KEYS.errors, id)
  local lost = job[LOST] and cjson.encode(job[LOST])
  local line = string.format('%s %d %d %d %s %s %s %s %d %d %d %d', job[STATE], job[ATTEMPT],
    job[CRASHES], job[UNCONFIRMED], job[TOKEN] or '', text(job[STARTED]), text(job[FINISHED]), id,
    #message, result and #result or -1, error and #error or -1, lost and #lost or -1)
  local count = #shown
  shown[count + 1], shown[count + 2] = line, '\n' .. message
  shown[count + 3], shown[count + 4], shown[count + 5] = result or '', error or '', lost or ''
  for place = 1, job[DEPENDENCIES] do
    local value = call('HGET', KEYS.previous, id .. ' ' .. place)
    line = line .. ' ' .. (value and #value or -1)
    shown[count + 5 + place] = value or ''
  end
  shown[count + 1] = line
end

-- Allows a script to write above the memory limit. Workers need these scripts to end jobs, which
-- frees memory. The server allows all commands of a script whose first write needs no memory:
-- https://redis.io/docs/latest/develop/programmability/eval-intro/
local function allow_writes_above_memory_limit()
  call('ZREM', KEYS.changing, '')
end

-- The transitions of jobs.

-- The fields: queue, retention, dead retention, handler, delay, at, expires, dependencies.
local HEAD = '([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^\n]*)\n'

-- Returns the fields of a job's message, or nothing if it can't be read.
local function head(id)
  return string.match(call('HGET', KEYS.messages, id) or '', '^%x+ [^ ]* [^ ]* ' .. HEAD)
end

local function earlier(a, b)
  return a and b and math.min(a, b) or a or b
end

-- Makes a job ready after a delay; returns the final state for `stop` if the job ends instead.
local function schedule(id, job, delay, at)
  local due = tonumber(at) or now + (tonumber(delay) or 0)
  touch(id)
  if due > now then
    job[STATE], job[DUE], job[AT] = 'scheduled', due, earlier(due, job[EXPIRES])
  elseif job[JOIN] then
    return 'succeeded'
  else
    job[STATE], job[DUE], job[AT] = 'ready', false, job[EXPIRES]
  end
end

-- Stores the error of a job whose dependency has failed; returns the final state for `stop`.
local function fail(id, job, dependency, state)
  local message = 'job ' .. dependency .. ', which it depends on, is ' .. state
  local error = {type = 'background.queues.JobFailedError', message = message}
  call('HSET', KEYS.errors, id, cjson.encode(error))
  job[ERROR] = true
  return 'dead'
end

-- Passes the result of a dependency to a job.
local function pass_result(id, place, dependency)
  local result = results[dependency]
  if result == nil then result = call('HGET', KEYS.results, dependency) end
  if result then call('HSET', KEYS.previous, id .. ' ' .. place, result) end
end

-- Schedules a job that no dependency blocks; returns the final state for `stop` if the job ends.
local function release(id, job)
  local queue, _, _, _, delay, at = head(id)
  if not queue then return discard(id) end
  return schedule(id, job, delay, at)
end

-- Handles the end of a dependency of a job; returns the final state for `stop` if the job ends.
local function dependency_ended(id, place, dependency, state)
  local job = get(id)
  if not job or job[STATE] ~= 'scheduled' or job[BLOCKED] == 0 then return end
  if state ~= 'succeeded' then return fail(id, job, dependency, state) end
  pass_result(id, place, dependency)
  job[BLOCKED] = job[BLOCKED] - 1
  touch(id)
  if job[BLOCKED] == 0 then return release(id, job) end
end

-- Removes the remaining dependencies of a job.
local function unblock(id, job)
  local dependencies = select(8, head(id)) or ''
  local place, entries = 0, {}
  for dependency in string.gmatch(dependencies, '[^,]+') do
    place = place + 1
    entries[place] = dependency .. ' ' .. id .. ' ' .. place
  end
  bulk('ZREM', KEYS.dependants, entries)
  job[BLOCKED] = 0
end

-- Adds the dependants that end to a list, because their dependency has ended.
local function end_dependency(id, state, ending)
  local first, last = '[' .. id .. ' ', '(' .. id .. '!'
  for _, entry in ipairs(call('ZRANGEBYLEX', KEYS.dependants, first, last)) do
    local dependant, place = string.match(entry, ' ([^ ]+) (%d+)$')
    local final = dependant and dependency_ended(dependant, place, id, state)
    if final then ending[#ending + 1] = {dependant, final} end
  end
  call('ZREMRANGEBYLEX', KEYS.dependants, first, last)
end

-- Moves jobs to a final state, and the jobs that end because of that.
local function stop_all(ending)
  while #ending > 0 do
    local id, state = unpack(table.remove(ending))
    local job = jobs[id]
    if job then -- otherwise it was set aside
      if job[BLOCKED] > 0 then unblock(id, job) end
      job[STATE], job[DUE], job[EXPIRES] = state, false, false
      job[FINISHED] = now
      job[AT] = now + (state == 'dead' and job[DEAD_RETENTION] or job[RETENTION])
      touch(id)
      if job[HAS_DEPENDANTS] then
        job[HAS_DEPENDANTS] = false
        end_dependency(id, state, ending)
      end
    end
  end
end

local function stop(id, state)
  stop_all({{id, state}})
end

-- Ends a claim of a job that has not ended: the job is ready after a delay, unless it was cancelled
-- or has expired.
local function end_claim(id, job, delay)
  local has_expired = job[EXPIRES] and job[EXPIRES] <= now
  local final = job[CANCELLED] and 'cancelled' or has_expired and 'expired'
    or schedule(id, job, delay, '')
  if final then stop(id, final) end
end

-- Ends the dependants of a job that was set aside.
function fail_dependants(id)
  local ending = {}
  end_dependency(id, "set aside, because it can't be read", ending)
  stop_all(ending)
end

-- Makes the transitions that are due, for up to `most` jobs. Returns their counts, and whether
-- there may be more.
local function advance(most)
  local due, reclaimed, expired = 0, 0, 0
  local ids = call('ZRANGEBYSCORE', KEYS.changing, '-inf', now, 'LIMIT', 0, most)
  if #ids == 0 then return due, reclaimed, expired, false end
  fetch(ids)
  for _, id in ipairs(ids) do
    local job = jobs[id]
    if not job or FINAL[job[STATE]] or not job[AT] or job[AT] > now then
      -- An earlier transition in this loop has changed this job, too, or the entry is wrong.
      if not is_touched[id] then correct(id) end
    elseif job[STATE] == 'running' then
      reclaimed = reclaimed + 1
      local lost = job[LOST] or {}
      lost[#lost + 1] = {job[ATTEMPT], job[TOKEN], job[STARTED], now, job[CONFIRMED]}
      if #lost > 20 then table.remove(lost, 1) end
      job[LOST] = lost
      if job[CONFIRMED] then
        job[CRASHES], job[EXPIRES] = job[CRASHES] + 1, false
      else
        job[UNCONFIRMED] = job[UNCONFIRMED] + 1
      end
      end_claim(id, job, 0)
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
  return due, reclaimed, expired, #ids == most
end

-- Appends a job to an answer: a line with its state and the lengths of the parts that follow.
-- Returns the number of bytes.
local function show(shown, id, job, message)
  message = message or ''
  local result = job[RESULT] and call('HGET', KEYS.results, id)
  local error = job[ERROR] and call('HGET', KEYS.errors, id)
  local lost = job[LOST] and cjson.encode(job[LOST])
  local line = string.format('%s %d %d %d %s %s %s %s %d %d %d %d', job[STATE], job[ATTEMPT],
    job[CRASHES], job[UNCONFIRMED], job[TOKEN] or '', text(job[STARTED]), text(job[FINISHED]), id,
    #message, result and #result or -1, error and #error or -1, lost and #lost or -1)
  local count, size = #shown, #message + #(result or '') + #(error or '') + #(lost or '')
  shown[count + 1], shown[count + 2] = line, '\n' .. message
  shown[count + 3], shown[count + 4], shown[count + 5] = result or '', error or '', lost or ''
  for place = 1, job[DEPENDENCIES] do
    local value = call('HGET', KEYS.previous, id .. ' ' .. place)
    line = line .. ' ' .. (value and #value or -1)
    shown[count + 5 + place] = value or ''
    size = size + #(value or '')
  end
  shown[count + 1] = line
  return size + #line
end

-- Allows a script to write above the memory limit. Workers need these scripts to end jobs, which
-- frees memory. The server allows all commands of a script whose first write needs no memory:
-- https://redis.io/docs/latest/develop/programmability/eval-intro/
local function allow_writes_above_memory_limit()
  call('ZREM', KEYS.changing, '')
end

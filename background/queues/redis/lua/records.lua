-- The records of jobs, and access to them.

local call = redis.call
local FINAL = {succeeded = true, dead = true, cancelled = true, expired = true}
local clock = call('TIME')
local now = clock[1] + clock[2] / 1000000

local jobs = {} -- by id: the current record, or false for a deleted job
local states, times = {}, {} -- by id: the state and the time that the indexes have

-- A cache: most times in a script are equal, and formatting one takes as long as a command.
local texts = {}
local function text(time)
  if time and not texts[time] then texts[time] = string.format('%.17g', time) end
  return time and texts[time] or ''
end

-- Calls a command with many values. Lua limits the number of values that `unpack` can return.
local function bulk(command, key, values)
  for first = 1, #values, 1000 do
    call(command, key, unpack(values, first, math.min(first + 999, #values)))
  end
end

local function track(id, job)
  jobs[id], states[id], times[id] = job, job[STATE], job[AT]
end

local STATES = {scheduled = true, ready = true, running = true, succeeded = true, dead = true,
  cancelled = true, expired = true}

local aside = {} -- ids of jobs that were set aside, whose dependants have not ended yet
local fresh = {} -- by id: whether a job has no record

-- Lets the next maintenance compare all jobs with the indexes and counts (see `repair.lua`).
local function request_repair()
  call('HSET', KEYS.repair, 'requested', 1)
end

-- Moves a job that can't be read to a hash of its own, because another program may have written
-- anything. Its entry in `ready` is removed by the next claim, and a repair corrects the counts.
-- Without a record, it is reported as missing.
local function set_aside(id, record)
  local message = call('HGET', KEYS.messages, id)
  call('HSET', KEYS.damaged, id, record or '', id .. ' message', message or '')
  call('HDEL', KEYS.jobs, id)
  call('HDEL', KEYS.messages, id)
  call('ZREM', KEYS.changing, id)
  call('ZREM', KEYS.kept, id)
  call('ZREM', KEYS.order, id)
  call('PUBLISH', ARGV[1], (record and '!' or '?') .. id)
  jobs[id], states[id], times[id] = false, nil, nil
  aside[#aside + 1] = id
  request_repair()
end

-- Returns a record with its values in the order of the fields; the number has 14 hex digits.
local function new_record(queue, number, retention, dead_retention)
  return {'ready', queue, number, tonumber(retention), tonumber(dead_retention), 0, 0, 0, false, false,
    false, false, false, false, false, false, 0, false, false, false, 0, false, false, false}
end

-- A job that is ready when it is enqueued has no record until it changes. Other jobs always have
-- one. A delay that is no number is left to the client, which ends the job with an error.
local function track_message(id, message)
  local number, queue, retention, dead_retention, handler, delay, rest =
    string.match(message, '^(%x+) [^ ]* [^ ]* ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^\n]*)')
  retention, dead_retention = tonumber(retention or ''), tonumber(dead_retention or '')
  if not dead_retention or not retention or #number ~= 14 or retention ~= retention
    or dead_retention ~= dead_retention or handler == '' or rest ~= '  '
    or (tonumber(delay) or 0) ~= 0 then
    return set_aside(id, not (retention and dead_retention) and '')
  end
  fresh[id] = true
  track(id, new_record(queue, number, retention, dead_retention))
end

local LOWEST = -math.huge -- not at most NaN
local MOST = 2 ^ 53 -- JSON can't represent infinity
local MOST_DEPENDENCIES = 1000000 -- of one job; a larger number would block the server

local function are_lost_claims(claims)
  for _, claim in ipairs(claims) do
    local attempt, token, started, lost, confirmed = unpack(claim)
    if not (attempt >= 0 and attempt < MOST and type(token) == 'string' and started < MOST
      and started > -MOST and lost < MOST and lost > -MOST and type(confirmed) == 'boolean') then
      return false
    end
  end
  return #claims > 0
end

-- Decodes a record. Returns nothing, or raises an error, if scripts could fail with its values.
-- Comparisons, lengths and concatenations raise one for values of other types, at no cost.
local find, unpacked = string.find, cmsgpack.unpack
local function decode(record)
  local job = unpacked(record)
  local state, queue, number, attempt = job[STATE], job[QUEUE], job[NUMBER], job[ATTEMPT]
  local token = job[TOKEN] or ''
  local started, at, blocked = job[STARTED] or 0, job[AT], job[BLOCKED]
  local confirmed, lost, dependencies = job[CONFIRMED], job[LOST], job[DEPENDENCIES]
  local final = FINAL[state]
  if STATES[state] and #job == FIELDS and #number == 14 and find(number, '^%x+$')
    and #queue >= 0 and not find(queue, '[%z%s]') and #token >= 0 and token .. ''
    and job[RETENTION] >= LOWEST and job[DEAD_RETENTION] >= LOWEST
    and attempt >= 0 and attempt < MOST and job[CRASHES] >= 0 and job[UNCONFIRMED] >= 0
    and blocked >= 0 and dependencies >= 0 and dependencies <= MOST_DEPENDENCIES
    and started > -MOST and started < MOST and (job[DUE] or 0) >= LOWEST
    and (job[EXPIRES] or 0) >= LOWEST and (job[FINISHED] or not final and 0) >= LOWEST
    and (at or not (final or state == 'running') and 0) >= LOWEST
    and (state == 'scheduled' and (blocked > 0 and at == job[EXPIRES] or blocked == 0 and at)
      or state ~= 'scheduled' and blocked == 0)
    and (confirmed == true or confirmed == false) and (not lost or are_lost_claims(lost)) then
    return job
  end
end

-- Reads records, as far as they exist.
local function fetch(ids)
  for first = 1, #ids, 1000 do
    local last = math.min(first + 999, #ids)
    local records = call('HMGET', KEYS.jobs, unpack(ids, first, last))
    for i = first, last do
      local id, record = ids[i], records[i - first + 1]
      if record and jobs[id] == nil then
        local read, job = pcall(decode, record)
        if read and job then
          track(id, job)
        else
          set_aside(id, record)
        end
      end
    end
  end
end

local function is_past_retention(job)
  return FINAL[job[STATE]] and job[AT] <= now
end

-- Returns a job, or nothing if it is not stored.
local function load(id)
  if jobs[id] == nil then fetch({id}) end
  if jobs[id] == nil then
    local message = call('HGET', KEYS.messages, id)
    if message then track_message(id, message) end
  end
  return jobs[id]
end

-- Returns a job, or nothing if it is not stored or past its retention.
local function get(id)
  local job = load(id)
  return job and not is_past_retention(job) and job
end

-- Returns a job if a claim holds its lease.
local function held(id, token)
  local job = get(id)
  return job and job[STATE] == 'running' and job[TOKEN] == token and job[AT] > now and job
end

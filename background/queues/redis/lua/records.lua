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

-- Moves a job that can't be read to a hash of its own, because another program may have written
-- anything. Its entry in `ready` is removed by the next claim.
local function set_aside(id, record)
  local message = call('HGET', KEYS.messages, id)
  call('HSET', KEYS.damaged, id, record, id .. ' message', message or '')
  call('HDEL', KEYS.jobs, id)
  call('HDEL', KEYS.messages, id)
  call('ZREM', KEYS.changing, id)
  call('ZREM', KEYS.kept, id)
  call('ZREM', KEYS.order, id)
  call('PUBLISH', ARGV[1], '!' .. id)
  jobs[id] = false
end

-- Returns a record with its values in the order of the fields; the number has 14 hex digits.
local function new_record(queue, number, retention, dead_retention)
  return {'ready', queue, number, tonumber(retention), tonumber(dead_retention), 0, 0, 0, false, false,
    false, false, false, false, false, false, 0, false, false, false, 0, false, false, false}
end

-- A job that is ready when it is enqueued has no record until it changes.
local function track_message(id, message)
  local number, queue, retention, dead_retention =
    string.match(message, '^(%x+) [^ ]* [^ ]* ([^ ]*) ([^ ]*) ([^ ]*)')
  if not dead_retention or not tonumber(retention) or not tonumber(dead_retention) then
    return set_aside(id, '')
  end
  track(id, new_record(queue, number, retention, dead_retention))
end

-- Reads records, as far as they exist.
local function fetch(ids)
  for first = 1, #ids, 1000 do
    local last = math.min(first + 999, #ids)
    local records = call('HMGET', KEYS.jobs, unpack(ids, first, last))
    for i = first, last do
      local id, record = ids[i], records[i - first + 1]
      if record and jobs[id] == nil then
        local read, job = pcall(cmsgpack.unpack, record)
        if read and type(job) == 'table' and STATES[job[STATE]] and #job == FIELDS then
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

-- Returns a job, or nothing if it is not stored or past its retention.
local function get(id)
  if jobs[id] == nil then fetch({id}) end
  if jobs[id] == nil then
    local message = call('HGET', KEYS.messages, id)
    if message then track_message(id, message) end
  end
  local job = jobs[id]
  return job and not is_past_retention(job) and job
end

-- Returns a job if a claim holds its lease.
local function held(id, token)
  local job = get(id)
  return job and job[STATE] == 'running' and job[TOKEN] == token and job[AT] > now and job
end

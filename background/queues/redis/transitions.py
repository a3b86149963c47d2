"""The scripts that take a job through its life, each of them one atomic step.

`ARGV[1]` is the channel of those who wait. Each answers with one string, as that costs a client
least.
"""

from __future__ import annotations

from .script import ADVANCE, AT_ANY_COST, Script

#: Tells of ids whether they are known.
CHECK = Script(r"""
local ids, answer = {unpack(ARGV, 2)}, {}
fetch(ids)
for i, id in ipairs(ids) do answer[i] = get(id) and '1' or '0' end
return table.concat(answer)
""")

ENQUEUE = Script(r"""
local ids, messages, queues = unpack(cmsgpack.unpack(ARGV[2]))

-- Those without a queue here have more to them than to be put there.
local special, heads, before = {}, {}, {}
for i, queue in ipairs(queues) do
  if queue == '' then special[#special + 1] = i end
end
for i = 1, special[#special] or 0 do
  if queues[i] == '' then
    heads[i] = {string.match(messages[i], '^' .. HEAD)}
    for need in string.gmatch(heads[i][7], '[^,]+') do
      if not before[need] and not get(need) then
        return '?' .. 'job ' .. ids[i] .. ' needs the job ' .. need .. ', which is not known'
      end
    end
  end
  before[ids[i]] = true
end

local number = call('INCRBY', KEYS.number, #ids) - #ids

-- Gives each id its number that has none; returns how many had none.
local function order()
  local numbers, new = {}, 0
  for i, id in ipairs(ids) do numbers[2 * i - 1], numbers[2 * i] = number + i, id end
  for first = 1, #numbers, 1000 do
    local last = math.min(first + 999, #numbers)
    new = new + call('ZADD', KEYS.order, 'NX', unpack(numbers, first, last))
  end
  return new
end

local known = {}
if order() < #ids then
  local unknown = {}
  fetch(ids)
  for _, id in ipairs(ids) do
    if not get(id) then
      unknown[#unknown + 1] = id
      if jobs[id] then touch(id) end -- which forgets it, as it is over
    end
  end
  flush()
  each('ZREM', KEYS.order, unknown)
  order()
  for i, id in ipairs(ids) do
    known[i] = tonumber(call('ZSCORE', KEYS.order, id)) ~= number + i
    if not known[i] then jobs[id] = nil end
  end
end

local answer, stored, ready, put = {}, {}, {}, {}
local enqueued = ' ' .. text(now) .. ' '
for i, id in ipairs(ids) do
  answer[i] = known[i] and '0' or '1'
  if not known[i] then
    local queue, hex = queues[i], string.format('%014x', number + i)
    stored[#stored + 1] = id
    stored[#stored + 1] = hex .. enqueued .. id .. ' ' .. messages[i]
    if queue ~= '' then
      ready[#ready + 1] = 0
      ready[#ready + 1] = queue .. '\0' .. hex .. id
      put[queue] = (put[queue] or 0) + 1
    end
  end
end
each('ZADD', KEYS.ready, ready)
each('HSET', KEYS.messages, stored)
for queue, many in pairs(put) do
  tally({[QUEUE] = queue}, 'ready', many)
  rings[queue] = true
end

for _, i in ipairs(special) do
  if not known[i] then
    local queue, keep, handler, delay, at, expires, needs = unpack(heads[i])
    local id = ids[i]
    local _, count = string.gsub(needs, '[^,]+', '')
    local job = new_record(queue, string.format('%014x', number + i), keep)
    job[STATE], job[BLOCKED], job[JOIN], job[NEEDS] = 'scheduled', count, handler == '', count
    job[EXPIRES] = expires ~= '' and now + expires
    jobs[id] = job
    touch(id)
    local state
    if count == 0 then
      state = release(id, job, delay, at)
    else
      job[AT] = job[EXPIRES]
      local place = 0
      for need in string.gmatch(needs, '[^,]+') do
        place = place + 1
        local needed = get(need) or jobs[need]
        if state then
          -- it is dead already
        elseif FINAL[needed[STATE]] then
          state = hear(id, place, need, needed[STATE])
        else
          call('ZADD', KEYS.needs, 0, need .. ' ' .. id .. ' ' .. place)
          needed[NEEDED] = true
          touch(need)
        end
      end
    end
    if state then stop(id, state) end
  end
end
finish()
return table.concat(answer)
""")

CLAIM = Script(
    AT_ANY_COST,
    ADVANCE,
    r"""
local token, lease, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local claims = {}
for q = 5, #ARGV do
  local queue = ARGV[q]
  local skip = #queue + 16
  -- If all of these have expired there may be more behind them, for the next call.
  for _ = 1, 10 do
    if most == 0 then break end
    local first, last = '[' .. queue .. '\0', '(' .. queue .. '\1'
    local members = call('ZRANGEBYLEX', KEYS.ready, first, last, 'LIMIT', 0, most)
    if #members == 0 then break end
    local ids = {}
    for i, each in ipairs(members) do ids[i] = string.sub(each, skip) end
    fetch(ids)
    local messages = call('HMGET', KEYS.messages, unpack(ids))
    for i, id in ipairs(ids) do
      if jobs[id] == nil and messages[i] then learn_from_message(id, messages[i]) end
      local job = jobs[id]
      if not job or job[STATE] ~= 'ready' then
        call('ZREM', KEYS.ready, members[i])
      elseif job[EXPIRES] and job[EXPIRES] <= now then
        stop(id, 'expired')
      else
        job[STATE], job[TOKEN], job[AT], job[EXPIRES] = 'running', token, now + lease, false
        job[ATTEMPT], job[STARTED] = job[ATTEMPT] + 1, now
        touch(id)
        show(claims, id, job, messages[i])
        most = most - 1
      end
    end
    flush()
  end
end
finish()
return table.concat(claims)
""",
)

RENEW = Script(
    AT_ANY_COST,
    r"""
local lease, answer = tonumber(ARGV[2]), {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local job = held(id, ARGV[i + 1])
  if job then
    job[AT] = now + lease
    touch(id)
  end
  answer[#answer + 1] = not job and 'L' or job[CANCELLED] and 'C' or 'K'
end
finish()
return table.concat(answer)
""",
)

SETTLE = Script(
    AT_ANY_COST,
    r"""
local ids, answer, outcomes = {}, {}, {}
for i = 2, #ARGV, 3 do ids[#ids + 1] = string.match(ARGV[i], '^[^ ]*') end
fetch(ids)
for i = 2, #ARGV, 3 do
  local id, token, state, delay = string.match(ARGV[i], '^([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*)$')
  local job = id and held(id, token)
  answer[#answer + 1] = job and '1' or '0'
  if job then
    if ARGV[i + 1] ~= '' then
      call('HSET', KEYS.errors, id, ARGV[i + 1])
      job[ERROR] = true
    end
    if state == 'succeeded' then
      local result = ARGV[i + 2] ~= '' and string.sub(ARGV[i + 2], 2)
      results[id] = result
      if result then
        outcomes[#outcomes + 1] = id
        outcomes[#outcomes + 1] = result
      elseif job[RESULT] then
        call('HDEL', KEYS.results, id)
      end
      job[RESULT] = result and true
    end
    if FINAL[state] then
      stop(id, state)
    elseif job[CANCELLED] then
      stop(id, 'cancelled')
    else
      if state == 'ready' then job[ATTEMPT] = job[ATTEMPT] - 1 end
      job[TOKEN] = false
      release(id, job, tonumber(delay), '')
    end
  end
end
each('HSET', KEYS.results, outcomes)
finish()
return table.concat(answer)
""",
)

SAVE = Script(
    AT_ANY_COST,
    r"""
local id, job = ARGV[2], held(ARGV[2], ARGV[3])
if not job then return '0' end
call('HSET', KEYS.results, id, ARGV[4])
job[RESULT] = true
touch(id)
finish()
return '1'
""",
)

CANCEL = Script(
    AT_ANY_COST,
    ADVANCE,
    r"""
local id, job = ARGV[2], get(ARGV[2])
local state = job and job[STATE] or ''
if state == 'running' then
  job[CANCELLED] = true
  touch(id)
elseif job and not FINAL[state] then
  stop(id, 'cancelled')
end
finish()
return state
""",
)

REQUEUE = Script(
    ADVANCE,
    r"""
local id, job = ARGV[2], get(ARGV[2])
local done = job and FINAL[job[STATE]]
if done then
  job[ATTEMPT], job[CRASHES], job[CANCELLED], job[FINISHED] = 0, 0, false, false
  if job[RESULT] then
    call('HDEL', KEYS.results, id)
    job[RESULT] = false
  end
  local state = release(id, job, 0, '')
  if state then stop(id, state) end
end
finish()
return done and '1' or '0'
""",
)

"""The scripts that take a job through its life, each of them one atomic step.

`ARGV[1]` is the channel of those who wait. Each answers with one string, as that costs a client
least.
"""

from __future__ import annotations

from ._redis_call import ADVANCE, AT_ANY_COST, Script

#: Tells of ids whether they are known.
CHECK = Script(r"""
local ids, answer = {unpack(ARGV, 2)}, {}
fetch(ids)
for i, id in ipairs(ids) do answer[i] = get(id) and '1' or '0' end
return table.concat(answer)
""")

ENQUEUE = Script(r"""
local ids, heads = {}, {}
for i = 2, #ARGV do
  heads[i] = {string.match(ARGV[i], HEAD)}
  ids[i - 1] = heads[i][1]
end
fetch(ids)

local new = {}
for i = 2, #ARGV do
  for need in string.gmatch(heads[i][8], '[^,]+') do
    if not new[need] and not get(need) then
      return '?' .. 'job ' .. ids[i - 1] .. ' needs the job ' .. need .. ', which is not known'
    end
  end
  new[ids[i - 1]] = true
end

local number = call('INCRBY', KEYS.number, #ids) - #ids
for _, id in ipairs(ids) do
  if jobs[id] and is_over(jobs[id]) then touch(id) end
end
flush()

local answer, messages, order = {}, {}, {}
for i = 2, #ARGV do
  local id = ids[i - 1]
  answer[#answer + 1] = new[id] and not jobs[id] and '1' or '0'
  if new[id] and not jobs[id] then
    new[id] = false
    messages[#messages + 1] = id
    messages[#messages + 1] = ARGV[i]
    order[#order + 1] = number + i - 1
    order[#order + 1] = id
  end
end
each('HSET', KEYS.messages, messages)
each('ZADD', KEYS.order, order)

for i = 2, #ARGV do
  local id, queue, handler, keep, delay, at, expires, needs = unpack(heads[i])
  if answer[i - 1] == '1' then
    local _, count = string.gsub(needs, '[^,]+', '')
    local job = {'scheduled', queue, number + i - 1, tonumber(keep), now, 0, 0, false, false, false,
      false, expires ~= '' and now + expires, false, count, false, false, handler == '', count,
      false, false, false}
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
        local needed = jobs[need]
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
      local job = jobs[id]
      if not job then
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

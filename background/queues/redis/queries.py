"""The scripts that look at jobs: at one, or at so many of all, and what is done about them then."""

from __future__ import annotations

from .script import ADVANCE, AT_ANY_COST, Script

OPEN = Script(
    AT_ANY_COST,
    r"""
call('SETNX', KEYS.version, ARGV[2])
return call('GET', KEYS.version)
""",
)

LOOK = Script(
    AT_ANY_COST,
    ADVANCE,
    r"""
finish()
for q = 2, #ARGV do
  local first, last = '[' .. ARGV[q] .. '\0', '(' .. ARGV[q] .. '\1'
  if #call('ZRANGEBYLEX', KEYS.ready, first, last, 'LIMIT', 0, 1) > 0 then return '' end
end
for q = 2, #ARGV do call('HSET', KEYS.idle, ARGV[q], '') end
call('PEXPIRE', KEYS.idle, 10000)
local change = call('ZRANGE', KEYS.changing, 0, 0, 'WITHSCORES')
return change[2] and string.format('%.6f', change[2] - now) or 'inf'
""",
)

GET = Script(r"""
local job, shown = get(ARGV[2]), {}
if job then show(shown, ARGV[2], job, call('HGET', KEYS.messages, ARGV[2])) end
return table.concat(shown)
""")

AWAIT = Script(
    AT_ANY_COST,
    ADVANCE,
    r"""
local id, job = ARGV[2], get(ARGV[2])
local shown = {}
if job then
  if not FINAL[job[STATE]] and not job[AWAITED] then
    job[AWAITED] = true
    touch(id)
  end
  shown[1] = (job[AT] and string.format('%.6f', job[AT] - now) or 'inf') .. '\n'
  show(shown, id, job, call('HGET', KEYS.messages, id))
end
finish()
return table.concat(shown)
""",
)

# Of both the answer begins with the number of the last job looked at, if there are more.
_PAGE = r"""
local last, most = ARGV[2], tonumber(ARGV[3])
local ids = call('ZRANGEBYSCORE', KEYS.order, '(' .. last, '+inf', 'LIMIT', 0, most)
fetch(ids)
last = #ids == most and call('ZSCORE', KEYS.order, ids[most]) or ''
"""

SCAN = Script(
    _PAGE,
    r"""
local queue, state, found, size = ARGV[4], ARGV[5], {}, 0
for _, id in ipairs(ids) do
  local message = call('HGET', KEYS.messages, id)
  if message and not jobs[id] then learn_from_message(id, message) end
  local job = get(id)
  if job and (queue == '' or job[QUEUE] == queue) and (state == '' or job[STATE] == state) then
    show(found, id, job, message)
  end
  size = size + (message and #message or 0)
  if size > 5000000 then
    last = call('ZSCORE', KEYS.order, id)
    break
  end
end
return last .. '\n' .. table.concat(found)
""",
)

PURGE = Script(
    AT_ANY_COST,
    _PAGE,
    r"""
local state, before, purged = ARGV[4], now - ARGV[5], 0
for _, id in ipairs(ids) do
  local job = jobs[id]
  if job and FINAL[job[STATE]] and not is_over(job) and job[FINISHED] <= before
    and (state == '' or job[STATE] == state) then
    purged = purged + 1
    job[AT] = now
    touch(id)
  end
end
finish()
return last .. '\n' .. purged
""",
)

MAINTAIN = Script(
    AT_ANY_COST,
    r"""
local most = tonumber(ARGV[2])
local due, reclaimed, expired = advance(most)
local ids = call('ZRANGEBYSCORE', KEYS.kept, '-inf', now, 'LIMIT', 0, most)
fetch(ids)
for _, id in ipairs(ids) do
  if jobs[id] then touch(id) else call('ZREM', KEYS.kept, id) end
end
finish()
return string.format('%d %d %d %d', due, reclaimed, expired, #ids)
""",
)

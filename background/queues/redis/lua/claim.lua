-- Claims ready jobs in the order of the queues; returns them.
allow_writes_above_memory_limit()
advance(100)
local token, lease, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local claims = {}
-- A page of large messages ends the claim early, so that no answer takes long.
local size, page = 0, 16
for q = 5, #ARGV do
  local queue = ARGV[q]
  local skip = #queue + 16
  -- Expired jobs are skipped, so more rounds may be necessary; the next call does the rest.
  for _ = 1, 10 do
    if most == 0 or size > 4000000 then break end
    local first, last = '[' .. queue .. '\0', '(' .. queue .. '\1'
    local members = call('ZRANGEBYLEX', KEYS.ready, first, last, 'LIMIT', 0, math.min(most, page))
    if #members == 0 then break end
    local ids = {}
    for i, entry in ipairs(members) do ids[i] = string.sub(entry, skip) end
    fetch(ids)
    local messages = call('HMGET', KEYS.messages, unpack(ids))
    for i, id in ipairs(ids) do
      if jobs[id] == nil and messages[i] then track_message(id, messages[i]) end
      local job = jobs[id]
      if not job or job[STATE] ~= 'ready' or member(id, job) ~= members[i] then
        call('ZREM', KEYS.ready, members[i])
      elseif not messages[i] then
        discard(id)
      elseif job[EXPIRES] and job[EXPIRES] <= now then
        stop(id, 'expired')
      else
        job[STATE], job[TOKEN], job[AT] = 'running', token, now + lease
        job[ATTEMPT], job[STARTED], job[CONFIRMED] = job[ATTEMPT] + 1, now, false
        touch(id)
        show(claims, id, job, messages[i])
        size = size + #messages[i]
        most = most - 1
      end
    end
    flush()
    if size < 1000000 then page = page * 4 end
  end
end
finish()
return table.concat(claims)

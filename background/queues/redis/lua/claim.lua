-- Claims ready jobs in the order of the queues; returns them.
allow_writes_above_memory_limit()
advance(100)
local token, lease, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local claims = {}
-- A claim ends with the job that brings it to 4 MB. Messages are read in parts, which is all that
-- is read beyond that.
local PART, MOST_BYTES = 8, 4000000
local size, page = 0, 16

-- Claims a job of a page, or ends or removes one that can't be claimed.
local function take(entry, id, message)
  if message and jobs[id] == nil then track_message(id, message) end
  local job = jobs[id]
  if not job or job[STATE] ~= 'ready' or member(id, job) ~= entry then
    call('ZREM', KEYS.ready, entry)
  elseif not message then
    discard(id)
  elseif job[EXPIRES] and job[EXPIRES] <= now then
    stop(id, 'expired')
  else
    job[STATE], job[TOKEN], job[AT] = 'running', token, now + lease
    job[ATTEMPT], job[STARTED], job[CONFIRMED] = job[ATTEMPT] + 1, now, false
    touch(id)
    size = size + show(claims, id, job, message)
    most = most - 1
  end
end

for q = 5, #ARGV do
  local queue = ARGV[q]
  local skip = #queue + 16
  -- Expired jobs are skipped, so more rounds may be necessary; the next call does the rest.
  for _ = 1, 10 do
    if most == 0 or size >= MOST_BYTES then break end
    local first, last = '[' .. queue .. '\0', '(' .. queue .. '\1'
    local members = call('ZRANGEBYLEX', KEYS.ready, first, last, 'LIMIT', 0, math.min(most, page))
    if #members == 0 then break end
    local ids, messages = {}, {}
    for i, entry in ipairs(members) do ids[i] = string.sub(entry, skip) end
    fetch(ids)
    for i, id in ipairs(ids) do
      if size >= MOST_BYTES then break end
      local place = (i - 1) % PART + 1
      if place == 1 then
        messages = call('HMGET', KEYS.messages, unpack(ids, i, math.min(i + PART - 1, #ids)))
      end
      take(members[i], id, messages[place])
    end
    flush()
    page = page * 4
  end
end
finish()
return table.concat(claims)

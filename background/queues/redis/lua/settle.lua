-- Settles claimed jobs; returns a flag for each job: whether the claim held it.
allow_writes_above_memory_limit()
local ids, answer, outcomes = {}, {}, {}
for i = 2, #ARGV, 3 do ids[#ids + 1] = string.match(ARGV[i], '^[^ ]*') end
fetch(ids)
for i = 2, #ARGV, 3 do
  local id, token, state, delay, begun =
    string.match(ARGV[i], '^([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([01])$')
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
    else
      if state == 'ready' and not job[CANCELLED] then job[ATTEMPT] = job[ATTEMPT] - 1 end
      if begun == '1' then job[EXPIRES] = false end -- an expiry concerns the start only
      end_claim(id, job, tonumber(delay))
    end
  end
end
bulk('HSET', KEYS.results, outcomes)
finish()
return table.concat(answer)

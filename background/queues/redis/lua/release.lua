-- Releases the jobs that lost claims took, as if these had not been made. The ends of their leases
-- are in a range of times from now; a range with more jobs than are read here is left to the leases.
allow_writes_above_memory_limit()
local first, last, tokens, found = text(now + ARGV[2]), text(now + ARGV[3]), {}, {}
for i = 4, #ARGV do tokens[ARGV[i]] = true end
for page = 0, 9 do
  local ids = call('ZRANGEBYSCORE', KEYS.changing, first, last, 'LIMIT', page * 500, 500)
  fetch(ids)
  for _, id in ipairs(ids) do
    local job = jobs[id]
    if job and job[STATE] == 'running' and tokens[job[TOKEN]] then found[#found + 1] = id end
  end
  if #ids < 500 then break end
end
for _, id in ipairs(found) do
  local job = jobs[id]
  job[ATTEMPT] = job[ATTEMPT] - 1
  end_claim(id, job, 0)
end
finish()
return tostring(#found)

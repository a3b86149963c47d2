-- Renews leases, and confirms the claims; returns a code for each claim: H (held), L (lost) or C (cancellation requested).
allow_writes_above_memory_limit()
local lease, answer = tonumber(ARGV[2]), {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local job = held(id, ARGV[i + 1])
  if job then
    job[AT], job[CONFIRMED] = now + lease, true
    touch(id)
  end
  answer[#answer + 1] = not job and 'L' or job[CANCELLED] and 'C' or 'H'
end
finish()
return table.concat(answer)

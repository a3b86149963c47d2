-- Makes an ended job ready again; returns whether the job had ended.
advance(100)
local id, job = ARGV[2], get(ARGV[2])
local done = job and FINAL[job[STATE]]
if done then
  job[ATTEMPT], job[CRASHES], job[UNCONFIRMED] = 0, 0, 0
  job[CANCELLED], job[FINISHED] = false, false
  if job[RESULT] then
    call('HDEL', KEYS.results, id)
    job[RESULT] = false
  end
  local final = schedule(id, job, 0, '')
  if final then stop(id, final) end
end
finish()
return done and '1' or '0'

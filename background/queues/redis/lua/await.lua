-- Registers a waiter for the end of a job; returns the seconds until its next change, and the job.
allow_writes_above_memory_limit()
advance(100)
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

-- Deletes selected ended jobs of a page; returns the end of the page, and the count of the jobs.
local state, before, purged = ARGV[4], now - ARGV[5], 0
for _, id in ipairs(ids) do
  local job = jobs[id]
  if job and FINAL[job[STATE]] and not is_past_retention(job) and job[FINISHED] <= before
    and (state == '' or job[STATE] == state) then
    purged = purged + 1
    job[AT] = now
    touch(id)
  end
end
finish()
return last .. '\n' .. purged

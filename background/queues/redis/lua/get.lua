-- Returns a job.
local job, shown = get(ARGV[2]), {}
if job then show(shown, ARGV[2], job, call('HGET', KEYS.messages, ARGV[2])) end
finish()
return table.concat(shown)

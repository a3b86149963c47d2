-- Returns an empty string if a job is ready; otherwise registers a waiter, and returns the seconds
-- until the next change of any job.
allow_writes_above_memory_limit()
advance(100)
finish()
for q = 2, #ARGV do
  local first, last = '[' .. ARGV[q] .. '\0', '(' .. ARGV[q] .. '\1'
  if #call('ZRANGEBYLEX', KEYS.ready, first, last, 'LIMIT', 0, 1) > 0 then return '' end
end
for q = 2, #ARGV do call('HSET', KEYS.idle, ARGV[q], '') end
call('PEXPIRE', KEYS.idle, 10000)
local change = call('ZRANGE', KEYS.changing, 0, 0, 'WITHSCORES')
return change[2] and string.format('%.6f', change[2] - now) or 'inf'

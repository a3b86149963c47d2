-- Reads the next page of jobs. `last` is the number of its last job, or empty at the end.
local last, most = ARGV[2], tonumber(ARGV[3])
local ids = call('ZRANGEBYSCORE', KEYS.order, '(' .. last, '+inf', 'LIMIT', 0, most)
fetch(ids)
last = #ids == most and call('ZSCORE', KEYS.order, ids[most]) or ''

-- The next page of jobs. Its number, returned first, is that of its last job if there are more.
local last, most = ARGV[2], tonumber(ARGV[3])
local ids = call('ZRANGEBYSCORE', KEYS.order, '(' .. last, '+inf', 'LIMIT', 0, most)
fetch(ids)
last = #ids == most and call('ZSCORE', KEYS.order, ids[most]) or ''

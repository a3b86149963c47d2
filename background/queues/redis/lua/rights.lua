-- Returns the commands that the scripts use and this user may not send, or an empty string.
-- None of these calls changes anything: the version is a string, so most commands are refused for
-- its type, after the user's rights were checked.
local missing = {}
-- In errors about a missing right: the last one is that of Redis 6.2.
local REFUSALS = {'NOPERM', 'ACL failure in script', 'user executing the script'}

local function try(command, ...)
  local answer = redis.pcall(command, ...)
  local reason = type(answer) == 'table' and answer.err or ''
  for _, text in ipairs(REFUSALS) do
    if string.find(reason, text, 1, true) then
      missing[#missing + 1] = command
      return
    end
  end
end

local key = KEYS.version
try('EXISTS', key)
try('GET', key)
try('SET', key, '', 'NX')
try('INCRBY', key, 0)
try('HDEL', key, '')
try('HEXISTS', key, '')
try('HGET', key, '')
try('HGETALL', key)
try('HINCRBY', key, '', 0)
try('HMGET', key, '')
try('HSET', key, '', '')
try('HSTRLEN', key, '')
try('ZADD', key, 0, '')
try('ZRANGE', key, 0, 0)
try('ZRANGEBYLEX', key, '-', '-')
try('ZRANGEBYSCORE', key, 0, 0)
try('ZREM', key, '')
try('ZREMRANGEBYLEX', key, '-', '-')
try('ZREVRANGE', key, 0, 0)
try('ZSCAN', key, 0)
try('ZSCORE', key, '')
try('PUBLISH', ARGV[1], '')
for _, key in ipairs(KEYS) do
  if redis.pcall('EXISTS', key) == 0 then
    try('DEL', key)
    try('PEXPIRE', key, 1)
    break
  end
end
return table.concat(missing, ', ')

-- Raises the version of the format to the one that the caller writes; returns the stored version.
allow_writes_above_memory_limit()
local stored = call('GET', KEYS.version) or '0'
if tonumber(stored) >= tonumber(ARGV[2]) then return stored end
call('SET', KEYS.version, ARGV[2])
return ARGV[2]

-- Stores the version of the format if there is none; returns the stored version.
allow_writes_above_memory_limit()
call('SETNX', KEYS.version, ARGV[2])
return call('GET', KEYS.version)

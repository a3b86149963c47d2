-- Stores the version of the format if there is none; returns the stored one.
write_although_memory_is_short()
call('SETNX', KEYS.version, ARGV[2])
return call('GET', KEYS.version)

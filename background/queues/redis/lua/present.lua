-- Returns the version of the format, or 0, and a flag for each key that exists if jobs are stored.
return (call('GET', KEYS.version) or '0') .. ' ' .. call('EXISTS', KEYS.number)
  .. call('EXISTS', KEYS.order) .. call('EXISTS', KEYS.messages) .. call('EXISTS', KEYS.counts)

-- Returns the end of the page, and its selected jobs. A page ends with the job that brings it to
-- 4 MB.
local queue, state, found, size = ARGV[4], ARGV[5], {}, 0
for _, id in ipairs(ids) do
  local message = call('HGET', KEYS.messages, id)
  if message and jobs[id] == nil then track_message(id, message) end
  local job = get(id)
  if job and (queue == '' or job[QUEUE] == queue) and (state == '' or job[STATE] == state) then
    size = size + show(found, id, job, message)
  else
    size = size + #(message or '')
  end
  if size >= 4000000 then
    last = call('ZSCORE', KEYS.order, id)
    break
  end
end
finish()
return last .. '\n' .. table.concat(found)

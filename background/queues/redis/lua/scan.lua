-- Returns the end of the page, and its selected jobs. Large messages end a page early.
local queue, state, found, size = ARGV[4], ARGV[5], {}, 0
for _, id in ipairs(ids) do
  local message = call('HGET', KEYS.messages, id)
  if message and jobs[id] == nil then track_message(id, message) end
  local job = get(id)
  if job and (queue == '' or job[QUEUE] == queue) and (state == '' or job[STATE] == state) then
    show(found, id, job, message)
  end
  size = size + (message and #message or 0)
  if size > 5000000 then
    last = call('ZSCORE', KEYS.order, id)
    break
  end
end
finish()
return last .. '\n' .. table.concat(found)

-- Stores jobs, all or none; returns a flag for each job: whether its id was new.
local ids, messages, queues = unpack(cmsgpack.unpack(ARGV[2]))

-- The queue is empty here for jobs that are not ready at once (see `pack_messages`).
local special, heads, before = {}, {}, {}
for i, queue in ipairs(queues) do
  if queue == '' then special[#special + 1] = i end
end
for i = 1, special[#special] or 0 do
  if queues[i] == '' then
    heads[i] = {string.match(messages[i], '^' .. HEAD)}
    for dependency in string.gmatch(heads[i][8], '[^,]+') do
      if not before[dependency] and not get(dependency) then
        return '?' .. 'job ' .. ids[i] .. ' depends on job ' .. dependency
          .. ', which is not stored'
      end
    end
  end
  before[ids[i]] = true
end

local number = call('INCRBY', KEYS.number, #ids) - #ids

-- Assigns a number to each id that has none; returns the count of these ids.
local function order()
  local numbers, new = {}, 0
  for i, id in ipairs(ids) do numbers[2 * i - 1], numbers[2 * i] = number + i, id end
  for first = 1, #numbers, 1000 do
    local last = math.min(first + 999, #numbers)
    new = new + call('ZADD', KEYS.order, 'NX', unpack(numbers, first, last))
  end
  return new
end

local stored_before = {}
if order() < #ids then
  local absent = {}
  fetch(ids)
  for _, id in ipairs(ids) do
    if not get(id) then
      absent[#absent + 1] = id
      if jobs[id] then touch(id) end -- `flush` deletes it, because it is past its retention
    end
  end
  flush()
  bulk('ZREM', KEYS.order, absent)
  order()
  for i, id in ipairs(ids) do
    stored_before[i] = tonumber(call('ZSCORE', KEYS.order, id)) ~= number + i
    if not stored_before[i] then jobs[id] = nil end
  end
end

local answer, stored, ready, added = {}, {}, {}, {}
local enqueued = ' ' .. text(now) .. ' '
for i, id in ipairs(ids) do
  answer[i] = stored_before[i] and '0' or '1'
  if not stored_before[i] then
    local queue, hex = queues[i], string.format('%014x', number + i)
    stored[#stored + 1] = id
    stored[#stored + 1] = hex .. enqueued .. id .. ' ' .. messages[i]
    if queue ~= '' then
      ready[#ready + 1] = 0
      ready[#ready + 1] = queue .. '\0' .. hex .. id
      added[queue] = (added[queue] or 0) + 1
    end
  end
end
bulk('ZADD', KEYS.ready, ready)
bulk('HSET', KEYS.messages, stored)
for queue, count in pairs(added) do
  tally({[QUEUE] = queue, [NUMBER] = string.format('%014x', number + 1)}, 'ready', count)
  wakes[queue] = true
end

for _, i in ipairs(special) do
  if not stored_before[i] then
    local queue, retention, dead_retention, handler, delay, at, expires, dependencies =
      unpack(heads[i])
    local id = ids[i]
    local _, count = string.gsub(dependencies, '[^,]+', '')
    local job = new_record(queue, string.format('%014x', number + i), retention, dead_retention)
    job[STATE], job[JOIN] = 'scheduled', handler == ''
    job[BLOCKED], job[DEPENDENCIES] = count, count
    job[EXPIRES] = expires ~= '' and now + expires
    jobs[id] = job
    touch(id)
    local final
    if count == 0 then
      final = schedule(id, job, delay, at)
    else
      job[AT] = job[EXPIRES]
      local place = 0
      for dependency in string.gmatch(dependencies, '[^,]+') do
        place = place + 1
        local upstream = get(dependency) or jobs[dependency]
        if final then
          -- an earlier dependency has failed
        elseif not upstream then
          final = fail(id, job, dependency, 'missing') -- it was set aside in this script
        elseif FINAL[upstream[STATE]] then
          final = dependency_ended(id, place, dependency, upstream[STATE])
        else
          call('ZADD', KEYS.dependants, 0, dependency .. ' ' .. id .. ' ' .. place)
          upstream[HAS_DEPENDANTS] = true
          touch(dependency)
        end
      end
    end
    if final then stop(id, final) end
  end
end
finish()
return table.concat(answer)

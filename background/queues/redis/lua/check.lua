-- Returns a flag for each id: whether the job is stored.
local ids, answer = {unpack(ARGV, 2)}, {}
fetch(ids)
for i, id in ipairs(ids) do answer[i] = get(id) and '1' or '0' end
finish()
return table.concat(answer)

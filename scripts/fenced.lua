-- fenced: runs a user's script if a hold stands, or all of several. A frame of its own: it needs nothing of the prelude.
--
-- KEYS
--   1 HASH  2 READERS  3 MARKS: see prelude.lua; and so on, three for each further name; then the user's
-- ARGV
--   1 call  2 how many names
--   3 request     from here three for each name; then the user's
--   4 owner
--   5 fence
-- Replies
--   ran       what the user's script returned; absent for nil
--   not_held  which of the names, from 1 on; and lapsed, revoked, withdrawn, replaced, forgotten or unknown
-- Wakes
--   nobody
local reply = (function()
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)

  local function ended(HASH, READERS, MARKS, REQUEST, OWNER, FENCE)
    local stored = redis.call('HMGET', HASH, 'top', '@' .. OWNER, 'fence')
    for i = 1, 2 do
      local _, at = string.find(stored[i] or '', '|' .. REQUEST .. ',', 1, true)
      if at then
        local mode, deadline = string.match(stored[i], '^(%a)%+?,(%d+)', at + 1)
        if tonumber(deadline) <= now then
          return 'lapsed'
        end
        return mode ~= string.lower(mode) and 'revoked' or nil
      end
    end
    if OWNER == REQUEST and not stored[2] then
      local deadline = redis.call('ZSCORE', READERS, OWNER)
      if deadline then
        return tonumber(deadline) <= now and 'lapsed' or nil
      end
    end
    local mark = redis.call('ZSCORE', MARKS, REQUEST)
    if mark then
      return ({ 'lapsed', 'revoked', 'withdrawn', 'replaced' })[mark % 1 * 4 + 1]
    end
    return tonumber(stored[3] or 0) < tonumber(FENCE) and 'forgotten' or 'unknown'
  end

  for i = 1, ARGV[2] do
    local ending = ended(KEYS[i * 3 - 2], KEYS[i * 3 - 1], KEYS[i * 3], ARGV[i * 3], ARGV[i * 3 + 1], ARGV[i * 3 + 2])
    if ending then
      return { ARGV[1], 'not_held', i, ending }
    end
  end
end)()
if reply then
  return reply
end
return {
  ARGV[1],
  'ran',
  (function(FENCES, KEYS, ARGV)
    local FENCE = FENCES[1]
--BODY--
  end)((function()
    local fences = {}
    for i = 1, ARGV[2] do
      fences[i] = ARGV[i * 3 + 2]
    end
    return fences
  end)(), (function()
    -- One by one: there may be more than fit on Lua's stack.
    local keys = {}
    for i = ARGV[2] * 3 + 1, #KEYS do
      keys[#keys + 1] = KEYS[i]
    end
    return keys
  end)(), (function()
    local args = {}
    for i = ARGV[2] * 3 + 3, #ARGV do
      args[#args + 1] = ARGV[i]
    end
    return args
  end)()),
}

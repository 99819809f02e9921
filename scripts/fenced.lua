-- fenced: runs a user's script if a hold stands. A frame of its own: it needs nothing of the prelude.
--
-- KEYS
--   1 HASH  2 READERS  3 MARKS: see prelude.lua; from 4 the user's
-- ARGV
--   1 call  2 request  3 owner  4 fence; from 5 the user's
-- Replies
--   ran       what the user's script returned; absent for nil
--   not_held  lapsed, revoked, withdrawn, replaced, forgotten or unknown
-- Wakes
--   nobody
local reply = (function()
  local HASH, READERS, MARKS = KEYS[1], KEYS[2], KEYS[3]
  local REQUEST, OWNER, FENCE = ARGV[2], ARGV[3], ARGV[4]
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
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
end)()
if reply then
  return { ARGV[1], 'not_held', reply }
end
return {
  ARGV[1],
  'ran',
  (function(FENCE, KEYS, ARGV)
--BODY--
  end)(ARGV[4], { unpack(KEYS, 4) }, { unpack(ARGV, 5) }),
}

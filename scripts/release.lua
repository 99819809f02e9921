-- release: a request gives back what it was granted.
--
-- Whoever can enter then is granted in this same step: a waiter wakes up holding.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 claim_ms  3 mark_ms  4 retention_ms  5 trust  6 channel: see prelude.lua
--   7 request
--   8 owner
--   9 fence     the one it was granted with: a server that knows only smaller ones has lost data
--  10 again     1: sent before, answer unknown
--  11 mark      1: its acquisition was sent more than once; leave a mark if there is none, as a copy may still arrive
-- Replies
--   released
--   not_held  lapsed, revoked, withdrawn, replaced, forgotten or unknown
-- Wakes
--   the next in line.
local REQUEST, OWNER, FENCE, AGAIN, LEAVE_MARK = ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10] == '1', ARGV[11] == '1'

local stored = redis.call('HMGET', HASH, 'fence', 'top', 'readers', 'due', 'waiting', 'gc', 'marks', 'ticket', '@' .. OWNER)

-- Nobody waits, nothing has lapsed, and this is all that the owner holds.
do
  local top, readers, due, waiting, hold = stored[2], stored[3], stored[4], stored[5], stored[9]
  if
    hold
    and not (waiting or LEAVE_MARK)
    and (not due or tonumber(due) > now)
    and (not top or tonumber(string.match(top, '%d+$')) > now)
  then
    local request, letter = string.match(hold, '^[%d,]+|([^,]+),(%a)%+?,%d+,%d+$')
    if request == REQUEST then
      if letter ~= 'r' and letter ~= 'R' then
        redis.call('HDEL', HASH, 'top', '@' .. OWNER, '#' .. REQUEST)
      else
        redis.call('ZREM', READERS, OWNER)
        if readers == '1' then
          redis.call('HDEL', HASH, 'readers', 'due', '@' .. OWNER, '#' .. REQUEST)
        else
          redis.call('HDEL', HASH, '@' .. OWNER, '#' .. REQUEST)
          redis.call('HSET', HASH, 'readers', readers - 1)
        end
      end
      return { CALL, now_us, 'released' }
    end
  end
end

local M = machine(now_us, stored, { OWNER }, true)
local write_ended = M.lapse()
local word, why = 'released', nil
local g = M.granted(OWNER, REQUEST)
if g then
  write_ended = M.drop_granted(OWNER, g) or write_ended
else
  why = M.ending(REQUEST, FENCE)
  -- Sent before: that copy has done it.
  if not (AGAIN and (why == 'unknown' or why == 'withdrawn' or why == 'replaced')) then
    word = 'not_held'
  end
end
if LEAVE_MARK then
  local known = M.ending(REQUEST, 0)
  if known == 'unknown' or known == 'replaced' then
    M.mark(REQUEST, 2)
  end
end
M.advance(write_ended)
M.flush()
if word == 'released' then
  return { CALL, now_us, 'released' }
end
return { CALL, now_us, 'not_held', why }

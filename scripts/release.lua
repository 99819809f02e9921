-- release: a request gives back what it was granted.
--
-- Whoever can enter then is granted in this same step: a waiter wakes up holding. Where nobody waits, nobody needs to know what time it
-- is: what is still there is given back, also past its deadline.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 request
--   4 owner
--   5 fence     the one it was granted with: a server that knows only smaller ones has lost data
--   6 again     1: sent before, answer unknown
--   7 mark      1: its acquisition was sent more than once; leave a mark if there is none, as a copy may still arrive
-- Replies
--   released
--   not_held  lapsed, revoked, withdrawn, replaced, forgotten or unknown
--             as text: the call, the word and this, with spaces between
-- Wakes
--   the next in line.
local REQUEST, OWNER, LEAVE_MARK = ARGV[3], ARGV[4], ARGV[7] == '1'

local waiting, top, hold, due = unpack(redis.call('HMGET', HASH, 'waiting', 'top', '@' .. OWNER, 'due'), 1, 4)

-- Nobody waits, and this is all that the owner holds, without a label.
if not (waiting or LEAVE_MARK) then
  if top then
    local _, last = string.find(top, ',' .. OWNER .. '|' .. REQUEST .. ',', 1, true)
    if last and string.find(top, '^%a,%d+,%d+$', last + 1) then
      redis.call('HDEL', HASH, 'top')
      return CALL .. ' released'
    end
  end
  if hold then
    local _, last = string.find(hold, '|' .. REQUEST .. ',', 1, true)
    if last == #REQUEST + 2 and string.find(hold, '^%a,%d+,%d+$', last + 1) then
      redis.call('ZREM', READERS, OWNER)
      redis.call('HDEL', HASH, '@' .. OWNER)
      return CALL .. ' released'
    end
  elseif due and OWNER == REQUEST and redis.call('ZREM', READERS, OWNER) == 1 then
    return CALL .. ' released'
  end
end

local FENCE, AGAIN = tonumber(ARGV[5]), ARGV[6] == '1'
local now_us = clock()
local stored = redis.call('HMGET', HASH, 'fence', 'top', 'due', 'waiting', 'warm', 'marks', 'ticket', '@' .. OWNER)
local M = machine(now_us, stored, { OWNER }, true)
local g = M.granted(OWNER, REQUEST)
local quiet = g and M.waiting == 0 and not LEAVE_MARK
local write_ended = false
if not quiet then
  write_ended = M.lapse()
  g = M.granted(OWNER, REQUEST)
end
local word, why = 'released', nil
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
  return CALL .. ' ' .. word
end
return CALL .. ' ' .. word .. ' ' .. why

-- withdraw: a waiter leaves, wherever its request is: in line, granted in the meantime, or not yet arrived.
--
-- Leaves a mark, so that an acquire which arrives later takes nothing.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 request
--   4 owner
--   5 blame   how many owners to name who are in the way; 0: none of it
--   6 upgrade_of  if it is granted already, it becomes this upgradable request again; empty for none
-- Replies
--   held      ahead, and with blame: fence, holders, waiters, rows of who holds
--   queued    the same
--   absent    the same
--             a row: request, owner, mode, since_ms, deadline_ms, revoked (1 or 0), label
-- Wakes
--   whoever can enter now that it has left.
local REQUEST, OWNER, BLAME, UPGRADE_OF = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]

local now_us = clock()
local M = machine(now_us, { OWNER }, true)
local write_ended = M.lapse()
local was, ahead = 'absent', 0
local fence, holders, waiters, rows
if BLAME > 0 then
  fence, holders, waiters, rows = M.snapshot(BLAME)
end
local g = M.granted(OWNER, REQUEST)
if g then
  was = 'held'
  local from = UPGRADE_OF == '' or M.ending(UPGRADE_OF, 0)
  -- Unless that one has been given back in the meantime, or is there.
  if
    not (from == 'replaced' or from == 'unknown')
    or M.granted(OWNER, UPGRADE_OF)
    or (M.waiting > 0 and M.waiter_of(UPGRADE_OF))
  then
    write_ended = M.drop_granted(OWNER, g) or write_ended
  else
    write_ended = M.undo_upgrade(OWNER, g, UPGRADE_OF) or write_ended
  end
elseif M.waiting > 0 then
  M.load_waiters({ REQUEST }, { OWNER })
  local w = M.waiter_of(REQUEST)
  if w then
    if BLAME > 0 then
      ahead = redis.call('ZRANK', QUEUE, REQUEST .. ',' .. w.owner) or 0
    end
    M.leave(REQUEST)
    was = 'queued'
  end
end
M.mark(REQUEST, 2)
M.advance(write_ended)
M.flush()
return { CALL, now_us, was, ahead, fence, holders, waiters, rows }

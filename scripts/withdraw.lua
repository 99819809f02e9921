-- withdraw: a waiter leaves, wherever its request is: in line, granted in the meantime, or not yet arrived.
--
-- Leaves a mark, so that an acquire which arrives later takes nothing.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 claim_ms  3 mark_ms  4 retention_ms  5 trust  6 channel: see prelude.lua
--   7 request
--   8 owner
--   9 blame   how many owners to name who are in the way; 0: none of it
-- Replies
--   held      ahead, and with blame: fence, holders, waiters, rows of who holds
--   queued    the same
--   absent    the same
--             a row: request, owner, mode, since_ms, deadline_ms, revoked (1 or 0), label
-- Wakes
--   whoever can enter now that it has left.
local REQUEST, OWNER, BLAME = ARGV[7], ARGV[8], tonumber(ARGV[9])

local M = machine(
  redis.call('HMGET', HASH, 'fence', 'top', 'readers', 'due', 'waiting', 'gc', 'marks', 'ticket', '@' .. OWNER),
  { OWNER },
  true
)
local write_ended = M.lapse()
local was, ahead = 'absent', 0
local fence, holders, waiters, rows
if BLAME > 0 then
  fence, holders, waiters, rows = M.snapshot(BLAME)
end
local g = M.granted(OWNER, REQUEST)
if g then
  was, write_ended = 'held', M.drop_granted(OWNER, g) or write_ended
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

-- downgrade: a granted request goes on in a weaker mode, without a gap.
--
-- From write it lets waiting readers in. A weaker one than asked stays as it is.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 request
--   4 owner
--   5 fence   as for a release
--   6 to      read or upgradable
-- Replies
--   downgraded  fence, deadline_ms, depth: in the mode it has now
--   not_held    lapsed, revoked, withdrawn, replaced, forgotten or unknown
-- Wakes
--   whoever may share with the weaker mode.
local REQUEST, OWNER, FENCE, TO = ARGV[3], ARGV[4], tonumber(ARGV[5]), string.sub(ARGV[6], 1, 1)

local now_us = clock()
local M = machine(now_us, { OWNER }, true)
local write_ended = M.lapse()
local g = M.granted(OWNER, REQUEST)
local reply
if g and not g.revoked then
  if string.byte(TO) < string.byte(g.mode) then
    M.replace(M.hold_of(OWNER), g, TO, g.deadline)
    g.mode = TO
  end
  write_ended = M.settle_owner(OWNER) or write_ended
  reply = { CALL, now_us, 'downgraded', M.grant_of(OWNER, g) }
else
  reply = { CALL, now_us, 'not_held', g and 'revoked' or M.ending(REQUEST, FENCE) }
end
M.advance(write_ended)
M.flush()
return reply

-- poll: refreshes requests that wait, and asks what became of them.
--
-- A push is a hint; this is how a waiter learns the truth without one. Who does not poll is passed over after a claim.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 request   from here two for each request
--   4 owner
-- Replies
--   poll      a row for each request:
--   granted   - fence, deadline_ms, depth
--   queued    - wake_ms: as for an acquire
--   not_held  - lapsed, revoked, withdrawn, replaced or unknown
-- Wakes
--   whoever can enter as a lease has lapsed, or as a waiter before it was not refreshed.
local requests, owners, known, all = {}, {}, {}, {}
for i = 3, #ARGV, 2 do
  local owner = ARGV[i + 1]
  requests[#requests + 1], all[#all + 1] = ARGV[i], owner
  if not known[owner] then
    owners[#owners + 1], known[owner] = owner, true
  end
end

local now_us = clock()
local M = machine(now_us, owners, true)
local write_ended = M.lapse()
if M.waiting > 0 then
  M.load_waiters(requests, owners)
  for _, request in ipairs(requests) do
    local w = M.waiter_of(request)
    if w then
      M.refresh(w)
    end
  end
end
M.advance(write_ended)
local rows = {}
for i, request in ipairs(requests) do
  local g = M.granted(all[i], request)
  local w = not g and M.waiting > 0 and M.waiter_of(request)
  if g then
    rows[i] = { 'granted', M.grant_of(all[i], g) }
  elseif w then
    rows[i] = { 'queued', M.wake_ms(request .. ',' .. w.owner) }
  else
    rows[i] = { 'not_held', M.ending(request, 0) }
  end
end
M.flush()
return { CALL, now_us, 'poll', rows }

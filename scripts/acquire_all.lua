-- acquire_all: requests of one owner for several names, all or none. Nobody gets in line.
--
-- First all are looked at, then, if all may enter, all do: what `acquire` does for each, in one step.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua; and so on, five for each further name
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 request     from here six for each name
--   4 owner
--   5 mode        r, u or w
--   6 lease_ms
--   7 first       1: not if its owner holds already, or waits
--   8 label       any bytes; empty for none
-- Replies
--   granted  a row for each name: fence, deadline_ms, depth
--   busy     one of them can't be had at once, or its request has ended; none was taken
--   refused  a row with the number of the first, from 1 on, that its owner holds already, or waits for, and that was not to be; none was taken
-- Wakes
--   requests of the same owner that may re-enter now; and whoever can enter as a lease has lapsed.
local now_us = clock()

-- Whether it may enter; and whether it is not to, as its owner is there already.
local function may_enter(M, request, owner, mode, first)
  if M.granted(owner, request) then
    return true -- a copy
  end
  if M.waiting > 0 then
    M.load_waiters({ request }, { owner })
  end
  if M.mark_of(request) then
    return false
  end
  if first and (M.strongest(M.hold_of(owner)) or (M.waiting > 0 and #M.waiting_of(owner) > 0)) then
    return false, true
  end
  return M.admits(owner, mode, 0)
end

local some_first = false
for at = 3, #ARGV, 6 do
  some_first = some_first or ARGV[at + 4] == '1'
end

local machines, all, refused = {}, true, false
for at = 3, #ARGV, 6 do
  local M = machine(now_us, { ARGV[at + 1] }, false, #machines * 5)
  machines[#machines + 1] = M
  M.advance(M.lapse())
  M.flush()
  local may, second = may_enter(M, ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 4] == '1')
  all = all and may
  refused = second and #machines
  -- A refusal matters more than who is in the way.
  if refused or not (all or some_first) then
    break
  end
end

-- Where something of another type may be found only when it is written to: before anything is.
if all then
  for i, M in ipairs(machines) do
    local from = (i - 1) * 5
    redis.call('ZCARD', KEYS[from + 2])
    if M.waiting > 0 then
      redis.call('ZCARD', KEYS[from + 3])
      redis.call('HLEN', KEYS[from + 4])
    end
  end
end

local rows = refused and { { refused } } or {}
for i, M in ipairs(machines) do
  if all then
    local at = 3 + (i - 1) * 6
    local request, owner = ARGV[at], ARGV[at + 1]
    if not M.granted(owner, request) then
      local batch = {}
      M.enter(
        { request = request, owner = owner, mode = ARGV[at + 2], upgrade_of = '', label = ARGV[at + 5] },
        tonumber(ARGV[at + 3])
      )
      M.siblings(owner, batch)
      M.deliver(batch)
      -- An owner that now holds upgradable may be able to write.
      if #M.waiting_of(owner) > 0 then
        M.advance(false)
      end
    end
    rows[i] = { M.grant_of(owner, M.granted(owner, request)) }
  end
  M.flush()
end
return { CALL, now_us, all and 'granted' or refused and 'refused' or 'busy', rows }

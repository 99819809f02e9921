-- inspect: who holds and who waits, as far as asked for.
--
-- An operator's call: it looks at as many holds and waiters as it shows.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 limit   at most so many owners that hold, and so many requests that wait
-- Replies
--   inspect  fence, holders, waiters, rows of who holds (as for a withdrawal), rows of who waits, first in line first:
--            request, owner, mode, since_ms, label
-- Wakes
--   only whoever can enter as a lease has lapsed.
local LIMIT = tonumber(ARGV[3])

local now_us = clock()
local M = machine(now_us, {}, true)
M.advance(M.lapse())
local fence, holders, waiters, held = M.snapshot(LIMIT)
local waits = {}
if M.waiting > 0 and LIMIT > 0 then
  local requests, owners = {}, {}
  for _, member in ipairs(redis.call('ZRANGE', QUEUE, 0, LIMIT - 1)) do
    requests[#requests + 1], owners[#owners + 1] = string.match(member, '^([^,]+),(.*)$')
  end
  M.load_waiters(requests, {})
  for i, request in ipairs(requests) do
    local w = M.waiter_of(request)
    if w then
      waits[#waits + 1] = { request, owners[i], M.word_of(w.mode), math.floor((w.ticket + 1735689600000000) / 1000), w.label }
    end
  end
end
return { CALL, now_us, 'inspect', fence, holders, waiters, held, waits }

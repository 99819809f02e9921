-- revoke: an operator takes holds away, from one owner or from all.
--
-- The holders are told, and can no longer renew; the lock goes on when they have given back or their leases have run out. Looks at
-- every hold it takes.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 owner   empty for all
--   4 granted_by_ms  what was granted later stays; 0 takes nothing, and only tells
-- Replies
--   revoke  how many requests are revoked and not yet given back, whoever revoked them, and when the last of them lapses (0 when
--           there are none)
-- Wakes
--   nobody, but as any script whoever can enter as a lease has lapsed; it tells the clients of the revoked requests.
local OWNER, GRANTED_BY = ARGV[3], tonumber(ARGV[4])

local now_us = clock()
local M = machine(now_us, {}, true)
local write_ended = M.lapse()
local owners = { OWNER }
if OWNER == '' then
  M.flush()
  owners = {}
  if M.readers > 0 then
    owners = redis.call('ZRANGEBYSCORE', READERS, '-inf', '(inf')
  end
  if M.top_owner then
    table.insert(owners, 1, M.top_owner)
  end
end
M.load_holds(owners)
local clients, messages, count, last = {}, {}, 0, 0
for _, owner in ipairs(owners) do
  local hold = M.hold_of(owner)
  local list = string.gsub(hold.list, '|([^,]+),(%a)(%+?),(%d+),(%d+)', function(request, letter, label, deadline, lasts)
    local mode = letter
    if deadline - lasts <= GRANTED_BY then
      mode = string.upper(letter)
      local client = string.match(request, '^[^.]*')
      if not messages[client] then
        clients[#clients + 1], messages[client] = client, { string.format('revoked %.0f', now_us) }
      end
      table.insert(messages[client], request)
    end
    if mode == string.upper(mode) then
      count, last = count + 1, math.max(last, tonumber(deadline))
    end
    return string.format('|%s,%s%s,%s,%s', request, mode, label, deadline, lasts)
  end)
  if list ~= hold.list then
    hold.list = list
    M.touch(owner)
  end
end
M.flush()
for _, client in ipairs(clients) do
  M.tell(client, messages[client])
end
M.advance(write_ended)
M.flush()
return { CALL, now_us, 'revoke', count, last }

-- acquire: a request asks to hold.
--
-- It is granted at once, or queued, or told why not. A request that is known is not asked twice: a copy of one that was granted
-- hears of the same grant, a copy of one that waits is refreshed, and one that ended (was withdrawn, say, before it arrived) stays
-- ended.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 claim_ms  3 mark_ms  4 retention_ms  5 trust  6 channel: see prelude.lua
--   7 request     <client>.<number>
--   8 owner
--   9 mode        read, upgradable or write
--  10 wait        1: get in line if it can't be granted at once
--  11 lease_ms
--  12 ticket      the place it had before the server forgot it; 0 for none
--  13 upgrade_of  the granted upgradable request that becomes this one; empty for none
--  14 label       any bytes; empty for none
-- Replies
--   granted  fence, deadline_ms, depth
--   queued   ticket, wake_ms: when the first in line should look again; 0 for the others
--   busy     not at once, and it was not to wait
--   refused  it would wait for its own owner's read to end
--   ended    lapsed, revoked, withdrawn, replaced or unknown: the request, or the one it would upgrade, has ended
-- Wakes
--   requests of the same owner that may re-enter now; and, like every script, whoever can enter as a lease has lapsed.
local REQUEST, OWNER, MODE, WAIT, LEASE = ARGV[7], ARGV[8], string.sub(ARGV[9], 1, 1), ARGV[10] == '1', tonumber(ARGV[11])
local TICKET, UPGRADE_OF, LABEL = tonumber(ARGV[12]), ARGV[13], ARGV[14]

local stored = redis.call('HMGET', HASH, 'fence', 'top', 'readers', 'due', 'waiting', 'gc', 'marks', 'ticket', '@' .. OWNER)

-- Nobody waits, nobody is in the way, the owner holds nothing yet, nothing has lapsed, it has no mark, and no TTL needs a look.
do
  local fence, top, readers, due, waiting, gc, marks, _, hold = unpack(stored)
  local deadline = now + LEASE
  local in_the_way
  if MODE == 'r' then
    in_the_way = top and (string.byte(top) ~= 117 or tonumber(string.match(top, '%d+$')) <= now)
  else
    in_the_way = top or (MODE == 'w' and readers)
  end
  if
    not (in_the_way or waiting or hold)
    and fence
    and UPGRADE_OF == ''
    and (not due or tonumber(due) > now)
    and gc
    and deadline + RETENTION <= tonumber(gc)
    and (not marks or tonumber(marks) <= now or not redis.call('ZSCORE', MARKS, REQUEST))
  then
    local format = string.format
    local till = format('%.0f', deadline)
    local request = format(',%s|%s,%s%s,%s,%.0f', till, REQUEST, MODE, LABEL == '' and '' or '+', till, now)
    if MODE == 'r' then
      redis.call('ZADD', READERS, till, OWNER)
      if due and tonumber(due) < deadline then
        till = due
      end
      if LABEL == '' then
        redis.call('HSET', HASH, 'readers', (readers or 0) + 1, 'due', till, '@' .. OWNER, '1,0,0' .. request)
      else
        redis.call(
          'HSET', HASH, 'readers', (readers or 0) + 1, 'due', till, '@' .. OWNER, '1,0,0' .. request, '#' .. REQUEST, LABEL
        )
      end
      if not readers then
        redis.call('PEXPIREAT', READERS, format('%.0f', gc - 1))
      end
      return { CALL, now_us, 'granted', tonumber(fence), deadline, 1 }
    end
    local depths = '0,1,0'
    if MODE == 'w' then
      depths, fence = '0,0,1', fence + 1
      if fence < now_us then
        fence = now_us
      end
    end
    till = format('%s,%s,%s', MODE, OWNER, till)
    if LABEL == '' then
      redis.call('HSET', HASH, 'fence', format('%.0f', fence), 'top', till, '@' .. OWNER, depths .. request)
    else
      redis.call('HSET', HASH, 'fence', format('%.0f', fence), 'top', till, '@' .. OWNER, depths .. request, '#' .. REQUEST, LABEL)
    end
    return { CALL, now_us, 'granted', tonumber(fence), deadline, 1 }
  end
end

local M = machine(now_us, stored, { OWNER }, false)

local function reply(...)
  M.flush()
  return { CALL, now_us, ... }
end

M.advance(M.lapse())
local g = M.granted(OWNER, REQUEST)
if g then
  return reply('granted', M.grant_of(OWNER, g))
end
if M.waiting > 0 then
  M.load_waiters({ REQUEST }, { OWNER })
  local w = M.waiter_of(REQUEST)
  if w then
    M.refresh(w)
    return reply('queued', w.ticket, M.wake_ms(REQUEST .. ',' .. w.owner))
  end
end
local ending = M.ending(REQUEST, 0)
if ending ~= 'unknown' then
  return reply('ended', ending)
end
if UPGRADE_OF ~= '' and not M.upgradable_from(OWNER, UPGRADE_OF) then
  return reply('ended', M.granted(OWNER, UPGRADE_OF) and 'revoked' or M.ending(UPGRADE_OF, 0))
end

local held = M.strongest(M.hold_of(OWNER))
local at_once
if held and string.byte(MODE) <= string.byte(held) then
  at_once = true
elseif MODE == 'r' then
  at_once = M.top_mode ~= 'w' and not M.live_writer() and not M.waits_for_more(OWNER)
elseif MODE == 'u' then
  at_once = not M.top_owner
  if at_once and not held then
    -- Does this waiter stand behind the place that the request comes back to?
    local function is_behind(w)
      return w.band ~= -1 and TICKET > 0 and TICKET < w.ticket
    end
    local writer = M.live_writer()
    at_once = not writer or is_behind(writer)
    if at_once then
      local upgradable = M.live_head(1)
      at_once = not upgradable or is_behind(upgradable)
    end
  end
else
  at_once = M.alone(OWNER)
end
if at_once then
  local batch = {}
  M.enter({ request = REQUEST, owner = OWNER, mode = MODE, upgrade_of = UPGRADE_OF, label = LABEL }, LEASE)
  M.siblings(OWNER, batch)
  M.deliver(batch)
  -- An owner that now holds upgradable may be able to write.
  if #M.waiting_of(OWNER) > 0 then
    M.advance(false)
  end
  g = M.granted(OWNER, REQUEST)
  if g then
    return reply('granted', M.grant_of(OWNER, g))
  end
  return reply('ended', 'unknown')
end
if not WAIT then
  return reply('busy')
end
local band = MODE == 'w' and 0 or MODE == 'u' and 1 or 2
if held then
  if not (MODE == 'w' and held == 'u') then
    return reply('refused')
  end
  band = -1
end
if TICKET == 0 then
  TICKET = math.max(M.ticket + 1, now_us - 1735689600000000)
end
local wake_ms = M.wake_ms(REQUEST .. ',' .. OWNER, band * M.BAND + TICKET)
M.enqueue(REQUEST, OWNER, band, LEASE, TICKET, UPGRADE_OF, LABEL)
return reply('queued', TICKET, wake_ms)

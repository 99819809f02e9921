-- acquire: a request asks to hold.
--
-- It is granted at once, or queued, or told why not. A request that is known is not asked twice: a copy of one that was granted
-- hears of the same grant, a copy of one that waits is refreshed, and one that ended (was withdrawn, say, before it arrived) stays
-- ended.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 request     <client>.<number>
--   4 owner
--   5 mode        r, u or w
--   6 lease_ms
--   7 wait        1: get in line if it can't be granted at once; 2 more: refuse it if its owner holds already, or waits
--   8 ticket      the place it had before the server forgot it; 0 for none. This and what follows only if any of it is said
--   9 upgrade_of  the granted upgradable request that becomes this one; empty for none
--   10 label      any bytes; empty for none
-- Replies
--   granted  fence, deadline_ms, depth
--   queued   ticket, wake_ms: when the first in line should look again; 0 for the others
--   busy     not at once, and it was not to wait
--   refused  it would wait for its own owner's read to end; or its owner holds or waits, and that was not to be
--   ended    lapsed, revoked, withdrawn, replaced or unknown: the request, or the one it would upgrade, has ended
--            as text: the call, the word, the time (microseconds) and this, with spaces between
-- Wakes
--   requests of the same owner that may re-enter now; and, like every script, whoever can enter as a lease has lapsed.
local REQUEST, OWNER, MODE, LEASE = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local now_us, now, now_text = clock()

-- What is common and plain is told straight out, as the machine below would do it: nothing has lapsed, the request is new and says
-- no more than it must, no TTL needs a look.
do
  local lone = OWNER == REQUEST -- made for it: such an owner holds and waits for nothing else
  local stored
  if lone then
    stored = redis.call('HMGET', HASH, 'fence', 'top', 'due', 'waiting', 'warm', 'marks')
  else
    stored = redis.call('HMGET', HASH, 'fence', 'top', 'due', 'waiting', 'warm', 'marks', '@' .. OWNER)
  end
  local fence, top, due, waiting, warm, marks, hold = unpack(stored, 1, 7)
  if waiting == '0' then
    waiting = false
  end
  local deadline = now + LEASE
  local due_later = due and (due == FAR or tonumber(due) > now)
  local top_due = top and string.match(top, '%d+', 3)
  local top_later = not top or tonumber(top_due) > now
  if
    warm
    and fence
    and top_later
    and deadline <= tonumber(warm)
    and not ARGV[8]
    and (not marks or tonumber(marks) <= now or not redis.call('ZSCORE', MARKS, REQUEST))
  then
    local writing = top and string.byte(top) == 119
    local _, own = nil, nil
    if top then
      _, own = string.find(top, ',' .. OWNER .. '|', 1, true)
    end

    -- It holds already, and asks for no more than that.
    if own or hold then
      local list = own and string.sub(top, own) or hold
      if
        (not due or due_later)
        and (own or (due and due ~= FAR))
        and ARGV[7] < '2'
        and string.byte(MODE) <= (own and string.byte(top) or 114)
        and (not waiting or (own and writing)) -- who writes waits for nothing
        and not string.find(list, '|' .. REQUEST .. ',', 1, true)
      then
        local till = string.format('%.0f', deadline)
        local _, depth = string.gsub(list, ',[' .. MODE .. string.upper(MODE) .. '][+,]', '')
        list = list .. '|' .. REQUEST .. ',' .. MODE .. ',' .. till .. ',' .. LEASE
        if own then
          top_due = deadline < tonumber(top_due) and till or top_due
          redis.call('HSET', HASH, 'top', string.sub(top, 1, 2) .. top_due .. ',' .. OWNER .. list)
        else
          redis.call('ZADD', READERS, 'LT', till, OWNER)
          redis.call('HSET', HASH, '@' .. OWNER, list, 'due', deadline < tonumber(due) and till or due)
        end
        return CALL .. ' granted ' .. now_text .. ' ' .. fence .. ' ' .. till .. ' ' .. depth + 1
      end

    -- Nobody waits, nobody is in the way.
    elseif not waiting and not writing and MODE == 'r' then
      if due_later then
        local till = string.format('%.0f', deadline)
        local made -- whether it tells by itself since when it holds
        if lone then
          local made_us = string.match(REQUEST, '%d+$') + EPOCH_US
          made = (made_us - made_us % 1000) / 1000
          made = made <= now and now - made <= FRESH
        end
        if redis.call('ZADD', READERS, 'NX', till, OWNER) == 1 then
          if not made then
            redis.call('HSET', HASH, '@' .. OWNER, '|' .. REQUEST .. ',r,' .. till .. ',' .. LEASE)
          end
          if deadline < tonumber(due) then
            redis.call('HSET', HASH, 'due', till)
          end
          return CALL .. ' granted ' .. now_text .. ' ' .. fence .. ' ' .. till .. ' 1'
        end
      end
    elseif not waiting and not top then
      local read = due and due ~= FAR -- or they have left, and nobody has looked since
      local shared = read and MODE == 'u' and due_later
      if shared and string.find(OWNER, '.', 1, true) then
        shared = not redis.call('ZSCORE', READERS, OWNER)
      end
      if not read or shared or redis.call('ZCOUNT', READERS, '-inf', '(inf') == 0 then
        local till = string.format('%.0f', deadline)
        if MODE == 'w' then
          fence = fence + 1
          fence = fence < now_us and now_text or string.format('%.0f', fence)
        end
        top = MODE .. ',' .. till .. ',' .. OWNER .. '|' .. REQUEST .. ',' .. MODE .. ',' .. till .. ',' .. LEASE
        if read and not shared then
          redis.call('HSET', HASH, 'fence', fence, 'due', FAR, 'top', top)
        else
          redis.call('HSET', HASH, 'fence', fence, 'top', top)
        end
        return CALL .. ' granted ' .. now_text .. ' ' .. fence .. ' ' .. till .. ' 1'
      end
    end

    -- It waits: behind a writer, or as a writer for the readers that are in.
    local wake
    if own or hold or ARGV[7] ~= '1' then
      -- Not this way.
    elseif writing then
      wake = top_due
    elseif not top and not waiting and MODE == 'w' and due_later then
      if not (string.find(OWNER, '.', 1, true) and redis.call('ZSCORE', READERS, OWNER)) then
        wake = redis.call('ZRANGEBYSCORE', READERS, '-inf', '(inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
      end
    end
    if wake then
      local claim, retention = string.match(ARGV[2], '^(%d+) %d+ (%d+)')
      local asked = now + claim <= tonumber(warm) and redis.call('HMGET', WAITERS, REQUEST, '@' .. OWNER)
      if asked and not (asked[1] or asked[2]) then
        local ticket = math.max((redis.call('HGET', HASH, 'ticket') or 0) + 1, now_us - EPOCH_US)
        local band = MODE == 'w' and 0 or MODE == 'u' and 1 or 2
        local place = REQUEST .. ',' .. OWNER
        redis.call('ZADD', QUEUE, string.format('%.0f', band * 2251799813685248 + ticket), place)
        ticket = string.format('%.0f', ticket)
        local record = string.format('%s,%d,%s,%s,%.0f,,', OWNER, band, ticket, LEASE, now + claim)
        redis.call('HSET', WAITERS, REQUEST, record, '@' .. OWNER, REQUEST)
        redis.call('HSET', HASH, 'ticket', ticket, 'waiting', (waiting or 0) + 1)
        if waiting then
          wake = redis.call('ZRANK', QUEUE, place) == 0 and wake or 0
        else
          local till = string.format('%.0f', warm + retention - 1)
          redis.call('PEXPIREAT', QUEUE, till)
          redis.call('PEXPIREAT', WAITERS, till)
        end
        return CALL .. ' queued ' .. now_text .. ' ' .. ticket .. ' ' .. wake
      end
    end
  end
end

local WAIT, FIRST, TICKET, UPGRADE_OF, LABEL = ARGV[7] % 2 == 1, ARGV[7] > '1', tonumber(ARGV[8] or 0), ARGV[9] or '', ARGV[10] or ''
LEASE = tonumber(LEASE)
local M = machine(now_us, { OWNER }, false)

local function reply(word, ...)
  M.flush()
  local words = { CALL, word, now_text, ... }
  for i = 4, #words do
    words[i] = type(words[i]) == 'number' and string.format('%.0f', words[i]) or words[i]
  end
  return table.concat(words, ' ')
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
if FIRST and (held or M.waiting > 0 and #M.waiting_of(OWNER) > 0) then
  return reply('refused')
end
if M.admits(OWNER, MODE, TICKET) then
  local batch = {}
  local since
  if MODE == 'r' and OWNER == REQUEST and LABEL == '' and not held then
    -- It tells by itself since when it holds, as near as it matters.
    local made = M.made(REQUEST)
    since = made <= now and now - made <= FRESH and made
  end
  M.enter({ request = REQUEST, owner = OWNER, mode = MODE, upgrade_of = UPGRADE_OF, label = LABEL }, LEASE, since)
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
  TICKET = math.max(M.ticket + 1, now_us - EPOCH_US)
end
local wake_ms = M.wake_ms(REQUEST .. ',' .. OWNER, band * M.BAND + TICKET)
M.enqueue(REQUEST, OWNER, band, LEASE, TICKET, UPGRADE_OF, LABEL)
return reply('queued', TICKET, wake_ms)

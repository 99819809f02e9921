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

-- What is common and plain is told straight out, as the machine below would do it: the request is held, without a label.
do
  local waiting, top, hold = unpack(redis.call('HMGET', HASH, 'waiting', 'top', '@' .. OWNER), 1, 3)
  if waiting == '0' then
    waiting = false
  end
  -- Is it all that the owner holds?
  local writes, reads
  if top then
    local _, last = string.find(top, ',' .. OWNER .. '|' .. REQUEST .. ',', 1, true)
    writes = last and string.match(top, '^(%a),%d+,%d+$', last + 1)
  end
  if hold then
    local _, last = string.find(hold, '|' .. REQUEST .. ',', 1, true)
    reads = last == #REQUEST + 2 and string.find(hold, '^%a,%d+,%d+$', last + 1)
  elseif not writes then
    reads = OWNER == REQUEST
  end

  if LEAVE_MARK then
    -- Not this way.

  -- Nobody waits.
  elseif writes and not waiting then
    redis.call('HDEL', HASH, 'top')
    return CALL .. ' released'
  elseif reads and not waiting then
    if redis.call('ZREM', READERS, OWNER) == 1 or hold then
      if hold then
        redis.call('HDEL', HASH, '@' .. OWNER)
      end
      return CALL .. ' released'
    end

  -- The next in line is a writer, and nobody comes before it: no reader when a writer leaves, no upgradable that came earlier.
  elseif writes == 'w' or (reads and not top) then
    local now_us, now, now_text = clock()
    local fence, due, warm = unpack(redis.call('HMGET', HASH, 'fence', 'due', 'warm'), 1, 3)
    local left = 0 -- how many others hold
    local in_time
    if writes then
      in_time = tonumber(string.match(top, '%d+', 3)) > now
    else
      in_time = due and due ~= FAR and tonumber(due) > now and redis.call('ZSCORE', READERS, OWNER)
      left = in_time and redis.call('ZCOUNT', READERS, '-inf', '(inf') - 1
    end
    local place
    if in_time and fence and warm then
      if redis.call('ZCOUNT', QUEUE, '2251799813685248', writes and '+inf' or '(4503599627370496') == 0 then
        place = redis.call('ZRANGE', QUEUE, 0, 0)[1]
      end
    end
    if place then
      local request, owner = string.match(place, '^([^,]+),(.+)$')
      local record, asked = unpack(redis.call('HMGET', WAITERS, request, '@' .. owner), 1, 2)
      local of, lease, till = string.match(record or '', '^([^,]+),0,%d+,(%d+),(%d+),,$')
      local claim, trust, channel = string.match(ARGV[2], '^(%d+) %d+ %d+ ([01]) (.*)$')
      if of == owner and asked == request and tonumber(till) > now then
        lease = tonumber(lease) < tonumber(claim) and lease or claim
        local deadline = now + lease
        if left > 0 then
          redis.call('ZREM', READERS, OWNER)
          if hold then
            redis.call('HDEL', HASH, '@' .. OWNER)
          end
          return CALL .. ' released'
        elseif deadline <= tonumber(warm) then
          if reads then
            redis.call('ZREM', READERS, OWNER)
            if hold then
              redis.call('HDEL', HASH, '@' .. OWNER)
            end
          end
          redis.call('ZREM', QUEUE, place)
          redis.call('HDEL', WAITERS, request, '@' .. owner)
          fence = fence + 1
          fence = fence < now_us and now_text or string.format('%.0f', fence)
          till = string.format('%.0f', deadline)
          top = 'w,' .. till .. ',' .. owner .. '|' .. request .. ',w,' .. till .. ',' .. lease
          if reads then
            redis.call('HSET', HASH, 'fence', fence, 'top', top, 'waiting', waiting - 1, 'due', FAR)
          else
            redis.call('HSET', HASH, 'fence', fence, 'top', top, 'waiting', waiting - 1)
          end
          local told = 'granted ' .. now_text .. ' ' .. request .. ',' .. fence .. ',' .. till .. ',1'
          local verb = string.find(channel, '{', 1, true) and 'SPUBLISH' or 'PUBLISH' -- as in `tell`
          local heard = redis.pcall(verb, channel .. string.match(request, '^[^.]*'), told)
          if heard == 0 and trust == '1' and string.byte(request) ~= 95 then
            -- It does not get what it did not hear of.
            local M = machine(now_us, { owner }, true)
            M.drop_granted(owner, M.granted(owner, request))
            M.advance(false)
            M.flush()
          end
          return CALL .. ' released'
        end
      end
    end

  -- It holds as much as before, less often.
  elseif top or hold then
    local _, own = nil, nil
    if top then
      _, own = string.find(top, ',' .. OWNER .. '|', 1, true)
    end
    local list = own and string.sub(top, own) or hold or ''
    local at = string.find(list, '|' .. REQUEST .. ',', 1, true)
    local mode, deadline, past = string.match(list, '^|[^,]+,(%l),(%d+),%d+()', at or #list + 1)
    local of = own and string.sub(top, 1, 1) or 'r'
    if mode and (not waiting or (of == 'w' and tonumber(string.match(top, '%d+', 3)) > select(2, clock()))) then
      list = string.sub(list, 1, at - 1) .. string.sub(list, past)
      if string.find(list, ',[' .. of .. string.upper(of) .. '][+,]') then
        local due = own and string.match(top, '%d+', 3) or redis.call('ZSCORE', READERS, OWNER)
        if deadline == due then
          due = FAR
          for later in string.gmatch(list, '|[^,]+,[^,]+,(%d+)') do
            due = tonumber(later) < tonumber(due) and later or due
          end
          if not own then
            redis.call('ZADD', READERS, due, OWNER)
          end
        end
        if own then
          redis.call('HSET', HASH, 'top', of .. ',' .. due .. ',' .. OWNER .. list)
        elseif due then
          redis.call('HSET', HASH, '@' .. OWNER, list)
        end
        if own or due then
          return CALL .. ' released'
        end
      end
    end
  end
end

local FENCE, AGAIN = tonumber(ARGV[5]), ARGV[6] == '1'
local now_us = clock()
local M = machine(now_us, { OWNER }, true)
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

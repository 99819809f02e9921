-- renew: granted requests, of one name or of several, get a later deadline. Never an earlier one.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua; and so on, five for each further name
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 count     how many requests of the first name follow, five arguments for each; then the count of the next name, and so on
--   4 request
--   5 owner
--   6 fence     as for a release
--   7 lease_ms
--   8 fixed     1: the lease counts from the grant; 0: from now
-- Replies
--   renew     a row for each request:
--   renewed   - deadline_ms
--   not_held  - lapsed, revoked, withdrawn, replaced, forgotten or unknown
-- Wakes
--   only whoever can enter as a lease has lapsed.
local now_us, now = clock()
local rows = {}

-- One request, all that its owner holds; nothing has lapsed, no TTL needs a look, nobody could enter. Told straight out, as the
-- machine below would do it: most renewals are this. Returns the deadline.
local function plain(from, request, owner, lease, fixed)
  local HASH, READERS = KEYS[from + 1], KEYS[from + 2]
  local top, due, waiting, warm, hold = unpack(
    redis.call('HMGET', HASH, 'top', 'due', 'waiting', 'warm', '@' .. owner), 1, 5
  )
  if not warm or (due and tonumber(due) <= now) or (top and tonumber(string.match(top, '%d+', 3)) <= now) then
    return nil
  end
  local _, own = nil, nil -- where its hold begins in `top`, if it is that
  if top then
    _, own = string.find(top, ',' .. owner .. '|', 1, true)
  end
  if waiting and waiting ~= '0' and not (own and string.byte(top) == 119) then
    return nil
  end
  local mode, deadline, lasts
  if own or hold then
    local list, named = own and string.sub(top, own) or hold, '|' .. request .. ','
    if string.sub(list, 1, #named) == named then
      mode, deadline, lasts = string.match(list, '^(%l%+?),(%d+),(%d+)$', #named + 1)
    end
  elseif request == owner and due then
    deadline = redis.call('ZSCORE', READERS, owner)
    local made_us = string.match(request, '%d+$') + EPOCH_US
    lasts = deadline and deadline - (made_us - made_us % 1000) / 1000
  end
  if not deadline then
    return nil
  end
  local since = deadline - lasts
  local later = (fixed == '1' and since or now) + lease
  if later <= tonumber(deadline) then
    return tonumber(deadline)
  end
  if later > tonumber(warm) then
    return nil
  end
  local till = string.format('%.0f', later)
  if not own then
    local done = redis.pcall('ZADD', READERS, 'XX', till, owner)
    if type(done) == 'table' then
      return nil
    end
  end
  if own or hold then
    local list = '|' .. request .. ',' .. mode .. ',' .. till .. ',' .. string.format('%.0f', later - since)
    local done
    if own then
      done = redis.pcall('HSET', HASH, 'top', string.sub(top, 1, 2) .. till .. ',' .. owner .. list)
    else
      done = redis.pcall('HSET', HASH, '@' .. owner, list)
    end
    if type(done) == 'table' then
      return nil
    end
  end
  return later
end

local function of_machine(from, at, last)
  local renewals, owners, known = {}, {}, {}
  for i = at, last, 5 do
    local owner = ARGV[i + 1]
    renewals[#renewals + 1] = {
      request = ARGV[i], owner = owner, fence = tonumber(ARGV[i + 2]), lease = tonumber(ARGV[i + 3]), fixed = ARGV[i + 4] == '1',
    }
    if not known[owner] then
      owners[#owners + 1], known[owner] = owner, true
    end
  end
  local M = machine(now_us, owners, true, from)
  local write_ended = M.lapse()
  local renewed = {}
  for _, renewal in ipairs(renewals) do
    local g = M.granted(renewal.owner, renewal.request)
    if not g then
      rows[#rows + 1] = { 'not_held', M.ending(renewal.request, renewal.fence) }
    elseif g.revoked then
      rows[#rows + 1] = { 'not_held', 'revoked' }
    else
      local deadline = math.max(g.deadline, (renewal.fixed and g.since or now) + renewal.lease)
      if deadline > g.deadline then
        M.replace(M.hold_of(renewal.owner), g, g.letter, deadline)
        M.reach = math.max(M.reach, deadline)
        renewed[renewal.owner] = true
      end
      rows[#rows + 1] = { 'renewed', deadline }
    end
  end
  for owner in pairs(renewed) do
    M.settle_owner(owner)
  end
  M.advance(write_ended)
  M.flush()
end

local at, from = 3, 0
while ARGV[at] do
  local last = at + ARGV[at] * 5
  local deadline = last == at + 5 and plain(from, ARGV[at + 1], ARGV[at + 2], ARGV[at + 4], ARGV[at + 5])
  if deadline then
    rows[#rows + 1] = { 'renewed', deadline }
  else
    of_machine(from, at + 1, last)
  end
  at, from = last + 1, from + 5
end
return { CALL, now_us, 'renew', rows }

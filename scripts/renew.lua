-- renew: granted requests of one name get a later deadline. Never an earlier one.
--
-- KEYS
--   1 HASH  2 READERS  3 QUEUE  4 WAITERS  5 MARKS: see prelude.lua
-- ARGV
--   1 call  2 settings: see prelude.lua
--   3 request   from here five for each request
--   4 owner
--   5 fence     as for a release
--   6 lease_ms
--   7 fixed     1: the lease counts from the grant; 0: from now
-- Replies
--   renew     a row for each request:
--   renewed   - deadline_ms
--   not_held  - lapsed, revoked, withdrawn, replaced, forgotten or unknown
-- Wakes
--   only whoever can enter as a lease has lapsed.
local renewals, owners, known, fields = {}, {}, {}, {}
for i = 3, #ARGV, 5 do
  local owner = ARGV[i + 1]
  renewals[#renewals + 1] = {
    request = ARGV[i], owner = owner, fence = tonumber(ARGV[i + 2]), lease = tonumber(ARGV[i + 3]), fixed = ARGV[i + 4] == '1',
  }
  if not known[owner] then
    owners[#owners + 1], fields[#fields + 1], known[owner] = owner, '@' .. owner, true
  end
end

local now_us, now = clock()
local M = machine(
  now_us,
  redis.call('HMGET', HASH, 'fence', 'top', 'due', 'waiting', 'warm', 'marks', 'ticket', unpack(fields)),
  owners,
  true
)
local write_ended = M.lapse()
local rows, renewed = {}, {}
for i, renewal in ipairs(renewals) do
  local g = M.granted(renewal.owner, renewal.request)
  if not g then
    rows[i] = { 'not_held', M.ending(renewal.request, renewal.fence) }
  elseif g.revoked then
    rows[i] = { 'not_held', 'revoked' }
  else
    local deadline = math.max(g.deadline, (renewal.fixed and g.since or now) + renewal.lease)
    if deadline > g.deadline then
      M.replace(M.hold_of(renewal.owner), g, g.letter, deadline)
      M.reach = math.max(M.reach, deadline)
      renewed[renewal.owner] = true
    end
    rows[i] = { 'renewed', deadline }
  end
end
for owner in pairs(renewed) do
  M.settle_owner(owner)
end
M.advance(write_ended)
M.flush()
return { CALL, now_us, 'renew', rows }

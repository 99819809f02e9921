-- What every script shares; joined in front of each at compile time.
--
-- The scripts are the machine of `src/state.rs` on Redis >= 6.2 (Lua 5.1). Functions have the same names there and here; a change
-- goes into both, and a test runs both side by side.
--
-- KEYS, all of one name, all in one slot
--   1 HASH     what the lock is:
--                fence    the last fence issued (microseconds)
--                top      `<u|w>,<due_ms>,<owner><hold>`: who holds upgradable or write, its earliest deadline, and its whole hold;
--                         absent when nobody does
--                due      no later than the earliest deadline of those who only read, FAR when nobody does; absent when READERS has
--                         not been made yet
--                waiting  how many requests are queued; absent or 0 when none is
--                ticket   the last ticket given
--                marks    when the last mark ends: after it nobody looks into MARKS
--                warm     until which deadline the keys need not be kept for longer; see Expiry
--                @<owner> the hold of an owner that only reads, unless READERS tells all of it
--                #<request> the label of a granted request
--              A hold has, for each granted request, in the order of the grants, `|<request>,<mode>[+],<deadline_ms>,<lasts_ms>`.
--              <mode> is r, u or w (the weaker the earlier in the alphabet), in upper case once it is revoked; + says that it has a
--              label; it has been held since <deadline_ms> - <lasts_ms>
--   2 READERS  zset: the owners that only read, scored by their earliest deadline; and an empty member with an infinite score, which
--              keeps the key, and its TTL, when no owner is left. An owner that was made for its request (they are the same text)
--              and holds nothing but that, whole, since the request was made by its number, has no field in HASH
--   3 QUEUE    zset: `<request>,<owner>` of those who wait, scored by band * 2^51 + ticket; bands are -1 upgrade, 0 write,
--              1 upgradable, 2 read
--   4 WAITERS  hash: <request> = `<owner>,<band>,<ticket>,<lease_ms>,<until_ms>,<upgrade_of>,<label>`, where the label may hold any
--              bytes; @<owner> = its waiting requests, in the order they asked, with spaces between
--   5 MARKS    zset: requests that a late call must be told of, scored by when the mark ends, plus 0 for lapsed, 0.25 for revoked,
--              0.5 for withdrawn, 0.75 for replaced
--
-- Cost. A script costs its calls; each argument, each number made a text or read from one, each pattern about a tenth of a call; and
-- every function it *makes* likewise. So the uncontended case is told straight out at the top of a script, and everything else is
-- inside `machine`, made only when needed. Capturing a local of the function around it is what makes a function dear, so there the
-- functions are fields of `M`.
--
-- Order of effects. A step reads, decides in locals, and writes in `flush`: first what may be refused (a key of another type, no
-- memory left), HASH last, so that a refused step has changed nothing. Messages are sent after the grants they tell of are written.
--
-- Expiry. Deadlines are the truth; TTLs only collect what nobody came back for. All keys of a name expire a retention after `warm`
-- (HASH 1 ms after the others). When a deadline comes to lie behind it, `warm` is set half a retention behind that: a warm name
-- pays for no expire call.
--
-- Numbers are doubles. What becomes text goes through %.0f, as tostring keeps 14 digits; replies are integers, or text.

local HASH, READERS, QUEUE, WAITERS, MARKS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
-- ARGV
--   1 call      echoed first in the reply
--   2 settings  five, with spaces between:
--                 claim_ms  how long a grant made by a push lasts unless it is renewed, and a waiting request unless it is polled
--                 mark_ms   how long a mark is kept
--                 retention_ms  how long the fence outlives the last hold, at least
--                 trust     1 when the count that PUBLISH answers is the truth; 0 where it is not, and every message counts as heard
--                 channel   what a client's id is appended to; with a hash tag, which is of the slot of KEYS, where clients listen to that slot
local CALL = ARGV[1]
local FAR = '9007199254740991'
local EPOCH_US = 1735689600000000 -- tickets and requests are numbered by microseconds from here
local FRESH = 1000 -- how many milliseconds old a lone reader's request may be to tell by itself since when it holds

-- Microseconds, milliseconds; and the microseconds as text, which nine times out of ten costs next to nothing.
local function clock()
  local time = redis.call('TIME')
  local now_us = time[1] * 1000000 + time[2]
  return now_us, (now_us - now_us % 1000) / 1000, #time[2] == 6 and time[1] .. time[2] or string.format('%.0f', now_us)
end

-- Binds KEYS and ARGV anew: a function that captures nothing costs next to nothing where it isn't called.
-- `owners`: whose holds are read with the rest; `gives`: this step gives back or keeps what is held, and must not fail for want of
-- memory; `from`: how many of KEYS stand before those of this name.
local function machine(now_us, owners, gives, from)
  from = from or 0
  local HASH, READERS, QUEUE, WAITERS, MARKS = KEYS[from + 1], KEYS[from + 2], KEYS[from + 3], KEYS[from + 4], KEYS[from + 5]
  local CLAIM, MARK, RETENTION, TRUST, CHANNEL = string.match(ARGV[2], '^(%d+) (%d+) (%d+) ([01]) (.*)$')
  CLAIM, MARK, RETENTION, TRUST = tonumber(CLAIM), tonumber(MARK), tonumber(RETENTION), TRUST == '1'
  local now = (now_us - now_us % 1000) / 1000
  local call, pcall = redis.call, redis.pcall
  local find, sub, match, gmatch, format, byte = string.find, string.sub, string.match, string.gmatch, string.format, string.byte
  local huge, max, min, floor = math.huge, math.max, math.min, math.floor
  local CHUNK = 4000 -- arguments a call; unpack takes some 8000

  local function text(number)
    return format('%.0f', number)
  end

  local FAR, EPOCH_US = 9007199254740991, 1735689600000000

  local fields = {}
  for i, owner in ipairs(owners) do
    fields[i] = '@' .. owner
  end
  local stored = call('HMGET', HASH, 'fence', 'top', 'due', 'waiting', 'warm', 'marks', 'ticket', unpack(fields))

  local M = {
    fence = tonumber(stored[1]) or 0,
    due = tonumber(stored[3]),
    waiting = tonumber(stored[4]) or 0,
    warm = tonumber(stored[5]) or 0,
    marks = tonumber(stored[6]) or 0,
    ticket = tonumber(stored[7]) or 0,
    readers = 0, -- how many owners only read
    reach = 0, -- the latest deadline set in this step
    BAND = 2251799813685248,
  }
  if M.due then
    M.readers = call('ZCOUNT', READERS, '-inf', '(inf')
  end
  local had_readers = M.readers > 0
  -- What HASH has, as far as it is written back whole; 0 is none.
  local was = {
    fence = M.fence, top = stored[2] or nil, due = M.due or 0, waiting = M.waiting, warm = M.warm, marks = M.marks, ticket = M.ticket,
  }

  local holds = {} -- by owner, as far as they were looked at
  local dirty = {} -- the owners whose holds must be written
  local labels = {} -- by granted request: to be set, or false: to be dropped
  local reads = {} -- by owner: a new score in READERS, or false: leaves
  local line -- what was read of QUEUE since it was last written
  local queue = {} -- by member: a new score in QUEUE, or false: leaves
  local waiters = {} -- by request, as far as they were looked at; false: none
  local asked = {} -- by owner: its waiting requests, as text
  local changed = {} -- fields of WAITERS to be written
  local marked = {} -- by request: a new score in MARKS, or false: leaves
  local moved = false -- has a request that waits changed its band since QUEUE was last written?
  local typed = { [HASH] = true, [READERS] = M.due and true } -- the keys whose types are known to be right
  local written = false -- has this script written yet?

  -- Captured here once, so that each function below takes them over for next to nothing.
  local function make()
    -- Wide reads -------------------------------------------------------------------------------------------------

    function M.hmget(key, fields)
      typed[key] = true
      if #fields <= CHUNK then
        return call('HMGET', key, unpack(fields))
      end
      local all = {}
      for at = 1, #fields, CHUNK do
        local last = min(at + CHUNK - 1, #fields)
        local some = call('HMGET', key, unpack(fields, at, last))
        for i = 1, last - at + 1 do
          all[at + i - 1] = some[i]
        end
      end
      return all
    end

    -- Holds ------------------------------------------------------------------------------------------------------

    -- `recorded`: there is a field of its own for it.
    function M.keep_hold(owner, list, recorded)
      local hold = { r = 0, u = 0, w = 0, due = huge, list = list, recorded = recorded }
      for letter, deadline in gmatch(list, '|[^,]+,(%a)%+?,(%d+)') do
        local mode = string.lower(letter)
        hold[mode], hold.due = hold[mode] + 1, min(hold.due, tonumber(deadline))
      end
      hold.reads = hold.r > 0 and hold.u == 0 and hold.w == 0
      hold.score = hold.due
      holds[owner] = hold
    end

    -- When a request was made, by its number, in milliseconds.
    function M.made(request)
      return floor((match(request, '%.(%d+)$') + EPOCH_US) / 1000)
    end

    -- Keeps what was found of these owners in HASH; of those of whom there is nothing, what READERS tells.
    function M.keep_holds(of, found, from)
      local lone
      for i, owner in ipairs(of) do
        local list = found[from + i]
        if holds[owner] then
          -- On top, say.
        elseif list then
          M.keep_hold(owner, list, true)
        elseif had_readers and find(owner, '.', 1, true) then
          lone = lone or {}
          lone[#lone + 1] = owner
        else
          M.keep_hold(owner, '')
        end
      end
      for at = 1, lone and #lone or 0, CHUNK do
        local last = min(at + CHUNK - 1, #lone)
        local scores = call('ZMSCORE', READERS, unpack(lone, at, last))
        for i = at, last do
          local score = tonumber(scores[i - at + 1])
          M.keep_hold(lone[i], score and format('|%s,r,%.0f,%.0f', lone[i], score, score - M.made(lone[i])) or '')
        end
      end
    end

    -- Does READERS tell all of this hold?
    function M.is_lone(owner, hold)
      local deadline, lasts = match(hold.list, '^|[^,]+,r,(%d+),(%d+)$')
      return deadline
        and hold.list == '|' .. owner .. ',r,' .. deadline .. ',' .. lasts
        and deadline - lasts == M.made(owner)
    end

    function M.load_holds(of)
      local fields, missing = {}, {}
      for _, owner in ipairs(of) do
        if not holds[owner] then
          if had_readers then
            missing[#missing + 1], fields[#fields + 1] = owner, '@' .. owner
          else
            -- Who is not on top holds nothing.
            M.keep_hold(owner, '')
          end
        end
      end
      if #fields > 0 then
        M.keep_holds(missing, M.hmget(HASH, fields), 0)
      end
    end

    function M.hold_of(owner)
      if not holds[owner] then
        M.load_holds({ owner })
      end
      return holds[owner]
    end

    function M.strongest(hold)
      return hold.w > 0 and 'w' or hold.u > 0 and 'u' or hold.r > 0 and 'r' or nil
    end

    function M.granted(owner, request)
      local list = M.hold_of(owner).list
      local at = find(list, '|' .. request .. ',', 1, true)
      if not at then
        return nil
      end
      local letter, label, deadline, lasts, past = match(list, '^|[^,]+,(%a)(%+?),(%d+),(%d+)()', at)
      local mode = string.lower(letter)
      return {
        request = request, letter = letter, mode = mode, revoked = letter ~= mode, label = label,
        deadline = tonumber(deadline), since = deadline - lasts, at = at, past = past,
      }
    end

    -- Writes a granted request anew, in its place; without a letter takes it out.
    function M.replace(hold, g, letter, deadline, request)
      local put = ''
      if letter then
        local mode = string.lower(letter)
        put = format('|%s,%s%s,%.0f,%.0f', request or g.request, letter, g.label, deadline, deadline - g.since)
        hold[mode] = hold[mode] + 1
      elseif g.label ~= '' then
        labels[g.request] = false
      end
      hold[g.mode] = hold[g.mode] - 1
      hold.list = sub(hold.list, 1, g.at - 1) .. put .. sub(hold.list, g.past)
      if g.deadline == hold.due then
        hold.due = nil -- settle_owner looks for the earliest again
      end
    end

    -- A hold has changed, but not in what it counts as.
    function M.touch(owner)
      dirty[owner] = true
    end

    -- Puts an owner where its strongest mode belongs. Tells whether a write phase ended.
    -- `partly`: a part of a change; whether the owner may stay in line is seen when it is whole.
    function M.settle_owner(owner, partly)
      local hold = holds[owner]
      local was_writing = M.top_owner == owner and M.top_mode == 'w'
      local was_upgradable = M.top_owner == owner and M.top_mode == 'u'
      if not hold.due then
        hold.due = huge
        for deadline in gmatch(hold.list, '|[^,]+,[^,]+,(%d+)') do
          hold.due = min(hold.due, tonumber(deadline))
        end
      end
      if M.top_owner == owner then
        M.top_owner, M.top_mode, M.top_due = nil, nil, nil
      end
      local mode = M.strongest(hold)
      if mode == 'r' then
        if not hold.reads then
          M.readers = M.readers + 1
        end
        if not hold.reads or hold.score ~= hold.due then
          reads[owner] = hold.due
          M.due = min(M.due or huge, hold.due)
        end
      else
        if hold.reads then
          M.readers = M.readers - 1
          reads[owner] = false
        end
        if mode then
          M.top_owner, M.top_mode, M.top_due = owner, mode, hold.due
        end
      end
      if M.readers <= 0 and M.due then
        M.readers, M.due = 0, FAR
      end
      hold.reads, hold.score, dirty[owner] = mode == 'r', hold.due, true
      if was_upgradable ~= (mode == 'u') then
        M.settle_writes(owner, mode == 'u' and -1 or 0)
      end
      if (was_writing or was_upgradable) and not partly then
        M.leave_for_more(owner)
      end
      return was_writing and not (M.top_owner == owner and M.top_mode == 'w')
    end

    -- The write requests of an owner wait at the head exactly while it holds upgradable.
    function M.settle_writes(owner, band)
      for _, request in ipairs(M.waiting_of(owner)) do
        local w = waiters[request]
        if w and w.mode == 'w' and w.band ~= band then
          w.band, changed[request], moved = band, true, true
          queue[request .. ',' .. owner] = band * M.BAND + w.ticket
        end
      end
    end

    -- An owner that has come to only read does not stay in line for more: it would wait for itself, or two would for each other. It asks
    -- again, and is refused if it can't be let in at once.
    function M.leave_for_more(owner)
      if M.strongest(holds[owner]) ~= 'r' then
        return
      end
      for _, request in ipairs(M.waiting_of(owner)) do
        if waiters[request] and waiters[request].mode ~= 'r' then
          M.leave(request)
        end
      end
    end

    function M.word_of(mode)
      return mode == 'r' and 'read' or mode == 'u' and 'upgradable' or 'write'
    end

    function M.drop_granted(owner, g)
      M.replace(M.hold_of(owner), g)
      return M.settle_owner(owner)
    end

    function M.label_of(g)
      return g.label ~= '' and (labels[g.request] or call('HGET', HASH, '#' .. g.request)) or nil
    end

    -- An upgrade that its caller no longer waits for becomes the upgradable request again that it was.
    function M.undo_upgrade(owner, g, from)
      M.unmark(from)
      local label = M.label_of(g)
      if label then
        labels[g.request], labels[from] = false, label
      end
      M.replace(M.hold_of(owner), g, g.mode ~= 'w' and g.letter or g.revoked and 'U' or 'u', g.deadline, from)
      return M.settle_owner(owner)
    end

    -- Does nobody but this owner hold?
    function M.alone(owner)
      return (not M.top_owner or M.top_owner == owner) and M.readers == (M.hold_of(owner).reads and 1 or 0)
    end

    -- May this request still be replaced by an upgrade? What is being taken away may not: the upgrade would make it whole.
    function M.upgradable_from(owner, from)
      local g = M.granted(owner, from)
      return g and not g.revoked
    end

    -- May this owner hold in this mode at once? `ticket`: the place that its request comes back to; 0 for none.
    function M.admits(owner, mode, ticket)
      local held = M.strongest(M.hold_of(owner))
      if held and byte(mode) <= byte(held) then
        return true
      elseif mode == 'r' then
        return M.top_mode ~= 'w' and not M.live_writer() and not M.waits_for_more(owner)
      elseif mode == 'w' then
        return M.alone(owner)
      elseif M.top_owner or held then
        return not M.top_owner
      end
      -- Does this waiter stand behind that place?
      local function is_behind(w)
        return w.band ~= -1 and ticket > 0 and ticket < w.ticket
      end
      local writer = M.live_writer()
      if writer and not is_behind(writer) then
        return false
      end
      local upgradable = M.live_head(1)
      return not upgradable or is_behind(upgradable)
    end

    -- What a granted request has: fence, deadline_ms, depth.
    function M.grant_of(owner, g)
      return M.fence, g.deadline, M.hold_of(owner)[g.mode]
    end

    -- Marks ------------------------------------------------------------------------------------------------------

    function M.mark(request, ending)
      local till = now + MARK
      marked[request] = till + ending / 4
      M.marks = max(M.marks, till)
      M.reach = max(M.reach, till)
    end

    function M.unmark(request)
      marked[request] = false
    end

    -- How a request has ended, where that is known.
    function M.mark_of(request)
      local score = marked[request]
      if score == nil and M.marks > now then
        typed[MARKS] = true
        score = tonumber(call('ZSCORE', MARKS, request))
      end
      if score and floor(score) > now then
        local kind = (score - floor(score)) * 4
        return kind == 0 and 'lapsed' or kind == 1 and 'revoked' or kind == 2 and 'withdrawn' or 'replaced'
      end
    end

    -- Why this server knows of no such grant.
    function M.ending(request, fence)
      return M.mark_of(request) or (M.fence < fence and 'forgotten' or 'unknown')
    end

    -- Writing ----------------------------------------------------------------------------------------------------

    function M.write(...)
      if written or not gives then
        written = true
        return call(...)
      end
      written = true
      local reply = pcall(...)
      if type(reply) == 'table' and reply.err then
        -- Out of memory is asked about only until a script has written: so write nothing, then again.
        call('HDEL', HASH, '')
        return call(...)
      end
      return reply
    end

    function M.wide(command, key, args)
      local sum = 0
      for at = 1, #args, CHUNK do
        sum = sum + M.write(command, key, unpack(args, at, min(at + CHUNK - 1, #args)))
      end
      return sum
    end

    -- The first write may find a wrong type by itself; before that of a later one it must be known.
    function M.sound(key, command, later)
      if later and not typed[key] then
        call(command, key)
      end
      typed[key] = true
    end

    -- A number in HASH; 0 is none.
    function M.put(field, number, into, from)
      if number ~= was[field] then
        was[field] = number
        if number > 0 then
          into[#into + 1] = field
          into[#into + 1] = text(number)
        else
          from[#from + 1] = field
        end
      end
    end

    -- Writes what has been decided since the last time. In each key what comes goes in before what leaves: a key that was never
    -- empty keeps its TTL.
    function M.flush()
      local any_marked, any_reads = next(marked) ~= nil, next(reads) ~= nil
      local any_queue, any_changed = next(queue) ~= nil, next(changed) ~= nil
      if any_marked then
        M.sound(MARKS, 'ZCARD', false)
      end
      if any_reads then
        M.sound(READERS, 'ZCARD', any_marked)
      end
      if any_queue then
        M.sound(QUEUE, 'ZCARD', any_marked or any_reads)
      end
      if any_changed then
        M.sound(WAITERS, 'HLEN', any_marked or any_reads or any_queue)
      end

      local pushed = M.reach > M.warm
      if pushed then
        M.warm = M.reach + floor(RETENTION / 2)
      end
      -- Also when it is there: somebody may have deleted it.
      local keeps_readers = M.due and (pushed or was.due == 0)

      if any_marked then
        local into, from = {}, {}
        for request, score in pairs(marked) do
          if score then
            into[#into + 1] = format('%.2f', score)
            into[#into + 1] = request
          else
            from[#from + 1] = request
          end
        end
        M.write('ZREMRANGEBYSCORE', MARKS, '-inf', '(' .. text(now + 1))
        M.wide('ZADD', MARKS, into)
        M.wide('ZREM', MARKS, from)
        marked = {}
      end

      if any_reads or keeps_readers then
        local into, from = {}, {}
        if keeps_readers then
          into = { '+inf', '' }
        end
        for owner, score in pairs(reads) do
          if score then
            into[#into + 1] = text(score)
            into[#into + 1] = owner
          else
            from[#from + 1] = owner
          end
        end
        M.wide('ZADD', READERS, into)
        M.wide('ZREM', READERS, from)
        reads = {}
      end

      if any_queue then
        local into, from = {}, {}
        for member, score in pairs(queue) do
          if score then
            into[#into + 1] = text(score)
            into[#into + 1] = member
          else
            from[#from + 1] = member
          end
        end
        M.wide('ZADD', QUEUE, into)
        M.waiting = max(0, was.waiting - M.wide('ZREM', QUEUE, from))
        if #into > 0 then
          M.waiting = call('ZCARD', QUEUE)
        end
        queue, line, moved = {}, nil, false
      end

      if any_changed then
        local into, from = {}, {}
        for field in pairs(changed) do
          local value
          if byte(field) == 64 then
            value = asked[sub(field, 2)]
            value = value ~= '' and value
          else
            local w = waiters[field]
            value = w
              and format('%s,%d,%.0f,%.0f,%.0f,%s,', w.owner, w.band, w.ticket, w.lease, w.till, w.upgrade_of) .. w.label
          end
          if value then
            into[#into + 1] = field
            into[#into + 1] = value
          else
            from[#from + 1] = field
          end
        end
        M.wide('HSET', WAITERS, into)
        M.wide('HDEL', WAITERS, from)
        changed = {}
      end

      local into, from = {}, {}
      for owner in pairs(dirty) do
        local hold = holds[owner]
        if owner ~= M.top_owner and hold.list ~= '' and not M.is_lone(owner, hold) then
          into[#into + 1] = '@' .. owner
          into[#into + 1] = hold.list
          hold.recorded = true
        elseif hold.recorded then
          from[#from + 1] = '@' .. owner
          hold.recorded = nil
        end
      end
      dirty = {}
      if next(labels) ~= nil then
        for request, label in pairs(labels) do
          if label then
            into[#into + 1] = '#' .. request
            into[#into + 1] = label
          else
            from[#from + 1] = '#' .. request
          end
        end
        labels = {}
      end
      local top = M.top_owner and format('%s,%.0f,', M.top_mode, M.top_due) .. M.top_owner .. holds[M.top_owner].list
      if top ~= was.top then
        if top then
          into[#into + 1] = 'top'
          into[#into + 1] = top
        else
          from[#from + 1] = 'top'
        end
        was.top = top
      end
      local none_waiting = was.waiting == 0
      M.put('fence', M.fence, into, from)
      M.put('due', M.due or 0, into, from)
      M.put('waiting', M.waiting, into, from)
      M.put('ticket', M.ticket, into, from)
      M.put('marks', M.marks, into, from)
      M.put('warm', M.warm, into, from)
      M.wide('HSET', HASH, into)
      M.wide('HDEL', HASH, from)

      if pushed then
        call('PEXPIREAT', HASH, text(M.warm + RETENTION))
      end
      local till = M.warm + RETENTION - 1
      if any_marked or (pushed and M.marks > now) then
        call('PEXPIREAT', MARKS, text(till))
      end
      if keeps_readers then
        call('PEXPIREAT', READERS, text(till))
      end
      if M.waiting > 0 and (pushed or (none_waiting and any_queue)) then
        call('PEXPIREAT', QUEUE, text(till))
        call('PEXPIREAT', WAITERS, text(till))
      end
    end

    -- Time -------------------------------------------------------------------------------------------------------

    function M.lapse_owner(owner)
      local hold, kept = M.hold_of(owner), {}
      for all, request, letter, label, deadline in gmatch(hold.list, '(|([^,]+),(%a)(%+?),(%d+),%d+)') do
        if tonumber(deadline) <= now then
          local mode = string.lower(letter)
          -- One that was being taken away was taken away, even if its holder never answered.
          M.mark(request, letter == mode and 0 or 1)
          hold[mode] = hold[mode] - 1
          if label ~= '' then
            labels[request] = false
          end
        else
          kept[#kept + 1] = all
        end
      end
      hold.list, hold.due = table.concat(kept), nil
      return M.settle_owner(owner)
    end

    -- Drops every granted request whose lease has run out. Tells whether a write phase ended by it.
    function M.lapse()
      local late = M.due and M.due <= now
      local write_ended = false
      if M.top_owner and M.top_due <= now then
        write_ended = M.lapse_owner(M.top_owner)
      end
      if late then
        local gone = call('ZRANGEBYSCORE', READERS, '-inf', text(now))
        M.load_holds(gone)
        for _, owner in ipairs(gone) do
          if holds[owner].reads then
            M.lapse_owner(owner)
          else
            reads[owner], M.readers = false, M.readers - 1 -- somebody deleted a key or a field
          end
        end
        local next_due = call('ZRANGEBYSCORE', READERS, '(' .. text(now), '(inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
        M.due = tonumber(next_due) or FAR
        for _, score in pairs(reads) do
          M.due = min(M.due, score or FAR)
        end
        if M.readers <= 0 then
          M.readers, M.due = 0, FAR
        end
      end
      return write_ended
    end

    -- The line ---------------------------------------------------------------------------------------------------

    function M.parse_waiter(request, record)
      if not record then
        waiters[request] = false
        return
      end
      local owner, band, ticket, lease, till, upgrade_of, label = match(record, '^([^,]+),(%-?%d),(%d+),(%d+),(%d+),([^,]*),(.*)$')
      band = tonumber(band)
      waiters[request] = {
        request = request, owner = owner, band = band, mode = band == 2 and 'r' or band == 1 and 'u' or 'w',
        ticket = tonumber(ticket), lease = tonumber(lease), till = tonumber(till), upgrade_of = upgrade_of, label = label,
      }
    end

    -- Reads what these requests asked for, and what else these owners wait for.
    function M.load_waiters(requests, of)
      local fields, missing, lists = {}, {}, {}
      for _, request in ipairs(requests) do
        if waiters[request] == nil then
          missing[#missing + 1], fields[#fields + 1] = request, request
        end
      end
      for _, owner in ipairs(of) do
        if not asked[owner] then
          lists[#lists + 1], fields[#fields + 1] = owner, '@' .. owner
        end
      end
      if #fields > 0 then
        local found = M.hmget(WAITERS, fields)
        for i, request in ipairs(missing) do
          M.parse_waiter(request, found[i])
        end
        for i, owner in ipairs(lists) do
          asked[owner] = found[#missing + i] or ''
        end
      end
    end

    function M.waiter_of(request)
      if waiters[request] == nil then
        M.load_waiters({ request }, {})
      end
      return waiters[request]
    end

    -- Reads who is first of all, and thereby which bands are empty.
    function M.look()
      if line then
        return line
      end
      typed[QUEUE] = true
      local first = call('ZRANGE', QUEUE, 0, 0, 'WITHSCORES')
      line = { first = first[1], score = tonumber(first[2]) }
      local first_band = first[1] and floor(line.score / M.BAND) or huge
      local all = M.waiting == 1 and next(queue) == nil
      for band = -1, 2 do
        line[band] = { at = 1, whole = all or band < first_band }
      end
      if first[1] then
        line[first_band][1] = first[1]
      else
        M.waiting = 0 -- somebody deleted a key
      end
      return line
    end

    -- Reads on in a band; all of it with -1.
    function M.read_on(band, count)
      local members = line[band]
      local more = call('ZRANGEBYSCORE', QUEUE, text(band * M.BAND), '(' .. text((band + 1) * M.BAND), 'LIMIT', #members, count)
      for _, member in ipairs(more) do
        members[#members + 1] = member
      end
      members.whole = count < 0 or #more < count
    end

    -- The requests of an owner that wait, in the order they asked; reads what they asked for.
    function M.waiting_of(owner)
      local requests = {}
      if M.waiting > 0 then
        M.load_waiters({}, { owner })
        for request in gmatch(asked[owner], '[^ ]+') do
          requests[#requests + 1] = request
        end
        M.load_waiters(requests, {})
      end
      return requests
    end

    function M.of_member(member)
      return match(member, '^([^,]+),(.*)$')
    end

    -- The first in a band.
    function M.peek(band)
      if moved then
        M.flush()
      end
      local members = M.look()[band]
      while true do
        local member = members[members.at]
        if member then
          if queue[member] == nil then
            return member
          end
          members.at = members.at + 1
        elseif members.whole then
          return nil
        else
          M.read_on(band, #members == 0 and 1 or 100)
        end
      end
    end

    -- Takes a request out of the line.
    function M.leave(request)
      local w = M.waiter_of(request)
      if not w then
        return nil
      end
      M.load_waiters({}, { w.owner })
      waiters[request], changed[request] = false, true
      queue[request .. ',' .. w.owner] = false
      M.waiting = M.waiting - 1
      local list = ' ' .. asked[w.owner] .. ' '
      local at, past = find(list, ' ' .. request .. ' ', 1, true)
      if at then
        list = sub(list, 1, at) .. sub(list, past + 1)
        asked[w.owner], changed['@' .. w.owner] = match(list, '^ *(.-) *$'), true
      end
      return w
    end

    function M.is_live(w)
      return w.till > now and (w.upgrade_of == '' or M.upgradable_from(w.owner, w.upgrade_of))
    end

    -- Does this owner also wait for more than to read? Its reads then enter with that, not before: two owners that each read already
    -- and wait to write would wait for each other. Drops the dead ones it meets: they must not come back to life behind such a read.
    function M.waits_for_more(owner)
      for _, request in ipairs(M.waiting_of(owner)) do
        local w = waiters[request]
        if w and w.mode ~= 'r' then
          if M.is_live(w) then
            return true
          end
          M.leave(request)
        end
      end
      return false
    end

    -- The first in a band that is alive. Drops the dead ones it meets.
    function M.live_head(band)
      if M.waiting <= 0 then
        return nil
      end
      while true do
        local member = M.peek(band)
        if not member then
          return nil
        end
        local request, owner = M.of_member(member)
        M.load_waiters({ request }, { owner })
        local w = waiters[request]
        if w and w.owner == owner then
          if M.is_live(w) then
            return w
          end
          M.leave(request)
        else
          queue[member], M.waiting = false, M.waiting - 1 -- somebody deleted a key
        end
      end
    end

    -- The first write request in line, whichever band it is in.
    function M.live_writer()
      return M.live_head(-1) or M.live_head(0)
    end

    -- When the first in line should look again: when the earliest lease in its way lapses.
    function M.wake_ms(member, score)
      if next(queue) then
        M.flush()
      end
      local first = M.waiting > 0 and M.look() or {}
      local ahead = first.first and first.first ~= member
      if ahead and not (score and (score < first.score or (score == first.score and member < first.first))) then
        return 0
      end
      local due = M.top_due or huge
      if M.readers > 0 then
        if next(reads) then
          M.flush()
        end
        due = min(due, tonumber(call('ZRANGEBYSCORE', READERS, '-inf', '(inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]) or huge)
      end
      return due < huge and due or 0
    end

    function M.enqueue(request, owner, band, lease, ticket, upgrade_of, label)
      waiters[request] = {
        request = request, owner = owner, band = band, ticket = ticket, lease = lease, till = now + CLAIM, upgrade_of = upgrade_of,
        label = label,
      }
      M.load_waiters({}, { owner })
      asked[owner] = asked[owner] == '' and request or asked[owner] .. ' ' .. request
      changed[request], changed['@' .. owner] = true, true
      queue[request .. ',' .. owner] = band * M.BAND + ticket
      M.ticket, M.waiting = max(M.ticket, ticket), M.waiting + 1
      M.reach = max(M.reach, now + CLAIM)
    end

    function M.refresh(w)
      w.till, changed[w.request] = now + CLAIM, true
      M.reach = max(M.reach, w.till)
    end

    -- Granting ---------------------------------------------------------------------------------------------------

    -- Makes a request of `w` (request, owner, mode, upgrade_of, label) a granted one. Returns what takes it back.
    -- `since`: unless it holds from now on.
    function M.enter(w, lease, since)
      local hold = M.hold_of(w.owner)
      local before, deadline = M.strongest(hold), now + lease
      local undo = { request = w.request, owner = w.owner }
      local from = w.upgrade_of ~= '' and M.granted(w.owner, w.upgrade_of)
      if from then
        deadline = max(deadline, from.deadline)
        undo.from = from
        undo.label = M.label_of(from)
        M.replace(hold, from)
        M.mark(from.request, 3)
      end
      if M.fence == 0 or (w.mode == 'w' and before ~= 'w') then
        M.fence = max(M.fence + 1, now_us)
      end
      local has_label = w.label ~= ''
      hold.list = hold.list
        .. format('|%s,%s%s,%.0f,%.0f', w.request, w.mode, has_label and '+' or '', deadline, deadline - (since or now))
      hold[w.mode] = hold[w.mode] + 1
      hold.due = hold.due and min(hold.due, deadline)
      if has_label then
        labels[w.request] = w.label
      end
      M.reach = max(M.reach, deadline)
      M.settle_owner(w.owner)
      return undo
    end

    -- Makes a waiter a holder, for a claim.
    function M.grant(w)
      return M.enter(w, min(w.lease, CLAIM))
    end

    -- The other requests of an owner that now holds: those that may re-enter do.
    function M.siblings(owner, batch)
      for _, request in ipairs(M.waiting_of(owner)) do
        local held, w = M.strongest(M.hold_of(owner)), waiters[request]
        if w and held and byte(w.mode) <= byte(held) then
          M.leave(request)
          if M.is_live(w) then
            batch[#batch + 1] = M.grant(w)
          end
        end
      end
    end

    -- Grants a waiting request, and every other request of its owner that may now re-enter.
    function M.grant_waiter(request, batch)
      local w = M.leave(request)
      if w and w.till > now then
        batch[#batch + 1] = M.grant(w)
        M.siblings(w.owner, batch)
      end
    end

    function M.grant_readers(batch)
      local members = M.look()[2]
      if not members.whole then
        M.read_on(2, -1)
      end
      local requests, of = {}, {}
      for _, member in ipairs(members) do
        if queue[member] == nil then
          requests[#requests + 1], of[#of + 1] = M.of_member(member)
        end
      end
      M.load_waiters(requests, of)
      M.load_holds(of)
      for i, request in ipairs(requests) do
        if waiters[request] then
          -- It may have entered as a sibling of one before it. An owner that waits for one request alone waits for no more than this.
          if not (find(asked[of[i]], ' ', 1, true) and M.waits_for_more(of[i])) then
            M.grant_waiter(request, batch)
          end
        elseif queue[request .. ',' .. of[i]] == nil then
          queue[request .. ',' .. of[i]], M.waiting = false, M.waiting - 1 -- somebody deleted a key
        end
      end
    end

    -- Tells whether it was heard, as far as one can know.
    function M.tell(client, words)
      -- A channel with a hash tag is one of its slot: who listens is at this node, so no other one hears of it.
      local verb = find(CHANNEL, '{', 1, true) and 'SPUBLISH' or 'PUBLISH'
      local heard = pcall(verb, CHANNEL .. client, table.concat(words, ' '))
      -- A server that forbids it: what was written stands, and is found by a poll or a renewal.
      -- A client whose id begins with `_` gets no pushes: it polls.
      return type(heard) == 'table' or heard > 0 or not TRUST or string.byte(client) == 95
    end

    -- Tells the clients of a batch, each at once of all it got; takes back what was not heard. Tells whether anything was.
    function M.deliver(batch)
      M.flush()
      local clients, of = {}, {}
      for _, undo in ipairs(batch) do
        local client = match(undo.request, '^[^.]*')
        if not of[client] then
          clients[#clients + 1], of[client] = client, {}
        end
        of[client][#of[client] + 1] = undo
      end
      local unheard, undone = false, {}
      for _, client in ipairs(clients) do
        local words = { 'granted ' .. text(now_us) }
        for _, undo in ipairs(of[client]) do
          local g = M.granted(undo.owner, undo.request)
          if g then
            local fence, deadline, depth = M.grant_of(undo.owner, g)
            words[#words + 1] = undo.request .. ',' .. text(fence) .. ',' .. text(deadline) .. ',' .. depth
          end
        end
        if not M.tell(client, words) then
          unheard = true
          for _, undo in ipairs(of[client]) do
            local hold, g, from = M.hold_of(undo.owner), M.granted(undo.owner, undo.request), undo.from
            if g then
              M.replace(hold, g)
            end
            if from then
              M.unmark(from.request)
              hold.list = hold.list
                .. format('|%s,%s%s,%.0f,%.0f', from.request, from.letter, from.label, from.deadline, from.deadline - from.since)
              hold[from.mode] = hold[from.mode] + 1
              hold.due = nil
              if undo.label then
                labels[from.request] = undo.label
              end
            end
            M.settle_owner(undo.owner, true)
            undone[#undone + 1] = undo.owner
          end
        end
      end
      for _, owner in ipairs(undone) do
        M.leave_for_more(owner)
      end
      return unheard
    end

    -- Lets in whoever may enter now, and tells their clients. What a client did not hear it does not get: it leaves the line, and
    -- the next is looked at.
    function M.advance(write_ended)
      local readers_first = write_ended
      while M.waiting > 0 and M.top_mode ~= 'w' do
        local batch = {}
        local writer = M.live_writer()
        if readers_first then
          M.grant_readers(batch)
        end
        -- Neither of the two passes the other; an upgrade passes both.
        local upgradable = M.live_head(1)
        if upgradable and writer and (writer.band ~= 0 or writer.ticket <= upgradable.ticket) then
          upgradable = nil
        end
        if writer and #batch == 0 and not upgradable and M.alone(writer.owner) then
          M.grant_waiter(writer.request, batch)
        else
          if upgradable and not M.top_owner then
            M.grant_waiter(upgradable.request, batch)
          end
          if not writer and M.waiting > 0 then
            M.grant_readers(batch)
          end
        end
        if #batch == 0 then
          return
        end
        -- An owner that entered and waits for more may be able to get it.
        local wants_more = false
        for _, undo in ipairs(batch) do
          wants_more = wants_more or asked[undo.owner] ~= ''
        end
        if not M.deliver(batch) and not wants_more then
          return
        end
        -- Somebody was deaf. The readers that waited have had their turn.
        readers_first = false
      end
    end

    -- What operators see -----------------------------------------------------------------------------------------

    -- fence, holders, waiters, and a row for each granted request of the first owners: request, owner, mode, since_ms, deadline_ms,
    -- revoked, label.
    function M.snapshot(limit)
      M.flush()
      local of, rows, labelled = {}, {}, {}
      if M.top_owner and limit > 0 then
        of[1] = M.top_owner
      end
      if M.readers > 0 and limit > #of then
        for _, owner in ipairs(call('ZRANGEBYSCORE', READERS, '-inf', '(inf', 'LIMIT', 0, limit - #of)) do
          of[#of + 1] = owner
        end
      end
      M.load_holds(of)
      local fields = {}
      for _, owner in ipairs(of) do
        for request, letter, label, deadline, lasts in gmatch(holds[owner].list, '|([^,]+),(%a)(%+?),(%d+),(%d+)') do
          local mode = string.lower(letter)
          rows[#rows + 1] = { request, owner, M.word_of(mode), deadline - lasts, tonumber(deadline), letter == mode and 0 or 1, '' }
          if label ~= '' then
            labelled[#labelled + 1], fields[#fields + 1] = rows[#rows], '#' .. request
          end
        end
      end
      if #fields > 0 then
        for i, label in ipairs(M.hmget(HASH, fields)) do
          labelled[i][7] = label or ''
        end
      end
      return M.fence, M.readers + (M.top_owner and 1 or 0), M.waiting, rows
    end
  end
  make()

  if stored[2] then
    local mode, due, owner, list = match(stored[2], '^(%l),(%d+),([^|]+)(.*)$')
    M.top_mode, M.top_owner, M.top_due = mode, owner, tonumber(due)
    M.keep_hold(owner, list)
  end
  M.keep_holds(owners, stored, 7)

  return M
end


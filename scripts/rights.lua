-- rights: which of the commands that relatch sends, or calls in its scripts, may this user not run?
--
-- Asked once for each link, without the prelude. Nothing comes of what is tried: the key is a string, so commands for other types end
-- with WRONGTYPE, after the right to them has been checked; it is gone at the end. A test compares the list with the scripts.
--
-- KEYS
--   1 STRING   a key that nobody else uses; none in a cluster, where each node is asked for itself, whichever slots it has
-- ARGV
--   1 channel  one that nobody listens to
--   2 key      in a cluster, such a key. A node that does not have it says so after it has looked at the rights, and nothing is written
-- Replies
--   for each command that is forbidden, its name, and `command`, `key` or `channel` for what is missing
--   READONLY, as an error, from a replica; in a cluster the rights there too, as it may be the master soon
-- Wakes
--   nobody.
local KEY, CHANNEL = KEYS[1] or ARGV[2], ARGV[1]
local missing = {}

local function try(command, ...)
  local reply = redis.pcall(command, ...)
  local err = type(reply) == 'table' and reply.err or ''
  if string.find(err, 'READONLY', 1, true) then
    return reply
  end
  -- To a script it is said without the code: up to Redis 7.0 in the one way, from 7.2 on, and by Valkey, in the other.
  local denied = string.find(err, 'NOPERM', 1, true) or string.find(err, 'user executing the script', 1, true)
      or string.find(err, 'ACL failure', 1, true)
  if denied then
    -- The user's name may be in it, and be anything, but for spaces.
    local what = string.find(err, ' run th', 1, true) and 'command' or string.find(err, ' key', 1, true) and 'key' or 'channel'
    missing[#missing + 1], missing[#missing + 2] = command, what
  end
end

local readonly = try('SET', KEY, '', 'PX', 1000)
if readonly and KEYS[1] then
  return readonly
end
-- Without the string these two would make something.
if #missing == 0 then
  try('HSET', KEY, 'f', 'v')
  try('ZADD', KEY, 1, 'm')
end
try('TIME')
try('GET', KEY)
try('HDEL', KEY, 'f')
try('HGET', KEY, 'f')
try('HLEN', KEY)
try('HMGET', KEY, 'f')
try('ZCARD', KEY)
try('ZCOUNT', KEY, 0, 0)
try('ZMSCORE', KEY, 'm')
try('ZRANGE', KEY, 0, 0)
try('ZRANGEBYSCORE', KEY, 0, 0)
try('ZRANK', KEY, 'm')
try('ZREM', KEY, 'm')
try('ZREMRANGEBYSCORE', KEY, 0, 0)
try('ZSCORE', KEY, 'm')
if string.find(CHANNEL, '{', 1, true) then
  try('SPUBLISH', CHANNEL, '')
else
  try('PUBLISH', CHANNEL, '')
end
try('PEXPIREAT', KEY, 1)
try('DEL', KEY)
return missing

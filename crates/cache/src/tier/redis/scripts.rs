//! The scripts: the steps of the [protocol](crate::core) as Redis carries them out.
//!
//! Versions are 30 decimal digits, which compare as text: Lua's numbers end at 2^53. Without `no-writes` among
//! their flags, Redis runs none of them on a replica.

use bytes::Bytes;
use redis::{Script, ScriptInvocation};

use super::damaged;
use crate::core::{Cached, Looked, Mark, TagMarks};
use crate::{Need, Result, Version};

/// Times above would not be whole numbers in Lua.
const TIME_MAX: u64 = 1 << 52;

/// ARGV: generation, fresh mark, milliseconds for a fill. A record that lacks what each has counts as absent.
const LOOK: &str = r"#!lua flags=allow-oom
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000000 + t[2])
local r = redis.pcall('HMGET', KEYS[1], 'g', 'm', 'f', 'p', 'v', 's', 'a', 'e', 'd', 't')
if r.err or r[1] ~= ARGV[1] or not tonumber(r[2] or '') or #(r[3] or '') ~= 30 then
  local zero = string.rep('0', 30)
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'g', ARGV[1], 'm', ARGV[2], 'f', zero)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {now, ARGV[2], zero}
end
if not r[4] or (tonumber(r[8] or '') or 0) <= tonumber(now) then
  if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  end
end
if not r[4] then
  return {now, r[2], r[3]}
end
return {now, r[2], r[3], r[4], r[5] or '', r[6] or '', r[7] or '', r[8] or '', r[9] or '', r[10] or ''}";

/// ARGV: generation, mark, milliseconds kept after expiry; then what `give` gives.
const PUT: &str = r"#!lua
local r = redis.pcall('HMGET', KEYS[1], 'g', 'm', 'f', 'p', 's')
if r.err or r[1] ~= ARGV[1] or r[2] ~= ARGV[2] or ARGV[6] < (r[3] or '') then
  return 'overtaken'
end
if r[4] and (r[5] or '') > ARGV[6] then
  return 'older'
end
local t = redis.call('TIME')
local left = (tonumber(ARGV[8]) - (t[1] * 1000000 + t[2])) / 1000
local keep = math.max(left, 0) + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'p', ARGV[4], 'v', ARGV[5], 's', ARGV[6], 'a', ARGV[7], 'e', ARGV[8], 'd', ARGV[9],
  't', ARGV[10])
redis.call('HDEL', KEYS[1], 'l', 'o')
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep))
return 'stored'";

/// ARGV: generation, mark, a number of its own, milliseconds. Answers 0, or how many microseconds another one has left. A
/// lease is of a mark: an invalidation without a version ends it.
const LEASE: &str = r"#!lua flags=allow-oom
local r = redis.pcall('HMGET', KEYS[1], 'g', 'm', 'l', 'o')
if r.err or r[1] ~= ARGV[1] or r[2] ~= ARGV[2] then
  return 0
end
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local owner = ARGV[2] .. ':' .. ARGV[3]
local left = (tonumber(r[3] or '') or 0) - now
if left > 0 and r[4] ~= owner and string.find(r[4] or '', ARGV[2] .. ':', 1, true) == 1 then
  return left
end
local ends = string.format('%.0f', now + tonumber(ARGV[4]) * 1000)
redis.call('HSET', KEYS[1], 'l', ends, 'o', owner)
return 0";

/// ARGV: mark, the number of a lease. Ends it.
const RELEASE: &str = r"#!lua flags=allow-oom
local r = redis.pcall('HGET', KEYS[1], 'o')
if type(r) == 'string' and r == ARGV[1] .. ':' .. ARGV[2] then
  redis.call('HDEL', KEYS[1], 'l', 'o')
end";

/// KEYS: record, stream. ARGV: generation, fresh mark, milliseconds for a floor, version or nothing, how many messages
/// are kept, the key.
const INVALIDATE: &str = r"#!lua flags=allow-oom
local function note()
  local r = redis.pcall('HMGET', KEYS[1], 'g', 'f', 'p', 's')
  local floor = ARGV[4]
  if r.err or r[1] ~= ARGV[1] then
    if floor == '' then
      floor = string.rep('0', 30)
    end
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'g', ARGV[1], 'm', ARGV[2], 'f', floor)
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return
  end
  if floor == '' then
    redis.call('HSET', KEYS[1], 'm', ARGV[2])
  elseif floor > (r[2] or '') then
    redis.call('HSET', KEYS[1], 'f', floor)
  end
  if floor == '' or (r[3] and (r[4] or '') < floor) then
    redis.call('HDEL', KEYS[1], 'p', 'v', 's', 'a', 'e', 'd', 't')
  end
  if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  end
end
note()
if ARGV[5] ~= '0' then
  local last = redis.pcall('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
  local epoch = not last.err and last[1] and string.match(last[1][1], '^%d+')
  if not epoch then
    redis.call('DEL', KEYS[2])
    epoch = ARGV[2]
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], epoch .. '-*', 'k', ARGV[6], 'f', ARGV[4])
end";

/// KEYS: stream. ARGV: fresh mark, how many messages are kept, and `all`, if that is to be told. Answers the last
/// message's id; makes the stream if there is none.
const TELL: &str = r"#!lua flags=allow-oom
local last = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local id = not last.err and last[1] and last[1][1]
if id and ARGV[3] ~= 'all' then
  return id
end
local epoch = id and string.match(id, '^%d+')
if not epoch then
  redis.call('DEL', KEYS[1])
  epoch = ARGV[1]
end
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], epoch .. '-*', ARGV[3], '')";

/// All of them.
pub(super) struct Scripts {
    pub look: Script,
    pub put: Script,
    pub invalidate: Script,
    pub tell: Script,
    pub lease: Script,
    pub release: Script,
}

impl Scripts {
    pub fn new() -> Self {
        Self::changed(|text| text.to_owned())
    }

    /// The same, changed: with a guard less, for tests.
    pub fn changed(change: impl Fn(&str) -> String) -> Self {
        Scripts {
            look: Script::new(&change(LOOK)),
            put: Script::new(&change(PUT)),
            invalidate: Script::new(&change(INVALIDATE)),
            tell: Script::new(&change(TELL)),
            lease: Script::new(&change(LEASE)),
            release: Script::new(&change(RELEASE)),
        }
    }
}

/// A version as it is stored.
pub(super) fn text(version: Version) -> String {
    format!("{:010}{:020}", version.epoch, version.n)
}

pub(super) fn version(text: &[u8]) -> Option<Version> {
    let text = std::str::from_utf8(text).ok().filter(|t| t.len() == 30)?;
    Some(Version {
        epoch: text.get(..10)?.parse().ok()?,
        n: text.get(10..)?.parse().ok()?,
    })
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Gives a value to `PUT`.
pub(super) fn give(script: &mut ScriptInvocation<'_>, cached: &Cached<Bytes>) {
    let as_of = cached
        .as_of
        .map_or(String::new(), |as_of| as_of.to_string());
    script.arg(if cached.value.is_some() { 1 } else { 2 });
    script.arg(text(cached.version)).arg(text(cached.seen));
    script.arg(as_of).arg(cached.expires.min(TIME_MAX));
    script.arg(cached.value.as_deref().unwrap_or_default());
    script.arg(cached.tags.map_or(String::new(), |tags| tags.0.to_string()));
}

/// Reads what `LOOK` answers. A value that can't be read is none.
pub(super) fn looked(found: &[Bytes]) -> Result<Looked<Bytes>> {
    let part = |at: usize| found.get(at).map(|part| part.as_ref());
    let time = part(0).and_then(number).ok_or_else(|| damaged("time"))?;
    let mark = part(1).and_then(number).ok_or_else(|| damaged("mark"))?;
    let floor = part(2).and_then(version).ok_or_else(|| damaged("floor"))?;
    Ok(Looked {
        mark: Mark(mark),
        need: Need {
            at_least: floor,
            // A floor before this one may have been lost.
            latest: true,
        },
        at: time,
        cached: cached(found),
        tags: None,
    })
}

fn cached(found: &[Bytes]) -> Option<Cached<Bytes>> {
    let is_there = match found.get(3)?.as_ref() {
        b"1" => true,
        b"2" => false,
        _ => return None,
    };
    Some(Cached {
        value: is_there.then(|| found.get(8).cloned()).flatten(),
        version: version(found.get(4)?)?,
        seen: version(found.get(5)?)?,
        as_of: number(found.get(6)?),
        expires: number(found.get(7)?)?,
        tags: number(found.get(9)?).map(TagMarks),
    })
}

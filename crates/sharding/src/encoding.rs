//! Encodings: how a user's key becomes the key that shards are ranges of.
//!
//! *Ordered* keeps the key: scans in order work, hot neighbours share a shard. *Hashed* puts two
//! bytes of a hash of the *routing prefix* in front: load spreads by itself, and keys that share
//! a routing prefix stay side by side, in order. With the default prefix, the whole key, no two
//! keys are neighbours.

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Error, Result};

/// How many bytes of hash a hashed key begins with.
const HASH_BYTES: usize = 2;

/// Which part of a key decides its place in a hashed namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoutingPrefix {
    /// The whole key.
    #[default]
    WholeKey,
    /// What stands before the first such byte; the whole key if there is none.
    Until(u8),
}

impl RoutingPrefix {
    /// The routing prefix of a key.
    pub fn of(self, key: &[u8]) -> &[u8] {
        match self {
            RoutingPrefix::WholeKey => key,
            RoutingPrefix::Until(delimiter) => {
                key.split(|b| *b == delimiter).next().unwrap_or_default()
            }
        }
    }
}

/// How a namespace's keys become encoded keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// The key itself.
    #[default]
    Ordered,
    /// The high 16 bits, big-endian, of xxh3-64 (seed 0) over the routing prefix, then the key.
    Hashed {
        /// What is hashed.
        prefix: RoutingPrefix,
    },
}

impl Encoding {
    /// The encoded form of a user's key.
    pub fn encode(&self, key: &[u8]) -> Bytes {
        match self {
            Encoding::Ordered => Bytes::copy_from_slice(key),
            Encoding::Hashed { prefix } => hashed(*prefix, key, key),
        }
    }

    /// Like [`Encoding::encode`], without a copy where the key stays as it is.
    pub fn encode_bytes(&self, key: &Bytes) -> Bytes {
        match self {
            Encoding::Ordered => key.clone(),
            Encoding::Hashed { prefix } => hashed(*prefix, key, key),
        }
    }

    /// The user's key of an encoded one, sharing its memory.
    ///
    /// # Errors
    /// [`Error::Damaged`] if `encoded` is too short for this encoding.
    pub fn decode(&self, encoded: &Bytes) -> Result<Bytes> {
        match self {
            Encoding::Ordered => Ok(encoded.clone()),
            Encoding::Hashed { .. } if encoded.len() < HASH_BYTES => {
                Err(Error::Damaged("an encoded key is shorter than its hash"))
            }
            Encoding::Hashed { .. } => Ok(encoded.slice(HASH_BYTES..)),
        }
    }

    /// The encoded range (an empty end: no end) that holds the keys `start..end` *in order*, if
    /// there is one: always when ordered; when hashed only if all keys of the range share one
    /// routing prefix.
    pub fn encode_range(&self, start: &[u8], end: &[u8]) -> Option<(Bytes, Bytes)> {
        let Encoding::Hashed { prefix } = self else {
            return Some((Bytes::copy_from_slice(start), Bytes::copy_from_slice(end)));
        };
        let routing = prefix.of(start);
        let single_key =
            start.len() + 1 == end.len() && end.starts_with(start) && end.ends_with(&[0]);
        if !start.is_empty() && single_key {
            return Some((hashed(*prefix, start, start), hashed(*prefix, start, end)));
        }
        let RoutingPrefix::Until(delimiter) = *prefix else {
            return None;
        };
        if start.len() == routing.len() {
            return None;
        }
        let mut group_end = BytesMut::from(routing);
        match delimiter.checked_add(1) {
            Some(next) => group_end.put_u8(next),
            None => group_end = next_sibling(group_end)?,
        }
        let within = !end.is_empty() && end <= &group_end[..];
        within.then(|| (hashed(*prefix, start, start), hashed(*prefix, start, end)))
    }
}

/// The hash of `routed`'s routing prefix, then `key`.
fn hashed(prefix: RoutingPrefix, routed: &[u8], key: &[u8]) -> Bytes {
    let hash = (xxh3_64(prefix.of(routed)) >> 48) as u16;
    let mut out = BytesMut::with_capacity(HASH_BYTES + key.len());
    out.put_u16(hash);
    out.put_slice(key);
    out.freeze()
}

/// The smallest key above all keys that begin with `prefix`; none if it is all 0xff.
fn next_sibling(mut prefix: BytesMut) -> Option<BytesMut> {
    while let Some(last) = prefix.last().copied() {
        let at = prefix.len() - 1;
        if last < 0xff {
            prefix[at] = last + 1;
            return Some(prefix);
        }
        prefix.truncate(at);
    }
    None
}

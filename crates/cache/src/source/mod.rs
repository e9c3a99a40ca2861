//! The seam [`Source`]: the truth that is cached.
//!
//! [`KvSource`] is one over a [`Kv`](quorate_kv::Kv); a service writes its own over its database.

mod kv;

use std::time::Duration;

use bytes::Bytes;
use quorate_kv::{BoxFuture, Domain};

use crate::{Need, Result, Version};

pub use kv::KvSource;

/// What a source has under a key, and how new it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamped {
    /// The value; `None` when there is none. If it is a slice of something larger, all of that is kept in memory.
    pub value: Option<Bytes>,
    /// The version at which the key got this value, or lost the one before; where there never was one, `seen`.
    pub version: Version,
    /// A version at which this was the newest of the key, from `version` up. The higher, the more readers with
    /// tokens it serves. A source that knows the key's own version alone gives that.
    pub seen: Version,
    /// By how much what was read may have been behind when it was asked for: zero where the newest state was
    /// read, `None` where that is not known.
    pub lag: Option<Duration>,
}

impl Stamped {
    /// What was read from the newest state.
    pub fn newest(value: Option<Bytes>, version: Version) -> Self {
        Stamped {
            value,
            version,
            seen: version,
            lag: Some(Duration::ZERO),
        }
    }
}

/// The truth that is cached. Loads are called from many tasks at once, each in a task of its own.
///
/// What `load` promises, all else rests upon:
/// - The answer is a state that the key had after the load began, or was behind by at most `lag`.
/// - With [`Need::latest`] it has all that was committed before the load began.
/// - `seen` is no higher than what was read: an answer with `seen` below [`Need::at_least`] is refused, so a
///   replica that lags says so, or waits.
pub trait Source: Send + Sync + 'static {
    /// Where its tokens are valid. The incarnation does not count: versions carry it as their epoch.
    fn domain(&self) -> Domain;

    /// The tags of a key, for [`Cache::invalidate_tag`](crate::Cache::invalidate_tag): none by default. Follows from the
    /// key alone, and is the same in all processes that share a tier: so it is known before the key is loaded, and a tag
    /// that is invalidated meanwhile counts. A tag has at least one byte, and at most `key_bytes_max`. Each costs a read of
    /// a tier a look more; this is asked at each read.
    fn tags(&self, _key: &[u8]) -> Vec<Bytes> {
        Vec::new()
    }

    /// Reads one key.
    fn load<'a>(&'a self, key: &'a Bytes, need: Need) -> BoxFuture<'a, Result<Stamped>>;
}

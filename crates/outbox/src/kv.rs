//! The outbox over a [`Kv`]: message and data in one batch of one shard.
//!
//! A part of the outbox is a *prefix* of keys that lies in one shard: in a hashed namespace a routing prefix, in
//! an ordered one any range that is never split. The message is written next to the data that it is about:
//!
//! ```text
//! <prefix>/~outbox/head           the number of the last message, and per key its last sequence number
//! <prefix>/~outbox/m/<id>         the messages, from id 1, without gaps
//! <prefix>/~outbox/relay          epoch, owner, progress
//! <prefix>/~outbox/p/<id>         what is said of a parked message: reason, wish
//! <prefix>/~outbox/d/<id>         the parked message
//! <prefix>/~outbox/k/<topic>/<key> the last sequence number of a key
//! ```
//!
//! Enqueuing is one compare: if head and the key's number are still as they were read, write both anew, the
//! message, and the caller's mutations; else read again. Writers of one part so wait for each other, as those of
//! one shard do anyway. Data in another shard is `CrossShard`: nothing is written.
//!
//! A topic and key has a sequence in each part where it is used, and so an order within that part only: to
//! consumers each part is a source of its own.
//!
//! Ids have no gaps and grow in the order of commits, so a plain cursor loses nothing. There is no common
//! clock: a relay takes a part over when it has seen the holder's heartbeat unchanged for a lease, by its own
//! monotonic clock; every write is a compare on the relay's entry, so the former holder can't write any more.
//! A relay that holds nothing takes what is free; it is not given what others hold.

mod enqueue;
mod parked;
mod store;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kv::{Entry, Get, Kv, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::{Error, ErrorKind, Limits, Result};

/// The outbox over a namespace. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct KvOutbox {
    kv: Arc<dyn Kv>,
    limits: Limits,
    inner: Arc<Inner>,
}

struct Inner {
    source: String,
    prefixes: Vec<String>,
    hint: Arc<Notify>,
    /// What was seen of each part's holder, and since when it has not changed.
    seen: Mutex<HashMap<u16, (Version, Instant)>>,
}

impl KvOutbox {
    /// An outbox with a part for each prefix, in this order for ever. `source` names it among other outboxes
    /// whose messages go to the same topics.
    ///
    /// # Errors
    /// `Invalid` without prefixes, with more than 1,024, or with an empty one.
    pub fn new(
        kv: Arc<dyn Kv>,
        source: impl Into<String>,
        prefixes: Vec<String>,
    ) -> Result<KvOutbox> {
        let legal = |prefix: &String| !prefix.is_empty() && prefix.len() <= 1024;
        if prefixes.is_empty() || prefixes.len() > 1024 || !prefixes.iter().all(legal) {
            let text = "an outbox has 1 to 1,024 prefixes, each of 1 to 1,024 bytes";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(KvOutbox {
            kv,
            limits: Limits::default(),
            inner: Arc::new(Inner {
                source: source.into(),
                prefixes,
                hint: Arc::new(Notify::new()),
                seen: Mutex::default(),
            }),
        })
    }

    /// The same with other limits on messages. A message has to fit into an entry of the store.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The namespace.
    pub fn kv(&self) -> &Arc<dyn Kv> {
        &self.kv
    }

    /// The prefixes, one for each part.
    pub fn prefixes(&self) -> &[String] {
        &self.inner.prefixes
    }

    /// Wakes relays of this process at once. Enqueuing does so itself.
    pub fn wake(&self) {
        self.inner.hint.notify_waiters();
    }

    fn part_of(&self, prefix: &str) -> Result<u16> {
        let found = self.inner.prefixes.iter().position(|p| p == prefix);
        let found = found.and_then(|part| u16::try_from(part).ok());
        found.ok_or_else(|| {
            let text = format!("`{prefix}` is no prefix of this outbox");
            Error::new(ErrorKind::Invalid, text)
        })
    }

    fn key(&self, part: u16, rest: &str) -> Bytes {
        let prefix = &self.inner.prefixes[usize::from(part)];
        Bytes::from(format!("{prefix}/~outbox/{rest}"))
    }

    fn message_key(&self, part: u16, id: i64) -> Bytes {
        self.key(part, &format!("m/{id:020}"))
    }

    async fn get(&self, key: Bytes) -> Result<Option<Entry>> {
        Ok(self.kv.get(Get::new(key)).await?)
    }
}

/// The version of an entry; 0 when it is not there.
fn version(entry: &Option<Entry>) -> Version {
    entry.as_ref().map_or(0, |entry| entry.version)
}

fn encode(value: &impl Serialize) -> Result<Bytes> {
    let bytes = serde_json::to_vec(value);
    let bytes = bytes.map_err(|e| Error::new(ErrorKind::Invalid, format!("encode: {e}")))?;
    Ok(Bytes::from(bytes))
}

fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(ErrorKind::Corrupt, format!("the outbox's {what}: {e}")))
}

//! Enqueuing over a `Kv`: one compare with the caller's mutations in it.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_kv::{Compare, Condition, Mutation, Op, Token, Version};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{KvOutbox, decode, encode, version};
use crate::backoff::Backoff;
use crate::inbox::now_ms;
use crate::store::Row;
use crate::{Enqueued, Error, ErrorKind, Message, Result};

/// So often a part that others write to as well is tried.
const TRIES: usize = 64;

/// What a message is stored as; its payload follows, after a line feed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    id: i64,
    message_id: Uuid,
    topic: String,
    key: Option<String>,
    seq: Option<i64>,
    headers: Vec<(String, String)>,
    created_ms: i64,
}

/// A stored message: a line of JSON, then the payload as it is.
pub(super) fn encode_row(row: &Row) -> Result<bytes::Bytes> {
    let head = encode(&Head {
        id: row.id,
        message_id: row.message_id,
        topic: row.topic.clone(),
        key: row.key.clone(),
        seq: row.seq,
        headers: row.headers.clone(),
        created_ms: row.created_ms,
    })?;
    let mut bytes = head.to_vec();
    bytes.push(b'\n');
    bytes.extend_from_slice(&row.payload);
    Ok(bytes.into())
}

/// Reads what [`encode_row`] wrote. JSON has no raw line feed, so the first one ends the head.
pub(super) fn decode_row(bytes: &bytes::Bytes) -> Result<Row> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let head: Head = decode(&bytes[..end], "message")?;
    Ok(Row {
        id: head.id,
        message_id: head.message_id,
        topic: head.topic,
        key: head.key,
        seq: head.seq,
        headers: head.headers,
        payload: bytes.slice(end + 1..),
        created_ms: head.created_ms,
        damage: None,
    })
}

impl KvOutbox {
    /// Writes `mutations` and the message, all or none, into the shard of `prefix`.
    ///
    /// # Errors
    /// `CrossShard` when a mutation's key is in another shard than the prefix; `Invalid`, `TooLarge`;
    /// `Unavailable`, with an unknown outcome when the answer was lost: then look before you try again.
    pub async fn enqueue(
        &self,
        prefix: &str,
        mutations: Vec<Mutation>,
        message: &Message,
    ) -> Result<(Enqueued, Token)> {
        let mut changes = Compare::new();
        changes.then_ops = mutations.into_iter().map(Op::Mutate).collect();
        let one = std::slice::from_ref(message);
        let done = self.enqueue_all(prefix, changes, one).await?;
        let first = done.and_then(|(all, token)| Some((*all.first()?, token)));
        first.ok_or_else(|| Error::new(ErrorKind::Corrupt, "a compare without conditions failed"))
    }

    /// Writes what `changes` does when its conditions hold, and the messages, all or none, into the shard of
    /// `prefix`. Nothing is written, and `None` answered, when they do not hold.
    ///
    /// # Errors
    /// As [`KvOutbox::enqueue`].
    pub async fn enqueue_all(
        &self,
        prefix: &str,
        changes: Compare,
        messages: &[Message],
    ) -> Result<Option<(Vec<Enqueued>, Token)>> {
        for message in messages {
            self.limits.check(message)?;
        }
        let part = self.part_of(prefix)?;
        let mut wait = Backoff::new(
            std::time::Duration::from_millis(1),
            std::time::Duration::from_millis(50),
        );
        let mut last = None;
        for _ in 0..TRIES {
            let (compare, enqueued, counters) = self.add(part, changes.clone(), messages).await?;
            let done = self.kv.compare(compare).await?;
            if done.succeeded {
                if !messages.is_empty() {
                    self.inner.hint.notify_waiters();
                }
                return Ok(Some((enqueued, done.token)));
            }
            // Our counters are where they were: so it was a condition of the caller's.
            if last.as_ref() == Some(&counters) || messages.is_empty() {
                return Ok(None);
            }
            last = Some(counters);
            tokio::time::sleep(wait.next()).await;
        }
        let text = format!("`{prefix}` is written by too many at once: nothing was written");
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// Adds messages to a compare. Answers their places too, and the versions of the counters.
    async fn add(
        &self,
        part: u16,
        mut compare: Compare,
        messages: &[Message],
    ) -> Result<(Compare, Vec<Enqueued>, Vec<Version>)> {
        let mut enqueued = Vec::with_capacity(messages.len());
        if messages.is_empty() {
            return Ok((compare, enqueued, Vec::new()));
        }
        let head_key = self.key(part, "head");
        let head = self.get(head_key.clone()).await?;
        let mut versions = vec![version(&head)];
        let first = number(&head)? + 1;
        let ids = first..first + messages.len() as i64;
        compare = compare.when(head_key.clone(), condition(versions[0]));
        compare = compare.then(put(head_key, ids.end - 1));
        let mut seqs: BTreeMap<Bytes, i64> = BTreeMap::new();
        for (id, message) in ids.zip(messages) {
            let key = message.key.as_ref().filter(|_| message.ordered);
            let mut seq = None;
            if let Some(key) = key {
                let counter = self.key(part, &format!("k/{}/{key}", message.topic));
                if !seqs.contains_key(&counter) {
                    let last = self.get(counter.clone()).await?;
                    versions.push(version(&last));
                    compare = compare.when(counter.clone(), condition(version(&last)));
                    seqs.insert(counter.clone(), number(&last)?);
                }
                let last = seqs.entry(counter).or_default();
                *last += 1;
                seq = Some(*last);
            }
            let row = Row {
                id,
                message_id: message.id,
                topic: message.topic.clone(),
                key: message.key.clone(),
                seq,
                headers: message.headers.clone(),
                payload: message.payload.clone(),
                created_ms: now_ms(),
                damage: None,
            };
            let stored = Mutation::put(self.message_key(part, id), encode_row(&row)?);
            compare = compare.then(Op::Mutate(stored));
            enqueued.push(Enqueued { part, id, seq });
        }
        for (counter, last) in seqs {
            compare = compare.then(put(counter, last));
        }
        Ok((compare, enqueued, versions))
    }
}

fn put(key: bytes::Bytes, number: i64) -> Op {
    Op::Mutate(Mutation::put(key, number.to_string()))
}

/// The condition that an entry is still as it was read.
pub(super) fn condition(version: quorate_kv::Version) -> Condition {
    if version == 0 {
        Condition::Absent
    } else {
        Condition::Version(version)
    }
}

/// The number in an entry; 0 when it is not there.
pub(super) fn number(entry: &Option<quorate_kv::Entry>) -> Result<i64> {
    entry
        .as_ref()
        .map_or(Ok(0), |entry| decode(&entry.value, "counter"))
}

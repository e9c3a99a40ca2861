//! Enqueuing over a `Kv`: one compare with the caller's mutations in it.

use quorate_kv::{Compare, Condition, Mutation, Op, Token};
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
        self.limits.check(message)?;
        let part = self.part_of(prefix)?;
        let head_key = self.key(part, "head");
        let seq_key = message
            .key
            .as_ref()
            .filter(|_| message.ordered)
            .map(|key| self.key(part, &format!("k/{}/{key}", message.topic)));
        let mut wait = Backoff::new(
            std::time::Duration::from_millis(1),
            std::time::Duration::from_millis(50),
        );
        for _ in 0..TRIES {
            let head = self.get(head_key.clone()).await?;
            let id = number(&head)? + 1;
            let mut compare = Compare::new().when(head_key.clone(), condition(version(&head)));
            compare = compare.then(put(head_key.clone(), id));
            let mut seq = None;
            if let Some(seq_key) = &seq_key {
                let last = self.get(seq_key.clone()).await?;
                let next = number(&last)? + 1;
                compare = compare
                    .when(seq_key.clone(), condition(version(&last)))
                    .then(put(seq_key.clone(), next));
                seq = Some(next);
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
            for mutation in &mutations {
                compare = compare.then(Op::Mutate(mutation.clone()));
            }
            let done = self.kv.compare(compare).await?;
            if done.succeeded {
                self.inner.hint.notify_waiters();
                return Ok((Enqueued { part, id, seq }, done.token));
            }
            tokio::time::sleep(wait.next()).await;
        }
        let text = format!("`{prefix}` is written by too many at once: nothing was written");
        Err(Error::new(ErrorKind::Unavailable, text))
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

//! What is sent: [`Message`] on its way in, [`Delivery`] on its way out.

use bytes::Bytes;
use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// Header: the message's id, a UUID. Consumers drop a second message with the same one.
pub const HEADER_ID: &str = "quorate-id";
/// Header: the number of the message among those of its topic and key, from 1, without gaps.
pub const HEADER_SEQ: &str = "quorate-seq";
/// Header: which outbox the sequence belongs to.
pub const HEADER_SOURCE: &str = "quorate-source";
/// Header: when the message was enqueued, in milliseconds since 1970, by the database's clock.
pub const HEADER_CREATED: &str = "quorate-created-ms";
/// Header: `1` on a record that stands for a message which an operator chose to leave out.
pub const HEADER_SKIP: &str = "quorate-skip";

/// One message to be sent. Made by [`Message::keyed`] or [`Message::unordered`]; plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Names the message for ever. Drawn by the constructor (UUID version 7).
    pub id: Uuid,
    /// Where it goes: 1 to 249 of `a-z A-Z 0-9 . _ -`.
    pub topic: String,
    /// What it is about: messages of one topic and key keep their order. At most 512 bytes.
    pub key: Option<String>,
    /// Whether it has a place in the sequence of its key.
    pub ordered: bool,
    /// Names and values that travel along, such as `traceparent`. At most 16 KiB in all.
    pub headers: Vec<(String, String)>,
    /// What it says. At most [`Limits::payload_bytes`].
    pub payload: Bytes,
}

impl Message {
    /// A message that is delivered after all earlier ones of its topic and key. Enqueuing it holds a
    /// row lock on the key until the transaction ends: writers of one key wait for each other.
    pub fn keyed(
        topic: impl Into<String>,
        key: impl Into<String>,
        payload: impl Into<Bytes>,
    ) -> Self {
        Message {
            key: Some(key.into()),
            ordered: true,
            ..Message::unordered(topic, payload)
        }
    }

    /// A message without order: cheaper, no lock, no sequence. A key may still be given for routing.
    pub fn unordered(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Message {
            id: Uuid::now_v7(),
            topic: topic.into(),
            key: None,
            ordered: false,
            headers: Vec::new(),
            payload: payload.into(),
        }
    }

    /// The same with one more header. Names that begin with `quorate-` are ours and are refused.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same under an id of the caller's.
    pub fn with_id(mut self, id: Uuid) -> Self {
        self.id = id;
        self
    }

    /// The part of the outbox it belongs to: by its key, or by its id when it has no order.
    #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn part(&self, parts: u16) -> u16 {
        let hash = match (&self.key, self.ordered) {
            (Some(key), true) => xxhash_rust::xxh3::xxh3_64(key.as_bytes()),
            _ => xxhash_rust::xxh3::xxh3_64(self.id.as_bytes()),
        };
        (hash % u64::from(parts.max(1))) as u16
    }
}

/// Limits on a message, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload. Kafka's own default for a whole message is 1 MiB.
    pub payload_bytes: usize,
    /// The longest key.
    pub key_bytes: usize,
    /// All headers, names and values added up.
    pub headers_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            payload_bytes: 960 << 10,
            key_bytes: 512,
            headers_bytes: 16 << 10,
        }
    }
}

impl Limits {
    /// Checks a message before anything is written.
    ///
    /// # Errors
    /// `TooLarge` for sizes, `Invalid` for a topic, key or header that can't be.
    pub fn check(&self, message: &Message) -> Result<()> {
        let topic = &message.topic;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if topic.is_empty() || topic.len() > 249 || !topic.chars().all(legal) {
            return invalid(format!(
                "the topic `{topic}` is not 1 to 249 of a-z A-Z 0-9 . _ -"
            ));
        }
        let key = message.key.as_deref();
        if message.ordered && key.is_none_or(str::is_empty) {
            return invalid("a message with an order has a key that is not empty".into());
        }
        if key.is_some_and(|key| key.contains('\0')) {
            return invalid("a key has no byte 0".into());
        }
        for (name, value) in &message.headers {
            let has_nul = name.contains('\0') || value.contains('\0');
            if name.is_empty() || name.starts_with("quorate-") || has_nul {
                return invalid(format!(
                    "the header {name:?} is empty, begins with `quorate-`, or has a byte 0"
                ));
            }
        }
        let headers = message.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        too_large("payload", message.payload.len(), self.payload_bytes)?;
        too_large("key", key.map_or(0, str::len), self.key_bytes)?;
        too_large("headers", headers, self.headers_bytes)
    }
}

fn invalid(message: String) -> Result<()> {
    Err(Error::new(ErrorKind::Invalid, message))
}

fn too_large(what: &str, is: usize, limit: usize) -> Result<()> {
    if is <= limit {
        return Ok(());
    }
    let text = format!("{what}: {is} bytes, more than the limit of {limit}");
    Err(Error::new(ErrorKind::TooLarge, text))
}

/// Where a delivered message stands: topic and partition of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// The topic.
    pub topic: String,
    /// The number of the partition, from 0.
    pub number: i32,
}

/// A message as a broker delivers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Topic and partition.
    pub partition: Partition,
    /// Its place in the partition, from 0.
    pub offset: i64,
    /// In which assignment of the partition to this member it was fetched; see
    /// [`Positions::assigned`](crate::broker::Positions::assigned).
    pub assignment: u64,
    /// The key, if it had one. Bytes that are no UTF-8 come with replacement characters.
    pub key: Option<String>,
    /// All headers, ours among them.
    pub headers: Vec<(String, String)>,
    /// What it says.
    pub payload: Bytes,
}

impl Delivery {
    /// The value of the first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The message's id; `None` when no outbox sent it.
    pub fn id(&self) -> Option<Uuid> {
        self.header(HEADER_ID)?.parse().ok()
    }

    /// Its number among those of its topic and key; `None` without order.
    pub fn seq(&self) -> Option<i64> {
        self.header(HEADER_SEQ)?.parse().ok()
    }

    /// The outbox it came from.
    pub fn source(&self) -> &str {
        self.header(HEADER_SOURCE).unwrap_or_default()
    }

    /// When it was enqueued, in milliseconds since 1970.
    pub fn created_ms(&self) -> Option<i64> {
        self.header(HEADER_CREATED)?.parse().ok()
    }

    /// Whether it only says that this sequence number was left out.
    pub fn is_skip(&self) -> bool {
        self.header(HEADER_SKIP) == Some("1")
    }
}

/// How often an effect may happen. A value, chosen per relay and per consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Never twice; lost if the process dies between the record of sending (or receiving) and the
    /// deed. For what is worthless when late: gauges, presence.
    AtMostOnce,
    /// Never lost; twice if the process dies between deed and record. For effects that can be
    /// repeated. A relay can promise no more by itself, whatever the broker.
    AtLeastOnce,
    /// Never lost, and the effect happens once: the message may arrive twice, but its effect, the
    /// record that it was seen and the position are one transaction of the consumer's database.
    /// Effects outside that database (a mail, a call) are only at least once.
    #[default]
    EffectivelyOnce,
}

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
/// Headers as they are stored: a JSON array of pairs.
pub(crate) fn headers_to_text(headers: &[(String, String)]) -> String {
    serde_json::to_string(headers).unwrap_or_else(|_| "[]".into())
}

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
/// Reads what [`headers_to_text`] wrote.
pub(crate) fn headers_from_text(text: &str) -> Result<Vec<(String, String)>> {
    serde_json::from_str(text)
        .map_err(|e| Error::new(ErrorKind::Corrupt, format!("stored headers: {e}")))
}

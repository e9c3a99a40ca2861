//! The seam [`Store`]: what a relay needs of the place where messages lie.
//!
//! Messages lie in *parts*. A part is a line of messages that one relay at a time works on; a key
//! belongs to one part. A relay holds a part by a lease and an *epoch*, which grows whenever the part
//! changes hands. Every write of a relay names its epoch and is refused when that is no longer the
//! part's: so a relay that was frozen and wakes up changes nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use futures_util::{Stream, StreamExt};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{Ranges, Result};

pub use quorate_kv::BoxFuture;

/// The right to work on a part, as long as nobody else has taken it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The part, from 0.
    pub part: u16,
    /// How often the part has changed hands.
    pub epoch: i64,
}

/// How far a part has been published.
///
/// Invariants: every row with an id up to `floor` that will ever exist is published or parked; `done`
/// has only ids above `floor`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything up to here is settled.
    pub floor: i64,
    /// What is published above the floor.
    pub done: Ranges,
    /// The number of the last batch that was planned (transactional brokers only).
    pub batch: i64,
    /// The ids in that batch, until it is known to be published.
    pub plan: Ranges,
}

/// A part that a relay now holds.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The right to it.
    pub fence: Fence,
    /// Where the last holder stood.
    pub progress: Progress,
    /// Topic and key of all that is parked in it.
    pub parked: HashSet<(String, String)>,
}

/// What a heartbeat answers.
#[derive(Debug, Default)]
pub struct Held {
    /// Of the parts that the relay named, those whose lease was renewed. The others are lost.
    pub kept: Vec<u16>,
    /// So many parts more than a fair share: give them back by [`Store::release`].
    pub surplus: usize,
    /// Parts that were free and are now this relay's.
    pub claimed: Vec<Claim>,
}

/// One stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place in the part, from 1.
    pub id: i64,
    /// The message's id.
    pub message_id: Uuid,
    /// The topic.
    pub topic: String,
    /// The key.
    pub key: Option<String>,
    /// Its number among those of topic and key; `None` without order.
    pub seq: Option<i64>,
    /// The user's headers.
    pub headers: Vec<(String, String)>,
    /// What it says.
    pub payload: Bytes,
    /// When it was enqueued, milliseconds since 1970, by the store's clock.
    pub created_ms: i64,
    /// Why it can't be sent as it is: something stored of it can't be read, and stands here as its default.
    /// What is stored stays as it is, for a person to mend.
    pub damage: Option<String>,
}

impl Row {
    /// A message's id where its own can't be read: the same at every look.
    pub(crate) fn made_id(part: u16, id: i64) -> Uuid {
        let place = format!("{part}/{id}");
        Uuid::from_u128(xxhash_rust::xxh3::xxh3_128(place.as_bytes()))
    }

    /// How much of [`Most::bytes`] it is.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        headers + self.payload.len()
    }

    /// What its order hangs on; `None` without order.
    pub fn stream(&self) -> Option<(String, String)> {
        self.seq?;
        Some((self.topic.clone(), self.key.clone()?))
    }
}

/// At most so much at once. One row is given however large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Rows.
    pub rows: usize,
    /// Bytes of payloads and headers.
    pub bytes: usize,
}

impl Most {
    /// No limit.
    pub const ALL: Most = Most {
        rows: usize::MAX,
        bytes: usize::MAX,
    };

    /// Takes parked messages until there are enough.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) async fn fill(
        self,
        mut from: impl Stream<Item = Result<Parked>> + Unpin,
    ) -> Result<Vec<Parked>> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(one) = from.next().await.transpose()? {
            bytes += one.row.size();
            if taken.len() >= self.rows || (bytes > self.bytes && !taken.is_empty()) {
                break;
            }
            taken.push(one);
        }
        Ok(taken)
    }
}

/// What a read gives.
#[derive(Debug, Default)]
pub struct Read {
    /// Unpublished rows, by id, from the lowest on. One state of the store.
    pub rows: Vec<Row>,
    /// Every row up to this id that will ever exist was there to be read.
    pub settled: i64,
    /// Whether the limit ended it: above the last row there may be more.
    pub cut: bool,
}

/// Why a message was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Park {
    /// The message.
    pub row: Row,
    /// For people.
    pub reason: String,
}

/// What happened to a parked message that an operator wanted to be sent or left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unpark {
    /// It, or its skip record, was published: forget it.
    Gone(i64),
    /// It was refused again.
    Back {
        /// Its place in the part.
        id: i64,
        /// The wish that this was about: a newer one stands.
        wish: Wish,
        /// Why.
        reason: String,
    },
}

/// What a relay writes at once, beside its progress.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Messages to set aside.
    pub parks: Vec<Park>,
    /// What became of those that were to be replayed, by id.
    pub unparks: Vec<Unpark>,
    /// Whether it has to survive a crash of the database, since what follows can't be repeated. Otherwise
    /// a store may be quick about it: what is lost is published again.
    pub sync: bool,
}

/// What an operator asked for with a parked message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing yet: it waits.
    None,
    /// Send it again.
    Retry,
    /// Leave it out: send a skip record in its place.
    Skip,
    /// Forget it, and send nothing: what to do when not even a skip record can be sent, since its topic will
    /// never be there. Consumers with the sequence check that get later messages of its key after all
    /// wait at the gap. For what a consumer has set aside the same as `Skip`.
    Drop,
}

impl Wish {
    /// As it is stored.
    pub(crate) fn number(self) -> u8 {
        match self {
            Wish::None => 0,
            Wish::Retry => 1,
            Wish::Skip => 2,
            Wish::Drop => 3,
        }
    }

    /// Reads what [`Wish::number`] wrote. Anything else is no wish: a person has to say it anew.
    pub(crate) fn of(number: i64) -> Wish {
        match number {
            1 => Wish::Retry,
            2 => Wish::Skip,
            3 => Wish::Drop,
            _ => Wish::None,
        }
    }
}

/// A message that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The part it is in.
    pub part: u16,
    /// The message.
    pub row: Row,
    /// Why.
    pub reason: String,
    /// How often it was refused.
    pub attempts: i64,
    /// What is to be done with it.
    pub wish: Wish,
}

/// How much waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Messages that are committed and neither published nor parked.
    pub waiting: i64,
    /// The age of the oldest of them, in milliseconds.
    pub oldest_ms: i64,
    /// Messages set aside.
    pub parked: i64,
}

/// Where alarms begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// So many messages wait.
    pub waiting: i64,
    /// The oldest waits this long.
    pub oldest: Duration,
}

impl Default for Threshold {
    fn default() -> Self {
        Threshold {
            waiting: 100_000,
            oldest: Duration::from_secs(60),
        }
    }
}

impl Lag {
    /// What is past the threshold, for people; `None` when all is well. Parked messages always count.
    pub fn alarm(&self, threshold: &Threshold) -> Option<String> {
        let mut said = Vec::new();
        if self.waiting >= threshold.waiting {
            said.push(format!("{} messages wait", self.waiting));
        }
        if u128::from(self.oldest_ms.unsigned_abs()) >= threshold.oldest.as_millis() {
            said.push(format!("the oldest waits for {} ms", self.oldest_ms));
        }
        if self.parked > 0 {
            said.push(format!("{} messages are parked", self.parked));
        }
        (!said.is_empty()).then(|| said.join(", "))
    }
}

/// Where messages lie until they are published: PostgreSQL, SQLite or a `Kv`.
///
/// Enqueuing is not part of it: each store has its own `enqueue`, which takes that store's transaction.
/// Every method may be called from many tasks.
pub trait Store: Send + Sync + 'static {
    /// How many parts there are. Fixed when the tables are made.
    fn parts(&self) -> u16;

    /// Names this outbox among those whose messages go to the same topics.
    fn source(&self) -> &str;

    /// Names what the sequences of a part belong to: the outbox, where a key has one sequence in all of
    /// it. Consumers tell sequences apart by it.
    fn sequences(&self, _part: u16) -> String {
        self.source().to_owned()
    }

    /// Wakes relays of this process at once when something was enqueued here. A hint, never needed.
    fn hint(&self) -> Arc<Notify>;

    /// A heartbeat: renews the leases of `held`, says what is above a fair share, and takes what is free.
    fn hold<'a>(
        &'a self,
        owner: &'a str,
        held: &'a [Fence],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Held>>;

    /// Gives parts back before their leases end. Those that are lost already are passed over.
    fn release<'a>(&'a self, held: &'a [Fence]) -> BoxFuture<'a, Result<()>>;

    /// Says that this relay has ended, so that the others take its share at once.
    fn leave<'a>(&'a self, _owner: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Reads unpublished rows of a part; those that can't be read come with their damage.
    fn read<'a>(
        &'a self,
        fence: Fence,
        progress: &'a Progress,
        most: Most,
    ) -> BoxFuture<'a, Result<Read>>;

    /// Writes progress and changes, all or none. `Fenced` if the epoch is not the part's, or if the part
    /// is not as the last save of this epoch left it: then claim it anew.
    fn save<'a>(
        &'a self,
        fence: Fence,
        progress: &'a Progress,
        change: &'a Change,
    ) -> BoxFuture<'a, Result<()>>;

    /// Parked messages of a part with a wish, by stream and sequence; of a stream only those before
    /// which nothing without a wish stands.
    fn wishes(&self, part: u16, most: Most) -> BoxFuture<'_, Result<Vec<Parked>>>;

    /// Topic and key of all that is parked in a part.
    fn parked_streams(&self, part: u16) -> BoxFuture<'_, Result<HashSet<(String, String)>>>;

    /// Frees the space of published rows of these parts. Answers how many rows went, about.
    fn trim<'a>(&'a self, parts: &'a [u16]) -> BoxFuture<'a, Result<i64>>;

    /// How much waits.
    fn lag(&self) -> BoxFuture<'_, Result<Lag>>;

    /// Parked messages, all or some, by part, stream and sequence.
    fn parked<'a>(
        &'a self,
        which: Option<&'a Which>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Parked>>>;

    /// Says what is to be done with all parked messages of a topic and key, or with one message.
    /// Answers how many it concerns. A relay does it soon.
    fn wish<'a>(&'a self, which: &'a Which, wish: Wish) -> BoxFuture<'a, Result<u64>>;
}

/// Which parked messages are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All of a topic and key, in order.
    Stream {
        /// The topic.
        topic: String,
        /// The key.
        key: String,
    },
    /// One, by its message id.
    Message(Uuid),
}

impl Which {
    /// Topic, key and id as parameters of SQL; of what is not given any is meant.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn parameters(which: Option<&Which>) -> (Option<&str>, Option<&str>, Option<Uuid>) {
        match which {
            None => (None, None, None),
            Some(Which::Stream { topic, key }) => (Some(topic), Some(key), None),
            Some(Which::Message(id)) => (None, None, Some(*id)),
        }
    }
}

/// The query for parked messages: its parameters are those of [`Which::parameters`], and the limit.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn parked_query(columns: &str) -> String {
    format!(
        "SELECT {columns}, part, reason, attempts, wish FROM quorate_outbox_parked
         WHERE ($1 IS NULL OR (topic = $1 AND key = $2 AND seq IS NOT NULL))
         AND ($3 IS NULL OR message_id = $3)
         ORDER BY part, topic, key, seq, id LIMIT $4"
    )
}

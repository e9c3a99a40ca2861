//! The seam [`Ledger`]: a consumer's records in its database.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use uuid::Uuid;

use crate::store::{Which, Wish};
use crate::{Delivery, Partition, Result};

/// What a sequence belongs to: the messages of one outbox with one topic and key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stream {
    /// The outbox.
    pub source: String,
    /// The topic.
    pub topic: String,
    /// The key.
    pub key: String,
}

impl Stream {
    /// The stream and number of a message that has an order.
    pub(crate) fn of(message: &Delivery) -> Option<(Stream, i64)> {
        let seq = message.seq()?;
        let stream = Stream {
            source: message.source().to_owned(),
            topic: message.partition.topic.clone(),
            key: message.key.clone()?,
        };
        Some((stream, seq))
    }
}

/// A partition as it was when it was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// How often the partition was claimed.
    pub generation: i64,
    /// The offset of the next message; `None` when the consumer never had one.
    pub next: Option<i64>,
}

/// How a message that was set aside stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits for an earlier one of its key.
    Waiting,
    /// Its handler failed for good, and its key waits for it.
    Dead,
    /// Its handler failed for good, and its key, if it has one, went on.
    Passed,
}

impl State {
    #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn number(self) -> i32 {
        match self {
            State::Waiting => 0,
            State::Dead => 1,
            State::Passed => 2,
        }
    }

    #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn of(number: i32) -> State {
        match number {
            1 => State::Dead,
            2 => State::Passed,
            _ => State::Waiting,
        }
    }
}

/// A message that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its id: of its outbox, or made from its place.
    pub id: Uuid,
    /// The message.
    pub message: Delivery,
    /// Why it is here.
    pub state: State,
    /// Why.
    pub reason: String,
    /// How often it was tried.
    pub attempts: i64,
    /// What an operator wants.
    pub wish: Wish,
}

/// A consumer's database: PostgreSQL or SQLite.
pub trait Ledger: Clone + Send + Sync + 'static {
    /// What handlers get.
    type Connection: Send + 'static;
    /// A transaction.
    type Tx: LedgerTx<Connection = Self::Connection>;

    /// Begins a transaction that will write. A handler in it may take as long as `patience`; a database that
    /// can ends what idles for much longer, so that a consumer that is frozen keeps no locks.
    fn begin(&self, patience: Duration) -> impl Future<Output = Result<Self::Tx>> + Send;

    /// Makes the partition this caller's: raises its generation. Whoever had it can't write any more.
    fn claim(
        &self,
        consumer: &str,
        partition: &Partition,
    ) -> impl Future<Output = Result<Position>> + Send;

    /// Messages set aside whose turn it is: the next of their stream and waiting or wished for, the first of
    /// those that wait and wished for, passed and wished for, or no longer needed.
    fn ready(
        &self,
        consumer: &str,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Waiting>>> + Send;

    /// What is set aside, all or some, by stream and sequence.
    fn waiting(
        &self,
        consumer: &str,
        which: Option<&Which>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Waiting>>> + Send;

    /// The names of all consumers that ever had a partition, or have something set aside.
    fn consumers(&self) -> impl Future<Output = Result<Vec<String>>> + Send;

    /// How much is set aside.
    fn count(&self, consumer: &str) -> impl Future<Output = Result<i64>> + Send;

    /// Says what is to be done with dead messages: all of a topic and key, or one. One that waits may be
    /// named too: then what is missing before it is given up. Answers how many it concerns.
    fn wish(
        &self,
        consumer: &str,
        which: &Which,
        wish: Wish,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// Forgets ids that were seen before this moment (milliseconds since 1970).
    fn forget(&self, consumer: &str, before_ms: i64) -> impl Future<Output = Result<u64>> + Send;
}

/// A transaction of a [`Ledger`]. Dropped without `commit`, it is rolled back.
pub trait LedgerTx: Send {
    /// What handlers get.
    type Connection: Send + 'static;

    /// The connection, for the handler.
    fn connection(&mut self) -> &mut Self::Connection;

    /// Sets the partition's position, if the generation is still the partition's. Answers the position
    /// before; `Fenced` otherwise.
    fn advance(
        &mut self,
        consumer: &str,
        partition: &Partition,
        generation: i64,
        next: i64,
    ) -> impl Future<Output = Result<i64>> + Send;

    /// The numbers of the last messages of these streams, each locked until the transaction ends; of those that
    /// are not new.
    fn last_seqs(
        &mut self,
        consumer: &str,
        streams: &[Stream],
    ) -> impl Future<Output = Result<HashMap<Stream, i64>>> + Send;

    /// Sets those numbers; each stream once.
    fn set_seqs(
        &mut self,
        consumer: &str,
        seqs: &[(Stream, i64)],
    ) -> impl Future<Output = Result<()>> + Send;

    /// Notes ids; answers those that were not there.
    fn note(
        &mut self,
        consumer: &str,
        ids: &[Uuid],
    ) -> impl Future<Output = Result<HashSet<Uuid>>> + Send;

    /// Whether the transaction can still commit: a statement of a handler may have broken it.
    fn check(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Sets a message aside, or renews what is said of one that is.
    fn park(
        &mut self,
        consumer: &str,
        waiting: &Waiting,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Takes a message out of those set aside; false when it is not there.
    fn unpark(&mut self, consumer: &str, id: Uuid) -> impl Future<Output = Result<bool>> + Send;

    /// Commits. The outcome is known when the database has refused it.
    fn commit(self) -> impl Future<Output = Result<()>> + Send;
}

/// The id of a message, or one made from its place if no outbox sent it.
pub(crate) fn identity(message: &Delivery) -> Uuid {
    message.id().unwrap_or_else(|| {
        let partition = &message.partition;
        let place = format!(
            "{}/{}/{}",
            partition.topic, partition.number, message.offset
        );
        Uuid::from_u128(xxhash_rust::xxh3::xxh3_128(place.as_bytes()))
    })
}

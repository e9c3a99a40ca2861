//! The seam [`Broker`]: where messages go, and where consumers get them.
//!
//! Two kinds: [`LocalBroker`](local::LocalBroker) in this process, in memory or durable in an SQLite
//! file, and Kafka (feature `kafka`). Both pass one suite (feature
//! `conformance`).

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod local;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::store::{BoxFuture, Fence};
use crate::{Delivery, Partition, Result};

/// A message as a broker gets it: headers are complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The topic.
    pub topic: String,
    /// Decides the partition; messages with one key go to one partition, in order.
    pub key: Option<String>,
    /// All headers.
    pub headers: Vec<(String, String)>,
    /// What it says.
    pub payload: Bytes,
}

/// What a relay publishes at once.
#[derive(Debug, Clone, Copy)]
pub struct Outbatch<'a> {
    /// Names the outbox.
    pub source: &'a str,
    /// For which part, in which epoch.
    pub fence: Fence,
    /// The number of the batch within the part; grows.
    pub number: i64,
    /// The messages, in order.
    pub messages: &'a [Outgoing],
    /// Whether the one message has to be judged by itself, after [`Refusal::Together`].
    pub alone: bool,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The broker does not answer, or is full: later. It may have been published all the same.
    Retry(String),
    /// This message will never be taken: too large, no such topic.
    Poison(String),
    /// It was refused together with others, of which one is poison: send fewer at once, in the end each
    /// [`alone`](Outbatch::alone).
    Together(String),
    /// A newer epoch of the part has published: stop.
    Fenced(String),
}

/// The topics and keys of a batch that are closed, since one of their messages was refused.
#[derive(Debug, Default)]
pub struct Closed(std::collections::HashSet<(String, String)>);

impl Closed {
    /// The refusal of a message whose key is closed.
    pub fn refusal(&self, message: &Outgoing) -> Option<Refusal> {
        let key = message.key.as_ref().filter(|_| !self.0.is_empty())?;
        let is_closed = self.0.contains(&(message.topic.clone(), key.clone()));
        is_closed.then(|| Refusal::Retry("an earlier message of its key was refused".into()))
    }

    /// Closes the key of a message.
    pub fn close(&mut self, message: &Outgoing) {
        if let Some(key) = &message.key {
            self.0.insert((message.topic.clone(), key.clone()));
        }
    }
}

/// One outcome per message of a batch.
pub type Outcomes = Vec<std::result::Result<(), Refusal>>;

/// Where messages go.
///
/// A broker keeps the order of a batch for each key. What it sees at once to be poison or too much for now
/// closes the key: later messages of that topic and key in the batch are refused by `Retry`. Where the refusal
/// comes back from a server later ones may be stored already; the caller sends them again, in order, and
/// the sequence check of consumers sets them right.
pub trait Broker: Send + Sync + 'static {
    /// Publishes a batch; returns when every message is stored as durably as the broker promises, or
    /// refused.
    fn publish<'a>(&'a self, batch: Outbatch<'a>) -> BoxFuture<'a, Outcomes>;

    /// Whether batches are all or nothing and [`Broker::last_batch`] knows the last one.
    fn is_transactional(&self) -> bool {
        false
    }

    /// The number of the last batch of this part that was published. Shuts out older epochs first.
    /// Only for transactional brokers; else `None`.
    fn last_batch<'a>(
        &'a self,
        _source: &'a str,
        _fence: Fence,
    ) -> BoxFuture<'a, Result<Option<i64>>> {
        Box::pin(async { Ok(None) })
    }

    /// Joins a group of consumers that share the partitions of the topics.
    fn subscribe<'a>(
        &'a self,
        group: &'a str,
        topics: &'a [String],
        positions: Arc<dyn Positions>,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>>;
}

/// Where a consumer begins a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At this offset.
    At(i64),
    /// At what the broker remembers as committed, else at the beginning.
    Committed,
}

/// Asked by a broker when partitions come and go. What it answers is the truth: a position that the
/// broker has for the group is advisory.
pub trait Positions: Send + Sync {
    /// These partitions are now this consumer's; where does each begin? What is fetched of them bears the
    /// number of this assignment, until they are revoked.
    fn assigned(&self, partitions: Vec<Partition>, assignment: u64) -> BoxFuture<'_, Vec<Start>>;

    /// These are no longer.
    fn revoked(&self, partitions: Vec<Partition>) -> BoxFuture<'_, ()>;
}

/// A member of a group. Dropping it leaves the group, without waiting.
pub trait Subscription: Send {
    /// The next messages, at most `max`; none when nothing came within `wait`. A failure is reported
    /// and may pass: call again.
    fn next(&mut self, max: usize, wait: Duration) -> BoxFuture<'_, Result<Vec<Delivery>>>;

    /// Tells the broker what is done: per partition the offset of the next message. Advisory.
    fn commit(&mut self, next: Vec<(Partition, i64)>) -> BoxFuture<'_, Result<()>>;

    /// How many messages are in the partitions held by this member and not yet given out.
    fn behind(&mut self) -> BoxFuture<'_, Result<i64>>;

    /// Leaves the group: sends the positions that were told, gives the partitions up, and returns when both
    /// are done, or after a few seconds.
    fn leave(self: Box<Self>) -> BoxFuture<'static, ()>;
}

//! The relay: moves messages from a [`Store`] to a [`Broker`].
//!
//! One task holds leases: every third of their length it renews them, gives back what is more than a
//! fair share among the relays that live, and takes what is free. Each part that is held has a worker:
//!
//! ```text
//! read (one state of the store, by id) ─► publish ─► save progress under the epoch ─► again
//! ```
//!
//! What is published and not yet saved when a process dies is published again by the next holder:
//! delivery is at least once, and consumers drop the repetition by id and sequence.

mod holder;
mod rows;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::broker::Broker;
use crate::store::{Lag, Store, Threshold};
use crate::{Error, ErrorKind, Level, Result};

/// Settings of a relay.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// Names this relay among those that share the store; unique. Default: drawn.
    pub owner: String,
    /// How long a part stays with a relay that is not heard of.
    pub lease: Duration,
    /// At most so many messages are read and published at once, per part.
    pub batch: usize,
    /// At most so many bytes of payloads and headers at once, per part; a larger message goes alone.
    pub batch_bytes: usize,
    /// The first wait when a part has nothing; doubles up to `poll_max`.
    pub poll_min: Duration,
    /// The longest wait between two looks at an idle part.
    pub poll_max: Duration,
    /// What was published is saved after so long at the latest, or with a whole batch: a relay that dies publishes so
    /// much again. Zero: after each round. Transactional brokers and `AtMostOnce` save each round.
    pub save_every: Duration,
    /// The first wait when the broker or the store refuses; doubles up to `retry_max`, with jitter.
    pub retry_min: Duration,
    /// The longest such wait.
    pub retry_max: Duration,
    /// Between two looks at the lag, at wishes of operators, and at space to be freed.
    pub upkeep: Duration,
    /// Whether space of published rows is freed by this relay, in the parts that it holds.
    pub trim: bool,
    /// `AtMostOnce` saves before it publishes; the others publish before they save.
    pub level: Level,
    /// From when on a backlog is an alarm.
    pub threshold: Threshold,
}

impl Default for RelayOptions {
    fn default() -> Self {
        RelayOptions {
            owner: format!("relay-{}", uuid::Uuid::now_v7()),
            lease: Duration::from_secs(10),
            batch: 2000,
            batch_bytes: 4 << 20,
            poll_min: Duration::from_millis(2),
            poll_max: Duration::from_millis(50),
            save_every: Duration::from_millis(50),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(5),
            upkeep: Duration::from_secs(1),
            trim: true,
            level: Level::AtLeastOnce,
            threshold: Threshold::default(),
        }
    }
}

/// What a relay has done since it started, and how it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStatus {
    /// The parts it holds.
    pub parts: Vec<u16>,
    /// Messages published.
    pub published: u64,
    /// Messages set aside.
    pub parked: u64,
    /// Batches that were put off since the broker or the store refused.
    pub retries: u64,
    /// How often a part was found to be another's, or the database to have gone back.
    pub fenced: u64,
    /// How much waits in the whole outbox, as of the last look.
    pub lag: Lag,
    /// The alarm, if there is one.
    pub alarm: Option<String>,
    /// The last failure, until something succeeds.
    pub failure: Option<String>,
}

/// What holder and workers share.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) options: RelayOptions,
    pub(crate) counts: Counts,
    /// A worker has ended.
    pub(crate) ended: Notify,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) published: AtomicU64,
    pub(crate) parked: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) fenced: AtomicU64,
    waiting: AtomicI64,
    oldest_ms: AtomicI64,
    parked_now: AtomicI64,
    pub(crate) parts: Mutex<Vec<u16>>,
    pub(crate) alarm: Mutex<Option<String>>,
    pub(crate) failure: Mutex<Option<String>>,
}

impl Counts {
    pub(crate) fn set_lag(&self, lag: Lag) {
        self.waiting.store(lag.waiting, Ordering::Relaxed);
        self.oldest_ms.store(lag.oldest_ms, Ordering::Relaxed);
        self.parked_now.store(lag.parked, Ordering::Relaxed);
    }

    fn status(&self) -> RelayStatus {
        RelayStatus {
            parts: self.parts.lock().clone(),
            published: self.published.load(Ordering::Relaxed),
            parked: self.parked.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            fenced: self.fenced.load(Ordering::Relaxed),
            lag: Lag {
                waiting: self.waiting.load(Ordering::Relaxed),
                oldest_ms: self.oldest_ms.load(Ordering::Relaxed),
                parked: self.parked_now.load(Ordering::Relaxed),
            },
            alarm: self.alarm.lock().clone(),
            failure: self.failure.lock().clone(),
        }
    }
}

/// A running relay. Dropping it stops it without waiting; its leases then end by themselves.
pub struct Relay {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// Starts a relay on the current tokio runtime.
    ///
    /// # Errors
    /// `Invalid` for settings that can't work.
    pub fn start(
        store: Arc<dyn Store>,
        broker: Arc<dyn Broker>,
        options: RelayOptions,
    ) -> Result<Relay> {
        if options.batch == 0 || options.lease < Duration::from_millis(100) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a relay's batch is at least 1 and its lease at least 100 ms",
            ));
        }
        let shared = Arc::new(Shared {
            store,
            broker,
            options,
            counts: Counts::default(),
            ended: Notify::new(),
        });
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(holder::run(Arc::clone(&shared), stopped));
        Ok(Relay { shared, stop, task })
    }

    /// How it stands.
    pub fn status(&self) -> RelayStatus {
        self.shared.counts.status()
    }

    /// Finishes the batches under way, saves, gives the parts back, and ends.
    pub async fn drain(mut self) {
        let _ = self.stop.send(true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

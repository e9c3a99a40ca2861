//! [`Consumer`]: fetches, hands out to the workers of partitions, and looks after what waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::apply::Done;
use super::ledger::Ledger;
use super::rebalance::Rebalance;
use super::worker::Worker;
use super::{ConsumerOptions, ConsumerStatus, Handler, OnFailure, OnGap, now_ms, replay};
use crate::backoff::Backoff;
use crate::broker::{Broker, Positions, Subscription};
use crate::store::Lag;
use crate::{Delivery, Error, ErrorKind, Partition, Result};

/// How long a fetch waits for news.
const FETCH_WAIT: Duration = Duration::from_millis(100);
/// At most so many messages a fetch.
const FETCH: usize = 1000;

/// A partition's worker, as the consumer sees it.
pub(super) struct Slot {
    pub(super) assignment: u64,
    pub(super) queue: mpsc::Sender<Vec<Delivery>>,
    /// How many messages are in the queue or worked on.
    pub(super) in_hand: Arc<AtomicI64>,
    /// When the group is to be joined anew, since the partition is not this worker's any more.
    pub(super) lost: Option<Instant>,
    pub(super) task: JoinHandle<()>,
}

/// What fetching, workers and upkeep share.
pub(super) struct Shared<L: Ledger> {
    pub(super) ledger: L,
    pub(super) handler: Arc<dyn Handler<L::Connection>>,
    pub(super) options: ConsumerOptions,
    pub(super) stopped: watch::Receiver<bool>,
    pub(super) slots: Mutex<HashMap<Partition, Slot>>,
    pub(super) counts: Counts,
    /// Positions that the broker is to be told.
    next: Mutex<HashMap<Partition, i64>>,
    oldest: Mutex<HashMap<Partition, i64>>,
    halted: Mutex<HashMap<Partition, String>>,
    failure: Mutex<Option<String>>,
    lag: Mutex<Lag>,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) applied: AtomicU64,
    duplicates: AtomicU64,
    gaps: AtomicU64,
    pub(super) dead: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) fenced: AtomicU64,
}

impl<L: Ledger> Shared<L> {
    /// Begins a transaction for a handler.
    pub(super) async fn begin(&self) -> Result<L::Tx> {
        self.ledger.begin(self.options.patience).await
    }

    pub(super) fn count(&self, done: Done) {
        let counter = match done {
            Done::Applied => &self.counts.applied,
            Done::Duplicate => &self.counts.duplicates,
            Done::Parked => &self.counts.gaps,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes for the broker that these messages are consumed.
    pub(super) fn done(&self, partition: &Partition, messages: &[Delivery]) {
        if let Some(last) = messages.last() {
            self.next.lock().insert(partition.clone(), last.offset + 1);
        }
    }

    /// Notes when the oldest message that is worked on was enqueued.
    pub(super) fn working(&self, partition: &Partition, oldest_ms: Option<i64>) {
        let mut oldest = self.oldest.lock();
        match oldest_ms {
            Some(ms) => oldest.insert(partition.clone(), ms),
            None => oldest.remove(partition),
        };
    }

    /// A worker has ended since its partition is another's. If nobody revokes it, the group is joined anew
    /// after this time.
    pub(super) fn lost(&self, worker: &Worker<L>, rejoin: Duration) {
        self.counts.fenced.fetch_add(1, Ordering::Relaxed);
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&worker.at.partition);
        if let Some(slot) = slot.filter(|slot| Arc::ptr_eq(&slot.in_hand, &worker.in_hand)) {
            slot.lost = Some(Instant::now() + rejoin);
        }
    }

    fn has_to_rejoin(&self) -> bool {
        let now = Instant::now();
        let slots = self.slots.lock();
        let mut lost = slots.values().filter_map(|slot| slot.lost);
        lost.any(|when| when <= now)
    }

    pub(super) fn halt(&self, partition: Partition, why: String) {
        self.halted.lock().insert(partition, why);
    }

    pub(super) fn set_failure(&self, failure: Option<String>) {
        *self.failure.lock() = failure;
    }

    fn status(&self) -> ConsumerStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut partitions: Vec<Partition> = self.slots.lock().keys().cloned().collect();
        partitions.sort();
        let mut lag = *self.lag.lock();
        let in_hand = |slot: &Slot| slot.in_hand.load(Ordering::Relaxed);
        lag.waiting += self.slots.lock().values().map(in_hand).sum::<i64>();
        let oldest = self.oldest.lock().values().copied().min();
        lag.oldest_ms = oldest.map_or(0, |ms| (now_ms() - ms).max(0));
        let halted: Vec<_> = self.halted.lock().clone().into_iter().collect();
        let mut alarm = lag.alarm(&self.options.threshold);
        if !halted.is_empty() {
            let text = format!("{} partitions are halted", halted.len());
            alarm = Some(alarm.map_or(text.clone(), |alarm| format!("{alarm}, {text}")));
        }
        ConsumerStatus {
            partitions,
            applied: read(&self.counts.applied),
            duplicates: read(&self.counts.duplicates),
            gaps: read(&self.counts.gaps),
            dead: read(&self.counts.dead),
            retries: read(&self.counts.retries),
            fenced: read(&self.counts.fenced),
            halted,
            lag,
            alarm,
            failure: self.failure.lock().clone(),
        }
    }
}

/// A running consumer. Dropping it stops it without waiting.
pub struct Consumer<L: Ledger> {
    shared: Arc<Shared<L>>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl<L: Ledger> Consumer<L> {
    /// Joins the group and starts to consume, on the current tokio runtime.
    ///
    /// # Errors
    /// `Invalid` for settings that can't be; what the broker says to subscribing.
    pub async fn start(
        ledger: L,
        broker: Arc<dyn Broker>,
        handler: Arc<dyn Handler<L::Connection>>,
        options: ConsumerOptions,
    ) -> Result<Consumer<L>> {
        if options.name.is_empty() || options.topics.is_empty() || options.attempts == 0 {
            let text = "a consumer has a name, topics, and at least one attempt";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if options.on_gap == OnGap::Accept && options.on_failure == OnFailure::ParkKey {
            let text = "who accepts gaps goes on without what is dead: choose SkipMessage or Halt";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            ledger,
            handler,
            options,
            stopped: stopped.clone(),
            slots: Mutex::default(),
            counts: Counts::default(),
            next: Mutex::default(),
            oldest: Mutex::default(),
            halted: Mutex::default(),
            failure: Mutex::default(),
            lag: Mutex::default(),
        });
        let positions = Arc::new(Rebalance {
            shared: Arc::clone(&shared),
        });
        let joining = Joining { broker, positions };
        let subscription = joining.join(&shared.options).await?;
        let fetching = fetch(Arc::clone(&shared), joining, subscription, stopped.clone());
        let tasks = vec![
            tokio::spawn(fetching),
            tokio::spawn(look_after(Arc::clone(&shared), stopped)),
        ];
        Ok(Consumer {
            shared,
            stop,
            tasks,
        })
    }

    /// How it stands.
    pub fn status(&self) -> ConsumerStatus {
        self.shared.status()
    }

    /// Finishes what is under way, tells the broker the positions, leaves the group, and ends.
    pub async fn drain(mut self) {
        let _ = self.stop.send(true);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }
}

impl<L: Ledger> Drop for Consumer<L> {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

/// How a group is joined, the first time and anew.
struct Joining {
    broker: Arc<dyn Broker>,
    positions: Arc<dyn Positions>,
}

impl Joining {
    async fn join(&self, options: &ConsumerOptions) -> Result<Box<dyn Subscription>> {
        let group = options.group.as_ref().unwrap_or(&options.name);
        let positions = Arc::clone(&self.positions);
        self.broker
            .subscribe(group, &options.topics, positions)
            .await
    }
}

async fn fetch<L: Ledger>(
    shared: Arc<Shared<L>>,
    joining: Joining,
    subscription: Box<dyn Subscription>,
    mut stopped: watch::Receiver<bool>,
) {
    let options = &shared.options;
    let mut subscription = Some(subscription);
    let mut wait = Backoff::new(options.retry_min, options.retry_max);
    let mut told = Instant::now();
    while !*stopped.borrow() {
        if shared.has_to_rejoin()
            && let Some(old) = subscription.take()
        {
            end(&shared, old).await;
        }
        let fetched = match &mut subscription {
            Some(joined) => joined.next(FETCH, FETCH_WAIT).await,
            None => joining.join(options).await.map(|joined| {
                subscription = Some(joined);
                Vec::new()
            }),
        };
        match fetched {
            Ok(messages) => {
                wait.reset();
                hand_out(&shared, messages, &mut stopped).await;
            }
            Err(error) => {
                shared.set_failure(Some(error.to_string()));
                tokio::select! {
                    _ = tokio::time::sleep(wait.next()) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            }
        }
        if told.elapsed() >= options.upkeep
            && let Some(joined) = &mut subscription
        {
            told = Instant::now();
            tell(&shared, joined.as_mut()).await;
            measure(&shared, joined.as_mut()).await;
        }
    }
    if let Some(joined) = subscription {
        end(&shared, joined).await;
    }
}

/// Lets the workers finish, tells the broker the positions, and leaves the group.
async fn end<L: Ledger>(shared: &Arc<Shared<L>>, mut subscription: Box<dyn Subscription>) {
    let slots: Vec<Slot> = shared.slots.lock().drain().map(|(_, slot)| slot).collect();
    for slot in slots {
        drop(slot.queue);
        let _ = slot.task.await;
    }
    tell(shared, subscription.as_mut()).await;
    subscription.leave().await;
}

/// Gives each partition's messages to its worker. Those of partitions without one, or of an earlier
/// assignment, are dropped: whoever has the partition gets them from its position.
async fn hand_out<L: Ledger>(
    shared: &Arc<Shared<L>>,
    messages: Vec<Delivery>,
    stopped: &mut watch::Receiver<bool>,
) {
    let mut by_partition: HashMap<(Partition, u64), Vec<Delivery>> = HashMap::new();
    for message in messages {
        let of = (message.partition.clone(), message.assignment);
        by_partition.entry(of).or_default().push(message);
    }
    for ((partition, assignment), messages) in by_partition {
        let slot = {
            let slots = shared.slots.lock();
            let slot = slots.get(&partition);
            let slot = slot.filter(|slot| slot.assignment == assignment);
            slot.map(|slot| (slot.queue.clone(), Arc::clone(&slot.in_hand)))
        };
        let Some((queue, in_hand)) = slot else {
            continue;
        };
        in_hand.fetch_add(messages.len() as i64, Ordering::Relaxed);
        tokio::select! {
            _ = queue.send(messages) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

async fn tell<L: Ledger>(shared: &Arc<Shared<L>>, subscription: &mut dyn Subscription) {
    let next: Vec<(Partition, i64)> = shared.next.lock().drain().collect();
    if !next.is_empty()
        && let Err(error) = subscription.commit(next).await
    {
        tracing::debug!(%error, "the broker was not told the positions; they are advisory");
    }
}

async fn measure<L: Ledger>(shared: &Arc<Shared<L>>, subscription: &mut dyn Subscription) {
    let behind = subscription.behind().await.unwrap_or(0);
    shared.lag.lock().waiting = behind;
}

/// Messages that wait, wishes, memory of ids, counts.
async fn look_after<L: Ledger>(shared: Arc<Shared<L>>, mut stopped: watch::Receiver<bool>) {
    let options = &shared.options;
    let mut forgotten = Instant::now();
    while !*stopped.borrow() {
        let dealt = replay::run(&shared).await;
        if let Err(error) = &dealt {
            shared.set_failure(Some(error.to_string()));
        }
        if let Ok(count) = shared.ledger.count(&options.name).await {
            shared.lag.lock().parked = count;
        }
        if forgotten.elapsed() > Duration::from_secs(60) {
            forgotten = Instant::now();
            let before = now_ms() - options.remember.as_millis() as i64;
            if let Err(error) = shared.ledger.forget(&options.name, before).await {
                tracing::debug!(%error, "old ids are forgotten later");
            }
        }
        if dealt.is_ok_and(|dealt| dealt > 0) {
            continue;
        }
        tokio::select! {
            _ = tokio::time::sleep(options.upkeep) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
}

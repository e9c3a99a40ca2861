//! The worker of one part: read, publish, save.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Shared;
use super::rows::{Sorted, Stream, Wanted, hold_back, outgoing, sort_out};
use crate::backoff::Backoff;
use crate::broker::{Outbatch, Outcomes, Outgoing};
use crate::points;
use crate::store::{Change, Claim, Fence, Most, Progress, Read, Row, Unpark, Wish};
use crate::{ErrorKind, Level, Result};

pub(super) struct Worker {
    shared: Arc<Shared>,
    fence: Fence,
    progress: Progress,
    /// The progress that the store has.
    saved: Progress,
    /// Since when the store lacks something of it.
    unsaved_since: Option<Instant>,
    parked: HashSet<Stream>,
    until: Arc<Mutex<Instant>>,
    stopped: watch::Receiver<bool>,
    hint: Arc<Notify>,
    /// When wishes are looked at next, and the floor is moved although nothing came.
    upkeep: Instant,
    /// At most so many at once: the setting, or fewer after a batch was refused as a whole.
    rows: usize,
    /// Whether the next message is to be judged by itself.
    alone: bool,
    /// Whether it is known what became of the planned batch (transactional brokers only).
    recovered: bool,
}

/// What a round came to.
pub(super) enum Round {
    /// More is there: look again at once.
    Busy,
    /// All that was there is published. What comes next is left a moment to gather, so that a look, a request to
    /// the broker and a save are shared by several messages when there are many a second.
    CaughtUp,
    /// There was nothing.
    Idle,
    /// The broker refused for now.
    Refused(String),
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        claim: Claim,
        until: Arc<Mutex<Instant>>,
        stopped: watch::Receiver<bool>,
    ) -> Worker {
        let hint = shared.store.hint();
        Worker {
            rows: shared.options.batch,
            alone: false,
            shared,
            fence: claim.fence,
            saved: claim.progress.clone(),
            unsaved_since: None,
            progress: claim.progress,
            parked: claim.parked,
            until,
            stopped,
            hint,
            upkeep: Instant::now(),
            recovered: false,
        }
    }
}

/// Works until told to stop, or until the part is another's.
pub(super) async fn run(mut worker: Worker) {
    let options = worker.shared.options.clone();
    let mut idle = Backoff::exact(options.poll_min, options.poll_max);
    let mut refused = Backoff::new(options.retry_min, options.retry_max);
    while !*worker.stopped.borrow() {
        if Instant::now() >= *worker.until.lock() {
            // The lease may have ended: nothing is published until the holder has renewed it.
            worker.pause(options.poll_max, false).await;
            continue;
        }
        let round = if worker.recovered {
            worker.round().await
        } else {
            worker.recover().await.map(|()| Round::Busy)
        };
        let failure = match round {
            Ok(Round::Busy) => {
                idle.reset();
                None
            }
            Ok(Round::CaughtUp) => {
                idle.reset();
                worker.pause(options.poll_min, false).await;
                None
            }
            Ok(Round::Idle) => {
                let wait = idle.next().min(worker.save_in());
                worker.pause(wait, true).await;
                continue;
            }
            Ok(Round::Refused(why)) => Some(why),
            Err(error) if error.kind() == ErrorKind::Fenced => {
                tracing::warn!(part = worker.fence.part, %error, "lost a part");
                worker.shared.counts.fenced.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(error) => Some(error.to_string()),
        };
        let is_failure = failure.is_some();
        if let Some(why) = &failure {
            tracing::warn!(part = worker.fence.part, "put off: {why}");
            worker.shared.counts.retries.fetch_add(1, Ordering::Relaxed);
        } else {
            refused.reset();
        }
        *worker.shared.counts.failure.lock() = failure;
        if is_failure {
            worker.pause(refused.next(), false).await;
        }
    }
    if worker.unsaved_since.is_some()
        && let Err(error) = worker.save(&Change::default()).await
    {
        tracing::warn!(part = worker.fence.part, %error, "what was published last is published again");
    }
}

impl Worker {
    /// Waits; a hint that something was enqueued ends it early.
    async fn pause(&mut self, wait: Duration, hinted: bool) {
        let hint = Arc::clone(&self.hint);
        tokio::select! {
            _ = tokio::time::sleep(wait) => {}
            _ = hint.notified(), if hinted => {}
            _ = self.stopped.changed() => {}
        }
    }

    /// With a transactional broker: was the batch that the last holder planned published?
    async fn recover(&mut self) -> Result<()> {
        let broker = Arc::clone(&self.shared.broker);
        if !broker.is_transactional() {
            self.recovered = true;
            return Ok(());
        }
        let source = self.shared.store.source().to_owned();
        let last = broker.last_batch(&source, self.fence).await?;
        if let Some(newer) = last.filter(|last| *last > self.progress.batch) {
            // The database went back behind the broker. What that batch had is sent again; its number
            // must not be taken for that of a batch to come.
            self.progress.batch = newer;
            self.progress.plan = crate::Ranges::default();
        } else if last == Some(self.progress.batch) {
            let plan = std::mem::take(&mut self.progress.plan);
            // A batch of replayed messages: they were parked, and are so no longer.
            let wanted = self.shared.store.wishes(self.fence.part, Most::ALL);
            let ids = wanted.await?.into_iter().map(|parked| parked.row.id);
            let unparks = ids
                .filter(|id| plan.contains(*id))
                .map(Unpark::Gone)
                .collect();
            self.finish(&plan.ids(), i64::MAX, self.progress.floor);
            let change = Change {
                unparks,
                ..Change::default()
            };
            self.save(&change).await?;
            self.parked = self.shared.store.parked_streams(self.fence.part).await?;
        }
        self.recovered = true;
        Ok(())
    }

    async fn round(&mut self) -> Result<Round> {
        let now = Instant::now();
        let upkeep = now >= self.upkeep;
        if upkeep {
            self.upkeep = now + self.shared.options.upkeep;
            if let Some(round) = self.replay().await? {
                return Ok(round);
            }
        }
        let store = Arc::clone(&self.shared.store);
        let read = store.read(self.fence, &self.progress, self.most()).await?;
        points::pass("relay.read");
        if read.rows.is_empty() {
            // Saving is what lets a store learn that more is settled.
            if self.save_in().is_zero() || upkeep && !self.progress.done.is_empty() {
                self.finish(&[], i64::MAX, read.settled);
                self.save(&Change::default()).await?;
                points::pass("relay.saved");
            }
            return Ok(Round::Idle);
        }
        self.publish(read).await
    }

    fn most(&self) -> Most {
        Most {
            rows: self.rows,
            bytes: self.shared.options.batch_bytes,
        }
    }

    async fn publish(&mut self, read: Read) -> Result<Round> {
        let is_all = !read.cut;
        let settled = match read.rows.last() {
            Some(last) if read.cut => read.settled.min(last.id),
            _ => read.settled,
        };
        let (rows, parks) = hold_back(read.rows, &self.parked);
        let mut change = Change {
            parks,
            ..Change::default()
        };
        let mut done: Vec<i64> = Vec::new();
        let at_most_once = self.shared.options.level == Level::AtMostOnce;
        if at_most_once {
            done.extend(change.parks.iter().map(|park| park.row.id));
            done.extend(rows.iter().map(|row| row.id));
            self.finish(&done, i64::MAX, settled);
            change.sync = true;
            self.save(&change).await?;
            points::pass("relay.saved-first");
            self.note_parks(&change);
            done.clear();
            change = Change::default();
        }
        let outcomes = self.send(&rows).await?;
        points::pass("relay.published");
        let mut sorted = self.sort_out(rows, outcomes)?;
        let published = sorted.published.len() as u64;
        if self.is_in_doubt(&sorted) {
            return Ok(sorted.round());
        }
        // What stands behind a message that is sent again is met again.
        let is_open = |s: &Stream| sorted.put_off.contains(s);
        let parks = &mut change.parks;
        parks.retain(|park| !park.row.stream().as_ref().is_some_and(is_open));
        parks.append(&mut sorted.poison);
        done.append(&mut sorted.published);
        done.extend(change.parks.iter().map(|park| park.row.id));
        let first_open = sorted.open;
        if !(at_most_once && change.parks.is_empty()) {
            self.finish(&done, first_open.unwrap_or(i64::MAX), settled);
            self.unsaved_since.get_or_insert_with(Instant::now);
            // After a refusal the next round may be long in coming.
            if sorted.why.is_some() || self.must_save(&change, done.len()) {
                self.save(&change).await?;
                points::pass("relay.saved");
            }
        }
        let counts = &self.shared.counts;
        counts.published.fetch_add(published, Ordering::Relaxed);
        self.note_parks(&change);
        Ok(match sorted.round() {
            Round::Busy if is_all && first_open.is_none() => Round::CaughtUp,
            round => round,
        })
    }

    /// Whether what was done is saved with this round, and not with a later one.
    fn must_save(&self, change: &Change, done: usize) -> bool {
        !change.parks.is_empty()
            || done >= self.rows
            || self.shared.broker.is_transactional()
            || self.save_in().is_zero()
    }

    /// How long it may be until what was published is saved.
    fn save_in(&self) -> Duration {
        let every = self.shared.options.save_every;
        let since = self.unsaved_since;
        since.map_or(Duration::MAX, |since| every.saturating_sub(since.elapsed()))
    }

    /// What is parked by now.
    fn note_parks(&mut self, change: &Change) {
        for park in &change.parks {
            let (part, reason) = (self.fence.part, park.reason.as_str());
            tracing::warn!(part, reason, "parked a message");
        }
        let parks = change.parks.len() as u64;
        let counter = &self.shared.counts.parked;
        counter.fetch_add(parks, Ordering::Relaxed);
        let streams = change.parks.iter().filter_map(|park| park.row.stream());
        self.parked.extend(streams);
    }

    /// Sorts outcomes, and sends fewer or more at once from now on.
    fn sort_out(&mut self, rows: Vec<Row>, outcomes: Outcomes) -> Result<Sorted> {
        let sent = rows.len();
        let sorted = sort_out(rows, outcomes, self.alone)?;
        if sorted.together {
            tracing::warn!(part = self.fence.part, sent, why = ?sorted.why, "refused together");
            self.rows = (sent / 2).max(1);
            self.alone = self.rows == 1;
        } else if sorted.why.is_none() {
            self.rows = (self.rows * 2).min(self.shared.options.batch);
            self.alone = false;
        }
        Ok(sorted)
    }

    /// Whether it is not known if a transaction was committed: that is asked before anything is sent again.
    fn is_in_doubt(&mut self, sorted: &Sorted) -> bool {
        let refused = sorted.why.is_some() && sorted.poison.is_empty();
        let is_in_doubt = refused && self.shared.broker.is_transactional();
        if is_in_doubt {
            self.recovered = false;
        }
        is_in_doubt
    }

    /// Publishes rows; with a transactional broker their ids are planned first.
    async fn send(&mut self, rows: &[Row]) -> Result<Outcomes> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let broker = Arc::clone(&self.shared.broker);
        if broker.is_transactional() {
            self.plan(rows.iter().map(|row| row.id)).await?;
        }
        let source = self.shared.store.sequences(self.fence.part);
        let messages: Vec<Outgoing> = rows.iter().map(|r| outgoing(r, &source, false)).collect();
        Ok(self.send_messages(&messages).await)
    }

    /// Writes down what the next transaction has, before it is begun.
    async fn plan(&mut self, ids: impl Iterator<Item = i64>) -> Result<()> {
        self.progress.batch += 1;
        self.progress.plan = ids.collect();
        let change = Change {
            sync: true,
            ..Change::default()
        };
        self.save(&change).await?;
        points::pass("relay.planned");
        Ok(())
    }

    async fn send_messages(&self, messages: &[Outgoing]) -> Outcomes {
        let batch = Outbatch {
            source: self.shared.store.source(),
            fence: self.fence,
            number: self.progress.batch,
            messages,
            alone: self.alone && messages.len() == 1,
        };
        self.shared.broker.publish(batch).await
    }

    /// Marks ids as done and moves the floor: up to what is settled, never past an open row.
    fn finish(&mut self, ids: &[i64], first_open: i64, settled: i64) {
        for id in ids {
            self.progress.done.insert(*id);
        }
        let floor = settled.min(first_open.saturating_sub(1));
        self.progress.floor = self.progress.floor.max(floor);
        self.progress.done.remove_through(self.progress.floor);
        self.progress.plan = crate::Ranges::default();
    }

    /// Saves. If that fails, the progress is again what the store has: what was published since is
    /// published again, and what was to be parked is met again.
    async fn save(&mut self, change: &Change) -> Result<()> {
        let store = Arc::clone(&self.shared.store);
        let saved = store.save(self.fence, &self.progress, change).await;
        self.unsaved_since = None;
        if saved.is_ok() {
            self.saved = self.progress.clone();
        } else {
            self.progress = self.saved.clone();
            self.recovered = false;
        }
        saved
    }

    /// Sends, or leaves out, what operators asked for. `None` when nobody asked.
    async fn replay(&mut self) -> Result<Option<Round>> {
        let store = Arc::clone(&self.shared.store);
        let wanted = store.wishes(self.fence.part, self.most());
        let wanted = Wanted::of(wanted.await?);
        if wanted.send.is_empty() && wanted.unparks.is_empty() {
            return Ok(None);
        }
        let skips: HashSet<i64> = {
            let skips = wanted.send.iter().filter(|p| p.wish == Wish::Skip);
            skips.map(|parked| parked.row.id).collect()
        };
        let source = store.sequences(self.fence.part);
        let rows: Vec<Row> = wanted.send.into_iter().map(|parked| parked.row).collect();
        let messages: Vec<Outgoing> = rows
            .iter()
            .map(|row| outgoing(row, &source, skips.contains(&row.id)))
            .collect();
        let outcomes = if messages.is_empty() {
            Vec::new()
        } else {
            if self.shared.broker.is_transactional() {
                self.plan(rows.iter().map(|row| row.id)).await?;
            }
            self.send_messages(&messages).await
        };
        points::pass("relay.replayed");
        let mut sorted = self.sort_out(rows, outcomes)?;
        if self.is_in_doubt(&sorted) {
            return Ok(Some(sorted.round()));
        }
        self.progress.plan = crate::Ranges::default();
        let gone = sorted.published.iter().map(|id| Unpark::Gone(*id));
        let back = std::mem::take(&mut sorted.poison).into_iter().map(|park| {
            let id = park.row.id;
            let (wish, reason) = match skips.contains(&id) {
                true => (Wish::Skip, format!("its skip record: {}", park.reason)),
                false => (Wish::Retry, park.reason),
            };
            Unpark::Back { id, wish, reason }
        });
        let change = Change {
            unparks: wanted.unparks.into_iter().chain(gone).chain(back).collect(),
            ..Change::default()
        };
        self.save(&change).await?;
        let counts = &self.shared.counts;
        let published = sorted.published.len() as u64;
        counts.published.fetch_add(published, Ordering::Relaxed);
        // What is still parked decides which streams stay held back.
        self.parked = store.parked_streams(self.fence.part).await?;
        self.upkeep = Instant::now();
        Ok(Some(sorted.round()))
    }
}

//! The worker of one partition: batches, single messages with retries, the dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::apply::{self, Claimed, Done, Trouble};
use super::consumer::Shared;
use super::ledger::{Ledger, LedgerTx, State};
use super::{Failure, OnFailure};
use crate::backoff::Backoff;
use crate::{Delivery, ErrorKind, Level, points};

pub(super) struct Worker<L: Ledger> {
    pub(super) shared: Arc<Shared<L>>,
    pub(super) at: Claimed,
    pub(super) inbox: mpsc::Receiver<Vec<Delivery>>,
    /// How many messages are in the queue or worked on.
    pub(super) in_hand: Arc<AtomicI64>,
    pub(super) stopped: watch::Receiver<bool>,
}

/// Why a worker ends before its queue does.
enum End {
    /// Told to stop.
    Stopped,
    /// The partition is another consumer's.
    Fenced,
    /// Its position is not where it was left.
    Moved(String),
    /// It has to stop, for this reason.
    Halted(String),
}

/// Works until the queue is closed, the consumer stops, or the partition can't go on.
pub(super) async fn run<L: Ledger>(mut worker: Worker<L>) {
    loop {
        let batch = tokio::select! {
            biased;
            _ = worker.stopped.wait_for(|stopped| *stopped) => return,
            batch = worker.inbox.recv() => batch,
        };
        let Some(batch) = batch else {
            return;
        };
        let oldest = batch.iter().filter_map(Delivery::created_ms).min();
        worker.shared.working(&worker.at.partition, oldest);
        let end = worker.work(&batch).await;
        worker.shared.working(&worker.at.partition, None);
        let count = batch.len() as i64;
        worker.in_hand.fetch_sub(count, Ordering::Relaxed);
        match end {
            Ok(()) => {}
            Err(End::Stopped) => return,
            Err(End::Fenced) => {
                let rejoin = worker.shared.options.rejoin;
                worker.shared.lost(&worker, rejoin);
                return;
            }
            Err(End::Moved(why)) => {
                tracing::warn!(partition = ?worker.at.partition, "claimed anew: {why}");
                worker.shared.lost(&worker, Duration::ZERO);
                return;
            }
            Err(End::Halted(why)) => {
                tracing::error!(partition = ?worker.at.partition, "halted: {why}");
                worker.shared.halt(worker.at.partition.clone(), why);
                return;
            }
        }
    }
}

impl<L: Ledger> Worker<L> {
    async fn work(&mut self, batch: &[Delivery]) -> Result<(), End> {
        let size = self.shared.options.batch.max(1);
        // What is left, first ones last.
        let mut left: Vec<&[Delivery]> = batch.chunks(size).rev().collect();
        while let Some(chunk) = left.pop() {
            let together = chunk.len() > 1 && self.shared.options.level != Level::AtMostOnce;
            if !together {
                for message in chunk {
                    self.one(message).await?;
                }
            } else if !self.try_together(chunk).await? {
                let (first, second) = chunk.split_at(chunk.len() / 2);
                left.extend([second, first]);
            }
        }
        Ok(())
    }

    /// All messages in one transaction; false when that can't be: one of them has to be found by halves, and looked
    /// at by itself.
    async fn try_together(&mut self, chunk: &[Delivery]) -> Result<bool, End> {
        match self.together(chunk).await {
            Ok(done) => {
                points::pass("inbox.batch-committed");
                let all = done.len() == chunk.len();
                for one in done {
                    self.shared.count(one);
                }
                if all {
                    self.shared.done(&self.at.partition, chunk);
                }
                Ok(all)
            }
            Err(Trouble::Moved(why)) => Err(End::Moved(why)),
            Err(Trouble::Database(error)) if error.kind() == ErrorKind::Fenced => Err(End::Fenced),
            Err(_) => Ok(false),
        }
    }

    /// What became of each; of none when some were consumed already.
    async fn together(&mut self, chunk: &[Delivery]) -> Result<Vec<Done>, Trouble> {
        let options = &self.shared.options;
        let handler = self.shared.handler.as_ref();
        let mut tx = self.shared.begin().await?;
        let mut done = Vec::with_capacity(chunk.len());
        if !apply::advance(&mut tx, options, &mut self.at, chunk).await? {
            return Ok(done);
        }
        if apply::handle_all(&mut tx, options, handler, chunk).await? {
            done.resize(chunk.len(), Done::Applied);
        } else {
            let mut together = apply::Together::new(&mut tx, options, chunk).await?;
            for message in chunk {
                done.push(together.apply(&mut tx, options, handler, message).await?);
            }
            together.save(&mut tx, options).await?;
        }
        points::pass("inbox.batch-applied");
        if let Some(last) = chunk.last() {
            apply::commit(tx, &mut self.at, last).await?;
        }
        Ok(done)
    }

    /// One message, until it is applied, dead, or the worker has to end.
    async fn one(&mut self, message: &Delivery) -> Result<(), End> {
        let options = self.shared.options.clone();
        let mut failures = 0;
        let mut wait = Backoff::new(options.retry_min, options.retry_max);
        loop {
            if *self.stopped.borrow() {
                return Err(End::Stopped);
            }
            let failure = match self.attempt(message).await {
                Ok(done) => {
                    points::pass("inbox.committed");
                    self.shared.set_failure(None);
                    self.shared.count(done);
                    self.note_done(message);
                    return Ok(());
                }
                Err(trouble) => self.bear(trouble)?,
            };
            // A failure counts only if the database answers: else it may be the cause.
            if let Some(failure) = failure {
                let answers = self.shared.begin().await.map(drop);
                if let Err(error) = answers {
                    self.shared.set_failure(Some(error.to_string()));
                } else {
                    failures += 1;
                    self.shared.counts.retries.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(failures, reason = failure.reason, "a handler failed");
                    if !failure.retry || failures >= options.attempts {
                        return self.give_up(message, failure, failures).await;
                    }
                }
            }
            self.pause(&mut wait).await;
        }
    }

    fn note_done(&self, message: &Delivery) {
        let one = std::slice::from_ref(message);
        self.shared.done(&self.at.partition, one);
    }

    /// What a transaction's trouble means: the worker's end, a handler's failure, or that the database is to
    /// be waited for.
    fn bear(&self, trouble: Trouble) -> Result<Option<Failure>, End> {
        match trouble {
            Trouble::Halt(why) => Err(End::Halted(why)),
            Trouble::Moved(why) => Err(End::Moved(why)),
            Trouble::Database(error) if error.kind() == ErrorKind::Fenced => Err(End::Fenced),
            Trouble::Database(error) => {
                self.shared.set_failure(Some(error.to_string()));
                Ok(None)
            }
            Trouble::Handler(failure) => Ok(Some(failure)),
        }
    }

    async fn pause(&mut self, wait: &mut Backoff) {
        tokio::select! {
            _ = tokio::time::sleep(wait.next()) => {}
            _ = self.stopped.wait_for(|stopped| *stopped) => {}
        }
    }

    async fn attempt(&mut self, message: &Delivery) -> Result<Done, Trouble> {
        let options = &self.shared.options;
        let handler = self.shared.handler.as_ref();
        let one = std::slice::from_ref(message);
        let mut tx = self.shared.begin().await?;
        if !apply::advance(&mut tx, options, &mut self.at, one).await? {
            return Ok(Done::Duplicate);
        }
        points::pass("inbox.advanced");
        if options.level == Level::AtMostOnce {
            apply::commit(tx, &mut self.at, message).await?;
            points::pass("inbox.position-first");
            // Never again, whatever becomes of it.
            return Ok(self.once(message).await.unwrap_or_else(|trouble| {
                tracing::warn!(?trouble, "a message at most once was lost");
                Done::Duplicate
            }));
        }
        let done = apply::apply(&mut tx, options, handler, message).await?;
        points::pass("inbox.applied");
        apply::commit(tx, &mut self.at, message).await?;
        Ok(done)
    }

    /// Applies a message whose position is committed already.
    async fn once(&self, message: &Delivery) -> Result<Done, Trouble> {
        let options = &self.shared.options;
        let handler = self.shared.handler.as_ref();
        let mut tx = self.shared.begin().await?;
        let done = apply::apply(&mut tx, options, handler, message).await?;
        tx.commit().await?;
        Ok(done)
    }

    /// The message is dead: it is set aside, or the partition halts.
    async fn give_up(
        &mut self,
        message: &Delivery,
        failure: Failure,
        failures: u32,
    ) -> Result<(), End> {
        let options = self.shared.options.clone();
        let state = match options.on_failure {
            OnFailure::ParkKey => State::Dead,
            OnFailure::SkipMessage => State::Passed,
            OnFailure::Halt => return Err(End::Halted(failure.reason)),
        };
        let mut wait = Backoff::new(options.retry_min, options.retry_max);
        loop {
            match self.bury(message, state, &failure, failures).await {
                Ok(()) => {
                    tracing::warn!(reason = failure.reason, "a message is dead");
                    self.shared.counts.dead.fetch_add(1, Ordering::Relaxed);
                    self.note_done(message);
                    return Ok(());
                }
                Err(trouble) => self.bear(trouble)?,
            };
            if *self.stopped.borrow() {
                return Err(End::Stopped);
            }
            self.pause(&mut wait).await;
        }
    }

    async fn bury(
        &mut self,
        message: &Delivery,
        state: State,
        failure: &Failure,
        failures: u32,
    ) -> Result<(), Trouble> {
        let options = &self.shared.options;
        let one = std::slice::from_ref(message);
        let mut tx = self.shared.begin().await?;
        if !apply::advance(&mut tx, options, &mut self.at, one).await? {
            return Ok(());
        }
        let reason = failure.reason.clone();
        let tries = i64::from(failures);
        apply::bury(&mut tx, options, message, state, reason, tries).await?;
        points::pass("inbox.buried");
        apply::commit(tx, &mut self.at, message).await
    }
}

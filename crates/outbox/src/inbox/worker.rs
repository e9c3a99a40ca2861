//! The worker of one partition: batches, single messages with retries, the dead.

use std::sync::Arc;
use std::sync::atomic::Ordering;

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
    pub(super) stopped: watch::Receiver<bool>,
}

/// Why a worker ends before its queue does.
enum End {
    /// Told to stop.
    Stopped,
    /// The partition is another consumer's.
    Fenced,
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
        match end {
            Ok(()) => {}
            Err(End::Stopped) => return,
            Err(End::Fenced) => {
                worker.shared.counts.fenced.fetch_add(1, Ordering::Relaxed);
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
        for chunk in batch.chunks(size) {
            let together = chunk.len() > 1 && self.shared.options.level != Level::AtMostOnce;
            if together && self.try_together(chunk).await? {
                continue;
            }
            for message in chunk {
                self.one(message).await?;
            }
        }
        Ok(())
    }

    /// All messages in one transaction; false when one of them needs to be looked at by itself.
    async fn try_together(&mut self, chunk: &[Delivery]) -> Result<bool, End> {
        let options = &self.shared.options;
        let tried: Result<Vec<Done>, Trouble> = async {
            let mut tx = self.shared.ledger.begin().await?;
            let mut done = Vec::with_capacity(chunk.len());
            if let Some(last) = chunk.last() {
                apply::advance(&mut tx, options, &self.at, last).await?;
            }
            for message in chunk {
                let handler = self.shared.handler.as_ref();
                done.push(apply::apply(&mut tx, options, handler, message).await?);
            }
            points::pass("inbox.batch-applied");
            tx.commit().await?;
            Ok(done)
        }
        .await;
        match tried {
            Ok(done) => {
                points::pass("inbox.batch-committed");
                for one in done {
                    self.shared.count(one);
                }
                self.shared.done(&self.at.partition, chunk);
                Ok(true)
            }
            Err(Trouble::Database(error)) if error.kind() == ErrorKind::Fenced => Err(End::Fenced),
            Err(_) => Ok(false),
        }
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
            match self.attempt(message).await {
                Ok(done) => {
                    points::pass("inbox.committed");
                    self.shared.set_failure(None);
                    self.shared.count(done);
                    self.shared
                        .done(&self.at.partition, std::slice::from_ref(message));
                    return Ok(());
                }
                Err(Trouble::Halt(why)) => return Err(End::Halted(why)),
                Err(Trouble::Database(error)) if error.kind() == ErrorKind::Fenced => {
                    return Err(End::Fenced);
                }
                Err(Trouble::Database(error)) => {
                    self.shared.set_failure(Some(error.to_string()));
                }
                // A failure counts only if the database answers: else it may be the cause.
                Err(Trouble::Handler(failure)) => {
                    let answers = self.shared.ledger.begin().await.map(drop);
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
            }
            self.pause(&mut wait).await;
        }
    }

    async fn pause(&mut self, wait: &mut Backoff) {
        tokio::select! {
            _ = tokio::time::sleep(wait.next()) => {}
            _ = self.stopped.wait_for(|stopped| *stopped) => {}
        }
    }

    async fn attempt(&self, message: &Delivery) -> Result<Done, Trouble> {
        let options = &self.shared.options;
        let handler = self.shared.handler.as_ref();
        let mut tx = self.shared.ledger.begin().await?;
        apply::advance(&mut tx, options, &self.at, message).await?;
        points::pass("inbox.advanced");
        if options.level == Level::AtMostOnce {
            tx.commit().await?;
            points::pass("inbox.position-first");
            tx = self.shared.ledger.begin().await?;
            // Never again, whatever becomes of it.
            if let Err(trouble) = apply::apply(&mut tx, options, handler, message).await {
                tracing::warn!(?trouble, "a message at most once was lost");
                return Ok(Done::Duplicate);
            }
            tx.commit().await?;
            return Ok(Done::Applied);
        }
        let done = apply::apply(&mut tx, options, handler, message).await?;
        points::pass("inbox.applied");
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
            let buried: Result<(), Trouble> = async {
                let mut tx = self.shared.ledger.begin().await?;
                apply::advance(&mut tx, &options, &self.at, message).await?;
                let reason = failure.reason.clone();
                let tries = i64::from(failures);
                apply::bury(&mut tx, &options, message, state, reason, tries).await?;
                points::pass("inbox.buried");
                tx.commit().await?;
                Ok(())
            }
            .await;
            match buried {
                Ok(()) => {
                    tracing::warn!(reason = failure.reason, "a message is dead");
                    self.shared.counts.dead.fetch_add(1, Ordering::Relaxed);
                    self.shared
                        .done(&self.at.partition, std::slice::from_ref(message));
                    return Ok(());
                }
                Err(Trouble::Halt(why)) => return Err(End::Halted(why)),
                Err(Trouble::Database(error)) if error.kind() == ErrorKind::Fenced => {
                    return Err(End::Fenced);
                }
                Err(Trouble::Database(error)) => self.shared.set_failure(Some(error.to_string())),
                Err(Trouble::Handler(_)) => {}
            }
            if *self.stopped.borrow() {
                return Err(End::Stopped);
            }
            self.pause(&mut wait).await;
        }
    }
}

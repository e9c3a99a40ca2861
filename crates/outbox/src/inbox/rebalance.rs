//! Partitions that come and go: claims them in the database, and starts and ends their workers.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use tokio::sync::mpsc;

use super::apply::Claimed;
use super::consumer::{Shared, Slot};
use super::ledger::Ledger;
use super::worker::{self, Worker};
use crate::Partition;
use crate::backoff::Backoff;
use crate::broker::{Positions, Start};
use crate::store::BoxFuture;

/// So many fetches may wait for a worker before fetching waits too.
const QUEUE: usize = 4;
/// How long workers may take to end what is under way when their partitions are revoked.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Rebalance<L: Ledger> {
    pub(super) shared: Arc<Shared<L>>,
}

impl<L: Ledger> Rebalance<L> {
    /// Claims a partition, however long the database takes, unless the consumer stops.
    async fn claim(&self, partition: Partition, assignment: u64) -> Start {
        let options = &self.shared.options;
        let mut wait = Backoff::new(options.retry_min, options.retry_max);
        let mut stopped = self.shared.stopped.clone();
        loop {
            let claimed = self.shared.ledger.claim(&options.name, &partition).await;
            let position = match claimed {
                Ok(position) => position,
                Err(error) => {
                    self.shared.set_failure(Some(error.to_string()));
                    if *stopped.borrow() {
                        return Start::Committed;
                    }
                    tokio::select! {
                        _ = tokio::time::sleep(wait.next()) => {}
                        _ = stopped.wait_for(|stopped| *stopped) => {}
                    }
                    continue;
                }
            };
            let (sender, inbox) = mpsc::channel(QUEUE);
            let in_hand = Arc::new(AtomicI64::new(0));
            let worker = Worker {
                shared: Arc::clone(&self.shared),
                at: Claimed {
                    partition: partition.clone(),
                    generation: position.generation,
                    next: position.next.unwrap_or(-1),
                    unsure: false,
                },
                inbox,
                in_hand: Arc::clone(&in_hand),
                stopped: stopped.clone(),
            };
            let task = tokio::spawn(worker::run(worker));
            let slot = Slot {
                assignment,
                queue: sender,
                in_hand,
                lost: None,
                task,
            };
            self.shared.slots.lock().insert(partition, slot);
            return position.next.map_or(Start::Committed, Start::At);
        }
    }
}

impl<L: Ledger> Positions for Rebalance<L> {
    fn assigned(&self, partitions: Vec<Partition>, assignment: u64) -> BoxFuture<'_, Vec<Start>> {
        Box::pin(async move {
            let mut starts = Vec::with_capacity(partitions.len());
            for partition in partitions {
                starts.push(self.claim(partition, assignment).await);
            }
            starts
        })
    }

    fn revoked(&self, partitions: Vec<Partition>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // What is under way may end; what it would write later is refused by the generation.
            let taken: Vec<_> = {
                let mut slots = self.shared.slots.lock();
                let of = |partition| slots.remove(&partition);
                let taken = partitions.into_iter().filter_map(of);
                taken.map(|slot| slot.task).collect()
            };
            let ended = futures_util::future::join_all(taken);
            if tokio::time::timeout(PATIENCE, ended).await.is_err() {
                tracing::warn!("partitions were taken from workers that are slow");
            }
        })
    }
}

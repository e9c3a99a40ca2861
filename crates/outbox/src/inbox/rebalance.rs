//! Partitions that come and go: claims them in the database, and starts and ends their workers.

use std::sync::Arc;

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
            let worker = Worker {
                shared: Arc::clone(&self.shared),
                at: Claimed {
                    partition: partition.clone(),
                    generation: position.generation,
                },
                inbox,
                stopped: stopped.clone(),
            };
            let task = tokio::spawn(worker::run(worker));
            let slot = Slot {
                assignment,
                queue: sender,
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
            for partition in partitions {
                let slot = self.shared.slots.lock().remove(&partition);
                let Some(slot) = slot else {
                    continue;
                };
                // What is under way may end; what it would write later is refused by the generation.
                drop(slot.queue);
                let patience = std::time::Duration::from_secs(2);
                if tokio::time::timeout(patience, slot.task).await.is_err() {
                    tracing::warn!(
                        ?partition,
                        "a partition was taken from a worker that is slow"
                    );
                }
            }
        })
    }
}

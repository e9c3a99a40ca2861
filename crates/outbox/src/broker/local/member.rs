//! A member of a group of the local broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::LocalBroker;
use crate::broker::{Positions, Start, Subscription};
use crate::store::BoxFuture;
use crate::{Delivery, Partition, Result};

/// A partition of this member's.
struct Held {
    next: i64,
    assignment: u64,
}

pub(super) struct Member {
    broker: LocalBroker,
    group: String,
    id: u64,
    positions: Arc<dyn Positions>,
    /// The partitions that are this member's, and the offset each goes on at.
    mine: BTreeMap<Partition, Held>,
    /// How often partitions were assigned.
    assignments: u64,
    /// The partition that is asked first next time, so that none starves.
    turn: usize,
}

impl Member {
    pub(super) fn new(
        broker: LocalBroker,
        group: String,
        id: u64,
        positions: Arc<dyn Positions>,
    ) -> Member {
        Member {
            broker,
            group,
            id,
            positions,
            mine: BTreeMap::new(),
            assignments: 0,
            turn: 0,
        }
    }

    /// Gives up what is another's by now, and takes what is new.
    async fn rebalance(&mut self) {
        let wanted = {
            let state = self.broker.inner.state.lock();
            let group = state.groups.get(&self.group);
            group.map_or(Vec::new(), |group| group.assigned(self.id))
        };
        if wanted.len() == self.mine.len() && wanted.iter().all(|p| self.mine.contains_key(p)) {
            return;
        }
        let lost = self.mine.keys().filter(|p| !wanted.contains(p)).cloned();
        let lost: Vec<Partition> = lost.collect();
        self.mine.retain(|partition, _| !lost.contains(partition));
        if !lost.is_empty() {
            self.positions.revoked(lost).await;
        }
        let gained = wanted.iter().filter(|p| !self.mine.contains_key(p));
        let gained: Vec<Partition> = gained.cloned().collect();
        if gained.is_empty() {
            return;
        }
        self.assignments += 1;
        let assignment = self.assignments;
        let starts = self.positions.assigned(gained.clone(), assignment).await;
        let state = self.broker.inner.state.lock();
        for (partition, start) in gained.into_iter().zip(starts) {
            let committed = state.groups.get(&self.group);
            let committed = committed.and_then(|group| group.position(&partition));
            let next = match start {
                Start::At(offset) => offset,
                Start::Committed => committed.unwrap_or(0),
            };
            self.mine.insert(partition, Held { next, assignment });
        }
    }

    fn take(&mut self, max: usize) -> Vec<Delivery> {
        let state = self.broker.inner.state.lock();
        let mut found = Vec::new();
        let count = self.mine.len();
        self.turn = self.turn.wrapping_add(1);
        let order = (0..count).map(|i| (i + self.turn) % count);
        let partitions: Vec<Partition> = self.mine.keys().cloned().collect();
        for index in order {
            let partition = &partitions[index];
            let (Some(logs), Some(held)) = (
                state.topics.get(&partition.topic),
                self.mine.get_mut(partition),
            ) else {
                continue;
            };
            let log = &logs[partition.number as usize];
            held.next = held.next.max(log.first());
            for (offset, record) in log.from(held.next).take(max - found.len()) {
                found.push(Delivery {
                    partition: partition.clone(),
                    offset,
                    assignment: held.assignment,
                    key: record.key.clone(),
                    headers: record.headers.clone(),
                    payload: record.payload.clone(),
                });
                held.next = offset + 1;
            }
        }
        found
    }
}

impl Subscription for Member {
    fn next(&mut self, max: usize, wait: Duration) -> BoxFuture<'_, Result<Vec<Delivery>>> {
        Box::pin(async move {
            let end = Instant::now() + wait;
            loop {
                let inner = Arc::clone(&self.broker.inner);
                let news = inner.news.notified();
                self.rebalance().await;
                let found = self.take(max);
                if !found.is_empty() || tokio::time::timeout_at(end, news).await.is_err() {
                    return Ok(found);
                }
            }
        })
    }

    fn commit(&mut self, next: Vec<(Partition, i64)>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.broker.commit(&self.group, next).await })
    }

    fn behind(&mut self) -> BoxFuture<'_, Result<i64>> {
        let state = self.broker.inner.state.lock();
        let mut behind = 0;
        for (partition, held) in &self.mine {
            if let Some(logs) = state.topics.get(&partition.topic) {
                let log = &logs[partition.number as usize];
                behind += log.end() - held.next.max(log.first());
            }
        }
        drop(state);
        Box::pin(async move { Ok(behind) })
    }

    fn leave(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mine = std::mem::take(&mut self.mine).into_keys().collect();
            self.positions.revoked(mine).await;
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.broker.inner.state.lock();
        if let Some(group) = state.groups.get_mut(&self.group) {
            group.leave(self.id);
        }
        drop(state);
        self.broker.inner.news.notify_waiters();
    }
}

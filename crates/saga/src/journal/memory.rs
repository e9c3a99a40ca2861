//! [`MemoryJournal`]: sagas in this process's memory. For tests, and for what need not outlive the process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_outbox::Message;
use quorate_outbox::store::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Append, Count, Due, Fence, Filter, Journal, Open, Record, Share, fenced};
use crate::Result;
use crate::machine::{Status, write_log};

/// Sagas in memory. Messages gather until somebody takes them ([`MemoryJournal::take_messages`]). Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct MemoryJournal {
    inner: Arc<Mutex<Inner>>,
    news: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    sagas: HashMap<Uuid, Record>,
    members: BTreeMap<String, (i64, Instant)>,
    epoch: i64,
    messages: Vec<Message>,
}

impl Inner {
    fn check(&self, fence: &Fence) -> Result<()> {
        let held = self.members.get(&fence.owner);
        if held.is_some_and(|(epoch, _)| *epoch == fence.epoch) {
            return Ok(());
        }
        Err(fenced(fence))
    }

    fn append(&mut self, one: &Append) -> Result<bool> {
        let known = self.sagas.get(&one.id).map_or(0, |saga| saga.seq);
        if known != one.seq {
            return Ok(false);
        }
        let saga = self.sagas.entry(one.id).or_insert_with(|| Record {
            id: one.id,
            name: one.name.clone(),
            version: one.version,
            key: one.key.clone(),
            seq: 0,
            status: one.status,
            wake_ms: None,
            started_ms: one.started_ms,
            log: String::new(),
        });
        write_log(&mut saga.log, &one.events)?;
        saga.seq += one.events.len() as i64;
        (saga.status, saga.wake_ms) = (one.status, one.wake_ms);
        self.messages.extend(one.messages.iter().cloned());
        Ok(true)
    }
}

impl MemoryJournal {
    /// An empty one.
    pub fn new() -> MemoryJournal {
        MemoryJournal::default()
    }

    /// Takes the messages that have gathered, oldest first.
    pub fn take_messages(&self) -> Vec<Message> {
        std::mem::take(&mut self.inner.lock().messages)
    }

    /// Waits until there are messages, and takes them.
    pub async fn next_messages(&self) -> Vec<Message> {
        loop {
            let news = self.news.notified();
            let taken = self.take_messages();
            if !taken.is_empty() {
                return taken;
            }
            news.await;
        }
    }
}

impl Journal for MemoryJournal {
    fn join<'a>(&'a self, owner: &'a str, ttl: Duration) -> BoxFuture<'a, Result<Fence>> {
        Box::pin(async move {
            let mut inner = self.inner.lock();
            inner.epoch += 1;
            let epoch = inner.epoch;
            inner
                .members
                .insert(owner.to_owned(), (epoch, Instant::now() + ttl));
            Ok(Fence {
                owner: owner.to_owned(),
                epoch,
            })
        })
    }

    fn beat<'a>(&'a self, fence: &'a Fence, ttl: Duration) -> BoxFuture<'a, Result<Share>> {
        Box::pin(async move {
            let mut inner = self.inner.lock();
            inner.check(fence)?;
            let now = Instant::now();
            inner
                .members
                .insert(fence.owner.clone(), (fence.epoch, now + ttl));
            inner.members.retain(|_, (_, until)| *until >= now);
            let rank = inner.members.keys().position(|owner| *owner == fence.owner);
            Ok(Share {
                rank: rank.unwrap_or(0) as u32,
                of: inner.members.len() as u32,
            })
        })
    }

    fn leave<'a>(&'a self, fence: &'a Fence) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut inner = self.inner.lock();
            if inner.check(fence).is_ok() {
                inner.members.remove(&fence.owner);
            }
            Ok(())
        })
    }

    fn append<'a>(
        &'a self,
        fence: Option<&'a Fence>,
        appends: &'a [Append],
    ) -> BoxFuture<'a, Result<Vec<bool>>> {
        Box::pin(async move {
            let written = {
                let mut inner = self.inner.lock();
                if let Some(fence) = fence {
                    inner.check(fence)?;
                }
                appends
                    .iter()
                    .map(|one| inner.append(one))
                    .collect::<Result<Vec<bool>>>()
            };
            self.news.notify_waiters();
            written
        })
    }

    fn load<'a>(&'a self, ids: &'a [Uuid]) -> BoxFuture<'a, Result<Vec<Record>>> {
        Box::pin(async move {
            let inner = self.inner.lock();
            Ok(ids
                .iter()
                .filter_map(|id| inner.sagas.get(id).cloned())
                .collect())
        })
    }

    fn due<'a>(
        &'a self,
        share: Share,
        known: &'a [(String, u32)],
        now_ms: i64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Due>> {
        Box::pin(async move {
            let known: HashSet<(&str, u32)> = known.iter().map(|(n, v)| (n.as_str(), *v)).collect();
            let inner = self.inner.lock();
            let mine = inner.sagas.values().filter(|saga| {
                share.has(saga.id) && known.contains(&(saga.name.as_str(), saga.version))
            });
            let mut wakes: Vec<(i64, Uuid)> = mine
                .filter_map(|saga| Some((saga.wake_ms?, saga.id)))
                .collect();
            wakes.sort();
            let due = wakes.iter().take_while(|(at, _)| *at <= now_ms).take(limit);
            let ids: Vec<Uuid> = due.map(|(_, id)| *id).collect();
            let next_ms = wakes.get(ids.len()).map(|(at, _)| *at);
            Ok(Due { ids, next_ms })
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, limit: usize) -> BoxFuture<'a, Result<Vec<Record>>> {
        Box::pin(async move {
            let inner = self.inner.lock();
            let fits = |saga: &&Record| {
                filter.status.is_none_or(|status| saga.status == status)
                    && filter.name.as_ref().is_none_or(|name| saga.name == *name)
            };
            let mut found: Vec<Record> = inner.sagas.values().filter(fits).cloned().collect();
            found.sort_by_key(|saga| (saga.started_ms, saga.id));
            found.truncate(limit);
            Ok(found)
        })
    }

    fn count(&self) -> BoxFuture<'_, Result<Vec<Count>>> {
        Box::pin(async move {
            let inner = self.inner.lock();
            let all = inner.sagas.values();
            Ok(counted(all.map(|saga| {
                (
                    (saga.name.as_str(), saga.version, saga.status),
                    saga.started_ms,
                )
            })))
        })
    }

    fn open(&self) -> BoxFuture<'_, Result<Open>> {
        Box::pin(async move {
            let inner = self.inner.lock();
            let all = inner.sagas.values();
            Ok(opened(all.map(|saga| (saga.status, saga.started_ms))))
        })
    }

    fn forget(&self, before_ms: i64, limit: usize) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let mut inner = self.inner.lock();
            let old = |saga: &&Record| saga.status.is_end() && saga.started_ms < before_ms;
            let gone: Vec<Uuid> = inner.sagas.values().filter(old).map(|s| s.id).collect();
            let gone = &gone[..gone.len().min(limit)];
            for id in gone {
                inner.sagas.remove(id);
            }
            Ok(gone.len() as u64)
        })
    }
}

/// A definition's name and version, and a standing.
type Kind<'a> = (&'a str, u32, Status);

/// Counts by definition and standing; of each is given when it began.
pub(super) fn counted<'a>(all: impl Iterator<Item = (Kind<'a>, i64)>) -> Vec<Count> {
    let mut counts: BTreeMap<Kind<'_>, (i64, i64)> = BTreeMap::new();
    for (of, started_ms) in all {
        let (sagas, oldest_ms) = counts.entry(of).or_insert((0, i64::MAX));
        *sagas += 1;
        *oldest_ms = started_ms.min(*oldest_ms);
    }
    let counts = counts.into_iter();
    let counts = counts.map(|((name, version, status), (sagas, oldest_ms))| Count {
        name: name.to_owned(),
        version,
        status,
        sagas,
        oldest_ms,
    });
    counts.collect()
}

/// Counts those that have not ended; of each is given when it began.
pub(super) fn opened(all: impl Iterator<Item = (Status, i64)>) -> Open {
    let mut open = Open::default();
    for (status, started_ms) in all.filter(|(status, _)| !status.is_end()) {
        match status {
            Status::Stuck => open.stuck += 1,
            _ => open.running += 1,
        }
        let oldest = open.oldest_ms.unwrap_or(started_ms);
        open.oldest_ms = Some(oldest.min(started_ms));
    }
    open
}

//! Coordinators that share, freeze, and wake up too late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::store::BoxFuture;
use serde_json::json;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::support::eventually;
use crate::journal::{
    Append, Count, Due, Fence, Filter, Journal, MemoryJournal, Open, Record, Share,
};
use crate::{
    Begin, Coordinator, CoordinatorOptions, Error, ErrorKind, Registry, Result, Saga, Status, Step,
};

/// A journal through a gate: while it is shut, its coordinator is as good as frozen.
#[derive(Clone)]
struct Gated {
    inner: MemoryJournal,
    gate: Arc<Semaphore>,
    refused: Arc<AtomicU64>,
    down: Arc<AtomicBool>,
}

impl Gated {
    fn new(inner: &MemoryJournal) -> Gated {
        Gated {
            inner: inner.clone(),
            gate: Arc::new(Semaphore::new(1)),
            refused: Arc::default(),
            down: Arc::default(),
        }
    }

    async fn pass(&self) -> Result<()> {
        let passed = self.gate.acquire().await;
        drop(passed);
        if self.down.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the database is gone"));
        }
        Ok(())
    }
}

impl Journal for Gated {
    fn join<'a>(&'a self, owner: &'a str, ttl: Duration) -> BoxFuture<'a, Result<Fence>> {
        Box::pin(async move {
            self.pass().await?;
            self.inner.join(owner, ttl).await
        })
    }

    fn beat<'a>(&'a self, fence: &'a Fence, ttl: Duration) -> BoxFuture<'a, Result<Share>> {
        Box::pin(async move {
            self.pass().await?;
            self.inner.beat(fence, ttl).await
        })
    }

    fn leave<'a>(&'a self, fence: &'a Fence) -> BoxFuture<'a, Result<()>> {
        self.inner.leave(fence)
    }

    fn append<'a>(
        &'a self,
        fence: Option<&'a Fence>,
        appends: &'a [Append],
    ) -> BoxFuture<'a, Result<Vec<bool>>> {
        Box::pin(async move {
            self.pass().await?;
            let written = self.inner.append(fence, appends).await;
            if written
                .as_ref()
                .is_err_and(|error| error.kind() == ErrorKind::Fenced)
            {
                self.refused.fetch_add(1, Ordering::SeqCst);
            }
            written
        })
    }

    fn load<'a>(&'a self, ids: &'a [Uuid]) -> BoxFuture<'a, Result<Vec<Record>>> {
        self.inner.load(ids)
    }

    fn due<'a>(
        &'a self,
        share: Share,
        known: &'a [(String, u32)],
        now_ms: i64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Due>> {
        Box::pin(async move {
            self.pass().await?;
            self.inner.due(share, known, now_ms, limit).await
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, limit: usize) -> BoxFuture<'a, Result<Vec<Record>>> {
        self.inner.list(filter, limit)
    }

    fn count(&self) -> BoxFuture<'_, Result<Vec<Count>>> {
        self.inner.count()
    }

    fn open(&self) -> BoxFuture<'_, Result<Open>> {
        self.inner.open()
    }

    fn forget(&self, before_ms: i64, limit: usize) -> BoxFuture<'_, Result<u64>> {
        self.inner.forget(before_ms, limit)
    }
}

fn registry() -> Registry {
    let step = Step::new("only", "nobody").deadline(Duration::from_secs(600));
    let saga = Saga::named("wait").step(step);
    Registry::new()
        .with(saga.build().expect("builds"))
        .expect("a registry")
}

async fn coordinator(journal: &Gated, broker: &Arc<LocalBroker>, owner: &str) -> Coordinator {
    let options = CoordinatorOptions {
        owner: owner.into(),
        lease: Duration::from_millis(600),
        tick: Duration::from_millis(50),
        ..CoordinatorOptions::default()
    };
    let journal = Arc::new(journal.clone());
    let started = Coordinator::start(journal, broker.clone(), registry(), options).await;
    started.expect("starts")
}

async fn share_of(coordinator: &Coordinator, of: u32) {
    eventually(&format!("one of {of}"), || async {
        let share = coordinator.status().share;
        share
            .filter(|share| share.of == of)
            .ok_or_else(|| format!("{share:?}"))
    })
    .await;
}

/// A coordinator freezes in the middle of an append, loses its lease, wakes up, and writes nothing under the old
/// epoch; then it takes a new one and goes on.
#[tokio::test]
async fn coordinator_frozen_past_its_lease_is_refused_by_its_epoch() {
    let memory = MemoryJournal::new();
    let broker = Arc::new(LocalBroker::in_memory(LocalOptions::default()));
    let (frozen, other) = (Gated::new(&memory), Gated::new(&memory));
    let a = coordinator(&frozen, &broker, "a").await;
    let b = coordinator(&other, &broker, "b").await;
    share_of(&a, 2).await;
    share_of(&b, 2).await;
    let shut = frozen.gate.clone().acquire_owned().await.expect("shuts");
    let sagas = a.sagas();
    let begin = Begin::new("wait", "z", json!({}));
    let late = tokio::spawn(async move { sagas.begin(&begin).await });
    share_of(&b, 1).await;
    let epoch = a.status().epoch;
    assert!(
        memory
            .list(&Filter::default(), 10)
            .await
            .expect("lists")
            .is_empty()
    );
    drop(shut);
    late.await
        .expect("no panic")
        .expect("begins, in a new epoch");
    let after = a.status();
    assert!(after.epoch > epoch && after.fenced >= 1, "{after:?}");
    share_of(&a, 2).await;
    share_of(&b, 2).await;
    assert!(a.drain().await && b.drain().await);
}

/// The journal is gone for a while: what was begun meanwhile waits, and nothing is lost or doubled.
#[tokio::test]
async fn coordinator_whose_journal_is_gone_waits_and_says_so() {
    let memory = MemoryJournal::new();
    let broker = Arc::new(LocalBroker::in_memory(LocalOptions::default()));
    let journal = Gated::new(&memory);
    let a = coordinator(&journal, &broker, "a").await;
    journal.down.store(true, Ordering::SeqCst);
    let sagas = a.sagas();
    let begin = Begin::new("wait", "d", json!({}));
    let waits = tokio::spawn(async move { sagas.begin(&begin).await });
    eventually("it says so", || async {
        let failure = a.status().failure;
        failure
            .filter(|text| text.contains("gone"))
            .ok_or_else(|| "nothing".to_owned())
    })
    .await;
    journal.down.store(false, Ordering::SeqCst);
    let begun = waits.await.expect("no panic").expect("begins");
    assert!(begun.is_new);
    let all = memory.list(&Filter::default(), 10).await.expect("lists");
    assert_eq!((all.len(), all[0].status), (1, Status::Running));
    eventually("it is well again", || async {
        a.status().failure.map_or(Ok(()), Err)
    })
    .await;
    assert_eq!(memory.take_messages().len(), 1, "one command");
    assert!(a.drain().await);
}

//! Hashes of a shard's state at an index, by which replicas are compared.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_env::{Env, JobClass, switch};
use quorate_storage::{Engine, Iter, IterOptions, Lsm, ReadAt, Snapshot};
use tokio::sync::Notify;
use xxhash_rust::xxh3::Xxh3;

/// The hash of every newest (key, version, value) of a shard at one index, in key order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateHash {
    /// The log index whose state it is.
    pub index: u64,
    /// xxh3-64 over keys, versions and values, each with its length.
    pub hash: u64,
    /// How many keys.
    pub keys: u64,
}

/// The newest hashes of one replica.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    done: VecDeque<Result<StateHash, (u64, String)>>,
    /// Commands up to this index are not applied here any more: the state after them came whole.
    skipped: u64,
}

/// Why there is no hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoHash {
    /// The state could not be read.
    Failed(String),
    /// The replica never had just that state: it took a later one whole, by a snapshot or when it was opened.
    Skipped,
    /// Not in the time given.
    Late,
}

/// So many are remembered.
const KEPT: usize = 16;

impl Hashes {
    /// Hashes the state of a group at an index in the background.
    pub(crate) fn start(
        self: &Arc<Self>,
        env: &Env,
        engine: Arc<Lsm>,
        snapshot: Snapshot,
        (group, index): (u64, u64),
        lower: Vec<u8>,
        upper: Vec<u8>,
    ) {
        let hashes = Arc::clone(self);
        let job = move || {
            let found = hash_range(&engine, &snapshot, index, lower, upper);
            if let Ok(found) = &found {
                switch::probe("hash", || [group, index, found.hash, found.keys]);
            }
            let mut known = hashes.known.lock();
            if known.done.len() == KEPT {
                known.done.pop_front();
            }
            let found = found.map_err(|error| (index, error.to_string()));
            known.done.push_back(found);
            drop(known);
            hashes.changed.notify_waiters();
        };
        env.jobs.spawn(JobClass::Compaction, Box::new(job));
    }

    /// The state at an index came whole, so that those before it are not hashed.
    pub(crate) fn skip(&self, upto: u64) {
        self.known.lock().skipped = upto;
        self.changed.notify_waiters();
    }

    /// Waits for the hash at an index.
    pub(crate) async fn wait(&self, index: u64, timeout: Duration) -> Result<StateHash, NoHash> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = self.find(index) {
                    return found;
                }
                changed.await;
            }
        };
        let found = tokio::time::timeout(timeout, wait).await;
        found.unwrap_or(Err(NoHash::Late))
    }

    fn find(&self, index: u64) -> Option<Result<StateHash, NoHash>> {
        let known = self.known.lock();
        let found = known.done.iter().find_map(|done| match done {
            Ok(hash) => (hash.index == index).then_some(Ok(*hash)),
            Err((at, error)) => (*at == index).then(|| Err(NoHash::Failed(error.clone()))),
        });
        found.or_else(|| (index <= known.skipped).then_some(Err(NoHash::Skipped)))
    }
}

fn hash_range(
    engine: &Lsm,
    snapshot: &Snapshot,
    index: u64,
    lower: Vec<u8>,
    upper: Vec<u8>,
) -> quorate_storage::Result<StateHash> {
    let options = IterOptions {
        at: ReadAt::snapshot(snapshot),
        ..IterOptions::range(&lower, &upper)
    };
    let mut iter = engine.iterate(crate::keys::DATA, options)?;
    let mut hasher = Xxh3::new();
    let mut keys = 0;
    iter.seek_to_first()?;
    while iter.valid() {
        add(&mut hasher, &*iter);
        keys += 1;
        iter.next()?;
    }
    Ok(StateHash {
        index,
        hash: hasher.digest(),
        keys,
    })
}

fn add(hasher: &mut Xxh3, iter: &dyn Iter) {
    let (key, value) = (iter.key(), iter.value());
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(&iter.version().to_le_bytes());
    hasher.update(&(value.len() as u64).to_le_bytes());
    hasher.update(value);
}

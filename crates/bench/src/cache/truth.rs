//! [`Truth`]: the source, and the ledger of what was committed and acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use quorate_cache::source::{Source, Stamped};
use quorate_cache::{Need, Result, Version};
use quorate_kv::{BoxFuture, Domain};
use tokio::time::sleep;

use super::weather::{Fault, Point, Weather};

/// A write that is being made: its value names it.
#[derive(Debug, Clone)]
pub struct Write {
    /// The key's number.
    pub key: usize,
    /// The process that writes.
    pub process: usize,
    /// The value; `None` deletes.
    pub value: Option<Bytes>,
    id: u64,
}

/// Who knows of an acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The process that wrote, and the remote tier.
    All,
    /// The process that wrote, by its own account: the remote tier did not answer.
    Own,
    /// Nobody: the writer died.
    Nobody,
}

/// Within which time after its acknowledgement a write must be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// By the process that wrote it.
    pub own: Duration,
    /// By others.
    pub others: Duration,
    /// By those who were not told, because the remote tier did not answer or the writer died.
    pub untold: Duration,
}

impl Promise {
    /// At once, by all, whoever was told.
    pub const AT_ONCE: Promise = Promise::within(Duration::ZERO);

    /// Within a time, by all, whoever was told.
    pub const fn within(bound: Duration) -> Self {
        Promise {
            own: bound,
            others: bound,
            untold: bound,
        }
    }

    /// Whether a commit may be unseen for so long after it was acknowledged.
    fn allows(&self, commit: &Commit, process: usize, for_nanos: u64) -> bool {
        // Caches read clocks in whole microseconds.
        const ROUNDING: Duration = Duration::from_micros(10);
        let is_own = commit.process == process;
        let bound = match commit.reach {
            Reach::Nobody => self.untold,
            Reach::Own if !is_own => self.untold,
            _ if is_own => self.own,
            _ => self.others,
        };
        !bound.is_zero() && for_nanos <= nanos(bound.saturating_add(ROUNDING))
    }
}

#[derive(Debug, Clone)]
struct Commit {
    version: u64,
    id: u64,
    is_delete: bool,
    process: usize,
    committed_at: u64,
    /// `u64::MAX`: not acknowledged.
    acked_at: u64,
    reach: Reach,
}

#[derive(Default)]
struct Key {
    /// In the order of versions.
    commits: Mutex<Vec<Commit>>,
    /// The newest version that is acknowledged, to anybody.
    acked: AtomicU64,
    acked_at: AtomicU64,
}

/// What a read must see, taken before it begins.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    at: u64,
    acked: u64,
    /// Whether it begins within 10 ms of an acknowledged write to its key.
    pub is_near: bool,
}

/// What a read was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The value.
    pub value: Option<Bytes>,
    /// Whether the source was asked for it.
    pub is_miss: bool,
}

/// What was wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is as new as it had to be.
    Fresh,
    /// It is not.
    Stale(Stale),
    /// It is no value of that key.
    Foreign,
}

/// A stale answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale {
    /// Since the first acknowledged write that it misses.
    pub nanos: u64,
    /// Whether it is older than was promised.
    pub is_broken: bool,
    /// Whether it is a value that was deleted since.
    pub is_resurrected: bool,
    /// Whether it misses a write of the process that reads.
    pub misses_own: bool,
}

/// The source of one cell, and its ledger.
pub struct Truth {
    keys: Vec<Key>,
    names: Vec<Bytes>,
    /// The version at which each write was committed, by its id; 0: not.
    versions: Vec<AtomicU64>,
    ids: AtomicU64,
    newest: AtomicU64,
    loads: AtomicU64,
    began: Instant,
    weather: Arc<Weather>,
}

const NEAR: Duration = Duration::from_millis(10);
/// One round to a database.
const ROUND: Duration = Duration::from_millis(1);
const VALUE_BYTES: usize = 64;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Truth {
    /// So many keys, each with a value, and room for so many writes.
    pub fn new(keys: usize, writes: usize, weather: Arc<Weather>) -> Self {
        let truth = Truth {
            keys: (0..keys).map(|_| Key::default()).collect(),
            names: (0..keys).map(|key| format!("key/{key}").into()).collect(),
            versions: (0..=keys + writes).map(|_| AtomicU64::new(0)).collect(),
            ids: AtomicU64::new(1),
            newest: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            began: Instant::now(),
            weather,
        };
        for key in 0..keys {
            if let Some(write) = truth.begin(key, 0, false) {
                truth.note(&write);
                truth.acknowledge(&write, Reach::All);
            }
        }
        // Replicas have them too.
        for key in &truth.keys {
            key.commits
                .lock()
                .iter_mut()
                .for_each(|commit| commit.committed_at = 0);
        }
        truth
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// A key as caches know it.
    pub fn name(&self, key: usize) -> &Bytes {
        &self.names[key]
    }

    /// The conditions.
    pub fn weather(&self) -> &Arc<Weather> {
        &self.weather
    }

    /// How often it was asked.
    pub fn loads(&self) -> u64 {
        self.loads.load(Relaxed)
    }

    fn now(&self) -> u64 {
        nanos(self.began.elapsed())
    }

    /// A write to be made; `None` when there is no room for more.
    pub fn begin(&self, key: usize, process: usize, deletes: bool) -> Option<Write> {
        let id = self.ids.fetch_add(1, Relaxed);
        self.versions.get(id as usize)?;
        Some(Write {
            key,
            process,
            value: (!deletes).then(|| value(key, id)),
            id,
        })
    }

    /// Commits, as a database does: a round, and then the answer may take its time. Answers the version.
    pub async fn commit(&self, write: &Write) -> Version {
        sleep(ROUND).await;
        self.note(write);
        self.weather.pass(Point::Committed).await;
        Version::new(self.versions[write.id as usize].load(SeqCst))
    }

    fn note(&self, write: &Write) {
        let mut commits = self.keys[write.key].commits.lock();
        let version = self.newest.fetch_add(1, SeqCst) + 1;
        commits.push(Commit {
            version,
            id: write.id,
            is_delete: write.value.is_none(),
            process: write.process,
            committed_at: self.now(),
            acked_at: u64::MAX,
            reach: Reach::Nobody,
        });
        self.versions[write.id as usize].store(version, SeqCst);
    }

    /// Notes that a writer has its answer: from now on reads must see it. Nothing, if it was not committed.
    pub fn acknowledge(&self, write: &Write, reach: Reach) {
        let key = &self.keys[write.key];
        let version = self.versions[write.id as usize].load(SeqCst);
        let mut commits = key.commits.lock();
        let Ok(at) = commits.binary_search_by_key(&version, |commit| commit.version) else {
            return;
        };
        let now = self.now();
        commits[at].acked_at = now;
        commits[at].reach = reach;
        key.acked_at.fetch_max(now, SeqCst);
        // Last: who sees it sees the rest.
        key.acked.fetch_max(version, SeqCst);
    }

    /// The newest acknowledged version of a key.
    pub fn acknowledged(&self, key: usize) -> Version {
        Version::new(self.keys[key].acked.load(SeqCst))
    }

    /// To be taken before a read begins.
    pub fn before(&self, key: usize) -> Sight {
        let of = &self.keys[key];
        let acked = of.acked.load(SeqCst);
        let acked_at = of.acked_at.load(SeqCst);
        let at = self.now();
        Sight {
            at,
            acked,
            is_near: at.saturating_sub(acked_at) <= nanos(NEAR),
        }
    }

    /// What a read must see once nobody writes any more: all that is committed.
    pub fn at_rest(&self, key: usize) -> Sight {
        let commits = self.keys[key].commits.lock();
        let newest = commits.last().map_or(0, |commit| commit.version);
        Sight {
            at: u64::MAX,
            acked: newest,
            is_near: false,
        }
    }

    /// Holds an answer against what the read had to see.
    pub fn judge(
        &self,
        key: usize,
        process: usize,
        sight: &Sight,
        value: Option<&Bytes>,
        promise: Option<&Promise>,
    ) -> Verdict {
        let version = match value {
            Some(value) => match self.version_of(key, value) {
                Some(version) if version >= sight.acked => return Verdict::Fresh,
                Some(version) => version,
                None => return Verdict::Foreign,
            },
            None => 0,
        };
        let commits = self.keys[key].commits.lock();
        let must = commits.partition_point(|commit| commit.version < sight.acked);
        let served = match value {
            Some(_) => commits.partition_point(|commit| commit.version <= version),
            // Nothing was there after any deletion; the newest one that explains it counts.
            None if commits[must..].iter().any(|commit| commit.is_delete) => return Verdict::Fresh,
            None => {
                let before = commits[..must].iter().rposition(|commit| commit.is_delete);
                before.map_or(0, |at| at + 1)
            }
        };
        let mut stale = Stale {
            nanos: 0,
            is_broken: false,
            is_resurrected: false,
            misses_own: false,
        };
        let missed = commits[served..]
            .iter()
            .take_while(|c| c.version <= sight.acked);
        // What is acknowledged after the read began may be among them, out of order.
        for commit in missed.filter(|commit| commit.acked_at <= sight.at) {
            let for_nanos = sight.at - commit.acked_at;
            stale.nanos = stale.nanos.max(for_nanos);
            stale.is_resurrected |= commit.is_delete && value.is_some();
            stale.misses_own |= commit.process == process && commit.reach != Reach::Nobody;
            stale.is_broken |= promise.is_some_and(|p| !p.allows(commit, process, for_nanos));
        }
        Verdict::Stale(stale)
    }

    /// The version of the write that a value names, if it is one of that key.
    fn version_of(&self, key: usize, value: &Bytes) -> Option<u64> {
        let of = u64::from_be_bytes(value.get(..8)?.try_into().ok()?);
        let id = u64::from_be_bytes(value.get(8..16)?.try_into().ok()?);
        if of != key as u64 {
            return None;
        }
        let version = self.versions.get(id as usize)?.load(SeqCst);
        (version > 0).then_some(version)
    }

    /// Reads a key as a service does: from a replica that lags, if that is the fault and `latest` is not asked.
    pub async fn fetch(&self, key: usize, latest: bool) -> (Option<Bytes>, Version, bool) {
        self.loads.fetch_add(1, Relaxed);
        sleep(ROUND).await;
        let lags = self.weather.fault() == Fault::ReplicaLag && !latest;
        let horizon = match lags {
            true => self.now().saturating_sub(nanos(Weather::LAG)),
            false => u64::MAX,
        };
        let found = {
            let commits = self.keys[key].commits.lock();
            let mut visible = commits.iter().rev();
            let newest = visible.find(|commit| commit.committed_at <= horizon);
            newest.map(|commit| (commit.version, commit.id, commit.is_delete))
        };
        self.weather.pass(Point::Loaded).await;
        match found {
            Some((version, id, is_delete)) => {
                let value = (!is_delete).then(|| value(key, id));
                (value, Version::new(version), lags)
            }
            None => (None, Version::ZERO, lags),
        }
    }
}

/// What a write puts: its key and itself, and what a value of usual size has besides.
fn value(key: usize, id: u64) -> Bytes {
    let mut value = BytesMut::with_capacity(VALUE_BYTES);
    value.put_u64(key as u64);
    value.put_u64(id);
    value.resize(VALUE_BYTES, b'.');
    value.freeze()
}

impl Source for Truth {
    fn domain(&self) -> Domain {
        Domain {
            cluster: 1,
            namespace: 1,
            incarnation: 0,
        }
    }

    fn load<'a>(&'a self, key: &'a Bytes, need: Need) -> BoxFuture<'a, Result<Stamped>> {
        Box::pin(async move {
            let number = key
                .strip_prefix(b"key/")
                .and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
            let Some(number) = number.filter(|number| *number < self.len()) else {
                return Ok(Stamped::newest(None, Version::ZERO));
            };
            let (value, version, lags) = self.fetch(number, need.latest).await;
            Ok(Stamped {
                value,
                version,
                seen: version,
                lag: (!lags).then_some(Duration::ZERO),
            })
        })
    }
}

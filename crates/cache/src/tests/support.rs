//! What the tests share: a source that does as it is told, a tier that fails, and waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kv::{BoxFuture, Domain};
use tokio::sync::Semaphore;

use crate::core::{Cached, Invalidation, Looked, Mark, Put};
use crate::source::{Source, Stamped};
use crate::tier::{Memory, Tier};
use crate::{Cache, CacheOptions, Error, ErrorKind, Need, Result, Tiers, Version};

pub const DOMAIN: Domain = Domain {
    cluster: 7,
    namespace: 1,
    incarnation: 0,
};

/// How a load goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Answer,
    Fail,
    Panic,
    Hang,
    /// Answers what was there at this version, whatever is asked, and says so.
    Behind(u64),
}

struct Rows {
    versions: HashMap<Bytes, Vec<(Version, Option<Bytes>)>>,
    now: Version,
    mode: Mode,
}

/// A source whose loads can be held between reading and answering.
pub struct Shop {
    rows: Mutex<Rows>,
    loads: AtomicU64,
    needs: Mutex<Vec<Need>>,
    /// Loads take a permit before they answer.
    pub gate: Semaphore,
    is_gated: std::sync::atomic::AtomicBool,
}

impl Shop {
    pub fn new() -> Arc<Shop> {
        let rows = Rows {
            versions: HashMap::new(),
            now: Version::ZERO,
            mode: Mode::Answer,
        };
        Arc::new(Shop {
            rows: Mutex::new(rows),
            loads: AtomicU64::new(0),
            needs: Mutex::default(),
            gate: Semaphore::new(0),
            is_gated: false.into(),
        })
    }

    /// Commits a value, or that there is none.
    pub fn set(&self, key: &str, value: Option<&str>) -> Version {
        let mut rows = self.rows.lock();
        rows.now.n += 1;
        let version = rows.now;
        let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
        let key = Bytes::copy_from_slice(key.as_bytes());
        rows.versions.entry(key).or_default().push((version, value));
        version
    }

    /// Begins a new epoch, in which only what was committed up to a version is left.
    pub fn fail_over(&self, left: u64) {
        let mut rows = self.rows.lock();
        for versions in rows.versions.values_mut() {
            versions.retain(|(version, _)| version.n <= left);
        }
        rows.now = Version {
            epoch: rows.now.epoch + 1,
            n: left,
        };
    }

    pub fn mode(&self, mode: Mode) {
        self.rows.lock().mode = mode;
    }

    /// From now on loads read, and then wait for a permit of the gate.
    pub fn hold(&self) {
        self.is_gated.store(true, SeqCst);
    }

    /// Lets those go that wait, and all later ones.
    pub fn release(&self) {
        self.is_gated.store(false, SeqCst);
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    pub fn loads(&self) -> u64 {
        self.loads.load(SeqCst)
    }

    /// What the last load was asked for.
    pub fn last_need(&self) -> Need {
        *self.needs.lock().last().expect("a load")
    }

    pub async fn loads_reach(&self, loads: u64) {
        until("loads", || self.loads() >= loads).await;
    }

    async fn answer(&self, key: &Bytes, need: Need) -> Result<Stamped> {
        self.needs.lock().push(need);
        let (mode, at, found) = {
            let rows = self.rows.lock();
            let at = match rows.mode {
                Mode::Behind(n) => Version { n, ..rows.now },
                _ => rows.now,
            };
            let versions = rows
                .versions
                .get(key)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let newest = versions.iter().rev().find(|(version, _)| *version <= at);
            (rows.mode, at, newest.cloned())
        };
        let is_gated = self.is_gated.load(SeqCst);
        self.loads.fetch_add(1, SeqCst);
        match mode {
            Mode::Fail => return Err(Error::new(ErrorKind::Unavailable, "the shop is closed")),
            Mode::Panic => panic!("the shop burns"),
            Mode::Hang => std::future::pending().await,
            Mode::Answer | Mode::Behind(_) => {}
        }
        if is_gated {
            self.gate.acquire().await.expect("open").forget();
        }
        let (version, value) = found.unwrap_or((at, None));
        Ok(Stamped {
            value,
            version,
            seen: at,
            lag: (mode == Mode::Answer).then_some(Duration::ZERO),
        })
    }
}

impl Source for Shop {
    fn domain(&self) -> Domain {
        DOMAIN
    }

    /// What stands before the first slash.
    fn tags(&self, key: &[u8]) -> Vec<Bytes> {
        let slash = key.iter().position(|byte| *byte == b'/');
        let tag = slash.map(|at| Bytes::copy_from_slice(&key[..at]));
        tag.into_iter().collect()
    }

    fn load<'a>(&'a self, key: &'a Bytes, need: Need) -> BoxFuture<'a, Result<Stamped>> {
        Box::pin(self.answer(key, need))
    }
}

/// A tier that another process could be at the other end of: forgetful, and made to fail or to wait.
pub struct Shared {
    pub memory: Memory,
    pub is_down: Mutex<bool>,
    /// Looks take a permit after they have looked, if there is a gate.
    pub gate: Mutex<Option<Arc<Semaphore>>>,
    pub calls: AtomicU64,
}

impl Shared {
    pub fn new() -> Arc<Shared> {
        Arc::new(Shared {
            memory: Memory::with_absent(1 << 22, Need::LATEST),
            is_down: Mutex::new(false),
            gate: Mutex::default(),
            calls: AtomicU64::new(0),
        })
    }

    pub fn down(&self, is_down: bool) {
        *self.is_down.lock() = is_down;
    }

    fn answer<'a, T: Send + 'a>(&'a self, done: impl FnOnce() -> T) -> BoxFuture<'a, Result<T>> {
        self.calls.fetch_add(1, SeqCst);
        if *self.is_down.lock() {
            let error = Error::new(ErrorKind::Unavailable, "the shared tier is down");
            return Box::pin(std::future::ready(Err(error)));
        }
        let done = done();
        let gate = self.gate.lock().clone();
        Box::pin(async move {
            if let Some(gate) = gate {
                gate.acquire().await.expect("open").forget();
            }
            Ok(done)
        })
    }
}

impl Tier for Shared {
    fn look<'a>(&'a self, key: &'a Bytes) -> BoxFuture<'a, Result<Looked<Bytes>>> {
        self.answer(|| self.memory.look_now(key))
    }

    fn put<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        cached: Cached<Bytes>,
    ) -> BoxFuture<'a, Result<Put>> {
        self.answer(|| self.memory.put_now(key, mark, cached))
    }

    fn invalidate<'a>(
        &'a self,
        key: &'a Bytes,
        invalidation: Invalidation,
    ) -> BoxFuture<'a, Result<()>> {
        self.answer(|| self.memory.invalidate_now(key, invalidation))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        self.answer(|| self.memory.clear_now())
    }
}

/// Without jitter, so that times are exact.
pub fn options() -> CacheOptions {
    CacheOptions {
        jitter: 0.0,
        ..CacheOptions::default()
    }
}

/// A cache in this process alone.
pub fn local(shop: &Arc<Shop>, options: CacheOptions) -> Cache {
    let tiers = Tiers {
        local: Some(Memory::new(1 << 22)),
        remote: None,
    };
    Cache::new(shop.clone(), tiers, options)
}

/// A cache over a shared tier, with one of its own or without.
pub fn over(shop: &Arc<Shop>, shared: Arc<dyn Tier>, has_local: bool) -> Cache {
    let tiers = Tiers {
        local: has_local.then(|| Memory::new(1 << 22)),
        remote: Some(shared),
    };
    Cache::new(shop.clone(), tiers, options())
}

pub async fn value(cache: &Cache, key: &str) -> Option<String> {
    let read = cache.get(key, crate::Level::Any).await.expect("reads");
    text(read.value)
}

pub fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|value| String::from_utf8(value.to_vec()).expect("text"))
}

/// Waits for a condition, for at most a minute of wall time.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "waited for {what}"
        );
        tokio::task::yield_now().await;
    }
}

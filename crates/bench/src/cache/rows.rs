//! [`Row`]: a way of using our cache, and what it promises. A strategy that is added becomes a row by one entry.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_cache::source::Source;
use quorate_cache::tier::{Memory, Tier};
use quorate_cache::{Cache, CacheOptions, Level, Origin, Strategy, Tiers};
use quorate_kv::BoxFuture;

use super::PROCESSES;
use super::truth::{Answer, Promise, Reach, Truth, Write};
use super::weather::Wire;

/// A cache under test: that of several processes, which share what they share.
pub trait Subject: Send + Sync + 'static {
    /// Reads a key in a process. The error is that nothing was answered.
    fn get(&self, process: usize, key: usize) -> BoxFuture<'_, Result<Answer, String>>;

    /// Commits a write in its process, and does with the cache what has to be done. Answers who knows.
    fn put<'a>(&'a self, write: &'a Write) -> BoxFuture<'a, Result<Reach, String>>;
}

/// The tiers of each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiering {
    /// One in memory alone.
    Local,
    /// The shared one alone.
    Remote,
    /// Both.
    Both,
}

/// How reads are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// At [`Level::Any`].
    Any,
    /// At [`Level::BoundedStale`].
    Within(Duration),
    /// At [`Level::AtLeast`], with the token of the newest acknowledged write.
    WithToken,
    /// At [`Level::Linearizable`].
    Linearizable,
}

/// A way of using the cache.
#[derive(Clone, Copy)]
pub struct Row {
    /// As tables call it.
    pub name: &'static str,
    /// The strategy of a write, given its value.
    pub strategy: fn(Option<Bytes>) -> Strategy,
    /// The tiers.
    pub tiering: Tiering,
    /// The level.
    pub asking: Asking,
}

const fn row(
    name: &'static str,
    strategy: fn(Option<Bytes>) -> Strategy,
    tiering: Tiering,
    asking: Asking,
) -> Row {
    Row {
        name,
        strategy,
        tiering,
        asking,
    }
}

fn aside(_: Option<Bytes>) -> Strategy {
    Strategy::Aside
}

fn versioned(_: Option<Bytes>) -> Strategy {
    Strategy::Versioned
}

fn through(value: Option<Bytes>) -> Strategy {
    Strategy::Through(value)
}

const BOUND: Duration = Duration::from_millis(50);

/// All ways that are measured.
pub const ROWS: &[Row] = &[
    row("aside, L2", aside, Tiering::Remote, Asking::Any),
    row("aside, L1+L2", aside, Tiering::Both, Asking::Any),
    row("versioned, L2", versioned, Tiering::Remote, Asking::Any),
    row("versioned, L1+L2", versioned, Tiering::Both, Asking::Any),
    row("through, L2", through, Tiering::Remote, Asking::Any),
    row("through, L1+L2", through, Tiering::Both, Asking::Any),
    row(
        "bounded 50 ms, L1+L2",
        versioned,
        Tiering::Both,
        Asking::Within(BOUND),
    ),
    row("token, L1+L2", versioned, Tiering::Both, Asking::WithToken),
    row(
        "linearizable, L1",
        versioned,
        Tiering::Local,
        Asking::Linearizable,
    ),
    row(
        "linearizable, L1+L2",
        versioned,
        Tiering::Both,
        Asking::Linearizable,
    ),
];

impl Row {
    /// What it promises: see `docs/cache.md`.
    pub fn promise(&self, options: &CacheOptions) -> Promise {
        match self.asking {
            Asking::WithToken | Asking::Linearizable => Promise::AT_ONCE,
            Asking::Within(bound) => Promise::within(bound),
            Asking::Any => Promise {
                own: Duration::ZERO,
                others: match self.tiering {
                    Tiering::Remote => Duration::ZERO,
                    Tiering::Both => options.local_ttl,
                    Tiering::Local => options.local_ttl.min(options.ttl),
                },
                untold: options.ttl.saturating_add(options.local_ttl),
            },
        }
    }

    /// Caches of several processes; each is given its connection to the remote tier.
    pub fn caches(
        &self,
        truth: &Arc<Truth>,
        options: &CacheOptions,
        mut remote: impl FnMut() -> Arc<dyn Tier>,
    ) -> Ours {
        let mut cache = |_| {
            let wire = || Wire::new(remote(), truth.weather().clone());
            let tiers = Tiers {
                local: (self.tiering != Tiering::Remote).then(|| Memory::new(64 << 20)),
                remote: (self.tiering != Tiering::Local)
                    .then(wire)
                    .map(|wire| Arc::new(wire) as Arc<dyn Tier>),
            };
            Cache::new(truth.clone() as Arc<dyn Source>, tiers, options.clone())
        };
        Ours {
            caches: (0..PROCESSES).map(&mut cache).collect(),
            truth: truth.clone(),
            row: *self,
        }
    }
}

/// Our cache, in several processes.
pub struct Ours {
    caches: Vec<Cache>,
    truth: Arc<Truth>,
    row: Row,
}

impl Ours {
    fn level(&self, cache: &Cache, key: usize) -> Level {
        match self.row.asking {
            Asking::Any => Level::Any,
            Asking::Within(bound) => Level::BoundedStale(bound),
            Asking::WithToken => Level::AtLeast(cache.token(self.truth.acknowledged(key))),
            Asking::Linearizable => Level::Linearizable,
        }
    }
}

impl Subject for Ours {
    fn get(&self, process: usize, key: usize) -> BoxFuture<'_, Result<Answer, String>> {
        Box::pin(async move {
            let cache = &self.caches[process];
            let level = self.level(cache, key);
            let read = cache.get(self.truth.name(key), level).await;
            let read = read.map_err(|error| error.to_string())?;
            Ok(Answer {
                value: read.value,
                is_miss: read.tier == Origin::Source,
            })
        })
    }

    fn put<'a>(&'a self, write: &'a Write) -> BoxFuture<'a, Result<Reach, String>> {
        Box::pin(async move {
            let commit = async { Ok(Some(self.truth.commit(write).await)) };
            let strategy = (self.row.strategy)(write.value.clone());
            let cache = &self.caches[write.process];
            let written = cache
                .write(self.truth.name(write.key), strategy, commit)
                .await;
            let written = written.map_err(|error| error.to_string())?;
            Ok(match written.untold {
                None => Reach::All,
                Some(_) => Reach::Own,
            })
        })
    }
}

/// No cache: each read asks the source.
pub fn direct(truth: &Arc<Truth>) -> impl Subject {
    struct Direct(Arc<Truth>);

    impl Subject for Direct {
        fn get(&self, _: usize, key: usize) -> BoxFuture<'_, Result<Answer, String>> {
            Box::pin(async move {
                let (value, _, _) = self.0.fetch(key, true).await;
                Ok(Answer {
                    value,
                    is_miss: true,
                })
            })
        }

        fn put<'a>(&'a self, write: &'a Write) -> BoxFuture<'a, Result<Reach, String>> {
            Box::pin(async move {
                self.0.commit(write).await;
                Ok(Reach::All)
            })
        }
    }

    Direct(truth.clone())
}

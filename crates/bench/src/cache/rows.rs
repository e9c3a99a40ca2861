//! [`Row`]: a way of using our cache, and what it promises. A strategy that is added becomes a row by one entry.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_cache::invalidations::Invalidations;
use quorate_cache::source::{Source, Stamped};
use quorate_cache::tier::{Memory, Tier};
use quorate_cache::{
    Cache, CacheOptions, FollowOptions, Level, Need, Origin, Result as CacheResult, Strategy, Tiers,
};
use quorate_kv::{BoxFuture, Domain};

use super::PROCESSES;
use super::truth::{Answer, Promise, Reach, Truth, Write};
use super::weather::{Ears, Fault, Weather, Wire};

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

/// What a process has of what processes share.
pub struct Shared {
    /// The tier.
    pub tier: Arc<dyn Tier>,
    /// What is told of writes to it.
    pub told: Box<dyn Invalidations>,
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
    /// Each process follows what others write, with this `staleness_max`.
    pub follows: Option<Duration>,
    /// Loads ignore [`Need::latest`], as those of a replica do that knows no positions.
    pub is_careless: bool,
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
        follows: None,
        is_careless: false,
    }
}

/// A row whose processes hear of each other.
const fn coherent(name: &'static str, strategy: fn(Option<Bytes>) -> Strategy) -> Row {
    Row {
        follows: Some(HEARD),
        ..row(name, strategy, Tiering::Both, Asking::Any)
    }
}

/// A row over a source that is careless.
const fn careless(name: &'static str, strategy: fn(Option<Bytes>) -> Strategy) -> Row {
    Row {
        is_careless: true,
        ..row(name, strategy, Tiering::Remote, Asking::Any)
    }
}

fn aside(_: Option<Bytes>) -> Strategy {
    Strategy::Aside
}

fn twice(_: Option<Bytes>) -> Strategy {
    Strategy::AsideTwice(AGAIN_AFTER)
}

fn versioned(_: Option<Bytes>) -> Strategy {
    Strategy::Versioned
}

fn through(value: Option<Bytes>) -> Strategy {
    Strategy::Through(value)
}

const BOUND: Duration = Duration::from_millis(50);
/// Within this followers hear.
const HEARD: Duration = Duration::from_millis(25);
/// A double delete comes when every replica has caught up.
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(60);

/// All ways that are measured.
pub const ROWS: &[Row] = &[
    row("aside, L2", aside, Tiering::Remote, Asking::Any),
    row("aside, L1+L2", aside, Tiering::Both, Asking::Any),
    row("aside twice, L2", twice, Tiering::Remote, Asking::Any),
    row("aside twice, L1+L2", twice, Tiering::Both, Asking::Any),
    careless("aside over a careless replica, L2", aside),
    careless("aside twice over a careless replica, L2", twice),
    row("versioned, L2", versioned, Tiering::Remote, Asking::Any),
    row("versioned, L1+L2", versioned, Tiering::Both, Asking::Any),
    row("through, L2", through, Tiering::Remote, Asking::Any),
    row("through, L1+L2", through, Tiering::Both, Asking::Any),
    coherent("aside coherent within 25 ms, L1+L2", aside),
    coherent("versioned coherent within 25 ms, L1+L2", versioned),
    coherent("through coherent within 25 ms, L1+L2", through),
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
    /// What it promises under a fault: see `docs/cache.md`.
    pub fn promise(&self, options: &CacheOptions, fault: Fault) -> Promise {
        let kept = options.ttl.saturating_mul(2);
        match self.asking {
            Asking::WithToken | Asking::Linearizable => Promise::AT_ONCE,
            // Ages in the remote tier are by its clock.
            Asking::Within(bound) if fault == Fault::ClockStepped => {
                Promise::within(bound + Weather::STEP)
            }
            Asking::Within(bound) => Promise::within(bound),
            Asking::Any if self.is_careless => Promise::within(kept),
            Asking::Any => Promise {
                own: Duration::ZERO,
                others: match self.tiering {
                    Tiering::Remote => Duration::ZERO,
                    Tiering::Both => self.follows.unwrap_or(options.local_ttl),
                    Tiering::Local => options.local_ttl.min(options.ttl),
                },
                untold: kept,
            },
        }
    }

    /// Whether a fault means anything to it.
    pub fn knows(&self, fault: Fault) -> bool {
        (self.tiering != Tiering::Local || !fault.is_of_remote())
            && (self.follows.is_some() || !fault.is_of_messages())
    }

    /// Whether keys may stay wrong until their TTL under a fault: not if they are deleted again once replicas have
    /// caught up.
    pub fn may_stick(&self, fault: Fault) -> bool {
        let is_once = (self.strategy)(None) == Strategy::Aside;
        fault.leaves_untold() || (self.is_careless && is_once && fault == Fault::ReplicaLag)
    }

    /// Caches of several processes; each is given what it has of what they share. Within a tokio runtime.
    ///
    /// # Errors
    /// Those of [`Cache::follow`].
    pub fn caches(
        &self,
        truth: &Arc<Truth>,
        options: &CacheOptions,
        mut shared: impl FnMut() -> Shared,
    ) -> CacheResult<Ours> {
        let mut options = options.clone();
        if self.follows.is_some() {
            // So that what they do not hear of stays.
            options.local_ttl = options.ttl;
        }
        let mut caches = Vec::new();
        for _ in 0..PROCESSES {
            let Shared { tier, told } = shared();
            let weather = truth.weather();
            let tiers = Tiers {
                local: (self.tiering != Tiering::Remote).then(|| Memory::new(64 << 20)),
                remote: (self.tiering != Tiering::Local)
                    .then(|| Arc::new(Wire::new(tier, weather.clone())) as Arc<dyn Tier>),
            };
            let source: Arc<dyn Source> = match self.is_careless {
                true => Arc::new(Careless(truth.clone())),
                false => truth.clone(),
            };
            let cache = Cache::new(source, tiers, options.clone());
            if let Some(staleness_max) = self.follows {
                let ears = Ears::new(told, weather.clone());
                cache.follow(ears, FollowOptions { staleness_max })?;
            }
            caches.push(cache);
        }
        Ok(Ours {
            caches,
            truth: truth.clone(),
            row: *self,
        })
    }
}

/// A source that can't give its newest state.
struct Careless(Arc<Truth>);

impl Source for Careless {
    fn domain(&self) -> Domain {
        self.0.domain()
    }

    fn load<'a>(&'a self, key: &'a Bytes, need: Need) -> BoxFuture<'a, CacheResult<Stamped>> {
        let careless = Need {
            latest: false,
            ..need
        };
        self.0.load(key, careless)
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

//! The meter: what is stale is found, what is right is not called stale, and nobody is served otherwise for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::support::{DOMAIN, Mode, Shared, Shop, local, options, over, text, until, value};
use crate::core::planted::{self, Bug};
use crate::core::tests::schedules::Chance;
use crate::core::{Cached, Invalidation, Looked, Mark, Put};
use crate::source::{KvSource, Source, Stamped};
use crate::tier::{Memory, Tier};
use crate::{Cache, CacheOptions, Estimate, Level, Measured, MeterOptions, Need, Origin};
use crate::{Result, Strategy, Tiers};

fn every_read() -> MeterOptions {
    MeterOptions {
        one_in: 1,
        at_once_max: 64,
        timeout: Duration::from_secs(1),
    }
}

fn metered() -> CacheOptions {
    CacheOptions {
        meter: Some(every_read()),
        ..options()
    }
}

fn measured(cache: &Cache) -> Measured {
    cache.measured().expect("a meter")
}

#[tokio::test]
async fn meter_finds_what_was_written_and_not_told_in_the_tier_that_served_it() {
    let shop = Shop::new();
    let shared = Shared::new();
    let tiers = Tiers {
        local: Some(Memory::new(1 << 22)),
        remote: Some(shared.clone()),
    };
    let cache = Cache::new(shop.clone(), tiers, metered());
    let other = Cache::new(
        shop.clone(),
        Tiers {
            local: None,
            remote: Some(shared),
        },
        metered(),
    );
    shop.set("a", Some("old"));
    assert_eq!(value(&cache, "a").await.as_deref(), Some("old"));
    shop.set("a", Some("new"));
    assert_eq!(
        value(&cache, "a").await.as_deref(),
        Some("old"),
        "served as ever"
    );
    assert_eq!(value(&other, "a").await.as_deref(), Some("old"));
    let of_cache = measured(&cache);
    assert_eq!((of_cache.source.reads, of_cache.source.stale), (1, 0));
    assert_eq!((of_cache.local.reads, of_cache.local.stale), (1, 1));
    assert!(of_cache.local.staleness(0.5).is_some());
    assert!(of_cache.local.stale_per_million().low > 0.0);
    assert_eq!(measured(&other).tier(Origin::Remote).stale, 1);
    cache
        .invalidate("a", Invalidation::Unknown)
        .await
        .expect("told");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
    assert_eq!(measured(&cache).local.stale, 1, "no more");
}

/// Pauses as a database does, between reading and answering too.
struct Slow(Arc<Shop>, parking_lot::Mutex<Chance>);

impl Slow {
    async fn pause(&self) {
        let micros = self.1.lock().below(3_000);
        sleep(Duration::from_micros(micros)).await;
    }
}

impl Source for Slow {
    fn domain(&self) -> quorate_kv::Domain {
        DOMAIN
    }

    fn load<'a>(&'a self, key: &'a Bytes, need: Need) -> BoxFuture<'a, Result<Stamped>> {
        Box::pin(async move {
            self.pause().await;
            let stamped = self.0.load(key, need).await;
            self.pause().await;
            stamped
        })
    }
}

/// A tier that takes no invalidation.
struct Deaf(Memory);

impl Tier for Deaf {
    fn look<'a>(&'a self, key: &'a Bytes) -> BoxFuture<'a, Result<Looked<Bytes>>> {
        self.0.look(key)
    }

    fn put<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        cached: Cached<Bytes>,
    ) -> BoxFuture<'a, Result<Put>> {
        self.0.put(key, mark, cached)
    }

    fn invalidate<'a>(&'a self, _: &'a Bytes, _: Invalidation) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        self.0.clear()
    }
}

/// Readers and writers at once, in simulated time; answers what the meter found.
fn busy(seed: u64, tiers: Tiers) -> Measured {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let shop = Shop::new();
        let slow = Arc::new(Slow(shop.clone(), Chance::new(seed).into()));
        let cache = Cache::new(slow.clone(), tiers, metered());
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            let (shop, slow, cache) = (shop.clone(), slow.clone(), cache.clone());
            tasks.spawn(async move {
                for round in 0..50 {
                    slow.pause().await;
                    if task > 1 {
                        cache.get("a", Level::Any).await.expect("reads");
                        continue;
                    }
                    let is_there = round % 5 > 0;
                    let commit = async { Ok(Some(shop.set("a", is_there.then_some("value")))) };
                    let written = cache.write("a", Strategy::Versioned, commit).await;
                    assert!(written.expect("commits").untold.is_none());
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("ends");
        }
        let all = |m: &Measured| m.local.reads + m.remote.reads + m.source.reads;
        // What is settled behind takes simulated time.
        while all(&measured(&cache)) < 300 {
            pause_of_simulated_time().await;
        }
        measured(&cache)
    })
}

async fn pause_of_simulated_time() {
    sleep(Duration::from_millis(1)).await;
}

fn stale(measured: &Measured) -> u64 {
    measured.local.stale + measured.remote.stale + measured.source.stale
}

fn right() -> Tiers {
    Tiers {
        local: Some(Memory::new(1 << 22)),
        remote: None,
    }
}

#[test]
fn meter_calls_nothing_stale_that_is_written_while_it_is_read() {
    for seed in 0..20 {
        let measured = busy(seed, right());
        assert_eq!(stale(&measured), 0, "seed {seed}: {measured:?}");
        assert_eq!(measured.shadow_failures, 0);
    }
}

#[test]
fn meter_finds_a_tier_that_takes_no_invalidations() {
    let deaf = Tiers {
        local: None,
        remote: Some(Arc::new(Deaf(Memory::new(1 << 22)))),
    };
    let measured = busy(1, deaf);
    assert!(measured.remote.stale > 50, "{measured:?}");
    assert_eq!(measured.local.reads, 0);
}

#[test]
fn meter_check_notices_a_shadow_that_is_read_too_late() {
    planted::plant(Some(Bug::ShadowAfterRead));
    let found = (0..20).any(|seed| stale(&busy(seed, right())) > 0);
    planted::plant(None);
    assert!(found, "the order of the two does not matter?");
}

#[tokio::test]
async fn meter_finds_deleted_values_without_knowing_when_they_went() {
    use quorate_kv::memory::MemoryKv;
    use quorate_kv::{Kv, Put};
    let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new(DOMAIN));
    let cache = Cache::new(Arc::new(KvSource::new(kv.clone())), right(), metered());
    kv.put(Put::new("a", "old")).await.expect("puts");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("old"));
    kv.delete(quorate_kv::Delete::new("a"))
        .await
        .expect("deletes");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("old"));
    until("the second look", || measured(&cache).local.stale == 1).await;
    cache
        .invalidate("a", Invalidation::Unknown)
        .await
        .expect("told");
    assert_eq!(value(&cache, "a").await, None);
    kv.put(Put::new("a", "back")).await.expect("puts");
    assert_eq!(value(&cache, "a").await, None, "kept that there is none");
    until("the second look", || measured(&cache).local.stale == 2).await;
    assert_eq!(measured(&cache).local.undecided, 0);
}

#[tokio::test]
async fn meter_does_not_harm_reads_when_the_source_fails_panics_or_hangs() {
    let shop = Shop::new();
    let hasty = MeterOptions {
        timeout: Duration::from_millis(5),
        ..every_read()
    };
    let cache = local(
        &shop,
        CacheOptions {
            meter: Some(hasty),
            ..options()
        },
    );
    shop.set("a", Some("one"));
    assert_eq!(value(&cache, "a").await.as_deref(), Some("one"));
    for mode in [Mode::Fail, Mode::Panic, Mode::Hang] {
        shop.mode(mode);
        let read = cache.get("a", Level::Any).await.expect("it is there");
        assert_eq!(
            (text(read.value).as_deref(), read.tier),
            (Some("one"), Origin::Local)
        );
    }
    let measured = measured(&cache);
    assert_eq!((measured.shadow_failures, measured.local.reads), (3, 0));
}

#[tokio::test]
async fn meter_costs_no_more_than_it_may() {
    let shop = Shop::new();
    shop.set("a", Some("one"));
    let few = MeterOptions {
        at_once_max: 2,
        timeout: Duration::from_secs(600),
        ..every_read()
    };
    let cache = local(
        &shop,
        CacheOptions {
            meter: Some(few),
            ..options()
        },
    );
    value(&cache, "a").await;
    shop.hold();
    let before = shop.loads();
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let cache = cache.clone();
        waiting.spawn(async move { value(&cache, "a").await });
    }
    shop.loads_reach(before + 2).await;
    for _ in 0..10 {
        assert_eq!(
            value(&cache, "a").await.as_deref(),
            Some("one"),
            "does not wait"
        );
    }
    assert_eq!(measured(&cache).skipped, 10);
    assert_eq!(shop.loads(), before + 2);
    shop.release();
    while let Some(done) = waiting.join_next().await {
        assert_eq!(done.expect("ends").as_deref(), Some("one"));
    }
    assert_eq!(measured(&cache).local.reads, 2);
}

#[tokio::test]
async fn meter_samples_one_read_in_so_many_or_none() {
    let shop = Shop::new();
    shop.set("a", Some("one"));
    for (one_in, low, high) in [(0, 0, 0), (100, 60, 140), (u64::MAX, 0, 0)] {
        let meter = Some(MeterOptions {
            one_in,
            ..every_read()
        });
        let cache = local(&shop, CacheOptions { meter, ..options() });
        for _ in 0..10_000 {
            value(&cache, "a").await;
        }
        let measured = measured(&cache);
        let sampled = measured.local.reads + measured.source.reads;
        assert!((low..=high).contains(&sampled), "{sampled} of 10,000");
    }
    assert!(
        over(&shop, Shared::new(), true).measured().is_none(),
        "no meter"
    );
}

#[test]
fn meter_estimates_hold_what_is_certain() {
    let none = Estimate::per_million(0, 0);
    assert_eq!((none.low, none.high), (0.0, 1e6));
    let zero = Estimate::per_million(0, 1_000_000);
    assert!(
        zero.rate == 0.0 && zero.low == 0.0 && (3.0..5.0).contains(&zero.high),
        "{zero:?}"
    );
    let some = Estimate::per_million(100, 1_000_000);
    assert!(
        (80.0..83.0).contains(&some.low) && (121.0..123.0).contains(&some.high),
        "{some:?}"
    );
    let all = Estimate::per_million(10, 10);
    assert!(
        all.high == 1e6 && (700_000.0..730_000.0).contains(&all.low),
        "{all:?}"
    );
}

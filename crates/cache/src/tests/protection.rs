//! Stampedes, penetration, avalanches, failures of the source and of the shared tier.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::time::{Instant, advance};

use super::support::{Mode, Shared, Shop, local, options, over, text, until, value};
use crate::tier::Memory;
use crate::{Cache, CacheOptions, ErrorKind, Invalidation, Level, Origin, Tiers, Version};

const SECOND: Duration = Duration::from_secs(1);

/// Values expire after 10 s.
fn short() -> CacheOptions {
    CacheOptions {
        ttl: 10 * SECOND,
        ..options()
    }
}

#[tokio::test(start_paused = true)]
async fn negative_entry_is_kept_for_its_own_time() {
    let shop = Shop::new();
    let cache = local(&shop, options());
    for _ in 0..3 {
        assert_eq!(value(&cache, "nobody").await, None);
    }
    assert_eq!(shop.loads(), 1);
    shop.set("nobody", Some("somebody"));
    advance(5 * SECOND).await;
    assert_eq!(value(&cache, "nobody").await.as_deref(), Some("somebody"));
}

#[tokio::test(start_paused = true)]
async fn ttl_differs_by_chance_within_its_part() {
    let shop = Shop::new();
    let spread = CacheOptions {
        jitter: 0.5,
        ..short()
    };
    let cache = local(&shop, spread);
    let keys: Vec<String> = (0..200).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        shop.set(key, Some("1"));
        value(&cache, key).await;
    }
    advance(5 * SECOND - Duration::from_millis(1)).await;
    cache.get_many(&keys, Level::Any).await;
    assert_eq!(shop.loads(), 200, "none before its time");
    advance(Duration::from_millis(2_500)).await;
    cache.get_many(&keys, Level::Any).await;
    let loads = shop.loads();
    assert!(
        (260..340).contains(&loads),
        "about half by half of it: {loads}"
    );
}

#[tokio::test(start_paused = true)]
async fn refresh_ahead_loads_in_the_background_before_the_end() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let ahead = CacheOptions {
        refresh_ahead: 2 * SECOND,
        ..short()
    };
    let cache = local(&shop, ahead);
    value(&cache, "a").await;
    shop.set("a", Some("2"));
    advance(9 * SECOND).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"), "at once");
    until("the refresh", || shop.loads() == 2 && cache.flights() == 0).await;
    let read = cache.get("a", Level::Any).await.expect("reads");
    assert_eq!(
        (text(read.value).as_deref(), read.tier),
        (Some("2"), Origin::Local)
    );
}

#[tokio::test(start_paused = true)]
async fn stale_while_revalidate_serves_at_once_and_loads_once() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let lax = CacheOptions {
        stale_while_revalidate: 5 * SECOND,
        ..short()
    };
    let cache = local(&shop, lax);
    value(&cache, "a").await;
    shop.set("a", Some("2"));
    shop.hold();
    advance(14 * SECOND).await;
    for _ in 0..10 {
        let read = cache.get("a", Level::Any).await.expect("reads");
        assert!(read.is_stale && text(read.value).as_deref() == Some("1"));
    }
    shop.loads_reach(2).await;
    shop.release();
    until("the refresh", || cache.flights() == 0).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("2"));
    assert_eq!((shop.loads(), cache.stats().stale_served), (2, 10));
}

#[tokio::test(start_paused = true)]
async fn fail_safe_serves_the_expired_for_its_time_at_lax_levels_only() {
    let shop = Shop::new();
    let version = shop.set("a", Some("1"));
    let safe = CacheOptions {
        fail_safe: 60 * SECOND,
        ..short()
    };
    let cache = local(&shop, safe);
    value(&cache, "a").await;
    shop.mode(Mode::Fail);
    advance(20 * SECOND).await;
    let read = cache.get("a", Level::Any).await.expect("reads");
    assert!(read.is_stale && text(read.value).as_deref() == Some("1"));
    assert_eq!(read.age, Some(20 * SECOND));
    let bound = |seconds| Level::BoundedStale(seconds * SECOND);
    assert!(cache.get("a", bound(20)).await.expect("reads").is_stale);
    for level in [
        bound(19),
        Level::Linearizable,
        Level::AtLeast(cache.token(version)),
    ] {
        let failed = cache.get("a", level).await.expect_err("fails");
        assert_eq!(failed.kind(), ErrorKind::Unavailable, "{level:?}");
    }
    advance(50 * SECOND).await;
    cache
        .get("a", Level::Any)
        .await
        .expect_err("its time is over");
}

/// A process without a tier of its own, or one with: either finds what has expired in the shared one.
fn safe_over(shop: &Arc<Shop>, shared: &Arc<Shared>, has_local: bool) -> Cache {
    let tiers = Tiers {
        local: has_local.then(|| Memory::new(1 << 22)),
        remote: Some(shared.clone()),
    };
    let safe = CacheOptions {
        fail_safe: 60 * SECOND,
        ..short()
    };
    Cache::new(shop.clone(), tiers, safe)
}

#[tokio::test(start_paused = true)]
async fn fail_safe_serves_what_expired_in_the_shared_tier_at_lax_levels_only() {
    for has_local in [false, true] {
        let (shop, shared) = (Shop::new(), Shared::new());
        let version = shop.set("a", Some("1"));
        value(&safe_over(&shop, &shared, false), "a").await;
        let cache = safe_over(&shop, &shared, has_local);
        shop.mode(Mode::Fail);
        advance(20 * SECOND).await;
        let read = cache.get("a", Level::Any).await.expect("reads");
        assert_eq!((read.tier, read.is_stale), (Origin::Remote, true));
        assert_eq!((read.version, read.age), (version, Some(20 * SECOND)));
        let bound = |seconds| Level::BoundedStale(seconds * SECOND);
        assert!(cache.get("a", bound(20)).await.expect("reads").is_stale);
        let token = Level::AtLeast(cache.token(version));
        for level in [bound(19), Level::Linearizable, token] {
            let failed = cache.get("a", level).await.expect_err("fails");
            assert_eq!(failed.kind(), ErrorKind::Unavailable, "{level:?}");
        }
        assert_eq!(cache.stats().stale_served, 2);
        advance(49 * SECOND).await;
        assert!(cache.get("a", Level::Any).await.expect("reads").is_stale);
        advance(SECOND).await;
        let over = cache.get("a", Level::Any).await;
        assert_eq!(over.expect_err("is over").kind(), ErrorKind::Unavailable);
    }
}

#[tokio::test(start_paused = true)]
async fn fail_safe_waits_for_a_source_that_hangs_no_longer_than_the_soft_timeout() {
    let (shop, shared) = (Shop::new(), Shared::new());
    shop.set("a", Some("1"));
    let cache = safe_over(&shop, &shared, false);
    value(&cache, "a").await;
    shop.mode(Mode::Hang);
    advance(20 * SECOND).await;
    let (soft, hard) = (short().soft_timeout, short().hard_timeout);
    let began = Instant::now();
    assert!(cache.get("a", Level::Any).await.expect("reads").is_stale);
    let waited = began.elapsed();
    assert!(waited >= soft && waited < 2 * soft, "{waited:?}");
    let began = Instant::now();
    let nothing = cache.get("b", Level::Any).await.expect_err("hangs");
    assert_eq!(nothing.kind(), ErrorKind::Timeout);
    let waited = began.elapsed();
    assert!(waited >= hard && waited < hard + soft, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn fail_safe_never_serves_from_the_shared_tier_what_was_invalidated_or_taken_back() {
    for has_local in [false, true] {
        let (shop, shared) = (Shop::new(), Shared::new());
        let cache = safe_over(&shop, &shared, has_local);
        let other = safe_over(&shop, &shared, true);
        for key in ["a", "b", "user/1", "c"] {
            shop.set(key, Some("1"));
            value(&other, key).await;
        }
        shop.mode(Mode::Fail);
        advance(20 * SECOND).await;
        let told = other.invalidate("a", Invalidation::Unknown).await;
        told.expect("is told");
        let told = other.invalidate_tag("user", Invalidation::Unknown).await;
        told.expect("is told");
        shared.down(true);
        let at = Invalidation::At(Version::new(9));
        let told = cache.invalidate("b", at).await;
        told.expect_err("the shared tier is down");
        shared.down(false);
        for key in ["a", "b", "user/1"] {
            let gone = cache.get(key, Level::Any).await;
            assert_eq!(gone.expect_err(key).kind(), ErrorKind::Unavailable);
        }
        assert!(cache.get("c", Level::Any).await.expect("reads").is_stale);
        cache.raise(Version::epoch(1));
        let gone = cache.get("c", Level::Any).await;
        assert_eq!(gone.expect_err("taken back").kind(), ErrorKind::Unavailable);
    }
}

#[tokio::test(start_paused = true)]
async fn fail_safe_never_serves_what_was_invalidated() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let safe = CacheOptions {
        fail_safe: 60 * SECOND,
        stale_while_revalidate: 60 * SECOND,
        ..short()
    };
    let cache = local(&shop, safe);
    value(&cache, "a").await;
    shop.mode(Mode::Fail);
    cache
        .invalidate("a", Invalidation::Unknown)
        .await
        .expect("invalidates");
    let failed = cache.get("a", Level::Any).await.expect_err("fails");
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn soft_timeout_serves_the_expired_and_the_load_ends_in_the_background() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let safe = CacheOptions {
        fail_safe: 60 * SECOND,
        ..short()
    };
    let cache = local(&shop, safe);
    value(&cache, "a").await;
    shop.set("a", Some("2"));
    shop.hold();
    advance(20 * SECOND).await;
    let began = tokio::time::Instant::now();
    let read = cache.get("a", Level::Any).await.expect("reads");
    assert!(read.is_stale);
    assert!(
        began.elapsed() < 2 * options().soft_timeout,
        "{:?}",
        began.elapsed()
    );
    shop.release();
    until("the load", || cache.flights() == 0).await;
    let read = cache.get("a", Level::Any).await.expect("reads");
    assert_eq!(
        (text(read.value).as_deref(), read.is_stale),
        (Some("2"), false)
    );
    assert_eq!(shop.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn shared_tier_that_fails_is_left_alone_and_found_again() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let tiers = Tiers {
        local: None,
        remote: Some(shared.clone()),
    };
    let cache = Cache::new(shop.clone(), tiers, options());
    shop.set("a", Some("1"));
    shared.down(true);
    for _ in 0..20 {
        assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    }
    assert_eq!(
        shared.calls.load(SeqCst),
        5,
        "after five failures nobody asks"
    );
    assert_eq!(shop.loads(), 20);
    assert!(shop.last_need().latest, "what its floor is, nobody knows");
    shared.down(false);
    advance(2 * SECOND).await;
    value(&cache, "a").await;
    let read = cache.get("a", Level::Any).await.expect("reads");
    assert_eq!(read.tier, Origin::Remote);
    let stats = cache.stats();
    assert_eq!(stats.remote_failures, 5);
    assert!(stats.remote_skips > 0);
}

#[tokio::test(start_paused = true)]
async fn shared_tier_that_is_slow_costs_its_time_limit_and_no_more() {
    let (shop, shared) = (Shop::new(), Shared::new());
    *shared.gate.lock() = Some(std::sync::Arc::new(tokio::sync::Semaphore::new(0)));
    let cache = over(&shop, shared, true);
    shop.set("a", Some("1"));
    let began = tokio::time::Instant::now();
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(began.elapsed(), options().remote_timeout);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(shop.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn shared_tier_that_was_down_is_not_believed_until_it_is_told() {
    for (has_local, by_version) in [(true, true), (true, false), (false, true), (false, false)] {
        let (shop, shared) = (Shop::new(), Shared::new());
        let cache = over(&shop, shared.clone(), has_local);
        let other = over(&shop, shared.clone(), false);
        shop.set("a", Some("1"));
        value(&cache, "a").await;
        let version = shop.set("a", Some("2"));
        let invalidation = match by_version {
            true => Invalidation::At(version),
            false => Invalidation::Unknown,
        };
        shared.down(true);
        let failed = cache.invalidate("a", invalidation).await;
        assert_eq!(failed.expect_err("fails").kind(), ErrorKind::Unavailable);
        shared.down(false);
        assert_eq!(
            value(&other, "a").await.as_deref(),
            Some("1"),
            "nobody told it"
        );
        assert_eq!(value(&cache, "a").await.as_deref(), Some("2"));
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(
            value(&other, "a").await.as_deref(),
            Some("2"),
            "told by itself"
        );
        if !has_local {
            let read = cache.get("a", Level::Any).await.expect("reads");
            assert_eq!(read.tier, Origin::Remote);
        }
    }
}

#[tokio::test]
async fn batch_answers_each_key_from_where_it_is() {
    let shop = Shop::new();
    let tiers = Tiers {
        local: Some(Memory::new(1 << 22)),
        remote: None,
    };
    let cache = Cache::new(shop.clone(), tiers, options());
    for key in ["a", "b", "c"] {
        shop.set(key, Some(key));
    }
    value(&cache, "b").await;
    let reads = cache
        .get_many(&["a", "b", "", "none", "c", "a"], Level::Any)
        .await;
    let found: Vec<_> = reads
        .into_iter()
        .map(|read| read.map(|read| (text(read.value), read.tier)))
        .collect();
    let some = |value: &str, tier| Ok((Some(value.to_owned()), tier));
    assert_eq!(found[0], some("a", Origin::Source));
    assert_eq!(found[1], some("b", Origin::Local));
    assert_eq!(
        found[2].as_ref().map_err(|error| error.kind()),
        Err(ErrorKind::Invalid)
    );
    assert_eq!(found[3], Ok((None, Origin::Source)));
    assert_eq!(found[4], some("c", Origin::Source));
    assert_eq!(found[5], some("a", Origin::Source));
    assert_eq!(
        shop.loads(),
        4,
        "a key that is asked for twice is loaded once"
    );
}

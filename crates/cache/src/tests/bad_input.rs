//! What can't be, or should not: keys, values, times, sources.

use std::time::Duration;

use bytes::Bytes;

use super::support::{Mode, Shared, Shop, local, options, over, value};
use crate::{CacheOptions, ErrorKind, Invalidation, Level, Origin};

fn number(bytes: &Bytes) -> Result<u64, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

#[tokio::test]
async fn value_that_a_tier_has_and_cannot_be_decoded_is_a_miss_and_counted() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let cache = over(&shop, shared, true);
    let version = shop.set("a", Some("of an old schema"));
    value(&cache, "a").await;
    // The new program writes it anew, at a version that the cache was not told of.
    shop.set("a", Some("42"));
    for tier in [Origin::Source, Origin::Local] {
        let read = cache.get_as("a", Level::Any, number).await.expect("reads");
        assert_eq!((read.value, read.tier), (Some(42), tier));
        assert!(read.version > version);
    }
    assert_eq!(cache.stats().undecodable, 1);
}

#[tokio::test]
async fn value_that_the_source_has_and_cannot_be_decoded_is_an_error() {
    let shop = Shop::new();
    shop.set("a", Some("no number"));
    let cache = local(&shop, options());
    for _ in 0..2 {
        let failed = cache
            .get_as("a", Level::Any, number)
            .await
            .expect_err("fails");
        assert_eq!(failed.kind(), ErrorKind::Undecodable);
    }
}

#[tokio::test]
async fn key_that_is_empty_or_too_large_is_refused() {
    let shop = Shop::new();
    let cache = local(&shop, options());
    let large = vec![0; 4097];
    for (key, kind) in [(&large[..], ErrorKind::TooLarge), (&[], ErrorKind::Invalid)] {
        let failed = cache.get(key, Level::Any).await.expect_err("is refused");
        assert_eq!(failed.kind(), kind);
        let failed = cache.invalidate(key, Invalidation::Unknown).await;
        assert_eq!(failed.expect_err("is refused").kind(), kind);
    }
    cache.get(&large[..4096], Level::Any).await.expect("reads");
    assert_eq!(shop.loads(), 1);
}

#[tokio::test]
async fn value_that_is_too_large_is_served_and_not_kept() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let cache = over(&shop, shared, true);
    shop.set("a", Some(&"x".repeat((1 << 20) + 1)));
    for loads in 1..=2 {
        assert!(value(&cache, "a").await.is_some());
        assert_eq!(
            (shop.loads(), cache.stats().values_too_large),
            (loads, loads)
        );
    }
}

#[tokio::test]
async fn ttl_of_zero_keeps_nothing() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let none = CacheOptions {
        ttl: Duration::ZERO,
        ..options()
    };
    let cache = local(&shop, none);
    for loads in 1..=3 {
        assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
        assert_eq!(shop.loads(), loads);
    }
}

#[tokio::test(start_paused = true)]
async fn times_past_the_end_of_time_are_as_good_as_for_ever() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let endless = CacheOptions {
        ttl: Duration::MAX,
        local_ttl: Duration::MAX,
        negative_ttl: Duration::MAX,
        jitter: f64::NAN,
        refresh_ahead: Duration::ZERO,
        stale_while_revalidate: Duration::MAX,
        fail_safe: Duration::MAX,
        soft_timeout: Duration::MAX,
        hard_timeout: Duration::MAX,
        load_timeout: Duration::MAX,
        remote_timeout: Duration::MAX,
        breaker_pause: Duration::MAX,
        ..options()
    };
    let cache = local(&shop, endless);
    value(&cache, "a").await;
    tokio::time::advance(Duration::from_secs(86_400 * 365)).await;
    let bound = Level::BoundedStale(Duration::MAX);
    let read = cache.get("a", bound).await.expect("reads");
    assert_eq!((read.tier, read.is_stale), (Origin::Local, false));
    assert_eq!(shop.loads(), 1);
}

#[tokio::test]
async fn source_that_answers_an_older_version_does_not_undo_what_is_there() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let version = shop.set("a", Some("2"));
    let cache = local(&shop, options());
    cache
        .invalidate("a", Invalidation::At(version))
        .await
        .expect("invalidates");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("2"));
    shop.mode(Mode::Behind(1));
    let failed = cache
        .get("a", Level::Linearizable)
        .await
        .expect_err("is behind");
    assert_eq!(failed.kind(), ErrorKind::Behind);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("2"));
}

//! Tags: one invalidation for all keys that have one.

use std::time::Duration;

use super::support::{Mode, Shared, Shop, local, options, over, text, value};
use crate::{Cache, CacheOptions, ErrorKind, Invalidation, Level, Origin, Version};

const KEYS: [&str; 3] = ["user/1", "user/2", "order/1"];

fn set_all(shop: &Shop, to: &str) -> Version {
    let versions = KEYS.map(|key| shop.set(key, Some(to)));
    versions[KEYS.len() - 1]
}

async fn values(cache: &Cache) -> Vec<String> {
    let mut values = Vec::new();
    for key in KEYS {
        values.push(value(cache, key).await.expect("is there"));
    }
    values
}

#[tokio::test]
async fn tag_that_is_invalidated_drops_its_keys_in_both_tiers_and_no_others() {
    for by_version in [true, false] {
        let (shop, shared) = (Shop::new(), Shared::new());
        set_all(&shop, "old");
        let both = over(&shop, shared.clone(), true);
        let remote = over(&shop, shared, false);
        for cache in [&both, &remote] {
            assert_eq!(values(cache).await, ["old"; 3]);
        }
        let version = set_all(&shop, "new");
        let invalidation = match by_version {
            true => Invalidation::At(version),
            false => Invalidation::Unknown,
        };
        let told = both.invalidate_tag("user", invalidation).await;
        told.expect("is told");
        let loads = shop.loads();
        for cache in [&both, &remote] {
            assert_eq!(values(cache).await, ["new", "new", "old"]);
        }
        assert_eq!(shop.loads(), loads + 2, "what is new is kept in both tiers");
    }
}

#[tokio::test]
async fn tag_that_is_invalidated_during_a_load_refuses_it() {
    let (shop, shared) = (Shop::new(), Shared::new());
    set_all(&shop, "old");
    let cache = over(&shop, shared.clone(), true);
    shop.hold();
    let early = tokio::spawn({
        let cache = cache.clone();
        async move { value(&cache, "user/1").await }
    });
    shop.loads_reach(1).await;
    set_all(&shop, "new");
    let told = cache.invalidate_tag("user", Invalidation::Unknown).await;
    told.expect("is told");
    let late = tokio::spawn({
        let cache = cache.clone();
        async move { value(&cache, "user/1").await }
    });
    shop.release();
    assert_eq!(late.await.expect("reads").as_deref(), Some("new"));
    early.await.expect("is answered");
    let other = over(&shop, shared, false);
    for cache in [&cache, &other] {
        assert_eq!(value(cache, "user/1").await.as_deref(), Some("new"));
    }
}

#[tokio::test]
async fn tag_by_version_lets_fills_come_from_any_replica_that_has_it() {
    let shop = Shop::new();
    set_all(&shop, "old");
    let cache = local(&shop, options());
    let version = set_all(&shop, "new");
    let told = cache
        .invalidate_tag("user", Invalidation::At(version))
        .await;
    told.expect("is told");
    shop.mode(Mode::Behind(version.n));
    assert_eq!(value(&cache, "user/1").await.as_deref(), Some("new"));
    let need = shop.last_need();
    assert_eq!((need.at_least, need.latest), (version, false));
    shop.mode(Mode::Behind(version.n - 1));
    let refused = cache.get("user/2", Level::Any).await.expect_err("too old");
    assert_eq!(refused.kind(), ErrorKind::Behind);
}

#[tokio::test]
async fn tag_that_the_remote_tier_was_not_told_is_not_believed_and_told_later() {
    let (shop, shared) = (Shop::new(), Shared::new());
    set_all(&shop, "old");
    let writer = Cache::new(
        shop.clone(),
        crate::Tiers {
            local: None,
            remote: Some(shared.clone()),
        },
        CacheOptions {
            breaker_pause: Duration::from_millis(10),
            ..options()
        },
    );
    assert_eq!(values(&writer).await, ["old"; 3]);
    set_all(&shop, "new");
    shared.down(true);
    let told = writer.invalidate_tag("user", Invalidation::Unknown).await;
    assert_eq!(told.expect_err("is down").kind(), ErrorKind::Unavailable);
    assert_eq!(value(&writer, "user/1").await.as_deref(), Some("new"));
    shared.down(false);
    let other = over(&shop, shared, false);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while value(&other, "user/2").await.as_deref() != Some("new") {
        assert!(std::time::Instant::now() < deadline, "it is repeated");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn tag_whose_record_was_evicted_drops_its_keys() {
    let (shop, shared) = (Shop::new(), Shared::new());
    set_all(&shop, "old");
    let cache = over(&shop, shared.clone(), false);
    assert_eq!(values(&cache).await, ["old"; 3]);
    shared.memory.evict(b"\0tag\0user");
    let tiers = KEYS.map(|key| cache.get(key, Level::Any));
    let tiers = futures_util::future::join_all(tiers).await;
    let tiers: Vec<Origin> = tiers
        .into_iter()
        .map(|read| read.expect("reads").tier)
        .collect();
    assert_eq!(tiers, [Origin::Source, Origin::Source, Origin::Remote]);
}

#[tokio::test(start_paused = true)]
async fn tag_that_is_invalidated_leaves_nothing_to_serve_when_the_source_fails() {
    let shop = Shop::new();
    set_all(&shop, "old");
    let cache = local(
        &shop,
        CacheOptions {
            fail_safe: Duration::from_secs(3600),
            ..options()
        },
    );
    assert_eq!(values(&cache).await, ["old"; 3]);
    tokio::time::advance(Duration::from_secs(120)).await;
    shop.mode(Mode::Fail);
    let read = cache.get("user/1", Level::Any).await.expect("fail-safe");
    assert!(read.is_stale && text(read.value).as_deref() == Some("old"));
    let told = cache.invalidate_tag("user", Invalidation::Unknown).await;
    told.expect("is told");
    cache.get("user/1", Level::Any).await.expect_err("is gone");
    let other = cache.get("order/1", Level::Any).await.expect("fail-safe");
    assert!(other.is_stale);
}

#[tokio::test]
async fn tag_that_is_empty_or_too_long_is_refused() {
    let cache = local(&Shop::new(), options());
    let long = vec![b'x'; options().key_bytes_max + 1];
    for (tag, kind) in [(&b""[..], ErrorKind::Invalid), (&long, ErrorKind::TooLarge)] {
        let refused = cache.invalidate_tag(tag, Invalidation::Unknown).await;
        assert_eq!(refused.expect_err("can't be").kind(), kind);
    }
}

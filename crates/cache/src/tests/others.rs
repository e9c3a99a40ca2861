//! Bugs that other caches had or have, which this one must not.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::support::{Mode, Shared, Shop, local, options, over, until, value};
use crate::{Invalidation, Origin, Version};

/// FusionCache #613: a value read from the second level while its key is invalidated lands in the first.
#[tokio::test]
async fn fusioncache_613_promotion_during_an_invalidation_is_not_kept() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let cache = over(&shop, shared.clone(), true);
    shop.set("a", Some("old"));
    value(&over(&shop, shared.clone(), true), "a").await;
    let gate = Arc::new(Semaphore::new(0));
    *shared.gate.lock() = Some(gate.clone());
    let reader = cache.clone();
    let reader = tokio::spawn(async move { reader.get("a", crate::Level::Any).await });
    until("the look", || {
        shared.calls.load(std::sync::atomic::Ordering::SeqCst) > 2
    })
    .await;
    // It has the old value in its hand, and has not installed it.
    *shared.gate.lock() = None;
    shop.set("a", Some("new"));
    cache
        .invalidate("a", Invalidation::Unknown)
        .await
        .expect("invalidates");
    gate.add_permits(1);
    let read = reader.await.expect("ends").expect("reads");
    assert_eq!(read.tier, Origin::Remote, "its read began before");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
}

/// FusionCache #625: a key is removed while its factory runs, and the old value is stored afterwards.
#[tokio::test]
async fn fusioncache_625_removal_during_a_load_is_not_undone() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let cache = over(&shop, shared.clone(), true);
    shop.set("a", Some("old"));
    shop.hold();
    let reader = cache.clone();
    let reader = tokio::spawn(async move { value(&reader, "a").await });
    shop.loads_reach(1).await;
    shop.set("a", None);
    cache
        .invalidate("a", Invalidation::Unknown)
        .await
        .expect("invalidates");
    shop.release();
    reader.await.expect("ends");
    assert_eq!(value(&cache, "a").await, None);
    assert_eq!(
        value(&over(&shop, shared, true), "a").await,
        None,
        "nor in the shared tier"
    );
    assert_eq!(cache.stats().fills_refused, 1);
}

/// moka: `invalidate` does not know of an initialization under way, which inserts its value afterwards.
#[tokio::test]
async fn moka_fill_after_an_invalidation_is_not_kept() {
    let shop = Shop::new();
    let cache = local(&shop, options());
    shop.set("a", Some("old"));
    shop.hold();
    let reader = cache.clone();
    let reader = tokio::spawn(async move { value(&reader, "a").await });
    shop.loads_reach(1).await;
    let version = shop.set("a", Some("new"));
    cache
        .invalidate("a", Invalidation::At(version))
        .await
        .expect("invalidates");
    shop.release();
    reader.await.expect("ends");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
}

/// lettuce #3481: with client-side caching an invalidation that comes before the reply it is about is lost, since
/// the key is not in the cache yet. Here the mark is taken before the question.
#[tokio::test]
async fn lettuce_3481_invalidation_before_the_reply_counts() {
    let shop = Shop::new();
    let cache = local(&shop, options());
    shop.set("a", Some("old"));
    shop.hold();
    let reader = cache.clone();
    let reader = tokio::spawn(async move { value(&reader, "a").await });
    shop.loads_reach(1).await;
    shop.set("a", Some("new"));
    assert_eq!(cache.local_bytes(), 161, "only the mark is there");
    cache
        .invalidate("a", Invalidation::Unknown)
        .await
        .expect("invalidates");
    shop.release();
    reader.await.expect("ends");
    for _ in 0..2 {
        assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
    }
}

/// RocksCache: after a deletion a fill from a replica that lags is taken, and stays.
#[tokio::test]
async fn rockscache_fill_from_a_lagging_replica_is_refused() {
    let (shop, shared) = (Shop::new(), Shared::new());
    for cache in [over(&shop, shared, true), local(&shop, options())] {
        shop.set("a", Some("old"));
        value(&cache, "a").await;
        let version = shop.set("a", Some("new"));
        cache
            .invalidate("a", Invalidation::At(version))
            .await
            .expect("invalidates");
        shop.mode(Mode::Behind(version.n - 1));
        let failed = cache
            .get("a", crate::Level::Any)
            .await
            .expect_err("it lags");
        assert_eq!(failed.kind(), crate::ErrorKind::Behind);
        shop.mode(Mode::Answer);
        assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
        assert!(
            shop.last_need().at_least >= version,
            "the source is told what it must have"
        );
        assert_ne!(version, Version::ZERO);
    }
}

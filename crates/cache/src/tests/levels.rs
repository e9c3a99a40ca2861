//! Levels: met, or not answered.

use std::time::Duration;

use quorate_kv::{Domain, Token};

use super::support::{DOMAIN, Mode, Shared, Shop, local, options, over, text, until, value};
use crate::{ErrorKind, Invalidation, Level, Origin, Version};

fn token(n: u64) -> Level {
    Level::AtLeast(Token {
        domain: DOMAIN,
        version: n,
    })
}

#[tokio::test]
async fn level_any_is_answered_by_the_nearest_tier() {
    let (shop, shared) = (Shop::new(), Shared::new());
    shop.set("a", Some("1"));
    let (one, two) = (over(&shop, shared.clone(), true), over(&shop, shared, true));
    let tiers = [
        (&one, Origin::Source),
        (&one, Origin::Local),
        (&two, Origin::Remote),
        (&two, Origin::Local),
    ];
    for (cache, tier) in tiers {
        let read = cache.get("a", Level::Any).await.expect("reads");
        assert_eq!((text(read.value).as_deref(), read.tier), (Some("1"), tier));
        assert_eq!((read.version, read.is_stale), (Version::new(1), false));
    }
    assert_eq!(shop.loads(), 1);
}

#[tokio::test]
async fn level_linearizable_sees_what_nobody_was_told_of() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let cache = local(&shop, options());
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    shop.set("a", Some("2"));
    let read = cache.get("a", Level::Linearizable).await.expect("reads");
    assert_eq!(
        (text(read.value).as_deref(), read.tier),
        (Some("2"), Origin::Source)
    );
    assert_eq!(
        value(&cache, "a").await.as_deref(),
        Some("2"),
        "and leaves it there"
    );
}

#[tokio::test]
async fn level_linearizable_joins_no_load_that_has_begun_and_shares_the_next() {
    let shop = Shop::new();
    shop.set("a", Some("old"));
    shop.hold();
    let cache = local(&shop, options());
    let early = cache.clone();
    let early = tokio::spawn(async move { early.get("a", Level::Linearizable).await });
    shop.loads_reach(1).await;
    shop.set("a", Some("new"));
    let late: Vec<_> = (0..50)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get("a", Level::Linearizable).await })
        })
        .collect();
    until("all to wait", || cache.stats().joins == 49).await;
    shop.release();
    early.await.expect("ends").expect("reads");
    for read in late {
        let read = read.await.expect("ends").expect("reads");
        assert_eq!(text(read.value).as_deref(), Some("new"));
    }
    assert_eq!(shop.loads(), 2);
}

#[tokio::test]
async fn level_at_least_loads_only_what_is_below_the_token() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let cache = local(&shop, options());
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    cache.get("a", token(1)).await.expect("reads");
    assert_eq!(shop.loads(), 1, "what is there will do");
    shop.set("b", Some("x"));
    cache.get("a", token(2)).await.expect("reads");
    assert_eq!(
        (shop.loads(), shop.last_need().at_least),
        (2, Version::new(2))
    );
    cache.get("a", token(2)).await.expect("reads");
    assert_eq!(shop.loads(), 2, "it was seen at the token's version");
}

#[tokio::test]
async fn level_at_least_fails_where_the_source_is_behind() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    shop.set("a", Some("2"));
    shop.mode(Mode::Behind(1));
    let cache = local(&shop, options());
    let failed = cache.get("a", token(2)).await.expect_err("is behind");
    assert_eq!(failed.kind(), ErrorKind::Behind);
    assert!(failed.is_retryable());
    assert_eq!(shop.loads(), 2, "once from anywhere, once from the newest");
    shop.mode(Mode::Answer);
    let read = cache.get("a", token(2)).await.expect("reads");
    assert_eq!(text(read.value).as_deref(), Some("2"));
}

#[tokio::test]
async fn level_at_least_refuses_tokens_of_other_sources_and_lost_epochs() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let cache = local(&shop, options());
    let strange = Level::AtLeast(Token {
        domain: Domain {
            cluster: 8,
            ..DOMAIN
        },
        version: 1,
    });
    let failed = cache.get("a", strange).await.expect_err("is strange");
    assert_eq!(failed.kind(), ErrorKind::WrongDomain);
    cache.raise(Version::epoch(1));
    let failed = cache.get("a", token(1)).await.expect_err("is of before");
    assert_eq!(failed.kind(), ErrorKind::WrongDomain);
}

#[tokio::test(start_paused = true)]
async fn level_bounded_stale_loads_what_is_older() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let cache = local(&shop, options());
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    shop.set("a", Some("2"));
    tokio::time::advance(Duration::from_secs(10)).await;
    let bound = |seconds| Level::BoundedStale(Duration::from_secs(seconds));
    let read = cache.get("a", bound(10)).await.expect("reads");
    assert_eq!(text(read.value).as_deref(), Some("1"));
    assert_eq!(read.age, Some(Duration::from_secs(10)));
    let read = cache.get("a", bound(9)).await.expect("reads");
    assert_eq!(text(read.value).as_deref(), Some("2"));
    assert_eq!(read.tier, Origin::Source);
}

#[tokio::test(start_paused = true)]
async fn level_bounded_stale_is_not_served_what_a_lagging_replica_gave() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    shop.set("a", Some("2"));
    shop.mode(Mode::Behind(1));
    let cache = local(&shop, options());
    let read = cache.get("a", Level::Any).await.expect("reads");
    assert_eq!((text(read.value).as_deref(), read.age), (Some("1"), None));
    shop.mode(Mode::Answer);
    let bound = Level::BoundedStale(Duration::from_secs(60));
    let read = cache.get("a", bound).await.expect("reads");
    assert_eq!(text(read.value).as_deref(), Some("2"));
    assert!(shop.last_need().latest);
}

#[tokio::test(start_paused = true)]
async fn level_bounded_stale_counts_the_age_in_the_shared_tier() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let (one, two) = (over(&shop, shared.clone(), true), over(&shop, shared, true));
    shop.set("a", Some("1"));
    value(&one, "a").await;
    shop.set("a", Some("2"));
    tokio::time::advance(Duration::from_secs(7)).await;
    let read = two.get("a", Level::Any).await.expect("reads");
    assert_eq!(
        (read.tier, read.age),
        (Origin::Remote, Some(Duration::from_secs(7)))
    );
    tokio::time::advance(Duration::from_secs(1)).await;
    let bound = Level::BoundedStale(Duration::from_secs(7));
    let read = two.get("a", bound).await.expect("reads");
    assert_eq!(text(read.value).as_deref(), Some("2"));
}

#[tokio::test]
async fn failover_of_the_source_drops_what_it_took_back() {
    let shop = Shop::new();
    shop.set("a", Some("kept"));
    shop.set("b", Some("kept"));
    shop.set("b", Some("lost"));
    let cache = local(&shop, options());
    assert_eq!(value(&cache, "b").await.as_deref(), Some("lost"));
    shop.fail_over(2);
    // A load of another key tells of the new epoch.
    assert_eq!(value(&cache, "a").await.as_deref(), Some("kept"));
    assert_eq!(value(&cache, "b").await.as_deref(), Some("kept"));
    let version = shop.set("b", Some("new"));
    assert_eq!(version, Version { epoch: 1, n: 3 });
    cache
        .invalidate("b", Invalidation::At(version))
        .await
        .expect("invalidates");
    assert_eq!(value(&cache, "b").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn failover_that_an_invalidation_tells_of_drops_what_it_took_back() {
    let shop = Shop::new();
    shop.set("a", Some("kept"));
    shop.set("a", Some("lost"));
    let cache = local(&shop, options());
    assert_eq!(value(&cache, "a").await.as_deref(), Some("lost"));
    shop.fail_over(1);
    let other = Invalidation::At(shop.set("b", Some("new")));
    cache.invalidate("b", other).await.expect("invalidates");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("kept"));
}

#[tokio::test]
async fn gap_drops_all_that_may_have_been_missed() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let cache = over(&shop, shared, true);
    shop.set("a", Some("1"));
    value(&cache, "a").await;
    shop.set("a", Some("2"));
    assert_eq!(
        value(&cache, "a").await.as_deref(),
        Some("1"),
        "nobody was told"
    );
    cache.clear().await.expect("clears");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("2"));
    assert!(shop.last_need().latest);
    let version = shop.set("a", Some("3"));
    cache.raise(version);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("3"));
}

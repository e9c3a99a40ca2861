//! Single flight: one load for all who wait, and nobody is stranded.

use std::time::Duration;

use super::support::{Mode, Shop, local, options, until, value};
use crate::{CacheOptions, ErrorKind, Invalidation, Level};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flight_of_a_thousand_readers_makes_one_load() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    shop.hold();
    let cache = local(&shop, options());
    let readers: Vec<_> = (0..1000)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { value(&cache, "a").await })
        })
        .collect();
    until("all to wait", || cache.stats().joins == 999).await;
    shop.release();
    for reader in readers {
        assert_eq!(reader.await.expect("ends").as_deref(), Some("1"));
    }
    assert_eq!(shop.loads(), 1);
}

#[tokio::test]
async fn flight_whose_leader_is_cancelled_serves_those_who_joined() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    shop.hold();
    let cache = local(&shop, options());
    let (one, two) = (cache.clone(), cache.clone());
    let leader = tokio::spawn(async move { value(&one, "a").await });
    shop.loads_reach(1).await;
    let follower = tokio::spawn(async move { value(&two, "a").await });
    until("it to join", || cache.stats().joins == 1).await;
    leader.abort();
    assert!(leader.await.expect_err("is cancelled").is_cancelled());
    shop.release();
    assert_eq!(follower.await.expect("ends").as_deref(), Some("1"));
    assert_eq!(shop.loads(), 1);
}

#[tokio::test]
async fn flight_whose_source_panics_fails_all_and_the_next_read_loads() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    shop.mode(Mode::Panic);
    let cache = local(&shop, options());
    let reads = [cache.get("a", Level::Any), cache.get("a", Level::Any)];
    for read in futures_util::future::join_all(reads).await {
        assert_eq!(read.expect_err("fails").kind(), ErrorKind::Panicked);
    }
    assert_eq!(shop.loads(), 1);
    shop.mode(Mode::Answer);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(cache.flights(), 0);
}

#[tokio::test(start_paused = true)]
async fn flight_whose_source_hangs_ends_in_time_and_strands_nobody() {
    let shop = Shop::new();
    shop.mode(Mode::Hang);
    let options = CacheOptions {
        hard_timeout: Duration::from_secs(1),
        load_timeout: Duration::from_secs(3),
        ..options()
    };
    let cache = local(&shop, options);
    let failed = cache.get("a", Level::Any).await.expect_err("hangs");
    assert_eq!(failed.kind(), ErrorKind::Timeout);
    shop.set("a", Some("1"));
    shop.mode(Mode::Answer);
    let began = tokio::time::Instant::now();
    let failed = cache
        .get("a", Level::Any)
        .await
        .expect_err("the load goes on");
    assert_eq!(failed.kind(), ErrorKind::Timeout);
    tokio::time::sleep_until(began + Duration::from_secs(3)).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(cache.flights(), 0);
}

#[tokio::test(start_paused = true)]
async fn flight_that_is_late_is_found_by_the_next_reader() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    shop.hold();
    let options = CacheOptions {
        hard_timeout: Duration::from_millis(10),
        ..options()
    };
    let cache = local(&shop, options);
    let failed = cache.get("a", Level::Any).await.expect_err("is slow");
    assert_eq!(failed.kind(), ErrorKind::Timeout);
    shop.release();
    until("the load to end", || cache.flights() == 0).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(shop.loads(), 1);
}

#[tokio::test]
async fn flight_that_fails_is_not_remembered() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    shop.mode(Mode::Fail);
    let cache = local(&shop, options());
    let failed = cache.get("a", Level::Any).await.expect_err("fails");
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    shop.mode(Mode::Answer);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(cache.stats().load_failures, 1);
}

#[tokio::test]
async fn flight_that_began_before_an_invalidation_is_not_joined_after_it() {
    for invalidation in [Some(Invalidation::Unknown), None] {
        let shop = Shop::new();
        shop.set("a", Some("old"));
        shop.hold();
        let cache = local(&shop, options());
        let early = cache.clone();
        let early = tokio::spawn(async move { value(&early, "a").await });
        shop.loads_reach(1).await;
        let version = shop.set("a", Some("new"));
        let invalidation = invalidation.unwrap_or(Invalidation::At(version));
        cache
            .invalidate("a", invalidation)
            .await
            .expect("invalidates");
        let late = cache.clone();
        let late = tokio::spawn(async move { value(&late, "a").await });
        shop.loads_reach(2).await;
        shop.release();
        assert_eq!(late.await.expect("ends").as_deref(), Some("new"));
        // It began before the write was acknowledged: either will do.
        early.await.expect("ends");
        assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
    }
}

#[tokio::test]
async fn flight_that_was_overtaken_in_the_shared_tier_is_not_for_who_came_later() {
    use super::support::{Shared, over};
    let (shop, shared) = (Shop::new(), Shared::new());
    let (here, there) = (
        over(&shop, shared.clone(), false),
        over(&shop, shared, false),
    );
    shop.set("a", Some("old"));
    shop.hold();
    let early = here.clone();
    let early = tokio::spawn(async move { value(&early, "a").await });
    shop.loads_reach(1).await;
    shop.set("a", Some("new"));
    there
        .invalidate("a", Invalidation::Unknown)
        .await
        .expect("invalidates");
    let late = here.clone();
    let late = tokio::spawn(async move { value(&late, "a").await });
    until("it to join", || here.stats().joins == 1).await;
    shop.release();
    early.await.expect("ends");
    assert_eq!(late.await.expect("ends").as_deref(), Some("new"));
}

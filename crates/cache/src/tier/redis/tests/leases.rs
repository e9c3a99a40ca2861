//! One load among processes: leases, who holds one, and what becomes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{KEY, apart, cached, tier, url};
use crate::core::{Invalidation, Put};
use crate::tests::support::{Mode, Shop, options, until, value};
use crate::tier::redis::{Redis, RedisOptions};
use crate::tier::{Lease, Memory, Tier};
use crate::{Cache, CacheOptions, Level, Tiers, Version};

const MINUTE: Duration = Duration::from_secs(60);

fn process(shop: &Arc<Shop>, of: &RedisOptions, load_lease: Duration) -> Cache {
    let redis = Redis::new(&url(), of.clone()).expect("a URL");
    let tiers = Tiers {
        local: Some(Memory::new(1 << 22)),
        remote: Some(Arc::new(redis)),
    };
    let options = CacheOptions {
        load_lease,
        remote_timeout: Duration::from_secs(10),
        hard_timeout: MINUTE,
        ..options()
    };
    Cache::new(shop.clone(), tiers, options)
}

/// How many loads a stampede of readers in three processes makes.
async fn loads_of_a_stampede(what: &str, load_lease: Duration) -> u64 {
    let (shop, of) = (Shop::new(), apart(what));
    shop.set("a", Some("1"));
    shop.hold();
    let processes = [(); 3].map(|()| process(&shop, &of, load_lease));
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..300 {
        let cache = processes[reader % 3].clone();
        readers.spawn(async move { value(&cache, "a").await });
    }
    let waits = || {
        processes
            .iter()
            .map(|cache| cache.stats().lease_waits)
            .sum::<u64>()
    };
    until("all load, or wait for one who does", || {
        shop.loads() + waits() == 3
    })
    .await;
    shop.release();
    while let Some(read) = readers.join_next().await {
        assert_eq!(read.expect("reads").as_deref(), Some("1"));
    }
    shop.loads()
}

#[tokio::test]
async fn redis_stampede_in_three_processes_makes_one_load() {
    assert_eq!(loads_of_a_stampede("stampede", MINUTE).await, 1);
    assert_eq!(
        loads_of_a_stampede("herd", Duration::ZERO).await,
        3,
        "without leases"
    );
}

#[tokio::test]
async fn redis_lease_of_a_load_that_failed_is_free_at_once() {
    let (shop, of) = (Shop::new(), apart("failed"));
    shop.set("a", Some("1"));
    let (one, two) = (process(&shop, &of, MINUTE), process(&shop, &of, MINUTE));
    shop.mode(Mode::Fail);
    one.get("a", Level::Any).await.expect_err("fails");
    shop.mode(Mode::Answer);
    let began = Instant::now();
    assert_eq!(value(&two, "a").await.as_deref(), Some("1"));
    assert!(began.elapsed() < MINUTE / 2, "{:?}", began.elapsed());
    assert_eq!(two.stats().lease_waits, 0);
}

#[tokio::test]
async fn redis_lease_of_a_process_that_hangs_ends_by_itself_and_linearizable_reads_do_not_wait() {
    let (shop, of) = (Shop::new(), apart("hangs"));
    shop.set("a", Some("1"));
    let brief = Duration::from_millis(300);
    let cache = process(&shop, &of, brief);
    let hangs = Redis::new(&url(), of).expect("a URL");
    let looked = hangs.look(&KEY).await.expect("looks");
    let lease = hangs
        .lease(&KEY, looked.mark, MINUTE)
        .await
        .expect("is free");
    assert!(matches!(lease, Lease::Granted(_)));
    let read = cache.get("a", Level::Linearizable).await.expect("reads");
    assert_eq!(
        (read.version, cache.stats().lease_waits),
        (Version::new(1), 0)
    );
    // What it put ended the lease; another hangs.
    cache
        .invalidate("a", Invalidation::Unknown)
        .await
        .expect("invalidates");
    let looked = hangs.look(&KEY).await.expect("looks");
    hangs
        .lease(&KEY, looked.mark, MINUTE)
        .await
        .expect("is free");
    let began = Instant::now();
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(cache.stats().lease_waits, 1);
    assert!(began.elapsed() >= brief, "{:?}", began.elapsed());
}

#[tokio::test]
async fn redis_lease_whose_load_was_overtaken_is_free_at_once() {
    let (shop, of) = (Shop::new(), apart("overtaken"));
    shop.set("a", Some("1"));
    let cache = process(&shop, &of, MINUTE);
    shop.hold();
    let reads = tokio::spawn({
        let cache = cache.clone();
        async move { value(&cache, "a").await }
    });
    shop.loads_reach(1).await;
    let version = shop.set("a", Some("2"));
    let other = Redis::new(&url(), of).expect("a URL");
    let at = Invalidation::At(version);
    other.invalidate(&KEY, at).await.expect("invalidates");
    let looked = other.look(&KEY).await.expect("looks");
    let held = other
        .lease(&KEY, looked.mark, MINUTE)
        .await
        .expect("answers");
    assert!(matches!(held, Lease::Held(_)), "the mark is the same");
    shop.release();
    assert_eq!(reads.await.expect("reads").as_deref(), Some("1"));
    let free = other
        .lease(&KEY, looked.mark, MINUTE)
        .await
        .expect("answers");
    assert!(matches!(free, Lease::Granted(_)));
}

#[tokio::test]
async fn redis_lease_is_for_one_until_it_puts_or_the_key_is_written() {
    let tier = tier("lease");
    let ask = async |mark| tier.lease(&KEY, mark, MINUTE).await.expect("answers");
    let looked = tier.look(&KEY).await.expect("looks");
    let Lease::Granted(number) = ask(looked.mark).await else {
        panic!("nobody has it");
    };
    match ask(looked.mark).await {
        Lease::Held(left) => assert!(left > MINUTE / 2 && left <= MINUTE, "{left:?}"),
        granted => panic!("two have it: {granted:?}"),
    }
    tier.release(&KEY, looked.mark, number + 1)
        .await
        .expect("is another's");
    assert!(matches!(ask(looked.mark).await, Lease::Held(_)));
    tier.release(&KEY, looked.mark, number)
        .await
        .expect("releases");
    assert!(matches!(ask(looked.mark).await, Lease::Granted(_)));
    // The fence: a write ends the lease, and what its holder loaded is refused.
    tier.invalidate(&KEY, Invalidation::Unknown)
        .await
        .expect("invalidates");
    let after = tier.look(&KEY).await.expect("looks");
    assert!(matches!(ask(after.mark).await, Lease::Granted(_)));
    let late = tier
        .put(&KEY, looked.mark, cached(looked.at, "old", 1))
        .await;
    assert_eq!(late.expect("puts"), Put::Overtaken);
    assert!(
        matches!(ask(after.mark).await, Lease::Held(_)),
        "another's late put leaves it"
    );
    let put = tier.put(&KEY, after.mark, cached(after.at, "new", 2)).await;
    assert_eq!(put.expect("puts"), Put::Stored);
    assert!(
        matches!(ask(after.mark).await, Lease::Granted(_)),
        "it has been put"
    );
}

//! Processes that hear of each other through a real server, which is cut off, flushed, trimmed, or another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;

use super::{admin, apart, ask, follow as replicate, replica, url};
use crate::core::planted::{self, Bug};
use crate::invalidations::{Invalidations, Told};
use crate::tests::proxy::{Flow, Proxy};
use crate::tests::support::{Shop, options, value};
use crate::tier::redis::{Redis, RedisOptions, scripts::Scripts};
use crate::tier::{Memory, Tier};
use crate::{
    Cache, CacheOptions, ErrorKind, FollowOptions, Invalidation, Level, Origin, Strategy, Tiers,
    Version,
};

const BOUND: Duration = Duration::from_millis(400);

/// A process of its own: tiers, connections, marks.
fn process(shop: &Arc<Shop>, url: &str, of: &RedisOptions) -> Cache {
    let redis = Redis::new(url, of.clone()).expect("a URL");
    let told = redis.invalidations().expect("tells");
    let tiers = Tiers {
        local: Some(Memory::new(1 << 22)),
        remote: Some(Arc::new(redis)),
    };
    let long = Duration::from_secs(3600);
    let options = CacheOptions {
        ttl: long,
        local_ttl: long,
        // What is there while nobody follows must come from the source, in time.
        remote_timeout: Duration::from_secs(2),
        ..options()
    };
    let cache = Cache::new(shop.clone(), tiers, options);
    let bound = FollowOptions {
        staleness_max: BOUND,
    };
    cache.follow(told, bound).expect("follows");
    cache
}

/// Waits in small steps: what is waited for happens elsewhere.
async fn soon(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn believed(cache: &Cache) {
    soon("the stream is heard", async || cache.is_local_believed()).await;
}

async fn write(cache: &Cache, shop: &Shop, key: &str, text: &str) -> Version {
    let version = shop.set(key, Some(text));
    let written = cache
        .write(key, Strategy::Versioned, async { Ok(Some(version)) })
        .await
        .expect("commits");
    assert_eq!(written.untold, None);
    version
}

async fn tier_of(cache: &Cache, key: &str) -> Origin {
    cache.get(key, Level::Any).await.expect("reads").tier
}

#[tokio::test]
async fn redis_processes_hear_of_each_others_writes_within_their_bound() {
    let (shop, of) = (Shop::new(), apart("hear"));
    let (one, two) = (process(&shop, &url(), &of), process(&shop, &url(), &of));
    believed(&one).await;
    believed(&two).await;
    shop.set("b", Some("kept"));
    for key in ["a", "b"] {
        value(&two, key).await;
    }
    for n in 0..50 {
        let text = n.to_string();
        write(&one, &shop, "a", &text).await;
        soon("the other process has it", async || {
            value(&two, "a").await.as_deref() == Some(&text)
        })
        .await;
    }
    let unknown = shop.set("a", None);
    two.invalidate("a", Invalidation::Unknown)
        .await
        .expect("tells");
    soon("that it is gone", async || {
        let read = one.get("a", Level::Any).await.expect("reads");
        read.value.is_none() && read.seen >= unknown
    })
    .await;
    believed(&two).await;
    assert_eq!(tier_of(&two, "b").await, Origin::Local, "was not touched");
    assert_eq!(
        (one.stats().gaps, two.stats().gaps),
        (1, 1),
        "the beginning"
    );
}

#[tokio::test]
async fn redis_follower_never_serves_what_is_older_than_its_bound() {
    let (shop, of) = (Shop::new(), apart("bound"));
    let proxy = Proxy::new(&url()).await;
    let (one, two) = (
        process(&shop, &url(), &of),
        process(&shop, &proxy.url(), &of),
    );
    believed(&two).await;
    shop.set("a", Some("0"));
    let mut told: Vec<(Instant, Version)> = Vec::new();
    let mut local = 0;
    for n in 1..40 {
        match n % 12 {
            2 => proxy.set(Flow::Held),
            8 => proxy.set(Flow::Open),
            10 => proxy.cut(),
            _ => {}
        }
        let version = write(&one, &shop, "a", &n.to_string()).await;
        told.push((Instant::now(), version));
        let until = Instant::now() + BOUND / 4;
        while Instant::now() < until {
            let began = Instant::now();
            let read = two.get("a", Level::Any).await.expect("reads");
            let old = told.iter().rev().find(|(at, _)| *at + BOUND < began);
            let least = old.map_or(Version::ZERO, |(_, version)| *version);
            assert!(
                read.version >= least,
                "{read:?}, {least:?} was told long before"
            );
            local += u64::from(read.tier == Origin::Local);
            tokio::task::yield_now().await;
        }
    }
    assert!(local > 100, "served from the process: {local}");
    assert!(
        two.stats().unproven_reads > 0,
        "it was cut off for longer than the bound"
    );
}

/// A process that was cut off by a proxy while something happened; what it reads then, and how many gaps it saw.
async fn read_after(
    what: &str,
    database: &str,
    mut happens: impl AsyncFnMut(&mut MultiplexedConnection, &str),
) -> (Option<String>, u64) {
    let (shop, of) = (Shop::new(), apart(what));
    let proxy = Proxy::new(&url()).await;
    let url = format!("{}{database}", url());
    let through = format!("{}{database}", proxy.url());
    let (one, two) = (process(&shop, &url, &of), process(&shop, &through, &of));
    believed(&two).await;
    shop.set("a", Some("old"));
    value(&two, "a").await;
    write(&one, &shop, "b", "before").await;
    soon("what came before is heard", async || two.stats().heard == 1).await;
    proxy.set(Flow::Held);
    write(&one, &shop, "a", "new").await;
    happens(&mut admin(&url).await, &of.prefix).await;
    soon("it is cut off", async || !two.is_local_believed()).await;
    proxy.cut();
    proxy.set(Flow::Open);
    believed(&two).await;
    (value(&two, "a").await, two.stats().gaps)
}

#[tokio::test]
async fn redis_follower_that_was_cut_off_goes_on_where_it_was() {
    let (found, gaps) = read_after("goes-on", "", async |_, _| {}).await;
    assert_eq!((found.as_deref(), gaps), (Some("new"), 1));
}

#[tokio::test]
async fn redis_follower_whose_stream_was_trimmed_drops_what_it_had() {
    let trim = async |admin: &mut MultiplexedConnection, stream: &str| {
        let _: u64 = ask(admin, &["XTRIM", stream, "MAXLEN", "=", "0"]).await;
        let _: String = ask(admin, &["XADD", stream, "*", "begins", ""]).await;
    };
    let (found, gaps) = read_after("trimmed", "", trim).await;
    assert_eq!((found.as_deref(), gaps), (Some("new"), 2));
}

#[tokio::test]
async fn redis_follower_whose_stream_lost_the_message_before_the_last_drops_what_it_had() {
    let lose = async |admin: &mut MultiplexedConnection, stream: &str| {
        let last: Vec<(String, Vec<String>)> =
            ask(admin, &["XREVRANGE", stream, "+", "-", "COUNT", "1"]).await;
        let id = last[0].0.clone();
        let epoch = id.split('-').next().expect("an epoch");
        let _: String = ask(
            admin,
            &["XADD", stream, &format!("{epoch}-*"), "begins", ""],
        )
        .await;
        let _: u64 = ask(admin, &["XDEL", stream, &id]).await;
    };
    let (found, gaps) = read_after("lost", "", lose).await;
    assert_eq!((found.as_deref(), gaps), (Some("new"), 2));
    planted::plant(Some(Bug::FeedIgnoresGaps));
    let (found, _) = read_after("lost-unseen", "", lose).await;
    planted::plant(None);
    assert_eq!(found.as_deref(), Some("old"), "the guard has teeth");
}

#[tokio::test]
async fn redis_follower_of_a_server_that_was_flushed_drops_what_it_had() {
    let flush = async |admin: &mut MultiplexedConnection, _: &str| {
        let _: String = ask(admin, &["FLUSHDB"]).await;
    };
    let (found, gaps) = read_after("flushed", "/6", flush).await;
    assert_eq!((found.as_deref(), gaps), (Some("new"), 2));
    planted::plant(Some(Bug::FeedBeginsWithWhatIsThere));
    let (found, _) = read_after("flushed-unseen", "/7", flush).await;
    planted::plant(None);
    assert_eq!(found.as_deref(), Some("old"), "the guard has teeth");
}

#[tokio::test]
async fn redis_failover_that_loses_a_message_drops_what_followers_had() {
    let (_guard, other, mut replica) = replica().await;
    replicate(&mut replica).await;
    let (shop, of) = (Shop::new(), apart("failover"));
    let proxy = Proxy::new(&url()).await;
    let (one, two) = (
        process(&shop, &proxy.url(), &of),
        process(&shop, &proxy.url(), &of),
    );
    believed(&one).await;
    believed(&two).await;
    shop.set("a", Some("old"));
    value(&two, "a").await;
    soon("the stream is replicated", async || {
        ask::<u64>(&mut replica, &["EXISTS", &of.prefix]).await == 1
    })
    .await;
    let _: String = ask(&mut replica, &["REPLICAOF", "NO", "ONE"]).await;
    proxy.set(Flow::Held);
    shop.set("a", Some("new"));
    let direct = Redis::new(&url(), of.clone()).expect("a URL");
    direct
        .invalidate(&"a".into(), Invalidation::Unknown)
        .await
        .expect("is acknowledged");
    soon("it is cut off", async || !two.is_local_believed()).await;
    proxy.turn_to(&other).await;
    proxy.set(Flow::Open);
    believed(&two).await;
    assert_eq!(value(&two, "a").await.as_deref(), Some("new"));
    assert_eq!(two.stats().gaps, 2);
    believed(&one).await;
    write(&one, &shop, "a", "newest").await;
    soon("they hear of each other there", async || {
        value(&two, "a").await.as_deref() == Some("newest")
    })
    .await;
    replicate(&mut replica).await;
}

#[tokio::test]
async fn redis_that_becomes_a_replica_is_believed_no_longer() {
    let (_guard, other, mut replica) = replica().await;
    let _: String = ask(&mut replica, &["REPLICAOF", "NO", "ONE"]).await;
    let (shop, of) = (Shop::new(), apart("demoted"));
    let cache = process(&shop, &other, &of);
    believed(&cache).await;
    replicate(&mut replica).await;
    soon("it is noticed", async || !cache.is_local_believed()).await;
    let failed = cache.stats().follow_failures;
    soon("it is asked again", async || {
        cache.stats().follow_failures > failed
    })
    .await;
    assert!(!cache.is_local_believed());
}

#[tokio::test]
async fn redis_clear_empties_the_tiers_of_those_who_follow() {
    let (shop, of) = (Shop::new(), apart("clears"));
    let (one, two) = (process(&shop, &url(), &of), process(&shop, &url(), &of));
    believed(&two).await;
    shop.set("a", Some("old"));
    value(&two, "a").await;
    shop.set("a", Some("new"));
    one.clear().await.expect("clears");
    soon("it is heard", async || {
        value(&two, "a").await.as_deref() == Some("new")
    })
    .await;
}

#[tokio::test]
async fn redis_stream_is_kept_within_its_backlog_and_read_whole() {
    let of = RedisOptions {
        backlog: 300,
        ..apart("backlog")
    };
    let tier = Redis::new(&url(), of.clone()).expect("a URL");
    let mut told = tier.invalidations().expect("tells");
    let begun = told.after(None, BOUND).await.expect("begins");
    assert_eq!((begun.messages.len(), begun.end), (0, Some(0)));
    for n in 0..1_000 {
        let at = Invalidation::At(Version { epoch: 2, n });
        tier.invalidate(&format!("key-{n}").into(), at)
            .await
            .expect("tells");
    }
    let mut admin = admin(&url()).await;
    let length: u64 = ask(&mut admin, &["XLEN", &of.prefix]).await;
    assert!((300..600).contains(&length), "{length}");
    let position = crate::core::Position {
        stream: begun.stream.clone(),
        number: 800,
    };
    let batch = told.after(Some(&position), BOUND).await.expect("answers");
    assert_eq!((batch.stream, batch.end), (begun.stream, Some(1000)));
    let said: Vec<_> = batch
        .messages
        .into_iter()
        .map(|m| (m.number, m.told))
        .collect();
    let expected: Vec<_> = (800..1000)
        .map(|n| {
            let at = Invalidation::At(Version { epoch: 2, n });
            (n + 1, Told::Key(format!("key-{n}").into(), at))
        })
        .collect();
    assert_eq!(said, expected);
}

#[tokio::test]
async fn redis_stream_that_is_something_else_begins_anew() {
    let of = apart("something");
    let tier = Redis::new(&url(), of.clone()).expect("a URL");
    let mut told = tier.invalidations().expect("tells");
    let begun = told.after(None, BOUND).await.expect("begins");
    let mut admin = admin(&url()).await;
    let _: String = ask(&mut admin, &["SET", &of.prefix, "no stream"]).await;
    tier.invalidate(&"a".into(), Invalidation::Unknown)
        .await
        .expect("tells");
    let position = crate::core::Position {
        stream: begun.stream.clone(),
        number: 0,
    };
    let batch = told.after(Some(&position), BOUND).await.expect("answers");
    assert_ne!(batch.stream, begun.stream);
    // What somebody else wrote there may have been anything.
    let epoch = batch
        .stream
        .rsplit('/')
        .next()
        .expect("an epoch")
        .to_owned();
    for fields in [vec!["k", "a", "f", "no version"], vec!["what", "is this"]] {
        let id = format!("{epoch}-*");
        let words = [vec!["XADD", &of.prefix, &id], fields].concat();
        let _: String = ask(&mut admin, &words).await;
    }
    let position = crate::core::Position {
        stream: batch.stream.clone(),
        number: batch.end.expect("is known"),
    };
    let batch = told.after(Some(&position), BOUND).await.expect("answers");
    let said: Vec<_> = batch.messages.into_iter().map(|m| m.told).collect();
    assert_eq!(said, [Told::All, Told::All]);
}

#[tokio::test]
async fn redis_without_a_backlog_tells_nothing_and_says_so() {
    let of = RedisOptions {
        backlog: 0,
        ..apart("silent")
    };
    let tier = Redis::new(&url(), of.clone()).expect("a URL");
    let failed = tier.invalidations().map(drop).expect_err("is refused");
    assert_eq!(failed.kind(), ErrorKind::Invalid);
    tier.invalidate(&"a".into(), Invalidation::Unknown)
        .await
        .expect("invalidates");
    let mut admin = admin(&url()).await;
    assert_eq!(ask::<u64>(&mut admin, &["EXISTS", &of.prefix]).await, 0);
}

/// The message is added by the script that notes the write: without that line nobody hears of it.
#[tokio::test]
async fn redis_check_of_followers_notices_a_script_that_tells_nobody() {
    let (shop, of) = (Shop::new(), apart("told"));
    let two = process(&shop, &url(), &of);
    believed(&two).await;
    shop.set("a", Some("old"));
    value(&two, "a").await;
    let mut careless = Redis::new(&url(), of).expect("a URL");
    careless.scripts =
        Scripts::changed(|text| text.replace("if ARGV[5] ~= '0' then", "if false then"));
    shop.set("a", Some("new"));
    careless
        .invalidate(&"a".into(), Invalidation::Unknown)
        .await
        .expect("notes");
    // All that was told up to now is heard when it is proven anew.
    let (gaps, heard) = (two.stats().gaps, two.stats().heard);
    let other = Redis::new(&url(), apart("told")).expect("a URL");
    other
        .invalidate(&"b".into(), Invalidation::Unknown)
        .await
        .expect("tells");
    soon("what came later is heard", async || {
        two.stats().heard > heard
    })
    .await;
    assert_eq!(two.stats().gaps, gaps);
    assert_eq!(value(&two, "a").await.as_deref(), Some("old"));
}

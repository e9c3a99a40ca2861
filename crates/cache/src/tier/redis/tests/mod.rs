//! The tier over real servers: the suite, and servers that are gone, slow, flushed, full, or another one.

mod follow;
mod leases;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};
use tokio::sync::MutexGuard;

use super::connection::generation;
use super::{Redis, RedisOptions};
use crate::core::{Cached, Invalidation, Looked, Put};
use crate::tests::proxy::{Flow, Proxy};
use crate::tests::support::{Mode, Shop, options, over, value};
use crate::tier::{Tier, conformance};
use crate::{Cache, CacheOptions, ErrorKind, Level, Origin, Tiers, Version};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `cargo xtask test`, or `cargo xtask services -- cargo test -p \
             quorate-cache --features redis`"
        )
    })
}

fn url() -> String {
    variable("QUORATE_REDIS")
}

/// Options under whose prefix nobody else writes.
fn apart(what: &str) -> RedisOptions {
    RedisOptions {
        prefix: format!("test-{}-{what}:", std::process::id()),
        response_timeout: Duration::from_secs(10),
        ..RedisOptions::default()
    }
}

fn tier(what: &str) -> Redis {
    Redis::new(&url(), apart(what)).expect("a URL")
}

async fn admin(url: &str) -> MultiplexedConnection {
    let client = Client::open(url).expect("a URL");
    // The client gives up after half a second, which a busy machine takes.
    let patient = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(30)))
        .set_response_timeout(Some(Duration::from_secs(30)));
    let connection = client.get_multiplexed_async_connection_with_config(&patient);
    connection.await.expect("Redis answers")
}

async fn ask<T: redis::FromRedisValue>(admin: &mut MultiplexedConnection, words: &[&str]) -> T {
    let mut command = redis::Cmd::new();
    words.iter().for_each(|word| {
        command.arg(word);
    });
    let answer = command.query_async(admin).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

fn cached(at: u64, value: &'static str, n: u64) -> Cached<Bytes> {
    Cached {
        value: Some(Bytes::from_static(value.as_bytes())),
        version: Version::new(n),
        seen: Version::new(n),
        as_of: Some(at),
        expires: at + 60_000_000,
        tags: None,
    }
}

const KEY: Bytes = Bytes::from_static(b"a");

/// Puts a value under a key of its own registration.
async fn fill(tier: &Redis, value: &'static str, n: u64) {
    let looked = tier.look(&KEY).await.expect("looks");
    let put = tier
        .put(&KEY, looked.mark, cached(looked.at, value, n))
        .await;
    assert_eq!(put.expect("puts"), Put::Stored);
}

/// Looks until it is answered, as it may not be in time at first.
async fn answers(tier: &Redis) -> Looked<Bytes> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match tier.look(&KEY).await {
            Ok(looked) => return looked,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
        assert!(Instant::now() < deadline, "it does not answer");
    }
}

#[tokio::test]
async fn redis_passes_the_suite() {
    conformance::run(&tier("suite")).await;
}

#[tokio::test]
async fn redis_record_that_was_evicted_refuses_fills_under_way() {
    let tier = tier("evicted");
    let mut admin = admin(&url()).await;
    let looked = tier.look(&KEY).await.expect("looks");
    let key = format!("{}a", tier.options.prefix);
    assert_eq!(ask::<u64>(&mut admin, &["DEL", &key]).await, 1);
    let put = tier
        .put(&KEY, looked.mark, cached(looked.at, "old", 1))
        .await;
    assert_eq!(put.expect("puts"), Put::Overtaken);
    let again = tier.look(&KEY).await.expect("looks");
    assert!(again.need.latest && again.mark != looked.mark);
}

#[tokio::test]
async fn redis_that_was_flushed_refuses_fills_under_way() {
    let url = format!("{}/5", url());
    let tier = Redis::new(&url, apart("flushed")).expect("a URL");
    fill(&tier, "old", 1).await;
    let looked = tier.look(&KEY).await.expect("looks");
    let _: String = ask(&mut admin(&url).await, &["FLUSHDB"]).await;
    let put = tier
        .put(&KEY, looked.mark, cached(looked.at, "old", 1))
        .await;
    assert_eq!(put.expect("puts"), Put::Overtaken);
    let again = tier.look(&KEY).await.expect("looks");
    assert!(again.cached.is_none() && again.need.latest);
}

#[tokio::test]
async fn redis_keeps_records_as_long_as_it_is_told() {
    let tier = tier("times");
    let mut admin = admin(&url()).await;
    let key = format!("{}a", tier.options.prefix);
    let mut left = async |low: u64, high: u64| {
        let left: u64 = ask(&mut admin, &["PTTL", &key]).await;
        assert!((low * 1000..=high * 1000).contains(&left), "{left} ms");
    };
    tier.look(&KEY).await.expect("looks");
    left(50, 60).await;
    fill(&tier, "one", 1).await;
    left(110, 120).await;
    let at = Invalidation::At(Version::new(2));
    tier.invalidate(&KEY, at).await.expect("invalidates");
    left(590, 600).await;
    let looked = tier.look(&KEY).await.expect("looks");
    left(590, 600).await;
    let endless = Cached {
        expires: u64::MAX,
        ..cached(looked.at, "two", 2)
    };
    let put = tier.put(&KEY, looked.mark, endless).await;
    assert_eq!(put.expect("puts"), Put::Stored);
    left(1 << 30, 1 << 50).await;
}

#[tokio::test]
async fn redis_has_what_expired_for_when_the_source_fails() {
    let shop = Shop::new();
    let version = shop.set("a", Some("1"));
    let tiers = Tiers {
        local: None,
        remote: Some(Arc::new(tier("safe"))),
    };
    let safe = CacheOptions {
        ttl: Duration::from_millis(30),
        fail_safe: Duration::from_secs(60),
        ..options()
    };
    let cache = Cache::new(shop.clone(), tiers, safe);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    shop.mode(Mode::Fail);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let read = cache.get("a", Level::Any).await.expect("reads");
        assert_eq!((read.version, read.tier), (version, Origin::Remote));
        if read.is_stale {
            break;
        }
        assert!(Instant::now() < deadline, "it expires");
    }
    let told = cache.invalidate("a", Invalidation::Unknown).await;
    told.expect("is told");
    cache.get("a", Level::Any).await.expect_err("is gone");
}

#[tokio::test]
async fn redis_tag_that_is_invalidated_or_gone_drops_its_keys_for_all() {
    let shop = Shop::new();
    let cache = || over(&shop, Arc::new(tier("tags")), false);
    let (one, two) = (cache(), cache());
    for (n, is_deleted) in [(1, false), (2, true), (3, false)] {
        let new = n.to_string();
        let version = shop.set("user/1", Some(&new));
        if is_deleted {
            let record = format!("{}\0tag\0user", apart("tags").prefix);
            let deleted: i64 = ask(&mut admin(&url()).await, &["DEL", &record]).await;
            assert_eq!(deleted, 1, "the tag has a record");
        } else {
            let told = one.invalidate_tag("user", Invalidation::At(version)).await;
            told.expect("is told");
        }
        for (cache, tier) in [(&one, Origin::Source), (&two, Origin::Remote)] {
            let read = cache.get("user/1", Level::Any).await.expect("reads");
            assert_eq!((read.version, read.tier), (version, tier), "{n}");
        }
    }
}

#[tokio::test]
async fn redis_record_that_is_damaged_is_a_miss() {
    let tier = tier("damaged");
    let mut admin = admin(&url()).await;
    let key = format!("{}a", tier.options.prefix);
    for spoiled in [
        vec!["SET", &key, "no hash"],
        vec!["HSET", &key, "v", "no version"],
        vec!["HSET", &key, "e", "1e3"],
        vec!["HSET", &key, "e", "no time"],
        vec!["HSET", &key, "m", "no mark"],
        vec!["HSET", &key, "f", "no floor"],
        vec!["HDEL", &key, "m", "f"],
        vec!["HDEL", &key, "s", "v"],
        vec!["HSET", &key, "p", "7"],
        vec!["HSET", &key, "g", "another server"],
    ] {
        fill(&tier, "one", 1).await;
        ask::<redis::Value>(&mut admin, &spoiled).await;
        let looked = tier.look(&KEY).await.expect("looks");
        assert_eq!(looked.cached, None, "{spoiled:?}");
        let put = tier
            .put(&KEY, looked.mark, cached(looked.at, "two", 2))
            .await;
        assert_eq!(put.expect("puts"), Put::Stored, "{spoiled:?}");
        ask::<redis::Value>(&mut admin, &spoiled).await;
        let unknown = Invalidation::At(Version::new(9));
        tier.invalidate(&KEY, unknown).await.expect("invalidates");
        assert_eq!(tier.look(&KEY).await.expect("looks").cached, None);
        let _: u64 = ask(&mut admin, &["DEL", &key]).await;
    }
}

#[tokio::test]
async fn redis_clear_removes_what_is_under_its_prefix_alone() {
    let with = |prefix: &str| RedisOptions {
        prefix: format!("test-{}-clear{prefix}:", std::process::id()),
        ..apart("clear")
    };
    let one = Redis::new(&url(), with("[ab]*")).expect("a URL");
    let two = Redis::new(&url(), with("a")).expect("a URL");
    fill(&one, "one", 1).await;
    fill(&two, "two", 1).await;
    one.clear().await.expect("clears");
    assert_eq!(one.look(&KEY).await.expect("looks").cached, None);
    assert!(two.look(&KEY).await.expect("looks").cached.is_some());
}

#[tokio::test]
async fn redis_that_is_gone_is_unavailable_and_costs_a_cache_nothing_else() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let tier = Redis::new(&format!("redis://127.0.0.1:{port}"), apart("gone")).expect("a URL");
    let failed = tier.look(&KEY).await.expect_err("nobody is there");
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let cache = over(&shop, Arc::new(tier), true);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    assert_eq!(shop.loads(), 1);
}

#[test]
fn redis_of_no_url_is_invalid() {
    for url in ["", "127.0.0.1:6379:1", "http://127.0.0.1/"] {
        let failed = Redis::new(url, RedisOptions::default()).map(drop);
        assert_eq!(failed.expect_err(url).kind(), ErrorKind::Invalid);
    }
}

#[tokio::test]
async fn redis_whose_connection_is_cut_is_connected_again() {
    let proxy = Proxy::new(&url()).await;
    let tier = Redis::new(&proxy.url(), apart("cut")).expect("a URL");
    fill(&tier, "one", 1).await;
    proxy.cut();
    let looked = answers(&tier).await;
    assert_eq!(
        looked.cached.and_then(|c| c.value).as_deref(),
        Some(&b"one"[..])
    );
}

#[tokio::test]
async fn redis_that_does_not_answer_is_given_up_in_time_and_found_again() {
    let proxy = Proxy::new(&url()).await;
    let options = RedisOptions {
        response_timeout: Duration::from_millis(50),
        connect_timeout: Duration::from_millis(100),
        ..apart("slow")
    };
    let tier = Redis::new(&proxy.url(), options).expect("a URL");
    answers(&tier).await;
    proxy.set(Flow::Held);
    let began = Instant::now();
    for _ in 0..2 {
        let failed = tier.look(&KEY).await.expect_err("is held");
        assert_eq!(failed.kind(), ErrorKind::Unavailable);
    }
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    proxy.set(Flow::Open);
    answers(&tier).await;
}

#[tokio::test]
async fn redis_invalidation_whose_answer_is_lost_is_said_to_be_in_doubt() {
    let proxy = Proxy::new(&url()).await;
    let options = RedisOptions {
        response_timeout: Duration::from_millis(50),
        ..apart("doubt")
    };
    let tier = Redis::new(&proxy.url(), options).expect("a URL");
    answers(&tier).await;
    proxy.set(Flow::Held);
    let failed = tier.invalidate(&KEY, Invalidation::Unknown).await;
    assert!(!failed.expect_err("is held").is_outcome_known());
}

/// The replica is another server for one test at a time.
async fn replica() -> (MutexGuard<'static, ()>, String, MultiplexedConnection) {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let guard = ONE.lock().await;
    let url = variable("QUORATE_REDIS_REPLICA");
    let admin = admin(&url).await;
    (guard, url, admin)
}

async fn follow(replica: &mut MultiplexedConnection) {
    let master = url();
    let address = master.trim_start_matches("redis://").trim_end_matches('/');
    let (host, port) = address.split_once(':').expect("host and port");
    let _: String = ask(replica, &["REPLICAOF", host, port]).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ask::<String>(replica, &["INFO", "replication"])
        .await
        .contains("master_link_status:up")
    {
        assert!(Instant::now() < deadline, "the replica does not follow");
    }
}

/// What is there after a failover that lost an invalidation.
async fn found_after_failover(tier: impl FnOnce(&str) -> Redis) -> Option<Bytes> {
    let (_guard, other, mut replica) = replica().await;
    follow(&mut replica).await;
    let proxy = Proxy::new(&url()).await;
    let tier = tier(&proxy.url());
    fill(&tier, "old", 1).await;
    let key = format!("{}a", tier.options.prefix);
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask::<u64>(&mut replica, &["EXISTS", &key]).await == 0 {
        assert!(Instant::now() < deadline, "it is not replicated");
    }
    // The replica is cut off; what comes now is lost.
    let _: String = ask(&mut replica, &["REPLICAOF", "NO", "ONE"]).await;
    tier.invalidate(&KEY, Invalidation::Unknown)
        .await
        .expect("is acknowledged");
    let looked = tier.look(&KEY).await.expect("looks");
    proxy.turn_to(&other).await;
    let after = answers(&tier).await;
    assert!(after.need.latest);
    let put = tier
        .put(&KEY, looked.mark, cached(looked.at, "old", 1))
        .await;
    assert_eq!(put.expect("puts"), Put::Overtaken);
    follow(&mut replica).await;
    after.cached.and_then(|cached| cached.value)
}

#[tokio::test]
async fn redis_failover_that_loses_an_invalidation_serves_nothing_older() {
    let whole = |url: &str| Redis::new(url, apart("failover")).expect("a URL");
    assert_eq!(found_after_failover(whole).await, None);
    // Without the guard the value is there, on the server that took over.
    let careless = |url: &str| {
        let mut tier = Redis::new(url, apart("careless")).expect("a URL");
        tier.scripts = super::Scripts::changed(|text| match text.contains("return {now") {
            true => text.replace("or r[1] ~= ARGV[1]", ""),
            false => text.to_owned(),
        });
        tier
    };
    let found = found_after_failover(careless).await;
    assert_eq!(found.as_deref(), Some(&b"old"[..]));
}

/// Each guard of the scripts, and what is there without it.
const GUARDS: [(&str, &str); 8] = [
    ("r[2] ~= ARGV[2] or ", ""),
    ("or ARGV[6] < (r[3] or '') then", "then"),
    ("if r[4] and (r[5] or '') > ARGV[6] then", "if false then"),
    (
        "if floor == '' or (r[3] and (r[4] or '') < floor) then",
        "if floor == '' then",
    ),
    (
        "if floor == '' or (r[3] and (r[4] or '') < floor) then",
        "if false then",
    ),
    ("redis.call('HSET', KEYS[1], 'f', floor)", ""),
    (
        "redis.call('HSET', KEYS[1], 'm', ARGV[2])\n  elseif",
        "elseif",
    ),
    ("elseif floor > (r[2] or '') then", "else"),
];

#[tokio::test]
async fn redis_suite_notices_every_guard_that_a_script_lacks() {
    for (number, (guard, instead)) in GUARDS.into_iter().enumerate() {
        let changed = std::sync::atomic::AtomicBool::new(false);
        let mut tier = tier(&format!("guards-{number}"));
        tier.scripts = super::Scripts::changed(|text| {
            changed.fetch_or(text.contains(guard), std::sync::atomic::Ordering::SeqCst);
            text.replace(guard, instead)
        });
        assert!(changed.into_inner(), "{guard} is not there");
        let suite = tokio::spawn(async move { conformance::run(&tier).await });
        let missed = suite.await.expect_err(guard).into_panic();
        let said = missed.downcast::<String>().map(|said| *said);
        // What the suite says, and not that the script does not run.
        assert!(
            said.is_ok_and(|said| !said.contains("Redis:")),
            "without {guard}"
        );
    }
}

#[tokio::test]
async fn redis_replica_is_not_taken_for_a_master() {
    let (_guard, other, mut replica) = replica().await;
    follow(&mut replica).await;
    let tier = Redis::new(&other, apart("replica")).expect("a URL");
    let failed = tier.look(&KEY).await.expect_err("is a replica");
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    // One that becomes a replica under a connection refuses as well.
    let _: String = ask(&mut replica, &["REPLICAOF", "NO", "ONE"]).await;
    fill(&tier, "one", 1).await;
    follow(&mut replica).await;
    let failed = tier.look(&KEY).await.expect_err("is a replica again");
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn redis_that_is_full_takes_no_value_and_every_invalidation() {
    let (_guard, other, mut replica) = replica().await;
    let _: String = ask(&mut replica, &["REPLICAOF", "NO", "ONE"]).await;
    let shop = Shop::new();
    let tier = Redis::new(&other, apart("full")).expect("a URL");
    fill(&tier, "one", 1).await;
    let _: String = ask(&mut replica, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let looked = tier.look(&KEY).await;
    let put = match &looked {
        Ok(looked) => Some(
            tier.put(&KEY, looked.mark, cached(looked.at, "two", 2))
                .await,
        ),
        Err(_) => None,
    };
    let invalidated = tier.invalidate(&KEY, Invalidation::Unknown).await;
    let after = tier.look(&KEY).await;
    shop.set("a", Some("3"));
    let cache = over(&shop, Arc::new(tier), true);
    let read = cache.get("a", Level::Any).await;
    let _: String = ask(&mut replica, &["CONFIG", "SET", "maxmemory", "0"]).await;
    follow(&mut replica).await;
    assert_eq!(
        put.map(|put| put.map_err(|e| e.kind())),
        Some(Err(ErrorKind::Unavailable))
    );
    invalidated.expect("invalidates");
    assert_eq!(after.expect("looks").cached, None);
    assert_eq!(read.expect("reads").tier, Origin::Source);
}

#[tokio::test]
async fn redis_is_shared_by_caches() {
    let shop = Shop::new();
    let shared = || Arc::new(tier("shared"));
    let (one, two) = (over(&shop, shared(), true), over(&shop, shared(), false));
    shop.set("a", Some("1"));
    assert_eq!(value(&one, "a").await.as_deref(), Some("1"));
    let read = two.get("a", Level::Any).await.expect("reads");
    assert_eq!(read.tier, Origin::Remote);
    assert!(read.age.is_some_and(|age| age < options().ttl));
    let version = shop.set("a", Some("2"));
    one.invalidate("a", Invalidation::At(version))
        .await
        .expect("invalidates");
    assert_eq!(value(&two, "a").await.as_deref(), Some("2"));
    assert_eq!(value(&one, "a").await.as_deref(), Some("2"));
    assert_eq!(shop.loads(), 2);
}

#[test]
fn redis_generation_names_the_server_and_refuses_what_it_must() {
    let info = |version: &str, role: &str| {
        format!(
            "# Server\r\nredis_version:{version}\r\nrun_id:abc\r\nrole:{role}\r\nmaster_replid:def\r\n"
        )
    };
    assert_eq!(
        generation(&info("7.0.15", "master")).as_deref(),
        Ok("abc:def")
    );
    let kind = |info: &str| generation(info).map_err(|error| error.kind());
    assert_eq!(kind(&info("6.2.1", "master")), Err(ErrorKind::Unsupported));
    assert_eq!(kind(&info("7.0.15", "slave")), Err(ErrorKind::Unavailable));
    assert_eq!(
        kind("redis_version:7\r\nrole:master"),
        Err(ErrorKind::Unsupported)
    );
    assert_eq!(kind(""), Err(ErrorKind::Unsupported));
}

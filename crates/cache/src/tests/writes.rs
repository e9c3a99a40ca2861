//! Writing, by each strategy; and a key-value store as the source.

use std::sync::Arc;

use quorate_kv::memory::MemoryKv;
use quorate_kv::{Delete, Kv, Put};

use super::support::{DOMAIN, Mode, Shared, Shop, local, options, over, text, until, value};
use crate::source::{KvSource, Source};
use crate::tier::Memory;
use crate::{Cache, Error, ErrorKind, Invalidation, Level, Need, Origin, Strategy, Tiers, Version};

#[tokio::test]
async fn write_by_each_strategy_is_seen_by_all_who_share() {
    let through = Strategy::Through(Some("new".into()));
    let twice = Strategy::AsideTwice(std::time::Duration::from_secs(1));
    for strategy in [Strategy::Aside, twice, Strategy::Versioned, through] {
        let (shop, shared) = (Shop::new(), Shared::new());
        let (one, two) = (
            over(&shop, shared.clone(), true),
            over(&shop, shared, false),
        );
        shop.set("a", Some("old"));
        value(&one, "a").await;
        value(&two, "a").await;
        let commit = async { Ok(Some(shop.set("a", Some("new")))) };
        let written = one
            .write("a", strategy.clone(), commit)
            .await
            .expect("writes");
        assert_eq!(
            (written.version, written.untold),
            (Some(Version::new(2)), None)
        );
        assert_eq!(
            value(&one, "a").await.as_deref(),
            Some("new"),
            "{strategy:?}"
        );
        assert_eq!(
            value(&two, "a").await.as_deref(),
            Some("new"),
            "{strategy:?}"
        );
    }
}

#[tokio::test]
async fn write_versioned_lets_fills_come_from_any_replica_that_has_it() {
    let shop = Shop::new();
    let cache = local(&shop, options());
    shop.set("a", Some("1"));
    let write = |strategy| cache.write("a", strategy, async { Ok(Some(shop.set("a", Some("2")))) });
    let written = write(Strategy::Versioned).await.expect("writes");
    value(&cache, "a").await;
    assert_eq!(Some(shop.last_need()), written.version.map(Need::at_least));
    let _ = write(Strategy::Aside).await.expect("writes");
    value(&cache, "a").await;
    assert!(shop.last_need().latest, "nobody knows at which version");
}

#[tokio::test]
async fn write_through_installs_the_value_in_both_tiers() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let (one, two) = (
        over(&shop, shared.clone(), true),
        over(&shop, shared, false),
    );
    for new in [Some("1"), None, Some("2")] {
        let value = new.map(|new| bytes::Bytes::from_static(new.as_bytes()));
        let commit = async { Ok(Some(shop.set("a", new))) };
        let written = one
            .write("a", Strategy::Through(value), commit)
            .await
            .expect("writes");
        for (cache, tier) in [(&one, Origin::Local), (&two, Origin::Remote)] {
            let level = Level::AtLeast(cache.token(written.version.expect("has one")));
            let read = cache.get("a", level).await.expect("reads");
            assert_eq!((text(read.value).as_deref(), read.tier), (new, tier));
        }
    }
    assert_eq!(shop.loads(), 0);
}

#[tokio::test]
async fn write_through_that_another_write_overtook_is_not_installed() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let cache = over(&shop, shared, true);
    let commit = async {
        let version = shop.set("a", Some("mine"));
        shop.set("a", Some("theirs"));
        cache.invalidate("a", Invalidation::Unknown).await?;
        Ok(Some(version))
    };
    let mine = Strategy::Through(Some("mine".into()));
    let _ = cache.write("a", mine, commit).await.expect("writes");
    assert_eq!(value(&cache, "a").await.as_deref(), Some("theirs"));
}

#[tokio::test]
async fn write_whose_outcome_is_unknown_is_taken_for_done() {
    let shop = Shop::new();
    let cache = local(&shop, options());
    shop.set("a", Some("old"));
    value(&cache, "a").await;
    let commit = async {
        shop.set("a", Some("new"));
        Err(Error::new(ErrorKind::Timeout, "no answer").outcome_unknown())
    };
    let failed = cache.write("a", Strategy::Versioned, commit).await;
    assert!(!failed.expect_err("fails").is_outcome_known());
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn write_that_surely_failed_changes_nothing() {
    let shop = Shop::new();
    let cache = local(&shop, options());
    shop.set("a", Some("old"));
    value(&cache, "a").await;
    let commit = async { Err(Error::new(ErrorKind::Invalid, "a constraint")) };
    cache
        .write("a", Strategy::Aside, commit)
        .await
        .expect_err("fails");
    let read = cache.get("a", Level::Any).await.expect("reads");
    assert_eq!(
        (text(read.value).as_deref(), read.tier),
        (Some("old"), Origin::Local)
    );
}

#[tokio::test]
async fn write_that_is_dropped_on_its_way_invalidates_in_the_background() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let cache = over(&shop, shared.clone(), true);
    shop.set("a", Some("old"));
    value(&cache, "a").await;
    let (writer, of) = (cache.clone(), shop.clone());
    let write = tokio::spawn(async move {
        let commit = async {
            of.set("a", Some("new"));
            std::future::pending().await
        };
        writer.write("a", Strategy::Versioned, commit).await
    });
    until("the commit", || shop.set("other", None) > Version::new(3)).await;
    write.abort();
    assert!(write.await.expect_err("is dropped").is_cancelled());
    let key = bytes::Bytes::from_static(b"a");
    until("it to be told", || shared.memory.peek(&key).is_none()).await;
    until("it to be told here", || {
        let local = cache.local().expect("has one");
        local.peek(&key).is_none()
    })
    .await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn write_says_when_the_shared_tier_could_not_be_told() {
    let (shop, shared) = (Shop::new(), Shared::new());
    let cache = over(&shop, shared.clone(), true);
    shared.down(true);
    let commit = async { Ok(Some(shop.set("a", Some("1")))) };
    let written = cache
        .write("a", Strategy::Versioned, commit)
        .await
        .expect("is committed");
    assert_eq!(
        written.untold.map(|error| error.kind()),
        Some(ErrorKind::Unavailable)
    );
    shop.mode(Mode::Answer);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
}

fn over_kv(any_replica: bool) -> (Arc<MemoryKv>, Cache) {
    let kv = Arc::new(MemoryKv::new(DOMAIN));
    let mut source = KvSource::new(kv.clone());
    if any_replica {
        source = source.any_replica();
    }
    let tiers = Tiers {
        local: Some(Memory::new(1 << 22)),
        remote: None,
    };
    let cache = Cache::new(Arc::new(source), tiers, options());
    (kv, cache)
}

#[tokio::test]
async fn kv_source_carries_tokens_from_writes_to_reads() {
    for any_replica in [false, true] {
        let (kv, cache) = over_kv(any_replica);
        assert_eq!(value(&cache, "a").await, None);
        let commit = async {
            let written = kv.put(Put::new("a", "1")).await?;
            Ok(Some(Version::of(&written.token)))
        };
        let written = cache
            .write("a", Strategy::Versioned, commit)
            .await
            .expect("writes");
        let level = Level::AtLeast(cache.token(written.version.expect("has one")));
        let read = cache.get("a", level).await.expect("reads");
        assert_eq!(
            (text(read.value).as_deref(), read.tier),
            (Some("1"), Origin::Source)
        );
        let read = cache.get("a", level).await.expect("reads");
        assert_eq!(read.tier, Origin::Local);
        assert_eq!(read.age.is_some(), !any_replica);

        // Of a deletion the store has no version; the floor stands in for it.
        let gone = kv.delete(Delete::new("a")).await.expect("deletes");
        let version = Version::of(&gone.token);
        cache
            .invalidate("a", Invalidation::At(version))
            .await
            .expect("invalidates");
        let read = cache
            .get("a", Level::AtLeast(gone.token))
            .await
            .expect("reads");
        assert_eq!((read.value, read.seen), (None, version));
    }
}

#[tokio::test]
async fn kv_source_is_behind_an_incarnation_that_it_does_not_have() {
    let (kv, cache) = over_kv(false);
    kv.put(Put::new("a", "1")).await.expect("puts");
    cache.raise(Version::epoch(1));
    let failed = cache.get("a", Level::Any).await.expect_err("is of before");
    assert_eq!(failed.kind(), ErrorKind::Behind);
    let source = KvSource::new(kv);
    let key = bytes::Bytes::from_static(b"a");
    source.load(&key, Need::LATEST).await.expect("loads");
}

/// What is read after a write, and after some time, over a replica that ignores what it is asked for until then.
async fn read_over_a_careless_replica(strategy: Strategy) -> [Option<String>; 2] {
    let shop = Shop::new();
    let cache = local(&shop, options());
    shop.set("a", Some("old"));
    shop.mode(Mode::Behind(1));
    let commit = async { Ok(Some(shop.set("a", Some("new")))) };
    let written = cache.write("a", strategy, commit).await.expect("writes");
    assert_eq!(written.untold, None);
    let first = value(&cache, "a").await;
    shop.mode(Mode::Answer);
    tokio::time::sleep(std::time::Duration::from_millis(101)).await;
    [first, value(&cache, "a").await]
}

#[tokio::test(start_paused = true)]
async fn write_aside_twice_drops_what_a_careless_replica_filled_in_between() {
    let twice = Strategy::AsideTwice(std::time::Duration::from_millis(100));
    let old_then = |then: &str| [Some("old".to_owned()), Some(then.to_owned())];
    assert_eq!(read_over_a_careless_replica(twice).await, old_then("new"));
    let once = read_over_a_careless_replica(Strategy::Aside).await;
    assert_eq!(once, old_then("old"), "what the second time is for");
}

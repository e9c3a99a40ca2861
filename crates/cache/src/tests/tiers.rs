//! Tiers: the suite, and the bound of bytes.

use bytes::Bytes;

use super::support::{Shared, Shop, options};
use crate::tier::{Memory, Tier, conformance};
use crate::{Cache, Level, Need, Tiers, Version};

#[tokio::test]
async fn tier_in_memory_passes_the_suite() {
    conformance::run(&Memory::new(1 << 20)).await;
    conformance::run(&Memory::new(1 << 27)).await;
}

#[tokio::test]
async fn tier_that_forgets_passes_the_suite() {
    conformance::run(&*Shared::new()).await;
}

#[tokio::test]
async fn tier_in_memory_stays_within_its_bytes() {
    let shop = Shop::new();
    let big = "x".repeat(10_000);
    let tiers = Tiers {
        local: Some(Memory::new(500_000)),
        remote: None,
    };
    let cache = Cache::new(shop.clone(), tiers, options());
    for n in 0..500 {
        let key = format!("key-{n}");
        shop.set(&key, Some(&big));
        cache.get(&key, Level::Any).await.expect("reads");
        assert!(cache.local_bytes() <= 500_000, "{}", cache.local_bytes());
    }
    assert!(cache.local_bytes() > 250_000, "{}", cache.local_bytes());
}

#[tokio::test]
async fn tier_in_memory_keeps_floors_of_what_it_evicts() {
    let memory = Memory::new(4_000);
    let key = Bytes::from_static(b"written");
    let floor = Version::new(40);
    memory.invalidate_now(&key, crate::Invalidation::At(floor));
    for n in 0..1000 {
        memory
            .look(&format!("key-{n}").into())
            .await
            .expect("looks");
    }
    assert_eq!(memory.look_now(&key).need, Need::at_least(floor));
}

#[tokio::test]
async fn tier_of_no_bytes_keeps_nothing() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let tiers = Tiers {
        local: Some(Memory::new(0)),
        remote: None,
    };
    let cache = Cache::new(shop.clone(), tiers, options());
    for loads in 1..=3 {
        cache.get("a", Level::Any).await.expect("reads");
        assert_eq!((shop.loads(), cache.local_bytes()), (loads, 0));
    }
}

#[tokio::test]
async fn cache_without_tiers_joins_loads_and_keeps_nothing() {
    let shop = Shop::new();
    shop.set("a", Some("1"));
    let cache = Cache::new(shop.clone(), Tiers::default(), options());
    let reads = cache.get_many(&["a", "a", "a"], Level::Any).await;
    assert!(reads.iter().all(|read| read.is_ok()));
    assert_eq!(shop.loads(), 1);
    cache.get("a", Level::Any).await.expect("reads");
    assert_eq!(shop.loads(), 2);
}

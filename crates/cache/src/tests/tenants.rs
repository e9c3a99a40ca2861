//! Budgets of tenants, in the tier of a process.

use std::sync::Arc;

use bytes::Bytes;

use super::support::{Shop, options, value};
use crate::tier::{Memory, TenantOf, conformance};
use crate::{Cache, ErrorKind, Invalidation, Level, Need, Origin, Tiers, Version};

const BUDGET: u64 = 100_000;

/// What stands before the colon.
fn tenant_of(key: &[u8]) -> Option<&[u8]> {
    let colon = key.iter().position(|byte| *byte == b':')?;
    Some(&key[..colon])
}

fn cache(shop: &Arc<Shop>, size_bytes: u64) -> Cache {
    let memory = Memory::with_tenants(size_bytes, BUDGET, tenant_of);
    let tiers = Tiers {
        local: Some(memory.expect("room")),
        remote: None,
    };
    Cache::new(shop.clone(), tiers, options())
}

async fn origin(cache: &Cache, key: &str) -> Origin {
    cache.get(key, Level::Any).await.expect("reads").tier
}

/// Reads so many keys of a tenant, of 1,000 bytes each.
async fn read_many(cache: &Cache, shop: &Shop, tenant: &str, keys: usize) {
    for n in 0..keys {
        let key = format!("{tenant}:{n}");
        shop.set(&key, Some(&"x".repeat(1_000)));
        origin(cache, &key).await;
    }
}

#[tokio::test]
async fn tenant_over_its_budget_evicts_its_own_and_nobody_elses() {
    let shop = Shop::new();
    let cache = cache(&shop, 10 * BUDGET);
    for tenant in ["small", "nobody"] {
        shop.set("nobody", Some("1"));
        read_many(&cache, &shop, tenant, 10).await;
    }
    origin(&cache, "nobody").await;
    for n in 0..10 {
        read_many(&cache, &shop, "greedy", 500).await;
        let bytes = cache.tenant_bytes("greedy");
        assert!((BUDGET / 2..=BUDGET).contains(&bytes), "{n}: {bytes}");
    }
    for n in 0..10 {
        assert_eq!(origin(&cache, &format!("small:{n}")).await, Origin::Local);
    }
    assert_eq!(origin(&cache, "nobody").await, Origin::Local);
    assert!(cache.tenant_bytes("small") < 15_000);
}

#[tokio::test]
async fn tenant_more_than_there_is_room_for_takes_the_place_of_the_idle_one() {
    let shop = Shop::new();
    let cache = cache(&shop, 4 * BUDGET);
    for n in 0..100 {
        read_many(&cache, &shop, &format!("tenant {n}"), 200).await;
        assert!(cache.local_bytes() <= 4 * BUDGET, "{}", cache.local_bytes());
        shop.set("busy:0", Some("1"));
        origin(&cache, "busy:0").await;
        // Who asks what they take does not use them.
        cache.tenant_bytes(format!("tenant {}", n - n % 2));
    }
    let there = ["busy", "tenant 98", "tenant 99"];
    assert!(there.iter().all(|tenant| cache.tenant_bytes(tenant) > 0));
    assert_eq!(cache.tenant_bytes("tenant 97"), 0);
}

#[tokio::test]
async fn tenant_that_was_dropped_keeps_what_it_was_told() {
    let shop = Shop::new();
    let cache = cache(&shop, 2 * BUDGET);
    shop.set("a:1", Some("old"));
    value(&cache, "a:1").await;
    let version = shop.set("a:1", Some("new"));
    let told = cache.invalidate("a:1", Invalidation::At(version)).await;
    told.expect("is told");
    value(&cache, "b:1").await;
    assert_eq!(cache.tenant_bytes("a"), 0, "there is room for one");
    assert_eq!(value(&cache, "a:1").await.as_deref(), Some("new"));
    assert_eq!(shop.last_need().at_least, version);
}

#[tokio::test]
async fn tenant_that_begins_after_a_gap_or_a_failover_knows_of_it() {
    let memory = Memory::with_tenants(4 * BUDGET, BUDGET, tenant_of).expect("room");
    let need = |key: &'static str| memory.look_now(&Bytes::from_static(key.as_bytes())).need;
    assert_eq!(need("before:1"), Need::NOTHING);
    memory.raise(Version::epoch(3));
    assert_eq!(need("raised:1"), Need::at_least(Version::epoch(3)));
    memory.clear_now();
    assert!(need("cleared:1").latest);
}

#[tokio::test]
async fn tier_with_tenants_passes_the_suite() {
    let each_key: [TenantOf; 2] = [|key| Some(key), tenant_of];
    for tenant_of in each_key {
        let memory = Memory::with_tenants(1 << 30, 1 << 20, tenant_of);
        conformance::run(&memory.expect("room")).await;
    }
}

#[tokio::test]
async fn tenants_without_room_for_one_are_refused() {
    for (size, budget) in [(100, 0), (0, 1), (199, 100)] {
        let refused = Memory::with_tenants(size, budget, tenant_of).err();
        assert_eq!(refused.expect("no room").kind(), ErrorKind::Invalid);
    }
}

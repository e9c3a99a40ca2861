//! A cache over a key-value store: a write, and reads that must see it. `cargo run -p quorate-cache --example tokens`

use std::sync::Arc;

use quorate_cache::source::KvSource;
use quorate_cache::tier::Memory;
use quorate_cache::{Cache, CacheOptions, Level, Result, Strategy, Tiers, Version};
use quorate_kv::memory::MemoryKv;
use quorate_kv::{Domain, Kv, Put};

#[tokio::main]
async fn main() -> Result<()> {
    // Any `Kv` will do: the embedded store, the client of a cluster.
    let kv = Arc::new(MemoryKv::new(Domain {
        cluster: 1,
        namespace: 1,
        incarnation: 0,
    }));
    let tiers = Tiers {
        local: Some(Memory::new(64 << 20)),
        remote: None,
    };
    let source = Arc::new(KvSource::new(kv.clone()));
    let cache = Cache::new(source, tiers, CacheOptions::default());

    kv.put(Put::new("user/7", "Ann")).await?;
    for _ in 0..2 {
        let read = cache.get("user/7", Level::Any).await?;
        println!("{:?}: {:?}", read.tier, read.value);
    }

    let written = cache
        .write("user/7", Strategy::Versioned, async {
            let written = kv.put(Put::new("user/7", "Anna")).await?;
            Ok(Some(Version::of(&written.token)))
        })
        .await?;
    // A token goes wherever the user goes next, as text.
    let token = written.version.map(|version| cache.token(version));
    if let Some(token) = token {
        println!("at least {token}");
        let read = cache.get("user/7", Level::AtLeast(token)).await?;
        println!("{:?}: {:?}", read.tier, read.value);
    }
    println!("{:?}", cache.stats());
    Ok(())
}

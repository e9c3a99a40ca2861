//! Both sides as targets: how the generator reaches our cluster and etcd's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use quorate_bench::Target;
use quorate_client::{Client, ClientOptions};
use quorate_kv::Kv;
use quorate_sharding::{COORDINATOR_GROUP, Role};

use crate::etcd::Etcd;
use crate::failover::Leader;

/// Connections of the generator; our client opens them to each node, so fewer to each.
pub const CONNECTIONS: usize = 8;
const OURS_PER_NODE: usize = 2;

/// The settings of our client, but for what a row changes.
pub fn options() -> ClientOptions {
    ClientOptions {
        connections: OURS_PER_NODE,
        ..ClientOptions::default()
    }
}

/// Our cluster, as what is written to and asked who leads.
pub struct Ours {
    client: Client,
    kv: Arc<dyn Kv>,
    endpoints: Vec<String>,
}

impl Ours {
    pub async fn connect(endpoints: &[String], options: ClientOptions) -> Result<Ours> {
        let client = Client::connect(endpoints, options).await?;
        Ok(Ours {
            kv: Arc::new(client.namespace("bench").await?),
            client,
            endpoints: endpoints.to_vec(),
        })
    }
}

impl Leader for Ours {
    async fn leader(&self) -> Option<usize> {
        let mut leader = None;
        for (node, status) in self.client.status().await {
            let status = status.ok()?;
            let mut groups = status.groups.iter();
            if groups.any(|g| g.group != COORDINATOR_GROUP && g.role == Role::Leader) {
                leader = self.endpoints.iter().position(|e| *e == node.address);
            }
        }
        leader
    }
}

impl Target for Ours {
    async fn put(&self, client: usize, key: Bytes, value: Bytes) -> Result<(), String> {
        Target::put(&self.kv, client, key, value).await
    }

    async fn get(&self, client: usize, key: Bytes) -> Result<(), String> {
        Target::get(&self.kv, client, key).await
    }

    async fn stale_get(&self, client: usize, key: Bytes) -> Result<(), String> {
        Target::stale_get(&self.kv, client, key).await
    }

    async fn put_all(&self, client: usize, pairs: Vec<(Bytes, Bytes)>) -> Result<(), String> {
        Target::put_all(&self.kv, client, pairs).await
    }
}

/// Connections to a cluster of etcd, once it serves.
pub async fn connect_etcd(endpoints: &[String]) -> Result<Etcd> {
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let works = async {
            let target = Etcd::connect(endpoints, CONNECTIONS).await?;
            let put = target.put(0, "probe".into(), "1".into()).await;
            put.map_err(anyhow::Error::msg)?;
            Ok::<_, anyhow::Error>(target)
        };
        match works.await {
            Ok(target) => return Ok(target),
            Err(error) if tokio::time::Instant::now() > end => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

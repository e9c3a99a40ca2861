//! `status`: the nodes, who leads what, and whether replicas agree.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt;
use quorate_client::Client;
use quorate_kv::Error;
use quorate_sharding::{
    GroupStatus, NodeInfo, NodeStatus, ReplicaHash, Role, SYSTEM_NAMESPACE, Shard, ShardMap,
};
use serde_json::{Value, json};

use super::output::{error_json, size, table};
use super::{BAD_NEWS, connect};
use crate::args::{Output, StatusArgs};

/// Shards whose replicas are compared at once.
const COMPARED_AT_ONCE: usize = 4;

type Node = (NodeInfo, quorate_kv::Result<NodeStatus>);

/// The hashes of one shard's replicas, or why there are none.
struct Compared {
    shard: std::sync::Arc<Shard>,
    hashes: quorate_kv::Result<Vec<quorate_kv::Result<ReplicaHash>>>,
}

impl Compared {
    /// Whether all replicas answered alike.
    fn agrees(&self) -> bool {
        let Ok(hashes) = &self.hashes else {
            return false;
        };
        let seen: Vec<_> = hashes
            .iter()
            .flatten()
            .map(|h| (h.index, h.hash, h.keys))
            .collect();
        seen.len() == self.shard.replicas.len() && seen.windows(2).all(|w| w[0] == w[1])
    }

    fn verdict(&self) -> String {
        let failed: Vec<&Error> = match &self.hashes {
            Ok(hashes) => hashes.iter().filter_map(|h| h.as_ref().err()).collect(),
            Err(error) => vec![error],
        };
        match failed.first() {
            Some(error) => format!("not compared: {error}"),
            None if self.agrees() => "agree".into(),
            None => "DIFFER".into(),
        }
    }
}

/// `quorate status`.
///
/// # Errors
/// When no node can be reached.
pub async fn status(args: StatusArgs) -> Result<ExitCode> {
    let client = connect(&args.connect).await?;
    let nodes = client.status().await;
    let map = client.map();
    let compared = if args.replicas {
        compare(&client, &map).await
    } else {
        Vec::new()
    };
    match args.output {
        Output::Json => println!("{}", json_of(&map, &nodes, &compared, args.replicas)),
        Output::Text => print(&map, &nodes, &compared),
    }
    let well = nodes.iter().all(|n| n.1.is_ok()) && compared.iter().all(Compared::agrees);
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        BAD_NEWS.into()
    })
}

async fn compare(client: &Client, map: &ShardMap) -> Vec<Compared> {
    // The coordinator's own group has no hash command.
    let shards = map.shards().filter(|s| s.namespace != SYSTEM_NAMESPACE);
    let shards: Vec<_> = shards.cloned().collect();
    futures_util::stream::iter(shards)
        .map(|shard| async move {
            let hashes = client.replica_hashes(shard.id).await;
            Compared { shard, hashes }
        })
        .buffered(COMPARED_AT_ONCE)
        .collect()
        .await
}

/// The state of a shard's leader, as some node sees it.
fn leader_of(nodes: &[Node], shard: &Shard) -> Option<(u64, GroupStatus)> {
    nodes.iter().find_map(|(node, status)| {
        let groups = &status.as_ref().ok()?.groups;
        let group = groups
            .iter()
            .find(|g| g.group == shard.id && g.role == Role::Leader)?;
        Some((node.id, group.clone()))
    })
}

fn print(map: &ShardMap, nodes: &[Node], compared: &[Compared]) {
    let up = nodes.iter().filter(|n| n.1.is_ok()).count();
    let shards: Vec<_> = map.shards().collect();
    let led = shards
        .iter()
        .filter(|s| leader_of(nodes, s).is_some())
        .count();
    println!(
        "cluster {:032x}: {up} of {} nodes up, {led} of {} shards have a leader\n",
        map.cluster,
        nodes.len(),
        shards.len()
    );
    let rows: Vec<Vec<String>> = nodes.iter().map(node_row).collect();
    let head = [
        "NODE", "ADDRESS", "STATE", "UP", "LEADS", "REPLICAS", "ENGINE", "LOG", "FREE",
    ];
    table(&head, &rows);
    println!();
    let rows: Vec<Vec<String>> = shards
        .iter()
        .map(|shard| {
            let nodes_of: Vec<_> = shard.replicas.iter().map(|r| r.node.to_string()).collect();
            let namespace = map
                .namespace(shard.namespace)
                .map_or("", |n| n.name.as_str());
            let mut row = vec![
                shard.id.to_string(),
                namespace.to_owned(),
                shard.epoch.to_string(),
                nodes_of.join(","),
            ];
            match leader_of(nodes, shard) {
                Some((node, group)) => row.extend([
                    node.to_string(),
                    group.term.to_string(),
                    group.applied_index.to_string(),
                    size(group.size_bytes),
                ]),
                None => row.extend(["-"; 4].map(String::from)),
            }
            row.extend(
                compared
                    .iter()
                    .find(|c| c.shard.id == shard.id)
                    .map(Compared::verdict),
            );
            row
        })
        .collect();
    let mut head = vec![
        "SHARD",
        "NAMESPACE",
        "EPOCH",
        "NODES",
        "LEADER",
        "TERM",
        "APPLIED",
        "SIZE",
    ];
    if !compared.is_empty() {
        head.push("REPLICAS");
    }
    table(&head, &rows);
    print_faults(nodes);
}

/// Why a replica does not serve, of those that do not.
fn print_faults(nodes: &[Node]) {
    for (node, status) in nodes {
        let groups = status.iter().flat_map(|s| &s.groups);
        for group in groups.filter(|g| g.fault.is_some()) {
            let why = group.fault.as_deref().unwrap_or_default();
            println!("\nnode {}, shard {}: {why}", node.id, group.group);
        }
    }
}

fn node_row((node, status): &Node) -> Vec<String> {
    let mut row = vec![node.id.to_string(), node.address.clone()];
    match status {
        Ok(status) => {
            let leads = status
                .groups
                .iter()
                .filter(|g| g.role == Role::Leader)
                .count();
            let up = Duration::from_millis(status.uptime_ms);
            row.extend([
                "up".to_owned(),
                indicatif::HumanDuration(up).to_string(),
                leads.to_string(),
                status.groups.len().to_string(),
                size(status.engine_bytes),
                size(status.log_bytes),
                size(status.free_bytes),
            ]);
        }
        Err(error) => row.push(format!("down: {error}")),
    }
    row
}

fn json_of(map: &ShardMap, nodes: &[Node], compared: &[Compared], replicas: bool) -> Value {
    let nodes: Vec<Value> = nodes.iter().map(node_json).collect();
    let mut object = json!({
        "cluster": format!("{:032x}", map.cluster),
        "map_version": map.version,
        "nodes": nodes,
    });
    if replicas {
        let shards = compared.iter().map(|c| {
            let hashes: Vec<Value> = match &c.hashes {
                Ok(hashes) => hashes.iter().map(hash_json).collect(),
                Err(error) => vec![json!({ "error": error_json(error) })],
            };
            json!({ "shard": c.shard.id, "agree": c.agrees(), "replicas": hashes })
        });
        object["shards"] = shards.collect::<Vec<_>>().into();
    }
    object
}

fn hash_json(hash: &quorate_kv::Result<ReplicaHash>) -> Value {
    match hash {
        Ok(hash) => json!({
            "replica": hash.replica,
            "node": hash.node,
            "index": hash.index,
            "hash": format!("{:016x}", hash.hash),
            "keys": hash.keys,
        }),
        Err(error) => json!({ "error": error_json(error) }),
    }
}

fn node_json((node, status): &Node) -> Value {
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return json!({
                "id": node.id, "address": node.address, "up": false, "error": error_json(error),
            });
        }
    };
    let groups = status.groups.iter().map(|g| {
        json!({
            "group": g.group,
            "namespace": g.namespace,
            "replica": g.replica,
            "role": format!("{:?}", g.role).to_lowercase(),
            "leader": g.leader,
            "term": g.term,
            "last_index": g.last_index,
            "committed_index": g.committed_index,
            "applied_index": g.applied_index,
            "version": g.version,
            "epoch": { "range": g.epoch.range, "members": g.epoch.members },
            "size_bytes": g.size_bytes,
            "fault": g.fault,
        })
    });
    json!({
        "id": node.id,
        "address": node.address,
        "up": true,
        "binary_version": status.binary_version,
        "uptime_ms": status.uptime_ms,
        "map_version": status.map_version,
        "engine_bytes": status.engine_bytes,
        "log_bytes": status.log_bytes,
        "free_bytes": status.free_bytes,
        "groups": groups.collect::<Vec<_>>(),
    })
}

//! `status`: the nodes, who leads what, and whether replicas agree.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt;
use quorate_client::Client;
use quorate_kv::Error;
use quorate_sharding::{
    GroupStatus, Health, NodeInfo, NodeStatus, ReplicaHash, Role, SYSTEM_NAMESPACE, Shard, ShardMap,
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
    let well = nodes.iter().all(|n| n.1.is_ok())
        && map.shards().all(|shard| leader_of(&nodes, shard).is_some())
        && nodes.iter().all(|n| faults(n).next().is_none())
        && compared.iter().all(Compared::agrees);
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

/// The replicas of a shard, as the nodes that answered see them.
fn replicas_of<'a>(
    nodes: &'a [Node],
    shard: &'a Shard,
) -> impl Iterator<Item = (u64, &'a GroupStatus)> {
    nodes.iter().flat_map(|(node, status)| {
        let groups = status.iter().flat_map(|status| &status.groups);
        let of = groups.filter(|group| group.group == shard.id);
        of.map(|group| (node.id, group))
    })
}

/// The node that leads a shard and is followed by a quorum, with the state of its replica.
fn leader_of<'a>(nodes: &'a [Node], shard: &'a Shard) -> Option<(u64, &'a GroupStatus)> {
    replicas_of(nodes, shard).find(|(_, g)| g.role == Role::Leader && g.health == Health::Works)
}

/// What a shard without such a leader lacks.
fn lack_of(nodes: &[Node], shard: &Shard) -> &'static str {
    match replicas_of(nodes, shard).any(|(_, group)| group.health == Health::NoQuorum) {
        true => "no quorum",
        false => "no leader",
    }
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
                None => row.extend([lack_of(nodes, shard), "-", "-", "-"].map(String::from)),
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

/// The replicas of a node that have stopped or could not be opened, and why.
fn faults((_, status): &Node) -> impl Iterator<Item = (&GroupStatus, &str)> {
    let groups = status.iter().flat_map(|status| &status.groups);
    groups.filter_map(|group| Some((group, group.fault.as_deref()?)))
}

fn print_faults(nodes: &[Node]) {
    for node in nodes {
        for (group, why) in faults(node) {
            println!("\nnode {}, shard {}: {why}", node.0.id, group.group);
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
                .filter(|g| g.role == Role::Leader && g.health == Health::Works)
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

fn health_name(health: Health) -> &'static str {
    match health {
        Health::Unknown => "unknown",
        Health::Works => "works",
        Health::NoLeader => "no_leader",
        Health::NoQuorum => "no_quorum",
        Health::Stopped => "stopped",
    }
}

fn json_of(map: &ShardMap, nodes: &[Node], compared: &[Compared], replicas: bool) -> Value {
    let led = |shard: &&std::sync::Arc<Shard>| leader_of(nodes, shard).is_some();
    let leaderless: Vec<u64> = map.shards().filter(|s| !led(s)).map(|s| s.id).collect();
    let nodes: Vec<Value> = nodes.iter().map(node_json).collect();
    let mut object = json!({
        "cluster": format!("{:032x}", map.cluster),
        "map_version": map.version,
        "shards_without_leader": leaderless,
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
            "health": health_name(g.health),
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

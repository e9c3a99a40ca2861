//! `node` and `shard`: who holds what, and changing it while the cluster serves.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_client::Client;
use quorate_sharding::{GroupId, NodeId, ShardMap};
use serde_json::{Value, json};

use super::connect;
use super::output::table;
use crate::args::{
    DrainArgs, ListNodesArgs, MoveArgs, NodeArgs, NodeCommand, Output, RebuildArgs, ShardArgs,
    ShardCommand,
};

/// `quorate node`.
///
/// # Errors
/// When the cluster cannot be reached or refuses, or a shard takes too long.
pub async fn node(args: NodeArgs) -> Result<ExitCode> {
    match args.command {
        NodeCommand::List(args) => list(args).await?,
        NodeCommand::Drain(args) => drop(drained(&args).await?),
        NodeCommand::Remove(args) => {
            let client = drained(&args.drain).await?;
            client.remove_node(args.drain.node).await?;
            println!(
                "removed node {}: its server can be stopped, its data deleted",
                args.drain.node
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `quorate shard`.
///
/// # Errors
/// When the cluster cannot be reached or refuses, or the shard takes too long.
pub async fn shard(args: ShardArgs) -> Result<ExitCode> {
    match args.command {
        ShardCommand::Move(args) => move_replica(args).await?,
        ShardCommand::Rebuild(args) => rebuild(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(args: ListNodesArgs) -> Result<()> {
    let client = connect(&args.connect).await?;
    client.refresh().await;
    let map = client.map();
    if args.output == Output::Json {
        let about = |id: &NodeId, address: &str| {
            let (held, leaving) = held_by(&map, *id);
            json!({ "id": id, "address": address, "shards": held, "leaving": leaving })
        };
        let all: Vec<Value> = map
            .nodes
            .iter()
            .map(|(id, node)| about(id, &node.address))
            .collect();
        println!("{}", Value::from(all));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = map
        .nodes
        .iter()
        .map(|(id, node)| {
            let (held, leaving) = held_by(&map, *id);
            [
                id.to_string(),
                node.address.clone(),
                held.len().to_string(),
                leaving.len().to_string(),
            ]
            .into()
        })
        .collect();
    table(&["NODE", "ADDRESS", "REPLICAS", "LEAVING"], &rows);
    Ok(())
}

/// The shards of which a node has a replica, and those of which one is on its way out.
fn held_by(map: &ShardMap, node: NodeId) -> (Vec<GroupId>, Vec<GroupId>) {
    let held = map.shards().filter(|s| s.replica_on(node).is_some());
    let leaving = map
        .shards()
        .filter(|s| s.leaving.iter().any(|r| r.node == node));
    (
        held.map(|s| s.id).collect(),
        leaving.map(|s| s.id).collect(),
    )
}

/// Moves everything off a node. What an earlier call began is waited for first, so it can be called again.
async fn drained(args: &DrainArgs) -> Result<Client> {
    let client = connect(&args.connect).await?;
    client.refresh().await;
    let (_, leaving) = held_by(&client.map(), args.node);
    for shard in leaving {
        client.settled(shard, args.wait.wait()).await?;
    }
    let moves = client.map().evacuation(args.node)?;
    let all = moves.len();
    for (n, (shard, to)) in (1..).zip(moves) {
        print!(
            "{n} of {all}: shard {shard} from node {} to node {to}: ",
            args.node
        );
        flush();
        client.settled(shard, args.wait.wait()).await?;
        change(
            &client,
            shard,
            (Some(args.node), Some(to)),
            args.wait.wait(),
        )
        .await?;
        println!("done");
    }
    println!("node {} holds nothing", args.node);
    Ok(client)
}

/// So that it is seen what is waited for.
fn flush() {
    use std::io::Write;
    // Nobody reads it, then.
    let _ = std::io::stdout().flush();
}

async fn change(
    client: &Client,
    shard: GroupId,
    (from, to): (Option<NodeId>, Option<NodeId>),
    wait: Duration,
) -> Result<()> {
    client.move_replica(shard, from, to).await?;
    Ok(client.settled(shard, wait).await?)
}

async fn move_replica(args: MoveArgs) -> Result<()> {
    if args.from == args.to {
        bail!(
            "--from and --to are one node: `quorate shard rebuild` has a replica made anew where it is"
        );
    }
    let client = connect(&args.connect).await?;
    change(&client, args.shard, (args.from, args.to), args.wait.wait()).await?;
    let map = client.map();
    let shard = map.shard(args.shard).context("the shard is gone")?;
    let nodes: Vec<String> = shard.replicas.iter().map(|r| r.node.to_string()).collect();
    println!("shard {} is on the nodes {}", args.shard, nodes.join(", "));
    Ok(())
}

/// Takes the replica away and adds another one: not before the group does without it.
async fn rebuild(args: RebuildArgs) -> Result<()> {
    let client = connect(&args.connect).await?;
    client.refresh().await;
    let (node, map) = (Some(args.node), client.map());
    let shard = map
        .shard(args.shard)
        .with_context(|| format!("there is no shard {}", args.shard))?;
    if shard
        .replicas
        .iter()
        .all(|replica| replica.node == args.node)
    {
        bail!(
            "the replica of shard {} on node {} is its only one: there is nothing to make it from",
            args.shard,
            args.node
        );
    }
    client.settled(args.shard, args.wait.wait()).await?;
    change(&client, args.shard, (node, None), args.wait.wait()).await?;
    let added = change(&client, args.shard, (None, node), args.wait.wait()).await;
    added.with_context(|| {
        format!(
            "the old replica is gone, the new one is not there yet: if nothing is under way, \
             `quorate shard move {} --to {}` adds it",
            args.shard, args.node
        )
    })?;
    println!(
        "the replica of shard {} on node {} was made anew",
        args.shard, args.node
    );
    Ok(())
}

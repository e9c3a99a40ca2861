//! Becoming and staying part of a cluster: joining by the seeds, hearing of new maps.

use std::sync::Arc;
use std::time::Duration;

use quorate_kv::{Error, ErrorKind};
use quorate_node::{ClusterCommand, DataDir, Node};
use quorate_proto::{PROTOCOL_VERSION, cluster_from_wire, v1};
use quorate_sharding::ShardMap;
use tonic::Request;

use super::cluster_service::{call_error, connect};
use super::host::Host;
use super::settings::Settings;

const PAUSE: Duration = Duration::from_millis(300);
const CALL: Duration = Duration::from_secs(10);
/// How long a seed may take to say which cluster it is of, at the start.
const SEED: Duration = Duration::from_secs(2);

/// Joins the cluster of the seeds if this server is of none, then follows the map for as long as
/// the server lives.
///
/// # Errors
/// When this server's data is of one cluster, and a seed that answers of another; when its disk failed.
pub async fn run(host: Arc<Host>) -> anyhow::Result<()> {
    if let Ok(node) = host.node() {
        check_seeds(&host, node.identity().cluster).await?;
    }
    let mut last_error = String::new();
    while host.node().is_err() {
        for seed in &host.settings.seeds {
            match join(&host, seed).await {
                Ok(()) => break,
                Err(error) if error.to_string() != last_error => {
                    last_error = error.to_string();
                    tracing::warn!(seed, error = last_error, "joining: not yet");
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    announce(&host).await;
    loop {
        let Ok(node) = host.node() else { return Ok(()) };
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            why = node.failed() => anyhow::bail!(
                "the disk failed, and this node can't go on: {why}; the others do; start it again on a disk that \
                 works, or `quorate node remove {}`, and let it join with an empty data directory",
                node.identity().node
            ),
        }
        settle(&host, &node).await;
        if node.leads_coordinator() {
            continue;
        }
        for address in others(&host) {
            if fetch_map(&host, &address).await.is_ok() {
                break;
            }
        }
    }
}

/// Fails if the data directory is plainly not this server's: the address here is another node's, or
/// the node of the directory runs elsewhere. Two servers with one node's data would vote twice. To be
/// asked before the node runs.
pub async fn check_place(settings: &Settings, dir: &DataDir) -> anyhow::Result<()> {
    let (Some(identity), Some(map)) = (dir.identity(), dir.known_map()?) else {
        return Ok(());
    };
    let (me, here) = (identity.node, &settings.node.address);
    let known = match map.node(me) {
        Some(known) if known.address != *here => &known.address,
        _ => return Ok(()),
    };
    let data = settings.data_dir.display();
    if let Some((other, _)) = map.nodes.iter().find(|(_, node)| node.address == *here) {
        anyhow::bail!(
            "the data in {data} is of node {me}, known at {known}, and {here} is the address of node \
             {other}: correct `data_dir` or `listen`"
        );
    }
    let asked = tokio::time::timeout(SEED, ask_identity(known)).await;
    let Ok(Ok((cluster, node))) = asked else {
        return Ok(());
    };
    anyhow::ensure!(
        (cluster, node) != (Some(identity.cluster), me),
        "the data in {data} is of node {me}, which runs at {known}: a data directory must not be \
         copied; give this server an empty one, and it joins as a new node"
    );
    Ok(())
}

/// Which node, of which cluster, answers at an address.
async fn ask_identity(address: &str) -> Result<(Option<u128>, u64), Error> {
    let mut client = connect(address).await?;
    let mut request = Request::new(v1::StatusRequest {});
    request.set_timeout(SEED);
    let answer = client
        .status(request)
        .await
        .map_err(|status| call_error(&status))?
        .into_inner();
    Ok((cluster_from_wire(&answer.cluster)?, answer.node))
}

/// Fails if a seed answers that belongs to another cluster than the data here: either the seeds or
/// the data directory are not what was meant. Seeds that do not answer are passed over.
async fn check_seeds(host: &Host, mine: u128) -> anyhow::Result<()> {
    for seed in &host.settings.seeds {
        let asked = tokio::time::timeout(SEED, ask_map(seed, 0)).await;
        let Ok(Ok(Some(map))) = asked else { continue };
        anyhow::ensure!(
            map.cluster == mine || map.cluster == 0,
            "the seed {seed} belongs to another cluster, {:032x}, than the data in {}, {mine:032x}: \
             correct `seeds` or `data_dir`",
            map.cluster,
            host.settings.data_dir.display()
        );
    }
    Ok(())
}

/// The other nodes' addresses: those of the map, then the seeds.
fn others(host: &Host) -> Vec<String> {
    let me = &host.settings.node.address;
    let mut addresses: Vec<String> = match host.node() {
        Ok(node) => node
            .map()
            .nodes
            .values()
            .map(|node| node.address.clone())
            .collect(),
        Err(_) => Vec::new(),
    };
    addresses.extend(host.settings.seeds.iter().cloned());
    addresses.retain(|address| address != me);
    addresses
}

async fn join(host: &Host, seed: &str) -> Result<(), Error> {
    let (node, map) = call_join(host, seed, v1::JoinRequest::default()).await?;
    let running = host.joined(map.cluster, node)?;
    running.adopt_map(map);
    Ok(())
}

async fn call_join(
    host: &Host,
    seed: &str,
    known: v1::JoinRequest,
) -> Result<(u64, ShardMap), Error> {
    let request = v1::JoinRequest {
        address: host.settings.node.address.clone(),
        protocol: PROTOCOL_VERSION,
        data_id: host.data_id(),
        ..known
    };
    let mut client = connect(seed).await?;
    let mut request = Request::new(request);
    request.set_timeout(CALL);
    let answer = client
        .join(request)
        .await
        .map_err(|status| call_error(&status))?
        .into_inner();
    let map = answer.map.ok_or_else(|| {
        Error::new(
            ErrorKind::Internal,
            format!("{seed} answered a join without a map"),
        )
    })?;
    cluster_from_wire(&map.cluster)?;
    Ok((answer.node, map.try_into()?))
}

/// Tells the coordinator where this node is reached now, if that is not what the map says.
async fn announce(host: &Host) {
    loop {
        let Ok(node) = host.node() else { return };
        let me = node.identity();
        let known = node.map().node(me.node).map(|node| node.address.clone());
        if known.is_none() || known.as_ref() == Some(&host.settings.node.address) {
            return;
        }
        let request = v1::JoinRequest {
            cluster: quorate_proto::cluster_to_wire(me.cluster),
            node: me.node,
            ..v1::JoinRequest::default()
        };
        for address in others(host) {
            match call_join(host, &address, request.clone()).await {
                Ok((_, map)) => {
                    node.adopt_map(map);
                    break;
                }
                Err(error) => {
                    tracing::warn!(address, %error, "announcing the new address: not yet")
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Has the coordinator note what this node's groups have become, and which of its replicas are damaged. What fails
/// is sent again in a later round.
async fn settle(host: &Host, node: &Node) {
    for command in node.unsettled() {
        if node.coordinate(command.clone(), CALL).await.is_ok() {
            continue;
        }
        for address in others(host) {
            match call_change(&address, &command).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::debug!(address, ?command, %error, "changing the map: not yet")
                }
            }
        }
    }
}

async fn call_change(address: &str, command: &ClusterCommand) -> Result<(), Error> {
    match *command {
        ClusterCommand::SettleMembers { shard, members } => {
            call_settle(address, shard, members).await
        }
        ClusterCommand::MoveReplica { shard, from, to } => {
            let request = v1::MoveReplicaRequest {
                shard,
                from,
                to,
                ..v1::MoveReplicaRequest::default()
            };
            call_move(address, request).await
        }
        ClusterCommand::WithdrawReplica {
            shard,
            replica,
            beside,
        } => {
            let request = v1::MoveReplicaRequest {
                shard,
                damaged: replica,
                beside,
                ..v1::MoveReplicaRequest::default()
            };
            call_move(address, request).await
        }
        _ => Ok(()),
    }
}

async fn call_move(address: &str, request: v1::MoveReplicaRequest) -> Result<(), Error> {
    let mut client = connect(address).await?;
    let mut request = Request::new(v1::MoveReplicaRequest {
        timeout_ms: CALL.as_millis() as u32,
        ..request
    });
    request.set_timeout(CALL);
    let moved = client.move_replica(request).await;
    moved.map(drop).map_err(|status| call_error(&status))
}

async fn call_settle(address: &str, shard: u64, members: u64) -> Result<(), Error> {
    let mut client = connect(address).await?;
    let mut request = Request::new(v1::SettleMembersRequest { shard, members });
    request.set_timeout(CALL);
    let settled = client.settle_members(request).await;
    settled.map(drop).map_err(|status| call_error(&status))
}

async fn fetch_map(host: &Host, address: &str) -> Result<(), Error> {
    let node = host.node()?;
    if let Some(map) = ask_map(address, node.map().version).await? {
        node.adopt_map(map);
    }
    Ok(())
}

/// The map of the node at an address, if that is newer than a version.
async fn ask_map(address: &str, known_version: u64) -> Result<Option<ShardMap>, Error> {
    let mut client = connect(address).await?;
    let mut request = Request::new(v1::MapRequest { known_version });
    request.set_timeout(CALL);
    let answer = client
        .map(request)
        .await
        .map_err(|status| call_error(&status))?;
    answer.into_inner().map.map(TryInto::try_into).transpose()
}

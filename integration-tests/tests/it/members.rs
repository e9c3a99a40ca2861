//! Nodes come and go, and replicas move, while writes go on; nothing that was acknowledged is lost.

use quorate_client::Client;
use quorate_sharding::{NodeId, ShardMap};

use crate::support::{Cluster, SOON, Settings, Writers, eventually, hashed, quorate};

const SHARDS: u32 = 4;
/// So many writes are acknowledged before and after a change.
const BETWEEN: u64 = 300;

/// Runs a command of the binary against the cluster; what it printed.
async fn run(cluster: &Cluster, arguments: &[&str]) -> String {
    let endpoints = cluster.endpoints_option();
    quorate(&[arguments, &["--endpoints", &endpoints]].concat())
        .await
        .good()
}

/// Runs one that is to be refused; what it said.
async fn refused(cluster: &Cluster, arguments: &[&str]) -> String {
    let endpoints = cluster.endpoints_option();
    let ended = quorate(&[arguments, &["--endpoints", &endpoints]].concat()).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ended.err
}

/// The map, once some node gives one in which nothing is on its way and this holds.
async fn map(client: &Client, holds: impl Fn(&ShardMap) -> bool) -> ShardMap {
    eventually("the map is as it should be", SOON, || async {
        client.refresh().await;
        let map = client.map();
        let is_so = map.shards().all(|shard| shard.is_settled()) && holds(&map);
        if is_so {
            Ok(map)
        } else {
            Err(format!("{map:?}"))
        }
    })
    .await
}

fn any(_: &ShardMap) -> bool {
    true
}

/// The id of the node in a place of `nodes`.
async fn id_of(cluster: &Cluster, client: &Client, place: usize) -> NodeId {
    let map = map(client, any).await;
    let mut nodes = map.nodes.values();
    let node = nodes.find(|node| node.address == cluster.nodes[place].address);
    node.expect("the node is of the cluster").id
}

/// Waits until a node's server says that it holds no replica any more.
async fn holds_nothing(client: &Client, address: &str) {
    eventually("the node holds nothing", SOON, || async {
        let states = client.status().await;
        let own = states.into_iter().find(|(node, _)| node.address == address);
        let groups = own
            .ok_or("it is not of the cluster")?
            .1
            .map_err(|e| e.to_string())?
            .groups;
        groups
            .is_empty()
            .then_some(())
            .ok_or_else(|| format!("{} groups", groups.len()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_drained_and_removed_under_load_loses_nothing() {
    let mut cluster = Cluster::start(&Settings::nodes(4)).await;
    let client = cluster.client().await;
    let kv = cluster
        .namespace(&client, &hashed("default", SHARDS, 3))
        .await;
    let writers = Writers::start(&kv, 8);
    writers.progress(BETWEEN).await;
    // The one that founded the cluster, with the coordinator.
    let gone = id_of(&cluster, &client, 0).await.to_string();
    let said = run(&cluster, &["node", "drain", &gone]).await;
    assert!(
        said.contains(&format!("node {gone} holds nothing")),
        "{said}"
    );
    let address = cluster.nodes[0].address.clone();
    holds_nothing(&client, &address).await;
    writers.progress(BETWEEN).await;
    let said = run(&cluster, &["node", "remove", &gone]).await;
    assert!(said.contains(&format!("removed node {gone}")), "{said}");
    cluster.nodes[0].kill();
    writers.progress(BETWEEN).await;
    let left = map(&client, |map| map.nodes.len() == 3).await;
    assert!(
        left.shards()
            .all(|shard| shard.is_settled() && shard.replicas.len() == 3)
    );
    let again = refused(&cluster, &["node", "remove", &gone]).await;
    assert!(
        again.contains(&format!("there is no node {gone}")),
        "{again}"
    );
    let last = left
        .nodes
        .keys()
        .next()
        .expect("three are left")
        .to_string();
    let full = refused(&cluster, &["node", "remove", &last]).await;
    assert!(full.contains("add a node first"), "{full}");
    let written = writers.stop_and_verify().await;
    assert!(cluster.assert_replicas_agree(&client).await >= written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_died_is_replaced_by_a_new_one_under_load() {
    let mut cluster = Cluster::start(&Settings::nodes(4)).await;
    let client = cluster.client().await;
    let kv = cluster
        .namespace(&client, &hashed("default", SHARDS, 3))
        .await;
    let writers = Writers::start(&kv, 8);
    writers.progress(BETWEEN).await;
    let shard = cluster.shards(&client).await[0];
    let place = cluster.leader(&client, Some(shard)).await;
    let dead = id_of(&cluster, &client, place).await;
    cluster.nodes[place].kill();
    run(&cluster, &["node", "remove", &dead.to_string()]).await;
    writers.progress(BETWEEN).await;
    let left = map(&client, |map| map.node(dead).is_none()).await;
    assert!(
        left.shards()
            .all(|shard| shard.is_settled() && shard.replica_on(dead).is_none())
    );
    let written = writers.stop_and_verify().await;
    assert!(cluster.assert_replicas_agree(&client).await >= written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_made_anew_and_moved_there_and_back_agree() {
    let mut cluster = Cluster::start(&Settings::nodes(4)).await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 1, 3)).await;
    let writers = Writers::start(&kv, 8);
    let shard = cluster.shards(&client).await[0];
    let id = shard.to_string();
    for _ in 0..2 {
        writers.progress(BETWEEN).await;
        let known = map(&client, any)
            .await
            .shard(shard)
            .expect("it is there")
            .clone();
        for replica in &known.replicas {
            run(
                &cluster,
                &["shard", "rebuild", &id, "--node", &replica.node.to_string()],
            )
            .await;
        }
        let nodes = map(&client, any).await;
        let free = nodes
            .nodes
            .keys()
            .find(|node| known.replica_on(**node).is_none());
        let (from, to) = (
            known.replicas[0].node.to_string(),
            free.expect("one of four").to_string(),
        );
        run(
            &cluster,
            &["shard", "move", &id, "--from", &from, "--to", &to],
        )
        .await;
        writers.progress(BETWEEN).await;
        run(
            &cluster,
            &["shard", "move", &id, "--from", &to, "--to", &from],
        )
        .await;
        // All of them are others by now.
        let is_new = |id| known.replicas.iter().all(|before| before.id < id);
        map(&client, |map| {
            let shard = map.shard(shard).expect("it is there");
            shard.replicas.len() == 3 && shard.replicas.iter().all(|replica| is_new(replica.id))
        })
        .await;
    }
    let written = writers.stop_and_verify().await;
    assert!(cluster.assert_replicas_agree(&client).await >= written);
}

//! Writes go on while nodes are killed, and nothing that was acknowledged is lost.

use std::time::{Duration, Instant};

use quorate_client::Client;

use crate::support::{Cluster, Random, SOON, Settings, Writers, eventually, hashed, quorate};

/// Every Debian machine has it.
const PACKAGES: &str = "/var/lib/dpkg/status";
const SHARDS: u32 = 8;
/// How long nodes are killed for, at least.
const KILLING: Duration = Duration::from_secs(20);
/// So many writes are acknowledged between two faults.
const BETWEEN: u64 = 300;

/// Loads the package list over and over until told to stop; each load has to end well.
fn load_packages(cluster: &Cluster) -> tokio::task::JoinHandle<()> {
    let endpoints = cluster.endpoints_option();
    tokio::spawn(async move {
        let arguments = ["load", PACKAGES, "--endpoints", &endpoints, "--quiet"];
        quorate(&arguments).await.good();
    })
}

async fn verify_packages(cluster: &Cluster) {
    let endpoints = cluster.endpoints_option();
    let arguments = ["verify", PACKAGES, "--endpoints", &endpoints, "--quiet"];
    let said = quorate(&arguments).await.good();
    assert!(said.contains("0 missing, 0 different"), "{said}");
}

/// All that was acknowledged is there, and the replicas agree.
async fn assert_nothing_lost(cluster: &mut Cluster, client: &Client, writers: Writers) {
    cluster.healthy().await;
    let written = writers.stop_and_verify().await;
    verify_packages(cluster).await;
    let keys = cluster.assert_replicas_agree(client).await;
    println!("{written} generated records acknowledged, {keys} keys in all");
    assert!(keys >= written);
    let endpoints = cluster.endpoints_option();
    let arguments = ["status", "--replicas", "--endpoints", &endpoints];
    quorate(&arguments).await.good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_while_shard_leaders_are_killed_loses_nothing() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster
        .namespace(&client, &hashed("default", SHARDS, 3))
        .await;
    let shards = cluster.shards(&client).await;
    let mut random = Random::seeded();
    let writers = Writers::start(&kv, 16);
    writers.progress(BETWEEN).await;
    let end = Instant::now() + KILLING;
    let mut kills = 0;
    while Instant::now() < end || kills < 4 {
        let load = load_packages(&cluster);
        let shard = shards[random.below(shards.len() as u64) as usize];
        let leader = cluster.leader(&client, Some(shard)).await;
        cluster.nodes[leader].kill();
        kills += 1;
        // The two that are left elect new leaders and take writes of all shards.
        load.await.expect("the load ends well");
        writers.progress(BETWEEN).await;
        cluster.nodes[leader].start();
        cluster.nodes[leader].healthy().await;
        writers.progress(BETWEEN).await;
    }
    println!("{kills} leaders killed");
    assert_nothing_lost(&mut cluster, &client, writers).await;
}

/// So long that no timer elects while a test waits for the next leader.
const SLOW_TIMERS: &str = "election_min_ms = 20000\nelection_max_ms = 30000\n";
const WELL_BEFORE_TIMERS: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_is_followed_at_once_without_waiting_for_timers() {
    let settings = Settings {
        raft: SLOW_TIMERS,
        ..Settings::nodes(3)
    };
    let mut cluster = Cluster::start(&settings).await;
    let client = cluster.client().await;
    let kv = cluster
        .namespace(&client, &hashed("default", SHARDS, 3))
        .await;
    let shards = cluster.shards(&client).await;
    let writers = Writers::start(&kv, 16);
    let mut gaps = Vec::new();
    for shard in &shards[..3] {
        writers.progress(BETWEEN).await;
        let leader = cluster.leader(&client, Some(*shard)).await;
        cluster.nodes[leader].kill();
        let killed = Instant::now();
        // So many that none can be stuck at a shard without a leader.
        writers.progress(BETWEEN).await;
        gaps.push(killed.elapsed());
        cluster.nodes[leader].start();
        cluster.nodes[leader].healthy().await;
    }
    println!("until all shards took writes again: {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < WELL_BEFORE_TIMERS), "{gaps:?}");
    cluster.healthy().await;
    let written = writers.stop_and_verify().await;
    assert!(cluster.assert_replicas_agree(&client).await >= written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_while_all_nodes_are_killed_at_once_loses_nothing() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster
        .namespace(&client, &hashed("default", SHARDS, 3))
        .await;
    let writers = Writers::start(&kv, 16);
    for _ in 0..3 {
        let load = load_packages(&cluster);
        writers.progress(3 * BETWEEN).await;
        cluster.kill_all();
        cluster.start_all();
        cluster.healthy().await;
        load.await.expect("the load ends well");
        writers.progress(BETWEEN).await;
    }
    assert_nothing_lost(&mut cluster, &client, writers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_interrupted_by_a_dead_cluster_resumes_from_its_checkpoint() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    cluster
        .namespace(&client, &hashed("default", SHARDS, 3))
        .await;
    let lines = (0..40_000).map(|n| format!("key-{n}\tvalue of {n}\n"));
    let file = cluster.dir.path().join("records.tsv");
    std::fs::write(&file, lines.collect::<String>()).expect("written");
    let place = cluster.dir.path().join("records.at");
    let (file, place) = (file.display().to_string(), place.display().to_string());
    let endpoints = cluster.endpoints_option();
    let mut arguments = vec!["load", &file, "--endpoints", &endpoints, "--quiet"];
    arguments.extend([
        "--checkpoint",
        &place,
        "--retry-ms",
        "500",
        "--timeout-ms",
        "1000",
    ]);
    arguments.extend(["--concurrency", "32"]);
    let load = quorate(&arguments);
    let fault = async {
        eventually("the load has come somewhere", SOON, || async {
            let there = std::fs::metadata(&place).is_ok();
            there
                .then_some(())
                .ok_or_else(|| "no checkpoint yet".to_owned())
        })
        .await;
        cluster.kill_all();
    };
    let (ended, ()) = tokio::join!(load, fault);
    let said = ended.bad();
    assert!(said.contains("--resume"), "{said}");
    cluster.start_all();
    cluster.healthy().await;
    arguments.extend(["--resume", "--output", "json"]);
    arguments.retain(|argument| !["--retry-ms", "500"].contains(argument));
    let report = quorate(&arguments).await.good();
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let (before, now) = (report["passed_over"].as_u64(), report["stored"].as_u64());
    assert_eq!(
        before.zip(now).map(|(a, b)| a + b),
        Some(40_000),
        "{report}"
    );
    let arguments = ["verify", &file, "--endpoints", &endpoints, "--quiet"];
    quorate(&arguments).await.good();
    cluster.assert_replicas_agree(&client).await;
}

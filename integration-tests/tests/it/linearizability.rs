//! A concurrent history over a few keys, recorded while nodes are killed and frozen, is linearizable.

use quorate_sharding::NamespaceSpec;

use crate::checker::check;
use crate::history::Recorder;
use crate::support::{Cluster, Random, compact, hashed};

/// Kills and freezes the nodes that lead, in turn.
async fn faults(cluster: &mut Cluster, recorder: &Recorder, rounds: usize) {
    let client = cluster.client().await;
    for round in 0..rounds {
        recorder.progress(200).await;
        let leader = cluster.leader(&client, None).await;
        if round % 2 == 0 {
            cluster.nodes[leader].kill();
            recorder.progress(200).await;
            cluster.nodes[leader].start();
        } else {
            // A leader that wakes up after others took over still thinks that it leads.
            cluster.nodes[leader].pause();
            recorder.progress(200).await;
            cluster.nodes[leader].resume();
        }
        cluster.nodes[leader].healthy().await;
    }
    recorder.progress(200).await;
    cluster.kill_all();
    cluster.start_all();
    cluster.healthy().await;
    recorder.progress(200).await;
}

async fn record(spec: NamespaceSpec, rounds: usize) {
    let mut random = Random::seeded();
    let mut cluster = Cluster::three().await;
    let maker = cluster.client().await;
    cluster.namespace(&maker, &spec).await;
    let recorder = Recorder::start(&cluster, &spec.name, &mut random).await;
    faults(&mut cluster, &recorder, rounds).await;
    let history = recorder.stop().await;
    assert_eq!(check(&history), Ok(()));
    cluster.assert_replicas_agree(&maker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_a_wide_namespace_with_kills_is_linearizable() {
    record(hashed("registers", 4, 3), 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_a_compact_namespace_with_kills_is_linearizable() {
    record(compact("registers", 3), 4).await;
}

//! A node that was away for longer than the log remembers catches up by snapshots.

use futures_util::StreamExt;
use quorate_kv::{Kv, Put};

use crate::support::{Cluster, SOON, eventually, hashed, put};

const VALUE_BYTES: usize = 256 << 10;
/// More than the bound of the log, which is 64 MiB, and a segment.
const VALUES: usize = 420;
const AT_ONCE: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_was_away_past_the_log_bound_catches_up_by_snapshots() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 3)).await;
    kv.put(Put::new("before", "value")).await.expect("written");
    cluster.nodes[2].kill();
    let puts = (0..VALUES).map(|n| {
        let value = vec![n as u8; VALUE_BYTES];
        put(&kv, Put::new(format!("key-{n}"), value))
    });
    let stored = futures_util::stream::iter(puts).buffer_unordered(AT_ONCE);
    let stored = stored.map(|done| done.expect("two of three"));
    assert_eq!(
        stored
            .filter(|applied| std::future::ready(*applied))
            .count()
            .await,
        VALUES
    );
    let written = (VALUES * VALUE_BYTES) as u64;
    eventually(
        "the log is shortened on both that are left",
        SOON,
        || async {
            let states = client.status().await;
            let logs: Vec<u64> = states
                .iter()
                .filter_map(|(_, s)| Some(s.as_ref().ok()?.log_bytes))
                .collect();
            let short = logs.len() == 2 && logs.iter().all(|bytes| *bytes < written);
            short
                .then_some(())
                .ok_or_else(|| format!("{logs:?} of {written}"))
        },
    )
    .await;
    // That was said before.
    for node in &cluster.nodes[..2] {
        let near = node.metric("quorate_log_near_bound_seconds_total").await;
        assert!(
            near.as_ref().is_ok_and(|seconds| *seconds >= 1.0),
            "{near:?}"
        );
    }
    cluster.nodes[2].start();
    cluster.healthy().await;
    assert_eq!(
        cluster.assert_replicas_agree(&client).await,
        VALUES as u64 + 1
    );
    // And it serves: it may lead now.
    cluster.nodes[0].kill();
    put(&kv, Put::new("after", "value"))
        .await
        .expect("with the one that came back");
    cluster.nodes[0].start();
    cluster.healthy().await;
    cluster.assert_replicas_agree(&client).await;
}

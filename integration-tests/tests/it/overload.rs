//! Far more is asked than the nodes may take in: they refuse what is too much, bounded in memory, keep their leaders,
//! and go on as before afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use quorate_client::{ClientOptions, NamespaceKv};
use quorate_kv::{ErrorKind, Get, Kv, Outcome, Put};
use tokio::time::Instant;

use crate::support::{Cluster, SOON, Settings, compact, eventually};

/// What may wait on a node, as it is configured below.
const QUEUE_BYTES: u64 = 2 << 20;
const SETTINGS: &str = "election_min_ms = 2000\nelection_max_ms = 4000\n\
                        [limits]\nqueue_bytes = 2097152\nqueue_delay_ms = 50\n";
const VALUE_BYTES: usize = 32 << 10;
const CLIENTS: usize = 4;
/// So many of each: a hundred times what may wait.
const WRITERS: usize = 1600;
const OVERLOAD: Duration = Duration::from_secs(4);
/// Nodes as small as these take a fraction of it; all that is asked at once would be more.
const MEMORY_BYTES: u64 = 400 << 20;

#[derive(Default)]
struct Tally {
    done: AtomicU64,
    refused: AtomicU64,
    late: AtomicU64,
    stop: AtomicBool,
}

/// Writes one key after the other, however they are answered.
async fn write_on(kv: NamespaceKv, writer: usize, tally: Arc<Tally>) {
    let value = Bytes::from(vec![7; VALUE_BYTES]);
    while !tally.stop.load(Ordering::Relaxed) {
        let put = Put::new(format!("key {}", writer % 64), value.clone());
        match kv.put(put.timeout(Duration::from_secs(5))).await {
            Ok(_) => tally.done.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.kind() == ErrorKind::Overloaded => {
                assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
                let after = error.retry_after().expect("a hint when to come again");
                assert!(after <= Duration::from_secs(1), "{after:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                tally.refused.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) if error.kind() == ErrorKind::DeadlineExceeded => {
                tally.late.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) => panic!("{error}"),
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_in_bounded_memory_and_passes() {
    let settings = Settings {
        raft: SETTINGS,
        ..Settings::nodes(3)
    };
    let mut cluster = Cluster::start(&settings).await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &compact("n", 1)).await;
    kv.put(Put::new("probe", "before")).await.expect("served");
    let leader = cluster.leader(&client, None).await;
    let terms = cluster.nodes[leader].metric("quorate_raft_term").await;

    // Each client tries everything once, and its window stays wide open: the nodes see it all.
    let options = ClientOptions {
        retry_percent: 0,
        retry_burst: 0,
        ..ClientOptions::default()
    };
    let tally = Arc::new(Tally::default());
    let mut writers = Vec::new();
    for _ in 0..CLIENTS {
        let client = cluster.client_with(options.clone()).await;
        let kv = client.namespace("n").await.expect("it is there");
        let each = (0..WRITERS).map(|n| tokio::spawn(write_on(kv.clone(), n, tally.clone())));
        writers.extend(each);
    }
    let begun = Instant::now();
    let (mut memory, mut queued, mut looks) = (0, 0, 0);
    // Until enough was seen, on however slow a machine.
    let enough = |looks: u32| begun.elapsed() > OVERLOAD && looks > 3;
    while !enough(looks) || tally.refused.load(Ordering::Relaxed) == 0 {
        assert!(begun.elapsed() < SOON, "{looks} looks, nothing refused");
        for node in &cluster.nodes {
            memory = memory.max(node.memory_bytes());
        }
        // Whoever watches is served, too.
        if let Ok(bytes) = cluster.nodes[leader]
            .metric("quorate_queued_write_bytes")
            .await
        {
            queued = queued.max(bytes as u64);
            looks += 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tally.stop.store(true, Ordering::Relaxed);
    for writer in join_all(writers).await {
        writer.expect("no other failure");
    }
    assert!(tally.done.load(Ordering::Relaxed) > 0, "nothing was done");
    assert!(memory < MEMORY_BYTES, "a node takes {memory} bytes");
    assert!(queued <= QUEUE_BYTES, "{queued} bytes waited");
    let shed = cluster.nodes[leader]
        .metric("quorate_shed_total{reason=\"write_")
        .await;
    assert!(
        shed.expect("metrics") > 0.0,
        "the node refused nothing itself"
    );
    assert_eq!(
        cluster.nodes[leader].metric("quorate_raft_term").await,
        terms
    );
    assert_eq!(cluster.leader(&client, None).await, leader);

    // Nothing has to be done for it to serve again, as before.
    eventually("normal service", SOON, || async {
        for n in 0..100 {
            let put = Put::new(format!("after {n}"), "value");
            let written = kv.put(put).await.map_err(|error| error.to_string())?;
            let get = Get::new(format!("after {n}"));
            let read = kv.get(get).await.map_err(|error| error.to_string())?;
            let version = read.map(|entry| entry.version);
            assert_eq!(version, Some(written.version));
        }
        let waits = cluster.nodes[leader]
            .metric("quorate_queued_write_bytes")
            .await?;
        if waits > 0.0 {
            Err(format!("{waits} bytes wait"))
        } else {
            Ok(())
        }
    })
    .await;
}

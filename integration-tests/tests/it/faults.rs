//! Faults of the surroundings: no quorum, a full disk.

use std::time::{Duration, Instant};

use quorate_client::{ClientOptions, NamespaceKv};
use quorate_kv::{ErrorKind, Get, Kv, Put, ReadLevel};

use quorate_sharding::GroupId;
use serde_json::Value;

use crate::support::{Cluster, Node, SOON, Settings, eventually, hashed, quorate};

/// What a client gives one operation here.
const TIMEOUT: Duration = Duration::from_secs(2);
/// So much later than that an error may come: machines are busy.
const SLACK: Duration = Duration::from_secs(2);

async fn stale(kv: &NamespaceKv, key: &'static str) -> quorate_kv::Result<Option<bytes::Bytes>> {
    let found = kv.get(Get::new(key).level(ReadLevel::Stale)).await?;
    Ok(found.map(|entry| entry.value))
}

/// Fails unless both an ordinary read and a write fail in time for want of a quorum.
async fn assert_no_quorum(kv: &NamespaceKv) {
    let begun = Instant::now();
    let (read, write) = tokio::join!(
        kv.get(Get::new("key").timeout(TIMEOUT)),
        kv.put(Put::new("key", "lost").timeout(TIMEOUT)),
    );
    assert!(
        begun.elapsed() < TIMEOUT + SLACK,
        "after {:?}",
        begun.elapsed()
    );
    for error in [read.expect_err("no quorum"), write.expect_err("no quorum")] {
        let wanted = [
            ErrorKind::NoQuorum,
            ErrorKind::DeadlineExceeded,
            ErrorKind::Unavailable,
        ];
        assert!(
            wanted.contains(&error.kind()),
            "{:?}: {error}",
            error.kind()
        );
    }
}

/// Waits until a node that is alone says so of all its shards in every way there is, and of the first
/// with this fault.
async fn assert_unhealthy(node: &Node, shards: &[GroupId], fault: &str) {
    eventually("the node misses the others", SOON, || async {
        let (status, body) = node.http("/health").await?;
        let health: Value = serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))?;
        let said = |shard: &GroupId| {
            let mut faults = health["faults"].as_array().into_iter().flatten();
            faults.find(|fault| fault["shard"] == *shard).cloned()
        };
        // The coordinator's is one more.
        let all = status == 503 && said(&1).is_some() && shards.iter().all(|s| said(s).is_some());
        let first = said(&shards[0]).filter(|said| said["fault"] == fault);
        let first = first.filter(|said| said["namespace"] == "default");
        (all && first.is_some()).then_some(()).ok_or(body)
    })
    .await;
    let first = shards[0];
    let (_, page) = node.http("/metrics").await.expect("answered");
    for line in [
        format!("quorate_shard_healthy{{shard=\"{first}\"}} 0"),
        format!("quorate_shard_fault{{shard=\"{first}\",fault=\"{fault}\",reason=\"\"}} 1"),
    ] {
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
    // The process itself is well: nobody should restart it.
    assert_eq!(node.http("/live").await.expect("answered").0, 200);
    let report = quorate(&["status", "--endpoints", &node.address]).await;
    assert_eq!(report.code, Some(1), "{report:#?}");
    assert!(
        report.out.contains(" 0 of 5 shards have a leader"),
        "{report:#?}"
    );
    let row = report.out.lines().find(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some(&first.to_string()) && words.next() == Some("default")
    });
    let row = row.expect("the shard has a row");
    assert!(row.contains(&fault.replace('_', " ")), "{row}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_without_a_quorum_refuses_in_time_and_reads_stale() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    // All replicas have it.
    cluster.assert_replicas_agree(&client).await;
    let shards = cluster.shards(&client).await;
    // One node is left: first one that led, with the others dead; then one that followed, with the
    // others frozen.
    for (is_frozen, fault) in [(false, "no_quorum"), (true, "no_leader")] {
        let leader = cluster.leader(&client, Some(shards[0])).await;
        let left = match fault {
            "no_quorum" => leader,
            _ => (leader + 1) % 3,
        };
        let gone = [(left + 1) % 3, (left + 2) % 3];
        for n in gone {
            match is_frozen {
                false => cluster.nodes[n].kill(),
                true => cluster.nodes[n].pause(),
            }
        }
        assert_no_quorum(&kv).await;
        assert_unhealthy(&cluster.nodes[left], &shards, fault).await;
        assert_eq!(
            stale(&kv, "key").await.expect("answered").as_deref(),
            Some(&b"value"[..])
        );
        for n in gone {
            match is_frozen {
                false => cluster.nodes[n].start(),
                true => cluster.nodes[n].resume(),
            }
        }
        cluster.healthy().await;
        // The write that failed may have been applied since, or not.
        let found = kv.get(Get::new("key")).await.expect("a quorum again");
        let value = found.expect("there").value;
        assert!(value == "value" || value == "lost", "{value:?}");
        kv.put(Put::new("key", "value"))
            .await
            .expect("a quorum again");
        cluster.assert_replicas_agree(&client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nearly_full_disk_refuses_writes_and_serves_reads_until_there_is_space() {
    let mut settings = Settings::nodes(3);
    let mut cluster = Cluster::start(&settings).await;
    let options = ClientOptions {
        timeout: TIMEOUT,
        ..ClientOptions::default()
    };
    let client = cluster.client_with(options).await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    settings.free_bytes_min = 1 << 49;
    restart(&mut cluster, &settings).await;
    eventually("a write is refused", SOON, || async {
        match kv.put(Put::new("other", "value")).await {
            Err(error) if error.kind() == ErrorKind::DiskFull => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let found = kv.get(Get::new("key")).await.expect("reads go on");
    assert_eq!(found.expect("there").value, "value");
    settings.free_bytes_min = 1 << 20;
    restart(&mut cluster, &settings).await;
    kv.put(Put::new("other", "value"))
        .await
        .expect("there is space again");
    cluster.assert_replicas_agree(&client).await;
}

async fn restart(cluster: &mut Cluster, settings: &Settings) {
    cluster.configure(settings);
    cluster.kill_all();
    cluster.start_all();
    cluster.healthy().await;
}

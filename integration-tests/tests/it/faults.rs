//! Faults of the surroundings: no quorum, a full disk.

use std::time::{Duration, Instant};

use quorate_client::{ClientOptions, NamespaceKv};
use quorate_kv::{ErrorKind, Get, Kv, Put, ReadLevel};

use crate::support::{Cluster, SOON, Settings, eventually, hashed};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_without_a_quorum_refuses_in_time_and_reads_stale() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    // All replicas have it.
    cluster.assert_replicas_agree(&client).await;
    // One node is left, first with the others dead, then with the others frozen.
    for is_frozen in [false, true] {
        for n in [0, 1] {
            match is_frozen {
                false => cluster.nodes[n].kill(),
                true => cluster.nodes[n].pause(),
            }
        }
        assert_no_quorum(&kv).await;
        assert_eq!(
            stale(&kv, "key").await.expect("answered").as_deref(),
            Some(&b"value"[..])
        );
        let (status, body) = eventually("the node sees that it is alone", SOON, || async {
            let answer = cluster.nodes[2].http("/health").await?;
            (answer.0 == 503)
                .then_some(answer)
                .ok_or_else(|| "it says that all is well".to_owned())
        })
        .await;
        assert!(body.contains("without a leader"), "{status} {body}");
        for n in [0, 1] {
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

//! Starting and stopping: a clean end on SIGTERM, a rolling restart, and `quorate dev`.

use quorate_kv::{Get, Kv, Put};

use crate::support::{Cluster, Share, Writers, free_ports, hashed, quorate};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_told_to_stop_end_well_and_restart_with_all_data() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    let writers = Writers::start(&kv, 8);
    writers.progress(500).await;
    // One after the other, under load: the cluster serves all the time.
    for n in 0..3 {
        let ended = cluster.nodes[n].terminate().await;
        assert_eq!(ended.code(), Some(0), "node {n}: {ended}");
        writers.progress(100).await;
        cluster.nodes[n].start();
        cluster.nodes[n].healthy().await;
        writers.progress(100).await;
    }
    let written = writers.stop_and_verify().await;
    // All at once.
    let [a, b, c] = cluster.nodes.as_mut_slice() else {
        panic!("three nodes");
    };
    let ended = tokio::join!(a.terminate(), b.terminate(), c.terminate());
    for ended in [ended.0, ended.1, ended.2] {
        assert_eq!(ended.code(), Some(0), "{ended}");
    }
    cluster.start_all();
    cluster.healthy().await;
    assert_eq!(cluster.assert_replicas_agree(&client).await, written);
    for node in &cluster.nodes {
        let log = node.log();
        assert!(
            log.contains("stopped") && !log.contains("panicked"),
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_comes_back_under_another_address_is_found_again() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    assert!(cluster.nodes[2].terminate().await.success());
    let old = cluster.nodes[2].address.clone();
    cluster.nodes[2].address = format!("127.0.0.1:{}", free_ports(1));
    let seeds = vec![cluster.nodes[0].address.clone()];
    cluster.nodes[2].configure(&seeds, "");
    cluster.nodes[2].start();
    let address = cluster.nodes[2].address.clone();
    crate::support::eventually(
        "the map names the new address",
        crate::support::SOON,
        || async {
            client.refresh().await;
            let map = client.map();
            let known: Vec<_> = map
                .nodes
                .values()
                .map(|node| node.address.clone())
                .collect();
            let moved = known.contains(&address) && !known.contains(&old);
            moved.then_some(()).ok_or_else(|| format!("{known:?}"))
        },
    )
    .await;
    cluster.healthy().await;
    kv.put(Put::new("key", "newer")).await.expect("written");
    cluster.assert_replicas_agree(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_metrics_show_nodes_shards_and_requests() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    let endpoints = cluster.endpoints_option();
    let report = quorate(&["status", "--output", "json", "--endpoints", &endpoints])
        .await
        .good();
    let report: serde_json::Value = serde_json::from_str(report.trim()).expect("JSON");
    let text = report.to_string();
    for node in &cluster.nodes {
        assert!(text.contains(&node.address), "{text}");
    }
    let (status, page) = cluster.nodes[0].http("/metrics").await.expect("answered");
    assert_eq!(status, 200);
    assert!(page.contains("quorate_"), "{page}");
    // A node that is down is named, and the command ends with 1.
    cluster.nodes[1].kill();
    let ended = quorate(&["status", "--endpoints", &endpoints]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.contains(&cluster.nodes[1].address), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_cluster_runs_twice_on_its_data() {
    let _share = Share::of(3).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().join("dev").display().to_string();
    let port = free_ports(3).to_string();
    let dev = ["dev", "--once", "--port", &port, "--data-dir", &data];
    let first = quorate(&dev).await.good();
    assert!(
        first.contains("three nodes") && first.contains("kill -9"),
        "{first}"
    );
    let identity = |n: u16| std::fs::read(format!("{data}/node-{n}/IDENTITY")).expect("founded");
    let before: Vec<_> = (1..=3).map(identity).collect();
    let second = quorate(&dev).await.good();
    assert!(second.contains("three nodes"), "{second}");
    assert_eq!(before, (1..=3).map(identity).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_on_keys_do_what_they_say() {
    let mut cluster = Cluster::one().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 1)).await;
    let endpoints = cluster.endpoints_option();
    let run = async |arguments: &[&str]| {
        let connect = ["--endpoints", &endpoints];
        quorate(&[arguments, &connect[..]].concat()).await
    };
    run(&["put", "greeting", "hello"]).await.good();
    assert_eq!(run(&["get", "greeting"]).await.good().trim(), "hello");
    assert_eq!(
        run(&["put", "greeting", "again", "--if-absent"]).await.code,
        Some(1)
    );
    let found = kv.get(Get::new("greeting")).await.expect("answered");
    assert_eq!(found.expect("there").value, "hello");
    run(&["del", "greeting"]).await.good();
    assert_eq!(run(&["get", "greeting"]).await.code, Some(1));
    assert_eq!(run(&["del", "greeting"]).await.code, Some(1));
}

//! `quorate storage` on the directory of a node: refused while it runs; then what is in it, whether it
//! is sound, and a repair after which the node serves again.

use std::fs;

use quorate_kv::{Get, Kv, Put};
use serde_json::Value;

use crate::support::{Cluster, compact, quorate};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_of_a_stopped_node_is_inspected_verified_dumped_and_repaired() {
    let mut cluster = Cluster::one().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &compact("default", 1)).await;
    for n in 0..50 {
        let put = Put::new(format!("key-{n:02}"), format!("value {n}"));
        kv.put(put).await.expect("written");
    }
    let data = cluster.nodes[0].data.clone();
    let dir = data.to_string_lossy().into_owned();
    for command in ["inspect", "verify", "dump", "repair"] {
        let said = quorate(&["storage", command, &dir]).await.bad();
        assert!(said.contains("already open"), "{command}: {said}");
    }
    assert!(cluster.nodes[0].terminate().await.success());

    let run = async |arguments: &[&str]| {
        let mut all = vec!["storage"];
        all.extend(arguments);
        quorate(&all).await
    };
    let summary = json(&run(&["inspect", &dir, "--output", "json"]).await.good());
    assert!(
        summary["dir"]
            .as_str()
            .is_some_and(|d| d.ends_with("engine"))
    );
    let tables = summary["tables"].as_array().expect("tables");
    assert!(!tables.is_empty(), "{summary}");
    let text = run(&["inspect", &dir]).await.good();
    assert!(
        text.contains("keyspace data") && text.contains(".table"),
        "{text}"
    );

    let text = run(&["verify", &dir]).await.good();
    assert!(text.contains("all sound"), "{text}");
    let dumped = run(&["dump", &dir, "--keyspace", "data", "--limit", "0"])
        .await
        .good();
    for n in 0..50 {
        assert!(dumped.contains(&format!("key-{n:02}@")), "{dumped}");
    }
    let some = [
        "dump",
        &dir,
        "--keyspace",
        "data",
        "--limit",
        "3",
        "--output",
        "json",
    ];
    let some = run(&some).await.good();
    assert_eq!(some.lines().count(), 3);
    let second = json(some.lines().nth(1).expect("a line"));
    let from = second["key"].as_str().expect("a key");
    let rest = run(&["dump", &dir, "--keyspace", "data", "--from", from])
        .await
        .good();
    assert!(
        rest.contains("key-01@") && !rest.contains("key-00@"),
        "{rest}"
    );

    let text = run(&["repair", &dir]).await.good();
    assert!(text.contains("nothing is wrong"), "{text}");
    fs::remove_file(data.join("engine/CURRENT")).expect("there");
    let said = run(&["verify", &dir]).await.bad();
    assert!(
        said.contains("CURRENT") && said.contains("storage repair"),
        "{said}"
    );
    let repaired = json(&run(&["repair", &dir, "--output", "json"]).await.good());
    assert_eq!(repaired["needed"], true);
    assert_eq!(repaired["lost"].as_array().map(Vec::len), Some(0));

    cluster.nodes[0].start();
    cluster.healthy().await;
    for n in 0..50 {
        let got = kv.get(Get::new(format!("key-{n:02}"))).await.expect("read");
        assert_eq!(got.expect("there").value, format!("value {n}"));
    }

    // A damaged table is named, set aside, and said to be lost.
    assert!(cluster.nodes[0].terminate().await.success());
    let summary = json(&run(&["inspect", &dir, "--output", "json"]).await.good());
    let file = summary["tables"][0]["file"]
        .as_str()
        .expect("a name")
        .to_owned();
    let path = data.join("engine").join(&file);
    let mut bytes = fs::read(&path).expect("readable");
    bytes[70] ^= 1;
    fs::write(&path, bytes).expect("writable");
    let verified = run(&["verify", &dir]).await;
    assert_eq!(verified.code, Some(1));
    assert!(verified.out.contains(&file), "{verified:?}");
    let repaired = run(&["repair", &dir]).await;
    assert_eq!(repaired.code, Some(1));
    assert!(
        repaired.out.contains(&format!("lost {file}")),
        "{repaired:?}"
    );
    assert!(data.join("engine/damaged").join(&file).exists());
    assert!(run(&["verify", &dir]).await.good().contains("all sound"));
}

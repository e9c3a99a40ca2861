//! Bad input: a clear error that says what is wrong, nothing stored, nothing broken.

use std::time::Duration;

use quorate_kv::{ErrorKind, Get, Kv, Put};
use quorate_proto::v1;
use quorate_proto::v1::kv_client::KvClient;
use quorate_sharding::{Operation, Request, ShardEpoch, WriteId};

use crate::support::{Cluster, Node, compact, free_ports, hashed, quorate, quorate_with_input};

/// The limits of a server that is not told otherwise.
const KEY_BYTES: usize = 4096;
const VALUE_BYTES: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_to_an_unknown_namespace_says_how_to_make_it() {
    let cluster = Cluster::one().await;
    let client = cluster.client().await;
    let error = client
        .namespace("nowhere")
        .await
        .err()
        .expect("there is none");
    assert_eq!(error.kind(), ErrorKind::UnknownNamespace);
    let endpoints = cluster.endpoints_option();
    let arguments = [
        "get",
        "key",
        "--namespace",
        "nowhere",
        "--endpoints",
        &endpoints,
    ];
    let said = quorate(&arguments).await.bad();
    assert!(said.contains("there is no namespace `nowhere`"), "{said}");
    assert!(said.contains("quorate namespace create"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespace_that_makes_no_sense_is_refused() {
    let mut cluster = Cluster::one().await;
    let client = cluster.client().await;
    cluster.namespace(&client, &hashed("there", 2, 1)).await;
    let again = client.create_namespace(&hashed("there", 2, 1)).await;
    assert_eq!(
        again.expect_err("it is there").kind(),
        ErrorKind::AlreadyExists
    );
    for spec in [
        hashed("", 2, 1),
        hashed("_system", 2, 1),
        hashed("a b", 2, 1),
        hashed("none", 0, 1),
    ] {
        let error = client.create_namespace(&spec).await.expect_err("no sense");
        assert_eq!(
            error.kind(),
            ErrorKind::InvalidArgument,
            "{spec:?}: {error}"
        );
    }
    // Three replicas need three nodes.
    let error = client
        .create_namespace(&hashed("wide", 2, 3))
        .await
        .expect_err("one node");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(
        client.namespace("wide").await.err().map(|e| e.kind()),
        Some(ErrorKind::UnknownNamespace)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_past_their_limits_are_refused_and_not_stored() {
    let mut cluster = Cluster::one().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 1)).await;
    let put = async |key: Vec<u8>, value: Vec<u8>| {
        let done = kv.put(Put::new(key, value)).await;
        done.map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!(put(vec![], vec![1]).await, Err(ErrorKind::InvalidArgument));
    assert_eq!(
        put(vec![7; KEY_BYTES + 1], vec![]).await,
        Err(ErrorKind::TooLarge)
    );
    // Past what any server takes, so the client itself refuses.
    assert_eq!(
        put(vec![7; 1 << 20], vec![]).await,
        Err(ErrorKind::TooLarge)
    );
    assert_eq!(
        put(vec![8], vec![0; VALUE_BYTES + 1]).await,
        Err(ErrorKind::TooLarge)
    );
    let get = |key: Vec<u8>| kv.get(Get::new(key));
    assert_eq!(get(vec![8]).await, Ok(None));
    assert_eq!(
        get(vec![]).await.map_err(|e| e.kind()),
        Err(ErrorKind::InvalidArgument)
    );
    let huge = get(vec![7; KEY_BYTES + 1]).await;
    assert_eq!(huge.map_err(|e| e.kind()), Err(ErrorKind::TooLarge));
    // At the limits all is well.
    assert_eq!(put(vec![7; KEY_BYTES], vec![9; VALUE_BYTES]).await, Ok(()));
    let entry = get(vec![7; KEY_BYTES])
        .await
        .expect("answered")
        .expect("there");
    assert_eq!(entry.value.len(), VALUE_BYTES);
    let endpoints = cluster.endpoints_option();
    let said = quorate(&["put", "", "value", "--endpoints", &endpoints])
        .await
        .bad();
    assert!(said.contains("the key is empty"), "{said}");
}

const JSON_LINES: &str =
    "{\"id\":\"a\",\"n\":1}\n{\"id\":\"b\",\"n\":2}\n{\"id\": broken\n{\"id\":\"d\",\"n\":4}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_of_a_malformed_line_names_it_and_stops_or_goes_on_as_asked() {
    let mut cluster = Cluster::one().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 1)).await;
    let there = async |key: &'static str| kv.get(Get::new(key)).await.expect("answered").is_some();
    let endpoints = cluster.endpoints_option();
    let mut load = vec!["load", "-", "--format", "jsonl", "--key", "id"];
    load.extend(["--endpoints", &endpoints, "--quiet"]);
    let said = quorate_with_input(&load, JSON_LINES.as_bytes()).await.bad();
    assert!(said.contains("line 3"), "{said}");
    assert!(said.contains("--on-error skip"), "{said}");
    assert!(
        there("a").await && there("b").await,
        "what lies before it is stored"
    );
    assert!(!there("d").await, "what lies behind it is not");
    load.extend(["--on-error", "skip", "--output", "json"]);
    let ended = quorate_with_input(&load, JSON_LINES.as_bytes()).await;
    assert!(ended.err.contains("line 3"), "{ended:?}");
    let report: serde_json::Value = serde_json::from_str(&ended.good()).expect("JSON");
    assert_eq!(
        (report["stored"].as_u64(), report["skipped"].as_u64()),
        (Some(3), Some(1))
    );
    assert!(there("d").await);
    let missing = ["load", "no-such-file", "--endpoints", &endpoints];
    let said = quorate(&missing).await.bad();
    assert!(said.contains("no-such-file"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_of_a_record_past_the_limits_names_its_line() {
    let mut cluster = Cluster::one().await;
    let client = cluster.client().await;
    cluster.namespace(&client, &hashed("default", 2, 1)).await;
    let input = format!("a\t1\n{}\t2\nc\t3\n", "k".repeat(KEY_BYTES + 1));
    let endpoints = cluster.endpoints_option();
    let mut load = vec![
        "load",
        "-",
        "--format",
        "tsv",
        "--endpoints",
        &endpoints,
        "--quiet",
    ];
    let said = quorate_with_input(&load, input.as_bytes()).await.bad();
    assert!(said.contains("line 2") && said.contains("4097"), "{said}");
    load.extend(["--on-error", "skip"]);
    let said = quorate_with_input(&load, input.as_bytes()).await.good();
    assert!(said.contains("1 skipped"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_with_a_false_epoch_gets_the_shard_as_it_is() {
    let mut cluster = Cluster::one().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &compact("default", 1)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    let shard = cluster.shards(&client).await[0];
    let known = client.map().shard(shard).cloned().expect("in the map");
    let mut raw = KvClient::connect(format!("http://{}", cluster.nodes[0].address))
        .await
        .expect("up");
    let mut ask = async |range: u64, operation: Operation| {
        let write_id = if operation.is_write() {
            WriteId {
                client: 1,
                sequence: 1,
            }
        } else {
            WriteId::default()
        };
        let request = Request {
            request_id: 1,
            namespace: known.namespace,
            shard,
            epoch: ShardEpoch {
                range,
                ..known.epoch
            },
            write_id,
            timeout: Duration::from_secs(5),
            trace: None,
            operation,
        };
        let frame = v1::RequestFrame {
            requests: vec![request.into()],
        };
        let frame = raw.execute(frame).await.expect("answered").into_inner();
        frame
            .responses
            .into_iter()
            .next()
            .and_then(|r| r.result)
            .expect("one result")
    };
    let get = || Operation::Get {
        key: "key".into(),
        level: quorate_kv::ReadLevel::Linearizable,
    };
    let put = || Operation::Put {
        key: "key".into(),
        value: "other".into(),
        condition: quorate_kv::Condition::None,
    };
    let true_range = known.epoch.range;
    for (range, operation) in [
        (true_range + 7, get()),
        (0, get()),
        (true_range + 7, put()),
        (0, put()),
    ] {
        let v1::response::Result::Error(error) = ask(range, operation).await else {
            panic!("an answer at the false epoch {range}");
        };
        assert_eq!(
            ErrorKind::from_code(error.kind),
            ErrorKind::WrongEpoch,
            "{error:?}"
        );
        assert_eq!(error.outcome, 0, "not applied: {error:?}");
        let redirect = error.redirect.expect("where to go instead");
        assert_eq!(redirect.shards.len(), 1);
        assert_eq!(redirect.shards[0].id, shard);
        assert_eq!(
            redirect.shards[0].epoch.as_ref().map(|e| e.range),
            Some(true_range)
        );
    }
    let v1::response::Result::Found(found) = ask(true_range, get()).await else {
        panic!("no answer at the true epoch");
    };
    assert_eq!(
        found.entry.expect("there").value,
        "value",
        "the false writes did nothing"
    );
}

/// Starts a server on a configuration that can't be, and gives what it said.
async fn refused(text: &str) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("quorate.toml");
    let data = dir.path().join("data");
    let text = text.replace("DATA", &data.display().to_string());
    std::fs::write(&file, text).expect("written");
    let said = quorate(&["serve", "--config", &file.display().to_string()])
        .await
        .bad();
    assert!(
        !data.exists(),
        "nothing is made before the settings are good: {said}"
    );
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_that_cannot_be_names_the_field_and_what_it_takes() {
    let cases = [
        ("listen = \"nowhere\"", &["listen", "IP:PORT"][..]),
        ("listne = \"127.0.0.1:7001\"", &["listne", "unknown field"]),
        ("listen = 7", &["listen"]),
        ("advertise = \"x\"", &["advertise", "host:port"]),
        ("seeds = [\"127.0.0.1\"]", &["seeds", "host:port"]),
        ("listen = \"0.0.0.0:7001\"", &["advertise"]),
        ("threads = 0", &["threads", "1 to 1024"]),
        (
            "[limits]\nkey_bytes = 1000000",
            &["limits.key_bytes", "16 to 16384"],
        ),
        ("[limits]\nbatch_bytes = 10", &["limits.batch_bytes"]),
        (
            "[storage]\nmemtable_bytes = 1",
            &["storage.memtable_bytes", "1048576 to"],
        ),
        (
            "[raft]\nlog_segment_bytes = 1",
            &["raft.log_segment_bytes", "16777216 to"],
        ),
        ("[raft]\nlease_ms = 101", &["raft.lease_ms", "100"]),
        (
            "[raft]\nelection_min_ms = 150",
            &["raft.election_min_ms", "twice raft.heartbeat_ms"],
        ),
        (
            "[raft]\ntiming = \"quick\"",
            &["quick", "`fast`, `slow`, `far`"],
        ),
        (
            "[raft]\nsilence_min_ms = 700",
            &["raft.silence_min_ms", "raft.election_max_ms (600)"],
        ),
        ("[log]\nfilter = \"=?=\"", &["log.filter"]),
        ("= nonsense", &["line 2"]),
    ];
    for (text, names) in cases {
        let said = refused(&format!("data_dir = \"DATA\"\n{text}\n")).await;
        for name in names {
            assert!(said.contains(name), "{text}: no `{name}` in:\n{said}");
        }
    }
    let said = quorate(&["serve", "--config", "no-such-file.toml"])
        .await
        .bad();
    assert!(said.contains("no-such-file.toml"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_on_a_port_in_use_names_it_and_touches_no_data() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let port = free_ports(1);
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("free");
    let mut node = Node::new(dir.path(), "node", port);
    node.configure(&[], "");
    node.start();
    assert_eq!(node.ended().await.code(), Some(1));
    let said = node.log();
    assert!(
        said.contains(&format!("can't listen on 127.0.0.1:{port}")),
        "{said}"
    );
    assert!(!node.data.exists(), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_without_a_cluster_say_where_they_looked() {
    let endpoint = format!("127.0.0.1:{}", free_ports(1));
    let connect = ["--endpoints", &endpoint, "--timeout-ms", "700"];
    for command in [
        &["get", "key"][..],
        &["put", "key", "value"],
        &["status"],
        &["namespace", "list"],
    ] {
        let said = quorate(&[command, &connect[..]].concat()).await.bad();
        assert!(said.contains(&endpoint), "{command:?}: {said}");
    }
    // A server that belongs to no cluster says so.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut node = Node::new(dir.path(), "node", free_ports(1));
    node.configure(&[], "");
    node.start();
    node.answers().await;
    let connect = ["--endpoints", &node.address, "--timeout-ms", "700"];
    let said = quorate(&[&["get", "key"][..], &connect].concat())
        .await
        .bad();
    assert!(said.contains("quorate init"), "{said}");
}

//! Damaged, foreign and newer files: a node refuses what it cannot prove, and names the file.

use std::fs;
use std::path::{Path, PathBuf};

use quorate_kv::{Get, Kv, Put};

use crate::support::{
    Cluster, Node, SOON, Settings, Share, Writers, eventually, free_ports, hashed, put, quorate,
};

/// Starts a stopped node, which has to end by itself, and gives what it said since.
async fn refuses(node: &mut Node) -> String {
    let before = node.log().len();
    node.start();
    let ended = node.ended().await;
    let said = node.log()[before..].to_owned();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// The files of a folder whose names end so, in the order of names.
pub fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).expect("a folder");
    let mut found: Vec<PathBuf> = listed
        .map(|entry| entry.expect("readable").path())
        .collect();
    found.retain(|path| path.to_string_lossy().ends_with(ending));
    found.sort();
    found
}

/// Flips bits of some bytes of a file from an offset on.
pub fn damage(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).expect("readable");
    assert!(bytes.len() > offset + 16, "{} is too short", path.display());
    bytes[offset..offset + 16]
        .iter_mut()
        .for_each(|byte| *byte ^= 0x5a);
    fs::write(path, bytes).expect("writable");
}

fn names(said: &str, path: &Path) -> bool {
    said.contains(&*path.file_name().expect("a file").to_string_lossy())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_that_is_newer_damaged_or_lost_is_refused() {
    let mut cluster = Cluster::one().await;
    let node = &mut cluster.nodes[0];
    assert!(node.terminate().await.success());
    let file = node.data.join("IDENTITY");
    let good = fs::read(&file).expect("there");

    let mut newer = good.clone();
    newer.truncate(good.len() - 4);
    newer[8..10].copy_from_slice(&9_u16.to_be_bytes());
    newer.extend(crc32c::crc32c(&newer).to_be_bytes());
    fs::write(&file, newer).expect("writable");
    let said = refuses(node).await;
    assert!(names(&said, &file) && said.contains("format 9"), "{said}");
    assert!(said.contains("use a newer one"), "{said}");

    fs::write(&file, &good).expect("writable");
    damage(&file, 12);
    let said = refuses(node).await;
    assert!(names(&said, &file) && said.contains("damaged"), "{said}");

    fs::remove_file(&file).expect("there");
    let said = refuses(node).await;
    assert!(names(&said, &file) && said.contains("restore it"), "{said}");

    fs::write(&file, &good).expect("writable");
    node.start();
    node.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_directory_that_is_open_already_is_refused() {
    let cluster = Cluster::one().await;
    let mut second = Node::new(cluster.dir.path(), "second", free_ports(1));
    second.data.clone_from(&cluster.nodes[0].data);
    second.configure(&[], "");
    let said = refuses(&mut second).await;
    assert!(said.contains("is in use by another process"), "{said}");
    assert!(said.contains(&*second.data.to_string_lossy()), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_directory_of_another_node_is_refused() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 3)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    assert!(cluster.nodes[2].terminate().await.success());

    // The directory of a node that is down, at the address of one that is down too.
    assert!(cluster.nodes[1].terminate().await.success());
    let theirs = cluster.nodes[2].data.clone();
    let ours = std::mem::replace(&mut cluster.nodes[1].data, theirs.clone());
    cluster.nodes[1].configure(&cluster.endpoints()[..1], "");
    let said = refuses(&mut cluster.nodes[1]).await;
    assert!(said.contains(&*theirs.to_string_lossy()), "{said}");
    assert!(said.contains("is the address of node"), "{said}");
    cluster.nodes[1].data = ours;
    cluster.configure(&Settings::nodes(3));
    cluster.start_all();
    cluster.healthy().await;

    // A copy of the directory of a node that runs, at a new address.
    assert!(cluster.nodes[2].terminate().await.success());
    let mut copy = Node::new(cluster.dir.path(), "copy", free_ports(1));
    copy_dir(&theirs, &copy.data);
    cluster.start_all();
    cluster.healthy().await;
    copy.configure(&cluster.endpoints()[..1], "");
    let said = refuses(&mut copy).await;
    assert!(said.contains("must not be copied"), "{said}");
    assert!(said.contains(&cluster.nodes[2].address), "{said}");
    cluster.assert_replicas_agree(&client).await;
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the test's directory is writable");
    for entry in fs::read_dir(from).expect("is listed") {
        let entry = entry.expect("is listed");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("is known").is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("is copied")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_directory_of_another_cluster_is_refused() {
    let share = Share::of(2).await;
    let mut ours = Cluster::start_within(&share, &Settings::nodes(1)).await;
    let theirs = Cluster::start_within(&share, &Settings::nodes(1)).await;
    let client = ours.client().await;
    let kv = ours.namespace(&client, &hashed("default", 2, 1)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    let node = &mut ours.nodes[0];
    assert!(node.terminate().await.success());
    node.configure(&theirs.endpoints(), "");
    let said = refuses(node).await;
    assert!(said.contains("another cluster"), "{said}");
    assert!(said.contains(&theirs.nodes[0].address), "{said}");
    assert!(said.contains(&*node.data.to_string_lossy()), "{said}");
    // Nothing was changed on either side.
    node.configure(&[], "");
    node.start();
    node.healthy().await;
    let found = kv.get(Get::new("key")).await.expect("answered");
    assert_eq!(found.expect("kept").value, "value");
    let strangers = theirs.client().await;
    assert!(strangers.namespace("default").await.is_err());
    assert_eq!(strangers.map().nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_manifest_stops_the_node_and_is_named_and_the_others_go_on() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 3)).await;
    let writers = Writers::start(&kv, 4);
    writers.progress(200).await;
    let node = &mut cluster.nodes[2];
    node.kill();
    let manifest = files(&node.data.join("engine"), ".manifest");
    let manifest = manifest.last().expect("there is one").clone();
    let good = fs::read(&manifest).expect("readable");
    damage(&manifest, good.len() / 3);
    let said = refuses(node).await;
    assert!(names(&said, &manifest), "{said}");
    assert!(said.contains("quorate storage repair"), "{said}");
    writers.progress(200).await;
    // As it was, the node is one of them again.
    fs::write(&manifest, good).expect("writable");
    cluster.nodes[2].start();
    cluster.healthy().await;
    writers.stop_and_verify().await;
    cluster.assert_replicas_agree(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_was_wiped_is_refused_under_its_old_address_until_it_is_removed() {
    let mut cluster = Cluster::start(&Settings::nodes(4)).await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 3)).await;
    let writers = Writers::start(&kv, 4);
    writers.progress(200).await;
    let wiped = &mut cluster.nodes[3];
    wiped.kill();
    fs::remove_dir_all(&wiped.data).expect("ours");
    let before = wiped.log().len();
    wiped.start();
    let told = "whose data is another directory";
    eventually("it is told why it can't be the old node", SOON, || async {
        let said = cluster.nodes[3].log()[before..].to_owned();
        said.contains(told).then_some(()).ok_or(said)
    })
    .await;
    let address = &cluster.nodes[3].address;
    client.refresh().await;
    let map = client.map();
    let old = map.nodes.values().find(|node| node.address == *address);
    let old = old.expect("the map knows the old node").id;
    let endpoints = cluster.endpoints()[..3].join(",");
    let remove = [
        "node",
        "remove",
        &old.to_string(),
        "--endpoints",
        &endpoints,
    ];
    quorate(&remove).await.good();
    // Now it may join, as a new node.
    let address = address.clone();
    eventually("it is a node of its own", SOON, || async {
        client.refresh().await;
        let map = client.map();
        let new = map.nodes.values().find(|node| node.address == address);
        let new = new.filter(|node| node.id > old);
        new.map(drop).ok_or_else(|| format!("{:?}", map.nodes))
    })
    .await;
    writers.stop_and_verify().await;
    cluster.assert_replicas_agree(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_log_segment_is_named_and_repaired_unasked() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 3)).await;
    let writers = Writers::start(&kv, 8);
    writers.progress(500).await;
    let written = writers.stop_and_verify().await;
    let node = &mut cluster.nodes[2];
    node.kill();
    let folder = node.data.join("log");
    let segment = files(&folder, ".log").pop().expect("a segment");
    let bytes = fs::read(&segment).expect("readable");
    // In the middle of what was written, far from a torn tail.
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("not empty");
    damage(&segment, end / 2);
    let before = node.log().len();
    node.start();
    // The others serve on, and the node is whole again by itself.
    kv.put(Put::new("meanwhile", "written"))
        .await
        .expect("two of three");
    eventually("the damage is named", SOON, || async {
        let said = cluster.nodes[2].log()[before..].to_owned();
        let found = names(&said, &segment) && said.contains("checksum");
        found.then_some(()).ok_or(said)
    })
    .await;
    cluster.healthy().await;
    assert!(cluster.assert_replicas_agree(&client).await > written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_table_is_named_and_its_data_not_served() {
    let mut cluster = Cluster::three().await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 2, 3)).await;
    // More than one memtable, so that there are tables; one has data blocks near its begin.
    let all = (0..60).map(|n| put(&kv, Put::new(format!("key-{n}"), vec![b'v'; 100_000])));
    let stored = futures_util::future::join_all(all).await;
    stored
        .into_iter()
        .for_each(|done| assert!(done.expect("written")));
    let node = &mut cluster.nodes[2];
    assert!(node.terminate().await.success());
    let tables = files(&node.data.join("engine"), ".table");
    assert!(!tables.is_empty(), "no tables");
    let good: Vec<Vec<u8>> = tables
        .iter()
        .map(|t| fs::read(t).expect("readable"))
        .collect();
    tables.iter().for_each(|table| {
        damage(
            table,
            5_000.min(fs::metadata(table).expect("there").len() as usize / 3),
        )
    });
    let before = node.log().len();
    node.start();
    // Either it does not start, or it finds the damage when the data is read.
    let shards = cluster.shards(&client).await;
    let said = eventually("the damage is found", SOON, || async {
        let mut said = cluster.nodes[2].log()[before..].to_owned();
        for shard in &shards {
            match client.replica_hashes(*shard).await {
                Ok(hashes) => said.extend(
                    hashes
                        .into_iter()
                        .filter_map(Result::err)
                        .map(|e| e.to_string()),
                ),
                Err(error) => said += &error.to_string(),
            }
        }
        let found = tables.iter().any(|table| names(&said, table));
        found.then_some(()).ok_or(said)
    });
    said.await;
    // Linearizable reads see the truth, whoever serves them.
    for n in 0..60 {
        let entry = kv
            .get(Get::new(format!("key-{n}")))
            .await
            .expect("answered");
        assert_eq!(entry.expect("there").value, vec![b'v'; 100_000]);
    }
    cluster.nodes[2].kill();
    for (table, bytes) in tables.iter().zip(good) {
        fs::write(table, bytes).expect("writable");
    }
    // Compaction may have replaced the tables; the files of this moment are whole again.
    cluster.nodes[2].start();
    cluster.healthy().await;
    cluster.assert_replicas_agree(&client).await;
}

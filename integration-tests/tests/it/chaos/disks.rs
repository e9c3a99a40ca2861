//! File systems that fill to their last byte under running nodes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use quorate_client::NamespaceKv;
use quorate_kv::{Error, ErrorKind, Get, Kv, Put, ReadLevel};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tempfile::TempDir;

use super::system;
use crate::support::{
    Cluster, Node, SOON, Settings, Share, Writers, eventually, free_ports, hashed, is_passing,
};

/// Room for a few log segments, memtables and tables.
const DISK_BYTES: u64 = 640 << 20;
/// What a disk has that is a file system in a file.
const IMAGE_BYTES: u64 = 2 << 30;
const VALUE_BYTES: usize = 256 << 10;
/// More than the bound of the log, which is 64 MiB, and two segments.
const VALUES: usize = 420;

/// Mounts a file system of so many bytes that is in memory.
fn mount(dir: &Path, bytes: u64) {
    fs::create_dir_all(dir).expect("the test's directory is writable");
    let (options, dir) = (format!("size={bytes}"), dir.to_string_lossy());
    system(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        &options,
        "quorate-chaos",
        &dir,
    ]);
}

/// Mounts an ext4 file system that is in a file, which is sparse and of so many bytes at most.
pub fn mount_image(image: &Path, at: &Path) {
    fs::create_dir_all(at).expect("the test's directory is writable");
    let file = File::create(image).expect("the test's directory is writable");
    file.set_len(IMAGE_BYTES).expect("a sparse file");
    let (image, at) = (image.to_string_lossy(), at.to_string_lossy());
    system(&["mkfs.ext4", "-q", "-m", "0", &image]);
    system(&["mount", "-o", "loop", &image, &at]);
}

/// A file that takes all that is left of a node's disk; dropping it gives the space back.
pub struct Ballast(PathBuf);

impl Ballast {
    /// Fills a disk to its last byte.
    pub fn fill(disk: &Path) -> Ballast {
        let ballast = Ballast(disk.join("ballast"));
        let file = File::create(&ballast.0).expect("a full disk still takes a name");
        let mut at = 0;
        for piece in [64 << 20, 1 << 20, 4096] {
            loop {
                match fallocate(&file, FallocateFlags::empty(), at, piece) {
                    Ok(()) => at += piece,
                    Err(Errno::NOSPC) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        ballast
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("the ballast is there");
    }
}

/// A node whose disk was full may lead again before it has looked at the disk again.
pub fn is_passing_amid_full_disks(error: &Error) -> bool {
    is_passing(error) || error.kind() == ErrorKind::DiskFull
}

async fn cluster_with_small_disks(places: &[u16]) -> Cluster {
    let dir = TempDir::new().expect("a temporary directory");
    let first = free_ports(3);
    let nodes = (0..3).map(|n| {
        let node = Node::new(dir.path(), &format!("node-{n}"), first + n);
        if places.contains(&n) {
            mount(&node.data, DISK_BYTES);
        }
        node
    });
    let nodes = nodes.collect();
    Cluster::of(dir, nodes, &Settings::nodes(3)).await
}

/// Writes more than a log keeps.
async fn write_much(kv: &NamespaceKv, round: u8) {
    let puts = (0..VALUES).map(|n| async move {
        let value = vec![round; VALUE_BYTES];
        let put = || kv.put(Put::new(format!("much-{n}"), value.clone()));
        eventually("a large write is acknowledged", SOON, || async {
            put().await.map_err(|error| error.to_string())
        })
        .await;
    });
    let written = futures_util::stream::iter(puts).buffer_unordered(4);
    assert_eq!(written.count().await, VALUES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_disk_of_one_node_fills_and_others_go_on_until_it_is_back() {
    let _share = Share::of(3).await;
    let mut cluster = cluster_with_small_disks(&[2]).await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    let writers = Writers::start_amid(&kv, 4, is_passing_amid_full_disks);
    for round in 0..3 {
        writers.progress(200).await;
        let ballast = Ballast::fill(&cluster.nodes[2].data);
        // Past what the others keep in their logs: it will need snapshots.
        write_much(&kv, round).await;
        let (_, metrics) = cluster.nodes[2].http("/metrics").await.expect("it lives");
        assert!(metrics.contains("quorate_disk_full 1"), "{metrics}");
        match round {
            0 => {}
            // Without a byte to write to, it does not start, and says why.
            1 => {
                cluster.nodes[2].kill();
                cluster.nodes[2].start();
                let ended = cluster.nodes[2].ended().await;
                assert!(!ended.success());
                assert!(cluster.nodes[2].log().contains("No space left on device"));
            }
            _ => {
                let ended = cluster.nodes[2].terminate().await;
                assert!(ended.code().is_some(), "it ended by itself: {ended}");
            }
        }
        drop(ballast);
        if !cluster.nodes[2].is_running() {
            cluster.nodes[2].start();
        }
        cluster.healthy().await;
        cluster.assert_replicas_agree(&client).await;
    }
    writers.stop_and_verify().await;
    assert!(
        !cluster.nodes[2].log().contains("panicked"),
        "{}",
        cluster.nodes[2].log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_disks_of_all_nodes_fill_and_reads_go_on_until_there_is_space() {
    let _share = Share::of(3).await;
    let mut cluster = cluster_with_small_disks(&[0, 1, 2]).await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    kv.put(Put::new("key", "value")).await.expect("written");
    let ballasts: Vec<Ballast> = cluster
        .nodes
        .iter()
        .map(|node| Ballast::fill(&node.data))
        .collect();
    eventually("writes are refused for want of space", SOON, || async {
        match kv.put(Put::new("other", "value")).await {
            Err(error) if error.kind() == ErrorKind::DiskFull => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for level in [ReadLevel::Linearizable, ReadLevel::Stale] {
        let found = kv.get(Get::new("key").level(level)).await;
        let found = found.unwrap_or_else(|error| panic!("{level:?}: {error}"));
        assert_eq!(found.expect("there").value, "value");
    }
    drop(ballasts);
    eventually("writes are taken again", SOON, || async {
        let written = kv.put(Put::new("other", "value")).await;
        written.map_err(|error| error.to_string())
    })
    .await;
    cluster.healthy().await;
    cluster.assert_replicas_agree(&client).await;
}

/// The disk behind the file system fails: the kernel tells by a failed sync, or a write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_loop_device_that_fails_stops_its_node_which_says_so_and_the_others_go_on() {
    let _share = Share::of(3).await;
    let dir = TempDir::new().expect("a temporary directory");
    let first = free_ports(3);
    let nodes = (0..3).map(|n| Node::new(dir.path(), &format!("node-{n}"), first + n));
    let nodes: Vec<Node> = nodes.collect();
    let behind = dir.path().join("behind");
    mount(&behind, DISK_BYTES);
    mount_image(&behind.join("disk"), &nodes[2].data);
    let mut cluster = Cluster::of(dir, nodes, &Settings::nodes(3)).await;
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &hashed("default", 4, 3)).await;
    let writers = Writers::start(&kv, 4);
    writers.progress(200).await;
    let _lost = Ballast::fill(&behind);
    let ended = cluster.nodes[2].ended().await;
    assert_eq!(ended.code(), Some(1), "{}", cluster.nodes[2].log());
    let said = cluster.nodes[2].log();
    assert!(
        said.contains("the disk failed, and this node can't go on"),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
    writers.progress(200).await;
    writers.stop_and_verify().await;
}

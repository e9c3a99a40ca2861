//! Disks that fill altogether, as a file system does: nothing acknowledged is lost, nothing stops for
//! good, and all goes on by itself when there is space.

use std::path::Path;
use std::sync::atomic::Ordering;

use quorate_env::sim::SimDisk;
use quorate_env::{Disk, Random};
use quorate_kv::{Condition, ErrorKind, ReadLevel};
use quorate_sharding::Operation;

use super::requests::*;

const VALUE_BYTES: usize = 512 << 10;

/// Not a byte is left.
fn fill(disk: &SimDisk) {
    let space = disk.space(Path::new("/data")).expect("looks");
    disk.set_capacity(Some(space.total - space.free));
}

/// More than two segments of the log and ten memtables.
async fn write_much(cluster: &Cluster, shard: &quorate_sharding::Shard, round: u64) {
    let value = format!("{round}").repeat(VALUE_BYTES);
    for n in 0..80 {
        cluster.put(shard, &format!("key {n}"), &value).await;
    }
}

#[test]
fn cluster_follower_with_a_full_disk_waits_and_catches_up() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let full = cluster.follower(shard.id).await;
        let disk = cluster.disks[&full].clone();
        fill(&disk);
        write_much(&cluster, &shard, 1).await;
        let node = &cluster.nodes[&full];
        until("the log and the node to find the disk full", || async {
            let found = node.inner.groups.log_is_full() && node.status().disk_full;
            found.then_some(())
        })
        .await;
        let stale = cluster
            .call(full, &shard, get("key", ReadLevel::Stale))
            .await;
        assert_eq!(value(stale).as_deref(), Some(&b"value"[..]));
        disk.set_capacity(None);
        cluster.assert_replicas_agree(shard.id).await;

        // It is stopped while it is full, or crashes then, and comes back when there is space.
        for crash in [false, true] {
            fill(&disk_of(&cluster, full));
            write_much(&cluster, &shard, 2).await;
            let disk = match crash {
                true => cluster.crash(full).await,
                false => {
                    let node = cluster.nodes.remove(&full).expect("a node");
                    // What waited for space is not kept, and that is said.
                    let _ = node.shutdown().await;
                    cluster.network.leave(full);
                    cluster.disks.remove(&full).expect("a disk")
                }
            };
            disk.set_capacity(None);
            cluster.restart(full, disk).await;
            cluster.assert_replicas_agree(shard.id).await;
        }
    });
}

fn disk_of(cluster: &Cluster, node: u64) -> SimDisk {
    cluster.disks[&node].clone()
}

#[test]
fn cluster_leader_with_a_full_disk_lets_others_lead() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let full = cluster.leader(shard.id).await;
        let disk = disk_of(&cluster, full);
        fill(&disk);
        write_much(&cluster, &shard, 1).await;
        assert_ne!(cluster.leader(shard.id).await, full);
        disk.set_capacity(None);
        cluster.assert_replicas_agree(shard.id).await;
    });
}

/// While a node whose disk became full asks others to lead, clients are not told that there is no space.
#[test]
fn cluster_leader_with_a_full_disk_says_so_only_after_others_were_asked() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let full = cluster.leader(shard.id).await;
        let context = &cluster.nodes[&full].inner.context;
        for (asks, told) in [(true, ErrorKind::Unavailable), (false, ErrorKind::DiskFull)] {
            // The node looks for itself each second, and finds space.
            until("the write to be refused", || async {
                context.handing_over.store(asks, Ordering::Relaxed);
                context.disk_full.store(true, Ordering::Relaxed);
                let answer = cluster.call(full, &shard, put("key", "more")).await;
                (answer.err()?.error.kind() == told).then_some(())
            })
            .await;
        }
    });
}

/// Little enough is left for puts to be refused; then so little that deletes are too.
#[test]
fn cluster_on_disks_nearly_full_deletes_and_gets_its_space_back_by_itself() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let random = Random::from_seed(1);
        for n in 0..80 {
            // LZ4 can do nothing with it.
            let value: String = (0..VALUE_BYTES / 16)
                .map(|_| format!("{:016x}", random.next_u64()))
                .collect();
            cluster.put(&shard, &format!("key {n}"), &value).await;
        }
        let reserve = cluster.nodes[&1].inner.config.free_bytes_min;
        let all_full = |full: bool| {
            let nodes = cluster.nodes.values();
            nodes.into_iter().all(|n| n.status().disk_full == full)
        };
        let leave = |bytes: u64| {
            for disk in cluster.disks.values() {
                let space = disk.space(Path::new("/data")).expect("looks");
                disk.set_capacity(Some(space.total - space.free + bytes));
            }
        };
        leave(reserve / 8);
        let delete = |n: usize| Operation::Delete {
            key: format!("key {n}").into(),
            condition: Condition::None,
        };
        let refused = |operation: Operation| {
            let (cluster, shard) = (&cluster, &shard);
            move || {
                let operation = operation.clone();
                async move {
                    let leader = cluster.leader(shard.id).await;
                    let answer = cluster.call(leader, shard, operation).await;
                    let kind = answer.err().map(|failure| failure.error.kind());
                    (kind == Some(ErrorKind::DiskFull)).then_some(())
                }
            }
        };
        until("deletes to be refused", refused(delete(0))).await;
        until("puts to be refused", refused(put("key", "more"))).await;
        leave(reserve - (20 << 20));
        for n in 0..80 {
            until("a delete to be taken", || async {
                let leader = cluster.leader(shard.id).await;
                let answer = cluster.call(leader, &shard, delete(n)).await;
                answer.is_ok().then_some(())
            })
            .await;
        }
        until("the space to be back", || async {
            all_full(false).then_some(())
        })
        .await;
        cluster.put(&shard, "key", "more").await;
        cluster.assert_replicas_agree(shard.id).await;
    });
}

#[test]
fn cluster_whose_disks_are_all_full_reads_and_goes_on_with_space() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        cluster.disks.values().for_each(fill);
        until("writes to be refused", || async {
            let leader = cluster.leader(shard.id).await;
            let refused = cluster.call(leader, &shard, put("other", "value")).await;
            refused.is_err().then_some(())
        })
        .await;
        for node in 1..=3 {
            // Leadership may just be on its way to another.
            let read = get("key", ReadLevel::Linearizable);
            let read = cluster.answered(node, &shard, read).await;
            assert_eq!(value(read).as_deref(), Some(&b"value"[..]));
        }
        for disk in cluster.disks.values() {
            disk.set_capacity(None);
        }
        cluster.put(&shard, "other", "value").await;
        cluster.assert_replicas_agree(shard.id).await;
    });
}

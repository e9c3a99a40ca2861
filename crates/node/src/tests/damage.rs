//! Damage of a node's files: whom it taints, that the others go on, and that it is repaired unasked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use quorate_env::Disk;
use quorate_env::sim::SimDisk;
use quorate_kv::ReadLevel;
use quorate_sharding::{COORDINATOR_GROUP, GroupId, NodeId, ReplicaId, Shard};

use super::requests::*;
use crate::taint::{Taint, Taints, decode, encode};

const KEYS: u64 = 150;

fn value_of(shard: &Shard, n: u64) -> String {
    // Nothing that compresses well: the blocks of a shard are many.
    let seed = shard.id * 1000 + n;
    let words = (0..60).map(|w| format!("{:x}", crc32c::crc32c(format!("{seed}.{w}").as_bytes())));
    format!("value {}.{n} {}", shard.id, words.collect::<String>())
}

/// Two shards with data, in tables on every node.
async fn filled() -> (Cluster, [Shard; 2]) {
    let cluster = Cluster::of_three().await;
    until("the coordinator's voters", || async {
        cluster.serve().await;
        (voters(&cluster, COORDINATOR_GROUP) == 3).then_some(())
    })
    .await;
    let shards = [
        cluster.namespace("one", hashed()).await,
        cluster.namespace("two", hashed()).await,
    ];
    for shard in &shards {
        for n in 0..KEYS {
            cluster
                .put(shard, &format!("key {n}"), &value_of(shard, n))
                .await;
        }
    }
    for shard in &shards {
        cluster.assert_replicas_agree(shard.id).await;
    }
    for node in cluster.nodes.values() {
        let engine = std::sync::Arc::clone(&node.inner.engine);
        let flushed = tokio::task::spawn_blocking(move || engine.flush());
        flushed.await.expect("runs").expect("is flushed");
    }
    (cluster, shards)
}

/// The files of a kind, the largest first.
fn files(disk: &SimDisk, folder: &str, kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(folder);
    let names = disk.list(folder).expect("lists");
    let mut found: Vec<_> = names
        .iter()
        .filter(|name| name.ends_with(kind))
        .map(|name| {
            (
                disk.read(&folder.join(name)).expect("reads").len(),
                folder.join(name),
            )
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// Flips a bit of the largest table; where data of the first shard lies.
fn damage_table(disk: &SimDisk) {
    let path = files(disk, "/data/engine", ".table").remove(0);
    let size = disk.read(&path).expect("reads").len() as u64;
    disk.flip_bit(&path, size * 8 * 3 / 10).expect("flips");
}

fn replicas_on(cluster: &Cluster, node: NodeId) -> BTreeMap<GroupId, ReplicaId> {
    let map = cluster
        .nodes
        .values()
        .map(crate::Node::map)
        .max_by_key(|map| map.version);
    let map = map.expect("a node");
    map.shards()
        .filter_map(|shard| Some((shard.id, shard.replica_on(node)?.id)))
        .collect()
}

/// How many voters a group has, as its leader knows; 0 while that changes.
fn voters(cluster: &Cluster, group: GroupId) -> usize {
    let leader = cluster.nodes.values().find_map(|node| {
        let group = node.inner.groups.group(group).ok()?;
        group.is_leader().then_some(group)
    });
    let members = leader.map(|leader| leader.status().members);
    let members = members.filter(|m| m.learners.is_empty() && !m.joint);
    members.map_or(0, |members| members.voters.len())
}

/// Waits until a node has replaced what was tainted; returns whose replicas are others now.
async fn repaired(
    cluster: &Cluster,
    node: NodeId,
    before: &BTreeMap<GroupId, ReplicaId>,
) -> BTreeSet<GroupId> {
    until("the repair", || async {
        cluster.serve().await;
        let inner = &cluster.nodes[&node].inner;
        let status = cluster.nodes[&node].status();
        let done = inner.taints.all().is_empty() && status.faults().is_empty();
        let voters = |group: &GroupId| voters(cluster, *group) == 3;
        (done && before.keys().all(voters)).then_some(())
    })
    .await;
    let after = replicas_on(cluster, node);
    assert_eq!(after.len(), before.len(), "{after:?}");
    let changed = after
        .iter()
        .filter(|(group, id)| before.get(group) != Some(id));
    changed.map(|(group, _)| *group).collect()
}

/// Reads everything on one node, as it is there; what is read must be right.
async fn read_all(cluster: &Cluster, node: NodeId, shard: &Shard) -> Result<(), String> {
    for n in 0..KEYS {
        let read = get(&format!("key {n}"), ReadLevel::Stale);
        match cluster.call(node, shard, read).await {
            Err(failure) => return Err(failure.error.to_string()),
            found => assert_eq!(value(found).as_deref(), Some(value_of(shard, n).as_bytes())),
        }
    }
    Ok(())
}

async fn agree(cluster: &Cluster, shards: &[Shard]) {
    for shard in shards {
        let hash = cluster.assert_replicas_agree(shard.id).await;
        assert_eq!(hash.keys, KEYS);
    }
    assert!(
        cluster
            .nodes
            .values()
            .all(|node| !node.inner.engine.is_damaged())
    );
}

#[test]
fn damaged_table_of_a_running_node_taints_one_replica_which_is_replaced() {
    runtime().block_on(async {
        let (cluster, shards) = filled().await;
        for node in [
            cluster.follower(shards[0].id).await,
            cluster.leader(shards[0].id).await,
        ] {
            let before = replicas_on(&cluster, node);
            damage_table(&cluster.disks[&node]);
            let tainted = || !cluster.nodes[&node].inner.taints.all().is_empty();
            until("the damage to be found", || async {
                let read = read_all(&cluster, node, &shards[0]).await;
                (read.is_err() && tainted()).then_some(())
            })
            .await;
            // The other one is served all the time.
            read_all(&cluster, node, &shards[1])
                .await
                .expect("is not touched");
            let changed = repaired(&cluster, node, &before).await;
            assert_eq!(changed, [shards[0].id].into());
            assert_eq!(cluster.nodes[&node].status().repaired, 1);
            read_all(&cluster, node, &shards[0])
                .await
                .expect("is whole again");
            agree(&cluster, &shards).await;
            assert_eq!(
                files(&cluster.disks[&node], "/data/engine", ".damaged").len(),
                1
            );
            assert!(files(&cluster.disks[&node], "/data", "DAMAGE").is_empty());
        }
    });
}

#[test]
fn damaged_table_of_a_stopped_node_is_found_and_replaced_though_it_stops_again() {
    runtime().block_on(async {
        let (mut cluster, shards) = filled().await;
        let node = cluster.follower(shards[0].id).await;
        let before = replicas_on(&cluster, node);
        let disk = cluster.stop(node).await;
        damage_table(&disk);
        cluster.restart(node, disk).await;
        until("the damage to be found", || async {
            let _ = read_all(&cluster, node, &shards[0]).await;
            let known = cluster.disks[&node].exists(Path::new("/data/DAMAGE"));
            known.expect("looks").then_some(())
        })
        .await;
        // It is known after a crash, though nobody reads.
        let disk = cluster.crash(node).await;
        cluster.restart(node, disk).await;
        let taints = cluster.nodes[&node].inner.taints.all();
        assert_eq!(taints.keys().copied().collect::<Vec<_>>(), [shards[0].id]);
        let refused = cluster
            .call(node, &shards[0], get("key 1", ReadLevel::Stale))
            .await;
        let refused = refused.expect_err("it does not answer").error.to_string();
        assert!(refused.contains("shard"), "{refused}");
        assert_eq!(
            repaired(&cluster, node, &before).await,
            [shards[0].id].into()
        );
        agree(&cluster, &shards).await;
    });
}

#[test]
fn missing_table_taints_what_it_held_and_the_node_opens() {
    runtime().block_on(async {
        let (mut cluster, shards) = filled().await;
        let node = cluster.follower(shards[0].id).await;
        let before = replicas_on(&cluster, node);
        let disk = cluster.stop(node).await;
        let path = files(&disk, "/data/engine", ".table").remove(0);
        disk.remove(&path).expect("removes");
        cluster.restart(node, disk).await;
        let tainted = cluster.nodes[&node].inner.taints.all();
        assert!(tainted.contains_key(&shards[0].id) && tainted.contains_key(&shards[1].id));
        let changed = repaired(&cluster, node, &before).await;
        assert!(
            shards.iter().all(|shard| changed.contains(&shard.id)),
            "{changed:?}"
        );
        agree(&cluster, &shards).await;
    });
}

/// Where a text lies in the log.
fn find_in_log(disk: &SimDisk, text: &str) -> (PathBuf, u64) {
    let found = files(disk, "/data/log", ".log")
        .into_iter()
        .find_map(|path| {
            let bytes = disk.read(&path).expect("reads");
            let at = bytes
                .windows(text.len())
                .position(|part| part == text.as_bytes())?;
            Some((path, at as u64))
        });
    found.expect("it is in the log")
}

#[test]
fn damaged_entry_of_the_log_taints_its_replica_alone() {
    runtime().block_on(async {
        let (mut cluster, shards) = filled().await;
        let node = cluster.follower(shards[1].id).await;
        let before = replicas_on(&cluster, node);
        let disk = cluster.stop(node).await;
        let (path, at) = find_in_log(&disk, &value_of(&shards[1], 40));
        disk.flip_bit(&path, (at + 20) * 8).expect("flips");
        cluster.restart(node, disk).await;
        let taints = cluster.nodes[&node].inner.taints.all();
        assert_eq!(taints.keys().copied().collect::<Vec<_>>(), [shards[1].id]);
        let what = &taints[&shards[1].id].what;
        assert!(what.contains(&path.display().to_string()), "{what}");
        until("the other one to be opened and read", || async {
            read_all(&cluster, node, &shards[0]).await.ok()
        })
        .await;
        assert_eq!(
            repaired(&cluster, node, &before).await,
            [shards[1].id].into()
        );
        agree(&cluster, &shards).await;
        // It was mended: nothing is found again.
        let disk = cluster.stop(node).await;
        cluster.restart(node, disk).await;
        assert!(cluster.nodes[&node].inner.taints.all().is_empty());
        agree(&cluster, &shards).await;
    });
}

#[test]
fn damaged_record_of_nobody_knows_whom_taints_all_replicas_of_the_node() {
    runtime().block_on(async {
        let (mut cluster, shards) = filled().await;
        let node = cluster.follower(shards[1].id).await;
        let before = replicas_on(&cluster, node);
        let disk = cluster.stop(node).await;
        let (path, at) = find_in_log(&disk, &value_of(&shards[1], 40));
        // Its head is somewhere before, and no further than that.
        for byte in (at - 160..at).step_by(3) {
            disk.flip_bit(&path, byte * 8 + 1).expect("flips");
        }
        cluster.restart(node, disk).await;
        let taints = cluster.nodes[&node].inner.taints.all();
        assert!(
            taints.len() == 3 && taints.contains_key(&COORDINATOR_GROUP),
            "{taints:?}"
        );
        let changed = repaired(&cluster, node, &before).await;
        assert_eq!(changed.len(), 3);
        agree(&cluster, &shards).await;
    });
}

#[test]
fn damaged_replica_stays_as_it_is_while_the_others_are_no_quorum() {
    runtime().block_on(async {
        let (mut cluster, shards) = filled().await;
        let node = cluster.follower(shards[0].id).await;
        let before = replicas_on(&cluster, node);
        let away = *cluster
            .nodes
            .keys()
            .find(|id| **id != node)
            .expect("another");
        let disk = cluster.stop(node).await;
        let (path, at) = find_in_log(&disk, &value_of(&shards[0], 40));
        disk.flip_bit(&path, (at + 20) * 8).expect("flips");
        let lost = cluster.stop(away).await;
        cluster.restart(node, disk).await;
        let held = || {
            let engine = &cluster.nodes[&node].inner.engine;
            crate::remains::replicas_of(engine)
                .expect("is read")
                .contains_key(&shards[0].id)
        };
        // Whatever is asked for meanwhile, its data is kept.
        for _ in 0..5 {
            for command in cluster.nodes[&node].unsettled() {
                let brief = std::time::Duration::from_millis(300);
                let _ = cluster.nodes[&node].coordinate(command, brief).await;
            }
            assert!(held() && !cluster.nodes[&node].inner.taints.all().is_empty());
        }
        cluster.restart(away, lost).await;
        assert_eq!(
            repaired(&cluster, node, &before).await,
            [shards[0].id].into()
        );
        agree(&cluster, &shards).await;
    });
}

#[test]
fn taints_on_disk_are_read_back_and_damage_of_them_is_refused() {
    let taint = |replica, removed| Taint {
        replica,
        removed,
        range: (vec![0, 1], vec![0, 2]),
        what: "table 7 is damaged".into(),
    };
    let taints = Taints::from([(3, taint(9, false)), (70_000, taint(1, true))]);
    let bytes = encode(&taints);
    assert_eq!(decode(&bytes), Ok(taints));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&flipped).is_err(), "bit {bit}");
    }
    for end in 0..bytes.len() {
        assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
    }
}

//! The kinds of fault.

use std::time::Duration;

use quorate_env::sim::Fault;

use super::{Faults, Mend, leases};
use crate::cluster::Cluster;
use crate::history::Violation;

/// All kinds of which a seed picks some. Lost and late messages are counted apart.
pub const KINDS: &[&str] = &[
    "kill",
    "kill_several",
    "restart",
    "partition",
    "partition_partial",
    "partition_one_way",
    "clog",
    "message_loss",
    "message_delay",
    "freeze",
    "clock_jump",
    "clock_pace",
    "disk_slow",
    "disk_full",
    "disk_sync_fails",
    "disk_write_fails",
    "disk_read_fails",
    "damage",
    "damage_running",
    "leader_moves",
    "election",
    "members_change",
    "node_joins",
    "namespace_made",
    "flush",
    "hash",
    "thought_dead",
    "promise_forgotten",
    "handed_over",
];

/// Lets one happen; false if it can't just now.
pub(super) fn strike(
    faults: &mut Faults,
    cluster: &mut Cluster,
    kind: &'static str,
) -> Result<bool, Violation> {
    Ok(match kind {
        "kill" | "kill_several" | "restart" | "freeze" | "damage" => process(faults, cluster, kind),
        "damage_running" => faults.damage_running(cluster),
        "partition" | "partition_partial" | "partition_one_way" | "clog" | "message_loss"
        | "message_delay" => network(faults, cluster, kind),
        "clock_jump" | "clock_pace" => clock(faults, cluster, kind),
        "disk_slow" | "disk_full" => disk(faults, cluster, kind),
        "disk_sync_fails" => faults.fail_disk(cluster, Fault::Sync),
        "disk_write_fails" => faults.fail_disk(cluster, Fault::Write),
        "disk_read_fails" => faults.fail_disk(cluster, Fault::Read),
        "thought_dead" | "promise_forgotten" | "handed_over" => {
            leases::strike(faults, cluster, kind)
        }
        "node_joins" => joins(faults, cluster)?,
        _ => asked(faults, cluster, kind),
    })
}

fn process(faults: &mut Faults, cluster: &mut Cluster, kind: &str) -> bool {
    if kind == "damage" {
        return faults.damage(cluster);
    }
    if kind == "kill_several" {
        let alive = cluster.alive();
        let all = cluster.random.one_in(2);
        let most_us = [100_000, 2_000_000][cluster.random.below(2) as usize];
        for id in alive {
            if (all || cluster.random.one_in(2)) && !faults.down.contains(&id) {
                faults.kill_for(cluster, id, most_us);
            }
        }
        return true;
    }
    let Some(id) = faults.victim(cluster) else {
        return false;
    };
    match kind {
        "kill" => faults.kill_for(cluster, id, 2_500_000),
        "freeze" => {
            let until = faults.lasting(cluster, 3_000);
            let (now_us, sleeps) = (cluster.now_us, cluster.random.one_in(2));
            if let Some(host) = cluster.hosts.get_mut(&id) {
                host.freeze(now_us, until, sleeps);
            }
        }
        _ => {
            // Asked to stop, and killed when it has, or takes too long.
            drop(cluster.ask(id, |node| async move { node.shutdown().await.is_ok() }));
            faults.down.insert(id);
            let at_us = faults.lasting(cluster, 1_500);
            faults.plan(at_us, Mend::Kill(id));
        }
    }
    true
}

pub(super) fn cut(faults: &mut Faults, cluster: &Cluster, from: u64, to: u64, until_us: u64) {
    cluster.network.cut(from, to);
    faults.plan(until_us, Mend::Unblock(from, to));
}

fn network(faults: &mut Faults, cluster: &mut Cluster, kind: &str) -> bool {
    let ids: Vec<u64> = cluster.hosts.keys().copied().collect();
    let random = cluster.random.clone();
    let pick = |ids: &[u64]| ids[random.below(ids.len() as u64) as usize];
    let until_us = faults.lasting(cluster, 4_000);
    match kind {
        "partition" => {
            let side: Vec<bool> = ids.iter().map(|_| random.one_in(2)).collect();
            for (a, of_a) in ids.iter().zip(&side) {
                for (b, of_b) in ids.iter().zip(&side) {
                    if of_a != of_b {
                        cut(faults, cluster, *a, *b, until_us);
                    }
                }
            }
        }
        "partition_partial" => {
            // Two that do not hear each other, and others that hear both.
            let (a, b) = (pick(&ids), pick(&ids));
            if a == b {
                return false;
            }
            cut(faults, cluster, a, b, until_us);
            cut(faults, cluster, b, a, until_us);
        }
        "partition_one_way" => {
            let a = pick(&ids);
            for b in ids.iter().copied().filter(|b| *b != a) {
                if random.one_in(2) {
                    cut(faults, cluster, a, b, until_us);
                }
            }
        }
        "clog" => {
            // A random half; unclogged one by one, in another order.
            for a in &ids {
                for b in ids.iter().filter(|b| *b != a) {
                    if random.one_in(2) {
                        let by_us = 50_000 + random.below(1_000_000);
                        cluster.network.clog(*a, *b, by_us);
                        let at_us = faults.lasting(cluster, 4_000);
                        faults.plan(at_us, Mend::Unclog(*a, *b));
                    }
                }
            }
        }
        "message_loss" => {
            cluster.network.lose_one_in(3 + random.below(60));
            faults.plan(until_us, Mend::NoLoss);
        }
        _ => {
            cluster.network.set_delay_us(5_000 + random.below(150_000));
            faults.plan(until_us, Mend::UsualDelay);
        }
    }
    true
}

fn clock(faults: &mut Faults, cluster: &mut Cluster, kind: &str) -> bool {
    let Some(id) = faults.victim(cluster) else {
        return false;
    };
    let random = cluster.random.clone();
    let until_us = faults.lasting(cluster, 6_000);
    let is_leased = cluster.sizes.lease_ms > 0;
    let Some(host) = cluster.hosts.get_mut(&id) else {
        return false;
    };
    if kind == "clock_jump" {
        let most = [100, 10_000, 100_000_000][random.below(3) as usize];
        let by_ms = random.below(2 * most) as i64 - most as i64;
        host.clock.jump(by_ms);
        faults.plan(until_us, Mend::RightClock(id));
    } else {
        // Leases bear clocks of which none runs twice as fast as another.
        host.pace = match is_leased {
            true => [800, 900, 980, 1_020, 1_100, 1_300][random.below(6) as usize],
            false => [500, 900, 980, 1_020, 1_100, 2_000][random.below(6) as usize],
        };
        faults.plan(until_us, Mend::UsualPace(id));
    }
    true
}

fn disk(faults: &mut Faults, cluster: &mut Cluster, kind: &str) -> bool {
    let Some(id) = faults.victim(cluster) else {
        return false;
    };
    let random = cluster.random.clone();
    let until_us = faults.lasting(cluster, 3_000);
    let Some(host) = cluster.hosts.get(&id) else {
        return false;
    };
    let Some(life) = &host.life else { return false };
    if kind == "disk_slow" {
        life.jobs.set_slow(10 + random.below(400));
        faults.plan(until_us, Mend::FastDisk(id));
    } else {
        let used = host.used_bytes();
        host.disk.set_capacity(Some(used + random.below(600_000)));
        life.jobs.set_on_threads(true);
        faults.plan(until_us, Mend::Space(id));
    }
    true
}

fn joins(faults: &mut Faults, cluster: &mut Cluster) -> Result<bool, Violation> {
    let Some(id) = faults.late.first().copied() else {
        return Ok(false);
    };
    match cluster.join_once(id)? {
        true => {
            faults.late.remove(&id);
            Ok(true)
        }
        false => Ok(false),
    }
}

/// What is asked of nodes that run.
fn asked(faults: &mut Faults, cluster: &mut Cluster, kind: &str) -> bool {
    let shards = cluster.shards();
    if shards.is_empty() {
        return false;
    }
    let shard = shards[cluster.random.below(shards.len() as u64) as usize];
    let leader = cluster.leads(shard);
    match kind {
        "leader_moves" => {
            let Some(leader) = leader else { return false };
            let pick = cluster.random.next_u64() as usize;
            drop(cluster.ask(leader, move |node| async move {
                let Some(group) = node.group(shard) else {
                    return;
                };
                let voters: Vec<u64> = group.status().members.voters.into_keys().collect();
                if let Some(to) = voters.get(pick % voters.len().max(1)) {
                    // It may have lost its place meanwhile.
                    let _ = group.transfer_leader(*to, Duration::from_secs(1)).await;
                }
            }));
            true
        }
        "election" => {
            let Some(id) = faults.victim(cluster) else {
                return false;
            };
            drop(cluster.ask(id, move |node| async move {
                if let Some(group) = node.group(shard) {
                    let _ = group.elect().await;
                }
            }));
            true
        }
        "members_change" if !faults.damaged.is_empty() => false,
        "members_change" => faults.members.change(cluster, shard),
        "namespace_made" => cluster.make_namespace_some_time(),
        "flush" => match faults.victim(cluster) {
            Some(id) => {
                drop(cluster.ask(id, |node| async move { node.flush().await.is_ok() }));
                true
            }
            None => false,
        },
        _ => {
            let Some(leader) = leader else { return false };
            drop(cluster.ask(leader, move |node| async move {
                let _ = node.start_hash(shard, Duration::from_secs(1)).await;
            }));
            true
        }
    }
}

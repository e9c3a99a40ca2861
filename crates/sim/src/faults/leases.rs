//! What tries leases: a leader that lives and leads no more, in the eyes of the others.

use std::time::Duration;

use super::kinds::cut;
use super::{Faults, Mend};
use crate::cluster::Cluster;
use crate::run::any_crash;

/// Lets one happen to the leader of a shard; false if it can't just now.
pub(super) fn strike(faults: &mut Faults, cluster: &mut Cluster, kind: &str) -> bool {
    let shards = cluster.shards();
    if shards.is_empty() {
        return false;
    }
    let shard = shards[cluster.random.below(shards.len() as u64) as usize];
    let Some(leader) = cluster.leads(shard).filter(|id| !faults.down.contains(id)) else {
        return false;
    };
    match kind {
        "thought_dead" => thought_dead(faults, cluster, leader),
        "promise_forgotten" => return promise_forgotten(faults, cluster, leader),
        _ => handed_over(faults, cluster, shard, leader),
    }
    true
}

pub(super) fn cut_off(faults: &mut Faults, cluster: &Cluster, id: u64, until_us: u64) {
    for other in cluster.hosts.keys().copied().filter(|other| *other != id) {
        cut(faults, cluster, id, other, until_us);
        cut(faults, cluster, other, id, until_us);
    }
}

/// The others are told that a node's process is dead, though clients reach it: a firewall refuses their connections.
pub(super) fn tell_of_death(cluster: &Cluster, dead: u64) {
    for other in cluster.alive().into_iter().filter(|id| *id != dead) {
        let notices = Duration::from_millis(cluster.random.below(10));
        drop(cluster.ask(other, move |node| async move {
            tokio::time::sleep(notices).await;
            node.peer_gone(dead);
        }));
    }
}

/// A leader is cut off, and the others are told that it is dead. Its clock may be slow, and theirs fast.
fn thought_dead(faults: &mut Faults, cluster: &mut Cluster, leader: u64) {
    let until_us = faults.lasting(cluster, 1_000);
    cut_off(faults, cluster, leader, until_us);
    tell_of_death(cluster, leader);
    if cluster.random.one_in(2) {
        for (id, host) in &mut cluster.hosts {
            host.pace = if *id == leader { 800 } else { 1_300 };
        }
        for id in cluster.hosts.keys().copied().collect::<Vec<_>>() {
            faults.plan(until_us, Mend::UsualPace(id));
        }
    }
}

/// A leader keeps one voter and loses the others, for longer than they promised; then that voter dies, comes back at
/// once and hears of the leader nothing but its death.
fn promise_forgotten(faults: &mut Faults, cluster: &mut Cluster, leader: u64) -> bool {
    let others = cluster.alive().into_iter();
    let fit: Vec<u64> = others
        .filter(|id| *id != leader && !faults.down.contains(id))
        .collect();
    if fit.is_empty() {
        return false;
    }
    let voter = fit[cluster.random.below(fit.len() as u64) as usize];
    let until_us = cluster.now_us + 1_500_000;
    let rest = cluster.hosts.keys().copied();
    for other in rest
        .filter(|id| *id != leader && *id != voter)
        .collect::<Vec<_>>()
    {
        cut(faults, cluster, leader, other, until_us);
        cut(faults, cluster, other, leader, until_us);
    }
    let at_us = cluster.now_us + 220_000 + cluster.random.below(100_000);
    faults.plan(at_us, Mend::Forget(leader, voter));
    true
}

pub(super) fn forget(faults: &mut Faults, cluster: &mut Cluster, leader: u64, voter: u64) {
    let is_up = |id: u64| cluster.alive().contains(&id) && !faults.down.contains(&id);
    if !is_up(leader) || !is_up(voter) {
        return;
    }
    let until_us = faults.lasting(cluster, 500);
    cut_off(faults, cluster, leader, until_us);
    cluster.kill(voter, any_crash(&cluster.random));
    faults.failed.remove(&voter);
    faults.down.insert(voter);
    faults.plan(cluster.now_us + 2_000, Mend::Start(voter));
    // It has the longer log, so it is for the voter that came back to stand.
    faults.plan(cluster.now_us + 4_000, Mend::Tell(leader));
}

/// A leader hands over, and is cut off when it has told so.
fn handed_over(faults: &mut Faults, cluster: &mut Cluster, shard: u64, leader: u64) {
    let pick = cluster.random.next_u64() as usize;
    drop(cluster.ask(leader, move |node| async move {
        let Some(group) = node.group(shard) else {
            return;
        };
        let own = group.replica();
        let voters = group.status().members.voters.into_keys();
        let others: Vec<u64> = voters.filter(|voter| *voter != own).collect();
        if let Some(to) = others.get(pick % others.len().max(1)) {
            // It may have lost its place meanwhile.
            let _ = group.transfer_leader(*to, Duration::from_secs(1)).await;
        }
    }));
    let at_us = cluster.now_us + 2_000 + cluster.random.below(6_000);
    faults.plan(at_us, Mend::CutOff(leader));
}

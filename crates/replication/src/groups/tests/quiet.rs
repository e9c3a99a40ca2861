//! Groups that go quiet, and what wakes them.

use super::*;

/// A cluster of three with a value, all of which is quiet.
async fn quiet_cluster() -> (Cluster, NodeId) {
    let cluster = Cluster::of_three().await;
    cluster.write(0).await;
    all_quiet(&cluster, &[1, 2, 3]).await;
    let leader = cluster.leader().await;
    (cluster, leader)
}

async fn all_quiet(cluster: &Cluster, nodes: &[NodeId]) {
    until("all replicas to be quiet", || async {
        let quiet = nodes.iter().all(|node| cluster.group(*node).is_quiet());
        quiet.then_some(())
    })
    .await;
}

#[test]
fn idle_group_sends_nothing_and_stays_led_and_well() {
    runtime().block_on(async {
        let (cluster, leader) = quiet_cluster().await;
        let term = cluster.group(leader).status().term;
        // One that wakes because the machine stood still goes quiet again.
        until("a while without a message of the group", || async {
            all_quiet(&cluster, &[1, 2, 3]).await;
            let sent = |group| cluster.network.delivered_of(group);
            let (messages, pulses) = (sent(GROUP), sent(0));
            let pulse = || async { (sent(0) >= pulses + 30).then_some(()) };
            until("pulses", pulse).await;
            let is_well = [1, 2, 3]
                .iter()
                .all(|node| cluster.group(*node).status().health == Health::Works);
            (is_well && sent(GROUP) == messages).then_some(())
        })
        .await;
        assert_eq!(cluster.group(leader).status().term, term);
        assert!(cluster.group(leader).is_leader());
    });
}

#[test]
fn quiet_group_wakes_for_a_write_and_for_a_read_on_any_replica() {
    runtime().block_on(async {
        let (cluster, _) = quiet_cluster().await;
        for n in 1..4 {
            let written = cluster.group(cluster.leader().await);
            written.propose(bytes(n), SOON).await.expect("is written");
            all_quiet(&cluster, &[1, 2, 3]).await;
            let read = cluster.group(n).read_barrier(SOON).await;
            read.expect("is read");
            assert_eq!(cluster.nodes[&n].machine.writes().len() as u64, n + 1);
            all_quiet(&cluster, &[1, 2, 3]).await;
        }
    });
}

#[test]
fn quiet_leader_that_dies_is_followed_by_timers_alone() {
    runtime().block_on(async {
        let (mut cluster, leader) = quiet_cluster().await;
        let (disk, machine) = cluster.crash(leader).await;
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != leader).collect();
        cluster.write_among(&others, 1).await;
        cluster.restart(leader, disk, machine).await;
        cluster.holds(leader, 2).await;
        all_quiet(&cluster, &[1, 2, 3]).await;
    });
}

#[test]
fn quiet_leader_that_comes_back_at_once_as_another_process_is_not_waited_for() {
    runtime().block_on(async {
        let (mut cluster, leader) = quiet_cluster().await;
        // Its pulse goes on, but the process that gives it leads nothing.
        let (disk, machine) = cluster.crash(leader).await;
        cluster.restart(leader, disk, machine).await;
        cluster.write(1).await;
    });
}

#[test]
fn quiet_follower_that_was_cut_off_does_not_depose_the_leader() {
    runtime().block_on(async {
        let (cluster, leader) = quiet_cluster().await;
        let term = cluster.group(leader).status().term;
        let alone = (leader % 3) + 1;
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != alone).collect();
        cluster.network.isolate(alone, &others);
        until("it to miss the leader", || async {
            (cluster.group(alone).status().health == Health::NoLeader).then_some(())
        })
        .await;
        cluster.network.heal();
        all_quiet(&cluster, &[1, 2, 3]).await;
        let status = cluster.group(leader).status();
        assert_eq!((status.role, status.term), (Role::Leader, term));
        cluster.write(1).await;
    });
}

#[test]
fn quiet_leader_that_is_cut_off_wakes_and_refuses_writes() {
    runtime().block_on(async {
        let (cluster, alone) = quiet_cluster().await;
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != alone).collect();
        cluster.network.isolate(alone, &others);
        let write = cluster
            .group(alone)
            .propose(bytes(9), Duration::from_millis(300))
            .await;
        assert!(
            matches!(write, Err(Error::NoQuorum | Error::NotLeader { .. })),
            "{write:?}"
        );
        cluster.write_among(&others, 1).await;
        cluster.network.heal();
        for node in [1, 2, 3] {
            cluster.holds(node, 2).await;
        }
    });
}

#[test]
fn leader_that_is_heard_and_does_not_hear_lets_others_lead() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let deaf = cluster.leader().await;
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != deaf).collect();
        for other in &others {
            cluster.network.cut(*other, deaf);
        }
        // What nobody acknowledges is sent again and again.
        let written = cluster.group(deaf).clone();
        let write = tokio::spawn(async move { written.propose(bytes(1), SOON).await });
        until("another leader", || async {
            // Whoever asks it must not keep it leading. By its lease it may still answer.
            let _ = cluster
                .group(deaf)
                .read_index(Duration::from_millis(20))
                .await;
            let leads = |node: &NodeId| cluster.group(*node).is_leader();
            others.iter().any(leads).then_some(())
        })
        .await;
        cluster.network.heal();
        // It was kept by the others before they elected, or is refused.
        let _ = write.await.expect("does not panic");
        cluster.write(2).await;
        until("all to agree", || async {
            let of = |node| cluster.nodes[&node].machine.writes();
            let held = of(1);
            let whole = held.first() == Some(&bytes(0)) && held.last() == Some(&bytes(2));
            (whole && held == of(2) && held == of(3)).then_some(())
        })
        .await;
    });
}

//! Nodes that say nothing, as when a process stands still or a network is cut.

use super::*;

/// No timer elects within a test: what happens, silence does.
const BY_SILENCE: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_secs(100),
    election_max: Duration::from_secs(200),
    silence_min: Duration::from_millis(100),
};

/// Three nodes that know each other well enough to notice a silence.
async fn acquainted() -> Cluster {
    let cluster = Cluster::with_timing(&[1, 2, 3], BY_SILENCE).await;
    let founded = cluster.group(1).bootstrap(members(&[1, 2, 3])).await;
    founded.expect("bootstraps");
    let elected = || async {
        cluster.group(1).elect().await.expect("stands");
        cluster.group(1).is_leader().then_some(())
    };
    until("the first leader", elected).await;
    cluster.write(0).await;
    tokio::time::sleep(BY_SILENCE.silence_min * 25).await;
    cluster
}

fn others_than(node: NodeId) -> Vec<NodeId> {
    [1, 2, 3].into_iter().filter(|n| *n != node).collect()
}

async fn hears_no_more(cluster: &Cluster, node: NodeId, of: NodeId) {
    let detector = &cluster.nodes[&node].groups.inner.detector;
    until("a node to be silent", || async {
        detector.is_silent(of).then_some(())
    })
    .await;
}

#[test]
fn silent_leader_is_followed_without_waiting_for_timers() {
    runtime().block_on(async {
        let cluster = acquainted().await;
        let alone = cluster.leader().await;
        let others = others_than(alone);
        cluster.network.isolate(alone, &others);
        cluster.write_among(&others, 1).await;
        cluster.network.heal();
        for node in [1, 2, 3] {
            cluster.holds(node, 2).await;
        }
    });
}

#[test]
fn silent_leader_that_is_heard_and_hears_nobody_is_followed() {
    runtime().block_on(async {
        let cluster = acquainted().await;
        let deaf = cluster.leader().await;
        let others = others_than(deaf);
        for other in &others {
            cluster.network.cut(*other, deaf);
        }
        cluster.write_among(&others, 1).await;
        cluster.network.heal();
        for node in [1, 2, 3] {
            cluster.holds(node, 2).await;
        }
    });
}

#[test]
fn silent_leader_that_only_one_does_not_hear_goes_on() {
    runtime().block_on(async {
        let cluster = acquainted().await;
        let leader = cluster.leader().await;
        let others = others_than(leader);
        let term = cluster.group(leader).status().term;
        cluster.network.isolate(leader, &others[..1]);
        hears_no_more(&cluster, others[0], leader).await;
        let here = [leader, others[1]];
        for n in 1..20 {
            cluster.write_among(&here, n).await;
        }
        cluster.network.heal();
        cluster.holds(others[0], 20).await;
        let status = cluster.group(leader).status();
        assert_eq!((status.role, status.term), (Role::Leader, term));
    });
}

#[test]
fn cut_off_leader_refuses_at_once_what_nobody_can_answer() {
    runtime().block_on(async {
        let cluster = acquainted().await;
        let alone = cluster.leader().await;
        let others = others_than(alone);
        cluster.network.isolate(alone, &others);
        for other in &others {
            hears_no_more(&cluster, alone, *other).await;
        }
        let group = cluster.group(alone);
        // It waits for nothing: an hour would pass.
        let hour = Duration::from_secs(3600);
        let begun = Instant::now();
        let write = group.propose(bytes(99), hour).await;
        assert!(matches!(write, Err(Error::NoQuorum)), "{write:?}");
        let read = group.read_barrier(hour).await;
        assert!(matches!(read, Err(Error::NoQuorum)), "{read:?}");
        assert!(begun.elapsed() < SOON);
        cluster.network.heal();
        cluster.write(1).await;
        cluster.holds(alone, 2).await;
    });
}

#[test]
fn cut_off_follower_refuses_linearizable_reads_at_once() {
    runtime().block_on(async {
        let cluster = acquainted().await;
        let leader = cluster.leader().await;
        let alone = others_than(leader)[0];
        cluster.network.isolate(alone, &others_than(alone));
        hears_no_more(&cluster, alone, leader).await;
        let read = cluster
            .group(alone)
            .read_index(Duration::from_secs(3600))
            .await;
        assert!(matches!(read, Err(Error::NotLeader { .. })), "{read:?}");
    });
}

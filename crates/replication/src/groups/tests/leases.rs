//! Leases among real groups.

use super::*;

/// A cluster without timers, with a value written and read at its leader.
async fn read_at_leader() -> (Cluster, NodeId, Vec<NodeId>) {
    let cluster = Cluster::with_timing(&[1, 2, 3], NO_TIMERS).await;
    let founded = cluster.group(1).bootstrap(members(&[1, 2, 3])).await;
    founded.expect("bootstraps");
    cluster.write(0).await;
    let leader = cluster.leader().await;
    let others = [1, 2, 3].into_iter().filter(|node| *node != leader);
    (cluster, leader, others.collect())
}

fn messages(cluster: &Cluster) -> u64 {
    let delivered = |class| cluster.network.delivered(class);
    delivered(Class::Append) + delivered(Class::Vote)
}

#[test]
fn leader_with_a_lease_reads_without_a_message_for_each_read() {
    const READS: u64 = 50;
    runtime().block_on(async {
        let (cluster, leader, _) = read_at_leader().await;
        let group = cluster.group(leader);
        // A machine that stands still lets the lease end: then it is tried again.
        until("reads with fewer messages than reads", || async {
            let before = messages(&cluster);
            for _ in 0..READS {
                group.read_barrier(SOON).await.expect("reads");
            }
            (messages(&cluster) - before < READS / 2).then_some(())
        })
        .await;
    });
}

#[test]
fn leader_thought_dead_is_not_followed_before_it_stops_reading() {
    runtime().block_on(async {
        for _ in 0..5 {
            let (cluster, alone, others) = read_at_leader().await;
            let group = cluster.group(alone);
            group.read_barrier(SOON).await.expect("reads");
            group
                .read_barrier(SOON)
                .await
                .expect("reads, with promises");
            cluster.network.isolate(alone, &others);
            for other in &others {
                cluster.nodes[other].groups.node_gone(alone);
            }
            let reads = tokio::spawn(async move {
                let mut began = Instant::now();
                while group.read_barrier(Duration::from_millis(30)).await.is_ok() {
                    began = Instant::now();
                }
                began
            });
            let elected = until("another leader", || async {
                let leads = |node: &&NodeId| cluster.group(**node).is_leader();
                others.iter().find(leads).map(|_| Instant::now())
            })
            .await;
            let last_read_began = reads.await.expect("ends");
            assert!(
                last_read_began <= elected,
                "it read by a lease that was over"
            );
        }
    });
}

#[test]
fn leadership_is_handed_over_while_promises_hold_and_both_read() {
    runtime().block_on(async {
        let (cluster, leader, others) = read_at_leader().await;
        for n in 1..4 {
            let from = cluster.leader().await;
            cluster.group(from).read_barrier(SOON).await.expect("reads");
            let to = if from == leader { others[0] } else { leader };
            let handed = until("the transfer", || async {
                let moved = cluster.group(from).transfer_leader(replica(to), SOON).await;
                moved.ok()
            });
            handed.await;
            cluster.write(n).await;
            for node in [1, 2, 3] {
                cluster.group(node).read_barrier(SOON).await.expect("reads");
                assert_eq!(cluster.nodes[&node].machine.writes().len() as u64, n + 1);
            }
        }
    });
}

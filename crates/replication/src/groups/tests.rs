//! Three nodes in one process, over a network in memory and disks that forget what was not synced.

mod leases;
mod quiet;
mod silence;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::raft::AppendEntriesRequest;
use quorate_env::sim::SimDisk;
use quorate_env::{Env, Random, RealClock, ThreadJobs};

use crate::raft::Vote;
use crate::testing::{MemoryMachine, MemoryNetwork};
use crate::types::Timing;
use crate::wire;
use crate::{
    Class, Config, Error, Group, Groups, Health, LEASE_MAX, NodeId, ReplicaId, Role, StateMachine,
    StopReason,
};

const GROUP: u64 = 7;
const SOON: Duration = Duration::from_secs(30);

struct Node {
    id: NodeId,
    disk: SimDisk,
    groups: Groups,
    machine: Arc<MemoryMachine>,
}

struct Cluster {
    timing: Timing,
    network: MemoryNetwork,
    nodes: BTreeMap<NodeId, Node>,
}

fn env(disk: &SimDisk, seed: u64) -> Env {
    Env {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(RealClock::new()),
        jobs: Arc::new(ThreadJobs::new(1)),
        random: Random::from_seed(seed),
    }
}

/// Long enough that no leader loses its place because a busy machine lets a thread wait for hundreds of
/// milliseconds.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(800),
    election_max: Duration::from_millis(1600),
    silence_min: Duration::ZERO,
};

/// No timer elects within a test.
const NO_TIMERS: Timing = Timing {
    heartbeat: Duration::from_secs(10),
    election_min: Duration::from_secs(100),
    election_max: Duration::from_secs(200),
    silence_min: Duration::ZERO,
};

const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

fn config(node: NodeId) -> Config {
    Config {
        segment_bytes: 256 << 10,
        proposal_bytes_max: 16 << 10,
        message_timeout: Duration::from_millis(500),
        snapshot_chunk_bytes: 100,
        snapshot_timeout: SNAPSHOT_TIMEOUT,
        timing: TIMING,
        lease: LEASE_MAX,
        quiet_after: Duration::from_millis(100),
        ..Config::new(node, "/log")
    }
}

fn replica(node: NodeId) -> ReplicaId {
    node + 100
}

fn members(nodes: &[NodeId]) -> BTreeMap<ReplicaId, NodeId> {
    nodes.iter().map(|node| (replica(*node), *node)).collect()
}

fn bytes(n: u64) -> Bytes {
    Bytes::from(format!("write {n}"))
}

/// Waits until `ready` gives something, looking often; fails the test after a while.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ready: impl FnMut() -> F) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = ready().await {
            return found;
        }
        assert!(Instant::now() < end, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Node {
    async fn start(
        (id, timing): (NodeId, Timing),
        network: &MemoryNetwork,
        disk: SimDisk,
        m: MemoryMachine,
    ) -> Node {
        let machine = Arc::new(m);
        let env = env(&disk, id);
        let config = Config {
            timing,
            ..config(id)
        };
        let groups = Groups::open(config, env, network.transport(id)).expect("the log opens");
        network.join(id, groups.clone());
        let as_machine: Arc<dyn StateMachine> = machine.clone();
        groups
            .open_group(GROUP, replica(id), as_machine)
            .await
            .expect("the group opens");
        Node {
            id,
            disk,
            groups,
            machine,
        }
    }

    fn group(&self) -> Group {
        self.groups.group(GROUP).expect("the group runs")
    }
}

impl Cluster {
    /// Lets the leader forget all entries that it applied: who lacks them needs a snapshot.
    async fn purge(&self) {
        let leader = self.leader().await;
        let (group, node) = (self.group(leader), &self.nodes[&leader]);
        node.machine.flush();
        let flushed = node.machine.flushed().expect("flushed");
        assert_eq!(group.purge(u64::MAX).await.expect("purges"), Some(flushed));
        until("the purge", || async {
            (group.status().purged == Some(flushed)).then_some(())
        })
        .await;
    }

    async fn empty(nodes: &[NodeId]) -> Cluster {
        Cluster::with_timing(nodes, TIMING).await
    }

    async fn with_timing(nodes: &[NodeId], timing: Timing) -> Cluster {
        let mut cluster = Cluster {
            timing,
            network: MemoryNetwork::new(1),
            nodes: BTreeMap::new(),
        };
        for id in nodes {
            cluster.add(*id, MemoryMachine::new()).await;
        }
        cluster
    }

    async fn of_three() -> Cluster {
        let cluster = Cluster::empty(&[1, 2, 3]).await;
        for node in cluster.nodes.values() {
            node.group()
                .bootstrap(members(&[1, 2, 3]))
                .await
                .expect("bootstraps");
        }
        cluster
    }

    async fn add(&mut self, id: NodeId, machine: MemoryMachine) {
        let disk = SimDisk::new(Random::from_seed(id));
        let node = Node::start((id, self.timing), &self.network, disk, machine).await;
        self.nodes.insert(id, node);
    }

    fn group(&self, node: NodeId) -> Group {
        self.nodes[&node].group()
    }

    /// The node among these that leads and is believed to by all of them.
    async fn leader_among(&self, nodes: &[NodeId]) -> NodeId {
        until("a leader", || async {
            let leaders: Vec<_> = nodes.iter().map(|n| self.group(*n).leader()).collect();
            let first = leaders[0]?;
            let agreed = leaders.iter().all(|leader| *leader == Some(first));
            let leads = nodes.contains(&first.node) && self.group(first.node).is_leader();
            (agreed && leads).then_some(first.node)
        })
        .await
    }

    async fn leader(&self) -> NodeId {
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        self.leader_among(&nodes).await
    }

    /// Writes at whoever leads, again and again until it is acknowledged. Nobody must have applied a
    /// write that is said not to have happened, so only those errors are retried.
    async fn write_among(&self, nodes: &[NodeId], n: u64) -> u64 {
        until("a write", || async {
            let leader = self.leader_among(nodes).await;
            match self.group(leader).propose(bytes(n), SOON).await {
                Ok(done) => Some(done.index),
                Err(Error::NotLeader { .. } | Error::NoQuorum) => None,
                Err(error) => panic!("the write failed: {error}"),
            }
        })
        .await
    }

    async fn write(&self, n: u64) -> u64 {
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        self.write_among(&nodes, n).await
    }

    async fn holds(&self, node: NodeId, count: u64) {
        until("the writes to arrive", || async {
            (self.nodes[&node].machine.writes().len() as u64 >= count).then_some(())
        })
        .await;
        let expected: Vec<_> = (0..count).map(bytes).collect();
        assert_eq!(self.nodes[&node].machine.writes(), expected, "node {node}");
    }

    /// Pulls the plug of a node: what was not synced or flushed is gone.
    async fn crash(&mut self, id: NodeId) -> (SimDisk, MemoryMachine) {
        let node = self.nodes.remove(&id).expect("a node");
        self.network.leave(id);
        let (disk, machine) = (node.disk.crash(), node.machine.reopen());
        let _ = node.groups.shutdown().await;
        (disk, machine)
    }

    async fn restart(&mut self, id: NodeId, disk: SimDisk, machine: MemoryMachine) {
        let node = Node::start((id, self.timing), &self.network, disk, machine).await;
        self.nodes.insert(node.id, node);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn three_replicas_elect_agree_and_read_everywhere() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        for n in 0..20 {
            cluster.write(n).await;
            for node in [1, 2, 3] {
                cluster
                    .group(node)
                    .read_barrier(SOON)
                    .await
                    .expect("a linearizable read");
                assert_eq!(cluster.nodes[&node].machine.writes().len() as u64, n + 1);
            }
        }
        let leader = cluster.leader().await;
        let status = cluster.group(leader).status();
        assert_eq!(status.role, Role::Leader);
        assert_eq!(status.members.voters, members(&[1, 2, 3]));
        assert_eq!(status.applied, status.last_index);
        // Again, by everybody, to a group that has its members.
        for node in [1, 2, 3] {
            cluster
                .group(node)
                .bootstrap(members(&[1, 2, 3]))
                .await
                .expect("is left alone");
        }
        cluster.write(20).await;
    });
}

#[test]
fn many_proposals_under_way_are_applied_in_order_and_reads_share_rounds() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let leader = cluster.group(cluster.leader().await);
        let proposals: Vec<_> = (0..500)
            .map(|n| Box::pin(leader.propose(bytes(n), SOON)))
            .collect();
        for (n, done) in futures_util::future::join_all(proposals)
            .await
            .into_iter()
            .enumerate()
        {
            let answer = done.expect("is applied").result;
            assert_eq!(answer.as_ref(), (n as u64).to_le_bytes());
        }
        for node in [1, 2, 3] {
            cluster.holds(node, 500).await;
        }
        let before = cluster.network.delivered(Class::Vote);
        let follower = [1, 2, 3]
            .map(|n| cluster.group(n))
            .into_iter()
            .find(|g| !g.is_leader());
        let follower = follower.expect("a follower");
        let reads: Vec<_> = (0..1000)
            .map(|_| Box::pin(follower.read_barrier(SOON)))
            .collect();
        for read in futures_util::future::join_all(reads).await {
            read.expect("a linearizable read");
        }
        let messages = cluster.network.delivered(Class::Vote) - before;
        assert!(messages < 200, "1000 reads took {messages} messages");
    });
}

#[test]
fn leader_lost_another_takes_over_and_nothing_acknowledged_is_lost() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        let mut written = 0;
        for _ in 0..3 {
            for _ in 0..5 {
                cluster.write(written).await;
                written += 1;
            }
            let lost = cluster.leader().await;
            let (disk, machine) = cluster.crash(lost).await;
            cluster.write(written).await;
            written += 1;
            cluster.restart(lost, disk, machine).await;
            cluster.holds(lost, written).await;
        }
        for node in [1, 2, 3] {
            cluster
                .group(node)
                .read_barrier(SOON)
                .await
                .expect("a linearizable read");
            cluster.holds(node, written).await;
        }
    });
}

#[test]
fn leader_that_is_surely_gone_is_followed_without_waiting_for_timers() {
    runtime().block_on(async {
        let mut cluster = Cluster::with_timing(&[1, 2, 3], NO_TIMERS).await;
        let first = cluster.group(1);
        let founded = first.bootstrap(members(&[1, 2, 3])).await;
        founded.expect("bootstraps");
        let mut written = 0;
        for _ in 0..3 {
            cluster.write(written).await;
            written += 1;
            let lost = cluster.leader().await;
            let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != lost).collect();
            // That another node is gone changes nothing.
            cluster.nodes[&lost].groups.node_gone(others[0]);
            cluster.nodes[&others[0]].groups.node_gone(others[1]);
            cluster.write(written).await;
            written += 1;
            assert_eq!(cluster.leader().await, lost);
            let (disk, machine) = cluster.crash(lost).await;
            for other in &others {
                cluster.nodes[other].groups.node_gone(lost);
            }
            cluster.write(written).await;
            written += 1;
            cluster.restart(lost, disk, machine).await;
            cluster.holds(lost, written).await;
        }
    });
}

#[test]
fn new_group_is_led_as_soon_as_a_quorum_opened_it_without_waiting_for_timers() {
    runtime().block_on(async {
        let mut cluster = Cluster::with_timing(&[1], NO_TIMERS).await;
        let first = cluster.group(1);
        let founded = first.bootstrap(members(&[1, 2, 3])).await;
        founded.expect("bootstraps");
        let campaign = tokio::spawn({
            let first = first.clone();
            async move { first.campaign(0, 3).await }
        });
        let asked = || async { (first.status().term > 0).then_some(()) };
        until("a vote that nobody else gives", asked).await;
        assert_eq!(first.leader(), None);
        cluster.add(2, MemoryMachine::new()).await;
        cluster.write_among(&[1, 2], 0).await;
        campaign.abort();
    });
}

#[test]
fn group_that_nobody_led_when_a_voter_died_is_led_without_waiting_for_timers() {
    runtime().block_on(async {
        let cluster = Cluster::with_timing(&[2, 3], NO_TIMERS).await;
        cluster.network.isolate(2, &[3]);
        for node in [2, 3] {
            let founded = cluster.group(node).bootstrap(members(&[1, 2, 3])).await;
            founded.expect("bootstraps");
        }
        cluster.network.heal();
        for node in [2, 3] {
            assert_eq!(cluster.group(node).leader(), None);
            // That one that is no voter of it is gone is nothing to it.
            cluster.nodes[&node].groups.node_gone(4);
            cluster.nodes[&node].groups.node_gone(1);
        }
        cluster.write(0).await;
    });
}

#[test]
fn leader_that_is_heard_of_after_its_death_is_followed_without_waiting_for_timers() {
    runtime().block_on(async {
        let cluster = Cluster::with_timing(&[2, 3], NO_TIMERS).await;
        cluster.network.isolate(2, &[3]);
        for node in [2, 3] {
            let founded = cluster.group(node).bootstrap(members(&[1, 2, 3])).await;
            founded.expect("bootstraps");
        }
        let heartbeat = AppendEntriesRequest {
            vote: Vote::new_committed(5, replica(1)),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        for node in [2, 3] {
            let groups = &cluster.nodes[&node].groups;
            groups.node_gone(1);
            let route = wire::Route {
                to: replica(node),
                from: replica(1),
            };
            let message = wire::append(route, &heartbeat, Duration::ZERO);
            groups.handle(1, Class::Append, GROUP, message).await;
            until("the dead leader is heard of", || async {
                let leader = cluster.group(node).leader()?;
                (leader.node == 1).then_some(())
            })
            .await;
        }
        cluster.network.heal();
        cluster.write(0).await;
    });
}

#[test]
fn leader_that_only_one_thinks_gone_goes_on() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let leader = cluster.leader().await;
        let term = cluster.group(leader).status().term;
        let doubter = (leader % 3) + 1;
        cluster.nodes[&doubter].groups.node_gone(leader);
        for n in 1..50 {
            cluster.write(n).await;
        }
        // The other one, which hears the leader, would not have had it.
        let status = cluster.group(leader).status();
        assert_eq!((status.role, status.term), (Role::Leader, term));
    });
}

#[test]
fn health_of_a_group_is_lost_and_found_with_its_leader_and_its_quorum() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let is = |node: NodeId, health: Health| {
            let (cluster, what) = (&cluster, format!("node {node} to be {health:?}"));
            async move {
                until(&what, || async {
                    (cluster.group(node).status().health == health).then_some(())
                })
                .await;
            }
        };
        cluster.write(0).await;
        // An idle group stays well: heartbeats do.
        let idle = Instant::now() + config(1).timing.election_max * 3;
        until("some idle time", || async {
            (Instant::now() > idle).then_some(())
        })
        .await;
        for node in [1, 2, 3] {
            is(node, Health::Works).await;
        }
        let leader = cluster.leader().await;
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != leader).collect();
        // A follower that hears nobody. Whom it would ask is as before.
        cluster.network.isolate(others[0], &[leader, others[1]]);
        is(others[0], Health::NoLeader).await;
        assert_eq!(
            cluster.group(others[0]).leader().map(|l| l.node),
            Some(leader)
        );
        for node in [leader, others[1]] {
            assert_eq!(cluster.group(node).status().health, Health::Works);
        }
        // A leader that hears nobody: it does not know of another, and does not step down.
        cluster.network.isolate(others[1], &[leader]);
        is(leader, Health::NoQuorum).await;
        is(others[1], Health::NoLeader).await;
        assert!(cluster.group(leader).is_leader());
        cluster.network.heal();
        for node in [1, 2, 3] {
            is(node, Health::Works).await;
        }
        cluster.write(1).await;
    });
}

#[test]
fn health_of_a_group_of_one_is_well_without_anybody_to_ask() {
    runtime().block_on(async {
        let cluster = Cluster::empty(&[1]).await;
        assert_eq!(cluster.group(1).status().health, Health::NoLeader);
        let bootstrapped = cluster.group(1).bootstrap(members(&[1])).await;
        bootstrapped.expect("bootstraps");
        cluster.write(0).await;
        let idle = Instant::now() + config(1).timing.election_max * 3;
        until("some idle time", || async {
            (Instant::now() > idle).then_some(())
        })
        .await;
        assert_eq!(cluster.group(1).status().health, Health::Works);
    });
}

/// Waits until a node's replica has stopped; gives the reason.
async fn stopped(cluster: &Cluster, node: NodeId) -> StopReason {
    until("the replica to stop", || async {
        match cluster.group(node).status().health {
            Health::Stopped(reason) => Some(reason),
            _ => None,
        }
    })
    .await
}

#[test]
fn stopped_replica_says_why_and_opens_again_where_it_was() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        for (round, kind) in (0..).zip([io::ErrorKind::StorageFull, io::ErrorKind::InvalidData]) {
            let (doubtful, sure) = (2 * round, 2 * round + 1);
            let leader = cluster.leader().await;
            // Once a follower, once the leader.
            let of = match kind {
                io::ErrorKind::StorageFull => (leader % 3) + 1,
                _ => leader,
            };
            let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != of).collect();
            let (node, machine) = (&cluster.nodes[&of], &cluster.nodes[&of].machine);
            machine.fail_once(kind);
            // Not answered where applying fails; not even written if another was elected just now.
            // The fault strikes in any case: at this write, or at the entry that begins a term.
            let _ = cluster.group(leader).propose(bytes(doubtful), SOON).await;
            let reason = stopped(&cluster, of).await;
            assert!(reason.message.contains("failed on purpose"), "{reason:?}");
            assert_eq!(reason.may_pass, kind == io::ErrorKind::StorageFull);
            assert_eq!(node.group().status().role, Role::Stopped);
            let refused = node.group().propose(bytes(99), SOON).await;
            assert!(matches!(refused, Err(Error::Stopped(_))), "{refused:?}");
            cluster.write_among(&others, sure).await;
            // It has to be closed first.
            let again = || node.groups.open_group(GROUP, replica(of), machine.clone());
            assert!(matches!(again().await, Err(Error::Invalid(_))));
            node.groups.close_group(GROUP).await.expect("closes");
            again().await.expect("opens");
            assert_eq!(node.group().stop_reason(), None);
            until("the replicas to hold the same", || async {
                let writes = machine.writes();
                let same = |n| cluster.nodes[n].machine.writes() == writes;
                (writes.last() == Some(&bytes(sure)) && others.iter().all(same)).then_some(())
            })
            .await;
        }
        cluster.write(4).await;
    });
}

#[test]
fn cut_off_leader_refuses_writes_and_reads_within_the_deadline() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let alone = cluster.leader().await;
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != alone).collect();
        cluster.network.isolate(alone, &others);
        let start = Instant::now();
        let deadline = Duration::from_millis(800);
        let group = cluster.group(alone);
        let read = group.read_barrier(deadline).await;
        // On a busy machine it may have stepped down before.
        assert!(
            matches!(
                read,
                Err(Error::NoQuorum | Error::DeadlineExceeded(_) | Error::NotLeader { .. })
            ),
            "{read:?}"
        );
        // The write went into the log before the lease ran out, or was refused after.
        let write = group.propose(bytes(99), deadline).await;
        assert!(
            matches!(
                write,
                Err(Error::NoQuorum | Error::OutcomeUnknown(_) | Error::NotLeader { .. })
            ),
            "{write:?}"
        );
        assert!(start.elapsed() < deadline * 2 + Duration::from_millis(500));
        let write = group.propose(bytes(98), deadline).await;
        assert!(
            matches!(write, Err(Error::NoQuorum | Error::NotLeader { .. })),
            "{write:?}"
        );
        // The others go on without it.
        cluster.write_among(&others, 1).await;
        cluster.network.heal();
        for node in [1, 2, 3] {
            cluster.holds(node, 2).await;
        }
        group.read_barrier(SOON).await.expect("reads again");
    });
}

#[test]
fn cut_off_follower_does_not_serve_linearizable_reads() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let leader = cluster.leader().await;
        let alone = [1, 2, 3]
            .into_iter()
            .find(|n| *n != leader)
            .expect("a follower");
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != alone).collect();
        cluster.network.isolate(alone, &others);
        cluster.write_among(&others, 1).await;
        let read = cluster
            .group(alone)
            .read_barrier(Duration::from_millis(700))
            .await;
        assert!(read.is_err(), "{read:?}");
    });
}

#[test]
fn returning_node_does_not_depose_the_leader() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let leader = cluster.leader().await;
        let alone = [1, 2, 3]
            .into_iter()
            .find(|n| *n != leader)
            .expect("a follower");
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|n| *n != alone).collect();
        let term = cluster.group(leader).status().term;
        cluster.network.isolate(alone, &others);
        // Long enough for several elections that it would have called.
        let polls = cluster.network.delivered(Class::Vote);
        let end = Instant::now() + Duration::from_millis(5000);
        until("a while", || async {
            (Instant::now() >= end).then_some(())
        })
        .await;
        assert!(
            cluster.network.delivered(Class::Vote) > polls,
            "no heartbeats went"
        );
        cluster.write_among(&others, 1).await;
        cluster.network.heal();
        cluster.holds(alone, 2).await;
        cluster.write(2).await;
        assert_eq!(cluster.leader().await, leader);
        for node in [1, 2, 3] {
            assert_eq!(cluster.group(node).status().term, term, "node {node}");
        }
    });
}

#[test]
fn lagging_replica_gets_a_snapshot_after_purge() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let leader = cluster.leader().await;
        let behind = [1, 2, 3]
            .into_iter()
            .find(|n| *n != leader)
            .expect("a follower");
        let (disk, machine) = cluster.crash(behind).await;
        for n in 1..30 {
            cluster.write(n).await;
        }
        let group = cluster.group(cluster.leader().await);
        assert_eq!(
            group.purge(u64::MAX).await.expect("nothing is flushed"),
            None
        );
        cluster.purge().await;
        cluster.restart(behind, disk, machine).await;
        cluster.holds(behind, 30).await;
        assert!(
            cluster.nodes[&behind].machine.installs() > 0,
            "no snapshot was installed"
        );
        for n in 30..35 {
            cluster.write(n).await;
        }
        cluster.holds(behind, 35).await;
        // What it installed, and what came after, survives its next crash.
        let (disk, machine) = cluster.crash(behind).await;
        cluster.restart(behind, disk, machine).await;
        cluster.holds(behind, 35).await;
    });
}

#[test]
fn snapshot_that_is_cut_on_its_way_goes_on_where_it_was() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let leader = cluster.leader().await;
        let behind = if leader == 1 { 2 } else { 1 };
        let others: Vec<NodeId> = (1..=3).filter(|n| *n != behind).collect();
        let (disk, machine) = cluster.crash(behind).await;
        for n in 1..100 {
            cluster.write(n).await;
        }
        cluster.purge().await;
        // Some ten chunks, slowly.
        cluster.network.delay_up_to(Duration::from_millis(100));
        cluster.restart(behind, disk, machine).await;
        let machine = Arc::clone(&cluster.nodes[&behind].machine);
        let before = cluster.network.delivered(Class::Snapshot);
        until("some chunks to be there", || async {
            let arrived = cluster.network.delivered(Class::Snapshot) - before;
            (machine.receives() == 1 && arrived >= 4).then_some(())
        })
        .await;
        cluster.network.isolate(behind, &others);
        assert_eq!(machine.installs(), 0, "it was through already");
        // So long that a chunk is given up.
        tokio::time::sleep(SNAPSHOT_TIMEOUT + SNAPSHOT_TIMEOUT / 4).await;
        cluster.network.heal();
        cluster.network.delay_up_to(Duration::ZERO);
        cluster.holds(behind, 100).await;
        assert_eq!((machine.receives(), machine.installs()), (1, 1));
    });
}

#[test]
fn new_replica_takes_the_place_of_another() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        for n in 0..10 {
            cluster.write(n).await;
        }
        cluster.add(4, MemoryMachine::new()).await;
        let leader = cluster.leader_among(&[1, 2, 3]).await;
        let leaving = [1, 2, 3]
            .into_iter()
            .find(|n| *n != leader)
            .expect("a follower");
        let staying: Vec<_> = [1, 2, 3, 4].into_iter().filter(|n| *n != leaving).collect();
        let group = cluster.group(leader);
        group
            .change_members(members(&staying), SOON)
            .await
            .expect("the members change");
        assert_eq!(group.status().members.voters, members(&staying));
        assert!(!group.status().members.joint);
        cluster.nodes[&leaving]
            .groups
            .remove_group(GROUP)
            .await
            .expect("is removed");
        assert!(cluster.nodes[&leaving].groups.stored_groups().is_empty());
        cluster.nodes.remove(&leaving);
        cluster.network.leave(leaving);
        cluster.holds(4, 10).await;
        cluster.write(10).await;
        cluster
            .group(4)
            .read_barrier(SOON)
            .await
            .expect("reads at the new one");
        cluster.holds(4, 11).await;
    });
}

#[test]
fn restart_replays_from_the_flushed_index() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        for n in 0..10 {
            cluster.write(n).await;
        }
        for node in cluster.nodes.values() {
            until("the writes", || async {
                (node.machine.writes().len() == 10).then_some(())
            })
            .await;
            node.machine.flush();
        }
        for n in 10..25 {
            cluster.write(n).await;
        }
        // All at once: nobody is left to send anybody a log.
        let mut down = Vec::new();
        for id in [1, 2, 3] {
            down.push((id, cluster.crash(id).await));
        }
        for (id, (disk, machine)) in down {
            assert_eq!(machine.writes().len(), 10);
            cluster.restart(id, disk, machine).await;
            assert_eq!(
                cluster.nodes[&id].groups.stored_groups(),
                vec![(GROUP, replica(id))]
            );
        }
        for node in [1, 2, 3] {
            until("a read", || async {
                cluster.group(node).read_barrier(SOON).await.ok()
            })
            .await;
            cluster.holds(node, 25).await;
        }
        cluster.write(25).await;
    });
}

#[test]
fn proposals_over_a_limit_are_refused() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let leader = cluster.group(cluster.leader().await);
        let large = Bytes::from(vec![0; (16 << 10) + 1]);
        let refused = leader.propose(large, SOON).await;
        assert!(
            matches!(refused, Err(Error::TooLarge { .. })),
            "{refused:?}"
        );
        let many: Vec<_> = (0..5000)
            .map(|n| Box::pin(leader.propose(bytes(n), SOON)))
            .collect();
        let done = futures_util::future::join_all(many).await;
        let refused = done
            .iter()
            .filter(|d| matches!(d, Err(Error::Overloaded)))
            .count();
        let applied = done.iter().filter(|d| d.is_ok()).count();
        assert!(
            refused > 0 && applied + refused == 5000,
            "{applied} applied, {refused} refused"
        );
        let follower = [1, 2, 3]
            .map(|n| cluster.group(n))
            .into_iter()
            .find(|g| !g.is_leader());
        let refused = follower.expect("a follower").propose(bytes(0), SOON).await;
        let Err(Error::NotLeader { leader: Some(hint) }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(hint.replica, leader.replica());
    });
}

#[test]
fn leadership_is_handed_over() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let leader = cluster.leader().await;
        let next = [1, 2, 3]
            .into_iter()
            .find(|n| *n != leader)
            .expect("a follower");
        let group = cluster.group(leader);
        until("the follower to catch up", || async {
            (group.status().lag(replica(next)) == Some(0)).then_some(())
        })
        .await;
        group
            .transfer_leader(replica(next), SOON)
            .await
            .expect("is handed over");
        assert_eq!(cluster.leader().await, next);
        cluster.write(1).await;
        let unknown = cluster.group(next).transfer_leader(42, SOON).await;
        assert!(matches!(unknown, Err(Error::Invalid(_))), "{unknown:?}");
    });
}

#[test]
fn log_is_released_when_its_groups_are_purged() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let leader = cluster.leader().await;
        let group = cluster.group(leader);
        let node = &cluster.nodes[&leader];
        for _ in 0..200 {
            let large = Bytes::from(vec![7; 16 << 10]);
            group.propose(large, SOON).await.expect("is applied");
        }
        let full = node.groups.log_bytes();
        let pinning = node.groups.pinning(2);
        let upto = *pinning
            .get(&GROUP)
            .expect("the group pins the oldest segments");
        assert_eq!(
            node.groups
                .release_segments()
                .await
                .expect("releases nothing"),
            0
        );
        node.machine.flush();
        group.purge(upto).await.expect("purges");
        until("the purge", || async {
            (group.status().purged == Some(upto)).then_some(())
        })
        .await;
        let freed = node.groups.release_segments().await.expect("releases");
        assert!(
            freed >= 2 * config(0).segment_bytes,
            "freed {freed} of {full}"
        );
        assert!(node.groups.log_bytes() < full);
    });
}

#[test]
fn lossy_slow_network_loses_no_acknowledged_write_and_all_replicas_agree() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        cluster.leader().await;
        cluster.network.lose_one_in(40);
        cluster.network.delay_up_to(Duration::from_millis(3));
        let mut acknowledged = Vec::new();
        for n in 0..150 {
            if n % 50 == 25 {
                let down = 1 + n / 50;
                let (disk, machine) = cluster.crash(down).await;
                cluster.restart(down, disk, machine).await;
            }
            let groups = [1, 2, 3].map(|node| cluster.group(node));
            let leader = until("a leader", || async {
                groups.iter().find(|group| group.is_leader())
            });
            let write = leader.await.propose(bytes(n), Duration::from_secs(2));
            if write.await.is_ok() {
                acknowledged.push(bytes(n));
            }
        }
        cluster.network.lose_one_in(0);
        for node in [1, 2, 3] {
            until("a read", || async {
                cluster.group(node).read_barrier(SOON).await.ok()
            })
            .await;
        }
        let writes = cluster.nodes[&1].machine.writes();
        assert!(
            acknowledged.len() > 30,
            "only {} writes were acknowledged",
            acknowledged.len()
        );
        for write in &acknowledged {
            assert!(
                writes.contains(write),
                "{write:?} was acknowledged and is lost"
            );
        }
        for node in [2, 3] {
            let others = cluster.nodes[&node].machine.writes();
            let common = writes.len().min(others.len());
            assert_eq!(writes[..common], others[..common], "node {node}");
        }
    });
}

#[test]
fn state_that_lost_what_the_log_purged_does_not_open() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        for n in 0..5 {
            cluster.write(n).await;
        }
        let node = &cluster.nodes[&1];
        cluster.holds(1, 5).await;
        node.machine.flush();
        let group = node.group();
        group.purge(u64::MAX).await.expect("purges");
        until("the purge", || async { group.status().purged }).await;
        node.groups.shutdown().await.expect("stops");
        let (disk, _) = cluster.crash(1).await;
        let env = env(&disk, 1);
        let groups = Groups::open(config(1), env, cluster.network.transport(1)).expect("opens");
        let empty: Arc<dyn StateMachine> = Arc::new(MemoryMachine::new());
        let opened = groups.open_group(GROUP, replica(1), empty).await;
        assert!(matches!(opened.err(), Some(Error::Corrupt(_))));
    });
}

#[test]
fn group_of_one_replica_writes_reads_and_restarts() {
    runtime().block_on(async {
        let mut cluster = Cluster::empty(&[1]).await;
        let group = cluster.group(1);
        group.bootstrap(members(&[1])).await.expect("bootstraps");
        for n in 0..10 {
            cluster.write(n).await;
            cluster.group(1).read_barrier(SOON).await.expect("reads");
            cluster.holds(1, n + 1).await;
        }
        let (disk, machine) = cluster.crash(1).await;
        cluster.restart(1, disk, machine).await;
        until("a read", || async {
            cluster.group(1).read_barrier(SOON).await.ok()
        })
        .await;
        cluster.holds(1, 10).await;
        // It grows to three.
        cluster.add(2, MemoryMachine::new()).await;
        cluster.add(3, MemoryMachine::new()).await;
        let group = cluster.group(1);
        group
            .change_members(members(&[1, 2, 3]), SOON)
            .await
            .expect("the members change");
        cluster.write(10).await;
        cluster.holds(3, 11).await;
    });
}

#[test]
fn many_groups_share_one_log_and_one_restart() {
    runtime().block_on(async {
        let network = MemoryNetwork::new(1);
        let disk = SimDisk::new(Random::from_seed(1));
        let open = |disk: &SimDisk| {
            let groups = Groups::open(config(1), env(disk, 1), network.transport(1));
            groups.expect("the log opens")
        };
        let groups = open(&disk);
        let machines: Vec<_> = (0..30).map(|_| Arc::new(MemoryMachine::new())).collect();
        for (n, machine) in (0..).zip(&machines) {
            let as_machine: Arc<dyn StateMachine> = machine.clone();
            let group = groups
                .open_group(n, 1000 + n, as_machine)
                .await
                .expect("opens");
            group
                .bootstrap([(1000 + n, 1)].into())
                .await
                .expect("bootstraps");
        }
        for n in 0..30 {
            let group = groups.group(n).expect("runs");
            until("a write", || async {
                group.propose(bytes(n), SOON).await.ok()
            })
            .await;
        }
        groups.shutdown().await.expect("stops");
        let groups = open(&disk.crash());
        assert_eq!(
            groups.stored_groups(),
            (0..30).map(|n| (n, 1000 + n)).collect::<Vec<_>>()
        );
        for (n, machine) in (0..).zip(&machines) {
            let reopened = Arc::new(machine.reopen());
            let as_machine: Arc<dyn StateMachine> = reopened.clone();
            let group = groups
                .open_group(n, 1000 + n, as_machine)
                .await
                .expect("opens");
            until("a read", || async { group.read_barrier(SOON).await.ok() }).await;
            assert_eq!(reopened.writes(), vec![bytes(n)]);
        }
    });
}

#[test]
fn stored_replica_does_not_open_as_another() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        cluster.write(0).await;
        let (disk, machine) = cluster.crash(1).await;
        let env = env(&disk, 1);
        let groups = Groups::open(config(1), env, cluster.network.transport(1)).expect("opens");
        let machine: Arc<dyn StateMachine> = Arc::new(machine);
        let other = groups.open_group(GROUP, 555, machine).await;
        assert!(matches!(other.err(), Some(Error::Invalid(_))));
    });
}

//! The plain nouns of the crate: ids, positions in a log, members, status, settings.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A Raft group: one shard, or a group of the system.
pub type GroupId = u64;

/// A replica of a group. Never reused in its group: one that lost its data comes back as another.
pub type ReplicaId = u64;

/// A node of the cluster, holding at most one replica of each group.
pub type NodeId = u64;

/// What names an entry of a group's log for good: its index, and under whom it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The term it was written in.
    pub term: u64,
    /// The replica that led then.
    pub leader: ReplicaId,
    /// Its place in the log, from 0 (which is always the first membership).
    pub index: u64,
}

/// Who leads a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Leader {
    /// The leading replica.
    pub replica: ReplicaId,
    /// The node it lives on.
    pub node: NodeId,
}

/// The replicas of a group and the nodes they live on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Those that vote. While `joint`, the voters of both configurations.
    pub voters: BTreeMap<ReplicaId, NodeId>,
    /// Those that only receive the log.
    pub learners: BTreeMap<ReplicaId, NodeId>,
    /// Whether a change of voters is half done.
    pub joint: bool,
}

/// What a replica is in its group just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Receives the log and does not vote.
    Learner,
    /// Follows a leader, or waits for one.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads, or believes so: only a quorum's answer proves it.
    Leader,
    /// Has stopped: [`Health::Stopped`] says why. It must be closed and opened again.
    Stopped,
}

/// Whether a group serves, as one of its replicas sees it. Too long is twice the longest election
/// time-out: a group that is well elects within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has a leader that this replica hears; if it leads itself, it hears a quorum.
    Works,
    /// No leader is known, or it has been silent for too long.
    NoLeader,
    /// This replica leads, as far as it knows, and has heard no quorum for too long.
    NoQuorum,
    /// This replica has stopped, whatever the others do.
    Stopped(StopReason),
}

/// Why a replica stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopReason {
    /// What failed, and of what.
    pub message: String,
    /// Whether it may be over by itself, as a full disk or work that was dropped; then the replica
    /// may be closed and opened again. Damage, and a log that failed, do not pass.
    pub may_pass: bool,
}

/// A replica as it sees itself and its group. For display and decisions of placement, not for
/// correctness: it is out of date when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub replica: ReplicaId,
    /// What it is.
    pub role: Role,
    /// Whether the group serves.
    pub health: Health,
    /// The current term.
    pub term: u64,
    /// Who leads, as far as it knows: where to ask, though perhaps in vain. Whether that one is heard
    /// is said by `health`.
    pub leader: Option<Leader>,
    /// The last index in its log.
    pub last_index: Option<u64>,
    /// The last index known to be committed.
    pub committed: Option<u64>,
    /// The last index applied here.
    pub applied: Option<u64>,
    /// The last index whose effect is durable in the state machine here.
    pub flushed: Option<u64>,
    /// The last index removed from the log here.
    pub purged: Option<u64>,
    /// The members it acts by.
    pub members: Members,
    /// On the leader: the last index each replica is known to hold.
    pub matched: BTreeMap<ReplicaId, Option<u64>>,
}

impl Status {
    /// How many entries a replica is behind this one, if this one leads and knows.
    pub fn lag(&self, replica: ReplicaId) -> Option<u64> {
        let matched = self.matched.get(&replica)?.map_or(0, |index| index + 1);
        Some(
            self.last_index
                .map_or(0, |index| index + 1)
                .saturating_sub(matched),
        )
    }
}

/// How fast a group notices that its leader is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A leader shows itself this often.
    pub heartbeat: Duration,
    /// A follower stands for election after a silence between this...
    pub election_min: Duration,
    /// ... and this. It is also how long a vote against a leader just heard is refused.
    pub election_max: Duration,
    /// A node that is silent for so long may be taken for gone, if it mostly answers much sooner: then those that it led
    /// elect another without waiting for the election time. At most `election_max`. Zero: they wait.
    pub silence_min: Duration,
}

impl Timing {
    /// For up to about 200 groups a node.
    pub const FAST: Timing = Timing {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(600),
        silence_min: Duration::from_millis(80),
    };

    /// For more groups: a fifth of the idle work, slower to elect.
    pub const SLOW: Timing = Timing {
        heartbeat: Duration::from_millis(500),
        election_min: Duration::from_millis(1500),
        election_max: Duration::from_millis(3000),
        silence_min: Duration::from_millis(250),
    };

    /// For nodes in cities of their own, up to 150 ms apart: a lost packet, which TCP sends again after some round trips,
    /// elects nobody.
    pub const FAR: Timing = Timing {
        heartbeat: Duration::from_millis(250),
        election_min: Duration::from_millis(1500),
        election_max: Duration::from_millis(3000),
        silence_min: Duration::from_millis(800),
    };
}

/// The settings of [`Groups`](crate::Groups).
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The directory of the shared log.
    pub log_dir: PathBuf,
    /// The size of a log segment, in bytes.
    pub segment_bytes: u64,
    /// Election and heartbeat times, of all groups.
    pub timing: Timing,
    /// A group in which nothing happened for so long goes quiet: no heartbeats, no timers; the pulse of the leader's
    /// node stands for them. Zero: never.
    pub quiet_after: Duration,
    /// How long a leader may read without asking, after it sent what a quorum took; at most
    /// [`LEASE_MAX`](crate::LEASE_MAX). Zero: it asks for every read. Voters keep twice as long from electing
    /// another, so it relies on clocks of which none runs twice as fast as another, and none stands still while
    /// others go on.
    pub lease: Duration,
    /// The largest proposal, in bytes.
    pub proposal_bytes_max: usize,
    /// How much a group takes before it answers `Overloaded`: bytes of proposals in flight.
    pub inflight_bytes_max: usize,
    /// And their number.
    pub inflight_proposals_max: usize,
    /// The most bytes of entries in one message to a peer (one entry always goes).
    pub append_bytes_max: usize,
    /// The memory of the entry cache of the whole node, in bytes.
    pub cache_bytes: usize,
    /// The most bytes of commands applied in one call of the state machine (one always goes).
    pub apply_bytes_max: usize,
    /// The size of a snapshot chunk, in bytes.
    pub snapshot_chunk_bytes: usize,
    /// How long one message to a peer may take before it counts as lost.
    pub message_timeout: Duration,
    /// How long one chunk of a snapshot may take; the last one includes the install. A chunk that is not answered is
    /// sent again, for four times as long: so a transfer goes on where it was cut.
    pub snapshot_timeout: Duration,
}

impl Config {
    /// The defaults of a node, with its log in `log_dir`.
    pub fn new(node: NodeId, log_dir: impl Into<PathBuf>) -> Config {
        Config {
            node,
            log_dir: log_dir.into(),
            segment_bytes: 64 << 20,
            timing: Timing::FAST,
            quiet_after: Duration::from_secs(5),
            lease: Duration::ZERO,
            proposal_bytes_max: 8 << 20,
            inflight_bytes_max: 64 << 20,
            inflight_proposals_max: 4096,
            append_bytes_max: 1 << 20,
            cache_bytes: 128 << 20,
            apply_bytes_max: 4 << 20,
            snapshot_chunk_bytes: 512 << 10,
            message_timeout: Duration::from_secs(2),
            snapshot_timeout: Duration::from_secs(30),
        }
    }
}

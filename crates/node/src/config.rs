//! The settings of a node, resolved: plain data.

use std::time::Duration;

use quorate_kv::Limits;
use quorate_replication::Timing;
use quorate_storage::Options;

/// Settings of a node. Sizes are in bytes.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port` where clients and peers reach this node.
    pub address: String,
    /// What clients may send.
    pub limits: Limits,
    /// Of the storage engine: memory, block and table sizes. Keyspaces and WAL are the node's.
    pub engine: Options,
    /// The shared Raft log is kept below this, whatever followers are behind.
    pub log_bytes_max: u64,
    /// The size of one of its files.
    pub log_segment_bytes: u64,
    /// Client writes are refused while the disk has less space than this.
    pub free_bytes_min: u64,
    /// A request that would wait longer in the queue of its shard is refused with `Overloaded`.
    pub queue_delay_max: Duration,
    /// All writes that wait on this node take at most so much memory.
    pub queue_bytes_max: usize,
    /// How many replicas the coordinator grows to.
    pub coordinator_replicas: usize,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// A shard in which nothing happened for so long costs no heartbeats and no timers; zero: it always does.
    pub quiet_after: Duration,
    /// How long a leader may read without asking its followers, after they last heard it; zero: not at all. See
    /// [`quorate_replication::Config::lease`].
    pub lease: Duration,
}

impl Config {
    /// The defaults of a node at this address.
    pub fn new(address: impl Into<String>) -> Config {
        Config {
            address: address.into(),
            limits: Limits::default(),
            engine: Options::default(),
            log_bytes_max: 1 << 30,
            log_segment_bytes: 64 << 20,
            free_bytes_min: 256 << 20,
            queue_delay_max: Duration::from_millis(100),
            queue_bytes_max: 128 << 20,
            coordinator_replicas: 3,
            timing: Timing::FAST,
            quiet_after: Duration::from_secs(5),
            lease: Duration::ZERO,
        }
    }
}

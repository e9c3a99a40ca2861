//! What all parts of a node share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use quorate_env::Env;
use quorate_kv::{Limits, Version};
use quorate_sharding::ShardMap;
use tokio::sync::watch;

use crate::admission::ShedCounts;
use crate::latency::Latencies;

/// Shared by the node and its shards.
pub(crate) struct Context {
    pub env: Env,
    pub limits: Limits,
    /// The newest shard map known here.
    pub map: watch::Receiver<Arc<ShardMap>>,
    /// For how many seconds, so far, the log was near its bound.
    pub log_near_bound: AtomicU64,
    /// Set while the disk has less space than its reserve: what only deletes is taken then.
    pub disk_full: AtomicBool,
    /// Set while the reserve itself is nearly used up: nothing is taken then.
    pub disk_exhausted: AtomicBool,
    /// Set while a node whose disk became full asks others to lead what it leads.
    pub handing_over: AtomicBool,
    /// Set while flushes and compaction are so far behind that writes must wait.
    pub engine_behind: AtomicBool,
    /// What waits longer before its turn is refused at the door.
    pub queue_delay_max: Duration,
    /// The memory of all writes that wait in queues, and the most of it, in bytes.
    pub queued_bytes: AtomicUsize,
    pub queued_bytes_max: usize,
    /// What was turned away.
    pub shed: ShedCounts,
    /// The disk's space at the last look, in bytes.
    pub free_bytes: AtomicU64,
    /// Where Raft's work runs.
    pub raft_runtime: tokio::runtime::Handle,
    /// How long requests took.
    pub latencies: Latencies,
    /// The newest stamp given, so that they never go back.
    pub last_stamp: AtomicU64,
}

/// A stamp is milliseconds and a counter of so many bits.
const COUNTER_BITS: u32 = 15;

impl Context {
    pub(crate) fn map(&self) -> Arc<ShardMap> {
        Arc::clone(&self.map.borrow())
    }

    /// Whether the disk has less space than its reserve.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }

    /// Whether so little of the reserve is left that deletes have to wait too.
    pub(crate) fn is_disk_exhausted(&self) -> bool {
        self.disk_exhausted.load(Ordering::Relaxed)
    }

    /// The hybrid time now: 48 bits of milliseconds since 1970, then a counter.
    pub(crate) fn stamp(&self) -> Version {
        let now = self.env.clock.unix_ms() << COUNTER_BITS;
        let before = self.last_stamp.fetch_max(now, Ordering::Relaxed);
        now.max(before)
    }
}

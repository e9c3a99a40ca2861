//! Replicas that have stopped: said once, and closed when what stopped them may be over, so that they
//! are opened again like any that is missing.
//!
//! A full disk gets space, a dropped job comes again; damage and a log that failed do not pass, and
//! such a replica stays stopped, visible, until an operator has acted and the node is started anew.
//! Opening again is what a restart does, of one replica: it reads its position from the engine and
//! applies on from there.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_replication::Group;
use quorate_sharding::{COORDINATOR_GROUP, GroupId};
use tokio::time::Instant;

use crate::node::Inner;

/// The first pause before a stopped replica is opened again; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The stopped replicas of a node that were seen.
#[derive(Default)]
pub(crate) struct Reopening {
    attempts: BTreeMap<GroupId, Attempt>,
}

struct Attempt {
    pause: Duration,
    /// When it is closed next; while it runs, when it last was.
    at: Instant,
    is_stopped: bool,
}

impl Reopening {
    /// Closes the replicas whose time has come. Those that it could not close are tried again.
    pub(crate) async fn close_due(&mut self, inner: &Inner) {
        for group in inner.groups.all() {
            if self.is_due(inner, &group) {
                self.close(inner, group.id()).await;
            }
        }
    }

    fn is_due(&mut self, inner: &Inner, group: &Group) -> bool {
        let Some(reason) = group.stop_reason() else {
            return false;
        };
        let now = Instant::now();
        let shard = group.id();
        let attempt = self.attempts.entry(shard).or_insert(Attempt {
            pause: PAUSE_MIN,
            at: now,
            is_stopped: false,
        });
        if !attempt.is_stopped {
            attempt.is_stopped = true;
            // One that ran for long has not failed of the same again.
            if now - attempt.at > 2 * PAUSE_MAX {
                attempt.pause = PAUSE_MIN;
            }
            attempt.at = now + attempt.pause;
            tracing::error!(
                shard, reason = reason.message, may_pass = reason.may_pass, pause = ?attempt.pause,
                "a replica has stopped"
            );
        }
        let is_full = inner.context.is_disk_full();
        reason.may_pass && !is_full && now >= attempt.at
    }

    async fn close(&mut self, inner: &Inner, shard: GroupId) {
        let closed = inner.groups.close_group(shard).await;
        let Some(attempt) = self.attempts.get_mut(&shard) else {
            return;
        };
        attempt.pause = (attempt.pause * 2).min(PAUSE_MAX);
        attempt.at = Instant::now();
        match closed {
            Ok(()) => {
                tracing::info!(shard, "a stopped replica is opened again");
                attempt.is_stopped = false;
                if shard == COORDINATOR_GROUP {
                    *inner.coordinator.write() = None;
                }
                inner.shards.write().remove(&shard);
            }
            Err(error) => {
                tracing::warn!(shard, %error, "a stopped replica could not be closed");
                attempt.at += attempt.pause;
            }
        }
    }
}

//! [`Groups`]: all replicas of a node, over one shared log and one transport.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::{Raft, SnapshotPolicy};
use parking_lot::RwLock;
use quorate_env::{Env, JobClass, switch};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::group::{Gone, Group, Parts};
use crate::lease::{LEASE_MAX, Lease};
use crate::log::{GroupLog, LogDamage, OnDamage, SharedLog};
use crate::machine::{Machine, run_job};
use crate::network::Network;
use crate::quiet::{NODE, Pulses};
use crate::state_machine::StateMachine;
use crate::transport::{Class, Transport};
use crate::types::{Config, GroupId, NodeId, ReplicaId};
use crate::watch::AppliedWatch;
use crate::wire::{self, Message};

/// How long the work of a replica that was stopped may take to end.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(10);

/// The host of all replicas of a node. Cheap to clone; all methods may be called from anywhere.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<Config>,
    raft_config: Arc<openraft::Config>,
    env: Env,
    runtime: Handle,
    transport: Arc<dyn Transport>,
    log: SharedLog,
    groups: RwLock<HashMap<GroupId, Group>>,
    pulses: Arc<Pulses>,
    detector: Arc<Detector>,
    /// The number of this process, as its pulse tells it.
    incarnation: u64,
    stopped: AtomicBool,
    /// One opening or removing at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Groups {
    /// Opens the shared log, replaying it; blocks while it does. No group runs until it is
    /// [opened](Groups::open_group). Must be called within the tokio runtime that shall carry Raft
    /// traffic.
    pub fn open(config: Config, env: Env, transport: Arc<dyn Transport>) -> Result<Groups> {
        let mut refuse = |damages: &[LogDamage]| {
            let whats = damages.iter().map(|damage| damage.what.as_str());
            Err(whats.collect::<Vec<_>>().join("; "))
        };
        Groups::open_with_damage(config, env, transport, &mut refuse)
    }

    /// The same for an owner who looks after damage of the log: he hears of it before it is mended, and must have
    /// made sure then that the replicas it names are never opened again. Their logs are gone.
    pub fn open_with_damage(
        config: Config,
        env: Env,
        transport: Arc<dyn Transport>,
        on_damage: OnDamage<'_>,
    ) -> Result<Groups> {
        let raft_config = Arc::new(raft_config(&config)?);
        let runtime = Handle::try_current().map_err(|e| Error::Invalid(e.to_string()))?;
        let sizes = (config.segment_bytes, config.cache_bytes);
        let log = SharedLog::open_with_damage(&env, &config.log_dir, sizes, on_damage)?;
        let detector = Arc::new(Detector::new(config.timing));
        let inner = Inner {
            config: Arc::new(config),
            raft_config,
            pulses: Arc::default(),
            detector,
            incarnation: env.random.next_u64(),
            env,
            runtime,
            transport,
            log,
            groups: RwLock::default(),
            stopped: AtomicBool::new(false),
            changing: tokio::sync::Mutex::new(()),
        };
        let inner = Arc::new(inner);
        let looked_after = Arc::downgrade(&inner);
        inner.runtime.spawn(look_after(looked_after));
        Ok(Groups { inner })
    }

    /// The groups that have something in the log: those to open after a restart.
    pub fn stored_groups(&self) -> Vec<(GroupId, ReplicaId)> {
        self.inner.log.stored()
    }

    /// Starts this node's replica of a group, new or stored. A stored group keeps its replica id:
    /// another one is `Invalid`.
    pub async fn open_group(
        &self,
        group: GroupId,
        replica: ReplicaId,
        machine: Arc<dyn StateMachine>,
    ) -> Result<Group> {
        let _alone = self.inner.changing.lock().await;
        if self.inner.stopped.load(Ordering::Acquire) {
            return Err(Error::Stopped("the node is stopping".into()));
        }
        if self.inner.groups.read().contains_key(&group) {
            return Err(Error::Invalid(format!("group {group} is open already")));
        }
        let inner = Arc::clone(&self.inner);
        let opening = self
            .inner
            .runtime
            .spawn(start(inner, group, replica, machine));
        let opened = opening.await.map_err(|e| Error::Stopped(e.to_string()))??;
        self.inner.groups.write().insert(group, opened.clone());
        Ok(opened)
    }

    /// Stops this node's replica and lets go of it, so that it can be opened again; one that stopped by
    /// itself too. What it has in the log is durable then.
    ///
    /// # Errors
    /// Whatever keeps the log from being synced: then the replica stays as it is, stopped, since one
    /// that is opened takes all that it finds in the log for durable. `Busy` if work of it is still
    /// under way: try again.
    pub async fn close_group(&self, group: GroupId) -> Result<()> {
        let _alone = self.inner.changing.lock().await;
        let running = self.group(group)?;
        running.shutdown().await?;
        tokio::time::timeout(LET_GO_TIMEOUT, running.let_go())
            .await
            .map_err(|_| Error::Busy)?;
        let log = self.inner.log.clone();
        run_job(&self.inner.env.jobs, JobClass::Control, move || log.sync()).await??;
        self.inner.groups.write().remove(&group);
        Ok(())
    }

    /// Stops this node's replica and forgets its log for good. The caller has removed it from the
    /// members first and deals with the state machine's data.
    pub async fn remove_group(&self, group: GroupId) -> Result<()> {
        let _alone = self.inner.changing.lock().await;
        let running = self.inner.groups.write().remove(&group);
        if let Some(running) = running {
            running.shutdown().await?;
        }
        let (tx, rx) = oneshot::channel();
        let done = Box::new(move |result| {
            let _ = tx.send(result);
        });
        self.inner.log.remove_replica(group, done)?;
        let gone = || Error::Stopped("the log has stopped".into());
        rx.await
            .map_err(|_| gone())?
            .map_err(|e| Error::Io(e.to_string()))
    }

    /// The running replica of a group.
    pub fn group(&self, group: GroupId) -> Result<Group> {
        self.inner
            .groups
            .read()
            .get(&group)
            .cloned()
            .ok_or(Error::NoSuchGroup(group))
    }

    /// All running replicas.
    pub fn all(&self) -> Vec<Group> {
        self.inner.groups.read().values().cloned().collect()
    }

    /// Takes a message of a peer; the future is the reply, and always resolves. REQUIRES: called in
    /// the order the messages of a class came from that peer, and within the runtime; the message takes
    /// its place when this is called, so the futures may then be awaited in any order and on any task.
    pub fn handle(
        &self,
        from: NodeId,
        class: Class,
        group: GroupId,
        payload: Bytes,
    ) -> BoxFuture<'static, Bytes> {
        if group == NODE {
            return std::future::ready(self.hear(from, payload)).boxed();
        }
        let handled = self.group(group).and_then(|running| {
            let (route, message) = wire::decode(payload).map_err(|malformed| {
                tracing::warn!(from, ?class, group, %malformed, "a message can't be read");
                Error::Invalid(malformed.to_string())
            })?;
            Ok(running.handle(route, message, &self.inner.pulses))
        });
        handled.unwrap_or_else(|error| std::future::ready(wire::error_reply(&error)).boxed())
    }

    /// Takes a message from node to node.
    fn hear(&self, from: NodeId, payload: Bytes) -> Bytes {
        match wire::decode(payload) {
            Ok((_, Message::Pulse { incarnation, woken })) => {
                self.inner.pulses.heard(from, incarnation);
                for group in woken {
                    if let Ok(running) = self.group(group) {
                        running.woken_by(from);
                    }
                }
                wire::done_reply()
            }
            Ok(_) => wire::error_reply(&Error::NoSuchGroup(NODE)),
            Err(malformed) => wire::error_reply(&Error::Invalid(malformed.to_string())),
        }
    }

    /// Told by who knows for sure that the process of a peer is dead: groups that it led elect another at
    /// once, without waiting for their timers.
    pub fn node_gone(&self, node: NodeId) {
        self.inner.node_gone(Gone::Dead(node));
    }

    /// Whether a record of the log was found damaged since that was last asked for: what could not be read stops
    /// its group.
    pub fn is_log_damaged(&self) -> bool {
        self.inner.log.is_damaged()
    }

    /// What was found damaged since this was last asked.
    pub fn take_log_damage(&self) -> Vec<LogDamage> {
        self.inner.log.take_damages()
    }

    /// The size of the shared log on disk, in bytes.
    pub fn log_bytes(&self) -> u64 {
        self.inner.log.bytes()
    }

    /// Whether entries and votes of this node wait because the disk of the log is full. They go on by
    /// themselves when there is space.
    pub fn log_is_full(&self) -> bool {
        self.inner.log.is_full()
    }

    /// Why this node's log takes no entry and no vote any more, if a write or a sync of it failed. Only opening the
    /// groups again helps.
    pub fn log_failure(&self) -> Option<Error> {
        self.inner.log.failure()
    }

    /// The groups that keep the `segments` oldest log segments from being released, each with the
    /// index up to which its log must be purged to let go of them.
    pub fn pinning(&self, segments: u64) -> BTreeMap<GroupId, u64> {
        self.inner.log.pinning(segments)
    }

    /// Gives back the log segments that no group needs any more; returns the bytes freed.
    pub async fn release_segments(&self) -> Result<u64> {
        let log = self.inner.log.clone();
        let release = move || log.release_segments();
        run_job(&self.inner.env.jobs, JobClass::Control, release).await?
    }

    /// Stops all groups and syncs the log. On a full disk that fails, and what was not acknowledged
    /// is not kept; all groups have stopped all the same.
    pub async fn shutdown(&self) -> Result<()> {
        // Who opens or removes a group just now may wait for the log.
        self.inner.log.stop_waiting();
        let _alone = self.inner.changing.lock().await;
        self.inner.stopped.store(true, Ordering::Release);
        let groups: Vec<Group> = self
            .inner
            .groups
            .write()
            .drain()
            .map(|(_, group)| group)
            .collect();
        let mut stopped = Ok(());
        for group in groups {
            stopped = stopped.and(group.shutdown().await);
        }
        let log = self.inner.log.clone();
        let synced = run_job(&self.inner.env.jobs, JobClass::Control, move || log.sync()).await?;
        stopped.and(synced)
    }
}

impl Inner {
    fn node_gone(&self, gone: Gone) {
        let groups: Vec<Group> = self.groups.read().values().cloned().collect();
        for group in groups {
            self.runtime.spawn(group.leader_gone(gone));
        }
    }

    /// Looks after quiet groups. Gives the nodes that rely on this node's pulse, each with what it is yet to hear of.
    fn look_after(&self) -> BTreeMap<NodeId, Vec<GroupId>> {
        let (mut led, mut peers) = (BTreeMap::new(), BTreeSet::new());
        for group in self.groups.read().values() {
            group.look_after(&self.pulses, self.incarnation, &mut led);
            group.add_peers(&mut peers);
        }
        self.detector.watch(&peers);
        self.pulses.lead(led).into_iter().collect()
    }

    /// Gives this node's pulse to another.
    fn beat(&self, node: NodeId, woken: Vec<GroupId>) {
        let payload = wire::pulse(self.incarnation, &woken);
        let asked = Instant::now();
        let sent = self.transport.send(node, Class::Vote, NODE, payload);
        let (pulses, detector) = (Arc::clone(&self.pulses), Arc::clone(&self.detector));
        let timeout = self.config.message_timeout;
        self.runtime.spawn(async move {
            if let Ok(Ok(_)) = tokio::time::timeout(timeout, sent).await {
                let now = Instant::now();
                detector.answered(node, now, now - asked);
                pulses.told(node, &woken);
            }
        });
    }
}

/// Looks after quiet groups, gives this node's pulse to the others, and notices who does not answer.
async fn look_after(host: Weak<Inner>) {
    let mut wanted = Instant::now();
    let (mut round, mut pulse) = (wanted, wanted);
    loop {
        let Some(inner) = host.upgrade() else { return };
        if inner.stopped.load(Ordering::Acquire) {
            return;
        }
        let (timing, now) = (inner.config.timing, Instant::now());
        for node in inner.detector.fell_silent(now, now - wanted) {
            tracing::warn!(node, "a node does not answer: what it leads elects another");
            inner.node_gone(Gone::Silent(node));
        }
        let mut due = BTreeMap::new();
        if now >= round {
            due = inner.look_after();
            round = now + timing.heartbeat;
        }
        wanted = round;
        if let Some(interval) = inner.detector.interval() {
            if now >= pulse {
                pulse = now + interval;
                for node in inner.detector.peers() {
                    due.entry(node).or_default();
                }
            }
            let look = inner.detector.next_look().unwrap_or(pulse);
            wanted = round.min(pulse).min(look);
        }
        for (node, woken) in due {
            inner.beat(node, woken);
        }
        drop(inner);
        tokio::time::sleep_until(wanted).await;
    }
}

/// Starts one replica; runs on the runtime that carries Raft traffic.
async fn start(
    host: Arc<Inner>,
    group: GroupId,
    replica: ReplicaId,
    machine: Arc<dyn StateMachine>,
) -> Result<Group> {
    let config = Arc::clone(&host.config);
    switch::probe("opened", || [group, replica]);
    let log = host
        .log
        .open_replica(group, replica)?
        .with_limits(config.append_bytes_max, config.apply_bytes_max);
    let watch = Arc::new(AppliedWatch::default());
    let live = Arc::new(AtomicBool::new(false));
    let jobs = Arc::clone(&host.env.jobs);
    let opened = Arc::clone(&machine);
    let applied = run_job(&jobs, JobClass::Read, move || opened.applied()).await??;
    if let Some(id) = applied.entry {
        switch::probe("recovered", || {
            [group, replica, id.index, id.term, id.leader]
        });
    }
    let next = applied.entry.map_or(0, |entry| entry.index + 1);
    if log.purged().is_some_and(|purged| purged.index >= next) {
        return Err(Error::Corrupt(format!(
            "the state of group {group} ends before entry {next}, which the log has purged: \
             it lost data; remove this replica and add one under a new id"
        )));
    }
    let adapter = Machine::new(
        Arc::clone(&machine),
        jobs,
        log.clone(),
        Arc::clone(&watch),
        &applied,
        config.apply_bytes_max,
        Arc::clone(&live),
    )?;
    let handle = adapter.handle();
    let network = network(&host, group, replica, &log);
    let raft_config = Arc::clone(&host.raft_config);
    let raft = Raft::new(replica, raft_config, network.clone(), log.clone(), adapter).await;
    let raft = raft.map_err(|fatal| Error::Stopped(fatal.to_string()))?;
    live.store(true, Ordering::Release);
    let runtime = host.runtime.clone();
    let id = group;
    Ok(Group::new(Parts {
        id,
        replica,
        config,
        runtime,
        raft,
        machine,
        handle,
        log,
        watch,
        network,
    }))
}

/// What a replica sends by.
fn network(host: &Inner, group: GroupId, replica: ReplicaId, log: &GroupLog) -> Network {
    let config = &host.config;
    let clock = Arc::clone(&host.env.clock);
    Network {
        transport: Arc::clone(&host.transport),
        env: host.env.clone(),
        group,
        replica,
        message_timeout: config.message_timeout,
        snapshot_timeout: config.snapshot_timeout,
        snapshot_chunk_bytes: config.snapshot_chunk_bytes,
        lease: Arc::new(Lease::new(config.lease, clock, replica, log.vote())),
        quiet: Arc::default(),
        detector: Arc::clone(&host.detector),
    }
}

fn raft_config(config: &Config) -> Result<openraft::Config> {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let timing = config.timing;
    if config.proposal_bytes_max as u64 + 4096 > config.segment_bytes {
        return Err(Error::Invalid("a proposal must fit a log segment".into()));
    }
    if config.lease > LEASE_MAX || !config.lease.subsec_micros().is_multiple_of(1000) {
        let message = format!(
            "a lease is whole milliseconds, at most {LEASE_MAX:?}, not {:?}",
            config.lease
        );
        return Err(Error::Invalid(message));
    }
    let raft = openraft::Config {
        cluster_name: "quorate".into(),
        heartbeat_interval: ms(timing.heartbeat),
        // A follower that has just acknowledged entries needs no heartbeat.
        heartbeat_min_interval: Some(ms(timing.heartbeat) / 2),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        install_snapshot_timeout: ms(config.snapshot_timeout),
        max_payload_entries: 1024,
        replication_lag_threshold: 1024,
        // Snapshots are opened when a replica needs one, and the node says when to purge.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX >> 1,
        enable_pre_vote: Some(true),
        // Ours knows of leaders that were quiet: see `Group::hold_back`.
        quorum_loss_probe_interval: None,
        // A leader restored without an election could serve what it had not yet learned to be old.
        enable_leader_restore: Some(false),
        backoff: "10ms 20ms 40ms ...500ms".into(),
        ..openraft::Config::default()
    };
    raft.validate().map_err(|e| Error::Invalid(e.to_string()))
}

//! [`Node`]: the replicas of one member of a cluster, over one engine and one log.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quorate_env::Env;
use quorate_kv::{Error as KvError, ErrorKind};
use quorate_replication::{Class, Group, Groups, LogDamage, Transport};
use quorate_sharding::{COORDINATOR_GROUP, Failure, GroupId, NodeId, Redirect, Request, ShardMap};
use quorate_storage::Lsm;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admission::ShedCounts;
use crate::config::Config;
use crate::context::Context;
use crate::coordinator::{self, ClusterCommand};
use crate::error::{Error, Result};
use crate::hash::NoHash;
use crate::identity::{DataDir, Identity};
use crate::latency::Latencies;
use crate::replies::Replies;
use crate::shard::{ShardReplica, check_namespace};
use crate::taint::TaintBook;
use crate::{keys, members, reconcile, repair, upkeep};

/// A member of a cluster. Clones are one node.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub dir: DataDir,
    pub identity: Identity,
    pub engine: Arc<Lsm>,
    pub groups: Groups,
    pub context: Arc<Context>,
    pub map: watch::Sender<Arc<ShardMap>>,
    pub shards: RwLock<HashMap<GroupId, Arc<ShardReplica>>>,
    pub coordinator: RwLock<Option<Group>>,
    /// Shards of this node that could not be opened, and why.
    pub broken: Mutex<BTreeMap<GroupId, String>>,
    /// Shards that this node leads and that have the members that the map names, which the map does not know yet:
    /// with the members version.
    pub unsettled: Mutex<BTreeMap<GroupId, u64>>,
    /// Replicas of this node that are damaged.
    pub taints: TaintBook,
    /// What the coordinator was asked for, for them.
    pub asking: Mutex<BTreeMap<GroupId, repair::Asking>>,
    /// How many damaged replicas were replaced since the node was opened.
    pub repaired: AtomicU64,
    pub started: Duration,
    /// Why this node can't go on, once its disk failed.
    pub failed: watch::Sender<Option<String>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Node {
    /// Opens a node that has an identity: recovers engine and log, then its replicas. Must be called
    /// inside the tokio runtime that shall carry Raft; blocks while the log is replayed.
    ///
    /// # Errors
    /// `Invalid` if the directory has no identity yet; whatever keeps engine or log from opening,
    /// with the file's name.
    pub fn open(config: Config, dir: DataDir, transport: Arc<dyn Transport>) -> Result<Node> {
        let Some(identity) = dir.identity() else {
            let path = dir.path().display();
            return Err(Error::Invalid(format!(
                "{path} belongs to no cluster yet: init or join"
            )));
        };
        let env = dir.env.clone();
        let engine = open_engine(&config, &dir)?;
        let known = dir.known_map()?.unwrap_or_else(|| ShardMap::new(0));
        let taints = TaintBook::open(&dir)?;
        // What is damaged must not vote, not once.
        repair::find_in_engine(&engine, &dir, &taints, &known)?;
        let groups = open_groups(&config, &dir, identity, (&taints, &known), transport)?;
        let (map, _) = watch::channel(Arc::new(known));
        let context = Context {
            limits: config.limits,
            map: map.subscribe(),
            log_near_bound: AtomicU64::new(0),
            disk_full: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
            disk_exhausted: AtomicBool::new(false),
            engine_behind: AtomicBool::new(false),
            queue_delay_max: config.queue_delay_max,
            queued_bytes: AtomicUsize::new(0),
            queued_bytes_max: config.queue_bytes_max,
            shed: ShedCounts::default(),
            free_bytes: AtomicU64::new(0),
            raft_runtime: tokio::runtime::Handle::current(),
            latencies: Latencies::default(),
            last_stamp: AtomicU64::new(0),
            env: env.clone(),
        };
        let inner = Arc::new(Inner {
            config,
            dir,
            identity,
            engine,
            groups,
            context: Arc::new(context),
            map,
            shards: RwLock::default(),
            coordinator: RwLock::default(),
            broken: Mutex::default(),
            unsettled: Mutex::default(),
            taints,
            asking: Mutex::default(),
            repaired: AtomicU64::new(0),
            started: env.clock.now(),
            failed: watch::Sender::new(None),
            tasks: Mutex::default(),
        });
        let tasks = [
            tokio::spawn(reconcile::follow_map(Arc::clone(&inner))),
            tokio::spawn(reconcile::lead_coordinator(Arc::clone(&inner))),
            tokio::spawn(members::lead(Arc::clone(&inner))),
            tokio::spawn(repair::watch(Arc::clone(&inner))),
            tokio::spawn(upkeep::run(Arc::clone(&inner))),
            tokio::spawn(upkeep::watch_engine(Arc::clone(&inner))),
            tokio::spawn(upkeep::watch_space(Arc::clone(&inner))),
        ];
        inner.tasks.lock().extend(tasks);
        Ok(Node { inner })
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.inner.identity
    }

    /// The newest shard map known here.
    pub fn map(&self) -> Arc<ShardMap> {
        self.inner.context.map()
    }

    /// How long requests took so far.
    pub fn latencies(&self) -> &Latencies {
        &self.inner.context.latencies
    }

    /// What was turned away or thrown away unserved so far, by reason.
    pub fn shed(&self) -> &ShedCounts {
        &self.inner.context.shed
    }

    /// The memory of all writes that wait in queues, in bytes.
    pub fn queued_bytes(&self) -> usize {
        self.inner.context.queued_bytes.load(Ordering::Relaxed)
    }

    /// Follows the shard map: the transport learns addresses from it.
    pub fn map_changes(&self) -> watch::Receiver<Arc<ShardMap>> {
        self.inner.context.map.clone()
    }

    /// Waits until the disk fails, and says how. The node neither writes nor answers from then on what it can't prove:
    /// shut it down, and open it again on a disk that works.
    pub async fn failed(&self) -> String {
        let mut failed = self.inner.failed.subscribe();
        // The sender lives in the node.
        let why = failed.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// Takes in a map that another node knows, if it is newer and of this cluster.
    pub fn adopt_map(&self, newer: ShardMap) -> bool {
        if newer.cluster != self.inner.identity.cluster {
            return false;
        }
        self.inner.map.send_if_modified(|known| {
            let take = newer.version > known.version;
            if take {
                *known = Arc::new(newer);
            }
            take
        })
    }

    /// Whether this node makes the maps: it leads the coordinator. Any other has to ask for them: a follower may have
    /// been let go of without having heard of it.
    pub fn leads_coordinator(&self) -> bool {
        let group = self.inner.coordinator.read().clone();
        group.is_some_and(|group| group.is_leader())
    }

    /// Serves requests; each gets one answer through `replies`, in any order.
    pub fn execute(&self, requests: Vec<Request>, replies: &Replies) {
        let mut by_shard: Vec<(GroupId, Vec<Request>)> = Vec::new();
        for request in requests {
            match by_shard
                .iter_mut()
                .find(|(shard, _)| *shard == request.shard)
            {
                Some((_, same)) => same.push(request),
                None => by_shard.push((request.shard, vec![request])),
            }
        }
        if let Some(why) = self.inner.env().jobs.fault() {
            let refuse = |r: Request| (r.request_id, Err(panicked(why).into()));
            let all = by_shard.into_iter().flat_map(|(_, requests)| requests);
            return replies.send(all.map(refuse).collect());
        }
        let shards = self.inner.shards.read();
        for (shard, requests) in by_shard {
            match shards.get(&shard) {
                Some(replica) => replica.submit(requests, replies),
                None => {
                    let refuse = |r: Request| (r.request_id, Err(self.not_here(&r)));
                    replies.send(requests.into_iter().map(refuse).collect());
                }
            }
        }
    }

    /// Why a shard's request can't be served here, and where it can.
    fn not_here(&self, request: &Request) -> Failure {
        let map = self.map();
        if let Some(shard) = map.shard(request.shard)
            && let Err(failure) = check_namespace(request, shard)
        {
            return failure;
        }
        if let Some(why) = self.inner.broken.lock().get(&request.shard) {
            let message = format!(
                "this node's replica of shard {} is out of order: {why}",
                request.shard
            );
            let failure = Failure::from(KvError::new(ErrorKind::Unavailable, message));
            let others = map.shard(request.shard);
            return failure.with_redirect(Redirect {
                shards: others.map(|shard| (**shard).clone()).into_iter().collect(),
                leader: None,
            });
        }
        match map.shard(request.shard) {
            Some(shard) if shard.replica_on(self.inner.identity.node).is_some() => {
                let message = format!("shard {} is being opened here", shard.id);
                let error = KvError::new(ErrorKind::Unavailable, message);
                error.with_retry_after(Duration::from_millis(100)).into()
            }
            Some(shard) => {
                let message = format!("this node does not hold shard {}", shard.id);
                let redirect = Redirect {
                    shards: vec![(**shard).clone()],
                    leader: None,
                };
                Failure::from(KvError::new(ErrorKind::NotLeader, message)).with_redirect(redirect)
            }
            None if map.namespace(request.namespace).is_none() => {
                let message = format!("there is no namespace {}", request.namespace);
                KvError::new(ErrorKind::UnknownNamespace, message).into()
            }
            None => {
                let message = format!("there is no shard {}: fetch the map", request.shard);
                KvError::new(ErrorKind::WrongEpoch, message).into()
            }
        }
    }

    /// Changes the cluster through the coordinator; answers the id that the command made or found.
    ///
    /// # Errors
    /// `NotLeader` with the leading node if this one can't; the command's own refusal.
    pub async fn coordinate(
        &self,
        command: ClusterCommand,
        timeout: Duration,
    ) -> std::result::Result<u64, Failure> {
        if let Some(why) = self.inner.env().jobs.fault() {
            return Err(panicked(why).into());
        }
        let group = self.inner.coordinator.read().clone();
        let Some(group) = group else {
            let nodes = self.map();
            let leader = nodes
                .shard(COORDINATOR_GROUP)
                .and_then(|s| s.replicas.first())
                .map(|r| r.node);
            return Err(elsewhere(leader));
        };
        match group.propose(command.encode(), timeout).await {
            Ok(proposed) => {
                let answer = coordinator::decode_answer(proposed.result)
                    .map_err(|e| KvError::new(ErrorKind::Internal, e.to_string()))?;
                Ok(answer?)
            }
            Err(quorate_replication::Error::NotLeader { leader }) => {
                Err(elsewhere(leader.map(|leader| leader.node)))
            }
            Err(error) => Err(KvError::from(error).into()),
        }
    }

    /// This node's replica of a group, for a simulation that changes members and asks for leaders.
    #[cfg(feature = "switches")]
    pub fn group(&self, group: GroupId) -> Option<Group> {
        self.inner.groups.group(group).ok()
    }

    /// Writes all memtables out, for a simulation that wants tables.
    ///
    /// # Errors
    /// Whatever keeps the engine from flushing.
    #[cfg(feature = "switches")]
    pub async fn flush(&self) -> Result<()> {
        let engine = Arc::clone(&self.inner.engine);
        crate::jobs::run(self.inner.env(), move || engine.flush()).await?;
        Ok(())
    }

    /// Hands a peer's message to its group. REQUIRES: called in the order in which messages of a
    /// class came from that peer.
    pub fn handle_peer(
        &self,
        from: NodeId,
        class: Class,
        group: GroupId,
        payload: Bytes,
    ) -> impl Future<Output = Bytes> + Send + 'static {
        self.inner.groups.handle(from, class, group, payload)
    }

    /// Told by who knows for sure that the process of a peer is dead: what it led elects another at once.
    pub fn peer_gone(&self, node: NodeId) {
        self.inner.groups.node_gone(node);
    }

    /// What this node has to tell the coordinator: of shards that it leads what their members have become, and of
    /// damaged replicas that they are to be made anew. To be asked again and again; what is to be sent again is
    /// in it again.
    pub fn unsettled(&self) -> Vec<ClusterCommand> {
        let unsettled = self.inner.unsettled.lock();
        let settle = |(shard, members): (&GroupId, &u64)| ClusterCommand::SettleMembers {
            shard: *shard,
            members: *members,
        };
        let settled: Vec<ClusterCommand> = unsettled.iter().map(settle).collect();
        drop(unsettled);
        settled
            .into_iter()
            .chain(repair::wishes(&self.inner))
            .collect()
    }

    /// Makes every replica of a shard hash its state at one index, which is returned. Only the
    /// leader can.
    pub async fn start_hash(
        &self,
        shard: GroupId,
        timeout: Duration,
    ) -> std::result::Result<u64, Failure> {
        let replica = self.replica(shard)?;
        let proposed = replica
            .group
            .propose(crate::command::hash_command(), timeout)
            .await;
        Ok(proposed.map_err(|error| replica.failure(error))?.index)
    }

    /// The hash of this node's replica at an index, once it is there.
    pub async fn state_hash(
        &self,
        shard: GroupId,
        index: u64,
        timeout: Duration,
    ) -> std::result::Result<crate::StateHash, Failure> {
        let replica = self.replica(shard)?;
        let found = replica.machine.hashes.wait(index, timeout).await;
        let error = match found {
            Ok(hash) => return Ok(hash),
            Err(NoHash::Failed(error)) => KvError::new(ErrorKind::Corruption, error),
            Err(NoHash::Skipped) => {
                let message = format!(
                    "the replica has no hash at index {index}: it took a later state whole; ask for a hash anew"
                );
                KvError::new(ErrorKind::Unavailable, message)
            }
            Err(NoHash::Late) => {
                let message = format!("no hash at index {index} within {timeout:?}");
                KvError::new(ErrorKind::DeadlineExceeded, message)
            }
        };
        Err(error.into())
    }

    fn replica(&self, shard: GroupId) -> std::result::Result<Arc<ShardReplica>, Failure> {
        let found = self.inner.shards.read().get(&shard).cloned();
        found.ok_or_else(|| {
            let message = format!("this node holds no replica of shard {shard}");
            KvError::new(ErrorKind::NotLeader, message).into()
        })
    }

    /// Stops: what was acknowledged is in the log, the rest is refused. Hands leadership on first,
    /// as far as that goes quickly.
    ///
    /// # Errors
    /// `Panicked` at once if a job did: then nothing is written any more, as in a crash.
    pub async fn shutdown(&self) -> Result<()> {
        let tasks: Vec<_> = self.inner.tasks.lock().drain(..).collect();
        for task in tasks {
            task.abort();
            // An aborted task ends with an error, which says so.
            let _ = task.await;
        }
        if let Some(why) = self.inner.env().jobs.fault() {
            return Err(Error::Panicked(why.to_owned()));
        }
        reconcile::hand_over(&self.inner).await;
        let stopped = self.inner.groups.shutdown().await;
        let engine = Arc::clone(&self.inner.engine);
        let closed = crate::jobs::run(&self.inner.context.env, move || engine.close()).await;
        self.inner.dir.release();
        stopped?;
        Ok(closed?)
    }
}

/// The error of everything after a job has panicked: final, for here it does not pass.
fn panicked(why: &str) -> KvError {
    let message =
        format!("nothing is served here since {why}; this is a bug: open the store again");
    KvError::new(ErrorKind::Internal, message)
}

fn elsewhere(leader: Option<NodeId>) -> Failure {
    let error = KvError::new(
        ErrorKind::NotLeader,
        "this node does not lead the coordinator",
    );
    let failure = Failure::from(error.with_retry_after(Duration::from_millis(100)));
    match leader {
        Some(_) => failure.with_redirect(Redirect {
            shards: Vec::new(),
            leader,
        }),
        None => failure,
    }
}

fn open_engine(config: &Config, dir: &DataDir) -> Result<Arc<Lsm>> {
    let mut options = config.engine.clone();
    options.keyspaces = keys::keyspaces();
    options.wal = false;
    let engine = Lsm::open_with_damage(&dir.env, &dir.path().join("engine"), options)?;
    // No read goes back in time yet: older versions are of no use to anybody.
    engine.set_watermark(keys::DATA, quorate_kv::VERSION_MAX)?;
    Ok(Arc::new(engine))
}

fn open_groups(
    config: &Config,
    dir: &DataDir,
    identity: Identity,
    (taints, map): (&TaintBook, &ShardMap),
    transport: Arc<dyn Transport>,
) -> Result<Groups> {
    let node = identity.node;
    let mut settings = quorate_replication::Config::new(node, dir.path().join("log"));
    settings.segment_bytes = config.log_segment_bytes;
    settings.timing = config.timing;
    settings.lease = config.lease;
    settings.quiet_after = config.quiet_after;
    settings.proposal_bytes_max = crate::command::command_bytes_max(&config.limits);
    let mut note = |damages: &[LogDamage]| {
        if map.cluster == 0 {
            // Nothing says which replicas it may be of.
            let whats: Vec<&str> = damages.iter().map(|damage| damage.what.as_str()).collect();
            return Err(whats.join("; "));
        }
        for damage in damages {
            repair::taint_for_log(taints, map, identity, damage);
        }
        taints.save(dir).map_err(|error| error.to_string())
    };
    let env = dir.env.clone();
    Ok(Groups::open_with_damage(
        settings, env, transport, &mut note,
    )?)
}

impl Inner {
    pub(crate) fn env(&self) -> &Env {
        &self.context.env
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("identity", &self.inner.identity)
            .finish_non_exhaustive()
    }
}

//! [`Client`]: the way into a cluster.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use quorate_kv::{Error, ErrorKind, Outcome, Result};
use quorate_sharding::{
    GroupId, NamespaceSpec, NodeId, NodeInfo, NodeStatus, ReplicaHash, ReplicaId, ShardMap, WriteId,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::budget::RetryBudget;
use crate::counters::Counts;
use crate::routes::{Routes, Target};
use crate::{ClientCounters, ClientOptions, NamespaceKv, Transport};

/// How long a map that was just fetched is taken to be the newest there is.
const MAP_FRESH_MS: u64 = 10;
/// The pause between rounds of asking all nodes.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause while the node that is doubted answers others.
const SLOW_PAUSE_MAX: Duration = Duration::from_millis(400);

/// A client of one cluster. Cheap to clone; all clones share connections and map.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// What all clones and namespaces of a client share.
pub struct Inner {
    /// How requests get to nodes.
    pub transport: Arc<dyn Transport>,
    /// The settings.
    pub options: ClientOptions,
    /// What is known of the cluster. Never held across an await.
    pub routes: RwLock<Routes>,
    /// What may be asked twice.
    pub budget: RetryBudget,
    /// What happened so far.
    pub counts: Counts,
    seeds: Vec<Arc<str>>,
    client_id: u64,
    sequence: AtomicU64,
    turn: AtomicUsize,
    /// When the map was last asked for; held while asking, so that one asks for all.
    refreshed: Mutex<Option<Instant>>,
    /// When all nodes were last asked what they lead; held while asking, so that one asks for all.
    leads_asked: Mutex<Option<Instant>>,
}

impl Client {
    /// Connects over gRPC by any nodes of the cluster (`host:port`).
    ///
    /// # Errors
    /// `Unavailable` if none of them answers within the default timeout.
    #[cfg(feature = "grpc")]
    pub async fn connect(seeds: &[String], options: ClientOptions) -> Result<Client> {
        let transport = Arc::new(crate::GrpcTransport::new(&options));
        Client::with_transport(transport, seeds, options).await
    }

    /// Connects over a given transport.
    ///
    /// # Errors
    /// `InvalidArgument` without seeds; what the last seed answered if none gives the map within
    /// the default timeout.
    pub async fn with_transport(
        transport: Arc<dyn Transport>,
        seeds: &[String],
        options: ClientOptions,
    ) -> Result<Client> {
        if seeds.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "no endpoint given: name at least one node as host:port",
            ));
        }
        let seeds: Vec<Arc<str>> = seeds.iter().map(|s| Arc::from(s.as_str())).collect();
        let random = RandomState::new().build_hasher().finish();
        let (map, leaders) = first_map(&*transport, &seeds, options.timeout).await?;
        let mut routes = Routes::new(map, &options);
        routes.update(None, &leaders);
        let inner = Inner {
            transport,
            routes: RwLock::new(routes),
            budget: RetryBudget::new(options.retry_percent, options.retry_burst),
            counts: Counts::default(),
            seeds,
            client_id: options.client_id.unwrap_or(random),
            sequence: AtomicU64::new(0),
            turn: AtomicUsize::new(random as usize % 1024),
            refreshed: Mutex::new(None),
            leads_asked: Mutex::new(None),
            options,
        };
        Ok(Client {
            inner: Arc::new(inner),
        })
    }

    /// A namespace by its name.
    ///
    /// # Errors
    /// `UnknownNamespace` if the cluster has none of that name.
    pub async fn namespace(&self, name: &str) -> Result<NamespaceKv> {
        for attempt in 0..2 {
            if attempt > 0 {
                self.inner.refresh().await;
            }
            let routes = self.inner.routes.read();
            if let Some(namespace) = routes.map().namespace_by_name(name) {
                let cluster = routes.map().cluster;
                return Ok(NamespaceKv::new(self.inner.clone(), cluster, namespace));
            }
        }
        Err(Error::new(
            ErrorKind::UnknownNamespace,
            format!("there is no namespace `{name}`: create it with `quorate namespace create`"),
        ))
    }

    /// What this client and its clones did about loaded nodes so far.
    pub fn counters(&self) -> ClientCounters {
        self.inner.counts.read()
    }

    /// The map as it is cached.
    pub fn map(&self) -> ShardMap {
        self.inner.routes.read().map().clone()
    }

    /// Fetches the map anew.
    pub async fn refresh(&self) {
        self.inner.refresh().await;
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`, or what kept the coordinator from it; after an unknown
    /// outcome look whether the namespace is there.
    pub async fn create_namespace(&self, spec: &NamespaceSpec) -> Result<()> {
        let deadline = Instant::now() + self.inner.options.timeout.max(Duration::from_secs(15));
        let transport = &self.inner.transport;
        let map = self
            .by_coordinator(deadline, |address, left| {
                transport.create_namespace(address, spec.clone(), left)
            })
            .await?;
        self.inner.routes.write().update(Some(map), &[]);
        Ok(())
    }

    /// Drops a namespace with all that is in it.
    ///
    /// # Errors
    /// `UnknownNamespace`, `Unsupported`, or what kept the coordinator from it.
    pub async fn drop_namespace(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + self.inner.options.timeout;
        let transport = &self.inner.transport;
        self.by_coordinator(deadline, |address, left| {
            transport.drop_namespace(address, name, left)
        })
        .await?;
        self.inner.refresh().await;
        Ok(())
    }

    /// Gives a shard a new replica on one node, takes that on another away, or both at once; gives the new replica's
    /// id, 0 if there is none. The group changes in the background: see [`Client::settled`].
    ///
    /// # Errors
    /// `InvalidArgument` if that makes no sense; `DeadlineExceeded` while an earlier change of the shard is under
    /// way, or what kept the coordinator from it. After an unknown outcome look at the map.
    pub async fn move_replica(
        &self,
        shard: GroupId,
        from: Option<NodeId>,
        to: Option<NodeId>,
    ) -> Result<ReplicaId> {
        let deadline = Instant::now() + self.inner.options.timeout;
        let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
        let transport = &self.inner.transport;
        let moved = self.by_coordinator(deadline, |address, left| {
            transport.move_replica(address, shard, from, to, left)
        });
        let (replica, map) = moved.await?;
        self.inner.routes.write().update(Some(map), &[]);
        Ok(replica)
    }

    /// Waits until the group of a shard has the replicas that the map names, and no others.
    ///
    /// # Errors
    /// `DeadlineExceeded`; the change goes on. `InvalidArgument` if there is no such shard.
    pub async fn settled(&self, shard: GroupId, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            self.inner.refresh().await;
            let known = self.inner.routes.read().map().shard(shard).cloned();
            let Some(known) = known else {
                let message = format!("there is no shard {shard}");
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            };
            if known.is_settled() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let message = format!(
                    "the replicas of shard {shard} are still being changed after {} s; that goes on by itself as \
                     soon as a majority of them and the new ones can be reached",
                    timeout.as_secs()
                );
                return Err(Error::new(ErrorKind::DeadlineExceeded, message));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Removes a node that holds no replica any more.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none such or it still holds something; what kept the coordinator from it.
    pub async fn remove_node(&self, node: NodeId) -> Result<()> {
        let deadline = Instant::now() + self.inner.options.timeout;
        let transport = &self.inner.transport;
        let removed = self.by_coordinator(deadline, |address, left| {
            transport.remove_node(address, node, left)
        });
        let map = removed.await?;
        self.inner.routes.write().update(Some(map), &[]);
        Ok(())
    }

    /// Asks all nodes in turn, the coordinator's first, until one answers something final.
    async fn by_coordinator<'a, T>(
        &'a self,
        deadline: Instant,
        ask: impl Fn(&str, Duration) -> quorate_kv::BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let mut last = Error::new(ErrorKind::Unavailable, "the map names no node");
        loop {
            for address in self.inner.addresses() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(last);
                }
                match ask(&address, left).await {
                    Err(error) if error.is_safe_to_retry() => last = error,
                    done => return done,
                }
            }
            self.inner.refresh().await;
            tokio::time::sleep_until(deadline.min(Instant::now() + ROUND_PAUSE)).await;
        }
    }

    /// The state of every node, in the order of their ids; of one that does not answer, why.
    pub async fn status(&self) -> Vec<(NodeInfo, Result<NodeStatus>)> {
        self.inner.refresh().await;
        let nodes: Vec<NodeInfo> = self.map().nodes.into_values().collect();
        let asked = nodes.into_iter().map(|node| async move {
            let state = self.inner.transport.status(&node.address).await;
            (node, state)
        });
        futures_util::future::join_all(asked).await
    }

    /// The hashes of a shard's replicas, all at one index. Equal hashes: the replicas agree.
    ///
    /// # Errors
    /// When no leader takes the hash command. A replica that does not answer is an error of its own.
    pub async fn replica_hashes(&self, shard: GroupId) -> Result<Vec<Result<ReplicaHash>>> {
        let timeout = self.inner.options.timeout.max(Duration::from_secs(30));
        let deadline = Instant::now() + timeout;
        let first = self.hash_at_leader(shard, deadline).await?;
        let nodes: Vec<u64> = match self.map().shard(shard) {
            Some(shard) => shard.replicas.iter().map(|r| r.node).collect(),
            None => Vec::new(),
        };
        let asked = nodes.into_iter().map(|node| async move {
            if node == first.node {
                return Ok(first);
            }
            let address = self.inner.routes.read().address(node).cloned();
            let Some(address) = address else {
                let message = format!("the map does not know node {node}");
                return Err(Error::new(ErrorKind::Unavailable, message));
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let transport = &self.inner.transport;
            let hash = transport.replica_hash(&address, shard, first.index, left);
            hash.await
        });
        Ok(futures_util::future::join_all(asked).await)
    }

    async fn hash_at_leader(&self, shard: GroupId, deadline: Instant) -> Result<ReplicaHash> {
        let mut last = Error::new(
            ErrorKind::InvalidArgument,
            format!("there is no shard {shard}"),
        );
        loop {
            let Some(known) = self.map().shard(shard).cloned() else {
                return Err(last);
            };
            for replica in &known.replicas {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(last);
                }
                let address = self.inner.routes.read().address(replica.node).cloned();
                let Some(address) = address else { continue };
                let hash = self.inner.transport.replica_hash(&address, shard, 0, left);
                match hash.await {
                    // A hash command changes nothing, so even an unknown outcome may be repeated.
                    Err(error) if error.kind().is_retryable() => last = error,
                    done => return done,
                }
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + ROUND_PAUSE)).await;
        }
    }
}

impl Inner {
    /// The name of the next write.
    pub fn next_write(&self) -> WriteId {
        WriteId {
            client: self.client_id,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// Where the next read that may go anywhere begins with the replicas.
    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The nodes of the map, then the seeds.
    fn addresses(&self) -> Vec<Arc<str>> {
        let mut all = self.routes.read().all_addresses();
        for seed in &self.seeds {
            if !all.contains(seed) {
                all.push(seed.clone());
            }
        }
        all
    }

    /// Asks for a newer map, node by node until one answers; many callers share one asking.
    pub async fn refresh(&self) {
        let asked_at = Instant::now();
        let mut refreshed = self.refreshed.lock().await;
        let fresh = Duration::from_millis(MAP_FRESH_MS);
        if refreshed.is_some_and(|at| at + fresh > asked_at) {
            return;
        }
        let known = self.routes.read().map().version;
        let mut addresses = self.addresses();
        // Another node each time: one may be behind, or hang.
        let first = self.next_turn() % addresses.len().max(1);
        addresses.rotate_left(first);
        for address in addresses {
            let asked = self.transport.map(&address, known);
            let answer = tokio::time::timeout(self.options.connect_timeout, asked).await;
            if let Ok(Ok(update)) = answer {
                self.routes.write().update(update.map, &update.leaders);
                break;
            }
        }
        *refreshed = Some(Instant::now());
    }

    /// Waits until another node than this target says that it leads the target's shard. Asks less often of a node
    /// that is slow, not silent: under load that is so of thousands of operations.
    pub async fn led_elsewhere(&self, target: &Target) {
        let mut pause = ROUND_PAUSE;
        loop {
            self.ask_leads(target.node).await;
            let leader = self.routes.read().leader(target.shard.id);
            if leader.is_some_and(|leader| leader != target.node) {
                return;
            }
            tokio::time::sleep(pause).await;
            if !target.window.is_silent() {
                pause = (pause * 2).min(SLOW_PAUSE_MAX);
            }
        }
    }

    /// Asks all nodes but the silent one what they lead themselves; many callers share one asking. What a node
    /// says of others may be old.
    async fn ask_leads(&self, silent: NodeId) {
        let asked_at = Instant::now();
        let mut last = self.leads_asked.lock().await;
        if last.is_some_and(|at| at + ROUND_PAUSE > asked_at) {
            return;
        }
        let (known, nodes) = {
            let routes = self.routes.read();
            let nodes: Vec<NodeInfo> = routes.map().nodes.values().cloned().collect();
            (routes.map().version, nodes)
        };
        let others = nodes.into_iter().filter(|node| node.id != silent);
        let asked = others.map(|node| async move {
            let answer = self.transport.map(&node.address, known);
            let update = tokio::time::timeout(ROUND_PAUSE, answer).await.ok()?.ok()?;
            let own = update
                .leaders
                .into_iter()
                .filter(|(_, leader)| *leader == node.id);
            self.routes
                .write()
                .update(update.map, &own.collect::<Vec<_>>());
            Some(())
        });
        futures_util::future::join_all(asked).await;
        *last = Some(Instant::now());
    }
}

/// Asks the seeds for the map until one has it.
async fn first_map(
    transport: &dyn Transport,
    seeds: &[Arc<str>],
    timeout: Duration,
) -> Result<(ShardMap, Vec<(GroupId, u64)>)> {
    let deadline = Instant::now() + timeout;
    let mut last = Error::new(ErrorKind::Unavailable, "no node answered");
    loop {
        for seed in seeds {
            match tokio::time::timeout_at(deadline, transport.map(seed, 0)).await {
                Ok(Ok(update)) => {
                    if let Some(map) = update.map {
                        return Ok((map, update.leaders));
                    }
                }
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        if Instant::now() >= deadline || !last.kind().is_retryable() {
            let message = format!(
                "could not reach the cluster at {}: {last}",
                seeds.join(", ")
            );
            return Err(Error::new(last.kind(), message).with_outcome(Outcome::NotApplied));
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

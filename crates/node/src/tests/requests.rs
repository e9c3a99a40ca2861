//! Three nodes in one process, and requests to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_env::sim::SimDisk;
use quorate_env::{Env, Event, Job, JobClass, Jobs, Random, RealClock, ThreadJobs};
use quorate_kv::{Condition, Domain, Entry, ErrorKind, ReadLevel, Token};
use quorate_replication::Timing;
use quorate_replication::testing::MemoryNetwork;
use quorate_sharding::{
    Answer, COORDINATOR_GROUP, Encoding, Failure, GroupId, NamespaceId, NamespaceKind,
    NamespaceSpec, NodeId, Operation, Request, Response, RoutingPrefix, Shard, WriteId,
};

use crate::{ClusterCommand, Config, DataDir, Node, Replies, StateHash};

pub(super) const SOON: Duration = Duration::from_secs(40);
const CLUSTER: u128 = 77;

pub(super) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Waits until `ready` gives something, looking often; fails the test after a while.
pub(super) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ready: impl FnMut() -> F,
) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = ready().await {
            return found;
        }
        assert!(Instant::now() < end, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What goes wrong with jobs.
#[derive(Default)]
struct JobFaults {
    /// The nodes whose next job of applying is to be dropped unrun.
    drops: Mutex<BTreeSet<NodeId>>,
    /// Jobs that wait, of the nodes and classes whose jobs have to.
    held: Mutex<BTreeMap<(NodeId, JobClass), Vec<Job>>>,
}

type Drops = Arc<JobFaults>;

/// The jobs of a node, of which some are dropped or held back.
struct FaultyJobs {
    jobs: ThreadJobs,
    node: NodeId,
    drops: Drops,
}

impl Jobs for FaultyJobs {
    fn spawn(&self, class: JobClass, job: Job) {
        if class == JobClass::Apply && self.drops.drops.lock().remove(&self.node) {
            return;
        }
        match self.drops.held.lock().get_mut(&(self.node, class)) {
            Some(held) => held.push(job),
            None => self.jobs.spawn(class, job),
        }
    }

    fn wait(
        &self,
        event: &Event,
        ready: &mut dyn FnMut() -> bool,
        timeout: Option<Duration>,
    ) -> bool {
        self.jobs.wait(event, ready, timeout)
    }

    fn fault(&self) -> Option<&str> {
        self.jobs.fault()
    }
}

fn env(disk: &SimDisk, node: NodeId, drops: &Drops) -> Env {
    let jobs = FaultyJobs {
        jobs: ThreadJobs::new(1),
        node,
        drops: Arc::clone(drops),
    };
    Env {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(RealClock::new()),
        jobs: Arc::new(jobs),
        random: Random::from_seed(node),
    }
}

fn address(node: NodeId) -> String {
    format!("node-{node}:7000")
}

fn config(node: NodeId) -> Config {
    let mut config = Config::new(address(node));
    config.engine.memtable_bytes = 1 << 20;
    // What is damaged is to be found by reading.
    config.engine.cache_bytes = 0;
    config.log_segment_bytes = 16 << 20;
    // A busy machine lets a thread wait for hundreds of milliseconds; no leader is to lose its place
    // by that alone.
    config.timing = Timing {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(1000),
        election_max: Duration::from_millis(2000),
        silence_min: Duration::ZERO,
    };
    config
}

/// Takes a data directory; a node that was stopped lets go of it soon.
async fn data_dir(disk: &SimDisk, node: NodeId, drops: &Drops) -> DataDir {
    until("the data directory", || async {
        DataDir::open(Path::new("/data"), env(disk, node, drops)).ok()
    })
    .await
}

pub(super) struct Cluster {
    pub network: MemoryNetwork,
    pub nodes: BTreeMap<NodeId, Node>,
    pub disks: BTreeMap<NodeId, SimDisk>,
    drops: Drops,
}

impl Cluster {
    /// Three nodes that are one cluster; all hold the coordinator.
    pub(super) async fn of_three() -> Cluster {
        let mut cluster = Cluster {
            network: MemoryNetwork::new(1),
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            drops: Drops::default(),
        };
        let disk = SimDisk::new(Random::from_seed(1));
        let mut dir = data_dir(&disk, 1, &cluster.drops).await;
        dir.become_node(CLUSTER, 1, true).expect("becomes a node");
        cluster.open(1, dir, disk);
        for id in 2..=3 {
            let disk = SimDisk::new(Random::from_seed(id));
            let mut dir = data_dir(&disk, id, &cluster.drops).await;
            let join = ClusterCommand::Join {
                address: address(id),
                data_id: dir.data_id(),
            };
            let given = cluster.coordinate(join).await.expect("joins");
            assert_eq!(given, id);
            dir.become_node(CLUSTER, id, false).expect("becomes a node");
            cluster.open(id, dir, disk);
        }
        until("the coordinator to grow", || async {
            cluster.serve().await;
            let grown = cluster.nodes.values().all(|node| {
                let map = node.map();
                let shard = map.shard(COORDINATOR_GROUP);
                shard.is_some_and(|s| s.replicas.len() == 3 && s.is_settled())
                    && node.inner.coordinator.read().is_some()
            });
            grown.then_some(())
        })
        .await;
        cluster
    }

    pub(super) fn open(&mut self, id: NodeId, dir: DataDir, disk: SimDisk) {
        let transport = self.network.transport(id);
        let node = Node::open(config(id), dir, transport).expect("the node opens");
        self.network.join(id, node.inner.groups.clone());
        self.nodes.insert(id, node);
        self.disks.insert(id, disk);
    }

    /// Lets the next call that applies something on a node be dropped.
    pub(super) fn drop_next_apply(&self, id: NodeId) {
        self.drops.drops.lock().insert(id);
    }

    /// Holds back all jobs of a class on a node, until they are released.
    pub(super) fn hold_jobs(&self, id: NodeId, class: JobClass) {
        self.drops.held.lock().insert((id, class), Vec::new());
    }

    /// Runs what was held back, in order.
    pub(super) fn release_jobs(&self, id: NodeId, class: JobClass) {
        let held = self.drops.held.lock().remove(&(id, class));
        let env = self.nodes[&id].inner.env();
        for job in held.expect("held before") {
            env.jobs.spawn(class, job);
        }
    }

    /// Stops a node as an operator would; its disk is left.
    pub(super) async fn stop(&mut self, id: NodeId) -> SimDisk {
        let node = self.nodes.remove(&id).expect("a node");
        node.shutdown().await.expect("stops");
        self.network.leave(id);
        self.disks.remove(&id).expect("a disk")
    }

    /// Pulls the plug of a node; returns its disk with what was synced.
    pub(super) async fn crash(&mut self, id: NodeId) -> SimDisk {
        let node = self.nodes.remove(&id).expect("a node");
        self.network.leave(id);
        let disk = self.disks.remove(&id).expect("a disk").crash();
        let _ = node.shutdown().await;
        disk
    }

    pub(super) async fn restart(&mut self, id: NodeId, disk: SimDisk) {
        let dir = data_dir(&disk, id, &self.drops).await;
        self.open(id, dir, disk);
    }

    /// Tells every node the newest map, as the servers do.
    pub(super) fn spread(&self) {
        let maps = self.nodes.values().map(Node::map);
        let Some(newest) = maps.max_by_key(|map| map.version) else {
            return;
        };
        for node in self.nodes.values() {
            node.adopt_map((*newest).clone());
        }
    }

    /// What servers do: tells the coordinator what nodes have to say, and everybody of the map.
    pub(super) async fn serve(&self) {
        self.spread();
        for command in self.nodes.values().flat_map(Node::unsettled) {
            for other in self.nodes.values() {
                // One that has just lost its place never answers.
                let brief = Duration::from_millis(500);
                if other.coordinate(command.clone(), brief).await.is_ok() {
                    break;
                }
            }
        }
        self.spread();
    }

    /// Has whoever leads the coordinator do it.
    pub(super) async fn coordinate(&self, command: ClusterCommand) -> Result<u64, Failure> {
        until("the coordinator", || async {
            self.spread();
            for node in self.nodes.values() {
                match node.coordinate(command.clone(), SOON).await {
                    Err(e) if e.error.is_safe_to_retry() => {}
                    other => return Some(other),
                }
            }
            None
        })
        .await
    }

    /// A namespace of one shard with a replica on each node, which can be written to.
    pub(super) async fn namespace(&self, name: &str, kind: NamespaceKind) -> Shard {
        let spec = NamespaceSpec {
            name: name.into(),
            kind,
            shards: 1,
            replicas: 3,
            splits: Vec::new(),
        };
        let create = ClusterCommand::CreateNamespace(spec);
        let id = self.coordinate(create).await.expect("creates") as NamespaceId;
        let shard = until("the shard's map", || async {
            self.spread();
            let map = self.nodes.values().next()?.map();
            map.shards_of(id).first().map(|shard| (**shard).clone())
        })
        .await;
        until("the replicas", || async {
            self.spread();
            let open = |node: &Node| node.inner.shards.read().contains_key(&shard.id);
            self.nodes.values().all(open).then_some(())
        })
        .await;
        self.leader(shard.id).await;
        shard
    }

    /// Who leads a shard, in the eyes of all nodes.
    pub(super) async fn leader(&self, shard: GroupId) -> NodeId {
        until("a leader", || async {
            let mut leaders = self.nodes.values().map(|node| {
                let group = node.inner.groups.group(shard).ok()?;
                Some(group.leader()?.node)
            });
            let first = leaders.next()??;
            let group = self.nodes.get(&first)?.inner.groups.group(shard).ok()?;
            let agreed = group.is_leader() && leaders.all(|leader| leader == Some(first));
            agreed.then_some(first)
        })
        .await
    }

    pub(super) async fn follower(&self, shard: GroupId) -> NodeId {
        let leader = self.leader(shard).await;
        let mut others = self.nodes.keys().filter(|id| **id != leader);
        *others.next().expect("a follower")
    }

    /// Sends requests to a node and gathers what comes back, in the order of the requests; fails
    /// unless each has exactly one answer.
    pub(super) async fn execute(&self, node: NodeId, requests: Vec<Request>) -> Vec<Response> {
        let ids: Vec<u64> = requests.iter().map(|request| request.request_id).collect();
        let (replies, mut answers) = Replies::channel();
        self.nodes[&node].execute(requests, &replies);
        drop(replies);
        let mut found: HashMap<u64, Response> = HashMap::new();
        let gather = async {
            // Ends when nobody is left who could answer.
            while let Some(batch) = answers.recv().await {
                for (id, response) in batch {
                    assert!(found.insert(id, response).is_none(), "{id} answered twice");
                }
            }
        };
        let gathered = tokio::time::timeout(2 * SOON, gather).await;
        gathered.expect("all requests are answered in time");
        assert_eq!(found.len(), ids.len(), "a request without an answer");
        ids.iter()
            .map(|id| found.remove(id).expect("an answer"))
            .collect()
    }

    pub(super) async fn call(&self, node: NodeId, shard: &Shard, operation: Operation) -> Response {
        let mut answers = self.execute(node, vec![request(1, shard, operation)]).await;
        answers.remove(0)
    }

    /// What a node answers once it does not refuse for want of a leader, which may just change.
    pub(super) async fn answered(
        &self,
        node: NodeId,
        shard: &Shard,
        operation: Operation,
    ) -> Response {
        until("an answer", || async {
            match self.call(node, shard, operation.clone()).await {
                Err(e) if e.error.is_safe_to_retry() => None,
                answer => Some(answer),
            }
        })
        .await
    }

    /// Writes where the leader is, for as long as it is surely not done.
    pub(super) async fn write(&self, shard: &Shard, operation: Operation) -> Answer {
        until("a write", || async {
            let leader = self.leader(shard.id).await;
            match self.call(leader, shard, operation.clone()).await {
                Err(e) if e.error.is_safe_to_retry() => None,
                other => Some(other.expect("the write is done")),
            }
        })
        .await
    }

    pub(super) async fn put(&self, shard: &Shard, key: &str, value: &str) -> u64 {
        match self.write(shard, put(key, value)).await {
            Answer::Written {
                applied: true,
                version,
                ..
            } => version,
            other => panic!("{other:?}"),
        }
    }

    /// The hashes of all replicas at one index.
    pub(super) async fn hashes(&self, shard: GroupId) -> Vec<StateHash> {
        until("all replicas hash the same state", || async {
            let leader = self.leader(shard).await;
            let index = self.nodes[&leader].start_hash(shard, SOON).await.ok()?;
            let mut hashes = Vec::new();
            for node in self.nodes.values() {
                match node.state_hash(shard, index, SOON).await {
                    Ok(hash) => hashes.push(hash),
                    // A snapshot came in between.
                    Err(error) if error.error.kind() == ErrorKind::Unavailable => return None,
                    Err(error) => panic!("the replica does not hash its state: {error:?}"),
                }
            }
            Some(hashes)
        })
        .await
    }

    pub(super) async fn assert_replicas_agree(&self, shard: GroupId) -> StateHash {
        let hashes = self.hashes(shard).await;
        assert!(hashes.windows(2).all(|w| w[0] == w[1]), "{hashes:?}");
        hashes[0]
    }
}

pub(super) fn hashed() -> NamespaceKind {
    NamespaceKind::Wide {
        encoding: Encoding::Hashed {
            prefix: RoutingPrefix::WholeKey,
        },
    }
}

pub(super) fn request(request_id: u64, shard: &Shard, operation: Operation) -> Request {
    Request {
        request_id,
        namespace: shard.namespace,
        shard: shard.id,
        epoch: shard.epoch,
        write_id: WriteId {
            client: 1,
            sequence: request_id,
        },
        timeout: SOON,
        trace: None,
        operation,
    }
}

pub(super) fn put(key: &str, value: &str) -> Operation {
    Operation::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        condition: Condition::None,
    }
}

pub(super) fn get(key: &str, level: ReadLevel) -> Operation {
    Operation::Get {
        key: Bytes::copy_from_slice(key.as_bytes()),
        level,
    }
}

pub(super) fn scan(level: ReadLevel) -> Operation {
    Operation::Scan {
        start: Bytes::new(),
        end: Bytes::new(),
        limit: 1000,
        limit_bytes: 1 << 20,
        reverse: false,
        level,
    }
}

pub(super) fn at_least(shard: &Shard, version: u64) -> ReadLevel {
    let domain = Domain {
        cluster: CLUSTER,
        namespace: shard.namespace,
        incarnation: 0,
    };
    ReadLevel::AtLeast(Token { domain, version })
}

pub(super) fn entry(response: Response) -> Option<Entry> {
    match response.expect("the read is answered") {
        Answer::Entry(entry) => entry,
        other => panic!("{other:?}"),
    }
}

pub(super) fn value(response: Response) -> Option<Bytes> {
    entry(response).map(|entry| entry.value)
}

pub(super) fn kind(response: &Response) -> ErrorKind {
    response.as_ref().expect_err("is refused").error.kind()
}

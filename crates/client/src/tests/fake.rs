//! A cluster without network: one map of truth, one store, leaders, and faults on demand.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kv::memory::MemoryKv;
use quorate_kv::{
    Batch, BoxFuture, Compare, Delete, Domain, Entry, Error, ErrorKind, Get, Kv, Mutation, Op,
    OpResult, Outcome, Put, Result, Scan, ScanOrder,
};
use quorate_sharding::{
    Answer, Encoding, Failure, GroupId, NamespaceKind, NamespaceSpec, NodeId, NodeStatus,
    Operation, Redirect, ReplicaHash, Request, Response, Shard, ShardMap,
};

use crate::{MapUpdate, Reply, Transport};

/// What happens to the next request.
pub enum Fault {
    /// It is refused with this.
    Fail(Failure),
    /// It is done, but its reply is lost with the connection.
    LoseReply,
    /// It is not done, and its reply is lost with the connection.
    LoseRequest,
    /// It is done, and never answered.
    Silence,
}

/// A cluster of nodes `n1:1`, `n2:1`, … that share one store.
pub struct Fake {
    pub state: Mutex<State>,
}

pub struct State {
    pub map: ShardMap,
    pub leaders: HashMap<GroupId, NodeId>,
    /// Who all nodes that answer say leads.
    pub believed: HashMap<GroupId, NodeId>,
    pub down: HashSet<NodeId>,
    pub faults: VecDeque<Fault>,
    /// Node and shard of every request that reached a node that is up.
    pub seen: Vec<(NodeId, GroupId)>,
    /// Replies that are never given.
    kept: Vec<Reply>,
    stores: HashMap<u32, Arc<MemoryKv>>,
}

impl Fake {
    /// A cluster with one namespace `ns` of `shards` shards and three replicas each.
    pub fn new(nodes: usize, encoding: Encoding, shards: u32) -> Arc<Fake> {
        let mut map = ShardMap::new(9);
        for i in 1..=nodes {
            map.register_node(&format!("n{i}:1"), Default::default());
        }
        let mut state = State {
            map,
            leaders: HashMap::new(),
            believed: HashMap::new(),
            down: HashSet::new(),
            faults: VecDeque::new(),
            seen: Vec::new(),
            kept: Vec::new(),
            stores: HashMap::new(),
        };
        let spec = NamespaceSpec {
            name: "ns".into(),
            kind: NamespaceKind::Wide { encoding },
            shards,
            replicas: nodes.min(3) as u32,
            splits: Vec::new(),
        };
        state.create(&spec).unwrap();
        Arc::new(Fake {
            state: Mutex::new(state),
        })
    }

    /// Lets the next request meet this fault.
    pub fn fault(&self, fault: Fault) {
        self.state.lock().faults.push_back(fault);
    }

    /// Answers a request as the node at `address`.
    pub fn answer(&self, address: &str, request: Request, reply: Reply) {
        let state = self.state.lock();
        let node = state.map.nodes.values().find(|n| n.address == address);
        let node = node.map_or(0, |n| n.id);
        drop(state);
        self.answer_as(node, request, reply);
    }

    /// Answers a request as a node.
    pub fn answer_as(&self, node: NodeId, request: Request, reply: Reply) {
        let mut state = self.state.lock();
        if node == 0 || state.down.contains(&node) {
            let error = Error::new(ErrorKind::Unavailable, format!("node {node} is down"));
            let _ = reply.send(Err(error.into()));
            return;
        }
        state.seen.push((node, request.shard));
        match state.faults.pop_front() {
            Some(Fault::Fail(failure)) => drop(reply.send(Err(failure))),
            Some(Fault::LoseRequest) => drop(reply),
            Some(Fault::LoseReply) => {
                state.respond(node, request).unwrap();
            }
            Some(Fault::Silence) => {
                let _ = state.respond(node, request);
                state.kept.push(reply);
            }
            None => drop(reply.send(state.respond(node, request))),
        }
    }
}

impl State {
    /// Creates a namespace with its store.
    pub fn create(&mut self, spec: &NamespaceSpec) -> Result<()> {
        let id = self.map.create_namespace(spec)?;
        let domain = Domain {
            cluster: self.map.cluster,
            namespace: id,
            incarnation: 0,
        };
        self.stores.insert(id, Arc::new(MemoryKv::new(domain)));
        for shard in self.map.shards_of(id) {
            self.leaders.insert(shard.id, shard.replicas[0].node);
        }
        Ok(())
    }

    /// The store that is under a namespace, its keys encoded.
    pub fn store(&self, namespace: u32) -> Arc<MemoryKv> {
        self.stores[&namespace].clone()
    }

    fn respond(&mut self, node: NodeId, request: Request) -> Response {
        let Some(namespace) = self.map.namespace(request.namespace) else {
            return Err(Error::new(ErrorKind::UnknownNamespace, "no such namespace").into());
        };
        let encoding = namespace.kind.encoding();
        let current = self.map.shard(request.shard).cloned();
        let Some(shard) = current.filter(|s| s.epoch.range == request.epoch.range) else {
            let now = self.map.shards_of(request.namespace);
            let shards: Vec<Shard> = now.iter().map(|s| Shard::clone(s)).collect();
            let failure = Failure::from(Error::new(ErrorKind::WrongEpoch, "the shard changed"));
            return Err(failure.with_redirect(Redirect {
                shards,
                leader: None,
            }));
        };
        let leader = self.leaders.get(&shard.id).copied();
        if request.operation.is_write() && leader != Some(node) {
            let failure = Failure::from(Error::new(ErrorKind::NotLeader, "not the leader"));
            return Err(failure.with_redirect(Redirect {
                shards: Vec::new(),
                leader,
            }));
        }
        let store = self.store(request.namespace);
        done(execute(&store, encoding, &shard, request.operation)).map_err(Failure::from)
    }
}

async fn execute(
    store: &MemoryKv,
    encoding: Encoding,
    shard: &Shard,
    operation: Operation,
) -> Result<Answer> {
    let encode = |key: &Bytes| {
        let encoded = encoding.encode_bytes(key);
        assert!(
            key.is_empty() || shard.contains(&encoded),
            "sent to the right shard"
        );
        encoded
    };
    let mutation = |m: Mutation| match m {
        Mutation::Put { key, value } => Mutation::put(encode(&key), value),
        other => Mutation::delete(encode(other.key())),
    };
    let op = |op: Op| match op {
        Op::Mutate(m) => Op::Mutate(mutation(m)),
        other => Op::Get {
            key: encode(other.key()),
        },
    };
    let plain = |entry: Entry| Entry {
        key: encoding.decode(&entry.key).unwrap(),
        ..entry
    };
    Ok(match operation {
        Operation::Get { key, level } => {
            let entry = store.get(Get::new(encode(&key)).level(level)).await?;
            Answer::Entry(entry.map(plain))
        }
        Operation::Put {
            key,
            value,
            condition,
        } => written(
            store
                .put(Put::new(encode(&key), value).when(condition))
                .await?,
        ),
        Operation::Delete { key, condition } => written(
            store
                .delete(Delete::new(encode(&key)).when(condition))
                .await?,
        ),
        Operation::Batch { mutations } => {
            let batch = Batch::new(mutations.into_iter().map(mutation).collect());
            Answer::Batch {
                version: store.batch(batch).await?.version,
            }
        }
        Operation::Compare {
            conditions,
            then_ops,
            else_ops,
        } => {
            let mut compare = Compare::new();
            compare.conditions = conditions
                .into_iter()
                .map(|(k, c)| (encode(&k), c))
                .collect();
            compare.then_ops = then_ops.into_iter().map(op).collect();
            compare.else_ops = else_ops.into_iter().map(op).collect();
            let found = store.compare(compare).await?;
            let result = |r| match r {
                OpResult::Entry(entry) => OpResult::Entry(entry.map(plain)),
                other => other,
            };
            Answer::Compare {
                succeeded: found.succeeded,
                results: found.results.into_iter().map(result).collect(),
                version: found.version,
            }
        }
        Operation::Scan {
            start,
            end,
            limit,
            reverse,
            level,
            ..
        } => {
            assert!(start >= shard.start, "a scan keeps to its shard");
            assert!(shard.end.is_empty() || (!end.is_empty() && end <= shard.end));
            let order = if reverse {
                ScanOrder::KeyReverse
            } else {
                ScanOrder::Key
            };
            let scan = Scan::range(start, end).order(order).level(level);
            let page = store.scan(scan.limit(limit as usize)).await?;
            Answer::Scan {
                more: page.next.is_some(),
                last: page.entries.last().map(|e| e.key.clone()),
                entries: page.entries.into_iter().map(plain).collect(),
            }
        }
    })
}

fn written(written: quorate_kv::Written) -> Answer {
    Answer::Written {
        applied: written.applied,
        version: written.version,
        group_version: written.token.version,
    }
}

/// The result of a future that never waits.
pub fn done<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the memory store never waits"),
    }
}

/// The fake as a transport; `Arc` so that tests keep a hand on it.
pub struct FakeTransport(pub Arc<Fake>);

impl FakeTransport {
    fn node(&self, address: &str) -> Result<NodeId> {
        let state = self.0.state.lock();
        let node = state.map.nodes.values().find(|n| n.address == address);
        node.map(|n| n.id)
            .filter(|n| !state.down.contains(n))
            .ok_or_else(|| Error::new(ErrorKind::Unavailable, "down"))
    }
}

impl Transport for FakeTransport {
    fn send(&self, address: &str, request: Request, reply: Reply) {
        self.0.answer(address, request, reply);
    }

    fn map(&self, address: &str, known_version: u64) -> BoxFuture<'_, Result<MapUpdate>> {
        let node = self.node(address);
        Box::pin(async move {
            node?;
            let state = self.0.state.lock();
            let newer = state.map.version > known_version;
            let believed = state.believed.iter();
            Ok(MapUpdate {
                map: newer.then(|| state.map.clone()),
                leaders: believed.map(|(shard, leader)| (*shard, *leader)).collect(),
            })
        })
    }

    fn create_namespace(
        &self,
        address: &str,
        spec: NamespaceSpec,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<ShardMap>> {
        let node = self.node(address);
        Box::pin(async move {
            node?;
            let mut state = self.0.state.lock();
            state.create(&spec)?;
            Ok(state.map.clone())
        })
    }

    fn drop_namespace(
        &self,
        _address: &str,
        _name: &str,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "not here")) })
    }

    fn status(&self, address: &str) -> BoxFuture<'_, Result<NodeStatus>> {
        let node = self.node(address);
        Box::pin(async move {
            Ok(NodeStatus {
                node: node?,
                ..NodeStatus::default()
            })
        })
    }

    fn replica_hash(
        &self,
        address: &str,
        shard: GroupId,
        index: u64,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<ReplicaHash>> {
        let node = self.node(address);
        Box::pin(async move {
            let node = node?;
            let leader = self.0.state.lock().leaders.get(&shard).copied();
            if index == 0 && leader != Some(node) {
                return Err(Error::new(ErrorKind::NotLeader, "not the leader"));
            }
            Ok(ReplicaHash {
                shard,
                node,
                index: index.max(1),
                ..ReplicaHash::default()
            })
        })
    }
}

/// An error of this kind after which nothing was applied.
pub fn refusal(kind: ErrorKind) -> Fault {
    Fault::Fail(Error::new(kind, "on demand").into())
}

/// An error of this kind after which the outcome is not known.
pub fn doubt(kind: ErrorKind) -> Fault {
    let error = Error::new(kind, "on demand").with_outcome(Outcome::Unknown);
    Fault::Fail(error.into())
}

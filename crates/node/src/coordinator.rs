//! The coordinator: a Raft group whose state is the shard map.
//!
//! It gives out ids, registers nodes, creates namespaces and places their shards. It holds no data
//! of users and is asked only when the map changes or a cache of it is old.
//!
//! ```text
//! state   = format u8 (1), (node u64, data id u64)*, map
//! command = format u8 (1), kind u8, fields       answer = 0, u64   or   1, error code u32, text
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kv::ErrorKind;
use quorate_replication::{
    Applied, Command as Committed, CommandBody, SnapshotSink, SnapshotSource, StateMachine,
};
use quorate_sharding::{
    COORDINATOR_GROUP, GroupId, Namespace, NamespaceSpec, NodeId, Replica, ReplicaId,
    SYSTEM_NAMESPACE, ShardMap,
};
use quorate_storage::{Batch, Engine, Lsm, ReadAt, WriteOptions};
use tokio::sync::watch;

use crate::apply::Position;
use crate::codec::{Damaged, Reader, put_bytes, put_list, put_u32, put_u64};
use crate::flushed::FlushTracker;
use crate::keys::{GroupField, META, group_key};
use crate::machine::{claim, engine_error, invalid};

const FORMAT: u8 = 1;

/// A change of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterCommand {
    /// The first command: the cluster with its first node, which holds the coordinator.
    Found {
        /// The cluster's id.
        cluster: u128,
        /// Where the first node is reached.
        address: String,
        /// The id of its data directory.
        data_id: u64,
    },
    /// A node joins, or comes back; answers its id.
    Join {
        /// Where it is reached.
        address: String,
        /// The id of its data directory.
        data_id: u64,
    },
    /// Creates a namespace; answers its id.
    CreateNamespace(NamespaceSpec),
    /// Gives the coordinator's group one more replica, on this node; answers the replica's id.
    GrowCoordinator {
        /// Where.
        node: NodeId,
    },
    /// Gives a shard a new replica on one node, takes that on another away, or both; answers the new replica's id.
    MoveReplica {
        /// The shard.
        shard: GroupId,
        /// Whose replica goes; 0: none.
        from: NodeId,
        /// Who gets one; 0: nobody.
        to: NodeId,
    },
    /// The group of a shard has taken on the members of this version; answers 1 if that was news.
    SettleMembers {
        /// The shard.
        shard: GroupId,
        /// The members version.
        members: u64,
    },
    /// Takes a replica away that was found damaged, so that its node can make it anew; answers 1 if that was news.
    WithdrawReplica {
        /// The shard.
        shard: GroupId,
        /// Which replica.
        replica: ReplicaId,
        /// Whether it need not wait until no other shard's members change.
        beside: bool,
    },
    /// Removes a node that holds nothing any more; answers its id.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
}

impl ClusterCommand {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT];
        match self {
            ClusterCommand::Found {
                cluster,
                address,
                data_id,
            } => {
                out.push(1);
                out.extend_from_slice(&cluster.to_be_bytes());
                put_bytes(&mut out, address.as_bytes());
                put_u64(&mut out, *data_id);
            }
            ClusterCommand::Join { address, data_id } => {
                out.push(2);
                put_bytes(&mut out, address.as_bytes());
                put_u64(&mut out, *data_id);
            }
            ClusterCommand::CreateNamespace(spec) => {
                out.push(3);
                // The codec of namespaces carries name, kind and replicas.
                let carrier = Namespace {
                    id: 0,
                    name: spec.name.clone(),
                    kind: spec.kind,
                    replicas: spec.replicas,
                    incarnation: 0,
                };
                put_bytes(&mut out, &carrier.to_bytes());
                put_u32(&mut out, spec.shards);
                put_list(&mut out, &spec.splits, |out, split| put_bytes(out, split));
            }
            ClusterCommand::GrowCoordinator { node } => {
                out.push(4);
                put_u64(&mut out, *node);
            }
            ClusterCommand::MoveReplica { shard, from, to } => {
                out.push(5);
                [shard, from, to]
                    .iter()
                    .for_each(|id| put_u64(&mut out, **id));
            }
            ClusterCommand::SettleMembers { shard, members } => {
                out.push(6);
                put_u64(&mut out, *shard);
                put_u64(&mut out, *members);
            }
            ClusterCommand::RemoveNode { node } => {
                out.push(7);
                put_u64(&mut out, *node);
            }
            ClusterCommand::WithdrawReplica {
                shard,
                replica,
                beside,
            } => {
                out.push(8);
                put_u64(&mut out, *shard);
                put_u64(&mut out, *replica);
                out.push(u8::from(*beside));
            }
        }
        out.into()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<ClusterCommand, Damaged> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != FORMAT {
            return Err(Damaged("a cluster command has an unknown format"));
        }
        Ok(match reader.u8()? {
            1 => ClusterCommand::Found {
                cluster: reader.u128()?,
                address: text(&mut reader)?,
                data_id: reader.u64()?,
            },
            2 => ClusterCommand::Join {
                address: text(&mut reader)?,
                data_id: reader.u64()?,
            },
            3 => {
                let carrier = Namespace::from_bytes(&reader.bytes()?)
                    .map_err(|_| Damaged("a namespace in a cluster command"))?;
                ClusterCommand::CreateNamespace(NamespaceSpec {
                    name: carrier.name,
                    kind: carrier.kind,
                    replicas: carrier.replicas,
                    shards: reader.u32()?,
                    splits: reader.list(Reader::bytes)?,
                })
            }
            4 => ClusterCommand::GrowCoordinator {
                node: reader.u64()?,
            },
            5 => ClusterCommand::MoveReplica {
                shard: reader.u64()?,
                from: reader.u64()?,
                to: reader.u64()?,
            },
            6 => ClusterCommand::SettleMembers {
                shard: reader.u64()?,
                members: reader.u64()?,
            },
            7 => ClusterCommand::RemoveNode {
                node: reader.u64()?,
            },
            8 => ClusterCommand::WithdrawReplica {
                shard: reader.u64()?,
                replica: reader.u64()?,
                beside: reader.bool()?,
            },
            _ => return Err(Damaged("a cluster command has an unknown kind")),
        })
    }
}

fn text(reader: &mut Reader) -> Result<String, Damaged> {
    String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| Damaged("a text is not UTF-8"))
}

/// What a cluster command answers: an id, or why it was refused.
pub(crate) fn decode_answer(bytes: Bytes) -> Result<Result<u64, quorate_kv::Error>, Damaged> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? == 0 {
        return Ok(Ok(reader.u64()?));
    }
    let kind = ErrorKind::from_code(reader.u32()?);
    Ok(Err(quorate_kv::Error::new(
        kind,
        String::from_utf8_lossy(&reader.rest()),
    )))
}

pub(crate) fn encode_answer(answer: &Result<u64, quorate_kv::Error>) -> Bytes {
    let mut out = Vec::new();
    match answer {
        Ok(id) => {
            out.push(0);
            put_u64(&mut out, *id);
        }
        Err(error) => {
            out.push(1);
            put_u32(&mut out, error.kind().code());
            out.extend_from_slice(error.message().as_bytes());
        }
    }
    out.into()
}

/// The map, and what only the coordinator has to know.
#[derive(Debug, Clone)]
pub(crate) struct State {
    map: ShardMap,
    data_ids: BTreeMap<NodeId, u64>,
}

impl State {
    fn new() -> State {
        State {
            map: ShardMap::new(0),
            data_ids: BTreeMap::new(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        let ids: Vec<_> = self.data_ids.iter().collect();
        put_list(&mut out, &ids, |out, (node, id)| {
            put_u64(out, **node);
            put_u64(out, **id);
        });
        out.extend_from_slice(&self.map.to_bytes());
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<State, Damaged> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != FORMAT {
            return Err(Damaged("the coordinator's state has an unknown format"));
        }
        let data_ids = reader.list(|reader| Ok((reader.u64()?, reader.u64()?)))?;
        let map = ShardMap::from_bytes(&reader.rest());
        let map = map.map_err(|_| Damaged("the coordinator's shard map"))?;
        Ok(State {
            map,
            data_ids: data_ids.into_iter().collect(),
        })
    }

    /// Applies one command. From state and command alone.
    fn change(&mut self, command: ClusterCommand) -> Result<u64, quorate_kv::Error> {
        if self.map.cluster == 0 && !matches!(command, ClusterCommand::Found { .. }) {
            // Others may hear of the founder before its own first entry is applied.
            return refuse(ErrorKind::Unavailable, "the cluster is being founded");
        }
        match command {
            ClusterCommand::Found {
                cluster,
                address,
                data_id,
            } => {
                if self.map.cluster != 0 {
                    return refuse(
                        ErrorKind::AlreadyExists,
                        "the cluster has been founded before",
                    );
                }
                self.map = ShardMap::new(cluster);
                let node = self.map.register_node(&address, BTreeMap::new());
                self.data_ids.insert(node, data_id);
                self.map.set_coordinator(vec![Replica { id: 1, node }]);
                Ok(node)
            }
            ClusterCommand::Join { address, data_id } => self.join(&address, data_id),
            ClusterCommand::CreateNamespace(spec) => {
                Ok(u64::from(self.map.create_namespace(&spec)?))
            }
            ClusterCommand::GrowCoordinator { node } => {
                let mut replicas = match self.map.shards_of(SYSTEM_NAMESPACE) {
                    [shard, ..] => shard.replicas.clone(),
                    [] => return refuse(ErrorKind::Internal, "there is no coordinator to grow"),
                };
                if let Some(known) = replicas.iter().find(|replica| replica.node == node) {
                    return Ok(known.id);
                }
                if self.map.node(node).is_none() {
                    return refuse(ErrorKind::InvalidArgument, "there is no such node");
                }
                let id = self.map.take_replica_id();
                replicas.push(Replica { id, node });
                self.map.set_coordinator(replicas);
                Ok(id)
            }
            ClusterCommand::MoveReplica { shard, from, to } => {
                let some = |node| (node != 0).then_some(node);
                Ok(self.map.move_replica(shard, some(from), some(to))?)
            }
            ClusterCommand::SettleMembers { shard, members } => {
                Ok(u64::from(self.map.settle_members(shard, members)))
            }
            ClusterCommand::WithdrawReplica {
                shard,
                replica,
                beside,
            } => {
                let withdrawn = self.map.withdraw_replica(shard, replica, beside)?;
                Ok(u64::from(withdrawn))
            }
            ClusterCommand::RemoveNode { node } => {
                self.map.remove_node(node)?;
                Ok(node)
            }
        }
    }

    fn join(&mut self, address: &str, data_id: u64) -> Result<u64, quorate_kv::Error> {
        let by_data = self
            .data_ids
            .iter()
            .find(|(_, id)| **id == data_id)
            .map(|(node, _)| *node);
        let by_address = self
            .map
            .nodes
            .values()
            .find(|n| n.address == address)
            .map(|n| n.id);
        if let Some(node) = by_data.filter(|node| self.map.node(*node).is_none()) {
            let message = format!(
                "the data of this server is of node {node}, which was removed from the cluster: \
                 give it an empty data directory to join as a new node"
            );
            return refuse(ErrorKind::InvalidArgument, &message);
        }
        match (by_data, by_address) {
            (Some(node), holder) if holder.is_none() || holder == Some(node) => {
                self.map.set_node_address(node, address);
                Ok(node)
            }
            (None, None) => {
                let node = self.map.register_node(address, BTreeMap::new());
                self.data_ids.insert(node, data_id);
                Ok(node)
            }
            (_, holder) => {
                let node = holder.unwrap_or_default();
                let message = format!(
                    "{address} is the address of node {node}, whose data is another directory: \
                     give that directory back, or join under another address"
                );
                refuse(ErrorKind::AlreadyExists, &message)
            }
        }
    }
}

fn refuse(kind: ErrorKind, message: &str) -> Result<u64, quorate_kv::Error> {
    Err(quorate_kv::Error::new(kind, message))
}

/// The state machine of the coordinator's replica.
pub(crate) struct CoordinatorMachine {
    engine: Arc<Lsm>,
    inner: Mutex<Inner>,
    flushed: FlushTracker,
    published: watch::Sender<Arc<ShardMap>>,
}

struct Inner {
    position: Position,
    membership: Bytes,
    state: State,
}

impl CoordinatorMachine {
    /// Opens the machine of a replica; `published` gets each new map.
    ///
    /// # Errors
    /// `InvalidData` if the state here is another replica's.
    pub(crate) fn open(
        engine: Arc<Lsm>,
        published: watch::Sender<Arc<ShardMap>>,
        replica: ReplicaId,
    ) -> io::Result<CoordinatorMachine> {
        claim(&engine, COORDINATOR_GROUP, replica)?;
        let get = |field| {
            let key = group_key(COORDINATOR_GROUP, field);
            let found = engine
                .get(META, &key, &ReadAt::NEWEST)
                .map_err(engine_error)?;
            Ok::<_, io::Error>(found.map(|entry| entry.value))
        };
        let position = match get(GroupField::Applied)? {
            Some(bytes) => Position::decode(bytes).map_err(invalid)?,
            None => Position::default(),
        };
        let state = match get(GroupField::Map)? {
            Some(bytes) => State::decode(bytes).map_err(invalid)?,
            None => State::new(),
        };
        let membership = get(GroupField::Membership)?.unwrap_or_default();
        let flushed = FlushTracker::new(position.entry.map(|entry| entry.index));
        let machine = CoordinatorMachine {
            engine,
            inner: Mutex::new(Inner {
                position,
                membership,
                state,
            }),
            flushed,
            published,
        };
        machine.publish(&machine.inner.lock());
        Ok(machine)
    }

    fn publish(&self, inner: &Inner) {
        let map = &inner.state.map;
        self.published.send_if_modified(|known| {
            let newer = map.version > known.version;
            if newer {
                *known = Arc::new(map.clone());
            }
            newer
        });
    }

    /// Stores everything that `inner` holds.
    fn store(&self, inner: &Inner) -> io::Result<()> {
        let mut batch = Batch::new();
        let mut put =
            |field, value: &[u8]| batch.put(META, &group_key(COORDINATOR_GROUP, field), value);
        put(GroupField::Applied, &inner.position.encode());
        put(GroupField::Membership, &inner.membership);
        put(GroupField::Map, &inner.state.encode());
        let sequence = self
            .engine
            .write(&batch, WriteOptions::APPLY)
            .map_err(engine_error)?;
        if let Some(entry) = inner.position.entry {
            self.flushed.applied(sequence, entry.index);
        }
        Ok(())
    }
}

/// The handle by which the group reaches its machine.
pub(crate) struct Coordinator(pub Arc<CoordinatorMachine>);

impl StateMachine for Coordinator {
    fn applied(&self) -> io::Result<Applied> {
        let inner = self.0.inner.lock();
        Ok(Applied {
            entry: inner.position.entry,
            membership: inner.membership.clone(),
        })
    }

    fn apply(&self, commands: &[Committed]) -> io::Result<Vec<Bytes>> {
        let mut inner = self.0.inner.lock();
        let mut results = Vec::with_capacity(commands.len());
        for command in commands {
            results.push(match &command.body {
                CommandBody::Blank => Bytes::new(),
                CommandBody::Membership(bytes) => {
                    inner.membership = bytes.clone();
                    Bytes::new()
                }
                CommandBody::Write(bytes) => {
                    let command = ClusterCommand::decode(bytes.clone()).map_err(invalid)?;
                    encode_answer(&inner.state.change(command))
                }
            });
            inner.position.entry = Some(command.id);
        }
        self.0.store(&inner)?;
        self.0.publish(&inner);
        Ok(results)
    }

    fn flushed(&self) -> Option<u64> {
        self.0.flushed.flushed(self.0.engine.flushed_sequence())
    }

    fn snapshot(&self) -> io::Result<Box<dyn SnapshotSource>> {
        let inner = self.0.inner.lock();
        let applied = Applied {
            entry: inner.position.entry,
            membership: inner.membership.clone(),
        };
        Ok(Box::new(Source {
            applied,
            state: Some(inner.state.encode().into()),
        }))
    }

    fn receive(&self) -> io::Result<Box<dyn SnapshotSink>> {
        Ok(Box::new(Sink {
            machine: Arc::clone(&self.0),
            bytes: Vec::new(),
        }))
    }
}

/// The state in one chunk: a map is small.
struct Source {
    applied: Applied,
    state: Option<Bytes>,
}

impl SnapshotSource for Source {
    fn applied(&self) -> &Applied {
        &self.applied
    }

    fn next_chunk(&mut self, _bytes_max: usize) -> io::Result<Option<Bytes>> {
        Ok(self.state.take())
    }
}

struct Sink {
    machine: Arc<CoordinatorMachine>,
    bytes: Vec<u8>,
}

impl SnapshotSink for Sink {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn install(self: Box<Self>, applied: &Applied) -> io::Result<()> {
        let state = State::decode(self.bytes.into()).map_err(invalid)?;
        let mut inner = self.machine.inner.lock();
        inner.state = state;
        inner.membership = applied.membership.clone();
        inner.position.entry = applied.entry;
        self.machine.store(&inner)?;
        self.machine.publish(&inner);
        drop(inner);
        self.machine.engine.flush().map_err(engine_error)?;
        Ok(())
    }
}

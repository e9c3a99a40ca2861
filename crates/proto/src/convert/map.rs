//! The shard map and its parts.

use bytes::Bytes;
use quorate_kv::Error;
use quorate_sharding::{
    Encoding, Namespace, NamespaceKind, NextIds, NodeInfo, Replica, RoutingPrefix, Shard,
    ShardEpoch, ShardMap,
};

use super::invalid;
use crate::v1;

/// A cluster's id as the wire has it: 16 bytes, big-endian.
pub fn cluster_to_wire(cluster: u128) -> Bytes {
    Bytes::copy_from_slice(&cluster.to_be_bytes())
}

/// The cluster's id; `None` if the field was left empty.
///
/// # Errors
/// `InvalidArgument` if it has neither 0 nor 16 bytes.
pub fn cluster_from_wire(bytes: &[u8]) -> Result<Option<u128>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes: [u8; 16] = bytes
        .try_into()
        .map_err(|_| invalid("a cluster id has 16 bytes"))?;
    Ok(Some(u128::from_be_bytes(bytes)))
}

impl From<ShardEpoch> for v1::ShardEpoch {
    fn from(epoch: ShardEpoch) -> Self {
        v1::ShardEpoch {
            range: epoch.range,
            members: epoch.members,
        }
    }
}

impl From<v1::ShardEpoch> for ShardEpoch {
    fn from(wire: v1::ShardEpoch) -> Self {
        ShardEpoch {
            range: wire.range,
            members: wire.members,
        }
    }
}

impl From<&Shard> for v1::Shard {
    fn from(shard: &Shard) -> Self {
        v1::Shard {
            id: shard.id,
            namespace: shard.namespace,
            start: shard.start.clone(),
            end: shard.end.clone(),
            epoch: Some(shard.epoch.into()),
            replicas: replicas_to_wire(&shard.replicas),
            leaving: replicas_to_wire(&shard.leaving),
            settled: shard.settled,
        }
    }
}

fn replicas_to_wire(replicas: &[Replica]) -> Vec<v1::Replica> {
    let wire = |r: &Replica| v1::Replica {
        id: r.id,
        node: r.node,
    };
    replicas.iter().map(wire).collect()
}

fn replicas_from_wire(wire: Vec<v1::Replica>) -> Vec<Replica> {
    let replica = |r: v1::Replica| Replica {
        id: r.id,
        node: r.node,
    };
    wire.into_iter().map(replica).collect()
}

impl From<Shard> for v1::Shard {
    fn from(shard: Shard) -> Self {
        v1::Shard::from(&shard)
    }
}

impl TryFrom<v1::Shard> for Shard {
    type Error = Error;

    fn try_from(wire: v1::Shard) -> Result<Self, Error> {
        if !wire.end.is_empty() && wire.end <= wire.start {
            return Err(invalid("a shard ends before it begins"));
        }
        Ok(Shard {
            id: wire.id,
            namespace: wire.namespace,
            start: wire.start,
            end: wire.end,
            epoch: wire.epoch.unwrap_or_default().into(),
            replicas: replicas_from_wire(wire.replicas),
            leaving: replicas_from_wire(wire.leaving),
            settled: wire.settled,
        })
    }
}

impl From<NamespaceKind> for v1::Layout {
    fn from(kind: NamespaceKind) -> Self {
        let (kind, encoding, delimiter) = match kind {
            NamespaceKind::Compact => (v1::NamespaceKind::Compact, v1::EncodingKind::Ordered, 0),
            NamespaceKind::Wide { encoding } => {
                let (encoding, delimiter) = match encoding {
                    Encoding::Ordered => (v1::EncodingKind::Ordered, 0),
                    Encoding::Hashed { prefix } => match prefix {
                        RoutingPrefix::WholeKey => (v1::EncodingKind::Hashed, 0),
                        RoutingPrefix::Until(delimiter) => {
                            (v1::EncodingKind::HashedUntil, delimiter.into())
                        }
                    },
                };
                (v1::NamespaceKind::Wide, encoding, delimiter)
            }
        };
        v1::Layout {
            kind: kind.into(),
            encoding: encoding.into(),
            delimiter,
        }
    }
}

impl TryFrom<v1::Layout> for NamespaceKind {
    type Error = Error;

    fn try_from(wire: v1::Layout) -> Result<Self, Error> {
        match v1::NamespaceKind::try_from(wire.kind) {
            Ok(v1::NamespaceKind::Compact) => return Ok(NamespaceKind::Compact),
            Ok(v1::NamespaceKind::Wide) => {}
            _ => return Err(invalid("an unknown kind of namespace")),
        }
        let encoding = match v1::EncodingKind::try_from(wire.encoding) {
            Ok(v1::EncodingKind::Ordered) => Encoding::Ordered,
            Ok(v1::EncodingKind::Hashed) => Encoding::Hashed {
                prefix: RoutingPrefix::WholeKey,
            },
            Ok(v1::EncodingKind::HashedUntil) => Encoding::Hashed {
                prefix: RoutingPrefix::Until(
                    u8::try_from(wire.delimiter).map_err(|_| invalid("a delimiter is one byte"))?,
                ),
            },
            Err(_) => return Err(invalid("an unknown encoding")),
        };
        Ok(NamespaceKind::Wide { encoding })
    }
}

impl From<&Namespace> for v1::Namespace {
    fn from(namespace: &Namespace) -> Self {
        v1::Namespace {
            id: namespace.id,
            name: namespace.name.clone(),
            layout: Some(namespace.kind.into()),
            replicas: namespace.replicas,
            incarnation: namespace.incarnation,
        }
    }
}

impl TryFrom<v1::Namespace> for Namespace {
    type Error = Error;

    fn try_from(wire: v1::Namespace) -> Result<Self, Error> {
        Ok(Namespace {
            id: wire.id,
            name: wire.name,
            kind: wire
                .layout
                .ok_or_else(|| invalid("a namespace without layout"))?
                .try_into()?,
            replicas: wire.replicas,
            incarnation: wire.incarnation,
        })
    }
}

impl From<&ShardMap> for v1::ShardMap {
    fn from(map: &ShardMap) -> Self {
        v1::ShardMap {
            cluster: cluster_to_wire(map.cluster),
            version: map.version,
            next: Some(v1::NextIds {
                node: map.next.node,
                shard: map.next.shard,
                replica: map.next.replica,
                namespace: map.next.namespace,
            }),
            nodes: map
                .nodes
                .values()
                .map(|n| v1::NodeInfo {
                    id: n.id,
                    address: n.address.clone(),
                    labels: n.labels.clone(),
                })
                .collect(),
            namespaces: map.namespaces().map(Into::into).collect(),
            shards: map.shards().map(|s| v1::Shard::from(&**s)).collect(),
        }
    }
}

impl TryFrom<v1::ShardMap> for ShardMap {
    type Error = Error;

    fn try_from(wire: v1::ShardMap) -> Result<Self, Error> {
        let cluster = cluster_from_wire(&wire.cluster)?
            .ok_or_else(|| invalid("a map without its cluster's id"))?;
        let next = wire.next.unwrap_or_default();
        let nodes = wire.nodes.into_iter().map(|n| NodeInfo {
            id: n.id,
            address: n.address,
            labels: n.labels,
        });
        let namespaces: Vec<Namespace> = wire
            .namespaces
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, Error>>()?;
        let shards: Vec<Shard> = wire
            .shards
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, Error>>()?;
        let next = NextIds {
            node: next.node,
            shard: next.shard,
            replica: next.replica,
            namespace: next.namespace,
        };
        let map = ShardMap::from_parts(cluster, wire.version, next, nodes, namespaces, shards);
        map.validate()
            .map_err(|error| invalid(&error.to_string()))?;
        Ok(map)
    }
}

//! The bytes of maps, namespaces and shards, as the coordinator's state machine stores them.
//!
//! Each begins with a format byte: of maps and shards it is 2 (1 had no members on their way), of namespaces 1. Numbers are big-endian and fixed, strings and byte
//! strings are a `u32` length and the bytes, lists a `u32` count and the items. Decoding checks
//! every length against what is there, and refuses bytes behind the end.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    Encoding, Error, Namespace, NamespaceKind, NextIds, NodeInfo, Replica, Result, RoutingPrefix,
    Shard, ShardEpoch, ShardMap,
};

const FORMAT: u8 = 2;
const NAMESPACE_FORMAT: u8 = 1;
/// The oldest that is read.
const FORMAT_MIN: u8 = 1;

impl ShardMap {
    /// The map as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.cluster.to_be_bytes());
        put_u64(&mut out, self.version);
        put_u64(&mut out, self.next.node);
        put_u64(&mut out, self.next.shard);
        put_u64(&mut out, self.next.replica);
        put_u32(&mut out, self.next.namespace);
        put_u32(&mut out, self.nodes.len() as u32);
        self.nodes.values().for_each(|n| put_node(&mut out, n));
        put_u32(&mut out, self.namespaces().count() as u32);
        self.namespaces().for_each(|n| put_namespace(&mut out, n));
        put_u32(&mut out, self.shards().count() as u32);
        self.shards().for_each(|s| put_shard(&mut out, s));
        out
    }

    /// Reads what [`ShardMap::to_bytes`] wrote. The invariants are not checked: see
    /// [`ShardMap::validate`].
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::NewerFormat`].
    pub fn from_bytes(bytes: &[u8]) -> Result<ShardMap> {
        decode_whole(bytes, FORMAT, |r| {
            let cluster = u128::from_be_bytes(r.array()?);
            let version = r.u64()?;
            let next = NextIds {
                node: r.u64()?,
                shard: r.u64()?,
                replica: r.u64()?,
                namespace: r.u32()?,
            };
            let nodes = r.list(node)?;
            let namespaces = r.list(namespace)?;
            let shards = r.list(shard)?;
            Ok(ShardMap::from_parts(
                cluster, version, next, nodes, namespaces, shards,
            ))
        })
    }
}

impl Shard {
    /// The shard as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_shard(&mut out, self);
        out
    }

    /// Reads what [`Shard::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::NewerFormat`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Shard> {
        decode_whole(bytes, FORMAT, shard)
    }
}

impl Namespace {
    /// The namespace as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![NAMESPACE_FORMAT];
        put_namespace(&mut out, self);
        out
    }

    /// Reads what [`Namespace::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::NewerFormat`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Namespace> {
        decode_whole(bytes, NAMESPACE_FORMAT, namespace)
    }
}

fn decode_whole<T>(
    bytes: &[u8],
    newest: u8,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T>,
) -> Result<T> {
    let mut reader = Reader {
        rest: bytes,
        format: newest,
    };
    reader.format = match reader.u8()? {
        format if (FORMAT_MIN..=newest).contains(&format) => format,
        0 => return Err(Error::Damaged("format 0 does not exist")),
        newer => return Err(Error::NewerFormat(newer)),
    };
    let value = read(&mut reader)?;
    if !reader.rest.is_empty() {
        return Err(Error::Damaged("there are bytes behind the end"));
    }
    Ok(value)
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len() as u32);
    out.extend_from_slice(bytes);
}

fn put_node(out: &mut Vec<u8>, node: &NodeInfo) {
    put_u64(out, node.id);
    put_bytes(out, node.address.as_bytes());
    put_u32(out, node.labels.len() as u32);
    for (name, value) in &node.labels {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn node(r: &mut Reader<'_>) -> Result<NodeInfo> {
    Ok(NodeInfo {
        id: r.u64()?,
        address: r.string()?,
        labels: r
            .list(|r| Ok((r.string()?, r.string()?)))?
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
    })
}

/// The two bytes of a kind: its number and its parameter.
fn kind_code(kind: &NamespaceKind) -> [u8; 2] {
    match kind {
        NamespaceKind::Compact => [0, 0],
        NamespaceKind::Wide { encoding } => match encoding {
            Encoding::Ordered => [1, 0],
            Encoding::Hashed { prefix } => match prefix {
                RoutingPrefix::WholeKey => [2, 0],
                RoutingPrefix::Until(delimiter) => [3, *delimiter],
            },
        },
    }
}

fn kind_of(code: [u8; 2]) -> Result<NamespaceKind> {
    let hashed = |prefix| NamespaceKind::Wide {
        encoding: Encoding::Hashed { prefix },
    };
    match code {
        [0, 0] => Ok(NamespaceKind::Compact),
        [1, 0] => Ok(NamespaceKind::Wide {
            encoding: Encoding::Ordered,
        }),
        [2, 0] => Ok(hashed(RoutingPrefix::WholeKey)),
        [3, delimiter] => Ok(hashed(RoutingPrefix::Until(delimiter))),
        _ => Err(Error::Damaged("an unknown kind of namespace")),
    }
}

fn put_namespace(out: &mut Vec<u8>, namespace: &Namespace) {
    put_u32(out, namespace.id);
    put_bytes(out, namespace.name.as_bytes());
    out.extend_from_slice(&kind_code(&namespace.kind));
    put_u32(out, namespace.replicas);
    put_u32(out, namespace.incarnation);
}

fn namespace(r: &mut Reader<'_>) -> Result<Namespace> {
    Ok(Namespace {
        id: r.u32()?,
        name: r.string()?,
        kind: kind_of(r.array()?)?,
        replicas: r.u32()?,
        incarnation: r.u32()?,
    })
}

fn put_shard(out: &mut Vec<u8>, shard: &Shard) {
    put_u64(out, shard.id);
    put_u32(out, shard.namespace);
    put_bytes(out, &shard.start);
    put_bytes(out, &shard.end);
    put_u64(out, shard.epoch.range);
    put_u64(out, shard.epoch.members);
    put_replicas(out, &shard.replicas);
    put_replicas(out, &shard.leaving);
    put_u64(out, shard.settled);
}

fn put_replicas(out: &mut Vec<u8>, replicas: &[Replica]) {
    put_u32(out, replicas.len() as u32);
    for replica in replicas {
        put_u64(out, replica.id);
        put_u64(out, replica.node);
    }
}

fn shard(r: &mut Reader<'_>) -> Result<Shard> {
    let mut shard = Shard {
        id: r.u64()?,
        namespace: r.u32()?,
        start: Bytes::copy_from_slice(r.bytes()?),
        end: Bytes::copy_from_slice(r.bytes()?),
        epoch: ShardEpoch {
            range: r.u64()?,
            members: r.u64()?,
        },
        replicas: r.list(replica)?,
        leaving: Vec::new(),
        settled: 0,
    };
    shard.settled = shard.epoch.members;
    if r.format > 1 {
        shard.leaving = r.list(replica)?;
        shard.settled = r.u64()?;
    }
    Ok(shard)
}

fn replica(r: &mut Reader<'_>) -> Result<Replica> {
    Ok(Replica {
        id: r.u64()?,
        node: r.u64()?,
    })
}

struct Reader<'a> {
    rest: &'a [u8],
    format: u8,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or(Error::Damaged("the bytes end early"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let n = self.u32()? as usize;
        self.take(n)
    }

    fn string(&mut self) -> Result<String> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| Error::Damaged("a string is not UTF-8"))
    }

    /// Reads a count and so many items. Memory grows with what is read, not with what is claimed.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let n = self.u32()?;
        let mut out = Vec::new();
        for _ in 0..n {
            out.push(item(self)?);
        }
        Ok(out)
    }
}

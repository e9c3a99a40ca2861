//! The data directory: who owns it, which node and cluster it is of.
//!
//! ```text
//! <dir>/LOCK        held while a process has it open
//! <dir>/IDENTITY    magic "QUORID\0\0", format u16, cluster u128, node u64, data id u64, founder u8,
//!                   crc32c u32; written once, synced before the node's first vote
//! <dir>/MAP         the last shard map seen, so that a node knows its shards before it has peers
//! <dir>/engine/     the storage engine
//! <dir>/log/        the shared Raft log
//! <dir>/snapshots/  snapshots being received
//! ```
//!
//! The data id is drawn when the directory is made. The coordinator remembers it with the node, so a
//! node that was wiped can't come back under its old identity and vote twice.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_env::{DiskLock, Env};
use quorate_sharding::{NodeId, ShardMap};

use crate::codec::{Reader, put_u64};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"QUORID\0\0";
const FORMAT: u16 = 1;
const MAP_MAGIC: &[u8; 8] = b"QUORMAP\0";

/// Which node of which cluster a data directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The node.
    pub node: NodeId,
    /// Drawn when the directory was made.
    pub data_id: u64,
    /// Whether this node began the cluster.
    pub founder: bool,
}

/// A data directory that this process holds.
pub struct DataDir {
    pub(crate) path: PathBuf,
    pub(crate) env: Env,
    identity: Option<Identity>,
    /// Of a directory without identity: what its data id will be.
    data_id: u64,
    lock: Mutex<Option<Box<dyn DiskLock>>>,
}

impl DataDir {
    /// Takes a data directory, making it if need be.
    ///
    /// # Errors
    /// `AlreadyOpen` if another process has it, `NewerFormat` or `Corruption` of the identity file.
    pub fn open(path: &Path, env: Env) -> Result<DataDir> {
        let failed = |doing: &str, e: std::io::Error| Error::io(doing, path, &e);
        env.disk
            .create_dir_all(path)
            .map_err(|e| failed("can't make", e))?;
        let lock = env
            .disk
            .lock(&path.join("LOCK"))
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::WouldBlock => Error::AlreadyOpen(path.to_owned()),
                _ => failed("can't lock", e),
            })?;
        let file = path.join("IDENTITY");
        let identity = if env
            .disk
            .exists(&file)
            .map_err(|e| failed("can't look into", e))?
        {
            let bytes = env
                .disk
                .read(&file)
                .map_err(|e| Error::io("can't read", &file, &e))?;
            Some(decode(&file, bytes)?)
        } else {
            Self::check_unused(path, &env)?;
            None
        };
        let data_id = identity.map_or_else(|| Self::draft(path, &env), |i| Ok(i.data_id))?;
        Ok(DataDir {
            path: path.to_owned(),
            env,
            identity,
            data_id,
            lock: Mutex::new(Some(lock)),
        })
    }

    /// A directory with data but without an identity lost it: it must not become a new node.
    fn check_unused(path: &Path, env: &Env) -> Result<()> {
        for part in ["engine", "log"] {
            let part = path.join(part);
            if env.disk.exists(&part).unwrap_or(true) {
                let message = format!(
                    "{} is there but the file IDENTITY is not: restore it, or empty the directory \
                     and join as a new node",
                    part.display()
                );
                return Err(Error::Corruption(message));
            }
        }
        Ok(())
    }

    /// The data id of a directory that has no identity yet; kept, so that joining can be tried again.
    fn draft(path: &Path, env: &Env) -> Result<u64> {
        let file = path.join("DRAFT");
        let known = env.disk.exists(&file).and_then(|there| match there {
            true => env.disk.read(&file).map(Some),
            false => Ok(None),
        });
        let known = known.map_err(|e| Error::io("can't read", &file, &e))?;
        if let Some(id) = known.as_deref().and_then(|b| b.first_chunk::<8>()) {
            return Ok(u64::from_be_bytes(*id));
        }
        let id = env.random.next_u64();
        let wrote = env.disk.write_atomic(&file, &id.to_be_bytes());
        wrote.map_err(|e| Error::io("can't write", &file, &e))?;
        Ok(id)
    }

    /// Whose directory it is; `None` before the node joined a cluster.
    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// The id of this directory, whoever it belongs to.
    pub fn data_id(&self) -> u64 {
        self.data_id
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this the directory of a node, durably, for good.
    pub fn become_node(&mut self, cluster: u128, node: NodeId, founder: bool) -> Result<Identity> {
        let identity = Identity {
            cluster,
            node,
            data_id: self.data_id,
            founder,
        };
        if let Some(known) = self.identity {
            if known == identity {
                return Ok(known);
            }
            return Err(Error::Invalid(format!(
                "{} belongs to node {} of another join",
                self.path.display(),
                known.node
            )));
        }
        let file = self.path.join("IDENTITY");
        let wrote = self.env.disk.write_atomic(&file, &encode(&identity));
        wrote.map_err(|e| Error::io("can't write", &file, &e))?;
        self.identity = Some(identity);
        Ok(identity)
    }

    /// Gives the directory free for others, though handles of the node may live on.
    pub(crate) fn release(&self) {
        self.lock.lock().take();
    }

    /// The shard map that was saved last.
    ///
    /// # Errors
    /// `Corruption` if it is damaged.
    pub fn known_map(&self) -> Result<Option<ShardMap>> {
        let file = self.path.join("MAP");
        let failed = |e: std::io::Error| Error::io("can't read", &file, &e);
        if !self.env.disk.exists(&file).map_err(failed)? {
            return Ok(None);
        }
        let bytes = self.env.disk.read(&file).map_err(failed)?;
        let map = decode_map(&bytes);
        map.map(Some).map_err(|why| {
            let path = file.display();
            Error::Corruption(format!("{path}: {why}; remove it, and it is fetched again"))
        })
    }

    pub(crate) fn save_map(&self, map: &ShardMap) -> Result<()> {
        let file = self.path.join("MAP");
        let wrote = self.env.disk.write_atomic(&file, &encode_map(map));
        wrote.map_err(|e| Error::io("can't write", &file, &e))
    }
}

impl std::fmt::Debug for DataDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataDir")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A map as it is kept: magic, the map, crc32c of both.
pub(crate) fn encode_map(map: &ShardMap) -> Vec<u8> {
    let mut out = MAP_MAGIC.to_vec();
    out.extend_from_slice(&map.to_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

/// Also reads what was written before there was a checksum: the map alone.
pub(crate) fn decode_map(bytes: &[u8]) -> std::result::Result<ShardMap, String> {
    let read = |map| ShardMap::from_bytes(map).map_err(|error| error.to_string());
    // The first byte of a map alone is its format, 1: since then it has magic.
    if bytes.first() == Some(&1) {
        return read(bytes);
    }
    let whole = bytes
        .split_last_chunk::<4>()
        .filter(|(content, crc)| crc32c::crc32c(content) == u32::from_be_bytes(**crc));
    let map = whole.and_then(|(content, _)| content.strip_prefix(&MAP_MAGIC[..]));
    read(map.ok_or("it is damaged")?)
}

pub(crate) fn encode(identity: &Identity) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_be_bytes());
    out.extend_from_slice(&identity.cluster.to_be_bytes());
    put_u64(&mut out, identity.node);
    put_u64(&mut out, identity.data_id);
    out.push(u8::from(identity.founder));
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

pub(crate) fn decode(path: &Path, bytes: Vec<u8>) -> Result<Identity> {
    let damaged = || {
        let path = path.display();
        Error::Corruption(format!(
            "{path} is damaged: restore it, or join as a new node"
        ))
    };
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(damaged());
    };
    if u32::from_be_bytes(*crc) != crc32c::crc32c(body) || !body.starts_with(MAGIC) {
        return Err(damaged());
    }
    let mut reader = Reader::new(Bytes::copy_from_slice(&body[MAGIC.len()..]));
    let format = u16::from(reader.u8().map_err(|_| damaged())?) << 8
        | u16::from(reader.u8().map_err(|_| damaged())?);
    if format > FORMAT {
        return Err(Error::NewerFormat(format!(
            "{} has format {format}, this program reads {FORMAT} and older: use a newer one",
            path.display()
        )));
    }
    let mut read = || {
        Ok::<_, crate::codec::Damaged>(Identity {
            cluster: reader.u128()?,
            node: reader.u64()?,
            data_id: reader.u64()?,
            founder: reader.bool()?,
        })
    };
    read().map_err(|_| damaged())
}

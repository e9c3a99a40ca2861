//! Replicas of this node whose data is damaged, on disk: none of them is ever opened again.
//!
//! ```text
//! <dir>/DAMAGE = magic "QUORDMG\0", format u16, taint*, crc32c u32     not there: nothing is damaged
//! taint        = group u64, replica u64, removed u8, lower, upper, what: each a length u32 and bytes
//! ```
//!
//! `lower` to `upper` is the range of the shard's data, kept here since what the engine has of it may be what was
//! damaged; both are empty for the coordinator. `removed` says that nothing of the replica is left here.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_env::switch;
use quorate_sharding::{GroupId, ReplicaId};

use crate::codec::{Damaged, Reader, put_bytes, put_u64};
use crate::error::{Error, Result};
use crate::identity::DataDir;

const MAGIC: &[u8; 8] = b"QUORDMG\0";
const FORMAT: u16 = 1;

/// A replica that may have lost something, and is made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taint {
    pub replica: ReplicaId,
    /// Whether nothing of it is left on this node.
    pub removed: bool,
    /// The range of its data in the engine.
    pub range: (Vec<u8>, Vec<u8>),
    /// What was found, and where.
    pub what: String,
}

impl Taint {
    /// For who asks for the shard.
    pub(crate) fn says(&self) -> String {
        let (replica, what) = (self.replica, &self.what);
        format!("replica {replica} is damaged and is made anew from its peers: {what}")
    }
}

/// All of a node, by group.
pub(crate) type Taints = BTreeMap<GroupId, Taint>;

/// The taints of a node, and what is on disk of them.
pub(crate) struct TaintBook {
    taints: Mutex<Taints>,
    /// Held while the file is written, so that what is newer comes later.
    writing: Mutex<()>,
}

impl TaintBook {
    /// Reads what an earlier life found.
    pub(crate) fn open(dir: &DataDir) -> Result<TaintBook> {
        Ok(TaintBook {
            taints: Mutex::new(dir.known_taints()?),
            writing: Mutex::default(),
        })
    }

    pub(crate) fn all(&self) -> Taints {
        self.taints.lock().clone()
    }

    pub(crate) fn of(&self, group: GroupId) -> Option<Taint> {
        self.taints.lock().get(&group).cloned()
    }

    /// Whether a replica must not be opened: it is damaged, or something of one that was is still here.
    pub(crate) fn forbids(&self, group: GroupId, replica: ReplicaId) -> Option<String> {
        let taints = self.taints.lock();
        let taint = taints.get(&group)?;
        if switch::bug("tainted_replica_goes_on") && !taint.removed {
            return None;
        }
        (taint.replica == replica || !taint.removed).then(|| taint.says())
    }

    /// Notes a damaged replica; true if that is news.
    pub(crate) fn add(&self, group: GroupId, taint: Taint) -> bool {
        let mut taints = self.taints.lock();
        if taints
            .get(&group)
            .is_some_and(|known| known.replica == taint.replica)
        {
            return false;
        }
        taints.insert(group, taint);
        true
    }

    /// Nothing is left of a damaged replica.
    pub(crate) fn removed(&self, group: GroupId) {
        if let Some(taint) = self.taints.lock().get_mut(&group) {
            taint.removed = true;
        }
    }

    /// Another replica took its place, or none is to.
    pub(crate) fn forget(&self, group: GroupId) {
        self.taints.lock().remove(&group);
    }

    /// Puts it all on disk. Blocks.
    pub(crate) fn save(&self, dir: &DataDir) -> Result<()> {
        let _alone = self.writing.lock();
        dir.save_taints(&self.all())
    }
}

impl DataDir {
    /// The replicas here that are damaged.
    fn known_taints(&self) -> Result<Taints> {
        let file = self.path().join("DAMAGE");
        let disk = &self.env.disk;
        let failed = |e: std::io::Error| Error::io("can't read", &file, &e);
        if !disk.exists(&file).map_err(failed)? {
            return Ok(Taints::new());
        }
        let bytes = disk.read(&file).map_err(failed)?;
        decode(&bytes).map_err(|why| {
            Error::Corruption(format!(
                "{}: {why}. It says which replicas here are damaged; without it none can be trusted: \
                 give this server an empty data directory, and it joins as a new node",
                file.display()
            ))
        })
    }

    fn save_taints(&self, taints: &Taints) -> Result<()> {
        let file = self.path().join("DAMAGE");
        let disk = &self.env.disk;
        let failed = |e: std::io::Error| Error::io("can't write", &file, &e);
        if !taints.is_empty() {
            return disk.write_atomic(&file, &encode(taints)).map_err(failed);
        }
        if disk.exists(&file).map_err(failed)? {
            disk.remove(&file).map_err(failed)?;
            disk.sync_dir(self.path()).map_err(failed)?;
        }
        Ok(())
    }
}

pub(crate) fn encode(taints: &Taints) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_be_bytes());
    for (group, taint) in taints {
        put_u64(&mut out, *group);
        put_u64(&mut out, taint.replica);
        out.push(u8::from(taint.removed));
        let parts = [
            &taint.range.0[..],
            &taint.range.1[..],
            taint.what.as_bytes(),
        ];
        parts.iter().for_each(|part| put_bytes(&mut out, part));
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Taints, String> {
    let whole = bytes
        .split_last_chunk::<4>()
        .filter(|(content, crc)| crc32c::crc32c(content) == u32::from_be_bytes(**crc));
    let body = whole.and_then(|(content, _)| content.strip_prefix(&MAGIC[..]));
    let body = body.ok_or("it is damaged")?;
    let (format, body) = body.split_first_chunk::<2>().ok_or("it is damaged")?;
    let format = u16::from_be_bytes(*format);
    if format > FORMAT {
        return Err(format!(
            "it has format {format}, this program reads {FORMAT} and older: use a newer one"
        ));
    }
    decode_taints(Reader::new(Bytes::copy_from_slice(body))).map_err(|error| error.to_string())
}

fn decode_taints(mut reader: Reader) -> std::result::Result<Taints, Damaged> {
    let mut taints = Taints::new();
    while !reader.is_empty() {
        let group = reader.u64()?;
        let taint = Taint {
            replica: reader.u64()?,
            removed: reader.bool()?,
            range: (reader.bytes()?.to_vec(), reader.bytes()?.to_vec()),
            what: String::from_utf8_lossy(&reader.bytes()?).into_owned(),
        };
        taints.insert(group, taint);
    }
    Ok(taints)
}

//! The bytes that log records and peer messages are made of. All numbers are little-endian.
//!
//! ```text
//! id         = term u64, leader u64, index u64
//! optional x = 0 u8  |  1 u8, x
//! vote       = term u64, leader u64, committed u8
//! entry      = id, tag u8 (0 blank, 1 write, 2 membership), length u32, payload
//! membership = configs u8, { count u32, replica u64 * count } * configs,
//!              count u32, { replica u64, node u64 } * count
//! stored membership = optional id, membership
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};

use crate::raft::{
    Entry, EntryPayload, LeaderId, LogId, Membership, Payload, StoredMembership, Vote,
};

/// The fixed part of an entry.
pub(crate) const ENTRY_HEADER: usize = 8 * 3 + 1 + 4;

const TAG_BLANK: u8 = 0;
const TAG_WRITE: u8 = 1;
const TAG_MEMBERSHIP: u8 = 2;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub(crate) struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

pub(crate) fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.put_u64_le(id.leader_id.term);
    out.put_u64_le(id.leader_id.node_id);
    out.put_u64_le(id.index);
}

pub(crate) fn put_opt_log_id(out: &mut Vec<u8>, id: Option<&LogId>) {
    out.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

pub(crate) fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.node_id);
    out.put_u8(u8::from(vote.committed));
}

pub(crate) fn put_membership(out: &mut Vec<u8>, membership: &Membership) {
    let configs = membership.get_joint_config();
    out.put_u8(configs.len() as u8);
    for config in configs {
        out.put_u32_le(config.len() as u32);
        for id in config {
            out.put_u64_le(*id);
        }
    }
    out.put_u32_le(membership.nodes().count() as u32);
    for (replica, node) in membership.nodes() {
        out.put_u64_le(*replica);
        out.put_u64_le(*node);
    }
}

pub(crate) fn put_stored_membership(out: &mut Vec<u8>, stored: &StoredMembership) {
    put_opt_log_id(out, stored.log_id().as_ref());
    put_membership(out, stored.membership());
}

/// Appends an entry; returns where in `out` its payload begins, and the payload's length.
pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) -> (usize, usize) {
    put_log_id(out, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => {
            out.put_u8(TAG_BLANK);
            out.put_u32_le(0);
            (out.len(), 0)
        }
        EntryPayload::Normal(Payload(bytes)) => {
            out.put_u8(TAG_WRITE);
            out.put_u32_le(bytes.len() as u32);
            let at = out.len();
            out.extend_from_slice(bytes);
            (at, bytes.len())
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(TAG_MEMBERSHIP);
            let length_at = out.len();
            out.put_u32_le(0);
            let at = out.len();
            put_membership(out, membership);
            let length = out.len() - at;
            out[length_at..at].copy_from_slice(&(length as u32).to_le_bytes());
            (at, length)
        }
    }
}

/// The size of an entry's payload, near enough for limits.
pub(crate) fn payload_size(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(Payload(bytes)) => bytes.len(),
        EntryPayload::Membership(membership) => 16 + 32 * membership.nodes().count(),
    }
}

/// A checksum of an entry's payload, for the oracles of a simulation.
pub(crate) fn checksum(entry: &Entry) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut bytes = Vec::new();
    put_entry(&mut bytes, entry);
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    hasher.finish()
}

/// Reads from the front of shared bytes; byte strings come out as slices of them, not copies.
pub(crate) struct Reader {
    rest: Bytes,
    whole: usize,
}

impl Reader {
    pub fn new(bytes: Bytes) -> Reader {
        Reader {
            whole: bytes.len(),
            rest: bytes,
        }
    }

    /// How many bytes have been read.
    pub fn at(&self) -> usize {
        self.whole - self.rest.len()
    }

    pub fn bytes(&mut self, count: usize) -> Result<Bytes> {
        if self.rest.len() < count {
            return Err(Malformed("ends too early"));
        }
        Ok(self.rest.split_to(count))
    }

    /// All that is left.
    pub fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    /// Checks that nothing is left.
    pub fn end(&self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed("goes on too long"))
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let found = self
            .rest
            .first_chunk::<N>()
            .copied()
            .ok_or(Malformed("ends too early"))?;
        let _ = self.rest.split_to(N);
        Ok(found)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("neither true nor false")),
        }
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `size` bytes each, so that a wrong one can't make us
    /// take memory for more than there is.
    pub fn count(&mut self, size: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        if count.saturating_mul(size) > self.rest.len() {
            return Err(Malformed("counts more than there is"));
        }
        Ok(count)
    }

    pub fn log_id(&mut self) -> Result<LogId> {
        let leader_id = LeaderId {
            term: self.u64()?,
            node_id: self.u64()?,
        };
        Ok(LogId {
            leader_id,
            index: self.u64()?,
        })
    }

    pub fn opt_log_id(&mut self) -> Result<Option<LogId>> {
        if self.bool()? {
            self.log_id().map(Some)
        } else {
            Ok(None)
        }
    }

    pub fn vote(&mut self) -> Result<Vote> {
        let leader_id = LeaderId {
            term: self.u64()?,
            node_id: self.u64()?,
        };
        Ok(Vote {
            leader_id,
            committed: self.bool()?,
        })
    }

    pub fn membership(&mut self) -> Result<Membership> {
        let configs = self.u8()?;
        let mut voters = Vec::with_capacity(configs as usize);
        for _ in 0..configs {
            let count = self.count(8)?;
            let config: Result<BTreeSet<u64>> = (0..count).map(|_| self.u64()).collect();
            voters.push(config?);
        }
        let count = self.count(16)?;
        let mut nodes = BTreeMap::new();
        for _ in 0..count {
            nodes.insert(self.u64()?, self.u64()?);
        }
        if voters.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(voters, nodes).map_err(|_| Malformed("a membership that can't be"))
    }

    pub fn stored_membership(&mut self) -> Result<StoredMembership> {
        let id = self.opt_log_id()?;
        Ok(StoredMembership::new(id, self.membership()?))
    }

    /// An entry, with where its payload began and its length.
    pub fn entry(&mut self) -> Result<(Entry, usize, usize)> {
        let log_id = self.log_id()?;
        let tag = self.u8()?;
        let length = self.u32()? as usize;
        let at = self.at();
        let payload = decode_payload(tag, self.bytes(length)?)?;
        Ok((Entry { log_id, payload }, at, length))
    }
}

/// The tag of an entry's payload.
pub(crate) fn tag_of(entry: &Entry) -> u8 {
    match entry.payload {
        EntryPayload::Blank => TAG_BLANK,
        EntryPayload::Normal(_) => TAG_WRITE,
        EntryPayload::Membership(_) => TAG_MEMBERSHIP,
    }
}

/// The payload of an entry, from its tag and bytes.
pub(crate) fn decode_payload(tag: u8, bytes: Bytes) -> Result<EntryPayload> {
    match tag {
        TAG_BLANK if bytes.is_empty() => Ok(EntryPayload::Blank),
        TAG_WRITE => Ok(EntryPayload::Normal(Payload(bytes))),
        TAG_MEMBERSHIP => {
            let mut reader = Reader::new(bytes);
            let membership = reader.membership()?;
            reader.end()?;
            Ok(EntryPayload::Membership(membership))
        }
        _ => Err(Malformed("an entry of unknown kind")),
    }
}

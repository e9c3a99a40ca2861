//! The bytes of a table's frame: handles, sealed blocks, properties, footer. `docs/formats.md` has
//! it byte by byte.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use super::block::Damage;
use crate::codec::{Reader, put_bytes, put_varint};
use crate::compress::{compress, decompress};
use crate::error::{Error, Result};
use crate::expiry;
pub(crate) use crate::header::FOOTER_BYTES;
use crate::header::Magic;
use crate::key::{Key, Kind, keyspace_of};
use crate::options::{Compression, KeyspaceId};
use crate::planted::{self, Bug};
use crate::prefix::Prefix;
use crate::tombstones::Tombstones;
use crate::values::{Pointer, Share};

pub(crate) const MAGIC: Magic = *b"QUORTBL\0";

/// Behind each block: how it is compressed, and its checksum.
pub(crate) const TRAILER_BYTES: usize = 5;

/// Where a block lies, its trailer included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Handle {
    pub(crate) offset: u64,
    pub(crate) size: u32,
}

impl Handle {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10);
        put_varint(&mut out, self.offset);
        put_varint(&mut out, u64::from(self.size));
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Handle> {
        let mut reader = Reader::new(bytes);
        let offset = reader.varint()?;
        let size = u32::try_from(reader.varint()?).ok()?;
        reader.is_empty().then_some(Handle { offset, size })
    }

    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.size))
    }
}

/// A checksum that knows its place: a block read from elsewhere does not match.
pub(crate) fn block_checksum(offset: u64, bytes: &[u8]) -> u32 {
    let offset = match planted::is_on(Bug::ChecksumWithoutPlace) {
        true => 0,
        false => offset,
    };
    let hash = xxh3_64(bytes) ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash ^ hash >> 32) as u32
}

/// Appends a block to `out` as it is to lie at `offset` of its file, and returns its size there.
pub(crate) fn seal_block(
    out: &mut Vec<u8>,
    offset: u64,
    bytes: &[u8],
    compression: Compression,
) -> usize {
    let start = out.len();
    let how = compress(out, bytes, compression);
    out.push(how.code());
    let sum = block_checksum(offset, &out[start..]);
    out.extend_from_slice(&sum.to_le_bytes());
    out.len() - start
}

/// Appends what [`checked_block`] gave of one block as another, at `offset` of its file.
pub(crate) fn reseal_block(out: &mut Vec<u8>, offset: u64, checked: &[u8]) {
    out.extend_from_slice(checked);
    out.extend_from_slice(&block_checksum(offset, checked).to_le_bytes());
}

/// A sealed block that was read from `offset`, without its checksum, which matched.
pub(crate) fn checked_block(sealed: &[u8], offset: u64) -> std::result::Result<&[u8], Damage> {
    let Some((rest, sum)) = sealed.split_last_chunk::<4>() else {
        return Err("a block is shorter than its checksum");
    };
    let matches = block_checksum(offset, rest) == u32::from_le_bytes(*sum);
    match matches || planted::is_on(Bug::ChecksumIsIgnored) {
        true => Ok(rest),
        false => Err("the checksum does not match"),
    }
}

/// How the payload of a checked block is compressed, and the payload.
pub(crate) fn payload_of(checked: &[u8]) -> std::result::Result<(Compression, &[u8]), Damage> {
    let (code, payload) = checked
        .split_last()
        .ok_or("a block is shorter than its trailer")?;
    let how = Compression::from_code(u64::from(*code));
    Ok((
        how.ok_or("a block is compressed in an unknown way")?,
        payload,
    ))
}

/// The content of a sealed block that was read from `offset`.
pub(crate) fn open_block(mut sealed: Vec<u8>, offset: u64) -> std::result::Result<Bytes, Damage> {
    let (how, payload) = payload_of(checked_block(&sealed, offset)?)?;
    match how {
        Compression::None => {
            sealed.truncate(sealed.len() - TRAILER_BYTES);
            Ok(Bytes::from(sealed))
        }
        _ => {
            let mut plain = BytesMut::new();
            decompress(how, payload, &mut plain)?;
            Ok(plain.freeze())
        }
    }
}

/// What a table holds of one keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyspaceProperties {
    pub(crate) id: KeyspaceId,
    pub(crate) entries: u64,
    pub(crate) deletions: u64,
    /// Of entries and range deletions.
    pub(crate) min_version: u64,
    pub(crate) max_version: u64,
    /// Entries with a time.
    pub(crate) expiring: u64,
    /// The highest of those times; 0 without any.
    pub(crate) newest_ms: u64,
    /// What its keys' prefixes are that the filter knows.
    pub(crate) prefix: Prefix,
}

/// What a table holds. Invariant: all places of its entries and range deletions are from `smallest`
/// to below `end`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Properties {
    pub(crate) entries: u64,
    pub(crate) deletions: u64,
    /// Pieces of range deletions, each as often as it has marks. Not counted as entries.
    pub(crate) range_deletions: u64,
    pub(crate) place_bytes: u64,
    pub(crate) value_bytes: u64,
    pub(crate) min_sequence: u64,
    pub(crate) max_sequence: u64,
    pub(crate) smallest: Vec<u8>,
    /// Behind all places.
    pub(crate) end: Vec<u8>,
    /// When all it holds was written at the latest, by the engine's time; 0 if that is not known.
    pub(crate) written_ms: u64,
    /// Ascending by id.
    pub(crate) keyspaces: Vec<KeyspaceProperties>,
    /// How its blocks were to be compressed.
    pub(crate) compression: Compression,
    /// What its pointers need of each value file, ascending by the file's number.
    pub(crate) shares: Vec<(u64, Share)>,
}

impl Properties {
    /// Counts one more entry, which is after all before it. `end` is set by [`ended_with`].
    ///
    /// [`ended_with`]: Properties::ended_with
    pub(crate) fn count(&mut self, key: &Key<'_>, value: &[u8]) {
        let deletion = u64::from(key.kind == Kind::Delete);
        if self.entries == 0 {
            self.min_sequence = u64::MAX;
            self.smallest = key.place.to_vec();
        }
        self.entries += 1;
        self.deletions += deletion;
        self.place_bytes += key.place.len() as u64;
        self.value_bytes += value.len() as u64;
        self.min_sequence = self.min_sequence.min(key.sequence);
        self.max_sequence = self.max_sequence.max(key.sequence);
        let k = self.of_keyspace(keyspace_of(key.place), key.version);
        k.entries += 1;
        k.deletions += deletion;
        if key.kind == Kind::Expiring {
            k.expiring += 1;
            k.newest_ms = k.newest_ms.max(expiry::written_ms(value));
        }
        if key.kind == Kind::Pointer
            && let Some(pointer) = Pointer::decode(value)
        {
            self.count_pointer(&pointer);
        }
    }

    fn count_pointer(&mut self, pointer: &Pointer) {
        if planted::is_on(Bug::PointersAreNotCounted) && self.entries.is_multiple_of(8) {
            return;
        }
        let at = self
            .shares
            .partition_point(|(file, _)| *file < pointer.file);
        if self
            .shares
            .get(at)
            .is_none_or(|(file, _)| *file != pointer.file)
        {
            self.shares.insert(at, (pointer.file, Share::default()));
        }
        self.shares[at].1.add(pointer);
    }

    /// What its pointers need of all value files.
    pub(crate) fn apart(&self) -> Share {
        let mut all = Share::default();
        for (_, share) in &self.shares {
            all.records = all.records.saturating_add(share.records);
            all.bytes = all.bytes.saturating_add(share.bytes);
        }
        all
    }

    /// The entry counted last, at this place, was the last.
    pub(crate) fn ended_with(&mut self, place: &[u8]) {
        self.end.clear();
        self.end.extend_from_slice(place);
        if !planted::is_on(Bug::BoundsEndOffByOne) {
            self.end.push(0);
        }
    }

    /// Counts all range deletions, after all entries.
    pub(crate) fn count_tombstones(&mut self, tombstones: &Tombstones) {
        let no_entries = self.entries == 0;
        let bounds_count = no_entries || !planted::is_on(Bug::BoundsForgetRanges);
        for (start, end, marks) in tombstones.iter() {
            let first = no_entries && self.range_deletions == 0;
            if first {
                self.min_sequence = u64::MAX;
            }
            if bounds_count && (first || *start < *self.smallest) {
                self.smallest = start.to_vec();
            }
            if bounds_count && *end > *self.end {
                self.end = end.to_vec();
            }
            for mark in marks {
                self.range_deletions += 1;
                self.min_sequence = self.min_sequence.min(mark.sequence);
                self.max_sequence = self.max_sequence.max(mark.sequence);
                self.of_keyspace(keyspace_of(start), mark.version);
            }
        }
    }

    /// What is counted of a keyspace, which has this version too.
    fn of_keyspace(&mut self, id: KeyspaceId, version: u64) -> &mut KeyspaceProperties {
        let at = match self.keyspaces.last() {
            // Entries ascend.
            Some(last) if last.id == id => self.keyspaces.len() - 1,
            _ => self.keyspaces.partition_point(|k| k.id < id),
        };
        if self.keyspaces.get(at).is_none_or(|k| k.id != id) {
            let fresh = KeyspaceProperties {
                id,
                entries: 0,
                deletions: 0,
                min_version: u64::MAX,
                max_version: 0,
                expiring: 0,
                newest_ms: 0,
                prefix: Prefix::None,
            };
            self.keyspaces.insert(at, fresh);
        }
        let k = &mut self.keyspaces[at];
        k.min_version = k.min_version.min(version);
        k.max_version = k.max_version.max(version);
        k
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for number in [
            self.entries,
            self.deletions,
            self.range_deletions,
            self.place_bytes,
            self.value_bytes,
            self.min_sequence,
            self.max_sequence,
        ] {
            put_varint(out, number);
        }
        put_bytes(out, &self.smallest);
        put_bytes(out, &self.end);
        put_varint(out, self.written_ms);
        put_varint(out, self.keyspaces.len() as u64);
        for k in &self.keyspaces {
            for number in [
                u64::from(k.id.0),
                k.entries,
                k.deletions,
                k.min_version,
                k.max_version,
                k.expiring,
                k.newest_ms,
                k.prefix.code(),
            ] {
                put_varint(out, number);
            }
        }
        put_varint(out, u64::from(self.compression.code()));
        put_varint(out, self.shares.len() as u64);
        for (file, share) in &self.shares {
            put_varint(out, *file);
            put_varint(out, share.records);
            put_varint(out, share.bytes);
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Properties> {
        let mut properties = Properties {
            entries: reader.varint()?,
            deletions: reader.varint()?,
            range_deletions: reader.varint()?,
            place_bytes: reader.varint()?,
            value_bytes: reader.varint()?,
            min_sequence: reader.varint()?,
            max_sequence: reader.varint()?,
            smallest: reader.bytes()?.to_vec(),
            end: reader.bytes()?.to_vec(),
            written_ms: reader.varint()?,
            ..Properties::default()
        };
        for _ in 0..reader.varint()? {
            properties.keyspaces.push(KeyspaceProperties {
                id: KeyspaceId(u16::try_from(reader.varint()?).ok()?),
                entries: reader.varint()?,
                deletions: reader.varint()?,
                min_version: reader.varint()?,
                max_version: reader.varint()?,
                expiring: reader.varint()?,
                newest_ms: reader.varint()?,
                prefix: Prefix::from_code(reader.varint()?)?,
            });
        }
        properties.compression = Compression::from_code(reader.varint()?)?;
        for _ in 0..reader.varint()? {
            let file = reader.varint()?;
            let share = Share {
                records: reader.varint()?,
                bytes: reader.varint()?,
            };
            properties.shares.push((file, share));
        }
        Some(properties)
    }

    /// Whether it may hold something at a place.
    pub(crate) fn may_hold(&self, place: &[u8]) -> bool {
        self.smallest.as_slice() <= place && place < self.end.as_slice()
    }

    /// Whether it may hold something from one place to below another.
    pub(crate) fn overlaps(&self, lower: &[u8], upper: Option<&[u8]>) -> bool {
        lower < self.end.as_slice() && upper.is_none_or(|upper| self.smallest.as_slice() < upper)
    }

    /// Whether all it holds is from one place to below another.
    pub(crate) fn is_within(&self, lower: &[u8], upper: Option<&[u8]>) -> bool {
        lower <= self.smallest.as_slice() && upper.is_none_or(|upper| self.end.as_slice() <= upper)
    }

    /// The extractor of a keyspace's prefixes that the filter was made with.
    pub(crate) fn prefix(&self, keyspace: KeyspaceId) -> Prefix {
        let found = self.keyspaces.iter().find(|k| k.id == keyspace);
        found.map_or(Prefix::None, |k| k.prefix)
    }

    /// The highest version of a keyspace in it; `None` if it holds nothing of it.
    pub(crate) fn max_version(&self, keyspace: KeyspaceId) -> Option<u64> {
        let found = self.keyspaces.iter().find(|k| k.id == keyspace)?;
        Some(found.max_version)
    }
}

/// Where the parts of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) index: Handle,
    pub(crate) filter: Handle,
    pub(crate) properties: Handle,
    /// All zeros if there are no range deletions.
    pub(crate) tombstones: Handle,
    /// Of all that is before the footer: nobody reads as much to compare, but it tells files apart.
    pub(crate) file_crc: u32,
}

impl Footer {
    pub(crate) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[48..52].copy_from_slice(&self.file_crc.to_le_bytes());
        let handles = [self.index, self.filter, self.properties, self.tombstones];
        for (at, handle) in [0, 12, 24, 36].into_iter().zip(handles) {
            out[at..at + 8].copy_from_slice(&handle.offset.to_le_bytes());
            out[at + 8..at + 12].copy_from_slice(&handle.size.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..52]);
        out[52..56].copy_from_slice(&crc.to_le_bytes());
        out[56..].copy_from_slice(&MAGIC);
        out
    }

    pub(crate) fn decode(path: &Path, bytes: &[u8; FOOTER_BYTES]) -> Result<Footer> {
        let crc = Reader::new(&bytes[52..]).u32();
        if bytes[56..] != MAGIC || crc != Some(crc32c::crc32c(&bytes[..52])) {
            return Err(Error::corrupt(path, "its footer is not that of a table"));
        }
        let handle = |at: usize| {
            let mut reader = Reader::new(&bytes[at..]);
            let offset = reader.u64()?;
            let size = reader.u32()?;
            Some(Handle { offset, size })
        };
        let all = (|| {
            Some(Footer {
                index: handle(0)?,
                filter: handle(12)?,
                properties: handle(24)?,
                tombstones: handle(36)?,
                file_crc: Reader::new(&bytes[48..]).u32()?,
            })
        })();
        all.ok_or_else(|| Error::corrupt(path, "its footer is too short"))
    }
}

//! The bytes of a segment. All numbers are little-endian.
//!
//! ```text
//! segment = header (64 bytes), record*            named <segment id, 16 hex digits>.log
//! header  = magic "QUORLOG\0" (8), format version u16 (2), cipher u16 (2), incompatible features
//!           u32 (4), key id u32 (4), flags u32 (4), log id u64 (8), segment id u64 (8),
//!           reserved (20), crc32c of the 60 bytes before (4)
//! flags   = 1: all earlier segments were durable when this was written
//! record  = crc u32, length u32, synced u32, kind u8, header check (3), payload, zeros to 8 bytes
//! ```
//!
//! The header check is of length, synced and kind, salted with log id and segment id. It tells whether the
//! bytes at a place may be a record at all, so that a search for records does not have to read as far as
//! each of them claims to reach; and nobody can write values that pass, who does not know the log id.
//!
//! `crc` is crc32c over log id, segment id, and the record from `length` to the payload's end, so
//! that a record of a file's former life is no record. `synced` is the offset below which this
//! segment, and all of the earlier ones, were durable when the record was queued; 0 while an earlier one
//! was not. A record of kind `SEAL` ends a segment that has a successor; its `synced` is 0. The file of a
//! successor may be there, blank, before that. A record of kind `VOID`
//! stands where records were damaged and given up: it says nothing.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

pub(crate) const HEADER_LEN: usize = 64;
pub(crate) const RECORD_HEADER_LEN: usize = 16;
pub(crate) const DATA: u8 = 0;
pub(crate) const SEAL: u8 = 1;
/// In the place of a record that was damaged and is lost.
pub(crate) const VOID: u8 = 2;

const MAGIC: &[u8; 8] = b"QUORLOG\0";
const FORMAT_VERSION: u16 = 1;
const ALIGN: usize = 8;
const FOLLOWS_DURABLE: u32 = 1;

/// What a segment's records are salted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentId {
    pub log: u64,
    pub segment: u64,
}

/// The bytes that a record with this much payload takes.
pub(crate) fn record_len(payload: usize) -> usize {
    (RECORD_HEADER_LEN + payload).next_multiple_of(ALIGN)
}

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub id: SegmentId,
    /// Whether all earlier segments were durable when it was written.
    pub follows_durable: bool,
}

pub(crate) fn encode_header(header: Header) -> [u8; HEADER_LEN] {
    let id = header.id;
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let flags = u32::from(header.follows_durable) * FOLLOWS_DURABLE;
    out[20..24].copy_from_slice(&flags.to_le_bytes());
    out[24..32].copy_from_slice(&id.log.to_le_bytes());
    out[32..40].copy_from_slice(&id.segment.to_le_bytes());
    let crc = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

pub(crate) fn decode_header(path: &Path, bytes: &[u8]) -> Result<Header> {
    let bad = |what: &str| Err(Error::corruption(path, 0, what));
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return bad("the file is shorter than its header");
    };
    if &header[..8] != MAGIC {
        return bad("this is not a log segment");
    }
    if u32_at(header, 60) != crc32c::crc32c(&header[..60]) {
        return bad("the header's checksum does not match");
    }
    let version = u16::from_le_bytes([header[8], header[9]]);
    let features = u32_at(header, 12);
    if version > FORMAT_VERSION || features != 0 || u16_at(header, 10) != 0 {
        let message = format!(
            "{} has log format {version} with features {features:#x}; this program reads format \
             {FORMAT_VERSION} and older: use a newer one",
            path.display()
        );
        return Err(Error::new(ErrorKind::NewerFormat, message));
    }
    Ok(Header {
        id: SegmentId {
            log: u64_at(header, 24),
            segment: u64_at(header, 32),
        },
        follows_durable: u32_at(header, 20) & FOLLOWS_DURABLE != 0,
    })
}

/// Appends one record to `out`.
pub(crate) fn encode_record(
    out: &mut Vec<u8>,
    id: SegmentId,
    kind: u8,
    synced: u32,
    parts: &[&[u8]],
) {
    let start = out.len();
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.reserve(record_len(length));
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&synced.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&header_check(id, length as u32, synced, kind));
    parts.iter().for_each(|part| out.extend_from_slice(part));
    let crc = checksum(id, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_len(length), 0);
}

/// What stands in the place of `room` lost bytes; with a seal, if a successor goes on behind them.
pub(crate) fn encode_void(id: SegmentId, room: usize, sealed: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(room);
    let seal = match sealed {
        true => RECORD_HEADER_LEN,
        false => 0,
    };
    let void = room.saturating_sub(seal) / ALIGN * ALIGN;
    if void >= RECORD_HEADER_LEN {
        encode_record(&mut out, id, VOID, 0, &[&vec![0; void - RECORD_HEADER_LEN]]);
    }
    if sealed {
        encode_record(&mut out, id, SEAL, 0, &[]);
        out.resize(room.max(out.len()), 0);
    }
    out
}

/// A record found in a segment's bytes.
pub(crate) struct Record<'a> {
    pub kind: u8,
    pub synced: u32,
    pub payload: &'a [u8],
}

/// The record that begins at the start of `bytes`, if a whole and sound one does.
pub(crate) fn decode_record(bytes: &[u8], id: SegmentId) -> Option<Record<'_>> {
    let header = bytes.first_chunk::<RECORD_HEADER_LEN>()?;
    let (length, synced, kind) = (u32_at(header, 4), u32_at(header, 8), header[12]);
    if header[13..] != header_check(id, length, synced, kind) {
        return None;
    }
    let end = RECORD_HEADER_LEN.checked_add(length as usize)?;
    let payload = bytes.get(RECORD_HEADER_LEN..end)?;
    if u32_at(header, 0) != checksum(id, bytes.get(4..end)?) {
        return None;
    }
    Some(Record {
        kind,
        synced,
        payload,
    })
}

/// 24 bits of a hash of a record's header.
fn header_check(id: SegmentId, length: u32, synced: u32, kind: u8) -> [u8; 3] {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let numbers = u64::from(length) << 32 | u64::from(synced);
    let mixed = (numbers ^ id.log).wrapping_mul(ODD);
    let mixed = mixed ^ mixed >> 29 ^ id.segment ^ u64::from(kind) << 56;
    let [.., a, b, c] = mixed.wrapping_mul(id.log | 1).to_le_bytes();
    [a, b, c]
}

/// The length of the record whose header these bytes begin with, if the header is sound: what follows need not be.
pub(crate) fn sound_len(bytes: &[u8], id: SegmentId) -> Option<usize> {
    let header = bytes.first_chunk::<RECORD_HEADER_LEN>()?;
    let (length, synced, kind) = (u32_at(header, 4), u32_at(header, 8), header[12]);
    let sound = header[13..] == header_check(id, length, synced, kind) && kind == DATA;
    let fits = length as usize <= bytes.len().saturating_sub(RECORD_HEADER_LEN);
    (sound && fits).then_some(length as usize)
}

/// The payload length that a record header claims.
pub(crate) fn claimed_len(header: &[u8; RECORD_HEADER_LEN]) -> usize {
    u32_at(header, 4) as usize
}

fn checksum(id: SegmentId, bytes: &[u8]) -> u32 {
    let mut salt = [0; 16];
    salt[..8].copy_from_slice(&id.log.to_le_bytes());
    salt[8..].copy_from_slice(&id.segment.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&salt), bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

//! Opening a log: which segments are there, which records are sound, and where the log ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use quorate_env::{Env, File, switch};

use crate::error::{Error, Result};
use crate::format::{self, HEADER_LEN, Header, SEAL, SegmentId};
use crate::log::{Position, Replay, start_of};
use crate::segment::Folder;

/// What was found.
pub(crate) struct Found {
    pub log_id: u64,
    pub tail: Position,
    pub files: BTreeMap<u64, Arc<dyn File>>,
}

/// Replays all segments in order. The last one may end anywhere that was not synced. So may one before it,
/// where nothing proves that it was durable: then the log ends there, and what follows is removed.
pub(crate) fn recover(
    folder: &Folder,
    env: &Env,
    prepare: bool,
    replay: Replay<'_>,
) -> Result<Found> {
    let segments = folder.segments()?;
    if segments.is_empty() {
        return begin(folder, env, prepare);
    }
    let mut found = Found {
        log_id: 0,
        tail: start_of(0),
        files: BTreeMap::new(),
    };
    let mut at = segments.iter().copied().peekable();
    while let Some(segment) = at.next() {
        let path = folder.path(segment);
        let (header, bytes) = read_segment(folder, segment)?;
        if !found.files.is_empty() && header.id.log != found.log_id {
            return Err(foreign(&path));
        }
        if at.peek().is_some_and(|next| *next != segment + 1) {
            return Err(missing_before(&folder.path(segment + 1)));
        }
        found.log_id = header.id.log;
        let last = at.peek().is_none();
        let (end, durable, sealed) = replay_records(folder, &bytes, header.id, last, replay)?;
        found.tail = Position {
            segment,
            offset: end,
        };
        if !sealed {
            let later: Vec<u64> = at.by_ref().collect();
            check_torn(folder, &bytes, &found, &later)?;
            for gone in later.into_iter().rev() {
                folder.remove_newest(gone)?;
            }
        }
        let proven = match at.peek() {
            Some(next) => read_header(folder, *next)?.follows_durable,
            None => false,
        };
        // After a sync that failed, what is read may be in the page cache alone, and no later sync would
        // write it: so it is written once more.
        let doubtful = match sealed {
            true => bytes.get(durable..),
            false => bytes.get(durable..end as usize),
        };
        if let Some(doubtful) = doubtful.filter(|_| !proven) {
            folder.write_again(segment, doubtful, durable as u64)?;
        }
        let clean = bytes.len() as u64 >= folder.bytes_with_end_at(end)
            && bytes[end as usize..].iter().all(|byte| *byte == 0);
        if !sealed && !clean {
            folder.clear_from(segment, end)?;
        }
        let file = folder.open(segment)?;
        file.sync()
            .map_err(|e| Error::io("can't sync", &path, &e))?;
        found.files.insert(segment, file);
    }
    folder.resume_after(found.tail.segment);
    Ok(found)
}

/// Makes the first segment of a new log.
fn begin(folder: &Folder, env: &Env, prepare: bool) -> Result<Found> {
    let id = SegmentId {
        log: env.random.next_u64(),
        segment: 1,
    };
    if prepare {
        folder.prepare_spare()?;
    }
    let file = folder.begin(id)?;
    Ok(Found {
        log_id: id.log,
        tail: start_of(1),
        files: BTreeMap::from([(1, file)]),
    })
}

fn read_segment(folder: &Folder, segment: u64) -> Result<(Header, Vec<u8>)> {
    let path = folder.path(segment);
    let read = folder.disk.read(&path);
    let bytes = read.map_err(|e| Error::io("can't read", &path, &e))?;
    let header = format::decode_header(&path, &bytes)?;
    match header.id.segment == segment {
        true => Ok((header, bytes)),
        false => Err(foreign(&path)),
    }
}

/// The header of a segment, without the rest.
fn read_header(folder: &Folder, segment: u64) -> Result<Header> {
    let path = folder.path(segment);
    let failed = |e: std::io::Error| Error::io("can't read", &path, &e);
    let file = folder.disk.open_read(&path).map_err(failed)?;
    let mut bytes = [0; HEADER_LEN];
    let length = file.read_at(&mut bytes, 0).map_err(failed)?;
    format::decode_header(&path, bytes.get(..length).unwrap_or_default())
}

pub(crate) fn foreign(path: &Path) -> Error {
    Error::corruption(path, 0, "it belongs to another log or place")
}

pub(crate) fn missing_before(path: &Path) -> Error {
    Error::corruption(path, 0, "the segment before it is missing")
}

/// Replays the records of a segment. Returns where they end, below which offset they prove that they are on
/// disk, and whether a seal follows that says that a successor goes on.
fn replay_records(
    folder: &Folder,
    bytes: &[u8],
    id: SegmentId,
    is_last: bool,
    replay: Replay<'_>,
) -> Result<(u64, usize, bool)> {
    let mut at = HEADER_LEN;
    let mut durable = HEADER_LEN;
    while let Some(record) = format::decode_record(&bytes[at..], id) {
        if record.kind == SEAL {
            // A crash between the seal and the next segment: go on writing here.
            return Ok((at as u64, durable, !is_last));
        }
        durable = durable.max(record.synced as usize);
        let position = Position {
            segment: id.segment,
            offset: at as u64,
        };
        replay(position, record.payload)
            .map_err(|what| Error::corruption(&folder.path(id.segment), at as u64, &what))?;
        at = (at + format::record_len(record.payload.len())).min(bytes.len());
    }
    Ok((at as u64, durable, false))
}

/// Fails if anything proves that the log was durable beyond the end that was found.
fn check_torn(folder: &Folder, bytes: &[u8], found: &Found, later: &[u64]) -> Result<()> {
    let Position { segment, offset } = found.tail;
    let id = SegmentId {
        log: found.log_id,
        segment,
    };
    if switch::bug("damage_taken_for_a_torn_tail") {
        return Ok(());
    }
    let damaged = |what: &str| {
        let what = format!("a record's checksum does not match, and {what}");
        Err(Error::corruption(&folder.path(segment), offset, &what))
    };
    if let Some(synced) = synced_beyond(bytes, offset as usize, id) {
        return damaged(&format!("bytes up to {synced} were synced"));
    }
    for segment in later {
        let (header, bytes) = read_segment(folder, *segment)?;
        if header.id.log != id.log {
            return Err(foreign(&folder.path(*segment)));
        }
        if proves_durable_before(header, &bytes) {
            return damaged(&format!("segment {segment} says that it was synced"));
        }
    }
    Ok(())
}

/// Whether a segment proves that all before it was durable.
pub(crate) fn proves_durable_before(header: Header, bytes: &[u8]) -> bool {
    header.follows_durable || synced_beyond(bytes, HEADER_LEN - 8, header.id).is_some()
}

/// Looks past the end for a sound record that proves that the log was synced beyond it.
pub(crate) fn synced_beyond(bytes: &[u8], end: usize, id: SegmentId) -> Option<u32> {
    let mut at = end + 8;
    while at < bytes.len() {
        // Zeros, as behind most ends, are no record.
        let blank = bytes[at..].iter().take(8).all(|byte| *byte == 0);
        if !blank
            && let Some(record) = format::decode_record(&bytes[at..], id)
            && record.synced as usize > end
        {
            return Some(record.synced);
        }
        at += 8;
    }
    None
}

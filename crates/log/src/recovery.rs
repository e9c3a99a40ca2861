//! Opening a log: which segments are there, which records are sound, and where the log ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_env::{Env, File, switch};

use crate::error::{Error, Result};
use crate::format::{self, HEADER_LEN, Header, RECORD_HEADER_LEN, SEAL, SegmentId, VOID};
use crate::log::{Position, start_of};
use crate::segment::Folder;

/// Records that are damaged though they had been synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The segment's file.
    pub path: PathBuf,
    /// Where it begins.
    pub at: Position,
    /// How many bytes it takes.
    pub length: u64,
    /// The bytes of the payload, if it is one record whose header is sound; else 0.
    pub(crate) payload: usize,
    /// What is wrong.
    pub what: String,
}

/// What an opening log says of what it holds, in order.
pub enum Heard<'a> {
    /// A record.
    Record(Position, &'a [u8]),
    /// Something that is lost. With bytes it is one record, and these are its payload, damaged somewhere. An error
    /// fails the opening as corruption.
    Lost(&'a Lost, Option<&'a [u8]>),
}

/// Hears what an opened log holds; an error text fails the opening as corruption.
pub type Hear<'a> = &'a mut dyn FnMut(Heard<'_>) -> std::result::Result<(), String>;

/// What was found.
pub(crate) struct Found {
    pub log_id: u64,
    pub tail: Position,
    pub files: BTreeMap<u64, Arc<dyn File>>,
    /// What was damaged, and is still there as it is.
    pub lost: Vec<Lost>,
}

/// Replays all segments in order. The last one may end anywhere that was not synced. So may one before it,
/// where nothing proves that it was durable: then the log ends there, and what follows is removed.
pub(crate) fn recover(folder: &Folder, env: &Env, prepare: bool, hear: Hear<'_>) -> Result<Found> {
    let segments = folder.segments()?;
    if segments.is_empty() {
        return begin(folder, env, prepare);
    }
    let mut found = Found {
        log_id: 0,
        tail: start_of(0),
        files: BTreeMap::new(),
        lost: Vec::new(),
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
        let later: Vec<u64> = at.clone().collect();
        let (end, durable, sealed) =
            replay_segment(folder, (&bytes, header.id), &later, hear, &mut found.lost)?;
        found.tail = Position {
            segment,
            offset: end,
        };
        if !sealed {
            while at.next().is_some() {}
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
        lost: Vec::new(),
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

/// Replays the records of a segment, those behind damage too. Returns where they end, below which offset they prove
/// that they are on disk, and whether a successor goes on.
fn replay_segment(
    folder: &Folder,
    (bytes, id): (&[u8], SegmentId),
    later: &[u64],
    hear: Hear<'_>,
    lost: &mut Vec<Lost>,
) -> Result<(u64, usize, bool)> {
    let (mut from, mut durable) = (HEADER_LEN, HEADER_LEN);
    loop {
        let (end, proven, sealed) = replay_records(folder, bytes, (id, from), later, hear)?;
        durable = durable.max(proven);
        let what = match sealed {
            true => None,
            false => damage_at(folder, bytes, (id, end), later)?,
        };
        let Some(what) = what else {
            return Ok((end as u64, durable, sealed));
        };
        let part = lost_at(folder, bytes, (id, end), &what);
        from = end + part.length as usize;
        let payload = bytes.get(end + RECORD_HEADER_LEN..from).unwrap_or_default();
        let payload = payload.get(..part.payload).filter(|_| part.payload > 0);
        hear(Heard::Lost(&part, payload))
            .map_err(|_| Error::corruption(&part.path, part.at.offset, &part.what))?;
        lost.push(part);
        if from >= bytes.len() {
            return Ok((from as u64, durable, !later.is_empty()));
        }
    }
}

/// Replays sound records from an offset on.
fn replay_records(
    folder: &Folder,
    bytes: &[u8],
    (id, from): (SegmentId, usize),
    later: &[u64],
    hear: Hear<'_>,
) -> Result<(usize, usize, bool)> {
    let mut at = from;
    let mut durable = HEADER_LEN;
    while let Some(record) = bytes
        .get(at..)
        .and_then(|rest| format::decode_record(rest, id))
    {
        if record.kind == SEAL {
            // A crash between the seal and the next segment: go on writing here.
            return Ok((at, durable, !later.is_empty()));
        }
        durable = durable.max(record.synced as usize);
        let position = Position {
            segment: id.segment,
            offset: at as u64,
        };
        if record.kind != VOID {
            hear(Heard::Record(position, record.payload))
                .map_err(|what| Error::corruption(&folder.path(id.segment), at as u64, &what))?;
        }
        at = (at + format::record_len(record.payload.len())).min(bytes.len());
    }
    Ok((at, durable, false))
}

/// What is lost where sound records end: one record, if its header says where it ends and a sound one follows;
/// else all up to the next sound one, or to the end of the segment.
fn lost_at(folder: &Folder, bytes: &[u8], (id, at): (SegmentId, usize), what: &str) -> Lost {
    let is_sound = |at: usize| {
        bytes
            .get(at..)
            .is_some_and(|rest| format::decode_record(rest, id).is_some())
    };
    let claimed = bytes.get(at..).and_then(|rest| format::sound_len(rest, id));
    let claimed = claimed.map(|payload| (payload, at + format::record_len(payload)));
    let blank = |from: usize| bytes.get(from..from + 8).is_none_or(|b| b == [0; 8]);
    let next = || {
        (at + RECORD_HEADER_LEN..bytes.len())
            .step_by(8)
            .find(|at| !blank(*at) && is_sound(*at))
    };
    let (payload, end) = match claimed {
        Some((payload, end)) if end <= bytes.len() => (payload, end),
        _ => (0, next().unwrap_or(bytes.len())),
    };
    Lost {
        path: folder.path(id.segment),
        at: Position {
            segment: id.segment,
            offset: at as u64,
        },
        length: (end - at) as u64,
        payload,
        what: what.to_owned(),
    }
}

/// What proves that the log was durable beyond the end that was found, if anything does: then it is damaged, and
/// not torn.
fn damage_at(
    folder: &Folder,
    bytes: &[u8],
    (id, end): (SegmentId, usize),
    later: &[u64],
) -> Result<Option<String>> {
    if switch::bug("damage_taken_for_a_torn_tail") {
        return Ok(None);
    }
    let what = |proof: String| {
        Ok(Some(format!(
            "a record's checksum does not match, and {proof}"
        )))
    };
    if let Some(synced) = synced_beyond(bytes, end, id) {
        return what(format!("bytes up to {synced} were synced"));
    }
    for segment in later {
        let (header, bytes) = read_segment(folder, *segment)?;
        if header.id.log != id.log {
            return Err(foreign(&folder.path(*segment)));
        }
        if proves_durable_before(header, &bytes) {
            return what(format!("segment {segment} says that it was synced"));
        }
    }
    Ok(None)
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

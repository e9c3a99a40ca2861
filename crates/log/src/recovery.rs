//! Opening a log: which segments are there, which records are sound, and where the log ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_env::{Env, File};

use crate::error::{Error, Result};
use crate::format::{self, HEADER_LEN, SEAL, SegmentId};
use crate::log::{Position, Replay};
use crate::segment::Folder;

/// What was found.
pub(crate) struct Found {
    pub log_id: u64,
    pub tail: Position,
    pub files: BTreeMap<u64, Arc<dyn File>>,
}

/// Replays all segments in order. The last one may end anywhere that was not synced; all others end
/// with their seal.
pub(crate) fn recover(
    folder: &Folder,
    env: &Env,
    prepare: bool,
    replay: Replay<'_>,
) -> Result<Found> {
    let segments = folder.segments()?;
    let Some(&last) = segments.last() else {
        let id = SegmentId {
            log: env.random.next_u64(),
            segment: 1,
        };
        if prepare {
            folder.prepare_spare()?;
        }
        let file = folder.create(id)?;
        let tail = Position {
            segment: 1,
            offset: HEADER_LEN as u64,
        };
        return Ok(Found {
            log_id: id.log,
            tail,
            files: BTreeMap::from([(1, file)]),
        });
    };
    let mut found = Found {
        log_id: 0,
        tail: Position {
            segment: last,
            offset: HEADER_LEN as u64,
        },
        files: BTreeMap::new(),
    };
    for (n, &segment) in segments.iter().enumerate() {
        let path = folder.path(segment);
        if n > 0 && segments[n - 1] + 1 != segment {
            return Err(Error::corruption(
                &path,
                0,
                "the segment before it is missing",
            ));
        }
        let bytes = folder
            .disk
            .read(&path)
            .map_err(|e| Error::io("can't read", &path, &e))?;
        let id = format::decode_header(&path, &bytes)?;
        if n > 0 && id.log != found.log_id || id.segment != segment {
            return Err(Error::corruption(
                &path,
                0,
                "it belongs to another log or place",
            ));
        }
        found.log_id = id.log;
        found.tail.offset = replay_segment(folder, &bytes, id, segment == last, replay)?;
        let file = folder.open(segment)?;
        file.sync()
            .map_err(|e| Error::io("can't sync", &path, &e))?;
        found.files.insert(segment, file);
    }
    Ok(found)
}

/// Replays one segment and returns where it ends.
fn replay_segment(
    folder: &Folder,
    bytes: &[u8],
    id: SegmentId,
    is_last: bool,
    replay: Replay<'_>,
) -> Result<u64> {
    let path = folder.path(id.segment);
    let mut at = HEADER_LEN;
    // All before this is on disk: records prove it.
    let mut durable = HEADER_LEN;
    while let Some(record) = format::decode_record(&bytes[at..], id) {
        durable = durable.max(record.synced as usize);
        if record.kind == SEAL {
            if is_last {
                // A crash between the seal and the next segment: go on writing here.
                break;
            }
            return Ok(at as u64);
        }
        let position = Position {
            segment: id.segment,
            offset: at as u64,
        };
        replay(position, record.payload)
            .map_err(|what| Error::corruption(&path, at as u64, &what))?;
        at = (at + format::record_len(record.payload.len())).min(bytes.len());
    }
    if !is_last {
        return Err(Error::corruption(
            &path,
            at as u64,
            "a record's checksum does not match",
        ));
    }
    if let Some(synced) = synced_beyond(bytes, at, id) {
        let what =
            format!("a record's checksum does not match, and bytes up to {synced} were synced");
        return Err(Error::corruption(&path, at as u64, &what));
    }
    // After a sync that failed, what is read may be in the page cache alone, and no later sync would write
    // it: so it is written once more.
    if let Some(doubtful) = bytes.get(durable..at) {
        folder.write_again(id.segment, doubtful, durable as u64)?;
    }
    if (bytes.len() as u64) < folder.segment_bytes || bytes[at..].iter().any(|byte| *byte != 0) {
        folder.clear_from(id.segment, at as u64)?;
    }
    Ok(at as u64)
}

/// Looks past the end for a sound record that proves that the log was synced beyond it.
pub(crate) fn synced_beyond(bytes: &[u8], end: usize, id: SegmentId) -> Option<u32> {
    let mut at = end + 8;
    while at < bytes.len() {
        if let Some(record) = format::decode_record(&bytes[at..], id)
            && record.synced as usize > end
        {
            return Some(record.synced);
        }
        at += 8;
    }
    None
}

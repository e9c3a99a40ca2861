//! Reading a log that somebody else may be writing to: nothing is opened for writing, made or cleared.

use std::path::Path;

use quorate_env::{Disk, Env};

use crate::error::{Error, Result};
use crate::format::{self, HEADER_LEN, SEAL, SegmentId};
use crate::log::{Position, Replay};
use crate::recovery::synced_beyond;
use crate::segment::Folder;

/// Gives every record that is in a log now to `replay`, in order, and touches nothing; a directory
/// that is not there is an empty log. The last records may be ones that a power cut would take.
///
/// While somebody writes, segments may be released meanwhile: those are passed over, with all before
/// them, so that there may be a gap in the records, before which none is needed. And what is read may
/// change under it: an error may then be no damage, and the caller tries again. Records that it got
/// before an error mean nothing.
pub fn scan(env: &Env, dir: &Path, replay: Replay<'_>) -> Result<()> {
    let disk = env.disk.as_ref();
    let exists = disk.exists(dir);
    if !exists.map_err(|e| Error::io("can't look for", dir, &e))? {
        return Ok(());
    }
    let segments = Folder::new(env, dir, 0).segments()?;
    let mut log = None;
    for (n, &segment) in segments.iter().enumerate() {
        let is_last = n + 1 == segments.len();
        let follows = n == 0 || segments[n - 1] + 1 == segment;
        let path = Folder::new(env, dir, 0).path(segment);
        if !follows {
            return Err(Error::corruption(
                &path,
                0,
                "the segment before it is missing",
            ));
        }
        scan_segment(disk, &path, segment, &mut log, is_last, replay)?;
    }
    Ok(())
}

fn scan_segment(
    disk: &dyn Disk,
    path: &Path,
    segment: u64,
    log: &mut Option<u64>,
    is_last: bool,
    replay: Replay<'_>,
) -> Result<()> {
    let bytes = match disk.read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|e| Error::io("can't read", path, &e))?,
    };
    let id: SegmentId = format::decode_header(path, &bytes)?;
    if id.segment != segment || *log.get_or_insert(id.log) != id.log {
        return Err(Error::corruption(
            path,
            0,
            "it belongs to another log or place",
        ));
    }
    let mut at = HEADER_LEN;
    while let Some(record) = bytes.get(at..).and_then(|b| format::decode_record(b, id)) {
        if record.kind == SEAL {
            return Ok(());
        }
        let position = Position {
            segment,
            offset: at as u64,
        };
        let replayed = replay(position, record.payload);
        replayed.map_err(|what| Error::corruption(path, at as u64, &what))?;
        at += format::record_len(record.payload.len());
    }
    match is_last && synced_beyond(&bytes, at, id).is_none() {
        true => Ok(()),
        false => Err(Error::corruption(
            path,
            at as u64,
            "a record's checksum does not match",
        )),
    }
}

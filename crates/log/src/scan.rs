//! Reading a log that somebody else may be writing to: nothing is opened for writing, made or cleared.

use std::path::Path;

use quorate_env::Env;

use crate::error::{Error, Result};
use crate::format::{self, HEADER_LEN, Header, SEAL, SegmentId, VOID};
use crate::log::{Position, Replay};
use crate::recovery::{foreign, missing_before, proves_durable_before, synced_beyond};
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
    let folder = Folder::new(env, dir, 0);
    let segments = folder.segments()?;
    let mut log = None;
    for (n, &segment) in segments.iter().enumerate() {
        if n > 0 && segments[n - 1] + 1 != segment {
            return Err(missing_before(&folder.path(segment)));
        }
        let Some((header, bytes)) = read(&folder, segment, &mut log)? else {
            continue;
        };
        let Some(end) = scan_segment(&folder, header.id, &bytes, replay)? else {
            continue;
        };
        // The log ends here, unless something proves that it went on.
        let mut went_on = synced_beyond(&bytes, end, header.id).is_some();
        for &later in &segments[n + 1..] {
            let there = read(&folder, later, &mut log)?;
            went_on |= there.is_some_and(|(header, bytes)| proves_durable_before(header, &bytes));
        }
        let what = "a record's checksum does not match";
        return match went_on {
            false => Ok(()),
            true => Err(Error::corruption(&folder.path(segment), end as u64, what)),
        };
    }
    Ok(())
}

/// A segment, if it is still there.
fn read(folder: &Folder, segment: u64, log: &mut Option<u64>) -> Result<Option<(Header, Vec<u8>)>> {
    let path = folder.path(segment);
    let bytes = match folder.disk.read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| Error::io("can't read", &path, &e))?,
    };
    let header = format::decode_header(&path, &bytes)?;
    let id = header.id;
    match id.segment == segment && *log.get_or_insert(id.log) == id.log {
        true => Ok(Some((header, bytes))),
        false => Err(foreign(&path)),
    }
}

/// Gives out a segment's records; returns where they end, if no seal does it.
fn scan_segment(
    folder: &Folder,
    id: SegmentId,
    bytes: &[u8],
    replay: Replay<'_>,
) -> Result<Option<usize>> {
    let mut at = HEADER_LEN;
    while let Some(record) = bytes.get(at..).and_then(|b| format::decode_record(b, id)) {
        if record.kind == SEAL {
            return Ok(None);
        }
        let position = Position {
            segment: id.segment,
            offset: at as u64,
        };
        let replayed = match record.kind {
            VOID => Ok(()),
            _ => replay(position, record.payload),
        };
        replayed.map_err(|what| Error::corruption(&folder.path(id.segment), at as u64, &what))?;
        at += format::record_len(record.payload.len());
    }
    Ok(Some(at))
}

//! Looking at a value file without believing anybody.

use std::path::Path;

use bytes::Bytes;
use quorate_env::Disk;

use super::file::{ValueFile, read_meta};
use super::format::{LENGTH_BYTES, Pointer, Share, ValueMeta};
use crate::error::{Error, Result};
use crate::header::HEADER_BYTES;

/// Where sound records of a value file lie: their offsets, ascending, and sizes.
#[derive(Debug, Default)]
pub(crate) struct Records {
    at: Vec<(u64, u32)>,
}

impl Records {
    /// Whether a pointer points to one of them.
    pub(crate) fn hold(&self, pointer: &Pointer) -> bool {
        self.at
            .binary_search(&(pointer.offset, pointer.size))
            .is_ok()
    }
}

/// What a value file says of itself.
pub(crate) fn describe_values(disk: &dyn Disk, path: &Path) -> Result<ValueMeta> {
    let failed = |e: std::io::Error| Error::disk(path, "can't read", &e);
    let file = disk.open_read(path).map_err(failed)?;
    let size = file.size().map_err(failed)?;
    let meta = read_meta(file.as_ref(), path, size)?;
    match meta.size_bytes() == size {
        true => Ok(meta),
        false => Err(Error::corrupt(path, "its footer speaks of another size")),
    }
}

/// Reads every record from the disk; returns where the sound ones are and all that is wrong, each with
/// where it is in the file. `each` hears of the bytes that are done.
pub(crate) fn check_values(
    file: &ValueFile,
    each: &mut dyn FnMut(u64),
) -> (Records, Vec<(Option<u64>, String)>) {
    let mut records = Records::default();
    let mut problems = Vec::new();
    if let Err(error) = file.file() {
        problems.push((None, error.message().to_owned()));
        return (records, problems);
    }
    let (mut at, end) = (HEADER_BYTES as u64, file.meta.records_end());
    let mut counted = Share::default();
    // Of a run of damage the beginning is named: a wrong length leads astray.
    let mut sound = true;
    while at < end {
        let Some(pointer) = record_at(file, at, end) else {
            if sound {
                problems.push((Some(at), "a record has no sound length".to_owned()));
            }
            break;
        };
        match file.read_anew(&pointer) {
            Ok(_) => {
                records.at.push((pointer.offset, pointer.size));
                sound = true;
            }
            Err(error) if sound => {
                problems.push((Some(at), error.message().to_owned()));
                sound = false;
            }
            Err(_) => {}
        }
        counted.add(&pointer);
        each(u64::from(pointer.size));
        at = pointer.end();
    }
    if problems.is_empty() && counted != file.meta.all {
        let what = format!(
            "it says that it holds {} values, it holds {}",
            file.meta.all.records, counted.records
        );
        problems.push((None, what));
    }
    (records, problems)
}

/// The record that begins at an offset, by its own length; `None` if that can't be.
fn record_at(file: &ValueFile, offset: u64, end: u64) -> Option<Pointer> {
    if end - offset < LENGTH_BYTES as u64 {
        return None;
    }
    let length = file.read(offset, LENGTH_BYTES, Bytes::new()).ok()?;
    let length = u32::from_le_bytes(*length.first_chunk()?);
    let pointer = Pointer {
        file: file.meta.number,
        offset,
        size: length.checked_add(LENGTH_BYTES as u32)?,
    };
    (length > 0 && pointer.end() <= end).then_some(pointer)
}

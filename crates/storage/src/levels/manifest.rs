//! The manifest: the log of edits that says which tables make up the store.
//!
//! `CURRENT` names the manifest that counts. A manifest starts with one edit that makes everything
//! from nothing; each later edit is appended and synced before it takes effect. At opening, and
//! when it has grown long or could not be written to, a new one is begun and `CURRENT` switched.
//!
//! A record is complete or it is not there: a record at the end that a crash cut off (the file ends
//! within it, or a whole sector of it is zeros) was never answered for and is ignored. Any other
//! mismatch is damage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_env::{Disk, File};

use super::edit::Edit;
use crate::codec::Reader;
use crate::error::{Error, Result};
use crate::header::{self, HEADER_BYTES, Magic};
use crate::planted::{self, Bug};

const MAGIC: Magic = *b"QUORMAN\0";
const CURRENT_MAGIC: Magic = *b"QUORCUR\0";
/// Length and checksums before the payload of a record.
const RECORD_HEADER_BYTES: usize = 12;
/// The last byte of a record, so that none ends in zeros.
const END: u8 = 0x5a;
const SECTOR: usize = 512;
/// A manifest longer than this, and twice as long as at its beginning, is begun anew.
const ROLL_BYTES: u64 = 1 << 20;

/// The open manifest.
pub(crate) struct Manifest {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    number: u64,
    file: Arc<dyn File>,
    end: u64,
    /// Where its first edit ended.
    first_end: u64,
    /// An append failed half-way: nothing more may follow in this file.
    broken: bool,
}

pub(crate) fn manifest_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.manifest"))
}

fn current_path(dir: &Path) -> PathBuf {
    dir.join("CURRENT")
}

fn record(edit: &Edit) -> Vec<u8> {
    let payload = edit.encode();
    let length = (payload.len() as u32).to_le_bytes();
    let mut out = Vec::with_capacity(RECORD_HEADER_BYTES + payload.len() + 1);
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc32c::crc32c(&length).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    out.extend_from_slice(&payload);
    out.push(END);
    out
}

impl Manifest {
    /// The number of the manifest that counts; `None` if the directory holds no store.
    pub(crate) fn current(disk: &dyn Disk, dir: &Path) -> Result<Option<u64>> {
        let path = current_path(dir);
        let failed = |e: std::io::Error| Error::disk(&path, "can't read", &e);
        if !disk.exists(&path).map_err(failed)? {
            return Ok(None);
        }
        let bytes = disk.read(&path).map_err(failed)?;
        header::check(&path, &CURRENT_MAGIC, &bytes)?;
        let mut reader = Reader::new(&bytes[HEADER_BYTES..]);
        match (reader.u64(), reader.u32()) {
            (Some(number), Some(crc))
                if crc == crc32c::crc32c(&number.to_le_bytes()) && reader.is_empty() =>
            {
                Ok(Some(number))
            }
            _ => Err(Error::corrupt(&path, "it names no manifest")),
        }
    }

    /// Reads all edits of a manifest.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path, number: u64) -> Result<Vec<Edit>> {
        let (edits, damage) = Manifest::read_sound(disk, dir, number);
        damage.map_or(Ok(edits), Err)
    }

    /// Reads edits of a manifest as far as they are sound, and says why it ended if not with the file.
    pub(crate) fn read_sound(
        disk: &dyn Disk,
        dir: &Path,
        number: u64,
    ) -> (Vec<Edit>, Option<Error>) {
        let path = manifest_path(dir, number);
        let mut edits = Vec::new();
        let bytes = disk.read(&path);
        let bytes = bytes.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt(&path, "the file is missing"),
            _ => Error::disk(&path, "can't read", &e),
        });
        let bytes = bytes.and_then(|bytes| {
            header::check(&path, &MAGIC, &bytes)?;
            Ok(bytes)
        });
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return (edits, Some(error)),
        };
        let mut at = HEADER_BYTES;
        while at < bytes.len() {
            match decode_record(&bytes, at) {
                Some((edit, end)) => {
                    edits.push(edit);
                    at = end;
                }
                None if torn(&bytes, at) => break,
                None => {
                    let what = format!("record at byte {at}");
                    return (edits, Some(Error::corrupt(&path, what)));
                }
            }
        }
        let nothing = || Error::corrupt(&path, "it holds no edit");
        let damage = edits.is_empty().then(nothing);
        (edits, damage)
    }

    /// Begins a manifest with `everything` and makes it the one that counts.
    pub(crate) fn begin(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        number: u64,
        everything: &Edit,
    ) -> Result<Manifest> {
        let path = manifest_path(dir, number);
        let mut bytes = header::encode(&MAGIC).to_vec();
        bytes.extend_from_slice(&record(everything));
        let make = || {
            let file = disk.create(&path)?;
            file.write_all_at(&bytes, 0)?;
            file.sync()?;
            if !planted::is_on(Bug::CurrentBeforeManifest) {
                disk.sync_dir(dir)?;
            }
            Ok(file)
        };
        let file = make().map_err(|e| Error::disk(&path, "can't write", &e))?;
        let mut current = header::encode(&CURRENT_MAGIC).to_vec();
        current.extend_from_slice(&number.to_le_bytes());
        current.extend_from_slice(&crc32c::crc32c(&number.to_le_bytes()).to_le_bytes());
        let switched = disk.write_atomic(&current_path(dir), &current);
        switched.map_err(|e| Error::disk(&current_path(dir), "can't write", &e))?;
        Ok(Manifest {
            disk: Arc::clone(disk),
            dir: dir.to_owned(),
            number,
            file,
            end: bytes.len() as u64,
            first_end: bytes.len() as u64,
            broken: false,
        })
    }

    /// Whether the next edit wants a new manifest.
    pub(crate) fn wants_roll(&self) -> bool {
        self.broken || self.end > ROLL_BYTES.max(2 * self.first_end)
    }

    /// Appends an edit, durable on return. After an error that is not `DiskFull` it is unknown
    /// whether the edit is there.
    pub(crate) fn append(&mut self, edit: &Edit) -> Result<()> {
        let path = manifest_path(&self.dir, self.number);
        let bytes = record(edit);
        self.broken = true;
        let wrote = self.file.write_all_at(&bytes, self.end);
        wrote.map_err(|e| Error::disk(&path, "can't write", &e))?;
        if !planted::is_on(Bug::ManifestUnsynced) {
            let synced = self.file.sync();
            synced.map_err(|e| Error::disk(&path, "can't sync", &e).not_full())?;
        }
        self.broken = false;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Replaces this manifest by a new one.
    pub(crate) fn roll(&mut self, number: u64, everything: &Edit) -> Result<()> {
        let next = Manifest::begin(&self.disk, &self.dir, number, everything)?;
        let old = std::mem::replace(self, next);
        // If it stays, the next opening removes it.
        let _ = self.disk.remove(&manifest_path(&old.dir, old.number));
        Ok(())
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

fn decode_record(bytes: &[u8], at: usize) -> Option<(Edit, usize)> {
    let rest = bytes.get(at..)?;
    let (length, lengths_crc) = (rest.first_chunk::<4>()?, rest.get(4..8)?);
    if crc32c::crc32c(length).to_le_bytes() != lengths_crc {
        return None;
    }
    let end = RECORD_HEADER_BYTES + u32::from_le_bytes(*length) as usize;
    let payload = rest.get(RECORD_HEADER_BYTES..end)?;
    if crc32c::crc32c(payload).to_le_bytes() != rest.get(8..12)? || rest.get(end) != Some(&END) {
        return None;
    }
    Some((Edit::decode(payload)?, at + end + 1))
}

/// Whether the bytes from `at` on are what a crash leaves of a record.
fn torn(bytes: &[u8], at: usize) -> bool {
    let rest = &bytes[at..];
    let end = match rest.first_chunk::<RECORD_HEADER_BYTES>() {
        None => return true,
        Some(header) if crc32c::crc32c(&header[..4]).to_le_bytes() == header[4..8] => {
            let length = header.first_chunk::<4>().copied().unwrap_or_default();
            RECORD_HEADER_BYTES + u32::from_le_bytes(length) as usize + 1
        }
        // The header is lost: all that a torn write may leave is zeros in its sectors.
        Some(_) => rest.len(),
    };
    if end > rest.len() {
        return true;
    }
    // The sectors are those of the file.
    let mut from = 0;
    while from < end {
        let to = (from + SECTOR - (at + from) % SECTOR).min(end);
        if rest[from..to].iter().all(|byte| *byte == 0) {
            return true;
        }
        from = to;
    }
    false
}

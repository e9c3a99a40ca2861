//! Backups: the present state as a directory of its own, on any file system, with only what is new copied.
//!
//! Tables and value files never change, and a number is given to one file only. So what the backup before has,
//! by number, size and footer, gets a second name; the rest is copied, synced and read back block by block.
//! Each backup is whole by itself: it opens as an engine, and goes by removing its directory.

use std::io;
use std::path::Path;
use std::sync::Arc;

use quorate_env::Disk;

use super::Inner;
use super::checkpoint::{Part, link_error, refuse_incomplete};
use crate::cache::BlockCache;
use crate::engine::Sequence;
use crate::error::{Error, Result};
use crate::levels::{Shelf, TableFile};
use crate::planted::{self, Bug};
use crate::table::check_blocks;
use crate::values::{ValueFile, check_values};

/// Files are copied in pieces of this size.
const PIECE: usize = 1 << 20;
/// The end of a file, which has a checksum over what the file says of itself.
const END: u64 = 64;

/// What a backup has and what it cost; see [`Lsm::backup`](crate::Lsm::backup).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backup {
    /// The last write that is in it, with all before.
    pub sequence: Sequence,
    /// Files that were copied.
    pub copied_files: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Files that the backup before has as well.
    pub shared_files: u64,
    /// Their bytes.
    pub shared_bytes: u64,
}

impl Inner {
    pub(super) fn backup(self: &Arc<Self>, dir: &Path, previous: Option<&Path>) -> Result<Backup> {
        let disk = &self.env.disk;
        if let Some(previous) = previous {
            refuse_incomplete(disk.as_ref(), previous)?;
        }
        let cache = Arc::new(BlockCache::new(0, self.options.block_bytes));
        let there = Arc::new(Shelf::new(Arc::clone(disk), dir, cache));
        let mut backup = Backup::default();
        let sequence = self.copy_out(dir, &mut |part, to| {
            let from = part.path();
            let before = previous
                .zip(to.file_name())
                .map(|(dir, name)| dir.join(name));
            if let Some(before) = before
                && is_same(disk.as_ref(), &from, &before)?
            {
                let linked = disk.hard_link(&before, to);
                linked.map_err(|e| link_error(&before, to, &e))?;
                backup.shared_files += 1;
                backup.shared_bytes += part.size_bytes();
                return Ok(());
            }
            copy(disk.as_ref(), &from, to)?;
            check(part, &there)?;
            backup.copied_files += 1;
            backup.copied_bytes += part.size_bytes();
            Ok(())
        })?;
        Ok(Backup { sequence, ..backup })
    }
}

impl Part<'_> {
    fn size_bytes(&self) -> u64 {
        match self {
            Part::Table(table) => table.meta.size_bytes,
            Part::Values(file) => file.meta.size_bytes(),
        }
    }
}

/// Whether a file is there and is the same one.
fn is_same(disk: &dyn Disk, ours: &Path, there: &Path) -> Result<bool> {
    let failed = |path: &Path, e: &io::Error| Error::disk(path, "can't read", e);
    if !disk.exists(there).map_err(|e| failed(there, &e))? {
        return Ok(false);
    }
    let ours = end_of(disk, ours).map_err(|e| failed(ours, &e))?;
    let theirs = end_of(disk, there).map_err(|e| failed(there, &e))?;
    Ok(ours == theirs)
}

/// The size of a file and its last bytes.
fn end_of(disk: &dyn Disk, path: &Path) -> io::Result<(u64, Vec<u8>)> {
    let file = disk.open_read(path)?;
    let size = file.size()?;
    let mut end = vec![0; size.min(END) as usize];
    file.read_exact_at(&mut end, size.saturating_sub(END))?;
    Ok((size, end))
}

/// Copies a file; its content is durable on return.
fn copy(disk: &dyn Disk, from: &Path, to: &Path) -> Result<()> {
    let read = |e: io::Error| Error::disk(from, "can't read", &e);
    let wrote = |e: io::Error| Error::disk(to, "can't write", &e);
    let source = disk.open_read(from).map_err(read)?;
    let size = source.size().map_err(read)?;
    let target = disk.create(to).map_err(wrote)?;
    target.allocate(size).map_err(wrote)?;
    let mut piece = vec![0; PIECE.min(size as usize)];
    let mut at = 0;
    while at < size {
        let part = piece.len().min((size - at) as usize);
        source.read_exact_at(&mut piece[..part], at).map_err(read)?;
        target.write_all_at(&piece[..part], at).map_err(wrote)?;
        at += part as u64;
    }
    match planted::is_on(Bug::BackupUnsynced) {
        true => Ok(()),
        false => target.sync().map_err(wrote),
    }
}

/// Reads a copy: damage of the original is not to become a backup.
fn check(part: &Part<'_>, there: &Arc<Shelf>) -> Result<()> {
    let (path, problem) = match part {
        Part::Table(table) => {
            let copy = TableFile::new(Arc::clone(&table.meta), there);
            let properties = &table.meta.properties;
            let problems = check_blocks(copy.table()?, properties, &|_| Ok(()), &mut |_| {});
            (
                table.path(),
                problems.into_iter().next().map(|(_, what)| what),
            )
        }
        Part::Values(file) => {
            let copy = ValueFile::new(file.meta, there);
            let (_, problems) = check_values(&copy, &mut |_| {});
            (
                file.path(),
                problems.into_iter().next().map(|(_, what)| what),
            )
        }
    };
    match problem {
        None => Ok(()),
        Some(what) => Err(Error::corrupt(&path, what)),
    }
}

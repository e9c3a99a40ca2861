//! Checkpoints: the present state as a directory of its own, by hard links.
//!
//! Tables never change, so a second name for each is a copy of it. What is in memory is flushed
//! first; then levels and the sequence they go up to are read at one moment, and writing goes on. The
//! directory bears a mark, the file `INCOMPLETE`, from before its first name until all of it is
//! durable; an engine does not open a directory with the mark. So a crash leaves nothing there, an
//! empty directory, one that is refused, or the whole.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quorate_env::Disk;

use super::Inner;
use crate::engine::Sequence;
use crate::error::{Error, ErrorKind, Result};
use crate::levels::{Edit, Levels, Manifest, TableFile, table_path};
use crate::planted::{self, Bug};
use crate::values::{ValueFile, value_path};

/// The mark of a checkpoint that is being made.
const MARK: &str = "INCOMPLETE";

/// Fails if the directory is a checkpoint that was never finished.
pub(crate) fn refuse_incomplete(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let mark = dir.join(MARK);
    let marked = disk.exists(&mark);
    match marked.map_err(|e| Error::disk(&mark, "can't look for", &e))? {
        false => Ok(()),
        true => Err(Error::new(
            ErrorKind::Corruption,
            format!(
                "{} is a checkpoint that was not finished: remove it and make another",
                dir.display()
            ),
        )),
    }
}

/// A file that belongs to the state.
pub(super) enum Part<'a> {
    Table(&'a TableFile),
    Values(&'a ValueFile),
}

impl Part<'_> {
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Part::Table(table) => table.path(),
            Part::Values(file) => file.path(),
        }
    }
}

/// Puts a file of the state under a path.
pub(super) type Place<'a> = &'a mut dyn FnMut(&Part<'_>, &Path) -> Result<()>;

impl Inner {
    pub(super) fn checkpoint(self: &Arc<Self>, dir: &Path) -> Result<Sequence> {
        self.copy_out(dir, &mut |part, to| {
            let from = part.path();
            let linked = self.env.disk.hard_link(&from, to);
            linked.map_err(|e| link_error(&from, to, &e))
        })
    }

    /// Makes an engine of its own in a directory; `place` puts each file of this one there.
    pub(super) fn copy_out(self: &Arc<Self>, dir: &Path, place: Place<'_>) -> Result<Sequence> {
        let disk = self.env.disk.as_ref();
        let failed = |e: io::Error| Error::disk(dir, "can't make", &e);
        disk.create_dir_all(dir).map_err(failed)?;
        if !disk.list(dir).map_err(failed)?.is_empty() {
            let text = format!(
                "{} is not an empty directory, which this wants",
                dir.display()
            );
            return Err(Error::invalid(text));
        }
        self.flush_and_wait()?;
        let (levels, everything) = self.at_one_sequence();
        let made = self.fill(dir, &levels, &everything, place);
        if made.is_err() {
            // The mark goes last. What stays is refused.
            let _ = self.clear(dir);
        }
        drop(levels);
        self.shelf.purge();
        made.map(|()| everything.flushed_sequence.unwrap_or(0))
    }

    /// The levels, and the edit that makes them from nothing: what was flushed at one moment.
    fn at_one_sequence(self: &Arc<Self>) -> (Arc<Levels>, Edit) {
        // No edit is installed meanwhile.
        let manifest = self.manifest.lock();
        let levels = Arc::clone(&self.state().levels);
        let everything = self.everything(&levels);
        drop(manifest);
        (levels, everything)
    }

    fn fill(&self, dir: &Path, levels: &Levels, everything: &Edit, place: Place<'_>) -> Result<()> {
        let disk = &self.env.disk;
        let mark = dir.join(MARK);
        let failed = |e: io::Error| Error::disk(&mark, "can't write", &e);
        if !planted::is_on(Bug::CheckpointUnmarked) {
            disk.create(&mark).map_err(failed)?;
            disk.sync_dir(dir).map_err(failed)?;
        }
        for table in levels.iter().flatten() {
            place(&Part::Table(table), &table_path(dir, table.meta.number))?;
        }
        let values = levels.values().iter().map(|held| &held.file);
        for file in values.filter(|_| !planted::is_on(Bug::CheckpointWithoutValues)) {
            place(&Part::Values(file), &value_path(dir, file.meta.number))?;
        }
        let number = self.next_file.load(Ordering::Relaxed) + 1;
        let everything = Edit {
            next_file: Some(number + 1),
            ..everything.clone()
        };
        // Syncs the directory, with the tables' names, before CURRENT is there, and after.
        Manifest::begin(disk, dir, number, &everything)?;
        if !planted::is_on(Bug::CheckpointUnmarked) {
            disk.remove(&mark).map_err(failed)?;
        }
        match planted::is_on(Bug::CheckpointUnsynced) {
            true => Ok(()),
            false => disk.sync_dir(dir).map_err(failed),
        }
    }

    /// Removes what a failed checkpoint left.
    fn clear(&self, dir: &Path) -> io::Result<()> {
        let disk = &self.env.disk;
        let mut names = disk.list(dir)?;
        names.retain(|name| name != MARK);
        for name in &names {
            disk.remove(&dir.join(name))?;
        }
        disk.sync_dir(dir)?;
        match disk.exists(&dir.join(MARK))? {
            true => disk.remove(&dir.join(MARK)),
            false => Ok(()),
        }
    }
}

/// Why a file could not get a second name.
pub(super) fn link_error(from: &Path, to: &Path, cause: &io::Error) -> Error {
    if cause.kind() == io::ErrorKind::CrossesDevices {
        return Error::invalid(format!(
            "{} and {} are on different file systems: a hard link wants both on one",
            from.display(),
            to.display()
        ));
    }
    let what = format!("can't link {} as", from.display());
    Error::disk(to, &what, cause)
}

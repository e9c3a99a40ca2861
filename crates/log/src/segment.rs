//! The files of a log: made, taken over from released ones, named, removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_env::{Disk, Env, File};

use crate::error::{Error, Result};
use crate::format::{HEADER_LEN, SegmentId, encode_header};

const SPARE: &str = "spare";
/// A file is written over in pieces of a page. Larger ones leave it in large folios of the page cache, in
/// which each later write of a record looks at every block: twice the time for a small record on ext4
/// (Linux 6.18).
const ZEROS: usize = 4096;

/// The folder of one log.
pub(crate) struct Folder {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    pub segment_bytes: u64,
    /// Held by whoever gives the spare its name or takes it away: the writer, the job that prepares one,
    /// and whoever releases segments. Without it one could put a blank file in the place of a segment
    /// that another is making.
    spare: Mutex<()>,
}

impl Folder {
    pub(crate) fn new(env: &Env, dir: &Path, segment_bytes: u64) -> Folder {
        Folder {
            disk: Arc::clone(&env.disk),
            dir: dir.to_owned(),
            segment_bytes,
            spare: Mutex::new(()),
        }
    }

    pub(crate) fn path(&self, segment: u64) -> PathBuf {
        self.dir.join(format!("{segment:016x}.log"))
    }

    fn spare_path(&self) -> PathBuf {
        self.dir.join(SPARE)
    }

    /// The ids of the segments that are there, ascending.
    pub(crate) fn segments(&self) -> Result<Vec<u64>> {
        let names = self
            .disk
            .list(&self.dir)
            .map_err(|e| Error::io("can't list", &self.dir, &e))?;
        let ids = names.iter().filter_map(|name| name.strip_suffix(".log"));
        Ok(ids
            .filter_map(|id| u64::from_str_radix(id, 16).ok())
            .collect())
    }

    pub(crate) fn open(&self, segment: u64) -> Result<Arc<dyn File>> {
        let path = self.path(segment);
        self.disk
            .open(&path)
            .map_err(|e| Error::io("can't open", &path, &e))
    }

    /// Makes the file that the next segment will take, its blocks written. Slow; for a job.
    pub(crate) fn prepare_spare(&self) -> Result<()> {
        let path = self.spare_path();
        let beside = self.dir.join("spare.tmp");
        let make = || {
            if self.disk.exists(&path)? {
                return Ok(());
            }
            if self.disk.exists(&beside)? {
                self.disk.remove(&beside)?;
            }
            let file = self.disk.create(&beside)?;
            file.allocate(self.segment_bytes)?;
            self.write_zeros(&*file, 0)?;
            file.sync()?;
            let _names = self.spare.lock();
            // Somebody may have needed one sooner, or given one back.
            match self.disk.exists(&path)? {
                true => self.disk.remove(&beside),
                false => self.disk.rename(&beside, &path),
            }
        };
        make().map_err(|e| Error::io("can't prepare", &path, &e))
    }

    /// Whether a spare lies ready.
    pub(crate) fn has_spare(&self) -> bool {
        self.disk.exists(&self.spare_path()).unwrap_or(false)
    }

    /// Makes a segment, from the spare if there is one; durable on return, with its header.
    pub(crate) fn create(&self, id: SegmentId) -> Result<Arc<dyn File>> {
        let path = self.path(id.segment);
        let spare = self.spare_path();
        let make = || {
            let _names = self.spare.lock();
            if !self.disk.exists(&spare)? {
                let file = self.disk.create(&spare)?;
                if let Err(e) = file.allocate(self.segment_bytes) {
                    self.disk.remove(&spare)?;
                    return Err(e);
                }
            }
            let file = self.disk.open(&spare)?;
            file.write_all_at(&encode_header(id), 0)?;
            file.sync()?;
            self.disk.rename(&spare, &path)?;
            self.disk.sync_dir(&self.dir)?;
            Ok(file)
        };
        make().map_err(|e| Error::io("can't make segment", &path, &e))
    }

    /// Removes the oldest segment, or makes it the spare if there is none and `keep` says so. The name's
    /// end is durable on return, so that of several removals no crash can undo an earlier one alone.
    pub(crate) fn remove_oldest(&self, segment: u64, keep: bool) -> Result<()> {
        let path = self.path(segment);
        let run = || {
            let _names = self.spare.lock();
            if !keep || self.disk.exists(&self.spare_path())? {
                self.disk.remove(&path)?;
            } else {
                self.disk.rename(&path, &self.spare_path())?;
            }
            self.disk.sync_dir(&self.dir)
        };
        run().map_err(|e| Error::io("can't remove", &path, &e))
    }

    /// Zeros a segment from `offset` to its end. Writing them, and not cutting the file, keeps its
    /// blocks in place: later syncs need not write where they are.
    pub(crate) fn clear_from(&self, segment: u64, offset: u64) -> Result<()> {
        let path = self.path(segment);
        let run = || {
            let file = self.disk.open(&path)?;
            if file.size()? < self.segment_bytes {
                file.allocate(self.segment_bytes)?;
            }
            self.write_zeros(&*file, offset.max(HEADER_LEN as u64))?;
            file.sync()
        };
        run().map_err(|e| Error::io("can't clear the end of", &path, &e))
    }

    /// Writes bytes where they are already, so that the next sync takes them to disk whatever became of
    /// the last one.
    pub(crate) fn write_again(&self, segment: u64, bytes: &[u8], offset: u64) -> Result<()> {
        let path = self.path(segment);
        let run = || self.disk.open(&path)?.write_all_at(bytes, offset);
        run().map_err(|e| Error::io("can't write again", &path, &e))
    }

    fn write_zeros(&self, file: &dyn File, from: u64) -> std::io::Result<()> {
        let zeros = vec![0; ZEROS.min(self.segment_bytes as usize)];
        let mut at = from;
        while at < self.segment_bytes {
            let part = zeros.len().min((self.segment_bytes - at) as usize);
            file.write_all_at(&zeros[..part], at)?;
            at += part as u64;
        }
        Ok(())
    }
}

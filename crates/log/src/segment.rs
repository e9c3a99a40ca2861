//! The files of a log: made, taken over from released ones, named, removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_env::{Disk, Env, File};

use crate::error::{Error, Result};
use crate::format::{HEADER_LEN, Header, SegmentId, encode_header};

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
    /// Held by whoever gives a segment or the spare its name or takes it away: the writer, the job that
    /// prepares them, and whoever releases segments. Without it one could put a blank file in the place of
    /// a segment that another is making.
    names: Mutex<Names>,
}

/// What has a name already, or may get none.
#[derive(Default)]
struct Names {
    /// The last segment that was begun.
    begun: u64,
    /// The file of the one after it.
    next: Option<Arc<dyn File>>,
    /// The log has no owner any more: another may have opened the folder.
    closed: bool,
}

impl Folder {
    pub(crate) fn new(env: &Env, dir: &Path, segment_bytes: u64) -> Folder {
        Folder {
            disk: Arc::clone(&env.disk),
            dir: dir.to_owned(),
            segment_bytes,
            names: Mutex::default(),
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
            self.write_zeros(&*file, 0, self.segment_bytes)?;
            file.sync()?;
            let names = self.names.lock();
            // Somebody may have needed one sooner, or given one back.
            match names.closed || self.disk.exists(&path)? {
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

    /// The log goes on after the last of its segments.
    pub(crate) fn resume_after(&self, segment: u64) {
        self.names.lock().begun = segment;
    }

    /// From now on nothing is prepared.
    pub(crate) fn close(&self) {
        self.names.lock().closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.names.lock().closed
    }

    /// Gives up the file of the next segment, if it was prepared; what can't be removed, the next opening
    /// removes. REQUIRES: nobody else has opened the folder.
    pub(crate) fn give_up_next(&self) {
        let mut names = self.names.lock();
        if names.next.take().is_some() {
            let _ = self.disk.remove(&self.path(names.begun + 1));
        }
    }

    /// Begins a segment, with the file that was prepared for it, if one was.
    pub(crate) fn begin(&self, id: SegmentId) -> Result<Arc<dyn File>> {
        let mut names = self.names.lock();
        let prepared = match names.begun + 1 == id.segment {
            true => names.next.take(),
            false => None,
        };
        let file = prepared.map_or_else(|| self.create(id), Ok)?;
        names.begun = id.segment;
        Ok(file)
    }

    /// Makes the file of a segment, unless that was begun meanwhile. Slow; for a job.
    pub(crate) fn prepare(&self, id: SegmentId) -> Result<()> {
        let mut names = self.names.lock();
        if names.begun + 1 == id.segment && names.next.is_none() && !names.closed {
            names.next = Some(self.create(id)?);
        }
        Ok(())
    }

    /// Makes a segment, from the spare if there is one; durable on return, with its header.
    /// REQUIRES: `names` is held.
    fn create(&self, id: SegmentId) -> Result<Arc<dyn File>> {
        let path = self.path(id.segment);
        let spare = self.spare_path();
        let make = || {
            if !self.disk.exists(&spare)? {
                let file = self.disk.create(&spare)?;
                if let Err(e) = file.allocate(self.segment_bytes) {
                    self.disk.remove(&spare)?;
                    return Err(e);
                }
            }
            let file = self.disk.open(&spare)?;
            self.take_usual_size(&*file)?;
            let header = Header {
                id,
                follows_durable: false,
            };
            file.write_all_at(&encode_header(header), 0)?;
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
            let _names = self.names.lock();
            if !keep || self.disk.exists(&self.spare_path())? {
                self.disk.remove(&path)?;
            } else {
                self.disk.rename(&path, &self.spare_path())?;
            }
            self.disk.sync_dir(&self.dir)
        };
        run().map_err(|e| Error::io("can't remove", &path, &e))
    }

    /// Removes a segment for good, the newest first where there are several.
    pub(crate) fn remove_newest(&self, segment: u64) -> Result<()> {
        let path = self.path(segment);
        let removed = self.disk.remove(&path);
        let removed = removed.and_then(|()| self.disk.sync_dir(&self.dir));
        removed.map_err(|e| Error::io("can't remove", &path, &e))
    }

    /// A released segment may have another size, if the settings were others or a record was large.
    fn take_usual_size(&self, file: &dyn File) -> std::io::Result<()> {
        match file.size()? {
            size if size < self.segment_bytes => file.allocate(self.segment_bytes),
            size if size > self.segment_bytes => file.set_size(self.segment_bytes),
            _ => Ok(()),
        }
    }

    /// Zeros a segment from `offset` to its end, and gives it the usual size if it was cut. Writing them, and
    /// not cutting the file, keeps its blocks in place: later syncs need not write where they are.
    pub(crate) fn clear_from(&self, segment: u64, offset: u64) -> Result<()> {
        let path = self.path(segment);
        let run = || {
            let file = self.disk.open(&path)?;
            let size = file.size()?;
            if size < self.segment_bytes {
                file.allocate(self.segment_bytes)?;
            }
            self.write_zeros(&*file, offset.max(HEADER_LEN as u64), size)?;
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

    fn write_zeros(&self, file: &dyn File, from: u64, to: u64) -> std::io::Result<()> {
        let zeros = vec![0; ZEROS.min(self.segment_bytes as usize)];
        let mut at = from;
        while at < to {
            let part = zeros.len().min((to - at) as usize);
            file.write_all_at(&zeros[..part], at)?;
            at += part as u64;
        }
        Ok(())
    }
}

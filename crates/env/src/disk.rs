//! The disk seam: files that are read and written at offsets, and their directories.
//!
//! The contract is that of a POSIX file system and no kinder: written data is durable only after
//! [`File::sync`], a created, renamed or removed name only after [`Disk::sync_dir`] of its folder.
//! After a failed sync nothing may be assumed of the data; callers stop and say so.

use std::io;
use std::path::Path;
use std::sync::Arc;

/// A file system. Two implementations: [`RealDisk`](crate::RealDisk), [`SimDisk`](crate::sim::SimDisk).
pub trait Disk: Send + Sync {
    /// Makes a new empty file, open for reading and writing. Fails if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading only.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Renames a file, replacing what has the new name, atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes a directory and all above it.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether a file or directory has this name.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock that this file stands for, creating the file if need be. Fails with
    /// `WouldBlock` when somebody holds it; freed on drop or when the process ends.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;

    /// The space of the file system that holds `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Reads a whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open_read(path)?;
        let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Makes a file with this content, all of it or nothing, durable on return: writes beside it,
    /// syncs, renames, syncs the directory.
    fn write_atomic(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let beside = path.with_extension("tmp");
        if self.exists(&beside)? {
            self.remove(&beside)?;
        }
        let file = self.create(&beside)?;
        file.write_all_at(content, 0)?;
        file.sync()?;
        self.rename(&beside, path)?;
        self.sync_dir(path.parent().unwrap_or_else(|| Path::new(".")))
    }
}

/// An open file. Reads and writes may come from many threads at once.
pub trait File: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all bytes, extending the file if need be.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes data and size durable (`fdatasync`). Never retry one that failed.
    fn sync(&self) -> io::Result<()>;

    /// The size in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Cuts or extends (with zeros) the file.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Reserves space for the first `size` bytes, so that later writes there can't fail for want of
    /// space, and extends the file to it (reading as zeros). `StorageFull` when there is none.
    fn allocate(&self, size: u64) -> io::Result<()>;

    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.read_at(buf, offset)? {
            n if n == buf.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A lock that is held; dropping it frees it.
pub trait DiskLock: Send + Sync {}

/// The space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What an unprivileged process may still take.
    pub free: u64,
    /// The whole.
    pub total: u64,
}

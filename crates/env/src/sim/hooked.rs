//! A disk with something around its operations, for tests of what a disk may do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Disk, DiskLock, File, Space};

/// What happens around operations of the disk beneath; by default nothing.
pub trait Hooks: Send + Sync + 'static {
    /// Before a read or write of a file; an error is that of the operation.
    fn access(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Instead of a sync of a file through a handle that may write, which `sync` does.
    fn sync(&self, _path: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        sync()
    }

    /// Instead of a sync of a directory, which `sync` does.
    fn sync_dir(&self, _dir: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        sync()
    }

    /// Before a hard link; an error is that of the operation.
    fn hard_link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// A disk with hooks.
pub struct HookedDisk<H> {
    disk: Arc<dyn Disk>,
    hooks: Arc<H>,
}

struct HookedFile<H> {
    file: Arc<dyn File>,
    path: PathBuf,
    writes: bool,
    hooks: Arc<H>,
}

impl<H: Hooks> HookedDisk<H> {
    /// This disk, with these hooks, which may be shared.
    pub fn new(disk: Arc<dyn Disk>, hooks: Arc<H>) -> Self {
        HookedDisk { disk, hooks }
    }

    fn hooked(&self, path: &Path, file: Arc<dyn File>, writes: bool) -> Arc<dyn File> {
        Arc::new(HookedFile {
            file,
            path: path.to_owned(),
            writes,
            hooks: Arc::clone(&self.hooks),
        })
    }
}

impl<H: Hooks> File for HookedFile<H> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.hooks.access(&self.path)?;
        self.file.read_at(buf, offset)
    }
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.hooks.access(&self.path)?;
        self.file.write_all_at(data, offset)
    }
    fn sync(&self) -> io::Result<()> {
        match self.writes {
            true => self.hooks.sync(&self.path, &|| self.file.sync()),
            false => self.file.sync(),
        }
    }
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_size(size)
    }
    fn allocate(&self, size: u64) -> io::Result<()> {
        self.file.allocate(size)
    }
}

impl<H: Hooks> Disk for HookedDisk<H> {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.hooked(path, self.disk.create(path)?, true))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.hooked(path, self.disk.open(path)?, true))
    }
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.hooked(path, self.disk.open_read(path)?, false))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.hooks.hard_link(from, to)?;
        self.disk.hard_link(from, to)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.hooks.sync_dir(dir, &|| self.disk.sync_dir(dir))
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.disk.space(path)
    }
}

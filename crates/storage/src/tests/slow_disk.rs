//! A disk that takes its time: each operation on a file sets the simulated clock forward.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_env::sim::{Sim, SimClock};
use quorate_env::{Disk, DiskLock, Env, File, Space};

const EACH: Duration = Duration::from_millis(1);

struct SlowDisk {
    disk: Arc<dyn Disk>,
    clock: SimClock,
}

struct SlowFile {
    file: Arc<dyn File>,
    clock: SimClock,
}

/// The machine, with a disk that takes a millisecond for each read, write and sync.
pub(super) fn slow(sim: &Sim) -> Env {
    let disk = SlowDisk {
        disk: sim.env().disk,
        clock: sim.clock.clone(),
    };
    Env {
        disk: Arc::new(disk),
        ..sim.env()
    }
}

impl File for SlowFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.clock.advance(EACH);
        self.file.read_at(buf, offset)
    }
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.clock.advance(EACH);
        self.file.write_all_at(data, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.clock.advance(EACH);
        self.file.sync()
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

impl SlowDisk {
    fn wrap(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        let clock = self.clock.clone();
        Arc::new(SlowFile { file, clock })
    }
}

impl Disk for SlowDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.disk.create(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.disk.open(path)?))
    }
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.disk.open_read(path)?))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
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
        self.clock.advance(EACH);
        self.disk.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.disk.space(path)
    }
}

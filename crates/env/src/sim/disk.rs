//! A disk in memory that forgets what was not synced.
//!
//! Each file has what a reader sees and what survives a power cut. A write, cut or extension goes to
//! the first at once and is remembered; a sync carries it to the second. Names work the same way:
//! create, rename and remove are remembered until the directory is synced. In [`SimDisk::crash`]
//! the seed decides for every remembered change on its own whether it survived, and a write may
//! survive in part, cut at a sector. That is harsher than most file systems, and no harsher than
//! their contract.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Disk, DiskLock, File, Random, Space};

/// Writes survive a crash in pieces of this many bytes.
const SECTOR: usize = 512;

/// What to make fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next sync of a file fails, and its unsynced data is lost.
    Sync,
    /// The next read fails.
    Read,
    /// The next write fails, having changed nothing.
    Write,
}

/// How unsynced changes fare in a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// All are lost.
    LoseAll,
    /// The seed decides for each.
    Random,
    /// All survive, as when only the process is killed.
    KeepAll,
}

/// A simulated disk. Clones are one disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    random: Random,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending_names: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    locks: BTreeSet<PathBuf>,
    /// Each strikes a file in or below its directory.
    faults: Vec<(Fault, PathBuf)>,
    capacity: Option<u64>,
    operations: u64,
    crash_at: Option<u64>,
    fail_at: Option<(u64, io::ErrorKind)>,
    reads: u64,
    fail_read_at: Option<u64>,
    dead: bool,
}

/// Names that appear and vanish together.
#[derive(Debug, Clone)]
struct NameChange {
    unlink: Option<PathBuf>,
    link: Option<(PathBuf, u64)>,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Resize(usize),
}

impl SimDisk {
    /// An empty disk without limit.
    pub fn new(random: Random) -> Self {
        SimDisk {
            state: Arc::default(),
            random,
        }
    }

    /// How many changing operations were done: writes, syncs, and changes of names.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// The power goes at the `n`th changing operation from the disk's beginning: that one and all
    /// later ones fail and change nothing. Bring it up again by [`SimDisk::crash`].
    pub fn crash_at(&self, n: u64) {
        self.state.lock().crash_at = Some(n);
    }

    /// The `n`th changing operation from the disk's beginning fails with this kind of error, whatever it
    /// is, and none after it. A write leaves half of its bytes, a sync loses what was not synced, a
    /// change of names does not happen.
    pub fn fail_at(&self, n: u64, kind: io::ErrorKind) {
        self.state.lock().fail_at = Some((n, kind));
    }

    /// How many reads were done.
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// The `n`th read from the disk's beginning fails, and none after it.
    pub fn fail_read_at(&self, n: u64) {
        self.state.lock().fail_read_at = Some(n);
    }

    /// Makes one coming operation fail.
    pub fn inject(&self, fault: Fault) {
        self.inject_under(fault, Path::new(""));
    }

    /// As [`inject`](Self::inject), for the next file in `dir` or below: work beside it on other
    /// files does not take the fault.
    pub fn inject_under(&self, fault: Fault, dir: &Path) {
        self.state.lock().faults.push((fault, dir.to_owned()));
    }

    /// Sets the space of the disk; `None` is without limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Flips one bit of a file, on the platter and in the cache.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.inode_at(path)?;
        let at = (bit / 8) as usize;
        for data in [&mut inode.data, &mut inode.durable] {
            if let Some(byte) = data.get_mut(at) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }

    /// The power goes, the seed decides what survives; see [`SimDisk::crash_with`].
    pub fn crash(&self) -> SimDisk {
        self.crash_with(Crash::Random)
    }

    /// The power goes. Handles of this disk fail from now on; the disk that is returned holds what
    /// was synced, and of the rest what `crash` says.
    pub fn crash_with(&self, crash: Crash) -> SimDisk {
        let mut old = self.state.lock();
        old.dead = true;
        let mut names = old.durable_names.clone();
        for change in &old.pending_names {
            if self.survives(crash) {
                change.apply(&mut names);
            }
        }
        let mut inodes = BTreeMap::new();
        for id in names.values() {
            let Some(inode) = old.inodes.get(id) else {
                continue;
            };
            let mut data = inode.durable.clone();
            for change in &inode.pending {
                if self.survives(crash) {
                    self.tear(change, crash).apply(&mut data);
                }
            }
            inodes.insert(
                *id,
                Inode {
                    durable: data.clone(),
                    data,
                    pending: Vec::new(),
                },
            );
        }
        let state = State {
            durable_names: names.clone(),
            names,
            dirs: old.dirs.clone(),
            inodes,
            next_inode: old.next_inode,
            capacity: old.capacity,
            ..State::default()
        };
        SimDisk {
            state: Arc::new(Mutex::new(state)),
            random: self.random.clone(),
        }
    }

    fn survives(&self, crash: Crash) -> bool {
        match crash {
            Crash::LoseAll => false,
            Crash::KeepAll => true,
            Crash::Random => self.random.one_in(2),
        }
    }

    /// A write may survive up to some sector only.
    fn tear(&self, change: &Change, crash: Crash) -> Change {
        match change {
            Change::Write { offset, data } if crash == Crash::Random && self.random.one_in(3) => {
                let boundary = data.len() / SECTOR + 1;
                let keep = self.random.below(boundary as u64) as usize * SECTOR;
                // Sectors are of the disk, not of the write.
                let keep = keep.saturating_sub(offset % SECTOR).min(data.len());
                Change::Write {
                    offset: *offset,
                    data: data[..keep].to_vec(),
                }
            }
            whole => whole.clone(),
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        if let Some(path) = &self.unlink {
            names.remove(path);
        }
        if let Some((path, inode)) = &self.link {
            names.insert(path.clone(), *inode);
        }
    }

    fn touches(&self, dir: &Path) -> bool {
        let paths = self
            .unlink
            .iter()
            .chain(self.link.iter().map(|(path, _)| path));
        paths.into_iter().any(|path| path.parent() == Some(dir))
    }
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Change::Write { offset, data: new } => {
                if data.len() < offset + new.len() && !new.is_empty() {
                    data.resize(offset + new.len(), 0);
                }
                if !new.is_empty() {
                    data[*offset..offset + new.len()].copy_from_slice(new);
                }
            }
            Change::Resize(size) => data.resize(*size, 0),
        }
    }
}

impl State {
    /// Counts a changing operation, or fails because the power is gone.
    fn operate(&mut self) -> io::Result<()> {
        self.look()?;
        self.operations += 1;
        match self.fail_at {
            Some((at, kind)) if at < self.operations => {
                self.fail_at = None;
                Err(kind.into())
            }
            _ => Ok(()),
        }
    }

    /// Counts a read, or fails it.
    fn read(&mut self, inode: u64) -> io::Result<()> {
        self.look()?;
        self.reads += 1;
        if self.fail_read_at.is_some_and(|at| at < self.reads) {
            self.fail_read_at = None;
            return Err(io::Error::other("injected fault: a read"));
        }
        self.take_fault(Fault::Read, inode)
    }

    fn look(&self) -> io::Result<()> {
        if self.dead || self.crash_at.is_some_and(|at| self.operations >= at) {
            return Err(power_lost());
        }
        Ok(())
    }

    fn take_fault(&mut self, fault: Fault, inode: u64) -> io::Result<()> {
        let names = &self.names;
        let is_under = |dir: &Path| {
            let mut paths = names.iter().filter(|(_, id)| **id == inode);
            dir == Path::new("") || paths.any(|(path, _)| path.starts_with(dir))
        };
        let of = |(kind, dir): &(Fault, PathBuf)| *kind == fault && is_under(dir);
        if let Some(at) = self.faults.iter().position(of) {
            self.faults.remove(at);
            return Err(io::Error::other(format!("injected fault: {fault:?}")));
        }
        Ok(())
    }

    fn inode_at(&mut self, path: &Path) -> io::Result<&mut Inode> {
        let id = *self.names.get(path).ok_or_else(|| not_found(path))?;
        self.inodes.get_mut(&id).ok_or_else(|| not_found(path))
    }

    fn rename_or_link(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    fn used(&self) -> u64 {
        let live: BTreeSet<u64> = self.names.values().copied().collect();
        live.iter()
            .filter_map(|id| self.inodes.get(id))
            .map(|i| i.data.len() as u64)
            .sum()
    }

    /// Fails if the file can't grow to `size`.
    fn reserve(&self, id: u64, size: usize) -> io::Result<()> {
        let Some(capacity) = self.capacity else {
            return Ok(());
        };
        let now = self.inodes.get(&id).map_or(0, |i| i.data.len());
        if size > now && self.used() + (size - now) as u64 > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn change(&mut self, id: u64, change: Change) -> io::Result<()> {
        let inode = self.inodes.get_mut(&id).ok_or_else(power_lost)?;
        change.apply(&mut inode.data);
        inode.pending.push(change);
        Ok(())
    }
}

fn power_lost() -> io::Error {
    io::Error::other("simulated power loss")
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} is not there", path.display()),
    )
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    writable: bool,
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state.lock().locks.remove(&self.path);
    }
}

impl SimDisk {
    fn handle(&self, inode: u64, writable: bool) -> Arc<dyn File> {
        Arc::new(SimFile {
            disk: self.clone(),
            inode,
            writable,
        })
    }

    fn open_as(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        let state = self.state.lock();
        state.look()?;
        let inode = *state.names.get(path).ok_or_else(|| not_found(path))?;
        drop(state);
        Ok(self.handle(inode, writable))
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        state.operate()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !path.parent().is_some_and(|dir| state.dirs.contains(dir)) {
            return Err(not_found(path.parent().unwrap_or(path)));
        }
        let id = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(id, Inode::default());
        state.rename_or_link(NameChange {
            unlink: None,
            link: Some((path.to_owned(), id)),
        });
        drop(state);
        Ok(self.handle(id, true))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open_as(path, true)
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open_as(path, false)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operate()?;
        state.inode_at(path)?;
        state.rename_or_link(NameChange {
            unlink: Some(path.to_owned()),
            link: None,
        });
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operate()?;
        let id = *state.names.get(from).ok_or_else(|| not_found(from))?;
        let change = NameChange {
            unlink: Some(from.to_owned()),
            link: Some((to.to_owned(), id)),
        };
        state.rename_or_link(change);
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operate()?;
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = *state.names.get(from).ok_or_else(|| not_found(from))?;
        state.rename_or_link(NameChange {
            unlink: None,
            link: Some((to.to_owned(), id)),
        });
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operate()?;
        // Directories are durable at once: no caller of ours depends on less.
        state.dirs.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        state.look()?;
        if !state.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let all = state.names.keys().chain(&state.dirs);
        let inside = all.filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name());
        let names: BTreeSet<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        Ok(names.into_iter().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.state.lock();
        state.look()?;
        Ok(state.names.contains_key(path) || state.dirs.contains(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operate()?;
        let pending = std::mem::take(&mut state.pending_names);
        let (synced, rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(|c| c.touches(dir));
        for change in &synced {
            change.apply(&mut state.durable_names);
        }
        state.pending_names = rest;
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.state.lock();
        state.look()?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let state = self.state.lock();
        state.look()?;
        let total = state.capacity.unwrap_or(u64::MAX);
        Ok(Space {
            free: total.saturating_sub(state.used()),
            total,
        })
    }
}

impl SimFile {
    fn change(&self, size: usize, change: Change) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        let mut state = self.disk.state.lock();
        let failed = state.operate();
        if let Err(error) = failed {
            state.look()?;
            if let Change::Write { offset, mut data } = change {
                data.truncate(data.len() / 2);
                state.change(self.inode, Change::Write { offset, data })?;
            }
            return Err(error);
        }
        state.take_fault(Fault::Write, self.inode)?;
        state.reserve(self.inode, size)?;
        state.change(self.inode, change)
    }

    fn with<T>(&self, read: impl FnOnce(&Inode) -> T) -> io::Result<T> {
        let state = self.disk.state.lock();
        state.look()?;
        Ok(read(state.inodes.get(&self.inode).ok_or_else(power_lost)?))
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.state.lock().read(self.inode)?;
        self.with(|inode| {
            let from = (offset as usize).min(inode.data.len());
            let count = buf.len().min(inode.data.len() - from);
            buf[..count].copy_from_slice(&inode.data[from..from + count]);
            count
        })
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let offset = offset as usize;
        self.change(
            offset + data.len(),
            Change::Write {
                offset,
                data: data.to_vec(),
            },
        )
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.look()?;
        let failed = state
            .operate()
            .and_then(|()| state.take_fault(Fault::Sync, self.inode));
        let inode = state.inodes.get_mut(&self.inode).ok_or_else(power_lost)?;
        let pending = std::mem::take(&mut inode.pending);
        if failed.is_ok() {
            pending
                .iter()
                .for_each(|change| change.apply(&mut inode.durable));
        }
        failed
    }

    fn size(&self) -> io::Result<u64> {
        self.with(|inode| inode.data.len() as u64)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(size as usize, Change::Resize(size as usize))
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let size = (size as usize).max(self.size()? as usize);
        self.change(size, Change::Resize(size))
    }
}

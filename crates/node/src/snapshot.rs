//! Snapshots of a shard: read from one state of the engine, received into a file, installed from it.
//!
//! ```text
//! chunk   = kind u8, body        1 head: format u8, version u64, shard
//!                                2 entries: (key, version u64, stored value)*, ascending
//! spool   = frame*               frame = length u32, crc32c u32, chunk
//! last    = kind 3: position, membership          written when the snapshot is complete
//! ```
//!
//! A spool becomes `install-<group>` once it is whole and synced; from then on the installation is
//! certain: if the machine dies half way, opening the shard runs it again, and every step of it may
//! be run twice. Keys that the snapshot lacks are deleted at the snapshot's version, which is above
//! all that this replica ever stored.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_env::{Disk, File, switch};
use quorate_kv::Version;
use quorate_replication::{Applied, SnapshotSink, SnapshotSource};
use quorate_sharding::{GroupId, Shard};
use quorate_storage::{Batch, Engine, Iter, IterOptions, ReadAt, Sequence, WriteOptions};

use crate::apply::Position;
use crate::codec::{self, Damaged, put_bytes, put_u32, put_u64};
use crate::keys::{DATA, GroupField, META, group_key, shard_range};
use crate::machine::{ShardMachine, engine_error, invalid};
use crate::value;

const FORMAT: u8 = 1;
const HEAD: u8 = 1;
const ENTRIES: u8 = 2;
const LAST: u8 = 3;
/// Installed in batches of about so many bytes; in tests small, so that there are several.
const BATCH_BYTES: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };

/// A snapshot that is being sent.
pub(crate) struct Reader {
    applied: Applied,
    head: Option<Bytes>,
    iter: Box<dyn Iter>,
}

impl Reader {
    pub(crate) fn open(machine: &ShardMachine) -> io::Result<Reader> {
        let snapshot = machine.engine.snapshot();
        let at = ReadAt::snapshot(&snapshot);
        let get = |field| {
            let key = group_key(machine.shard().id, field);
            let found = machine.engine.get(META, &key, &at).map_err(engine_error)?;
            Ok::<_, io::Error>(found.map(|entry| entry.value).unwrap_or_default())
        };
        let position = Position::decode(get(GroupField::Applied)?).map_err(invalid)?;
        let membership = get(GroupField::Membership)?;
        let mut head = vec![HEAD, FORMAT];
        put_u64(&mut head, position.version);
        head.extend_from_slice(&machine.shard().to_bytes());
        let (lower, upper) = shard_range(machine.shard());
        let options = IterOptions {
            at,
            ..IterOptions::range(&lower, &upper)
        };
        let mut iter = machine
            .engine
            .iterate(DATA, options)
            .map_err(engine_error)?;
        iter.seek_to_first().map_err(engine_error)?;
        let applied = Applied {
            entry: position.entry,
            membership,
        };
        Ok(Reader {
            applied,
            head: Some(head.into()),
            iter,
        })
    }
}

impl SnapshotSource for Reader {
    fn applied(&self) -> &Applied {
        &self.applied
    }

    fn next_chunk(&mut self, bytes_max: usize) -> io::Result<Option<Bytes>> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        if !self.iter.valid() {
            return Ok(None);
        }
        let mut chunk = vec![ENTRIES];
        while self.iter.valid() && chunk.len() < bytes_max {
            put_bytes(&mut chunk, self.iter.key());
            put_u64(&mut chunk, self.iter.version());
            put_bytes(&mut chunk, self.iter.value());
            self.iter.next().map_err(engine_error)?;
        }
        Ok(Some(chunk.into()))
    }
}

/// A snapshot that is being received, into a file.
pub(crate) struct Receiver {
    machine: Arc<ShardMachine>,
    path: PathBuf,
    file: Arc<dyn File>,
    end: u64,
    installed: bool,
}

impl Receiver {
    pub(crate) fn open(machine: Arc<ShardMachine>) -> io::Result<Receiver> {
        let name = format!(
            "receive-{}-{:016x}",
            machine.shard().id,
            machine.env.random.next_u64()
        );
        let path = machine.spool_dir.join(name);
        machine.env.disk.create_dir_all(&machine.spool_dir)?;
        let file = machine.env.disk.create(&path)?;
        Ok(Receiver {
            machine,
            path,
            file,
            end: 0,
            installed: false,
        })
    }

    fn frame(&mut self, chunk: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(8 + chunk.len());
        put_u32(&mut frame, chunk.len() as u32);
        put_u32(&mut frame, crc32c::crc32c(chunk));
        frame.extend_from_slice(chunk);
        self.file.write_all_at(&frame, self.end)?;
        self.end += frame.len() as u64;
        Ok(())
    }

    /// Once a snapshot is whole it must be installed: what could not be is refused before.
    fn fits_head(&self, chunk: &Bytes) -> codec::Result<()> {
        let mut reader = codec::Reader::new(chunk.slice(1..));
        if reader.u8()? != FORMAT {
            return Err(Damaged("it is of another format"));
        }
        reader.u64()?;
        let shard = Shard::from_bytes(&reader.rest()).map_err(|_| Damaged("it has no shard"))?;
        match shard.id == self.machine.shard().id {
            true => Ok(()),
            false => Err(Damaged("it is of another shard")),
        }
    }

    fn fits_entries(&self, chunk: &Bytes) -> codec::Result<()> {
        let (lower, upper) = shard_range(self.machine.shard());
        let mut reader = codec::Reader::new(chunk.slice(1..));
        while !reader.is_empty() {
            let key = reader.bytes()?;
            if key < lower || key >= upper {
                return Err(Damaged("a key is not in the shard"));
            }
            reader.u64()?;
            value::decode_header(&reader.bytes()?)?;
        }
        Ok(())
    }
}

impl SnapshotSink for Receiver {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        let fits = match chunk.first() {
            Some(&HEAD) if self.end == 0 => self.fits_head(&chunk),
            Some(&ENTRIES) if self.end > 0 => self.fits_entries(&chunk),
            _ => Err(Damaged("it is of an unknown kind, or out of place")),
        };
        fits.map_err(|error| invalid(format!("a snapshot chunk was refused: {error}")))?;
        self.frame(&chunk)
    }

    fn install(mut self: Box<Self>, applied: &Applied) -> io::Result<()> {
        if self.end == 0 {
            return Err(invalid("a snapshot without a single chunk"));
        }
        let mut last = vec![LAST];
        let position = Position {
            entry: applied.entry,
            version: 0,
        };
        put_bytes(&mut last, &position.encode());
        put_bytes(&mut last, &applied.membership);
        self.frame(&last)?;
        self.file.sync()?;
        let whole = install_path(&self.machine);
        self.machine.env.disk.rename(&self.path, &whole)?;
        self.machine.env.disk.sync_dir(&self.machine.spool_dir)?;
        self.installed = true;
        install_file(&self.machine, &whole)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.installed {
            // If that fails, the next opening of the shard removes it.
            let _ = self.machine.env.disk.remove(&self.path);
        }
    }
}

fn install_path(machine: &ShardMachine) -> PathBuf {
    machine.spool_dir.join(install_name(machine.shard().id))
}

fn install_name(group: GroupId) -> String {
    format!("install-{group}")
}

fn receive_prefix(group: GroupId) -> String {
    format!("receive-{group}-")
}

/// Removes what was received for a group, whole or not.
pub(crate) fn forget(disk: &dyn Disk, spool_dir: &Path, group: GroupId) -> io::Result<()> {
    if !disk.exists(spool_dir)? {
        return Ok(());
    }
    let (whole, part) = (install_name(group), receive_prefix(group));
    for name in disk.list(spool_dir)? {
        if name == whole || name.starts_with(&part) {
            disk.remove(&spool_dir.join(name))?;
        }
    }
    disk.sync_dir(spool_dir)
}

/// Ends what a crash cut off: installs a whole snapshot, removes the remains of others.
pub(crate) fn resume_install(machine: &ShardMachine) -> io::Result<()> {
    let disk = &machine.env.disk;
    if !disk.exists(&machine.spool_dir)? {
        return Ok(());
    }
    let receiving = receive_prefix(machine.shard().id);
    for name in disk.list(&machine.spool_dir)? {
        if name.starts_with(&receiving) {
            disk.remove(&machine.spool_dir.join(name))?;
        }
    }
    let whole = install_path(machine);
    if disk.exists(&whole)? {
        install_file(machine, &whole)
    } else {
        Ok(())
    }
}

fn install_file(machine: &ShardMachine, path: &Path) -> io::Result<()> {
    machine.install_with(|| {
        let mut spool = Spool::open(machine, path)?;
        let done = Installer::new(machine, &mut spool)?.run()?;
        machine.engine.flush().map_err(engine_error)?;
        Ok(done)
    })?;
    machine.env.disk.remove(path)?;
    machine.env.disk.sync_dir(&machine.spool_dir)
}

/// Reads a whole spool, an entry at a time.
struct Spool {
    path: PathBuf,
    file: Arc<dyn File>,
    at: u64,
    version: Version,
    chunk: codec::Reader,
    last: Option<(Position, Bytes)>,
}

struct SpoolEntry {
    key: Bytes,
    version: Version,
    stored: Bytes,
}

impl Spool {
    fn open(machine: &ShardMachine, path: &Path) -> io::Result<Spool> {
        let file = machine.env.disk.open_read(path)?;
        let chunk = codec::Reader::new(Bytes::new());
        let mut spool = Spool {
            path: path.to_owned(),
            file,
            at: 0,
            version: 0,
            chunk,
            last: None,
        };
        let head = codec::Reader::new(spool.frame()?);
        spool.version = head_version(head).map_err(|error| spool.damaged(&error.to_string()))?;
        Ok(spool)
    }

    /// An error of the disk, with the file that it is about.
    fn failed(&self, error: &io::Error) -> io::Error {
        let path = self.path.display();
        let message = format!("the received snapshot {path} at byte {}: {error}", self.at);
        io::Error::new(error.kind(), message)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.file.read_exact_at(buf, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("it ends early"))
            }
            other => other.map_err(|e| self.failed(&e)),
        }
    }

    fn damaged(&self, what: &str) -> io::Error {
        let path = self.path.display();
        invalid(format!(
            "the received snapshot {path} is damaged at byte {}: {what}",
            self.at
        ))
    }

    fn frame(&mut self) -> io::Result<Bytes> {
        let mut head = [0; 8];
        self.read(self.at, &mut head)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let crc = u32::from_be_bytes([c0, c1, c2, c3]);
        let size = self.file.size().map_err(|e| self.failed(&e))?;
        if self.at + 8 + u64::from(length) > size {
            return Err(self.damaged("a frame reaches beyond the end"));
        }
        let mut chunk = vec![0; length as usize];
        self.read(self.at + 8, &mut chunk)?;
        if crc32c::crc32c(&chunk) != crc {
            return Err(self.damaged("a frame's checksum does not match"));
        }
        self.at += 8 + u64::from(length);
        Ok(chunk.into())
    }

    fn next(&mut self) -> io::Result<Option<SpoolEntry>> {
        while self.chunk.is_empty() {
            if self.last.is_some() {
                return Ok(None);
            }
            let mut chunk = codec::Reader::new(self.frame()?);
            match chunk.u8() {
                Ok(ENTRIES) => self.chunk = chunk,
                Ok(LAST) => {
                    let last = self.decode_last(chunk);
                    self.last = Some(last.map_err(|e| self.damaged(&e.to_string()))?);
                }
                _ => return Err(self.damaged("a chunk of an unknown kind")),
            }
        }
        let mut read = || {
            let key = self.chunk.bytes()?;
            let version = self.chunk.u64()?;
            Ok(SpoolEntry {
                key,
                version,
                stored: self.chunk.bytes()?,
            })
        };
        let entry: codec::Result<_> = read();
        entry
            .map(Some)
            .map_err(|error| self.damaged(&error.to_string()))
    }

    fn decode_last(&self, mut chunk: codec::Reader) -> codec::Result<(Position, Bytes)> {
        let position = Position {
            version: self.version,
            ..Position::decode(chunk.bytes()?)?
        };
        Ok((position, chunk.bytes()?))
    }
}

/// The version that a head says.
fn head_version(mut head: codec::Reader) -> codec::Result<Version> {
    if head.u8()? != HEAD || head.u8()? != FORMAT {
        return Err(Damaged("it does not begin with a head of format 1"));
    }
    head.u64()
}

/// Walks over the snapshot and over what is stored, side by side, and writes the difference.
struct Installer<'a> {
    machine: &'a ShardMachine,
    spool: &'a mut Spool,
    stored: Box<dyn Iter>,
    batch: Batch,
}

const INSTALL: WriteOptions = WriteOptions {
    throttle: true,
    ..WriteOptions::APPLY
};

impl<'a> Installer<'a> {
    fn new(machine: &'a ShardMachine, spool: &'a mut Spool) -> io::Result<Installer<'a>> {
        let (lower, upper) = shard_range(machine.shard());
        let options = IterOptions::range(&lower, &upper);
        let mut stored = machine
            .engine
            .iterate(DATA, options)
            .map_err(engine_error)?;
        stored.seek_to_first().map_err(engine_error)?;
        Ok(Installer {
            machine,
            spool,
            stored,
            batch: Batch::new(),
        })
    }

    fn run(mut self) -> io::Result<(Position, Sequence)> {
        while let Some(entry) = self.spool.next()? {
            self.delete_stored_below(Some(&entry.key))?;
            let same = self.stored.valid()
                && self.stored.key() == &entry.key[..]
                && self.stored.version() == entry.version
                && self.stored.value() == &entry.stored[..];
            if !same {
                self.batch
                    .put_at(DATA, &entry.key, entry.version, &entry.stored);
            }
            if self.stored.valid() && self.stored.key() == &entry.key[..] {
                self.stored.next().map_err(engine_error)?;
            }
            self.write_if_full()?;
        }
        self.delete_stored_below(None)?;
        let (position, membership) = self
            .spool
            .last
            .take()
            .ok_or_else(|| self.spool.damaged("it has no end"))?;
        let group = self.machine.shard().id;
        let mut put = |field, value: &[u8]| self.batch.put(META, &group_key(group, field), value);
        if !switch::bug("snapshot_without_its_position") {
            put(GroupField::Applied, &position.encode());
        }
        put(GroupField::Membership, &membership);
        put(GroupField::Shard, &self.machine.shard().to_bytes());
        let sequence = self
            .machine
            .engine
            .write(&self.batch, INSTALL)
            .map_err(engine_error)?;
        Ok((position, sequence))
    }

    /// Deletes what is stored and not in the snapshot, up to a key.
    fn delete_stored_below(&mut self, key: Option<&[u8]>) -> io::Result<()> {
        while self.stored.valid() && key.is_none_or(|key| self.stored.key() < key) {
            self.batch
                .delete_at(DATA, self.stored.key(), self.spool.version);
            self.stored.next().map_err(engine_error)?;
            self.write_if_full()?;
        }
        Ok(())
    }

    fn write_if_full(&mut self) -> io::Result<()> {
        let small = switch::fires("node.install_in_small_batches");
        if self.batch.size_bytes() < BATCH_BYTES && !(small && self.batch.size_bytes() > 0) {
            return Ok(());
        }
        self.machine
            .engine
            .write(&self.batch, INSTALL)
            .map_err(engine_error)?;
        self.batch.clear();
        Ok(())
    }
}

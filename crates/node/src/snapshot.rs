//! Snapshots of a shard: read from one state of the engine, received as tables, taken in as one write.
//!
//! ```text
//! chunk   = kind u8, body        1 head: format u8, version u64, shard
//!                                2 entries: (key, version u64, stored value)*, ascending
//! ```
//!
//! The receiver writes what comes into tables of its own. When all are there the engine takes them in: in one edit of
//! its manifest what the range held goes, the tables come, and position, membership and shard with them. A crash leaves
//! the old state or the new one, and at most files that nobody knows, which the next opening of the shard removes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_env::{Disk, switch};
use quorate_kv::Version;
use quorate_replication::{Applied, SnapshotSink, SnapshotSource};
use quorate_sharding::{GroupId, Shard};
use quorate_storage::{
    Batch, Engine, IngestOptions, Iter, IterOptions, KeyRange, ReadAt, TableWriter,
};

use crate::apply::Position;
use crate::codec::{self, Damaged, put_bytes, put_u64};
use crate::keys::{DATA, GroupField, META, group_key, shard_range};
use crate::machine::{ShardMachine, engine_error, invalid};
use crate::value;

const FORMAT: u8 = 1;
const HEAD: u8 = 1;
const ENTRIES: u8 = 2;
/// A table ends at about so many bytes; in tests small, so that there are several.
const TABLE_BYTES: u64 = if cfg!(test) { 1 << 10 } else { 64 << 20 };

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

/// A snapshot that is being received, into tables.
pub(crate) struct Receiver {
    machine: Arc<ShardMachine>,
    /// What the names of its files begin with.
    name: String,
    /// All files, the one that is written too.
    tables: Vec<PathBuf>,
    writer: Option<TableWriter>,
    /// The snapshot's version, when its head has come.
    version: Option<Version>,
}

impl Receiver {
    pub(crate) fn open(machine: Arc<ShardMachine>) -> io::Result<Receiver> {
        let random = machine.env.random.next_u64();
        let name = format!("{}{random:016x}", receive_prefix(machine.shard().id));
        machine.env.disk.create_dir_all(&machine.spool_dir)?;
        Ok(Receiver {
            machine,
            name,
            tables: Vec::new(),
            writer: None,
            version: None,
        })
    }

    fn take_head(&mut self, chunk: &Bytes) -> codec::Result<()> {
        let mut reader = codec::Reader::new(chunk.slice(1..));
        if reader.u8()? != FORMAT {
            return Err(Damaged("it is of another format"));
        }
        let version = reader.u64()?;
        let shard = Shard::from_bytes(&reader.rest()).map_err(|_| Damaged("it has no shard"))?;
        if shard.id != self.machine.shard().id {
            return Err(Damaged("it is of another shard"));
        }
        self.version = Some(version);
        Ok(())
    }

    fn take_entries(&mut self, chunk: &Bytes) -> io::Result<()> {
        let (lower, upper) = shard_range(self.machine.shard());
        let mut reader = codec::Reader::new(chunk.slice(1..));
        while !reader.is_empty() {
            let mut next = || {
                let entry = (reader.bytes()?, reader.u64()?, reader.bytes()?);
                if entry.0 < lower || entry.0 >= upper {
                    return Err(Damaged("a key is not in the shard"));
                }
                value::decode_header(&entry.2)?;
                Ok(entry)
            };
            let (key, version, stored) = next().map_err(refused)?;
            let writer = self.writer()?;
            let put = writer.put_at(DATA, &key, version, &stored);
            put.map_err(engine_error)?;
        }
        Ok(())
    }

    /// The table that the next entry goes to.
    fn writer(&mut self) -> io::Result<&mut TableWriter> {
        let ends = |writer: &TableWriter| {
            let early = switch::fires("node.snapshot_table_ends_early");
            writer.size_bytes() >= TABLE_BYTES || early && !writer.is_empty()
        };
        if self.writer.as_ref().is_some_and(ends) {
            self.finish_table()?;
        }
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => {
                let name = format!("{}-{:06}.table", self.name, self.tables.len());
                let path = self.machine.spool_dir.join(name);
                self.tables.push(path.clone());
                let writer = self.machine.engine.table_writer(&path);
                Ok(none.insert(writer.map_err(engine_error)?))
            }
        }
    }

    fn finish_table(&mut self) -> io::Result<()> {
        if let Some(writer) = self.writer.take() {
            writer.finish().map_err(engine_error)?;
        }
        Ok(())
    }
}

fn refused(error: Damaged) -> io::Error {
    invalid(format!("a snapshot chunk was refused: {error}"))
}

impl SnapshotSink for Receiver {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        match (chunk.first(), self.version) {
            (Some(&HEAD), None) => self.take_head(&chunk).map_err(refused),
            (Some(&ENTRIES), Some(_)) => self.take_entries(&chunk),
            _ => Err(refused(Damaged(
                "it is of an unknown kind, or out of place",
            ))),
        }
    }

    fn install(mut self: Box<Self>, applied: &Applied) -> io::Result<()> {
        let version = self
            .version
            .ok_or_else(|| invalid("a snapshot without a single chunk"))?;
        self.finish_table()?;
        let position = Position {
            entry: applied.entry,
            version,
        };
        let shard = self.machine.shard();
        let mut batch = Batch::new();
        let mut put = |field, value: &[u8]| batch.put(META, &group_key(shard.id, field), value);
        if !switch::bug("snapshot_without_its_position") {
            put(GroupField::Applied, &position.encode());
        }
        put(GroupField::Membership, &applied.membership);
        put(GroupField::Shard, &shard.to_bytes());
        let (lower, upper) = shard_range(shard);
        self.machine.install_with(|| {
            let options = IngestOptions {
                excise: &[(DATA, KeyRange::new(&lower, &upper))],
                batch: Some(&batch),
                move_files: true,
                verify: false,
            };
            let taken = self.machine.engine.ingest(&self.tables, &options);
            Ok((position, taken.map_err(engine_error)?))
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        for path in &self.tables {
            // If that fails, or what was taken in is gone already: the next opening of the shard removes the rest.
            let _ = self.machine.env.disk.remove(path);
        }
    }
}

fn receive_prefix(group: GroupId) -> String {
    format!("receive-{group}-")
}

/// Removes what was received for a group and not taken in.
pub(crate) fn forget(disk: &dyn Disk, spool_dir: &Path, group: GroupId) -> io::Result<()> {
    if !disk.exists(spool_dir)? {
        return Ok(());
    }
    let part = receive_prefix(group);
    for name in disk.list(spool_dir)? {
        if name.starts_with(&part) {
            disk.remove(&spool_dir.join(name))?;
        }
    }
    disk.sync_dir(spool_dir)
}

//! A shard's state machine: the data of one group inside the node's engine.
//!
//! Everything of a group lies in the engine under keys that say so; this type holds no state of its
//! own but the position, which it could read back at any time. The engine has no write-ahead log:
//! the Raft log is it. A batch carries the effects of commands together with the position they lead
//! to, so whatever prefix of batches a crash leaves, the log replays from exactly there.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_env::{Env, switch};
use quorate_kv::Version;
use quorate_replication::{
    Applied, Command as Committed, CommandBody, EntryId, SnapshotSink, SnapshotSource, StateMachine,
};
use quorate_sharding::{GroupId, NamespaceKind, ReplicaId, Shard};
use quorate_storage::{Batch, Engine, IterOptions, KeyRange, Lsm, ReadAt, WriteOptions};

use crate::apply::{Applier, ApplyError, Position};
use crate::command::Command;
use crate::flushed::FlushTracker;
use crate::hash::Hashes;
use crate::keys::{DATA, GroupField, META, group_key};
use crate::snapshot::{Reader, Receiver};

/// The state machine of one shard's replica.
pub(crate) struct ShardMachine {
    pub(crate) env: Env,
    pub(crate) engine: Arc<Lsm>,
    /// Where snapshots are received.
    pub(crate) spool_dir: PathBuf,
    shard: Shard,
    kind: NamespaceKind,
    /// Held while commands are applied or a snapshot is installed.
    position: Mutex<Position>,
    version: AtomicU64,
    flushed: FlushTracker,
    /// Raised when the installation of a snapshot begins and when it is done: odd in between.
    installs: AtomicU64,
    pub(crate) hashes: Arc<Hashes>,
}

impl ShardMachine {
    /// Opens the machine of a replica; what is left of a snapshot that was being received is removed.
    ///
    /// # Errors
    /// `InvalidData` if the state here is another replica's: see [`remains`](crate::remains).
    pub(crate) fn open(
        env: Env,
        engine: Arc<Lsm>,
        spool_dir: PathBuf,
        (shard, replica): (Shard, ReplicaId),
        kind: NamespaceKind,
    ) -> io::Result<Arc<ShardMachine>> {
        let machine = Arc::new(ShardMachine {
            env,
            engine,
            spool_dir,
            shard,
            kind,
            position: Mutex::default(),
            version: AtomicU64::new(0),
            flushed: FlushTracker::new(None),
            installs: AtomicU64::new(0),
            hashes: Arc::default(),
        });
        claim(&machine.engine, machine.shard.id, replica)?;
        crate::snapshot::forget(&*machine.env.disk, &machine.spool_dir, machine.shard.id)?;
        let stored = machine.meta(GroupField::Applied)?;
        let position = match stored {
            Some(bytes) => Position::decode(bytes).map_err(invalid)?,
            None => machine.create()?,
        };
        // What was read back before anything was applied is on disk.
        if let Some(entry) = position.entry {
            machine.flushed.recovered(entry.index);
            machine.hashes.skip(entry.index);
        }
        machine.set_position(&mut machine.position.lock(), position);
        Ok(machine)
    }

    /// The first state: empty, with the shard that the group holds.
    fn create(&self) -> io::Result<Position> {
        self.clear()?;
        let mut batch = Batch::new();
        let key = group_key(self.shard.id, GroupField::Shard);
        batch.put(META, &key, &self.shard.to_bytes());
        self.engine
            .write(&batch, WriteOptions::APPLY)
            .map_err(engine_error)?;
        Ok(Position::default())
    }

    /// Data of a replica before, of which damage took all that said so, must not show.
    fn clear(&self) -> io::Result<()> {
        let (lower, upper) = crate::keys::shard_range(&self.shard);
        let range = IterOptions::range(&lower, &upper);
        let mut iter = self.engine.iterate(DATA, range).map_err(engine_error)?;
        iter.seek_to_first().map_err(engine_error)?;
        if !iter.valid() {
            return Ok(());
        }
        drop(iter);
        let removed = self
            .engine
            .remove_range(DATA, KeyRange::new(&lower, &upper));
        removed.map_err(engine_error)
    }

    pub(crate) fn shard(&self) -> &Shard {
        &self.shard
    }

    pub(crate) fn kind(&self) -> NamespaceKind {
        self.kind
    }

    /// The newest version that the group gave, as far as applied here.
    pub(crate) fn version(&self) -> Version {
        self.version.load(Ordering::Acquire)
    }

    /// Whether a snapshot is being installed: what is stored now may be the old state or the new one.
    pub(crate) fn is_installing(&self) -> bool {
        self.installs() % 2 == 1
    }

    /// What is read between two equal and even numbers is of one state.
    pub(crate) fn installs(&self) -> u64 {
        self.installs.load(Ordering::SeqCst)
    }

    /// About how many bytes its data takes in tables.
    pub(crate) fn size_bytes(&self) -> u64 {
        let (lower, upper) = crate::keys::shard_range(&self.shard);
        self.engine
            .approximate_bytes(DATA, KeyRange::new(&lower, &upper))
            .unwrap_or_default()
    }

    pub(crate) fn meta(&self, field: GroupField) -> io::Result<Option<Bytes>> {
        let key = group_key(self.shard.id, field);
        let found = self
            .engine
            .get(META, &key, &ReadAt::NEWEST)
            .map_err(engine_error)?;
        Ok(found.map(|entry| entry.value))
    }

    fn set_position(&self, held: &mut Position, position: Position) {
        *held = position;
        self.version.store(position.version, Ordering::Release);
    }

    /// Runs the installation of a snapshot, with nothing applied beside it.
    pub(crate) fn install_with(
        &self,
        install: impl FnOnce() -> io::Result<(Position, quorate_storage::Sequence)>,
    ) -> io::Result<()> {
        let mut held = self.position.lock();
        // One that failed leaves it open which state is stored, until the shard is opened again.
        self.installs.fetch_or(1, Ordering::SeqCst);
        let (position, sequence) = install()?;
        if let Some(entry) = position.entry {
            self.flushed.applied(sequence, entry.index);
            self.hashes.skip(entry.index);
        }
        self.set_position(&mut held, position);
        self.installs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn commit(&self, held: &mut Position, applier: Applier<'_>) -> Result<(), ApplyError> {
        let (position, sequence) = applier.commit()?;
        if let Some(entry) = position.entry {
            self.flushed.applied(sequence, entry.index);
            let version = position.version;
            switch::probe("position", || [self.shard.id, entry.index, version]);
        }
        self.set_position(held, position);
        Ok(())
    }

    fn applier(&self, position: Position) -> Applier<'_> {
        Applier::new(&*self.engine, &self.shard, self.kind, position)
    }

    fn apply_all(&self, commands: &[Committed]) -> Result<Vec<Bytes>, ApplyError> {
        let mut held = self.position.lock();
        let mut applier = self.applier(*held);
        let mut results = Vec::with_capacity(commands.len());
        for command in commands {
            applier.check_next(command.id)?;
            let mut result = Bytes::new();
            let mut hash_here = false;
            match &command.body {
                CommandBody::Blank => {}
                CommandBody::Membership(bytes) => applier.membership(bytes),
                CommandBody::Write(bytes) => match Command::decode(bytes.clone())? {
                    Command::Writes {
                        stamp,
                        answer_bytes_max,
                        writes,
                    } => {
                        // What only this node knows must not matter here.
                        let mut writes = writes;
                        if switch::bug("outcome_depends_on_the_replica")
                            && self.env.clock.unix_ms() << 15 < stamp
                        {
                            writes.clear();
                        }
                        result = applier.writes(stamp, answer_bytes_max as usize, writes)?;
                    }
                    Command::Hash => hash_here = true,
                },
            }
            applier.advance(command.id);
            results.push(result);
            if hash_here || switch::fires("node.commit_each_command") {
                self.commit(&mut held, applier)?;
                if hash_here {
                    self.hash(command.id);
                }
                applier = self.applier(*held);
            }
        }
        if applier.is_ahead_of(&held) {
            self.commit(&mut held, applier)?;
        }
        Ok(results)
    }

    /// Hashes the state as it is now, in the background.
    fn hash(&self, at: EntryId) {
        let (lower, upper) = crate::keys::shard_range(&self.shard);
        let snapshot = self.engine.snapshot();
        let engine = Arc::clone(&self.engine);
        let place = (self.shard.id, at.index);
        self.hashes
            .start(&self.env, engine, snapshot, place, lower, upper);
    }
}

/// The handle by which a group reaches its machine.
pub(crate) struct Machine(pub Arc<ShardMachine>);

impl StateMachine for Machine {
    fn applied(&self) -> io::Result<Applied> {
        let entry = self.0.position.lock().entry;
        let membership = self.0.meta(GroupField::Membership)?.unwrap_or_default();
        Ok(Applied { entry, membership })
    }

    fn apply(&self, commands: &[Committed]) -> io::Result<Vec<Bytes>> {
        self.0.apply_all(commands).map_err(|error| match error {
            ApplyError::Engine(error) => engine_error(error),
            ApplyError::Damaged(error) => invalid(error),
        })
    }

    fn flushed(&self) -> Option<u64> {
        if switch::bug("applied_called_flushed") {
            return self.0.position.lock().entry.map(|entry| entry.index);
        }
        self.0.flushed.flushed(self.0.engine.flushed_sequence())
    }

    fn snapshot(&self) -> io::Result<Box<dyn SnapshotSource>> {
        Ok(Box::new(Reader::open(&self.0)?))
    }

    fn receive(&self) -> io::Result<Box<dyn SnapshotSink>> {
        Ok(Box::new(Receiver::open(Arc::clone(&self.0))?))
    }
}

/// Notes whose state a group's is, if nobody has before.
///
/// # Errors
/// `InvalidData` if it is another replica's.
pub(crate) fn claim(engine: &Lsm, group: GroupId, replica: ReplicaId) -> io::Result<()> {
    let key = group_key(group, GroupField::Replica);
    let known = engine
        .get(META, &key, &ReadAt::NEWEST)
        .map_err(engine_error)?;
    if let Some(entry) = known {
        if entry.value[..] == replica.to_be_bytes() {
            return Ok(());
        }
        return Err(invalid(format!(
            "the state of shard {group} here is not that of replica {replica}: it has to be removed first"
        )));
    }
    let mut batch = Batch::new();
    batch.put(META, &key, &replica.to_be_bytes());
    let written = engine.write(&batch, WriteOptions::APPLY);
    written.map(|_| ()).map_err(engine_error)
}

/// Keeps what tells whether it may pass.
pub(crate) fn engine_error(error: quorate_storage::Error) -> io::Error {
    let kind = match error.kind() {
        quorate_storage::ErrorKind::Corruption => io::ErrorKind::InvalidData,
        quorate_storage::ErrorKind::DiskFull => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

pub(crate) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

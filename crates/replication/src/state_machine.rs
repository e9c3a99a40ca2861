//! The seam to what a group agrees upon: [`StateMachine`].
//!
//! A replica holds two positions. *Applied* is the last entry whose effect reads can see; it lives
//! in memory. *Flushed* is the last entry whose effect survives a crash. The log is the only
//! write-ahead log, so flushed trails applied, entries up to flushed may be purged and no others, and
//! after a restart the log is replayed from there. To make that exact, an implementation stores the
//! applied position (and the membership, when an entry brings one) **in the same batch** as the
//! effects of the commands.
//!
//! All methods are synchronous and may block on a disk; they are called on threads of
//! [`Jobs`](quorate_env::Jobs), never on those that carry Raft messages. `apply` and `install` of
//! one group never overlap; the rest may be called at any time.

use std::io;

use bytes::Bytes;

use crate::types::EntryId;

/// What a group's log is applied to.
pub trait StateMachine: Send + Sync + 'static {
    /// Where the state stands as it was opened: at the flushed position, for nothing has been applied
    /// yet. Called once, before anything else.
    fn applied(&self) -> io::Result<Applied>;

    /// Applies these commands in order, recording the id of the last one and the last membership
    /// among them in the same batch. Returns one result for each command (empty for those that are
    /// not a write). Must be a function of state and commands alone: no clock, no randomness. An
    /// error stops the replica.
    fn apply(&self, commands: &[Command]) -> io::Result<Vec<Bytes>>;

    /// The last index whose effect is durable; `None` if nothing is. Cheap; never goes back.
    fn flushed(&self) -> Option<u64>;

    /// A view of the whole state at one position, read lazily, for a replica that is too far behind.
    fn snapshot(&self) -> io::Result<Box<dyn SnapshotSource>>;

    /// Starts to receive a snapshot. What is written to the sink changes nothing until it is
    /// installed; a sink that is dropped leaves nothing behind.
    fn receive(&self) -> io::Result<Box<dyn SnapshotSink>>;
}

/// Where a state machine stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last entry applied; `None` in a state that never applied any.
    pub entry: Option<EntryId>,
    /// The membership last applied, as [`CommandBody::Membership`] brought it; empty if none did.
    pub membership: Bytes,
}

/// One committed entry.
#[derive(Debug, Clone)]
pub struct Command {
    /// Which entry it is.
    pub id: EntryId,
    /// What it asks for.
    pub body: CommandBody,
}

/// What an entry asks for.
#[derive(Debug, Clone)]
pub enum CommandBody {
    /// Nothing; only the position moves. Every new leader begins with one.
    Blank,
    /// What was proposed.
    Write(Bytes),
    /// New members. Opaque: store the bytes in place of those before.
    Membership(Bytes),
}

/// A snapshot being read, chunk by chunk.
pub trait SnapshotSource: Send {
    /// The position of the snapshot, exactly: every entry up to it is in, none after it.
    fn applied(&self) -> &Applied;

    /// The next chunk of about this many bytes at most; `None` at the end.
    fn next_chunk(&mut self, bytes_max: usize) -> io::Result<Option<Bytes>>;
}

/// A snapshot being received.
pub trait SnapshotSink: Send {
    /// Takes the next chunk, as the source cut it.
    fn write(&mut self, chunk: Bytes) -> io::Result<()>;

    /// All chunks are here: makes them durable, then replaces the state by them and records
    /// `applied`, atomically and durably. When it returns, [`StateMachine::flushed`] is at
    /// `applied`. After a crash the state is the old one or the new one.
    fn install(self: Box<Self>, applied: &Applied) -> io::Result<()>;
}

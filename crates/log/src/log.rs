//! The log as its users see it: submit, append, sync, read, release.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use quorate_env::{Env, Event, File, switch};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, HEADER_LEN, RECORD_HEADER_LEN, SegmentId};
use crate::recovery::{self, Hear, Heard, Lost};
use crate::segment::Folder;
use crate::waits::Sleeper;

/// How far a record must have got when it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Handed to the operating system: survives the process.
    Buffered,
    /// Synced: survives the machine.
    Synced,
}

/// Called when a record is complete or has failed, in the order of submission, by the writer: it
/// must be quick and must not call the log.
pub type Completion = Box<dyn FnOnce(Result<()>) + Send>;

/// Hears every record that an opened log holds; an error text fails the opening as corruption.
pub type Replay<'a> = &'a mut dyn FnMut(Position, &[u8]) -> std::result::Result<(), String>;

/// Where a record begins. Later records have greater positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment's id.
    pub segment: u64,
    /// The byte in the segment's file.
    pub offset: u64,
}

/// What becomes of records for which the disk has no room. It has none only where a file is made or
/// enlarged: a segment's blocks are there from its first byte, those of a record that is larger from its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// They fail with `DiskFull` and are nothing; the log goes on with those that come later. For
    /// owners that can take a record back.
    Refuse,
    /// They wait, and all behind them, until there is room; those before them do not. For owners that can't.
    Wait,
}

/// Where the first record of a segment begins.
pub(crate) fn start_of(segment: u64) -> Position {
    Position {
        segment,
        offset: HEADER_LEN as u64,
    }
}

/// Settings of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// The size of a segment's file, in bytes; a record that is larger gets one of its own size. From 4 KiB
    /// to 2 GiB.
    pub segment_bytes: u64,
    /// Whether a job makes the next segment's file while this one fills, so that no record waits for it;
    /// where records are synced its blocks are written too: a sync into those is faster.
    pub prepare_segments: bool,
    /// What becomes of records that find the disk full.
    pub when_full: WhenFull,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            segment_bytes: 64 << 20,
            prepare_segments: true,
            when_full: WhenFull::Refuse,
        }
    }
}

/// What is to be done when a record is durable; see [`Log::wait_then`].
pub type Then = Box<dyn FnOnce() + Send>;

/// A record that is queued and that its owner has yet to wait for.
#[must_use = "the log may wait for its holder to write"]
#[derive(Debug)]
pub struct Ticket {
    at: Position,
    wait: Wait,
}

impl Ticket {
    /// Where the record will begin.
    pub fn position(&self) -> Position {
        self.at
    }
}

/// What a thread waits for, and which cuts of the queue it has to hear of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wait {
    pub end: Position,
    pub durability: Durability,
    pub cuts_before: usize,
}

/// A log that is open. All methods take `&self` and may be called from many threads. Clones are
/// handles of one log.
#[derive(Clone)]
pub struct Log {
    pub(crate) inner: Arc<Inner>,
    _owned: Arc<Owned>,
}

/// Goes with the last handle; jobs may still run then.
struct Owned(Arc<Inner>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.folder.close();
    }
}

pub(crate) struct Inner {
    pub env: Env,
    pub folder: Folder,
    pub options: LogOptions,
    pub log_id: u64,
    pub state: Mutex<State>,
    /// Held over a sync of a segment, and before `state`.
    pub syncing: Mutex<()>,
    /// Held while segments are released, and before `state`: each goes after those before it.
    releasing: Mutex<()>,
    /// Rung when the writer need not wait for room any more.
    pub given_up: Event,
    /// Whether records that find the disk full wait for room.
    pub waits: AtomicBool,
    /// Whether the writer found the disk full and waits.
    pub full: AtomicBool,
}

/// What the lock guards. Invariants: `tail` is at or past the end of every queued chunk; records are
/// written in the order of positions; only who set `writing` touches files of the tail.
pub(crate) struct State {
    /// Where the next record begins.
    pub tail: Position,
    /// Not yet taken by the writer, ascending.
    pub queue: VecDeque<Arc<Chunk>>,
    /// Taken by the writer, not yet written: still readable from here.
    pub in_flight: Vec<Arc<Chunk>>,
    pub writing: bool,
    /// How many threads wait, or are about to: one of them can be the next writer.
    pub waiting: usize,
    /// Those of them that sleep, in the order in which they came.
    pub sleepers: VecDeque<Sleeper>,
    /// All before this is with the operating system.
    pub written: Position,
    /// All before this is durable.
    pub synced: Position,
    /// Where full disks cut the queue since somebody began to wait: what lay behind was dropped.
    pub cuts: Vec<Position>,
    pub files: BTreeMap<u64, Arc<dyn File>>,
    pub poison: Option<Error>,
    /// Whether the owner has closed the log.
    pub closed: bool,
    /// Whether a job syncs what was written.
    pub syncing_behind: bool,
    /// Whether a record was to be synced: from then on a segment that is released is kept for the next.
    pub syncs: bool,
    /// The last segment in which the file of the next one was asked for.
    pub prepared_in: u64,
}

/// Records that lie one after the other in one segment and are written at once.
pub(crate) struct Chunk {
    pub segment: u64,
    pub offset: u64,
    pub bytes: Vec<u8>,
    pub durability: Durability,
    pub done: Mutex<Vec<Completion>>,
}

impl Chunk {
    pub(crate) fn end(&self) -> Position {
        Position {
            segment: self.segment,
            offset: self.offset + self.bytes.len() as u64,
        }
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.durability == Durability::Synced
    }
}

/// Chunks are written in pieces of about this size.
const CHUNK_BYTES: usize = 4 << 20;

/// What a seal takes at the end of a segment.
pub(crate) const SEAL_LEN: u64 = RECORD_HEADER_LEN as u64;

/// The largest record, with its header: positions of syncs in a segment have 32 bits.
const RECORD_MAX: usize = 1 << 30;

impl Log {
    /// Opens the log in `dir`, making it if there is none, and gives every record in order to
    /// `replay`, whose error names a record that can't be and fails the opening as corruption.
    ///
    /// On return all that was replayed is durable. Fails with `Corruption` if a record is damaged
    /// that had been synced, naming file and byte.
    pub fn open(env: &Env, dir: &Path, options: LogOptions, replay: Replay<'_>) -> Result<Log> {
        let mut hear = |heard: Heard<'_>| match heard {
            Heard::Record(at, bytes) => replay(at, bytes),
            Heard::Lost(lost, _) => Err(lost.what.clone()),
        };
        Log::open_with_damage(env, dir, options, &mut hear).map(|(log, _)| log)
    }

    /// The same for an owner who can do without records that are damaged: he hears of each in its place, and what
    /// is returned is to be given to [`Log::mend`] once he has made sure that he will do without them for good.
    /// Until then they are found again at each opening. What can't be told from a torn end is not damage.
    pub fn open_with_damage(
        env: &Env,
        dir: &Path,
        options: LogOptions,
        hear: Hear<'_>,
    ) -> Result<(Log, Vec<Lost>)> {
        if !(4 << 10..=2 << 30).contains(&options.segment_bytes) {
            let message = format!(
                "a log segment has between 4 KiB and 2 GiB, not {} bytes",
                options.segment_bytes
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        env.disk
            .create_dir_all(dir)
            .map_err(|e| Error::io("can't make", dir, &e))?;
        let folder = Folder::new(env, dir, options.segment_bytes);
        let found = recovery::recover(&folder, env, options.prepare_segments, hear)?;
        let lost = found.lost;
        let state = State {
            tail: found.tail,
            queue: VecDeque::new(),
            in_flight: Vec::new(),
            writing: false,
            waiting: 0,
            sleepers: VecDeque::new(),
            written: found.tail,
            synced: found.tail,
            cuts: Vec::new(),
            files: found.files,
            poison: None,
            closed: false,
            syncing_behind: false,
            syncs: false,
            prepared_in: 0,
        };
        let inner = Arc::new(Inner {
            env: env.clone(),
            folder,
            waits: AtomicBool::new(options.when_full == WhenFull::Wait),
            full: AtomicBool::new(false),
            options,
            log_id: found.log_id,
            state: Mutex::new(state),
            syncing: Mutex::new(()),
            releasing: Mutex::new(()),
            given_up: Event::new(),
        });
        let log = Log {
            _owned: Arc::new(Owned(Arc::clone(&inner))),
            inner,
        };
        Ok((log, lost))
    }

    /// Writes over what was lost, so that it is not found again; durable on return. A crash on the way leaves it to
    /// be found. Blocks.
    pub fn mend(&self, lost: &[Lost]) -> Result<()> {
        for part in lost {
            let id = SegmentId {
                log: self.inner.log_id,
                segment: part.at.segment,
            };
            let file = self.inner.state.lock().files.get(&id.segment).cloned();
            // Released meanwhile: then nobody needs it.
            let Some(file) = file else { continue };
            let failed = |e: std::io::Error| Error::io("can't mend", &part.path, &e);
            let size = file.size().map_err(failed)?;
            let room = part.length as usize;
            let ends_segment = part.at.offset + part.length >= size;
            let bytes = format::encode_void(id, room, ends_segment);
            file.write_all_at(&bytes, part.at.offset).map_err(failed)?;
            file.sync().map_err(failed)?;
        }
        Ok(())
    }

    /// Queues one record, made of `parts` one after the other, and returns at once. `done` hears
    /// when it is as durable as asked; records complete in order, so one also speaks for all before
    /// it that asked for no more.
    ///
    /// Fails, without calling `done`, if the record is too large or the log is poisoned.
    pub fn submit(
        &self,
        parts: &[&[u8]],
        durability: Durability,
        done: Option<Completion>,
    ) -> Result<Position> {
        let mut state = self.inner.state.lock();
        let at = self.inner.enqueue(&mut state, parts, durability, done)?;
        if !state.writing {
            state.writing = true;
            drop(state);
            self.inner.spawn_writer();
        }
        Ok(at)
    }

    /// Appends one record and waits until it is as durable as asked.
    pub fn append(&self, parts: &[&[u8]], durability: Durability) -> Result<Position> {
        let mut state = self.inner.state.lock();
        let at = self.inner.enqueue(&mut state, parts, durability, None)?;
        let end = state.tail;
        self.inner.wait_for(state, end, durability)?;
        Ok(at)
    }

    /// Queues one record and returns at once with a ticket, which the caller must hand to
    /// [`Log::wait`] soon: the log counts on it as the next writer. The two halves of
    /// [`Log::append`], for callers that queue under a lock of their own and wait outside it.
    pub fn enqueue(&self, parts: &[&[u8]], durability: Durability) -> Result<Ticket> {
        let mut state = self.inner.state.lock();
        let at = self.inner.enqueue(&mut state, parts, durability, None)?;
        let end = state.tail;
        Ok(Ticket {
            at,
            wait: state.begin_wait(end, durability),
        })
    }

    /// Waits until the record of a ticket is as durable as was asked; returns where it begins.
    pub fn wait(&self, ticket: Ticket) -> Result<Position> {
        self.inner.finish_wait(ticket.wait, None)?;
        Ok(ticket.at)
    }

    /// Like [`Log::wait`]; and when the record is as durable as asked, `then` runs before this
    /// returns, on this thread or on that of the writer. It does not run if the record fails.
    ///
    /// Where many threads wait for one sync, what each has to do afterwards is done in their order
    /// by the one that is awake, before it wakes the others. REQUIRES: `then` is short and waits for
    /// nothing.
    pub fn wait_then(&self, ticket: Ticket, then: Then) -> Result<Position> {
        self.inner.finish_wait(ticket.wait, Some(then))?;
        Ok(ticket.at)
    }

    /// Waits until everything submitted so far is durable.
    pub fn sync(&self) -> Result<()> {
        let mut state = self.inner.state.lock();
        if let Some(error) = &state.poison {
            return Err(error.clone());
        }
        let end = state.tail;
        if state.synced >= end {
            return Ok(());
        }
        match state.queue.back_mut().and_then(Arc::get_mut) {
            Some(chunk) => chunk.durability = Durability::Synced,
            None => {
                let chunk = Chunk {
                    segment: end.segment,
                    offset: end.offset,
                    bytes: Vec::new(),
                    durability: Durability::Synced,
                    done: Mutex::default(),
                };
                state.queue.push_back(Arc::new(chunk));
            }
        }
        self.inner.wait_for(state, end, Durability::Synced)
    }

    /// Reads the record at a position that [`Log::submit`], [`Log::append`] or the replay gave.
    pub fn read(&self, at: Position) -> Result<Vec<u8>> {
        let (file, id) = {
            let state = self.inner.state.lock();
            let id = SegmentId {
                log: self.inner.log_id,
                segment: at.segment,
            };
            let pending = state.in_flight.iter().chain(&state.queue);
            for chunk in pending {
                if chunk.segment == at.segment
                    && (chunk.offset..chunk.end().offset).contains(&at.offset)
                {
                    let bytes = &chunk.bytes[(at.offset - chunk.offset) as usize..];
                    let record = format::decode_record(bytes, id);
                    return record
                        .map(|r| r.payload.to_vec())
                        .ok_or_else(|| self.no_record(at));
                }
            }
            (state.files.get(&at.segment).cloned(), id)
        };
        let file = file.ok_or_else(|| self.no_record(at))?;
        let mut bytes = vec![0; RECORD_HEADER_LEN];
        let path = self.inner.folder.path(at.segment);
        let failed = |e: std::io::Error| Error::io("can't read", &path, &e);
        file.read_exact_at(&mut bytes, at.offset).map_err(failed)?;
        let header: &[u8; RECORD_HEADER_LEN] =
            bytes.first_chunk().ok_or_else(|| self.no_record(at))?;
        let length = format::claimed_len(header);
        if length as u64 > file.size().map_err(failed)? {
            return Err(Error::corruption(
                &path,
                at.offset,
                "a record's length can't be",
            ));
        }
        bytes.resize(RECORD_HEADER_LEN + length, 0);
        let rest = at.offset + RECORD_HEADER_LEN as u64;
        file.read_exact_at(&mut bytes[RECORD_HEADER_LEN..], rest)
            .map_err(failed)?;
        if format::decode_record(&bytes, id).is_none() {
            return Err(Error::corruption(
                &path,
                at.offset,
                "a record's checksum does not match",
            ));
        }
        bytes.drain(..RECORD_HEADER_LEN);
        Ok(bytes)
    }

    fn no_record(&self, at: Position) -> Error {
        let message = format!(
            "{} has no record at byte {}",
            self.inner.folder.path(at.segment).display(),
            at.offset
        );
        Error::new(ErrorKind::NotFound, message)
    }

    /// Where the next record will begin.
    pub fn end(&self) -> Position {
        self.inner.state.lock().tail
    }

    /// The oldest segment that is kept.
    pub fn first_segment(&self) -> u64 {
        let state = self.inner.state.lock();
        state
            .files
            .keys()
            .next()
            .copied()
            .unwrap_or(state.tail.segment)
    }

    /// The bytes of all segments' files.
    pub fn size_bytes(&self) -> u64 {
        let files: Vec<_> = self.inner.state.lock().files.values().cloned().collect();
        let usual = self.inner.options.segment_bytes;
        files.iter().map(|file| file.size().unwrap_or(usual)).sum()
    }

    /// Whether records wait because the disk is full.
    pub fn is_full(&self) -> bool {
        self.inner.full.load(Ordering::Acquire)
    }

    /// Why it takes no more records, if a write or a sync failed: what is durable is in doubt until it is opened again.
    pub fn failure(&self) -> Option<Error> {
        self.inner.state.lock().poison.clone()
    }

    /// Ends the log: takes no more records, makes all durable, and gives back the space that was prepared for
    /// more. Again it does nothing. REQUIRES: nobody else may open the log before it returns.
    pub fn close(&self) -> Result<()> {
        if std::mem::replace(&mut self.inner.state.lock().closed, true) {
            return Ok(());
        }
        self.inner.folder.close();
        self.inner.folder.give_up_prepared();
        self.sync()?;
        let state = self.inner.state.lock();
        let Some(file) = state.files.get(&state.tail.segment) else {
            return Ok(());
        };
        let path = self.inner.folder.path(state.tail.segment);
        let cut = file.set_size(state.tail.offset);
        cut.map_err(|e| Error::io("can't cut", &path, &e))
    }

    /// From now on a full disk fails records instead of making them wait, those that wait already
    /// included: an owner that stops can't wait for space.
    pub fn refuse_when_full(&self) {
        self.inner.waits.store(false, Ordering::Release);
        self.inner.given_up.notify();
    }

    /// Forgets all whole segments below `segment`, the oldest first; never the one that is written to. One that
    /// can't be removed stays, with all behind it, and is tried again the next time.
    pub fn release(&self, segment: u64) -> Result<()> {
        let _alone = self.inner.releasing.lock();
        loop {
            let (oldest, keep) = {
                let state = self.inner.state.lock();
                let Some(oldest) = state.files.keys().next().copied() else {
                    return Ok(());
                };
                // What is not yet durable in a later segment may need this one to be whole.
                if oldest >= segment || oldest >= state.synced.segment {
                    return Ok(());
                }
                (oldest, state.syncs && !state.closed)
            };
            self.inner.folder.remove_oldest(oldest, keep)?;
            self.inner.state.lock().files.remove(&oldest);
        }
    }
}

impl State {
    /// The queued chunk that takes a record of this size, at the end of the queue.
    fn chunk_for(&mut self, at: Position, length: usize) -> &mut Chunk {
        let fits = |chunk: &mut Arc<Chunk>| {
            let small = chunk.bytes.len() + length <= CHUNK_BYTES;
            chunk.segment == at.segment && small && Arc::get_mut(chunk).is_some()
        };
        if !self.queue.back_mut().is_some_and(fits) {
            self.queue.push_back(Arc::new(Chunk {
                segment: at.segment,
                offset: at.offset,
                bytes: Vec::new(),
                durability: Durability::Buffered,
                done: Mutex::default(),
            }));
        }
        let last = self.queue.back_mut().and_then(Arc::get_mut);
        last.expect("the last chunk was just made, or looked at")
    }
}

impl Inner {
    /// Copies a record to the queue. The caller sees to it that somebody writes.
    fn enqueue(
        &self,
        state: &mut State,
        parts: &[&[u8]],
        durability: Durability,
        done: Option<Completion>,
    ) -> Result<Position> {
        if let Some(error) = &state.poison {
            return Err(error.clone());
        }
        if state.closed {
            let message = "the log takes no more records, since it was closed; open it again";
            return Err(Error::new(ErrorKind::Poisoned, message));
        }
        let length = format::record_len(parts.iter().map(|part| part.len()).sum());
        if length > RECORD_MAX {
            let message = format!("a record has at most {RECORD_MAX} bytes, not {length}");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let room = self.options.segment_bytes - SEAL_LEN;
        let is_new = state.tail.offset == HEADER_LEN as u64;
        let is_full = state.tail.offset + length as u64 > room;
        let ends_early = || switch::rarely("log.segment_ends_early", 60);
        if !is_new && (is_full || ends_early()) {
            state.tail = start_of(state.tail.segment + 1);
        }
        let at = state.tail;
        let synced = if state.synced.segment == at.segment {
            state.synced.offset
        } else {
            0
        };
        let id = SegmentId {
            log: self.log_id,
            segment: at.segment,
        };
        let chunk = state.chunk_for(at, length);
        format::encode_record(&mut chunk.bytes, id, format::DATA, synced as u32, parts);
        chunk.durability = chunk.durability.max(durability);
        chunk.done.get_mut().extend(done);
        state.tail.offset += length as u64;
        Ok(at)
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.inner.folder.dir)
            .finish_non_exhaustive()
    }
}

//! Writing batches.
//!
//! A batch gets its sequences, its place in the log and its room in the memtable under one short
//! lock. Then, outside of it, it waits for the log, goes into the memtable beside others, and is
//! published: a read sees a batch when it and all before it are in. So nothing is visible that is
//! not as durable as was asked, and a crash, a snapshot and a read all see a prefix (the scheme of
//! Pebble's commit pipeline, with the log before the memtable).

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_env::{Env, Event, switch};
use quorate_log::Ticket;

use super::conditions::LastWrites;
use super::counters::add;
use super::{Inner, Sealed, State, closed};
use crate::batch::Batch;
use crate::engine::Sequence;
use crate::error::{Error, ErrorKind, Result};
use crate::memtable::{Memtable, bytes_needed};
use crate::options::{Durability, WriteOptions};
use crate::planted::{self, Bug};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How often a writer lets others go on before it sleeps until those before it are in.
const LOOKS: usize = 3;

/// What the commit lock guards.
pub(super) struct Commit {
    /// The last sequence given out.
    pub(super) last: Sequence,
    pub(super) memtable: Arc<Memtable>,
    /// How much of the memtable is spoken for.
    pub(super) reserved: usize,
    pub(super) last_writes: LastWrites,
    /// No write begins any more.
    pub(super) closed: bool,
}

impl Commit {
    pub(super) fn check_open(&self) -> Result<()> {
        match self.closed {
            true => Err(closed()),
            false => Ok(()),
        }
    }
}

/// What a batch has got under the commit lock.
struct Reserved {
    first: Sequence,
    last: Sequence,
    memtable: Arc<Memtable>,
    ticket: Option<Ticket>,
}

/// Makes batches visible in the order of their sequences.
pub(super) struct Publisher {
    visible: AtomicU64,
    /// Batches that are in and wait for earlier ones: first and last sequence.
    waiting: Mutex<BTreeMap<Sequence, Sequence>>,
    /// How many those are.
    count: AtomicUsize,
    progress: Event,
}

impl Publisher {
    pub(super) fn new(visible: Sequence) -> Self {
        Publisher {
            visible: AtomicU64::new(visible),
            waiting: Mutex::default(),
            count: AtomicUsize::new(0),
            progress: Event::new(),
        }
    }

    /// The last operation that reads see, and all before it.
    pub(super) fn visible(&self) -> Sequence {
        self.visible.load(Ordering::Acquire)
    }

    /// Before others have the engine.
    pub(super) fn start_at(&self, sequence: Sequence) {
        self.visible.store(sequence, Ordering::Release);
    }

    /// The batch with these sequences is in; returns when it is visible.
    pub(super) fn publish(&self, env: &Env, first: Sequence, last: Sequence) {
        self.leave(first, last);
        self.wait_until(env, last);
    }

    /// The batch with these sequences is in: it is visible as soon as all before it are.
    ///
    /// Whoever finds all before it visible makes it so at once. Whoever does not, leaves a note, and
    /// then either still sees the sequence before its own become visible, or the one who made that
    /// visible sees the note: both sides write before they read, sequentially consistent.
    pub(super) fn leave(&self, first: Sequence, last: Sequence) {
        if planted::is_on(Bug::PublishedOutOfOrder) {
            self.visible.fetch_max(last, Ordering::SeqCst);
            return;
        }
        let next =
            self.visible
                .compare_exchange(first - 1, last, Ordering::SeqCst, Ordering::SeqCst);
        match next {
            Ok(_) if self.count.load(Ordering::SeqCst) == 0 => {}
            Ok(_) => self.advance(None),
            Err(_) => self.advance(Some((first, last))),
        }
    }

    /// Waits until a batch that was left here is visible.
    pub(super) fn wait_until(&self, env: &Env, last: Sequence) {
        let mut visible = || self.visible() >= last;
        for _ in 0..LOOKS {
            if visible() {
                return;
            }
            std::thread::yield_now();
        }
        env.jobs.wait(&self.progress, &mut visible, None);
    }

    fn advance(&self, note: Option<(Sequence, Sequence)>) {
        let mut waiting = self.waiting.lock();
        if let Some((first, last)) = note {
            waiting.insert(first, last);
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        let mut moved = false;
        loop {
            let visible = self.visible.load(Ordering::SeqCst);
            let Some(last) = waiting.remove(&(visible + 1)) else {
                break;
            };
            self.count.fetch_sub(1, Ordering::SeqCst);
            self.visible.store(last, Ordering::SeqCst);
            moved = true;
        }
        drop(waiting);
        if moved {
            self.progress.notify();
        }
    }

    /// Waits until all up to `sequence` is visible; that depends on running writes only.
    pub(super) fn wait_for(&self, env: &Env, sequence: Sequence) {
        let mut visible = || self.visible() >= sequence;
        // Published without a note, nobody rings: look again after a while.
        while !visible() {
            let soon = std::time::Duration::from_millis(1);
            env.jobs.wait(&self.progress, &mut visible, Some(soon));
        }
    }
}

impl Inner {
    pub(super) fn write(
        self: &Arc<Self>,
        batch: &Batch,
        options: WriteOptions,
    ) -> Result<Sequence> {
        self.keyspaces.check(batch)?;
        if options.deadline.is_some() {
            self.check_deadline(options)?;
        }
        if batch.is_empty() {
            let visible = self.publisher.visible();
            return self.judge(batch).map(|()| visible);
        }
        let log_durability = self.log_durability(options)?;
        if self.trouble.load(Ordering::Acquire) {
            self.check_trouble(options)?;
        }
        if options.throttle && self.slow.load(Ordering::Relaxed) {
            self.throttle(batch.size_bytes(), options)?;
        }
        let batch = &*self.keyspaces.stamped(batch);
        let reserved = self.reserve(batch, options, log_durability)?;
        self.voids.cut(batch);
        let (first, last) = (reserved.first, reserved.last);
        let logged = self.log_and_take_in(batch, reserved, options.durability);
        if logged.is_err() && !planted::is_on(Bug::RefusedIsApplied) {
            // A batch that was not logged is nothing, but those after it must not wait for it.
            self.publisher.leave(first, last);
        }
        self.publisher.wait_until(&self.env, last);
        logged.map_err(|e| self.log_error(&e))?;
        add(&self.counters.batches, 1);
        add(&self.counters.batch_bytes, batch.size_bytes() as u64);
        Ok(last)
    }

    /// Gives a batch its sequences, its place in the log, if it is logged, and room in a memtable.
    fn reserve(
        self: &Arc<Self>,
        batch: &Batch,
        options: WriteOptions,
        durability: Option<quorate_log::Durability>,
    ) -> Result<Reserved> {
        let mut commit = self.lock_if_conditions_hold(batch)?;
        commit.check_open()?;
        // Past here it is under way. Whatever was waited for, the lock too, counts.
        if options.deadline.is_some() && !planted::is_on(Bug::DeadlineIsNotLookedAtAgain) {
            self.check_deadline(options)?;
        }
        let first = commit.last + 1;
        let last = commit.last + batch.len() as u64;
        let need = bytes_needed(batch.payload_bytes(), first, batch.len());
        let memtable = &commit.memtable;
        let ends_early = commit.reserved > 0 && switch::rarely("storage.memtable_ends_early", 10);
        let is_full = commit.reserved + need > memtable.capacity();
        if is_full || memtable.has_many_ranges() || ends_early {
            self.rotate(&mut commit, need);
        }
        let ticket = match (self.wal.get(), durability) {
            (Some(log), Some(durability)) => {
                let header = batch.header(first);
                let queued = log.enqueue(&[&header, batch.operations()], durability);
                let ticket = queued.map_err(|e| self.log_error(&e))?;
                if !planted::is_on(Bug::SegmentIsNotNoted) {
                    commit.memtable.note_segment(ticket.position().segment);
                }
                Some(ticket)
            }
            _ => None,
        };
        commit.last = last;
        commit.reserved += need;
        commit.last_writes.note(batch, last);
        self.voids.set_last(last);
        Ok(Reserved {
            first,
            last,
            memtable: Arc::clone(&commit.memtable),
            ticket,
        })
    }

    /// Waits for the log and takes the batch in.
    fn log_and_take_in(
        self: &Arc<Self>,
        batch: &Batch,
        reserved: Reserved,
        durability: Durability,
    ) -> quorate_log::Result<()> {
        let (memtable, first) = (reserved.memtable, reserved.first);
        match (reserved.ticket, self.wal.get()) {
            (Some(ticket), Some(log)) if planted::is_on(Bug::RefusedIsApplied) => {
                let logged = log.wait(ticket);
                self.take_in(batch, &memtable, first);
                logged?;
            }
            (Some(ticket), Some(log)) if durability == Durability::Synced => {
                // Whoever syncs for a group takes all of it in, and then wakes the others.
                let (inner, batch) = (Arc::clone(self), batch.clone());
                let then = move || inner.take_in(&batch, &memtable, first);
                log.wait_then(ticket, Box::new(then))?;
            }
            (Some(ticket), Some(log)) => {
                log.wait(ticket)?;
                self.take_in(batch, &memtable, first);
            }
            _ => self.take_in(batch, &memtable, first),
        }
        Ok(())
    }

    /// Puts a batch into its memtable, and makes it visible as soon as all before it are.
    fn take_in(&self, batch: &Batch, memtable: &Memtable, first: Sequence) {
        let last = first + batch.len() as u64 - 1;
        if planted::is_on(Bug::PublishedBeforeApplied) {
            self.publisher.leave(first, last);
            // Somebody has to look meanwhile, however busy the machine is.
            (0..100).for_each(|_| std::thread::yield_now());
            memtable.apply(batch, first);
            return;
        }
        memtable.apply(batch, first);
        self.publisher.leave(first, last);
    }

    /// How durable the log must make the batch; `None` if it is not logged.
    fn log_durability(&self, options: WriteOptions) -> Result<Option<quorate_log::Durability>> {
        match (self.options.wal, options.durability) {
            (true, Durability::Buffered) => Ok(Some(quorate_log::Durability::Buffered)),
            (true, Durability::Synced) => Ok(Some(quorate_log::Durability::Synced)),
            (false, Durability::None) => Ok(None),
            (true, Durability::None) => Err(Error::invalid(
                "an engine with a write-ahead log writes every batch to it",
            )),
            (false, _) => Err(Error::invalid(
                "an engine without a write-ahead log makes nothing durable but by a flush",
            )),
        }
    }

    /// Something is wrong: whether this write may go on all the same.
    fn check_trouble(self: &Arc<Self>, options: WriteOptions) -> Result<()> {
        let full = {
            let work = self.work.lock();
            self.check_alive(&work)?;
            work.full.clone()
        };
        match full {
            None => Ok(()),
            // Whoever is not throttled writes to memory, and watches the debt.
            Some(_) if !options.throttle && !self.options.wal => Ok(()),
            Some(error) => {
                // Perhaps there is space again; the next write will know.
                self.retry();
                Err(error)
            }
        }
    }

    /// An error of the log as one of the engine. One that leaves the log in doubt poisons.
    fn log_error(&self, error: &quorate_log::Error) -> Error {
        let error = log_error(error);
        if error.kind() == ErrorKind::Io && !planted::is_on(Bug::FailedSyncIsForgotten) {
            self.poison(error.clone());
        }
        error
    }

    /// Lets the log forget what is in tables: all segments before the first record of those
    /// memtables that are not.
    pub(super) fn release_log(&self) {
        let Some(log) = self.wal.get() else {
            return;
        };
        let commit = self.commit.lock();
        let state = self.state();
        let sealed = state.sealed.iter().map(|s| s.memtable.first_segment());
        let mut unflushed = sealed.chain([commit.memtable.first_segment()]).min();
        if planted::is_on(Bug::LogReleasedTooEarly) {
            unflushed = Some(u64::MAX);
        }
        let segment = unflushed.unwrap_or(0).min(log.end().segment);
        drop(commit);
        // What can't be released now is released after the next flush.
        let _ = log.release(segment);
    }

    /// Seals the active memtable and begins one with room for at least `need`.
    pub(super) fn rotate(self: &Arc<Self>, commit: &mut Commit, need: usize) {
        let fresh = Arc::new(Memtable::new(
            self.options.memtable_size().max(need),
            self.shelf.cache.memory(),
        ));
        let full = std::mem::replace(&mut commit.memtable, Arc::clone(&fresh));
        let was_empty = std::mem::replace(&mut commit.reserved, 0) == 0;
        let sealed = Sealed {
            memtable: full,
            last: commit.last,
        };
        {
            let mut state = self.state.write();
            let mut next = State::clone(&state);
            next.active = fresh;
            if !was_empty {
                next.sealed.insert(0, Arc::new(sealed));
            }
            *state = Arc::new(next);
        }
        self.judge_speed();
        self.spawn_flush();
    }
}

/// An error of the log as one of the engine.
pub(super) fn log_error(error: &quorate_log::Error) -> Error {
    let kind = match error.kind() {
        quorate_log::ErrorKind::TooLarge => ErrorKind::InvalidArgument,
        quorate_log::ErrorKind::DiskFull => ErrorKind::DiskFull,
        quorate_log::ErrorKind::Corruption => ErrorKind::Corruption,
        quorate_log::ErrorKind::NewerFormat => ErrorKind::Incompatible,
        _ => ErrorKind::Io,
    };
    Error::new(kind, error.to_string())
}

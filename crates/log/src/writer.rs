//! The writer: takes what is queued, writes, syncs, completes. One at a time, whoever it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_env::{File, JobClass};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Header, SEAL, SegmentId, encode_header, encode_record};
use crate::log::{Chunk, Durability, Inner, Position, SEAL_LEN, State, start_of};
use crate::waits::Called;

/// How often a disk that was full is asked for room again.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// So much is written at most before a job begins to sync it.
const SYNC_BEHIND_BYTES: u64 = 4 << 20;

/// Why writing stopped, and the end of what is sound.
type Cut = (Error, Position);

impl Inner {
    pub(crate) fn spawn_writer(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        let job = move || {
            while let Some(called) = inner.write_queued() {
                called.wake();
            }
            inner.hand_over();
        };
        self.env.jobs.spawn(JobClass::Log, Box::new(job));
    }

    /// Writes all that is queued now, and returns those who are to hear of it; `None` when nothing was
    /// queued. Only the writer calls this.
    pub(crate) fn write_queued(self: &Arc<Self>) -> Option<Called> {
        let chunks: Vec<Arc<Chunk>> = {
            let mut state = self.state.lock();
            state.in_flight = state.queue.drain(..).map(Arc::new).collect();
            state.in_flight.clone()
        };
        if chunks.is_empty() {
            return None;
        }
        let result = self.write_chunks(&chunks);
        let full = matches!(&result, Err((error, _)) if error.kind() == ErrorKind::DiskFull);
        let mut dropped = Vec::new();
        let called = {
            let mut state = self.state.lock();
            state.in_flight.clear();
            if let Err((error, at)) = &result {
                dropped = state.queue.drain(..).collect();
                if full {
                    state.tail = *at;
                    state.cuts.push(*at);
                } else {
                    state.poison.get_or_insert_with(|| poisoned(error));
                }
            }
            state.call_those_who_are_done()
        };
        let (outcome, done_before) = match result {
            Ok(()) => (Ok(()), None),
            Err((error, at)) if full => (Err(error), Some(at)),
            Err((error, _)) => (Err(poisoned(&error)), None),
        };
        for chunk in &chunks {
            let early = done_before.is_some_and(|at| chunk.end() <= at);
            complete(chunk, if early { Ok(()) } else { outcome.clone() });
        }
        dropped
            .iter()
            .for_each(|chunk| complete(chunk, outcome.clone()));
        Some(called)
    }

    /// Writes chunks, and syncs once if any wants it. An error comes with the end of what is sound.
    fn write_chunks(self: &Arc<Self>, chunks: &[Arc<Chunk>]) -> std::result::Result<(), Cut> {
        let mut sync = false;
        for chunk in chunks {
            let before = self.state.lock().written;
            let file = if chunk.segment == before.segment {
                self.file(chunk.segment).map_err(|e| (e, before))?
            } else {
                // The sync of the old segment serves what was written to it so far.
                self.when_there_is_room(|| self.rotate(chunk.segment, before))
                    .map_err(|e| (e, before))?
            };
            let needs = chunk.end().offset + SEAL_LEN;
            if needs > self.options.segment_bytes {
                let before = self.state.lock().written;
                self.when_there_is_room(|| self.enlarge(chunk.segment, &*file, needs))
                    .map_err(|e| (e, before))?;
            }
            let path = || self.folder.path(chunk.segment);
            let wrote = file.write_all_at(&chunk.bytes, chunk.offset);
            wrote.map_err(|e| (Error::io("can't write", &path(), &e).not_full(), before))?;
            self.state.lock().written = chunk.end();
            sync |= chunk.durability == Durability::Synced;
        }
        let end = self.state.lock().written;
        if sync {
            self.sync_to(end).map_err(|e| (e, end))?;
        } else {
            self.sync_behind(end);
        }
        self.prepare_next(end, sync);
        Ok(())
    }

    /// Makes durable what lies before a position, segment by segment. One at a time: of two syncs at once
    /// the system may tell only one of an error, and the other must not call anything durable then.
    fn sync_to(&self, end: Position) -> Result<()> {
        let _alone = self.syncing.lock();
        let synced = {
            let state = self.state.lock();
            if let Some(error) = &state.poison {
                return Err(error.clone());
            }
            state.synced
        };
        // Another did it meanwhile; the segment may even be released.
        if synced >= end {
            return Ok(());
        }
        let done = self.sync_segments(synced.segment, end);
        done.inspect_err(|error| self.state.lock().poison = Some(poisoned(error)))
    }

    fn sync_segments(&self, from: u64, end: Position) -> Result<()> {
        for segment in from..end.segment {
            self.sync_segment(segment, start_of(segment + 1))?;
            self.note_durable_before(segment + 1)?;
        }
        match end > start_of(end.segment) {
            true => self.sync_segment(end.segment, end),
            false => Ok(()),
        }
    }

    /// Syncs a segment; then all is durable up to `end`.
    fn sync_segment(&self, segment: u64, end: Position) -> Result<()> {
        let synced = self.file(segment)?.sync();
        let path = self.folder.path(segment);
        synced.map_err(|e| Error::io("can't sync", &path, &e).not_full())?;
        let mut state = self.state.lock();
        state.synced = state.synced.max(end);
        Ok(())
    }

    /// Says in the header of a segment that all before it is durable: what is missing there later is damage.
    fn note_durable_before(&self, segment: u64) -> Result<()> {
        let header = Header {
            id: self.id(segment),
            follows_durable: true,
        };
        let written = self.file(segment)?.write_all_at(&encode_header(header), 0);
        let path = self.folder.path(segment);
        written.map_err(|e| Error::io("can't write", &path, &e).not_full())
    }

    /// Lets a job sync what was written, if that has become much or a segment has ended: so that a sync
    /// that somebody asks for need not wait for all of it.
    fn sync_behind(self: &Arc<Self>, end: Position) {
        let mut state = self.state.lock();
        if !state.is_far_behind(end) || std::mem::replace(&mut state.syncing_behind, true) {
            return;
        }
        drop(state);
        let inner = Arc::clone(self);
        let job = move || {
            let mut end = end;
            loop {
                // That it failed stands in the state.
                let synced = inner.sync_to(end);
                let mut state = inner.state.lock();
                end = state.written;
                let more = synced.is_ok() && state.is_far_behind(end);
                state.syncing_behind = more;
                let called = state.call_those_who_are_done();
                drop(state);
                called.wake();
                if !more {
                    return;
                }
            }
        };
        self.env.jobs.spawn(JobClass::Log, Box::new(job));
    }

    /// Lets a job make the file of the next segment, once in each: where records are synced when this one is
    /// half full, since that takes long, and else when it is nearly full.
    fn prepare_next(self: &Arc<Self>, end: Position, sync: bool) {
        let half = self.options.segment_bytes / 2;
        if end.offset < half && !sync {
            return;
        }
        let mut state = self.state.lock();
        state.syncs |= sync;
        let blocks = state.syncs;
        let quarters = if blocks { 2 } else { 3 };
        let late = end.offset >= self.options.segment_bytes / 4 * quarters;
        if !late || state.prepared_in >= end.segment || !self.options.prepare_segments {
            return;
        }
        state.prepared_in = end.segment;
        drop(state);
        if self.folder.is_closed() {
            return;
        }
        let inner = Arc::clone(self);
        let job = move || {
            // If it can't be made now, the writer will try, and report why.
            if blocks && !inner.folder.has_spare() && inner.folder.prepare_spare().is_err() {
                return;
            }
            let _ = inner.folder.prepare(inner.id(end.segment + 1));
        };
        self.env.jobs.spawn(JobClass::Compaction, Box::new(job));
    }

    fn id(&self, segment: u64) -> SegmentId {
        SegmentId {
            log: self.log_id,
            segment,
        }
    }

    fn file(&self, segment: u64) -> Result<Arc<dyn File>> {
        let file = self.state.lock().files.get(&segment).cloned();
        file.ok_or_else(|| Error::new(ErrorKind::NotFound, "the log's open segment is gone"))
    }

    /// What `make` gives; while the disk is full, again and again where records are to wait.
    fn when_there_is_room<T>(&self, make: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            let made = make();
            let full = matches!(&made, Err(error) if error.kind() == ErrorKind::DiskFull);
            let wait = full && self.waits.load(Ordering::Acquire);
            self.full.store(wait, Ordering::Release);
            if !wait {
                return made;
            }
            let mut given_up = || !self.waits.load(Ordering::Acquire);
            let again = Some(FULL_RETRY);
            self.env.jobs.wait(&self.given_up, &mut given_up, again);
        }
    }

    /// Gives a segment the blocks for a record that is larger than segments are.
    fn enlarge(&self, segment: u64, file: &dyn File, bytes: u64) -> Result<()> {
        let path = self.folder.path(segment);
        let allocated = file.allocate(bytes);
        allocated.map_err(|e| Error::io("can't enlarge", &path, &e))
    }

    /// Seals the segment that ends at `end`, and begins the next. What is not yet durable becomes so by a
    /// job; but of two segments at most.
    fn rotate(&self, segment: u64, end: Position) -> Result<Arc<dyn File>> {
        let seal = || {
            let file = self.file(end.segment)?;
            let mut bytes = Vec::new();
            encode_record(&mut bytes, self.id(end.segment), SEAL, 0, &[]);
            let path = self.folder.path(end.segment);
            let failed = |e: std::io::Error| Error::io("can't seal", &path, &e).not_full();
            file.write_all_at(&bytes, end.offset).map_err(failed)
        };
        seal()?;
        if self.state.lock().synced.segment < end.segment {
            self.sync_to(end)?;
        }
        let file = self.folder.begin(self.id(segment))?;
        let mut state = self.state.lock();
        state.files.insert(segment, Arc::clone(&file));
        state.written = start_of(segment);
        drop(state);
        Ok(file)
    }
}

impl State {
    /// Whether so much is not durable of what was written that somebody should sync it.
    fn is_far_behind(&self, written: Position) -> bool {
        match self.synced.segment == written.segment {
            true => written.offset.saturating_sub(self.synced.offset) >= SYNC_BEHIND_BYTES,
            false => self.synced < written,
        }
    }
}

impl Error {
    /// A full disk in the middle of a segment whose blocks exist can't be recovered from.
    fn not_full(self) -> Error {
        match self.kind() {
            ErrorKind::DiskFull => Error::new(ErrorKind::Io, self.to_string()),
            _ => self,
        }
    }
}

fn complete(chunk: &Chunk, outcome: Result<()>) {
    for done in chunk.done.lock().drain(..) {
        done(outcome.clone());
    }
}

fn poisoned(error: &Error) -> Error {
    if error.kind() == ErrorKind::Poisoned {
        return error.clone();
    }
    let message = format!("the log takes no more records, since it {error}; restart to recover");
    Error::new(ErrorKind::Poisoned, message)
}

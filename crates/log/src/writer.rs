//! The writer: takes what is queued, writes, syncs, completes. One at a time, whoever it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_env::{File, JobClass, switch};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Header, SEAL, SegmentId, encode_header, encode_record};
use crate::log::{Chunk, Inner, Position, SEAL_LEN, State, start_of};
use crate::waits::Called;

/// How often a disk that was full is asked for room again.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// So much is written at most before a job begins to sync it.
const SYNC_BEHIND_BYTES: u64 = 4 << 20;

/// Why writing stopped, and the end of what is sound.
type Cut = (Error, Position);

/// What jobs are to do.
#[derive(Default)]
struct Chores {
    /// Much is written and not durable, or a segment has ended.
    sync: bool,
    /// The segment is nearly full: the next one's file is to be made.
    prepare: bool,
    /// With its blocks.
    blocks: bool,
}

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
    /// queued. Where records wait for room, what finds none is queued again. Only the writer calls this.
    pub(crate) fn write_queued(self: &Arc<Self>) -> Option<Called> {
        if self.full.load(Ordering::Acquire) {
            self.wait_for_room();
        }
        let (chunks, written, file) = {
            let mut state = self.state.lock();
            let most = state.queue.len();
            let few = switch::pick("log.few_records_at_once", 3);
            let count = few.map_or(most, |few| most.min(few as usize + 1));
            state.in_flight = state.queue.drain(..count).collect();
            let file = state.files.get(&state.written.segment).cloned();
            (state.in_flight.clone(), state.written, file)
        };
        if chunks.is_empty() {
            return None;
        }
        let result = self.write_chunks(&chunks, written, file);
        Some(self.end_round(chunks, result))
    }

    /// Notes what became of chunks, and completes those that are done or have failed.
    fn end_round(
        self: &Arc<Self>,
        mut done: Vec<Arc<Chunk>>,
        result: std::result::Result<Position, Cut>,
    ) -> Called {
        let (end, error) = match result {
            Ok(end) => (end, None),
            Err((error, end)) => (end, Some(error)),
        };
        let full = error
            .as_ref()
            .is_some_and(|e| e.kind() == ErrorKind::DiskFull);
        let wait = full && self.waits.load(Ordering::Acquire);
        self.full.store(wait, Ordering::Release);
        let mut failed = Vec::new();
        if error.is_some() {
            // When the disk is full, those before the end are done; else nobody knows.
            failed = done.split_off(done.partition_point(|c| full && c.end() <= end));
        }
        let error = error.map(|error| if full { error } else { poisoned(&error) });
        let mut chores = Chores::default();
        let called = {
            let mut state = self.state.lock();
            state.in_flight.clear();
            state.written = end;
            match &error {
                None => {
                    let synced = done.iter().any(|chunk| chunk.is_synced());
                    chores = self.chores(&mut state, end, synced);
                }
                Some(_) if wait => {
                    failed
                        .drain(..)
                        .rev()
                        .for_each(|c| state.queue.push_front(c));
                }
                Some(error) => {
                    failed.extend(state.queue.drain(..));
                    if full {
                        state.tail = end;
                        state.cuts.push(end);
                    } else {
                        state.poison.get_or_insert_with(|| error.clone());
                    }
                }
            }
            state.call_those_who_are_done()
        };
        self.begin(chores, end);
        done.iter().for_each(|chunk| complete(chunk, Ok(())));
        if let Some(error) = error {
            let fail = |chunk: &Arc<Chunk>| complete(chunk, Err(error.clone()));
            failed.iter().for_each(fail);
        }
        called
    }

    /// Waits a while, unless nobody waits for room any more.
    fn wait_for_room(&self) {
        let mut given_up = || !self.waits.load(Ordering::Acquire);
        let again = Some(FULL_RETRY);
        self.env.jobs.wait(&self.given_up, &mut given_up, again);
    }

    /// Writes chunks behind what is written, where `file` is, and syncs once if one of them asks for it;
    /// returns where they end. An error comes with the end of what is sound: if the disk is full, those
    /// before it are as durable as they asked.
    fn write_chunks(
        &self,
        chunks: &[Arc<Chunk>],
        written: Position,
        file: Option<Arc<dyn File>>,
    ) -> std::result::Result<Position, Cut> {
        let mut end = written;
        let wrote = file
            .ok_or_else(gone)
            .and_then(|file| self.write_in_order(chunks, file, &mut end));
        if let Err(error) = &wrote
            && error.kind() != ErrorKind::DiskFull
        {
            return Err((error.clone(), end));
        }
        if chunks.iter().any(|c| c.is_synced() && c.end() <= end) {
            let mut state = self.state.lock();
            state.written = end;
            if switch::bug("acknowledged_before_synced") {
                state.synced = end;
            }
            drop(state);
            self.sync_to(end).map_err(|e| (e, end))?;
        }
        wrote.map_err(|e| (e, end))?;
        Ok(end)
    }

    /// Writes chunks one after the other; `end` is where what was written ends.
    fn write_in_order(
        &self,
        chunks: &[Arc<Chunk>],
        mut file: Arc<dyn File>,
        end: &mut Position,
    ) -> Result<()> {
        for chunk in chunks {
            if chunk.segment != end.segment {
                file = self.rotate(chunk.segment, *end)?;
                *end = start_of(chunk.segment);
            }
            let needs = chunk.end().offset + SEAL_LEN;
            if needs > self.options.segment_bytes {
                self.enlarge(chunk.segment, &*file, needs)?;
            }
            let wrote = file.write_all_at(&chunk.bytes, chunk.offset);
            let path = || self.folder.path(chunk.segment);
            wrote.map_err(|e| Error::io("can't write", &path(), &e).not_full())?;
            *end = chunk.end();
        }
        Ok(())
    }

    /// What is to be done behind the writer's back, once more is written.
    fn chores(&self, state: &mut State, end: Position, synced: bool) -> Chores {
        state.syncs |= synced;
        // Where records are synced, making a file takes long.
        let quarters = if state.syncs { 2 } else { 3 };
        let early = switch::rarely("log.segment_made_early", 100);
        let late = end.offset >= self.options.segment_bytes / 4 * quarters || early;
        let prepare = late && state.prepared_in < end.segment && self.options.prepare_segments;
        if prepare {
            state.prepared_in = end.segment;
        }
        Chores {
            sync: !synced
                && state.is_far_behind(end)
                && !std::mem::replace(&mut state.syncing_behind, true),
            prepare,
            blocks: state.syncs,
        }
    }

    fn begin(self: &Arc<Self>, chores: Chores, end: Position) {
        if chores.sync {
            self.sync_behind(end);
        }
        if chores.prepare {
            self.prepare_next(end, chores.blocks);
        }
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
        if !switch::bug("failed_sync_forgotten") {
            synced.map_err(|e| Error::io("can't sync", &path, &e).not_full())?;
        }
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

    /// Lets a job sync what was written, so that a sync that somebody asks for need not wait for all of it.
    fn sync_behind(self: &Arc<Self>, end: Position) {
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

    /// Lets a job make the file of the next segment; with its blocks, where that makes syncs faster.
    fn prepare_next(self: &Arc<Self>, end: Position, blocks: bool) {
        let inner = Arc::clone(self);
        let job = move || {
            let next = end.segment + 1;
            if !inner.folder.wants(next) {
                return;
            }
            // If it can't be made now, the writer will try, and report why.
            if blocks && !inner.folder.has_spare() && inner.folder.prepare_spare().is_err() {
                return;
            }
            let _ = inner.folder.prepare(inner.id(next));
        };
        self.env.jobs.spawn(JobClass::Prepare, Box::new(job));
    }

    fn id(&self, segment: u64) -> SegmentId {
        SegmentId {
            log: self.log_id,
            segment,
        }
    }

    fn file(&self, segment: u64) -> Result<Arc<dyn File>> {
        let file = self.state.lock().files.get(&segment).cloned();
        file.ok_or_else(gone)
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

fn gone() -> Error {
    Error::new(ErrorKind::NotFound, "the log's open segment is gone")
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

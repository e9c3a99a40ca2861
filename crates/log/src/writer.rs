//! The writer: takes what is queued, writes, syncs, completes. One at a time, whoever it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;
use quorate_env::{File, JobClass};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{HEADER_LEN, SEAL, SegmentId, encode_record};
use crate::log::{Chunk, Durability, Inner, Position, State, Wait};

/// How often a disk that was full is asked for room again.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// Why writing stopped, and the end of what is sound.
type Cut = (Error, Position);

impl State {
    /// Whether all before `end` has got as far as `durability` says.
    fn reached(&self, end: Position, durability: Durability) -> bool {
        match durability {
            Durability::Buffered => self.written >= end,
            Durability::Synced => self.synced >= end,
        }
    }
}

impl Inner {
    pub(crate) fn spawn_writer(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        let job = move || {
            while inner.write_queued() {}
            inner.hand_over();
        };
        self.env.jobs.spawn(JobClass::Log, Box::new(job));
    }

    /// Waits until all before `end` is as durable as asked, writing itself when nobody does.
    pub(crate) fn wait_for(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        end: Position,
        durability: Durability,
    ) -> Result<()> {
        let wait = state.begin_wait(end, durability);
        drop(state);
        self.finish_wait(wait)
    }

    /// The rest of a wait that began under the lock.
    pub(crate) fn finish_wait(self: &Arc<Self>, wait: Wait) -> Result<()> {
        let mut outcome = None;
        while outcome.is_none() {
            let mut my_turn = false;
            let mut look = || {
                let mut state = self.state.lock();
                outcome = state.outcome(&wait);
                if outcome.is_none() && !state.writing && !state.queue.is_empty() {
                    state.writing = true;
                    my_turn = true;
                }
                outcome.is_some() || my_turn
            };
            self.env.jobs.wait(&self.progress, &mut look, None);
            if my_turn {
                self.write_queued();
                self.hand_over();
            }
        }
        let mut state = self.state.lock();
        state.waiting -= 1;
        if state.waiting == 0 {
            state.cuts.clear();
            if !state.writing && !state.queue.is_empty() {
                state.writing = true;
                drop(state);
                self.spawn_writer();
            }
        }
        outcome.unwrap_or(Ok(()))
    }

    /// The writer stops: gives its place to a thread that waits, or to a job, or leaves it free.
    fn hand_over(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if !state.queue.is_empty() && state.waiting == 0 {
            drop(state);
            self.spawn_writer();
            return;
        }
        state.writing = false;
        drop(state);
        self.progress.notify();
    }

    /// Writes all that is queued now; false when nothing was. Only the writer calls this.
    fn write_queued(self: &Arc<Self>) -> bool {
        let chunks: Vec<Arc<Chunk>> = {
            let mut state = self.state.lock();
            state.in_flight = state.queue.drain(..).map(Arc::new).collect();
            state.in_flight.clone()
        };
        if chunks.is_empty() {
            return false;
        }
        let result = self.write_chunks(&chunks);
        let full = matches!(&result, Err((error, _)) if error.kind() == ErrorKind::DiskFull);
        let mut dropped = Vec::new();
        {
            let mut state = self.state.lock();
            state.in_flight.clear();
            if let Err((error, at)) = &result {
                dropped = state.queue.drain(..).collect();
                if full {
                    state.tail = *at;
                    state.cuts.push(*at);
                } else {
                    state.poison = Some(poisoned(error));
                }
            }
        }
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
        self.progress.notify();
        true
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
                self.rotate_when_there_is_room(chunk.segment, before)
                    .map_err(|e| (e, before))?
            };
            let path = || self.folder.path(chunk.segment);
            let wrote = file.write_all_at(&chunk.bytes, chunk.offset);
            wrote.map_err(|e| (Error::io("can't write", &path(), &e).not_full(), before))?;
            self.state.lock().written = chunk.end();
            sync |= chunk.durability == Durability::Synced;
        }
        let end = self.state.lock().written;
        if sync {
            let file = self.file(end.segment).map_err(|e| (e, end))?;
            let path = || self.folder.path(end.segment);
            file.sync()
                .map_err(|e| (Error::io("can't sync", &path(), &e).not_full(), end))?;
            self.state.lock().synced = end;
        }
        Ok(())
    }

    fn file(&self, segment: u64) -> Result<Arc<dyn File>> {
        let file = self.state.lock().files.get(&segment).cloned();
        file.ok_or_else(|| Error::new(ErrorKind::NotFound, "the log's open segment is gone"))
    }

    /// [`Inner::rotate`]; while the disk is full, again and again where records are to wait.
    fn rotate_when_there_is_room(
        self: &Arc<Self>,
        segment: u64,
        end: Position,
    ) -> Result<Arc<dyn File>> {
        loop {
            let rotated = self.rotate(segment, end);
            let full = matches!(&rotated, Err(error) if error.kind() == ErrorKind::DiskFull);
            let wait = full && self.waits.load(Ordering::Acquire);
            self.full.store(wait, Ordering::Release);
            if !wait {
                return rotated;
            }
            let mut given_up = || !self.waits.load(Ordering::Acquire);
            let again = Some(FULL_RETRY);
            self.env.jobs.wait(&self.progress, &mut given_up, again);
        }
    }

    /// Seals the segment that ends at `end`, makes it durable, and begins the next.
    fn rotate(self: &Arc<Self>, segment: u64, end: Position) -> Result<Arc<dyn File>> {
        let next = SegmentId {
            log: self.log_id,
            segment,
        };
        let seal = || {
            let id = SegmentId {
                log: self.log_id,
                segment: end.segment,
            };
            let file = self.file(end.segment)?;
            let mut bytes = Vec::new();
            encode_record(&mut bytes, id, SEAL, 0, &[]);
            let path = self.folder.path(end.segment);
            let failed = |e: std::io::Error| Error::io("can't seal", &path, &e).not_full();
            file.write_all_at(&bytes, end.offset).map_err(failed)?;
            file.sync().map_err(failed)
        };
        seal()?;
        self.state.lock().synced = end;
        let file = self.folder.create(next)?;
        let start = Position {
            segment,
            offset: HEADER_LEN as u64,
        };
        let mut state = self.state.lock();
        state.files.insert(segment, Arc::clone(&file));
        state.synced = start;
        state.written = start;
        drop(state);
        self.prepare_next();
        Ok(file)
    }

    /// Lets a job write the file of the segment after this one, if there is none.
    pub(crate) fn prepare_next(self: &Arc<Self>) {
        if !self.options.prepare_segments || self.folder.has_spare() {
            return;
        }
        if std::mem::replace(&mut self.state.lock().preparing, true) {
            return;
        }
        let inner = Arc::clone(self);
        let job = move || {
            // If it can't be made now, the writer will try, and report why.
            let _ = inner.folder.prepare_spare();
            inner.state.lock().preparing = false;
        };
        self.env.jobs.spawn(JobClass::Compaction, Box::new(job));
    }
}

impl State {
    /// Counts one more thread as waiting; [`Inner::finish_wait`] counts it off.
    pub(crate) fn begin_wait(&mut self, end: Position, durability: Durability) -> Wait {
        self.waiting += 1;
        Wait {
            end,
            durability,
            cuts_before: self.cuts.len(),
        }
    }

    fn outcome(&self, wait: &Wait) -> Option<Result<()>> {
        let mut cuts = self.cuts.iter().skip(wait.cuts_before);
        if cuts.any(|cut| *cut < wait.end) {
            return Some(Err(Error::new(
                ErrorKind::DiskFull,
                "the disk of the log is full",
            )));
        }
        if self.reached(wait.end, wait.durability) {
            return Some(Ok(()));
        }
        self.poison.clone().map(Err)
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
    let message = format!("the log takes no more records, since it {error}; restart to recover");
    Error::new(ErrorKind::Poisoned, message)
}

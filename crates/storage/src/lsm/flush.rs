//! Writing memtables out: the oldest first, each to one table of level 0.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use quorate_env::JobClass;

use super::counters::add;
use super::{Inner, Sealed, State};
use crate::compaction::{Failure, Input, Keep, Outputs, write_table};
use crate::engine::Sequence;
use crate::error::{Error, ErrorKind, Result};
use crate::levels::{Edit, Gone, Levels, table_path};
use crate::planted::{self, Bug};
use crate::table::TableOptions;
use crate::values::{Collect, ValueOptions, value_path};

impl Inner {
    /// Starts the flush of everything; returns the last sequence in it.
    pub(super) fn start_flush(self: &Arc<Self>) -> Result<Sequence> {
        self.check_alive(&self.work.lock())?;
        let mut commit = self.commit.lock();
        let last = commit.last;
        if commit.reserved > 0 {
            self.rotate(&mut commit, 0);
        }
        drop(commit);
        self.spawn_flush();
        Ok(last)
    }

    pub(super) fn flush_and_wait(self: &Arc<Self>) -> Result<Sequence> {
        let tried_before = self.work.lock().flushes_tried;
        let target = self.start_flush()?;
        let mut outcome = None;
        let mut look = || {
            outcome = self.flush_outcome(target, tried_before);
            outcome.is_some()
        };
        self.env.jobs.wait(&self.progress, &mut look, None);
        outcome.unwrap_or(Ok(target))
    }

    pub(super) fn flush_outcome(
        &self,
        target: Sequence,
        tried_before: u64,
    ) -> Option<Result<Sequence>> {
        let flushed = self.flushed.load(Ordering::Acquire);
        if flushed >= target {
            return Some(Ok(flushed));
        }
        let work = self.work.lock();
        if let Err(error) = self.check_alive(&work) {
            return Some(Err(error));
        }
        let failed = work.flushes_tried > tried_before && !work.flushing;
        work.full.clone().filter(|_| failed).map(Err)
    }

    /// Lets a job flush, if there is what to flush and none does.
    pub(super) fn spawn_flush(self: &Arc<Self>) {
        let mut work = self.work.lock();
        if work.flushing || work.closing || work.poison.is_some() || self.state().sealed.is_empty()
        {
            return;
        }
        work.flushing = true;
        drop(work);
        let inner = Arc::clone(self);
        let job = move || inner.flush_job();
        self.env.jobs.spawn(JobClass::Flush, Box::new(job));
    }

    fn flush_job(self: &Arc<Self>) {
        loop {
            let more = self.flush_oldest();
            // What it looked at below may have been compacted away meanwhile.
            self.shelf.purge();
            {
                let mut work = self.work.lock();
                work.flushes_tried += 1;
                let go_on = matches!(more, Ok(true)) && !work.closing;
                if !go_on || self.state().sealed.is_empty() {
                    work.flushing = false;
                    break;
                }
            }
            self.announce_flush();
        }
        self.announce_flush();
    }

    fn announce_flush(self: &Arc<Self>) {
        self.drop_dead();
        self.judge_speed();
        self.progress.notify();
        self.flushed_event.notify();
        self.spawn_compactions();
    }

    /// Writes the oldest sealed memtable out; false if there is none.
    pub(super) fn flush_oldest(self: &Arc<Self>) -> Result<bool> {
        let state = self.state();
        let oldest = match planted::is_on(Bug::FlushNewestFirst) {
            true => state.sealed.first(),
            false => state.sealed.last(),
        };
        let Some(sealed) = oldest.cloned() else {
            return Ok(false);
        };
        drop(state);
        // Reads that are under way see it as a whole, and so do snapshots from here on.
        self.publisher.wait_for(&self.env, sealed.last);
        match self.write_out(&sealed) {
            Ok(()) => {
                self.heal();
                // A disk that did not read before may do so now; damage stays.
                let mut work = self.work.lock();
                work.unreadable.take_if(|e| e.kind() == ErrorKind::Io);
                Ok(true)
            }
            Err(error) => {
                if error.kind() == ErrorKind::DiskFull {
                    self.note_full(error.clone());
                } else if error.kind() != ErrorKind::Closed {
                    self.poison(error.clone());
                }
                Err(error)
            }
        }
    }

    fn write_out(self: &Arc<Self>, sealed: &Arc<Sealed>) -> Result<()> {
        let began = self.env.clock.now();
        let levels = Arc::clone(&self.state().levels);
        let keep = Keep {
            snapshots: self.snapshots.list(),
        };
        let outputs = Outputs {
            shelf: &self.shelf,
            next_file: &self.next_file,
            options: self.table_options(0, false),
            table_bytes: u64::MAX,
            below: None,
            without: &[],
            values: self.value_options(),
            collect: &Collect::default(),
        };
        let input = Input {
            cursor: &mut sealed.memtable.cursor(),
            tombstones: sealed.memtable.with_tombstones(Clone::clone),
            // Memtables above are newer; older ones are flushed.
            below: Some((&levels, 0)),
            filter: None,
        };
        let written = write_table(input, &self.keyspaces, keep, &outputs, &|| false);
        let written = written.map_err(|failure: Failure| failure.error().clone())?;
        let bytes = written.table_bytes();
        self.counters.wrote_values(&written);
        let mut edit = Edit {
            flushed_sequence: Some(match planted::is_on(Bug::FlushedTooHigh) {
                true => self.publisher.visible(),
                false => sealed.last,
            }),
            ..Edit::default()
        };
        written.add_to(&mut edit, 0);
        self.install(&edit, Some(sealed))?;
        let took = self.env.clock.now().saturating_sub(began);
        self.note_flush(bytes, took);
        add(&self.counters.flushes, 1);
        add(&self.counters.flush_bytes, bytes);
        self.counters.written_to(0, bytes);
        self.release_log();
        Ok(())
    }

    /// How tables of a level are written; `bottom` is where nothing lies below.
    pub(super) fn table_options(&self, level: usize, bottom: bool) -> TableOptions {
        let compression = self.options.compression_of(level, bottom);
        TableOptions::new(&self.options, compression, self.keyspaces.time().now_ms())
    }

    pub(super) fn value_options(&self) -> ValueOptions {
        ValueOptions::new(&self.options)
    }

    /// Makes an edit durable, then visible. A memtable that it writes out is let go. If the disk is
    /// full, the edit did not happen, and the files that it was to add are removed.
    pub(super) fn install(self: &Arc<Self>, edit: &Edit, flushed: Option<&Sealed>) -> Result<()> {
        let installed = self.try_install(edit.clone(), flushed);
        let full = |e: &Error| e.kind() == ErrorKind::DiskFull;
        if installed.as_ref().is_err_and(full) {
            let moved = |n: u64| edit.removed.iter().any(|(_, removed)| *removed == n);
            for (_, table) in edit.added.iter().filter(|(_, t)| !moved(t.number)) {
                let path = table_path(&self.dir, table.number);
                let _ = self.env.disk.remove(&path);
            }
            for values in &edit.values {
                let _ = self.env.disk.remove(&value_path(&self.dir, values.number));
            }
        }
        installed
    }

    fn try_install(self: &Arc<Self>, mut edit: Edit, flushed: Option<&Sealed>) -> Result<()> {
        let mut manifest = self.manifest.lock();
        edit.next_file = Some(self.next_file.load(Ordering::Relaxed) + 1);
        edit.watermarks = self.watermarks();
        edit.time_ms = Some(self.keyspaces.time().now_ms());
        let (levels, gone) = self.applied(&edit, manifest.number())?;
        if planted::is_on(Bug::InputsRemovedTooEarly) {
            for (_, number) in &edit.removed {
                let _ = self.env.disk.remove(&table_path(&self.dir, *number));
            }
        }
        if planted::is_on(Bug::InstalledBeforeDurable)
            && let Some(sealed) = flushed
        {
            let mut state = self.state.write();
            let mut next = State::clone(&state);
            next.sealed.retain(|s| s.last != sealed.last);
            *state = Arc::new(next);
        }
        let result = if manifest.wants_roll() {
            let mut everything = self.everything(&levels);
            everything.flushed_sequence = edit.flushed_sequence.or(everything.flushed_sequence);
            let number = self.next_file.fetch_add(1, Ordering::Relaxed);
            everything.next_file = Some(number + 1);
            manifest.roll(number, &everything)
        } else {
            manifest.append(&edit)
        };
        result?;
        {
            let mut state = self.state.write();
            let mut next = State::clone(&state);
            next.levels = Arc::new(levels);
            if let Some(sealed) = flushed {
                next.sealed.retain(|s| s.last != sealed.last);
            }
            if let Some(sequence) = edit.flushed_sequence {
                if flushed.is_none() {
                    next.ingested = sequence;
                }
                self.flushed.store(sequence, Ordering::Release);
            }
            *state = Arc::new(next);
        }
        drop(manifest);
        gone.retire();
        self.shelf.purge();
        Ok(())
    }

    fn applied(&self, edit: &Edit, manifest: u64) -> Result<(Levels, Gone)> {
        let bad = |what: String| crate::levels::bad_edit(&self.dir, manifest, &what);
        let flushed = self.flushed.load(Ordering::Acquire);
        if let Some(sequence) = edit.flushed_sequence.filter(|s| *s < flushed) {
            // Recovery would give sequences out again that tables hold, and a flush that has been
            // asked for would never be reached.
            return Err(bad(format!(
                "it is flushed to {flushed}, an edit says to {sequence} only"
            )));
        }
        let levels = Arc::clone(&self.state().levels);
        levels.apply(edit, &self.shelf).map_err(bad)
    }

    /// The watermarks that this edit's dropping of entries may have relied on.
    fn watermarks(&self) -> Vec<(crate::options::KeyspaceId, u64)> {
        if planted::is_on(Bug::WatermarkIsForgotten) {
            return Vec::new();
        }
        let raised = self.keyspaces.iter().filter(|k| k.watermark() > 0);
        raised.map(|k| (k.id, k.watermark())).collect()
    }

    /// The edit that makes the whole store from nothing, with these levels.
    pub(super) fn everything(&self, levels: &Levels) -> Edit {
        Edit {
            keyspaces: self.keyspace_list.clone(),
            flushed_sequence: Some(self.flushed.load(Ordering::Acquire)),
            next_file: Some(self.next_file.load(Ordering::Relaxed) + 1),
            watermarks: self.watermarks(),
            time_ms: Some(self.keyspaces.time().now_ms()),
            ..levels.as_edit()
        }
    }

    /// The disk is full: writes are refused until a flush or compaction succeeds.
    pub(super) fn note_full(&self, error: Error) {
        let text = format!("{error}: writes are refused until there is space");
        self.work.lock().full = Some(Error::new(ErrorKind::DiskFull, text));
        self.trouble.store(true, Ordering::Release);
        self.progress.notify();
    }

    /// Background work succeeded: what it failed of before is over.
    pub(super) fn heal(self: &Arc<Self>) {
        if !self.trouble.load(Ordering::Acquire) {
            return;
        }
        let mut work = self.work.lock();
        work.full = None;
        let trouble = work.poison.is_some() || work.closing;
        self.trouble.store(trouble, Ordering::Release);
        drop(work);
        // One that failed of it may be waited for, and nothing else would try it again.
        self.spawn_flush();
    }

    pub(super) fn retry_if_full(self: &Arc<Self>) {
        if self.trouble.load(Ordering::Acquire) && self.work.lock().full.is_some() {
            self.retry();
        }
    }

    /// The disk was full: tries again what could not be written.
    pub(super) fn retry(self: &Arc<Self>) {
        self.spawn_flush();
        self.spawn_compactions();
        let idle = {
            let work = self.work.lock();
            !work.flushing && work.compactions == 0
        };
        if idle {
            // Nothing is left to be written: nothing will show whether there is space.
            self.heal();
        }
    }
}

//! Removing a range with all its history, as when a shard leaves a node.
//!
//! No deletion is written: tables within the range go as a whole, those that reach over its ends are
//! written anew without it, and one edit makes all of that true at once. A crash leaves the range
//! whole or gone.

use std::sync::Arc;

use parking_lot::Mutex;
use quorate_env::JobClass;

use super::Inner;
use super::compact::Manual;
use crate::compaction::{Failure, Input, Keep, Outputs, write_table};
use crate::error::{ErrorKind, Result};
use crate::levels::{Edit, LEVELS, TableFile, table_path};

impl Inner {
    pub(super) fn remove_range(self: &Arc<Self>, manual: Manual) -> Result<()> {
        self.flush_and_wait()?;
        self.begin_manual()?;
        // Level 0 is ordered by age, which a table that is written anew would lose.
        let done = self.run_level(&manual, 0, 1, &|_| true);
        let done = done.and_then(|()| self.run_removal(manual));
        self.end_manual();
        done
    }

    /// Lets a job remove the range from level 1 on, and waits for it.
    fn run_removal(self: &Arc<Self>, range: Manual) -> Result<()> {
        let outcome = Arc::new(Mutex::new(None));
        self.work.lock().compactions += 1;
        let (inner, result) = (Arc::clone(self), Arc::clone(&outcome));
        let job = move || {
            let done = inner.remove_from_levels(&range);
            let error = done.as_ref().err().map(|failure| failure.error().clone());
            inner.finish(&[], done);
            inner.shelf.purge();
            *result.lock() = Some(error.map_or(Ok(()), Err));
            inner.progress.notify();
        };
        self.env.jobs.spawn(JobClass::Compaction, Box::new(job));
        let mut ended = None;
        let mut look = || {
            ended = outcome.lock().take();
            ended.is_some()
        };
        self.env.jobs.wait(&self.progress, &mut look, None);
        ended.unwrap_or(Ok(()))
    }

    fn remove_from_levels(self: &Arc<Self>, range: &Manual) -> std::result::Result<(), Failure> {
        let levels = Arc::clone(&self.state().levels);
        let mut edit = Edit::default();
        for level in 1..LEVELS {
            for table in levels.level(level).iter().filter(|t| range.concerns(t)) {
                edit.removed.push((level, table.meta.number));
                if range.covers(table) {
                    continue;
                }
                if let Err(failure) = self.write_without(range, level, table, &mut edit) {
                    for (_, made) in &edit.added {
                        let path = table_path(&self.dir, made.number);
                        let _ = self.env.disk.remove(&path);
                    }
                    return Err(failure);
                }
            }
        }
        match edit.removed.is_empty() {
            true => Ok(()),
            false => self.install(&edit, None).map_err(Failure::Output),
        }
    }

    /// Writes a table anew without the range.
    fn write_without(
        &self,
        range: &Manual,
        level: usize,
        table: &TableFile,
        edit: &mut Edit,
    ) -> std::result::Result<(), Failure> {
        let outputs = Outputs {
            shelf: &self.shelf,
            next_file: &self.next_file,
            options: self.table_options(level),
            table_bytes: self.options.table_bytes,
            below: None,
            without: Some((&range.lower, range.upper.as_deref())),
        };
        let keep = Keep {
            snapshots: self.snapshots.list(),
        };
        let input = Input {
            cursor: &mut table.cursor(false).map_err(Failure::Input)?,
            tombstones: table.table().map_err(Failure::Input)?.tombstones().clone(),
            // What lies below may be removed by the same edit, but need not be known here.
            below: None,
        };
        let stop = || self.is_closing();
        let made = write_table(input, &self.keyspaces, keep, &outputs, &stop)?;
        edit.added
            .extend(made.into_iter().map(|meta| (level, meta)));
        Ok(())
    }

    /// Whether running work should give up.
    pub(super) fn is_closing(&self) -> bool {
        self.trouble.load(std::sync::atomic::Ordering::Relaxed) && {
            let work = self.work.lock();
            self.check_alive(&work)
                .is_err_and(|e| e.kind() == ErrorKind::Closed)
        }
    }
}

//! Removing a range with all its history, as when a shard leaves a node.
//!
//! No deletion is written: tables within the range go as a whole, those that reach over its ends are
//! written anew without it, and one edit makes all of that true at once. A crash leaves the range
//! whole or gone.

use std::sync::Arc;

use quorate_env::JobClass;

use super::Inner;
use super::compact::Manual;
use crate::compaction::{Failure, Input, Keep, Outputs, write_table};
use crate::error::{ErrorKind, Result};
use crate::levels::{Edit, LEVELS, TableFile, table_path};
use crate::sync::Mutex;
use crate::table::TableOptions;
use crate::values::{Collect, value_path};

impl Inner {
    pub(super) fn remove_range(self: &Arc<Self>, manual: Manual) -> Result<()> {
        self.flush_and_wait()?;
        self.begin_manual()?;
        // Level 0 is ordered by age, which a table that is written anew would lose.
        let done = self.run_level(&manual, 0, 1, &|_| true);
        let done = done.and_then(|()| {
            self.run_alone(move |inner| {
                let mut edit = Edit::default();
                inner.leave_out(&[manual], &mut edit)?;
                match edit.removed.is_empty() {
                    true => Ok(()),
                    false => inner.install(&edit, None).map_err(Failure::Output),
                }
            })
        });
        self.end_manual();
        done
    }

    /// Lets a job do something to the levels, and waits for it. REQUIRES: manual work has begun.
    pub(super) fn run_alone(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Inner>) -> std::result::Result<(), Failure> + Send + 'static,
    ) -> Result<()> {
        let outcome = Arc::new(Mutex::new(None));
        self.work.lock().compactions += 1;
        let (inner, result) = (Arc::clone(self), Arc::clone(&outcome));
        let job = move || {
            let done = work(&inner);
            let error = done.as_ref().err().map(|failure| failure.error().clone());
            inner.shelf.purge();
            inner.finish(&[], done);
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

    /// Adds to an edit what leaves ranges out of the levels from 1 on. On failure nothing that was
    /// written stays.
    pub(super) fn leave_out(
        self: &Arc<Self>,
        ranges: &[Manual],
        edit: &mut Edit,
    ) -> std::result::Result<(), Failure> {
        let levels = Arc::clone(&self.state().levels);
        let without: Vec<_> = ranges
            .iter()
            .map(|range| (range.lower.clone(), range.upper.clone()))
            .collect();
        for level in 1..LEVELS {
            let concerned = |t: &&Arc<TableFile>| ranges.iter().any(|range| range.concerns(t));
            for table in levels.level(level).iter().filter(concerned) {
                edit.removed.push((level, table.meta.number));
                if table.is_lost() || ranges.iter().any(|range| range.covers(table)) {
                    continue;
                }
                if let Err(failure) = self.write_without(&without, level, table, edit) {
                    self.remove_added(edit);
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// Removes the files that an edit was to add. What stays, the next opening removes.
    pub(super) fn remove_added(&self, edit: &Edit) {
        for (_, made) in &edit.added {
            let path = table_path(&self.dir, made.number);
            let _ = self.env.disk.remove(&path);
        }
        for made in &edit.values {
            let _ = self.env.disk.remove(&value_path(&self.dir, made.number));
        }
    }

    /// Writes a table anew without some ranges.
    fn write_without(
        &self,
        without: &[(Vec<u8>, Option<Vec<u8>>)],
        level: usize,
        table: &TableFile,
        edit: &mut Edit,
    ) -> std::result::Result<(), Failure> {
        let outputs = Outputs {
            shelf: &self.shelf,
            next_file: &self.next_file,
            options: TableOptions {
                written_ms: table.meta.properties.written_ms,
                ..self.table_options(level, false)
            },
            table_bytes: self.options.table_bytes,
            below: None,
            without,
            values: self.value_options(),
            collect: &Collect::default(),
        };
        let keep = Keep {
            snapshots: self.snapshots.list(),
        };
        let input = Input {
            cursor: &mut table.salvaging_cursor().map_err(Failure::Input)?,
            tombstones: table.table().map_err(Failure::Input)?.tombstones().clone(),
            // What lies below may be removed by the same edit, but need not be known here.
            below: None,
            filter: None,
        };
        let stop = || self.is_closing();
        let made = write_table(input, &self.keyspaces, keep, &outputs, &stop)?;
        self.counters.read_from(level, table.meta.size_bytes);
        self.counters.written_to(level, made.table_bytes());
        self.counters.wrote_values(&made);
        made.add_to(edit, level);
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

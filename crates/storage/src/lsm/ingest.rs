//! Taking in tables that were made outside.
//!
//! All of it is one edit: what an excised range held goes, the tables come, and a small table with the
//! batch. The order of things is kept by one rule: all that was written before is in tables before the
//! edit, and nothing that is written after it is visible before the edit is.
//!
//! ```text
//! flush, no more compactions, level 0 down if there is what to excise        writes go on
//! take the next sequences, seal the memtable                                  writes go on, and are
//! flush it, link the files, write the edit                                    visible only then
//! publish the sequences
//! ```
//!
//! The entries of a table have no sequences of their own; the manifest says which one they all have
//! (the global sequence number of RocksDB). So the file is taken in as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Inner;
use super::checkpoint::link_error;
use super::compact::Manual;
use super::counters::add;
use crate::batch::Batch;
use crate::cache::BlockCache;
use crate::compaction::{Failure, Input, Keep, Outputs, Written, write_table};
use crate::cursor::Cursor;
use crate::engine::Sequence;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::levels::{Edit, LEVELS, Levels, TableFile, TableMeta, table_path};
use crate::memtable::{Memtable, bytes_needed};
use crate::options::IngestOptions;
use crate::planted::{self, Bug};
use crate::table::{Table, check_blocks, describe};
use crate::values::{Collect, Pointer};

/// What is to happen in one edit.
struct Plan {
    /// Sources and what they hold; numbers are given when they are linked.
    tables: Vec<(PathBuf, TableMeta)>,
    excise: Vec<Manual>,
    batch: Batch,
    /// The sequence of all entries of the tables; those of the batch follow.
    first: Sequence,
}

impl Inner {
    pub(super) fn ingest(
        self: &Arc<Self>,
        files: &[PathBuf],
        options: &IngestOptions<'_>,
    ) -> Result<Sequence> {
        let mut plan = self.plan(files, options)?;
        if plan.tables.is_empty() && plan.excise.is_empty() && plan.batch.is_empty() {
            return Ok(self.publisher.visible());
        }
        self.flush_and_wait()?;
        self.begin_manual()?;
        let down = self.lower_level_0(&plan.excise);
        let done = down.and_then(|()| {
            let (first, last) = self.take_sequences(1 + plan.batch.len() as u64)?;
            plan.first = first;
            let done = self.ingest_at(plan, last);
            self.publisher.publish(&self.env, first, last);
            if done.is_err() {
                self.fill_gap();
            }
            done.map(|()| last)
        });
        self.end_manual();
        if done.is_ok() && options.move_files {
            // They are in the store by another name: what stays is no harm.
            for file in files {
                let _ = self.env.disk.remove(file);
            }
        }
        done
    }

    /// Looks at everything before anything is done.
    fn plan(&self, files: &[PathBuf], options: &IngestOptions<'_>) -> Result<Plan> {
        let batch = options.batch.cloned().unwrap_or_default();
        self.keyspaces.check(&batch)?;
        if !batch.requirements().is_empty() {
            return Err(Error::invalid(
                "the batch of an ingest can't have conditions: write it on its own",
            ));
        }
        let mut excise = Vec::new();
        for (keyspace, range) in options.excise {
            self.keyspaces.get(*keyspace)?;
            let mut range = Manual::range(*keyspace, *range);
            if planted::is_on(Bug::ExciseOffByOne) {
                range.lower.push(0);
            }
            excise.push(range);
        }
        let mut tables = Vec::new();
        for path in files {
            tables.push((path.clone(), self.examine(path, options.verify)?));
        }
        tables.sort_by(|a, b| a.1.properties.smallest.cmp(&b.1.properties.smallest));
        for pair in tables.windows(2) {
            if let [(a, of_a), (b, of_b)] = pair
                && of_a.properties.end > of_b.properties.smallest
            {
                return Err(Error::invalid(format!(
                    "{} and {} overlap: tables that come in together must not",
                    a.display(),
                    b.display()
                )));
            }
        }
        Ok(Plan {
            tables,
            excise,
            batch,
            first: 0,
        })
    }

    /// Whether a file is a table that this engine can take; makes its content durable.
    fn examine(&self, path: &Path, verify: bool) -> Result<TableMeta> {
        let (file, size_bytes, properties) = describe(self.env.disk.as_ref(), path)?;
        properties.compression.check_readable(path)?;
        let meta = TableMeta {
            number: 0,
            size_bytes,
            properties,
            ingested: None,
        };
        let cache = Arc::new(BlockCache::new(0, self.options.block_bytes));
        let table = Table::open(self.env.disk.as_ref(), path, &meta, cache)?;
        let refused = |what: &str| Error::invalid(format!("{}: {what}", path.display()));
        if meta.properties.max_sequence > 0 {
            return Err(refused("it has sequences: not the work of a TableWriter"));
        }
        if !meta.properties.shares.is_empty() {
            return Err(refused(
                "its values are elsewhere: not the work of a TableWriter",
            ));
        }
        for of in &meta.properties.keyspaces {
            let known = self.keyspaces.find(of.id);
            let known = known.ok_or_else(|| {
                refused(&format!(
                    "it holds keyspace {}, this store does not",
                    of.id.0
                ))
            })?;
            if !known.versioned && of.max_version > 0 {
                let what = format!("keyspace {} keeps no versions, the table does", of.id.0);
                return Err(refused(&what));
            }
        }
        if verify {
            let pointed = |_: &Pointer| Err("it has a pointer".to_owned());
            let problems = check_blocks(&table, &meta.properties, &pointed, &mut |_| {});
            if let Some((_, what)) = problems.first() {
                return Err(Error::corrupt(path, what));
            }
        }
        if !planted::is_on(Bug::IngestUnsynced) {
            let synced = file.sync();
            synced.map_err(|e| Error::disk(path, "can't sync", &e).not_full())?;
        }
        Ok(meta)
    }

    /// Takes sequences, and seals what was written before them.
    fn take_sequences(self: &Arc<Self>, count: u64) -> Result<(Sequence, Sequence)> {
        self.check_alive(&self.work.lock())?;
        let mut commit = self.commit.lock();
        if commit.reserved > 0 {
            self.rotate(&mut commit, 0);
        }
        let first = commit.last + 1;
        let last = commit.last + count;
        commit.last = last;
        // It may write to any key.
        commit.last_writes.note_all(last);
        self.voids.set_last(last);
        drop(commit);
        self.voids.clear();
        Ok((first, last))
    }

    /// Sequences were taken for nothing: a flush goes past them, so that nobody waits for them.
    fn fill_gap(self: &Arc<Self>) {
        self.commit.lock().reserved += 1;
        let _ = self.start_flush();
    }

    fn ingest_at(self: &Arc<Self>, plan: Plan, last: Sequence) -> Result<()> {
        self.flush_before(plan.first)?;
        // Against whoever wrote to what is excised meanwhile.
        self.lower_level_0(&plan.excise)?;
        let came = self.link_all(&plan)?;
        self.run_alone(move |inner| inner.ingest_in_job(&plan, &came, last))
    }

    /// Brings level 0 down if it holds something of these ranges: it is ordered by age, which a table
    /// that is written anew would lose.
    fn lower_level_0(self: &Arc<Self>, ranges: &[Manual]) -> Result<()> {
        match ranges.first() {
            Some(range) if self.level_0_holds(ranges)? => self.run_level(range, 0, 1, &|_| true),
            _ => Ok(()),
        }
    }

    /// Waits until all before a sequence is in tables.
    fn flush_before(self: &Arc<Self>, first: Sequence) -> Result<()> {
        let nothing_waits = || self.state().sealed.iter().all(|s| s.last >= first);
        let tried_before = self.work.lock().flushes_tried;
        self.spawn_flush();
        let mut failed = None;
        let mut look = || {
            failed = self
                .flush_outcome(first - 1, tried_before)
                .and_then(Result::err);
            failed.is_some() || nothing_waits()
        };
        self.env.jobs.wait(&self.progress, &mut look, None);
        match failed {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Whether level 0 holds an entry or a range deletion in one of these ranges.
    fn level_0_holds(&self, ranges: &[Manual]) -> Result<bool> {
        let levels = Arc::clone(&self.state().levels);
        for range in ranges {
            for table in levels.level(0).iter().filter(|t| range.concerns(t)) {
                let mut cursor = table.cursor(false)?;
                cursor.seek(&Key::first_of(&range.lower))?;
                let below = |place: &[u8]| range.upper.as_deref().is_none_or(|u| place < u);
                let tombstones = table.table()?.tombstones();
                let reaches_in = |start: &[u8], end: &[u8]| below(start) && *range.lower < *end;
                if cursor.valid() && below(cursor.key().place)
                    || tombstones
                        .iter()
                        .any(|(start, end, _)| reaches_in(start, end))
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Gives the files names of this store. On failure none stays.
    fn link_all(&self, plan: &Plan) -> Result<Vec<TableMeta>> {
        let mut linked: Vec<TableMeta> = Vec::new();
        for (from, meta) in &plan.tables {
            let number = self.next_file.fetch_add(1, Ordering::Relaxed);
            let to = table_path(&self.dir, number);
            if let Err(e) = self.env.disk.hard_link(from, &to) {
                self.forget_files(&linked);
                return Err(link_error(from, &to, &e));
            }
            linked.push(TableMeta {
                number,
                ingested: Some(match planted::is_on(Bug::IngestWithoutSequence) {
                    true => 0,
                    false => plan.first,
                }),
                ..meta.clone()
            });
        }
        Ok(linked)
    }

    fn forget_files(&self, tables: &[TableMeta]) {
        for table in tables {
            let _ = self.env.disk.remove(&table_path(&self.dir, table.number));
        }
    }

    /// Makes the edit. An error before it leaves only the files that were linked.
    fn ingest_in_job(
        self: &Arc<Self>,
        plan: &Plan,
        came: &[TableMeta],
        last: Sequence,
    ) -> std::result::Result<(), Failure> {
        let mut edit = Edit {
            flushed_sequence: Some(last),
            ..Edit::default()
        };
        let made = self.leave_out(&plan.excise, &mut edit);
        let made = made.and_then(|()| self.complete(plan, came, &mut edit));
        if let Err(failure) = made {
            self.remove_added(&edit);
            self.forget_files(came);
            return Err(failure);
        }
        self.install(&edit, None).map_err(Failure::Output)?;
        self.release_log();
        let bytes = came.iter().map(|table| table.size_bytes).sum();
        add(&self.counters.ingested_tables, came.len() as u64);
        add(&self.counters.ingested_bytes, bytes);
        Ok(())
    }

    /// Adds the tables and the batch to an edit that leaves out what is excised.
    fn complete(
        self: &Arc<Self>,
        plan: &Plan,
        came: &[TableMeta],
        edit: &mut Edit,
    ) -> std::result::Result<(), Failure> {
        if !came.is_empty() {
            let synced = self.env.disk.sync_dir(&self.dir);
            let failed = |e| Error::disk(&self.dir, "can't sync", &e).not_full();
            synced.map_err(|e| Failure::Output(failed(e)))?;
        }
        let levels = Arc::clone(&self.state().levels);
        let applied = levels.apply(edit, &self.shelf);
        let (levels, _) = applied.map_err(|what| {
            Failure::Output(Error::corrupt(&self.dir, format!("its levels: {what}")))
        })?;
        for table in came {
            let level = deepest_free(&levels, table);
            edit.added.push((level, Arc::new(table.clone())));
        }
        self.write_batch(plan)?.add_to(edit, 0);
        Ok(())
    }

    /// The batch as a table, newer than all that came in.
    fn write_batch(&self, plan: &Plan) -> std::result::Result<Written, Failure> {
        if plan.batch.is_empty() {
            return Ok(Written::default());
        }
        let first = plan.first + 1;
        let need = bytes_needed(plan.batch.payload_bytes(), first, plan.batch.len());
        let memtable = Arc::new(Memtable::new(need));
        memtable.apply(&plan.batch, first);
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
        let keep = Keep {
            snapshots: self.snapshots.list(),
        };
        let input = Input {
            cursor: &mut memtable.cursor(),
            tombstones: memtable.with_tombstones(Clone::clone),
            below: None,
            filter: None,
        };
        let made = write_table(input, &self.keyspaces, keep, &outputs, &|| false)?;
        self.counters.written_to(0, made.table_bytes());
        self.counters.wrote_values(&made);
        Ok(made)
    }
}

/// The deepest level with nothing in it or above it that overlaps a table.
fn deepest_free(levels: &Levels, table: &TableMeta) -> usize {
    let p = &table.properties;
    let overlaps = |t: &Arc<TableFile>| t.meta.properties.overlaps(&p.smallest, Some(&p.end));
    if levels.level(0).iter().any(overlaps) && !planted::is_on(Bug::IngestTooDeep) {
        return 0;
    }
    let free = |l: &usize| levels.overlapping(*l, &p.smallest, &p.end).is_empty();
    (1..LEVELS).take_while(free).last().unwrap_or(0)
}

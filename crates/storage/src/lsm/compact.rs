//! Running compactions: those that the policy chooses, and those that are asked for.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_env::JobClass;

use super::counters::add;
use super::{Inner, Work};
use crate::compaction::{Choice, Failure, How, Keep, Outputs, View, choose, compact, find_dead};
use crate::engine::KeyRange;
use crate::error::{ErrorKind, Result};
use crate::iter::bounds;
use crate::levels::{Edit, LEVELS, Levels, TableFile};
use crate::options::KeyspaceId;
use crate::sync::atomic::Ordering;
use crate::table::TableOptions;
use crate::values::{Collect, choose_collection};

/// What was asked to be compacted: places from `lower` to `upper`, which is not in it.
pub(super) struct Manual {
    pub(super) lower: Vec<u8>,
    pub(super) upper: Option<Vec<u8>>,
}

impl Manual {
    pub(super) fn range(keyspace: KeyspaceId, range: KeyRange<'_>) -> Self {
        let (lower, upper) = bounds(keyspace, range.lower, range.upper);
        Manual { lower, upper }
    }

    pub(super) fn all() -> Self {
        Manual {
            lower: Vec::new(),
            upper: None,
        }
    }

    /// Whether all places of a table are in it.
    pub(super) fn covers(&self, table: &TableFile) -> bool {
        let p = &table.meta.properties;
        p.is_within(&self.lower, self.upper.as_deref())
    }

    pub(super) fn concerns(&self, table: &TableFile) -> bool {
        let p = &table.meta.properties;
        p.overlaps(&self.lower, self.upper.as_deref())
    }
}

impl Inner {
    /// Lets jobs run all compactions that the policy wants now.
    pub(super) fn spawn_compactions(self: &Arc<Self>) {
        while self.spawn_compaction() {}
    }

    fn spawn_compaction(self: &Arc<Self>) -> bool {
        let mut work = self.work.lock();
        let may = self.options.auto_compact
            && !work.manual
            && !work.closing
            && work.poison.is_none()
            && work.unreadable.is_none()
            && work.compactions < self.options.compactions;
        if !may {
            return false;
        }
        let levels = Arc::clone(&self.state().levels);
        let view = self.view(&levels, &work.busy);
        let choice = self.policy.pick(&view);
        let choice = choice.or_else(|| choose_collection(&view, &self.wasted(&levels)));
        let Some(choice) = choice else {
            return false;
        };
        self.start(&mut work, choice, levels, true);
        true
    }

    /// The value files that are worth a compaction of their own.
    fn wasted(&self, levels: &Levels) -> Collect {
        let most_bytes = self.options.value_file_bytes;
        self.readable(Collect::wasted(
            levels.values(),
            self.options.value_garbage_percent,
            most_bytes,
        ))
    }

    /// Values of files that were given up stay where they are, until nothing points to them.
    fn readable(&self, collect: Collect) -> Collect {
        let damages = &self.shelf.damages;
        collect.only(|file| !damages.is_given_up(file))
    }

    /// The value files that a compaction of these levels moves values out of. One that was asked for
    /// takes its time. If values no longer lie apart, all go back to their keys.
    fn collect(&self, levels: &Levels, asked_for: bool) -> Collect {
        let percent = match self.options.large_value_bytes {
            0 => 0,
            _ => self.options.value_garbage_percent,
        };
        let most_bytes = match asked_for {
            true => u64::MAX,
            false => self.options.value_file_bytes,
        };
        self.readable(Collect::wasted(levels.values(), percent, most_bytes))
    }

    /// What policies see now.
    fn view<'a>(&'a self, levels: &'a Levels, busy: &'a BTreeSet<u64>) -> View<'a> {
        View {
            levels,
            busy,
            keyspaces: &self.keyspaces,
            oldest_snapshot: self.snapshots.list().first().copied().unwrap_or(u64::MAX),
            now_ms: self.keyspaces.time().now_ms(),
            is_short_of_space: self.short_of_space.load(Ordering::Relaxed),
        }
    }

    /// Lets tables go that hold nothing which any read sees. To be called by jobs.
    pub(super) fn drop_dead(self: &Arc<Self>) {
        let levels = Arc::clone(&self.state().levels);
        let with_ranges = |t: &Arc<TableFile>| t.meta.properties.range_deletions > 0;
        let may_be = self.keyspaces.expire() || levels.iter().flatten().any(with_ranges);
        if !may_be || !self.options.auto_compact {
            return;
        }
        // Opens tables: not under a lock. What is busy by then is left out below.
        let keep = Keep {
            snapshots: self.snapshots.list(),
        };
        let nothing = BTreeSet::new();
        // A table that can't be read is found by whoever needs it.
        let Ok(Some(choice)) = find_dead(&self.view(&levels, &nothing), &keep) else {
            return;
        };
        let mut work = self.work.lock();
        let idle = !work.manual && !work.closing && work.poison.is_none();
        let busy = |number: u64| work.busy.contains(&number);
        let now = Arc::clone(&self.state().levels);
        // All or none: what changed meanwhile, were it only its level, is looked at the next time.
        let there = |(level, t): (usize, &Arc<TableFile>)| {
            let number = t.meta.number;
            let is_it = |other: &Arc<TableFile>| other.meta.number == number;
            now.level(level).iter().any(is_it) && !busy(number)
        };
        if !idle || !choice.tables().all(there) {
            return;
        }
        let numbers: Vec<u64> = choice.tables().map(|(_, t)| t.meta.number).collect();
        work.busy.extend(&numbers);
        work.compactions += 1;
        drop(work);
        let done = self.carry_out(&choice, &levels, true);
        drop((choice, levels, now));
        // Before this counts as done: whoever closes the engine then may open it again at once.
        self.shelf.purge();
        self.finish(&numbers, done);
    }

    /// Marks a choice as running and hands it to a job.
    fn start(
        self: &Arc<Self>,
        work: &mut Work,
        choice: Choice,
        levels: Arc<Levels>,
        may_move: bool,
    ) {
        let numbers: Vec<u64> = choice.tables().map(|(_, t)| t.meta.number).collect();
        work.busy.extend(&numbers);
        work.compactions += 1;
        let inner = Arc::clone(self);
        let job = move || {
            let done = inner.carry_out(&choice, &levels, may_move);
            drop((choice, levels));
            inner.shelf.purge();
            let again = inner.finish(&numbers, done);
            if again {
                inner.drop_dead();
            }
            inner.judge_speed();
            inner.progress.notify();
            if again {
                inner.spawn_compactions();
            }
        };
        self.env.jobs.spawn(JobClass::Compaction, Box::new(job));
    }

    fn carry_out(
        self: &Arc<Self>,
        choice: &Choice,
        levels: &Levels,
        may_move: bool,
    ) -> std::result::Result<(), Failure> {
        let counters = &self.counters;
        let mut edit = Edit::default();
        let removed = choice.tables().map(|(level, t)| (level, t.meta.number));
        edit.removed.extend(removed);
        if choice.how == How::Move && may_move {
            let moved = choice.tables().map(|(_, t)| Arc::clone(&t.meta));
            edit.added = moved.map(|meta| (choice.output, meta)).collect();
        }
        if choice.how == How::Drop || !edit.added.is_empty() {
            self.install(&edit, None).map_err(Failure::Output)?;
            let count = choice.tables().count() as u64;
            match choice.how {
                How::Drop => add(&counters.dropped_tables, count),
                _ => add(&counters.moves, 1),
            }
            return Ok(());
        }
        let keep = Keep {
            snapshots: self.snapshots.list(),
        };
        let written = choice.tables().map(|(_, t)| t.meta.properties.written_ms);
        let outputs = Outputs {
            shelf: &self.shelf,
            next_file: &self.next_file,
            options: TableOptions {
                written_ms: written.max().unwrap_or(0),
                ..self.table_options(choice.output, choice.is_at_bottom(levels))
            },
            table_bytes: self.options.table_bytes,
            below: (choice.output + 1 < LEVELS).then_some((levels, choice.output + 1)),
            without: &[],
            values: self.value_options(),
            collect: &self.collect(levels, !may_move),
        };
        let stop = || self.is_closing();
        let filter = self.filter.as_deref();
        let made = compact(
            choice,
            levels,
            &self.keyspaces,
            filter,
            keep,
            &outputs,
            &stop,
        )?;
        let written = made.table_bytes();
        counters.wrote_values(&made);
        made.add_to(&mut edit, choice.output);
        self.install(&edit, None).map_err(Failure::Output)?;
        add(&counters.compactions, 1);
        add(&counters.compaction_write_bytes, written);
        for (level, table) in choice.tables() {
            add(&counters.compaction_read_bytes, table.meta.size_bytes);
            counters.read_from(level, table.meta.size_bytes);
        }
        counters.written_to(choice.output, written);
        Ok(())
    }

    /// Notes the end of a compaction; whether to look for more.
    pub(super) fn finish(
        self: &Arc<Self>,
        numbers: &[u64],
        done: std::result::Result<(), Failure>,
    ) -> bool {
        let again = done.is_ok();
        match done {
            Ok(()) => self.heal(),
            Err(Failure::Output(error)) if error.kind() == ErrorKind::DiskFull => {
                self.note_full(error);
            }
            Err(Failure::Output(error)) => self.poison(error),
            Err(Failure::Input(error)) if error.kind() == ErrorKind::Closed => {}
            Err(Failure::Input(error)) => self.work.lock().unreadable = Some(error),
        }
        let mut work = self.work.lock();
        for number in numbers {
            work.busy.remove(number);
        }
        work.compactions -= 1;
        again
    }

    /// Compacts what was asked for, level by level; waits for it.
    pub(super) fn compact_manually(self: &Arc<Self>, manual: &Manual) -> Result<()> {
        self.begin_manual()?;
        let done = self.run_manual(manual);
        self.end_manual();
        done
    }

    pub(super) fn end_manual(self: &Arc<Self>) {
        self.work.lock().manual = false;
        self.progress.notify();
        self.spawn_compactions();
    }

    /// Waits until it may begin: nothing else compacts.
    pub(super) fn begin_manual(self: &Arc<Self>) -> Result<()> {
        let mut mine = false;
        let mut failed = None;
        let mut look = || {
            let mut work = self.work.lock();
            failed = self.check_alive(&work).err();
            if failed.is_none() && !work.manual {
                work.manual = true;
                mine = true;
            }
            mine || failed.is_some()
        };
        self.env.jobs.wait(&self.progress, &mut look, None);
        match failed {
            Some(error) => Err(error),
            None => self.forget_failures().inspect_err(|_| self.end_manual()),
        }
    }

    /// Waits until no compaction runs. What the earlier ones failed of must not be taken for a failure
    /// of what is asked for now, which shows by itself whether there is space again.
    fn forget_failures(self: &Arc<Self>) -> Result<()> {
        let _ = self.wait_idle();
        self.heal();
        let mut work = self.work.lock();
        work.unreadable = None;
        self.check_alive(&work)
    }

    /// Waits until no compaction runs; fails with what the last one failed of.
    fn wait_idle(&self) -> Result<()> {
        let mut idle = || self.work.lock().compactions == 0;
        self.env.jobs.wait(&self.progress, &mut idle, None);
        let work = self.work.lock();
        self.check_alive(&work)?;
        match work.full.as_ref().or(work.unreadable.as_ref()) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn run_manual(self: &Arc<Self>, manual: &Manual) -> Result<()> {
        let before: BTreeSet<u64> = {
            let levels = Arc::clone(&self.state().levels);
            levels.iter().flatten().map(|t| t.meta.number).collect()
        };
        let bottom = {
            let levels = Arc::clone(&self.state().levels);
            let concerned = |l: &usize| levels.level(*l).iter().any(|t| manual.concerns(t));
            (1..LEVELS).rev().find(concerned).unwrap_or(1)
        };
        for level in 0..bottom {
            self.run_level(manual, level, level + 1, &|_| true)?;
        }
        // What is down there already was perhaps not touched.
        self.run_level(manual, bottom, bottom, &|t| before.contains(&t.meta.number))
    }

    pub(super) fn run_level(
        self: &Arc<Self>,
        manual: &Manual,
        level: usize,
        output: usize,
        wanted: &dyn Fn(&TableFile) -> bool,
    ) -> Result<()> {
        let levels = Arc::clone(&self.state().levels);
        let tables = levels.level(level).iter();
        // Of level 0 all go, since an older one may lie below one that is concerned.
        let concerned = |t: &&Arc<TableFile>| level == 0 || manual.concerns(t) && wanted(t);
        let upper: Vec<Arc<TableFile>> = tables.filter(concerned).cloned().collect();
        // Level by level in one piece from 0; further down one table at a time, for bounded space.
        let pieces: Vec<Vec<Arc<TableFile>>> = match level {
            0 if !upper.is_empty() => vec![upper],
            0 => Vec::new(),
            _ => upper.into_iter().map(|t| vec![t]).collect(),
        };
        drop(levels);
        for piece in pieces {
            let mut work = self.work.lock();
            self.check_alive(&work)?;
            let levels = Arc::clone(&self.state().levels);
            let busy = BTreeSet::new();
            let view = self.view(&levels, &busy);
            if let Some(choice) = choose(&view, level, output, piece) {
                self.start(&mut work, choice, levels, false);
            }
            drop(work);
            self.wait_idle()?;
        }
        Ok(())
    }
}

//! Histories: long random scripts of all that can be done to an engine, and the states that they lead to.
//!
//! A history follows from its seed and from nothing that the engine answers, so the states are known
//! beforehand from the model, and a run can go on from any of them: that is how a store lives through
//! many crashes. Each batch writes its number to one key, so that no two states are the same by chance.

use std::path::{Path, PathBuf};

use quorate_env::Random;
use quorate_env::sim::Sim;

use crate::tests::conformance::{Listed, try_list};
use crate::tests::ingest::Tables;
use crate::tests::workload::{DATA, META, Workload, dir, keyspaces, random_options, write_options};
use crate::{
    Batch, Condition, Durability, Engine, Error, ErrorKind, IngestOptions, IterOptions, KeyRange,
    KeyspaceId, Lsm, Model, Options, ReadAt, Result, Sequence, Snapshot, WriteOptions,
};

/// The key that says which step was the last to write a batch.
const MARKER: &[u8] = b"\xfe the last step";

/// A range of keys, owned.
#[derive(Debug, Clone)]
pub(super) struct Range {
    keyspace: KeyspaceId,
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
}

impl Range {
    fn random(work: &Workload) -> Self {
        let (a, b) = (work.key(), work.key());
        Range {
            keyspace: work.keyspace(),
            upper: Some(a.clone().max(b.clone())).filter(|_| !work.random.one_in(5)),
            lower: a.min(b),
        }
    }

    fn keys(&self) -> KeyRange<'_> {
        KeyRange {
            lower: &self.lower,
            upper: self.upper.as_deref(),
        }
    }
}

/// One thing that is done.
pub(super) enum Step {
    Write(Batch, WriteOptions),
    Remove(Range),
    Ingest {
        tables: Tables,
        excise: Vec<Range>,
        batch: Batch,
        verify: bool,
    },
    Flush,
    CompactAll,
    Compact(Range),
    Checkpoint,
    Snapshot,
    Release,
    Watermark(u64),
    /// Lets background work get on by so many jobs.
    Pump(u64),
    /// Closes, or ends as a killed process would if the log has everything, and opens with these settings.
    Reopen {
        clean: bool,
        options: Box<Options>,
    },
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Write(batch, how) => {
                let (count, conditions) = (batch.len(), batch.requirements().len());
                write!(f, "write {count} on {conditions}, {:?}", how.durability)
            }
            Step::Remove(range) => write!(f, "remove {range:?}"),
            Step::Ingest { excise, .. } => write!(f, "ingest over {excise:?}"),
            Step::Flush => write!(f, "flush"),
            Step::CompactAll => write!(f, "compact all"),
            Step::Compact(range) => write!(f, "compact {range:?}"),
            Step::Checkpoint => write!(f, "checkpoint"),
            Step::Snapshot => write!(f, "snapshot"),
            Step::Release => write!(f, "release a snapshot"),
            Step::Watermark(version) => write!(f, "watermark {version}"),
            Step::Pump(jobs) => write!(f, "pump {jobs}"),
            Step::Reopen { clean, options } => {
                write!(f, "reopen, clean {clean}, wal {}", options.wal)
            }
        }
    }
}

/// What an engine holds: of each keyspace all entries.
pub(super) type State = Vec<Listed>;

/// A script of steps.
pub(super) struct History {
    pub(super) options: Options,
    pub(super) steps: Vec<Step>,
    /// The state after so many steps.
    pub(super) states: Vec<State>,
    /// Whether old versions and deletions are looked at too: not when the watermark rises.
    pub(super) all_versions: bool,
}

/// The state that a read sees.
pub(super) fn look(engine: &dyn Engine, at: &ReadAt, all_versions: bool) -> Result<State> {
    let of = |keyspace: &crate::KeyspaceOptions| {
        let options = IterOptions {
            at: at.clone(),
            all_versions: all_versions && keyspace.versioned,
            ..IterOptions::default()
        };
        try_list(engine, keyspace.id, &options)
    };
    keyspaces().iter().map(of).collect()
}

impl Step {
    fn random(work: &mut Workload, n: usize, options: &Options, watermark: bool) -> Step {
        match work.random.below(100) {
            0..=59 => Step::write(work, n, options),
            60..=63 => Step::Flush,
            64..=66 => Step::CompactAll,
            67..=69 => Step::Compact(Range::random(work)),
            70..=72 => Step::Remove(Range::random(work)),
            73..=75 => Step::ingest(work, n),
            76..=77 => Step::Checkpoint,
            78..=81 => Step::Snapshot,
            82..=84 => Step::Release,
            85..=88 => Step::Reopen {
                clean: work.random.one_in(2),
                options: Box::new(match work.random.one_in(2) {
                    true => random_options(&work.random),
                    false => options.clone(),
                }),
            },
            89..=90 if watermark => {
                work.version += 1;
                Step::Watermark(work.version - 1)
            }
            _ => Step::Pump(1 + work.random.below(4)),
        }
    }

    fn write(work: &mut Workload, n: usize, options: &Options) -> Step {
        let mut batch = work.batch();
        if work.random.one_in(6) {
            let condition = match work.random.one_in(2) {
                true => Condition::Absent,
                false => Condition::Present,
            };
            batch.require(work.keyspace(), &work.key(), condition);
        }
        batch.put(META, MARKER, &n.to_le_bytes());
        Step::Write(batch, write_options(options, &work.random))
    }

    fn ingest(work: &mut Workload, n: usize) -> Step {
        let tables = Tables::random(work);
        let excise = (0..work.random.below(3)).map(|_| Range::random(work));
        let excise = excise.collect();
        let mut batch = Batch::new();
        batch.put(META, MARKER, &n.to_le_bytes());
        batch.put_at(DATA, &work.key(), work.version, b"with the tables");
        Step::Ingest {
            tables,
            excise,
            batch,
            verify: work.random.one_in(2),
        }
    }

    /// Whether it may change what is read.
    pub(super) fn changes(&self) -> bool {
        matches!(
            self,
            Step::Write(..) | Step::Remove(_) | Step::Ingest { .. }
        )
    }

    /// Whether snapshots taken before may see it.
    fn reaches_back(&self) -> bool {
        match self {
            Step::Remove(_) => true,
            Step::Ingest { excise, .. } => !excise.is_empty(),
            _ => false,
        }
    }

    pub(super) fn apply_to(&self, model: &Model) {
        let how = WriteOptions::default();
        match self {
            // Refused if its conditions don't hold, as it should be.
            Step::Write(batch, _) => drop(model.write(batch, how)),
            Step::Remove(range) => model.remove_range(range.keyspace, range.keys()),
            Step::Ingest {
                tables,
                excise,
                batch,
                ..
            } => {
                for range in excise {
                    model.remove_range(range.keyspace, range.keys());
                }
                for batch in [&tables.as_batch(), batch] {
                    model.write(batch, how).expect("the batch suits the model");
                }
            }
            _ => {}
        }
    }
}

impl History {
    pub(super) fn new(seed: u64, length: usize) -> Self {
        let mut work = Workload::new(seed);
        work.keys = 8 + work.random.below(30);
        let watermark = work.random.one_in(3);
        work.replays = !watermark;
        let all_versions = !watermark;
        let model = Model::new(&keyspaces());
        let state = |model: &Model| {
            look(model, &ReadAt::NEWEST, all_versions).expect("the model never fails")
        };
        let options = random_options(&work.random);
        let mut now = options.clone();
        let (mut steps, mut states) = (Vec::new(), vec![state(&model)]);
        for n in 0..length {
            let step = Step::random(&mut work, n, &now, watermark);
            step.apply_to(&model);
            states.push(match step.changes() {
                true => state(&model),
                false => states[n].clone(),
            });
            if let Step::Reopen { options, .. } = &step {
                now = Options::clone(options);
            }
            steps.push(step);
        }
        History {
            options,
            steps,
            states,
            all_versions,
        }
    }

    /// The settings before a step.
    pub(super) fn options_at(&self, step: usize) -> &Options {
        let before = self.steps[..step].iter().rev();
        let mut reopened = before.filter_map(|step| match step {
            Step::Reopen { options, .. } => Some(options.as_ref()),
            _ => None,
        });
        reopened.next().unwrap_or(&self.options)
    }

    /// The state that an engine is in, as far as it may be read.
    pub(super) fn look(&self, engine: &dyn Engine) -> Result<State> {
        look(engine, &ReadAt::NEWEST, self.all_versions)
    }

    /// Which of these states the engine is in.
    pub(super) fn find(
        &self,
        engine: &dyn Engine,
        among: std::ops::RangeInclusive<usize>,
    ) -> std::result::Result<usize, String> {
        let found = self.look(engine).map_err(|e| e.to_string())?;
        let state = among.clone().find(|n| self.states[*n] == found);
        state.ok_or_else(|| {
            let other = self.states.iter().position(|state| *state == found);
            let from = other.unwrap_or(*among.start()).min(*among.start());
            let steps = &self.steps[from..*among.end()];
            format!("the state {other:?} is none of {among:?}; the steps from {from}: {steps:?}")
        })
    }
}

/// A store that goes through a history.
pub(super) struct Run<'a> {
    pub(super) history: &'a History,
    pub(super) sim: Sim,
    lsm: Option<Lsm>,
    /// So many steps are done; the next one may have been tried.
    pub(super) done: usize,
    /// So many are durable.
    pub(super) promised: usize,
    /// Writes by their last sequence, and how many steps were done then.
    sequences: Vec<(Sequence, usize)>,
    snapshots: Vec<(Snapshot, usize)>,
    /// Finished checkpoints, and how many steps were done then.
    pub(super) checkpoints: Vec<(PathBuf, usize)>,
}

impl<'a> Run<'a> {
    /// To go on on this machine after so many steps.
    pub(super) fn new(history: &'a History, sim: Sim, done: usize) -> Self {
        Run {
            history,
            sim,
            lsm: None,
            done,
            promised: done,
            sequences: Vec::new(),
            snapshots: Vec::new(),
            checkpoints: Vec::new(),
        }
    }

    pub(super) fn lsm(&self) -> Result<&Lsm> {
        let closed = || Error::new(ErrorKind::Closed, "it is not open");
        self.lsm.as_ref().ok_or_else(closed)
    }

    pub(super) fn open(&mut self) -> Result<()> {
        let options = self.history.options_at(self.done).clone();
        self.lsm = Some(Lsm::open(&self.sim.env(), dir(), options)?);
        Ok(())
    }

    /// Lets go of the store as the end of the process would.
    pub(super) fn drop_store(&mut self) {
        self.snapshots.clear();
        self.lsm = None;
        self.sim.jobs.pump_all();
    }

    /// Runs until the end, or until something fails.
    pub(super) fn play(&mut self) -> std::result::Result<(), Failed> {
        if self.lsm.is_none() {
            self.open().map_err(|_| Failed::Error)?;
        }
        while self.done < self.history.steps.len() {
            self.step().map_err(|_| Failed::Error)?;
            self.check_snapshots()?;
        }
        self.lsm().and_then(Lsm::close).map_err(|_| Failed::Error)?;
        self.promised = self.done;
        Ok(())
    }

    /// Takes the next step; what it needs to be done once more is as before if it fails.
    pub(super) fn step(&mut self) -> Result<()> {
        let step = &self.history.steps[self.done];
        self.take(step)?;
        self.done += 1;
        let durable = match step {
            Step::Write(_, how) if how.durability == Durability::Synced => {
                // A batch that was refused promises nothing of those before it.
                self.history.states[self.done] != self.history.states[self.done - 1]
            }
            Step::Remove(_) | Step::Ingest { .. } => true,
            _ => false,
        };
        if durable {
            self.promised = self.done;
        }
        if step.reaches_back() {
            self.snapshots.clear();
        }
        let flushed = self.lsm()?.flushed_sequence();
        for (sequence, done) in &self.sequences {
            if *sequence <= flushed {
                self.promised = self.promised.max(*done);
            }
        }
        Ok(())
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Write(batch, how) => {
                let written = self.lsm()?.write(batch, *how);
                match written {
                    Ok(sequence) => self.sequences.push((sequence, self.done + 1)),
                    Err(e) if e.kind() == ErrorKind::ConditionFailed => {
                        let (before, after) = (self.done, self.done + 1);
                        let states = &self.history.states;
                        assert!(states[before] == states[after], "{e}, but they do hold");
                    }
                    Err(e) => return Err(e),
                }
            }
            Step::Remove(range) => self.lsm()?.remove_range(range.keyspace, range.keys())?,
            Step::Ingest { .. } => self.ingest(step)?,
            Step::Flush => drop(self.lsm()?.flush()?),
            Step::CompactAll => self.lsm()?.compact_all()?,
            Step::Compact(range) => self.lsm()?.compact_range(range.keyspace, range.keys())?,
            Step::Checkpoint => self.checkpoint()?,
            Step::Snapshot => {
                let snapshot = self.lsm()?.snapshot();
                self.snapshots.push((snapshot, self.done));
            }
            Step::Release => drop(self.snapshots.pop()),
            Step::Watermark(version) => {
                for keyspace in keyspaces().iter().filter(|k| k.versioned) {
                    self.lsm()?.set_watermark(keyspace.id, *version)?;
                }
            }
            Step::Pump(jobs) => (0..*jobs).for_each(|_| _ = self.sim.jobs.pump()),
            Step::Reopen { clean, options } => self.reopen(*clean, options)?,
        }
        Ok(())
    }

    fn ingest(&self, step: &Step) -> Result<()> {
        let Step::Ingest {
            tables,
            excise,
            batch,
            verify,
        } = step
        else {
            return Ok(());
        };
        let options = self.history.options_at(self.done);
        // Tried again, it needs another name.
        let name = self.sim.random.next_u64();
        let files = tables.try_write(&self.sim.env(), options, name)?;
        let excise: Vec<_> = excise.iter().map(|r| (r.keyspace, r.keys())).collect();
        let options = IngestOptions {
            excise: &excise,
            batch: Some(batch),
            move_files: true,
            verify: *verify,
        };
        self.lsm()?.ingest(&files, &options).map(|_| ())
    }

    fn checkpoint(&mut self) -> Result<()> {
        let name = format!("/checkpoint-{}-{}", self.done, self.sim.random.next_u64());
        self.lsm()?.checkpoint(Path::new(&name))?;
        self.checkpoints.push((PathBuf::from(name), self.done));
        Ok(())
    }

    fn reopen(&mut self, clean: bool, options: &Options) -> Result<()> {
        let logged = self.history.options_at(self.done).wal;
        if let Some(lsm) = &self.lsm
            && (clean || !logged)
        {
            lsm.close()?;
            self.promised = self.done;
        }
        self.drop_store();
        self.sequences.clear();
        let opened = Lsm::open(&self.sim.env(), dir(), options.clone())?;
        self.lsm = Some(opened);
        Ok(())
    }

    fn check_snapshots(&self) -> std::result::Result<(), Failed> {
        if !self.sim.random.one_in(4) {
            return Ok(());
        }
        let Some((snapshot, done)) = self.snapshots.first() else {
            return Ok(());
        };
        let lsm = self.lsm().map_err(|_| Failed::Error)?;
        let at = ReadAt::snapshot(snapshot);
        let seen = look(lsm, &at, self.history.all_versions).map_err(|_| Failed::Error)?;
        if seen != self.history.states[*done] {
            let what = format!("a snapshot of step {done} is wrong at step {}", self.done);
            return Err(Failed::Wrong(what));
        }
        Ok(())
    }

    /// What was checkpointed is what was there then.
    pub(super) fn check_checkpoints(&self, sim: &Sim) -> std::result::Result<(), String> {
        for (path, done) in &self.checkpoints {
            let opened = Lsm::open_read_only(&sim.env(), path);
            let view = opened.map_err(|e| format!("{}: {e}", path.display()))?;
            let found = self.history.find(&view, *done..=*done);
            found.map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(())
    }
}

/// Why a run ended before its end.
#[derive(Debug)]
pub(super) enum Failed {
    /// The engine said so.
    Error,
    /// It answered wrongly.
    Wrong(String),
}

/// A number from a seed, other than those that the history is made of.
pub(super) fn other_random(seed: u64) -> Random {
    Random::from_seed(seed ^ 0x5eed_5eed_5eed_5eed)
}

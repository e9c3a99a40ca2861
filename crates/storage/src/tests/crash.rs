//! The power goes at every single disk operation of a run, and what comes up again must be a prefix
//! of what was written that holds all that was promised.
//!
//! The script of a seed is the same in every run, so the states after each batch are known
//! beforehand from the model. A recovered engine must be in one of them: not before the last batch
//! that was acknowledged as durable, not after the last that was tried. That the check can fail is
//! proved by disks that forget to sync.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_env::sim::{Crash, HookedDisk, Hooks, Sim};
use quorate_env::{Env, Random};

use super::conformance::try_list;
use super::workload::{
    DATA, FAR, META, Workload, dir, keyspaces, option_sets, seeds, tiny, tiny_apart,
};
use crate::{
    Batch, Durability, Engine, IterOptions, KeyRange, KeyspaceId, Lsm, Model, Options, WriteOptions,
};

/// What an engine holds, as text.
pub(super) fn dump(engine: &dyn Engine) -> String {
    try_dump(engine).unwrap()
}

pub(super) fn try_dump(engine: &dyn Engine) -> crate::Result<String> {
    let of = |keyspace: KeyspaceId, all_versions| {
        let options = IterOptions {
            all_versions,
            ..IterOptions::default()
        };
        try_list(engine, keyspace, &options)
    };
    let (data, far, meta) = (of(DATA, true)?, of(FAR, true)?, of(META, false)?);
    Ok(format!("{data:?} {far:?} {meta:?}"))
}

/// What is done in a run, and the states it goes through.
pub(super) struct Script {
    seed: u64,
    pub(super) options: Options,
    pub(super) batches: Vec<Batch>,
    /// The dump after so many batches.
    pub(super) states: Vec<String>,
}

impl Script {
    pub(super) fn new(seed: u64, wal: bool, count: usize) -> Self {
        let mut work = Workload::new(seed);
        work.keys = 20;
        let model = Model::new(&keyspaces());
        let mut states = vec![dump(&model)];
        let mut batches = Vec::new();
        for _ in 0..count {
            let batch = work.batch();
            model.write(&batch, WriteOptions::default()).unwrap();
            states.push(dump(&model));
            batches.push(batch);
        }
        let sets = option_sets();
        let base = match seed % 4 {
            // Each in its turn: leveled, the same with values apart, FIFO with a budget, tiered with
            // prefixes and one open table.
            0 => tiny(),
            1 => tiny_apart(),
            n => sets[sets.len() + 1 - n as usize].clone(),
        };
        let mut options = Options {
            wal,
            wal_segment_bytes: 8 << 10,
            memtable_bytes: 2 << 10,
            ..base
        };
        // Longer than any run, so that values bear times and stay.
        options.keyspaces[1].ttl = seed
            .is_multiple_of(2)
            .then_some(Duration::from_secs(1 << 30));
        Script {
            seed,
            options,
            batches,
            states,
        }
    }

    /// Plays the script until it ends or the power goes; returns how many batches are promised, how
    /// many were tried.
    fn play(&self, sim: &Sim, env: &Env) -> (usize, usize) {
        let Ok(lsm) = Lsm::open(env, dir(), self.options.clone()) else {
            return (0, 0);
        };
        let random = Random::from_seed(self.seed);
        let mut promised = 0;
        // The last sequence of each batch.
        let mut sequences = Vec::new();
        for (n, batch) in self.batches.iter().enumerate() {
            let synced = random.one_in(4);
            let options = WriteOptions {
                durability: match (self.options.wal, synced) {
                    (false, _) => Durability::None,
                    (true, true) => Durability::Synced,
                    (true, false) => Durability::Buffered,
                },
                throttle: random.one_in(2),
                ..WriteOptions::default()
            };
            let Ok(sequence) = lsm.write(batch, options) else {
                return (promised, n + 1);
            };
            sequences.push(sequence);
            if options.durability == Durability::Synced {
                promised = n + 1;
            }
            match random.below(12) {
                0 => drop(lsm.flush()),
                1 => drop(lsm.compact_all()),
                2..=5 => drop(sim.jobs.pump()),
                _ => {}
            }
            let flushed = lsm.flushed_sequence();
            promised = promised.max(sequences.iter().filter(|s| **s <= flushed).count());
        }
        if lsm.close().is_ok() {
            promised = self.batches.len();
        }
        (promised, self.batches.len())
    }

    /// Opens what a crash left and finds which state it is in; then shows that life goes on.
    fn check(&self, env: &Env, promised: usize, tried: usize) -> Result<(), String> {
        let open = |env| Lsm::open(env, dir(), self.options.clone()).map_err(|e| e.to_string());
        let lsm = open(env)?;
        let found = dump(&lsm);
        let range = promised..=tried;
        let state = range.clone().find(|n| self.states[*n] == found);
        let Some(state) = state else {
            let other = self.states.iter().position(|state| *state == found);
            return Err(format!("recovered state {other:?} is none of {range:?}"));
        };
        let model = Model::new(&keyspaces());
        let rest = self.batches[..state].iter().chain(&self.batches[..3]);
        for batch in rest {
            model
                .write(batch, WriteOptions::default())
                .map_err(|e| e.to_string())?;
        }
        let options = match self.options.wal {
            true => WriteOptions::SYNCED,
            false => WriteOptions::APPLY,
        };
        for batch in &self.batches[..3] {
            lsm.write(batch, options).map_err(|e| e.to_string())?;
        }
        lsm.close().map_err(|e| e.to_string())?;
        drop(lsm);
        match dump(&open(env)?) == dump(&model) {
            true => Ok(()),
            false => Err("what was written after the recovery is not there".to_owned()),
        }
    }

    /// A run whose disk fails at operation `n`. `None` when the run ends before.
    fn crash_at(&self, n: u64, wrap: &dyn Fn(Env) -> Env) -> Option<Result<(), String>> {
        let sim = Sim::new(self.seed);
        sim.disk.crash_at(n);
        let (promised, tried) = self.play(&sim, &wrap(sim.env()));
        let over = sim.disk.operations() < n;
        let crash = [Crash::Random, Crash::LoseAll, Crash::Random, Crash::KeepAll][n as usize % 4];
        let mut up = up(&sim, crash);
        if n.is_multiple_of(3) {
            // Once more, while it recovers.
            up.disk.crash_at(n / 3 % 11);
            drop(Lsm::open(&up.env(), dir(), self.options.clone()));
            up = up.crash();
        }
        let checked = self.check(&up.env(), promised, tried);
        (!over).then_some(checked)
    }

    /// Crashes at every operation; returns how many there were, or the first failure.
    fn crash_everywhere(&self, wrap: &dyn Fn(Env) -> Env) -> Result<u64, String> {
        let mut n = 0;
        while let Some(checked) = self.crash_at(n, wrap) {
            checked.map_err(|e| format!("seed {}, crash at {n}: {e}", self.seed))?;
            n += 1;
        }
        Ok(n)
    }
}

/// The machine after a crash of this kind.
pub(super) fn up(sim: &Sim, crash: Crash) -> Sim {
    let disk = sim.disk.crash_with(crash);
    Sim {
        disk,
        ..sim.crash()
    }
}

#[test]
fn lsm_crash_at_every_operation_leaves_a_promised_prefix() {
    for seed in seeds(4) {
        for wal in [true, false] {
            let script = Script::new(seed, wal, 60);
            let operations = script.crash_everywhere(&|env| env).unwrap();
            println!("seed {seed}, wal {wal}: {operations} operations");
            assert!(operations > 50, "the script hardly used the disk");
        }
    }
}

/// Files with this ending are not synced; directories if it is empty.
struct Forgetful(&'static str);

impl Hooks for Forgetful {
    fn sync(&self, path: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        match !self.0.is_empty() && path.to_string_lossy().ends_with(self.0) {
            true => Ok(()),
            false => sync(),
        }
    }
    fn sync_dir(&self, _: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        match self.0 {
            "" => Ok(()),
            _ => sync(),
        }
    }
}

/// The same machine with a disk that does not sync files with this ending.
pub(super) fn forgetful(env: Env, what: &'static str) -> Env {
    let disk = HookedDisk::new(Arc::clone(&env.disk), Arc::new(Forgetful(what)));
    Env {
        disk: Arc::new(disk),
        ..env
    }
}

#[test]
fn crash_check_finds_every_kind_of_forgotten_sync() {
    // The log's files are synced under the name that they are made with.
    for (what, wal) in [
        (".table", false),
        (".values", false),
        (".manifest", false),
        ("", false),
        ("spare", true),
    ] {
        let wrap = |env: Env| forgetful(env, what);
        let found = (0..3).find_map(|seed| {
            let script = Script::new(seed, wal, 40);
            script.crash_everywhere(&wrap).err()
        });
        assert!(found.is_some(), "nobody missed the syncs of {what:?}");
    }
}

#[test]
fn lsm_without_log_takes_over_what_a_log_holds() {
    let sim = Sim::new(5);
    let script = Script::new(5, true, 30);
    let lsm = Lsm::open(&sim.env(), dir(), script.options.clone()).unwrap();
    for batch in &script.batches {
        lsm.write(batch, WriteOptions::SYNCED).unwrap();
    }
    drop(lsm);
    let up = up(&sim, Crash::LoseAll);
    let without = Options {
        wal: false,
        ..script.options.clone()
    };
    for _ in 0..2 {
        let lsm = Lsm::open(&up.env(), dir(), without.clone()).unwrap();
        assert_eq!(dump(&lsm), script.states[30]);
        assert_eq!(lsm.flushed_sequence(), lsm.stats().sequence);
        lsm.close().unwrap();
    }
    let segments = up.env().disk.list(&PathBuf::from("/store/wal")).unwrap();
    assert!(
        segments
            .iter()
            .filter(|name| name.ends_with(".log"))
            .count()
            <= 1
    );
}

#[test]
fn lsm_crash_while_removing_a_range_leaves_it_whole_or_gone() {
    let script = Script::new(9, false, 40);
    let store = Sim::new(1);
    let lsm = Lsm::open(&store.env(), dir(), script.options.clone()).unwrap();
    for batch in &script.batches {
        lsm.write(batch, WriteOptions::APPLY).unwrap();
    }
    lsm.close().unwrap();
    drop(lsm);
    let range = KeyRange::new(&[0], b"shared prefix/\0");
    let gone = {
        let model = Model::new(&keyspaces());
        for batch in &script.batches {
            model.write(batch, WriteOptions::APPLY).unwrap();
        }
        model.remove_range(DATA, range);
        dump(&model)
    };
    assert!(gone != script.states[40], "there is something in the range");
    let mut removed = 0;
    for n in 0.. {
        let sim = up(&store, Crash::KeepAll);
        sim.disk.crash_at(n);
        let run = || {
            let lsm = Lsm::open(&sim.env(), dir(), script.options.clone())?;
            lsm.remove_range(DATA, range)
        };
        let done = run().is_ok();
        let up = up(&sim, Crash::Random);
        let lsm = Lsm::open(&up.env(), dir(), script.options.clone()).unwrap();
        let found = dump(&lsm);
        assert!(
            found == gone || !done && found == script.states[40],
            "crash at {n}"
        );
        removed += usize::from(found == gone);
        if sim.disk.operations() < n {
            break;
        }
    }
    assert!(removed > 0, "it was never removed");
}

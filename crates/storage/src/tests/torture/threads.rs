//! Real threads, each with keys and a model of its own, on one store: whatever the others do, a thread
//! must read what its model says, at once, in snapshots, by every kind of read. Others flush, compact,
//! checkpoint and look at everything meanwhile.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use quorate_env::sim::{Crash, Sim};
use quorate_env::{Disk, Env, JobClass, Random};

use super::rounds;
use crate::tests::conformance::{Listed, try_list};
use crate::tests::workload::{
    AtEnd, DATA, FAR, META, dir, keyspaces, random_options, write_options,
};
use crate::{
    Batch, Condition, Engine, IngestOptions, IterOptions, KeyRange, KeyspaceId, Lsm, Model,
    Options, ReadAt, Snapshot, TableWriter, WriteOptions,
};

const THREADS: u64 = 4;
/// A round that takes this long waits for what will not happen.
const HANGS: Duration = Duration::from_secs(300);

/// One thread's keys: all that begin with its byte.
struct Own<'a> {
    me: u8,
    random: Random,
    lsm: &'a Lsm,
    env: &'a Env,
    options: &'a Options,
    model: Model,
    /// The next version: one for all threads, so that versions ascend.
    clock: &'a AtomicU64,
    /// Both sides' snapshots.
    snapshots: Vec<(Snapshot, Snapshot)>,
    /// So many operations are durable.
    written: u64,
}

type Outcome = Result<(), String>;

fn text(e: crate::Error) -> String {
    e.to_string()
}

impl Own<'_> {
    fn key(&self) -> Vec<u8> {
        vec![self.me, self.random.below(16) as u8]
    }

    fn keyspace(&self) -> KeyspaceId {
        [DATA, META, FAR][self.random.below(3) as usize]
    }

    /// Ends of a range of own keys.
    fn range(&self) -> (Vec<u8>, Vec<u8>) {
        let (a, b) = (self.key(), self.key());
        (a.clone().min(b.clone()), a.max(b))
    }

    fn how(&self) -> WriteOptions {
        WriteOptions {
            throttle: true,
            ..write_options(self.options, &self.random)
        }
    }

    fn put(&self, batch: &mut Batch, keyspace: KeyspaceId, key: &[u8]) {
        let value = vec![self.me; self.random.below(120) as usize];
        let delete = self.random.one_in(4);
        let version = self.clock.fetch_add(1, Ordering::Relaxed);
        match (keyspace == META, delete) {
            (true, true) => batch.delete(keyspace, key),
            (true, false) => batch.put(keyspace, key, &value),
            (false, true) => batch.delete_at(keyspace, key, version),
            (false, false) => batch.put_at(keyspace, key, version, &value),
        }
    }

    fn step(&mut self) -> Outcome {
        match self.random.below(100) {
            0..=54 => self.write(),
            55..=69 => self.get(),
            70..=79 => self.scan(None),
            80..=85 => self.scan_snapshot(),
            86..=89 => {
                self.snapshots
                    .push((self.lsm.snapshot(), self.model.snapshot()));
                Ok(())
            }
            90..=92 => {
                self.snapshots.pop();
                Ok(())
            }
            93..=94 => self.remove(),
            95..=96 => self.ingest(),
            _ => self.write_if(),
        }
    }

    fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        for _ in 0..=self.random.below(5) {
            let keyspace = self.keyspace();
            if self.random.one_in(15) {
                let (lower, upper) = self.range();
                let range = KeyRange::new(&lower, &upper);
                let version = self.clock.fetch_add(1, Ordering::Relaxed);
                match keyspace == META {
                    true => batch.delete_range(keyspace, range),
                    false => batch.delete_range_at(keyspace, range, version),
                }
            } else {
                self.put(&mut batch, keyspace, &self.key());
            }
        }
        batch
    }

    fn write(&mut self) -> Outcome {
        let batch = self.batch();
        self.lsm.write(&batch, self.how()).map_err(text)?;
        self.model.write(&batch, self.how()).map_err(text)?;
        self.written += 1;
        Ok(())
    }

    /// On a condition on an own key, which the model judges as well.
    fn write_if(&mut self) -> Outcome {
        let mut batch = self.batch();
        let condition = match self.random.one_in(2) {
            true => Condition::Present,
            false => Condition::Absent,
        };
        batch.require(self.keyspace(), &self.key(), condition);
        let wrote = self.lsm.write(&batch, self.how());
        let would = self.model.write(&batch, self.how());
        match (&wrote, &would) {
            (Ok(_), Ok(_)) => Ok(()),
            (Err(a), Err(b)) if a.kind() == b.kind() => Ok(()),
            _ => Err(format!(
                "a condition: {wrote:?}, and {would:?} by the model"
            )),
        }
    }

    fn get(&self) -> Outcome {
        let keyspace = self.keyspace();
        let keys: Vec<_> = (0..1 + self.random.below(4)).map(|_| self.key()).collect();
        let keys: Vec<_> = keys.iter().map(Vec::as_slice).collect();
        let got = self
            .lsm
            .multi_get(keyspace, &keys, &ReadAt::NEWEST)
            .map_err(text)?;
        let wanted = self
            .model
            .multi_get(keyspace, &keys, &ReadAt::NEWEST)
            .map_err(text)?;
        let first = self
            .lsm
            .get(keyspace, keys[0], &ReadAt::NEWEST)
            .map_err(text)?;
        match got == wanted && first == wanted[0] {
            true => Ok(()),
            false => Err(format!("{keys:?} of {keyspace:?}: {got:?}, not {wanted:?}")),
        }
    }

    fn list(
        &self,
        engine: &dyn Engine,
        keyspace: KeyspaceId,
        at: ReadAt,
    ) -> Result<Listed, String> {
        let options = IterOptions {
            at,
            ..IterOptions::prefix(&[self.me])
        };
        try_list(engine, keyspace, &options).map_err(text)
    }

    fn scan(&self, snapshots: Option<&(Snapshot, Snapshot)>) -> Outcome {
        let keyspace = self.keyspace();
        let at = |of: Option<&Snapshot>| of.map_or(ReadAt::NEWEST, ReadAt::snapshot);
        let got = self.list(self.lsm, keyspace, at(snapshots.map(|s| &s.0)))?;
        let wanted = self.list(&self.model, keyspace, at(snapshots.map(|s| &s.1)))?;
        match got == wanted {
            true => Ok(()),
            false => Err(format!("own keys of {keyspace:?}: {got:?}, not {wanted:?}")),
        }
    }

    fn scan_snapshot(&self) -> Outcome {
        match self.snapshots.len() as u64 {
            0 => Ok(()),
            n => self.scan(self.snapshots.get(self.random.below(n) as usize)),
        }
    }

    fn remove(&mut self) -> Outcome {
        self.snapshots.clear();
        let (lower, upper) = self.range();
        let (keyspace, range) = (self.keyspace(), KeyRange::new(&lower, &upper));
        self.lsm.remove_range(keyspace, range).map_err(text)?;
        self.model.remove_range(keyspace, range);
        Ok(())
    }

    fn ingest(&mut self) -> Outcome {
        self.snapshots.clear();
        let outside = PathBuf::from("/outside");
        self.env
            .disk
            .create_dir_all(&outside)
            .map_err(|e| e.to_string())?;
        let path = outside.join(format!("{}-{}", self.me, self.random.next_u64()));
        let (lower, upper) = self.range();
        let mut writer = TableWriter::create(self.env, &path, self.options).map_err(text)?;
        let mut batch = Batch::new();
        for n in 0..1 + self.random.below(10) as u8 {
            let key = [self.me, n];
            batch.put(META, &key, b"came in");
            writer.put(META, &key, b"came in").map_err(text)?;
        }
        writer.finish().map_err(text)?;
        let excise = [(META, KeyRange::new(&lower, &upper))];
        let options = IngestOptions {
            excise: &excise,
            move_files: true,
            ..IngestOptions::default()
        };
        self.lsm.ingest(&[path], &options).map_err(text)?;
        self.model.remove_range(META, excise[0].1);
        self.model.write(&batch, self.how()).map_err(text)?;
        Ok(())
    }

    fn check_all(&self, engine: &dyn Engine) -> Outcome {
        for keyspace in keyspaces() {
            let got = self.list(engine, keyspace.id, ReadAt::NEWEST)?;
            let wanted = self.list(&self.model, keyspace.id, ReadAt::NEWEST)?;
            if got != wanted {
                return Err(format!("at the end, {keyspace:?}: {got:?}, not {wanted:?}"));
            }
        }
        Ok(())
    }
}

/// What goes on beside the threads, until they are done.
fn disturb(lsm: &Lsm, env: &Env, random: &Random, done: &AtomicBool) -> Outcome {
    let mut n = 0;
    while !done.load(Ordering::Acquire) {
        n += 1;
        match random.below(8) {
            0 => drop(lsm.flush().map_err(text)?),
            1 => lsm.compact_all().map_err(text)?,
            2 => lsm
                .compact_range(DATA, KeyRange::new(&[1], &[3]))
                .map_err(text)?,
            3 if n % 5 == 0 => {
                let path = PathBuf::from(format!("/checkpoint-{n}"));
                lsm.checkpoint(&path).map_err(text)?;
                let view = Lsm::open_read_only(env, &path).map_err(text)?;
                for keyspace in keyspaces() {
                    let all = IterOptions::default();
                    try_list(&view, keyspace.id, &all).map_err(text)?;
                }
            }
            _ => {
                let keyspace = [DATA, META, FAR][random.below(3) as usize];
                let all = IterOptions::default();
                try_list(lsm, keyspace, &all).map_err(text)?;
            }
        }
    }
    Ok(())
}

/// `before_thread` runs first on each.
pub(super) fn round(
    seed: u64,
    steps: u64,
    before_thread: &(dyn Fn() + Sync),
) -> Result<u64, String> {
    let random = Random::from_seed(seed);
    let options = random_options(&random);
    let sim = Sim::new(seed);
    let env = Env {
        disk: sim.env().disk,
        ..Env::real(2)
    };
    let lsm = Lsm::open(&env, dir(), options.clone()).map_err(text)?;
    let (clock, done) = (AtomicU64::new(1), AtomicBool::new(false));
    let own = |me: u64| Own {
        me: me as u8,
        random: Random::from_seed(seed.wrapping_mul(31) + me),
        lsm: &lsm,
        env: &env,
        options: &options,
        model: Model::new(&keyspaces()),
        clock: &clock,
        snapshots: Vec::new(),
        written: 0,
    };
    let all: Vec<Own<'_>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|me| {
                let mut own = own(me);
                scope.spawn(move || {
                    before_thread();
                    for n in 0..steps {
                        let step = own.step();
                        step.map_err(|e| format!("thread {me}, step {n}: {e}"))?;
                    }
                    Ok::<_, String>(own)
                })
            })
            .collect();
        let (ended, end) = mpsc::channel::<()>();
        let jobs = &env.jobs;
        scope.spawn(move || {
            if end.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
                // Then all that wait for the store panic, and so the round ends.
                let why = move || panic!("threads, seed {seed}: the store hangs");
                jobs.spawn(JobClass::Control, Box::new(why));
            }
        });
        let _end = AtEnd(&done);
        let (lsm, env, done, random) = (&lsm, &env, &done, &random);
        let beside = scope.spawn(move || {
            before_thread();
            disturb(lsm, env, random, done)
        });
        let all: Result<Vec<_>, String> = workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| "a thread panicked".to_owned())?)
            .collect();
        done.store(true, Ordering::Release);
        beside.join().map_err(|_| "the thread beside panicked")??;
        drop(ended);
        all
    })?;
    for own in &all {
        own.check_all(&lsm)?;
    }
    lsm.close().map_err(text)?;
    // Closed is durable.
    let up = Sim {
        disk: sim.disk.crash_with(Crash::LoseAll),
        ..Sim::new(seed)
    };
    let again = Lsm::open(&up.env(), dir(), options.clone()).map_err(text)?;
    for own in &all {
        own.check_all(&again)?;
    }
    assert!(up.disk.exists(dir()).unwrap_or(false));
    Ok(THREADS * steps)
}

#[test]
fn torture_threads() {
    rounds("threads", 5, "steps", |seed| round(seed, 250, &|| ()));
}

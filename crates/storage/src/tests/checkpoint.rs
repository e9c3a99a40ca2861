//! Checkpoints: what they hold, and the power going at every disk operation of making one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_env::sim::{Crash, HookedDisk, Hooks, Sim};
use quorate_env::{Disk, Env};

use super::crash::{Script, dump, up};
use super::workload::{AtEnd, META, dir, keyspaces, tiny};
use crate::planted::{self, Bug};
use crate::sync::Mutex;
use crate::{Batch, Engine, ErrorKind, Lsm, Options, ReadAt, WriteOptions};

fn target() -> &'static Path {
    Path::new("/checkpoint")
}

fn how(options: &Options) -> WriteOptions {
    match options.wal {
        true => WriteOptions::SYNCED,
        false => WriteOptions::APPLY,
    }
}

/// Opens a script's store and writes its first batches to it.
fn filled(script: &Script, env: &Env, count: usize) -> Lsm {
    let lsm = Lsm::open(env, dir(), script.options.clone()).unwrap();
    for batch in &script.batches[..count] {
        lsm.write(batch, how(&script.options)).unwrap();
    }
    lsm
}

#[test]
fn lsm_checkpoint_holds_one_moment_and_lives_on_its_own() {
    for wal in [true, false] {
        let script = Script::new(21, wal, 60);
        let sim = Sim::new(1);
        let lsm = filled(&script, &sim.env(), 40);
        let sequence = lsm.checkpoint(target()).unwrap();
        assert_eq!(sequence, lsm.stats().sequence);
        for batch in &script.batches[40..] {
            lsm.write(batch, how(&script.options)).unwrap();
        }
        // Compaction here lets go of the tables that the checkpoint has.
        lsm.compact_all().unwrap();
        assert_eq!(dump(&lsm), script.states[60]);
        // With a log or without.
        for with_log in [false, true, false] {
            let options = Options {
                wal: with_log,
                ..script.options.clone()
            };
            let copy = Lsm::open(&sim.env(), target(), options).unwrap();
            assert_eq!(dump(&copy), script.states[40]);
            copy.compact_all().unwrap();
            assert_eq!(dump(&copy), script.states[40]);
            copy.close().unwrap();
        }
        let copy = Lsm::open(&sim.env(), target(), script.options.clone()).unwrap();
        for batch in &script.batches[40..] {
            copy.write(batch, how(&script.options)).unwrap();
        }
        assert_eq!(dump(&copy), script.states[60]);
        assert_eq!(dump(&lsm), script.states[60]);
    }
}

#[test]
fn lsm_checkpoint_wants_an_empty_directory_on_its_file_system() {
    let sim = Sim::new(1);
    let script = Script::new(3, false, 10);
    let lsm = filled(&script, &sim.env(), 10);
    let refused = lsm.checkpoint(dir()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    lsm.checkpoint(target()).unwrap();
    let again = lsm.checkpoint(target()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InvalidArgument, "{again}");
    lsm.close().unwrap();
    drop(lsm);
    let env = Env {
        disk: Arc::new(HookedDisk::new(sim.env().disk, Arc::new(TwoFileSystems))),
        ..sim.env()
    };
    let lsm = Lsm::open(&env, dir(), script.options.clone()).unwrap();
    let elsewhere = Path::new("/elsewhere");
    let refused = lsm.checkpoint(elsewhere).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert!(refused.message().contains("file systems"), "{refused}");
    let left = sim.env().disk.list(elsewhere).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// Does something else before the first hard link.
#[derive(Default)]
struct Meanwhile(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Hooks for Meanwhile {
    fn hard_link(&self, _: &Path, _: &Path) -> io::Result<()> {
        let work = self.0.lock().take();
        work.into_iter().for_each(|work| work());
        Ok(())
    }
}

#[test]
fn lsm_checkpoint_keeps_tables_that_are_closed_and_compacted_away_meanwhile() {
    let sim = Sim::new(1);
    let script = Script::new(21, false, 60);
    let hooks = Arc::new(Meanwhile::default());
    let env = Env {
        disk: Arc::new(HookedDisk::new(sim.env().disk, Arc::clone(&hooks))),
        ..sim.env()
    };
    let options = Options {
        open_tables: 1,
        ..script.options.clone()
    };
    let lsm = Arc::new(Lsm::open(&env, dir(), options).unwrap());
    for batch in &script.batches {
        lsm.write(batch, WriteOptions::APPLY).unwrap();
    }
    let there = Arc::new(AtomicU64::new(0));
    let (same, tables, jobs) = (Arc::clone(&lsm), Arc::clone(&there), sim.jobs.clone());
    let work = move || {
        tables.store(
            same.stats().levels.iter().map(|l| l.files).sum(),
            Ordering::Relaxed,
        );
        // Opens all of them, of which all but one are closed again.
        dump(&*same);
        jobs.pump_all();
        same.compact_all().unwrap();
    };
    *hooks.0.lock() = Some(Box::new(work));
    lsm.checkpoint(target()).unwrap();
    assert!(there.load(Ordering::Relaxed) > 1);
    let copy = Lsm::open(&sim.env(), target(), script.options.clone()).unwrap();
    assert_eq!(dump(&copy), *script.states.last().unwrap());
}

/// How a store becomes another directory.
#[derive(Clone, Copy)]
pub(super) enum Made {
    Checkpoint,
    /// By a backup that shares files with one that was made half way.
    Backup,
}

/// Crashes at every operation of making a checkpoint or backup. What comes up is the whole, or does not
/// open, or is empty; and it is the whole if that was the answer. Returns how often it was.
pub(super) fn crash_everywhere(script: &Script, made: Made) -> Result<usize, String> {
    let store = Sim::new(7);
    let half = script.batches.len() / 2;
    let before = Path::new("/before");
    let lsm = filled(script, &store.env(), half);
    lsm.backup(before, None).unwrap();
    for batch in &script.batches[half..] {
        lsm.write(batch, how(&script.options)).unwrap();
    }
    drop(lsm);
    let all = script.states.last().unwrap();
    let mut whole = 0;
    for n in 0.. {
        let sim = up(&store, Crash::KeepAll);
        let lsm = Lsm::open(&sim.env(), dir(), script.options.clone()).unwrap();
        let begun = sim.disk.operations();
        sim.disk.crash_at(begun + n);
        let done = match made {
            Made::Checkpoint => lsm.checkpoint(target()).is_ok(),
            Made::Backup => lsm.backup(target(), Some(before)).is_ok(),
        };
        let over = sim.disk.operations() < begun + n;
        let crash = [Crash::Random, Crash::LoseAll, Crash::Random, Crash::KeepAll][n as usize % 4];
        let up = up(&sim, crash);
        let holds_names = |disk: &dyn Disk| disk.list(target()).is_ok_and(|l| !l.is_empty());
        let opened = match holds_names(up.env().disk.as_ref()) {
            true => Lsm::open(&up.env(), target(), script.options.clone()).ok(),
            false => None,
        };
        match opened {
            Some(lsm) if dump(&lsm) != *all => {
                return Err(format!("crash at {n}: something else opens"));
            }
            Some(_) => whole += 1,
            None if done => return Err(format!("crash at {n}: what was answered is not there")),
            None => {}
        }
        let lsm = Lsm::open(&up.env(), dir(), script.options.clone());
        if dump(&lsm.map_err(|e| e.to_string())?) != *all && script.options.wal {
            return Err(format!("crash at {n}: the store itself lost something"));
        }
        if over {
            break;
        }
    }
    Ok(whole)
}

#[test]
fn lsm_crash_while_making_a_checkpoint_leaves_nothing_or_the_whole() {
    for seed in 0..4 {
        for round in 0..4 {
            let script = Script::new(seed, true, 20 + round);
            let whole = crash_everywhere(&script, Made::Checkpoint).unwrap();
            assert!(whole > 0, "it was never whole");
        }
    }
}

#[test]
fn checkpoint_check_notices_a_missing_sync_and_a_missing_mark() {
    for bug in [Bug::CheckpointUnsynced, Bug::CheckpointUnmarked] {
        let noticed = (0..40).any(|seed| {
            let script = Script::new(seed, true, 20);
            planted::is_noticed(bug, || {
                crash_everywhere(&script, Made::Checkpoint).map(|_| ())
            })
        });
        assert!(noticed, "nobody missed {bug:?}");
    }
}

/// Writers on real threads while checkpoints are made: each is a prefix, across keyspaces.
#[test]
fn lsm_checkpoints_beside_writers_hold_whole_batches() {
    let sim = Sim::new(1);
    let env = Env {
        disk: sim.env().disk,
        ..Env::real(2)
    };
    let options = Options {
        keyspaces: keyspaces(),
        wal: true,
        wal_segment_bytes: 256 << 10,
        memtable_bytes: 32 << 10,
        ..tiny()
    };
    let lsm = Lsm::open(&env, dir(), options.clone()).unwrap();
    let (done, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1u64.. {
                let mut batch = Batch::new();
                for part in 0..3u8 {
                    batch.put(META, &[part], &n.to_be_bytes());
                }
                batch.put(META, &n.to_be_bytes(), &[7; 100]);
                lsm.write(&batch, WriteOptions::default()).unwrap();
                written.store(n, Ordering::Release);
                if done.load(Ordering::Acquire) {
                    return;
                }
            }
        });
        let _done = AtEnd(&done);
        for round in 0..10 {
            let path = PathBuf::from(format!("/checkpoint-{round}"));
            let before = written.load(Ordering::Acquire);
            lsm.checkpoint(&path).unwrap();
            let copy = Lsm::open(&env, &path, options.clone()).unwrap();
            let get = |key: &[u8]| copy.get(META, key, &ReadAt::NEWEST).unwrap();
            let parts = [0, 1, 2u8].map(|part| get(&[part]).map(|e| e.value));
            assert!(parts[0] == parts[1] && parts[1] == parts[2], "{parts:?}");
            let at = parts[0].as_ref().map_or(0, |value| {
                u64::from_be_bytes(value.as_ref().try_into().unwrap())
            });
            assert!(at >= before, "what was written before is in it");
            assert!(at == 0 || get(&at.to_be_bytes()).is_some());
            assert!(get(&(at + 1).to_be_bytes()).is_none());
        }
    });
}

/// The directory `/elsewhere` is another file system.
struct TwoFileSystems;

impl Hooks for TwoFileSystems {
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        match from.starts_with("/elsewhere") == to.starts_with("/elsewhere") {
            true => Ok(()),
            false => Err(io::ErrorKind::CrossesDevices.into()),
        }
    }
}

//! Every disk operation of a history fails once: with an error of the device, or for want of space.
//!
//! What was asked for is then refused, never answered wrongly. Afterwards the store either goes on (and does
//! what was refused when it is asked again), or has stopped writing for good and says so. In both cases it
//! opens again with everything, and what is written then survives a power cut: also when a failed sync left
//! bytes in the page cache that are on no disk.

use std::io;

use quorate_env::sim::{Crash, Sim};

use super::history::{History, Run, State, Step};
use super::{is_thorough, rounds};
use crate::tests::crash::up;
use crate::tests::workload::{META, dir};
use crate::{Batch, Engine, ErrorKind, Lsm, ReadAt, WriteOptions};

/// A key that no history writes to.
const AFTERWARDS: &[u8] = b"\xfe\xff afterwards";
/// So often a step is asked for again that failed of what may pass.
const TRIES: usize = 6;

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// A changing operation fails with this.
    Change(io::ErrorKind),
    Read,
}

/// How a run with a fault ended.
enum End {
    /// All steps were done.
    Whole,
    /// Nothing more is written.
    Poisoned,
    /// It did not even open.
    Closed,
}

/// Whether the store has stopped writing.
fn is_poisoned(lsm: &Lsm) -> bool {
    let refused = lsm.flush_async().err();
    refused.is_some_and(|e| e.kind() == ErrorKind::Poisoned)
}

/// Plays to the end with one fault on the way.
fn play(run: &mut Run<'_>) -> Result<End, String> {
    // The fault is over by the second time.
    if run.open().is_err() && run.open().is_err() {
        return Err("it does not open".to_owned());
    }
    while run.done < run.history.steps.len() {
        let mut tries = 0;
        while let Err(error) = run.step() {
            tries += 1;
            if matches!(run.history.steps[run.done], Step::Reopen { .. }) {
                return Ok(End::Closed);
            }
            let lsm = run.lsm().map_err(|e| e.to_string())?;
            check(run, lsm).map_err(|e| format!("after {error}: {e}"))?;
            if is_poisoned(lsm) {
                return Ok(End::Poisoned);
            }
            if tries == TRIES {
                return Err(format!("step {} is never done: {error}", run.done));
            }
            run.sim.jobs.pump_all();
        }
    }
    Ok(End::Whole)
}

/// What is read is what was written, and nothing of what was refused.
fn check(run: &Run<'_>, lsm: &Lsm) -> Result<(), String> {
    let read = (0..2).find_map(|_| run.history.look(lsm).ok());
    let found = read.ok_or("a read fails again and again")?;
    match found == run.history.states[run.done] {
        true => Ok(()),
        false => Err(format!(
            "what is read is not the state of step {}",
            run.done
        )),
    }
}

/// Opens what a run left: as the next process would and then after a power cut, or after that at once.
fn reopen(run: &mut Run<'_>, end: &End, cut_at_once: bool, crash: Crash) -> Result<(), String> {
    let history = run.history;
    let options = history.options_at(run.done).clone();
    run.drop_store();
    if cut_at_once {
        run.sim = up(&run.sim, crash);
    }
    let open = |sim: &Sim| Lsm::open(&sim.env(), dir(), options.clone());
    // The fault may have waited for this.
    let lsm = open(&run.sim).or_else(|_| open(&run.sim));
    let lsm = lsm.map_err(|e| format!("it does not open again: {e}"))?;
    run.sim.disk.fail_read_at(u64::MAX);
    run.sim.disk.fail_at(u64::MAX, io::ErrorKind::Other);
    // What a process wrote to its log survives it.
    let least = match options.wal && !cut_at_once {
        true => run.done,
        false => run.promised,
    };
    let most = match end {
        End::Whole => run.done,
        End::Poisoned | End::Closed => (run.done + 1).min(history.steps.len()),
    };
    let found = history.find(&lsm, least..=most);
    found.map_err(|e| format!("opened again: {e}"))?;
    let expected = write_more(history, &lsm, options.wal)?;
    drop(lsm);
    run.sim.jobs.pump_all();
    let sim = up(&run.sim, crash);
    let lsm = open(&sim).map_err(|e| format!("it does not open after a power cut: {e}"))?;
    let found = history.look(&lsm).map_err(|e| e.to_string())?;
    if found != expected {
        return Err("after a power cut it is not what it was".to_owned());
    }
    run.check_checkpoints(&sim)
}

/// Writes batches that are durable, and returns the state that there must be then.
fn write_more(history: &History, lsm: &Lsm, wal: bool) -> Result<State, String> {
    let how = match wal {
        true => WriteOptions::SYNCED,
        false => WriteOptions::APPLY,
    };
    let text = |e: crate::Error| format!("nothing can be written any more: {e}");
    for n in 0..3u8 {
        let mut batch = Batch::new();
        batch.put(META, AFTERWARDS, &[n]);
        lsm.write(&batch, how).map_err(text)?;
        let found = lsm.get(META, AFTERWARDS, &ReadAt::NEWEST).map_err(text)?;
        if found.is_none_or(|entry| entry.value.as_ref() != [n]) {
            return Err("what was just written is not read".to_owned());
        }
    }
    if !wal {
        lsm.flush().map_err(text)?;
    }
    history.look(lsm).map_err(text)
}

/// A history with this fault at the `n`th operation of the disk; false if it has no so many.
pub(super) fn at(seed: u64, history: &History, fault: Fault, n: u64) -> Result<bool, String> {
    let sim = Sim::new(seed);
    match fault {
        Fault::Change(kind) => sim.disk.fail_at(n, kind),
        Fault::Read => sim.disk.fail_read_at(n),
    }
    let mut run = Run::new(history, sim.clone(), 0);
    let failed = |e: String| format!("{fault:?} at {n}: {e}");
    let end = play(&mut run).map_err(failed)?;
    let count = match fault {
        Fault::Change(_) => sim.disk.operations(),
        Fault::Read => sim.disk.reads(),
    };
    let crash = [Crash::Random, Crash::LoseAll][n as usize % 2];
    reopen(&mut run, &end, n.is_multiple_of(5), crash).map_err(failed)?;
    Ok(n < count)
}

/// Each kind of fault at every operation, or at each of so many.
pub(super) fn everywhere(seed: u64, length: usize, every: u64) -> Result<u64, String> {
    let history = History::new(seed, length);
    let mut checks = 0;
    let kinds = [
        Fault::Change(io::ErrorKind::Other),
        Fault::Change(io::ErrorKind::StorageFull),
        Fault::Read,
    ];
    for fault in kinds {
        for n in (seed % every..).step_by(every as usize) {
            checks += 1;
            if !at(seed, &history, fault, n)? {
                break;
            }
        }
    }
    Ok(checks)
}

#[test]
fn torture_faults() {
    let every = if is_thorough() { 1 } else { 13 };
    rounds("faults", 3, "faults", |seed| everywhere(seed, 50, every));
}

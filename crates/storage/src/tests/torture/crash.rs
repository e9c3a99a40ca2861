//! The power goes: at every disk operation of a history, and again and again in the life of one store.
//!
//! What comes up must be a state of the history, of all keyspaces at once: none before the last that was
//! promised, none after the last that was tried. And finished checkpoints are whole.

use quorate_env::sim::{Crash, Sim};

use super::history::{Failed, History, Run, other_random};
use super::{is_thorough, rounds};
use crate::Lsm;
use crate::tests::crash::up;
use crate::tests::workload::dir;

fn any_crash(n: u64) -> Crash {
    [Crash::Random, Crash::LoseAll, Crash::Random, Crash::KeepAll][n as usize % 4]
}

/// Plays on, with the power going at an operation of the disk; wrong answers are errors.
fn play(run: &mut Run<'_>) -> Result<bool, String> {
    match run.play() {
        Ok(()) => Ok(true),
        Err(Failed::Wrong(what)) => Err(what),
        Err(Failed::Error) => Ok(false),
    }
}

/// The machine that comes up after a run, and how many steps of the history it has.
fn recover(run: &mut Run<'_>, n: u64) -> Result<(Sim, usize), String> {
    let history = run.history;
    let mut sim = up(&run.sim, any_crash(n));
    if n.is_multiple_of(3) {
        // Once more, while it recovers.
        sim.disk.crash_at(n / 3 % 11);
        let options = history.options_at(run.done).clone();
        drop(Lsm::open(&sim.env(), dir(), options));
        sim = sim.crash();
    }
    let tried = (run.done + 1).min(history.steps.len());
    let options = history.options_at(run.done).clone();
    let lsm = Lsm::open(&sim.env(), dir(), options).map_err(|e| e.to_string())?;
    let state = history.find(&lsm, run.promised..=tried)?;
    drop(lsm);
    sim.jobs.pump_all();
    run.check_checkpoints(&sim)?;
    Ok((sim, state))
}

/// The power goes at every operation, or at each of so many.
pub(super) fn everywhere(seed: u64, length: usize, every: u64) -> Result<u64, String> {
    let history = History::new(seed, length);
    let mut checks = 0;
    for n in (seed % every..).step_by(every as usize) {
        let failed = |e: String| format!("crash at operation {n}: {e}");
        let sim = Sim::new(seed);
        sim.disk.crash_at(n);
        let mut run = Run::new(&history, sim, 0);
        let at_the_end = play(&mut run).map_err(failed)?;
        let (sim, state) = recover(&mut run, n).map_err(failed)?;
        checks += 1;
        if n.is_multiple_of(7) {
            // Life goes on.
            let mut run = Run::new(&history, sim, state);
            let ended = play(&mut run).map_err(failed)?;
            if !ended {
                return Err(failed("what came up does not go on".to_owned()));
            }
            recover(&mut run, 1).map_err(failed)?;
        }
        if at_the_end {
            break;
        }
    }
    Ok(checks)
}

/// One store that lives through many crashes.
pub(super) fn life(seed: u64, length: usize) -> Result<u64, String> {
    let history = History::new(seed, length);
    let random = other_random(seed);
    let (mut sim, mut state) = (Sim::new(seed), 0);
    let mut crashes = 0;
    let mut checkpoints = Vec::new();
    loop {
        let n = random.next_u64();
        if crashes < 60 {
            let soon = sim.disk.operations() + random.below(400);
            sim.disk.crash_at(soon);
        }
        let mut run = Run::new(&history, sim, state);
        run.checkpoints = std::mem::take(&mut checkpoints);
        let failed = |e: String| format!("crash {crashes}, at step {state}: {e}");
        let ended = play(&mut run).map_err(failed)?;
        (sim, state) = recover(&mut run, n).map_err(failed)?;
        checkpoints = run.checkpoints;
        if ended {
            return Ok(crashes);
        }
        crashes += 1;
    }
}

#[test]
fn torture_crash() {
    let (length, every) = if is_thorough() { (80, 1) } else { (60, 17) };
    rounds("crash", 6, "crashes", |seed| {
        Ok(everywhere(seed, length, every)? + life(seed, 250)?)
    });
}

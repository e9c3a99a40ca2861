//! The power goes at every operation of the disk: what is there afterwards is a prefix of the
//! commands, at least as far as was promised, and replaying the rest leads to the same state.

use quorate_env::Random;
use quorate_env::sim::Sim;
use quorate_replication::StateMachine;
use quorate_storage::{Batch, Engine, WriteOptions};

use super::harness::{Rig, crash, crash_kind, hash_of};
use super::script::{KINDS, Script};
use crate::StateHash;
use crate::keys::{GroupField, META, group_key};

/// How the position is stored.
#[derive(Clone, Copy, PartialEq)]
enum Variant {
    /// As the machine does it.
    Real,
    /// Wrongly: in a batch of its own before the effects.
    PositionFirst,
    /// Wrongly: the machine says that everything applied is on disk.
    FlushedTooEarly,
}

struct Trial<'a> {
    script: &'a Script,
    seed: u64,
    variant: Variant,
    hash: StateHash,
}

impl Trial<'_> {
    /// Applies the script with flushes here and there until it ends or the power goes; returns how
    /// many commands were promised to be on disk.
    fn run(&self, sim: &Sim) -> usize {
        let random = Random::from_seed(self.seed);
        let Ok(rig) = Rig::open(sim, self.script.kind) else {
            return 0;
        };
        let machine = rig.state_machine();
        let mut at = 0;
        while at < self.script.commands.len() {
            let end = (at + 1 + random.below(3) as usize).min(self.script.commands.len());
            if self.variant == Variant::PositionFirst {
                let mut batch = Batch::new();
                let key = group_key(rig.machine.shard().id, GroupField::Applied);
                let position = self.script.expected[end].position;
                batch.put(META, &key, &position.encode());
                let _ = rig.engine.write(&batch, WriteOptions::APPLY);
                self.stir(&rig, &random);
            }
            if rig.play(self.script, at, end, &random).is_err() {
                break;
            }
            at = end;
            self.stir(&rig, &random);
        }
        if at == self.script.commands.len() {
            let _ = rig.engine.close();
        }
        match self.variant {
            Variant::FlushedTooEarly => at,
            _ => machine.flushed().map_or(0, |index| index as usize + 1),
        }
    }

    fn stir(&self, rig: &Rig, random: &Random) {
        match random.below(10) {
            0 => drop(rig.engine.flush()),
            1 => drop(rig.engine.flush_async()),
            2 => drop(rig.engine.compact_all()),
            3..=5 => drop(rig.sim.jobs.pump()),
            _ => {}
        }
    }

    /// Looks at what the crash left, replays the rest and compares.
    fn check(&self, up: &Sim, promised: usize) -> Result<(), String> {
        let rig = Rig::open(up, self.script.kind)?;
        let applied = rig.applied();
        if applied < promised {
            return Err(format!(
                "{promised} commands were promised, {applied} found"
            ));
        }
        rig.check(self.script)?;
        let random = Random::from_seed(self.seed);
        rig.play(self.script, applied, self.script.commands.len(), &random)?;
        rig.check(self.script)?;
        if rig.hash() != self.hash {
            return Err("the replayed state has another hash".into());
        }
        Ok(())
    }

    /// Crashes at every operation; returns how many there were, or the first failure.
    fn everywhere(&self) -> Result<u64, String> {
        for n in 0.. {
            let sim = Sim::new(self.seed);
            sim.disk.crash_at(n);
            let promised = self.run(&sim);
            if sim.disk.operations() < n {
                return Ok(n);
            }
            let mut up = crash(&sim, crash_kind(n));
            if n.is_multiple_of(3) {
                // Once more, while it recovers.
                up.disk.crash_at(n / 3 % 11);
                drop(Rig::open(&up, self.script.kind));
                up = up.crash();
            }
            let checked = self.check(&up, promised);
            checked.map_err(|e| format!("seed {}, crash at {n}: {e}", self.seed))?;
        }
        Ok(0)
    }
}

fn crash_everywhere(script: &Script, seed: u64, variant: Variant) -> Result<u64, String> {
    let trial = Trial {
        script,
        seed,
        variant,
        hash: hash_of(script, seed),
    };
    trial.everywhere()
}

#[test]
fn crash_at_every_operation_leaves_a_prefix_that_replays_to_the_same_hash() {
    for kind in KINDS {
        for seed in 1..=2 {
            let script = Script::random(seed, kind, 60, 200);
            let operations = crash_everywhere(&script, seed, Variant::Real)
                .unwrap_or_else(|e| panic!("{kind:?}: {e}"));
            println!("{kind:?}, seed {seed}: {operations} operations");
            assert!(operations > 50, "the script hardly used the disk");
        }
    }
}

#[test]
fn crash_trial_catches_a_position_in_a_batch_of_its_own() {
    let caught = (1..=4).any(|seed| {
        let script = Script::random(seed, KINDS[0], 60, 200);
        crash_everywhere(&script, seed, Variant::PositionFirst).is_err()
    });
    assert!(caught, "a position ahead of its data went unnoticed");
}

#[test]
fn crash_trial_catches_a_promise_made_too_early() {
    let script = Script::random(1, KINDS[0], 60, 200);
    let trial = crash_everywhere(&script, 1, Variant::FlushedTooEarly);
    let error = trial.expect_err("a broken promise went unnoticed");
    assert!(error.contains("promised"), "{error}");
}

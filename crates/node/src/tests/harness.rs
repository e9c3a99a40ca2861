//! A shard's machine on a simulated computer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_env::sim::{Crash, Sim};
use quorate_env::{Env, Random};
use quorate_kv::VERSION_MAX;
use quorate_replication::{Command as Committed, CommandBody, EntryId, StateMachine};
use quorate_sharding::{NamespaceKind, Shard};
use quorate_storage::{Engine, IterOptions, Lsm, Options};

use super::script::{Data, Expected, Script, shard};
use crate::StateHash;
use crate::apply::Position;
use crate::command::hash_command;
use crate::keys::{DATA, GroupField, encoded_of, keyspaces, shard_range};
use crate::machine::{Machine, ShardMachine};
use crate::{outcome, value};

pub(super) const SPOOL: &str = "/data/snapshots";

/// An engine as nodes have it, but with little room before it writes to disk.
pub(super) fn open_engine(env: &Env) -> quorate_storage::Result<Arc<Lsm>> {
    let options = Options {
        keyspaces: keyspaces(),
        wal: false,
        memtable_bytes: 64 << 10,
        cache_bytes: 1 << 20,
        block_bytes: 512,
        ..Options::default()
    };
    let engine = Lsm::open(env, Path::new("/data/engine"), options)?;
    engine.set_watermark(DATA, VERSION_MAX)?;
    Ok(Arc::new(engine))
}

/// The machine after a crash of this kind.
pub(super) fn crash(sim: &Sim, crash: Crash) -> Sim {
    let disk = sim.disk.crash_with(crash);
    Sim {
        disk,
        ..sim.crash()
    }
}

/// Which crash the `n`th is.
pub(super) fn crash_kind(n: u64) -> Crash {
    [Crash::Random, Crash::LoseAll, Crash::Random, Crash::KeepAll][n as usize % 4]
}

/// A shard's machine and what is below it.
pub(super) struct Rig {
    pub sim: Sim,
    pub engine: Arc<Lsm>,
    pub machine: Arc<ShardMachine>,
}

impl Rig {
    pub(super) fn open(sim: &Sim, kind: NamespaceKind) -> Result<Rig, String> {
        Rig::open_shard(sim, shard(kind), kind)
    }

    pub(super) fn open_shard(sim: &Sim, shard: Shard, kind: NamespaceKind) -> Result<Rig, String> {
        Rig::open_replica(sim, (shard, 21), kind)
    }

    pub(super) fn open_replica(
        sim: &Sim,
        replica: (Shard, u64),
        kind: NamespaceKind,
    ) -> Result<Rig, String> {
        let engine = open_engine(&sim.env()).map_err(|e| e.to_string())?;
        let spool = Path::new(SPOOL).to_owned();
        let machine = ShardMachine::open(sim.env(), Arc::clone(&engine), spool, replica, kind)
            .map_err(|e| e.to_string())?;
        Ok(Rig {
            sim: sim.clone(),
            engine,
            machine,
        })
    }

    /// A new computer with an empty shard.
    pub(super) fn new(seed: u64, kind: NamespaceKind) -> Rig {
        Rig::open(&Sim::new(seed), kind).expect("an empty shard opens")
    }

    pub(super) fn state_machine(&self) -> Machine {
        Machine(Arc::clone(&self.machine))
    }

    /// Applies commands in one call and compares their answers with those expected.
    pub(super) fn apply(
        &self,
        commands: &[Committed],
        expected: &[Expected],
    ) -> Result<(), String> {
        let results = self
            .state_machine()
            .apply(commands)
            .map_err(|e| e.to_string())?;
        if results.len() != commands.len() {
            return Err("not every command was answered".into());
        }
        for ((command, result), expected) in commands.iter().zip(results).zip(expected) {
            let index = command.id.index;
            match &expected.outcomes {
                None if result.is_empty() => {}
                None => return Err(format!("command {index} answered {result:?}")),
                Some(outcomes) => {
                    let found = outcome::decode(result).map_err(|e| e.to_string())?;
                    if found != *outcomes {
                        return Err(format!(
                            "command {index} answered {found:?} instead of {outcomes:?}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Applies the commands `from..to` of a script, in calls of random size.
    pub(super) fn play(
        &self,
        script: &Script,
        from: usize,
        to: usize,
        random: &Random,
    ) -> Result<(), String> {
        let mut at = from;
        while at < to {
            let end = (at + 1 + random.below(4) as usize).min(to);
            self.apply(&script.commands[at..end], &script.expected[at + 1..=end])?;
            at = end;
        }
        Ok(())
    }

    pub(super) fn position(&self) -> Position {
        let stored = self.machine.meta(GroupField::Applied);
        let stored = stored.expect("the position is read");
        stored.map_or_else(Position::default, |bytes| {
            Position::decode(bytes).expect("the position is whole")
        })
    }

    /// How many commands of a script are in.
    pub(super) fn applied(&self) -> usize {
        let entry = self.position().entry;
        entry.map_or(0, |entry| entry.index as usize + 1)
    }

    pub(super) fn data(&self) -> Data {
        let (lower, upper) = shard_range(self.machine.shard());
        let mut iter = self
            .engine
            .iterate(DATA, IterOptions::range(&lower, &upper))
            .expect("the data is read");
        iter.seek_to_first().expect("the data is read");
        let mut data = Data::new();
        while iter.valid() {
            let encoded = encoded_of(iter.key());
            let key = self.machine.kind().encoding().decode(&encoded);
            let key = key.expect("the key is whole");
            let entry = value::to_entry(key, iter.version(), &iter.value_bytes());
            data.insert(encoded, entry.expect("the value is whole"));
            iter.next().expect("the data is read");
        }
        data
    }

    /// Fails unless the state is the one after as many commands as its position says.
    pub(super) fn check(&self, script: &Script) -> Result<(), String> {
        let applied = self.applied();
        let expected = &script.expected[applied];
        let (position, data) = (self.position(), self.data());
        if position != expected.position {
            return Err(format!("{position:?} instead of {:?}", expected.position));
        }
        let membership = self.machine.meta(GroupField::Membership);
        let membership = membership.map_err(|e| e.to_string())?.unwrap_or_default();
        if membership != expected.membership {
            return Err(format!(
                "after {applied} commands: membership {membership:?}"
            ));
        }
        if data != expected.data {
            let other = script.expected.iter().position(|e| e.data == data);
            return Err(format!(
                "after {applied} commands there is the data of {other:?}"
            ));
        }
        let reported = self.state_machine().applied().map_err(|e| e.to_string())?;
        if reported.entry != position.entry || self.machine.version() != position.version {
            return Err("the machine reports another position than it stores".into());
        }
        Ok(())
    }

    /// Has the machine hash its state by one more command.
    pub(super) fn hash(&self) -> StateHash {
        let index = self.applied() as u64;
        let id = EntryId {
            term: 1 << 20,
            leader: 21,
            index,
        };
        let body = CommandBody::Write(hash_command());
        self.apply(&[Committed { id, body }], &[Expected::default()])
            .expect("the hash command is applied");
        self.sim.jobs.pump_all();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let wait = self.machine.hashes.wait(index, Duration::from_secs(1));
        let found = runtime.block_on(wait);
        found.expect("the job ran, and hashed the state")
    }
}

/// The hash after a whole script.
pub(super) fn hash_of(script: &Script, seed: u64) -> StateHash {
    let rig = Rig::new(seed, script.kind);
    let random = Random::from_seed(seed);
    rig.play(script, 0, script.commands.len(), &random)
        .expect("the script is applied");
    rig.hash()
}

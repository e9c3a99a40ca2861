//! Removing what a replica left, and what another replica finds afterwards.

use std::sync::Arc;

use quorate_env::Random;
use quorate_sharding::NamespaceKind;

use super::harness::{Rig, crash, crash_kind};
use super::script::{KINDS, Script, shard};
use crate::machine::claim;
use crate::remains::{remove_state, replicas_of};

/// The replica that scripts are for, and one that comes after it.
const OLD: u64 = 21;
const NEW: u64 = 22;

fn filled(seed: u64, kind: NamespaceKind) -> (Rig, Script) {
    let random = Random::from_seed(seed);
    let script = Script::random(seed, kind, 60, 100);
    let rig = Rig::new(seed, kind);
    rig.play(&script, 0, script.commands.len(), &random)
        .expect("the script is applied");
    (rig, script)
}

#[test]
fn remains_of_a_replica_are_refused_to_another_until_they_are_removed() {
    for (seed, kind) in (1..).zip(KINDS) {
        let (rig, script) = filled(seed, kind);
        let group = shard(kind).id;
        assert_eq!(
            replicas_of(&rig.engine).expect("is read"),
            [(group, OLD)].into()
        );
        let refused = claim(&rig.engine, group, NEW).expect_err("is another's");
        assert!(refused.to_string().contains("removed first"), "{refused}");
        remove_state(&rig.engine, group).expect("is removed");
        assert!(replicas_of(&rig.engine).expect("is read").is_empty());
        claim(&rig.engine, group, NEW).expect("is free");
        rig.engine.close().expect("closes");
        // The new one begins from nothing, and may write the same versions again.
        let sim = rig.sim.clone();
        drop(rig);
        let rig = Rig::open_replica(&sim, (shard(kind), NEW), kind).expect("opens");
        assert_eq!(rig.applied(), 0);
        rig.play(&script, 0, script.commands.len(), &Random::from_seed(seed))
            .expect("is applied anew");
        rig.check(&script).expect("as ever");
    }
}

#[test]
fn remains_after_a_crash_at_every_operation_of_their_removal_are_whole_or_can_be_removed_again() {
    let (mut whole, mut gone) = (0, 0);
    for n in 0.. {
        let kind = KINDS[n as usize % KINDS.len()];
        let (rig, _) = filled(n, kind);
        let group = shard(kind).id;
        rig.engine.flush().expect("is on disk");
        let before = rig.data();
        let from = rig.sim.disk.operations();
        rig.sim.disk.crash_at(from + n);
        let cut = remove_state(&rig.engine, group).is_err();
        let sim = crash(&rig.sim, crash_kind(n));
        drop(rig);
        let after = Rig::open(&sim, kind).expect("the old one opens");
        let data = after.data();
        assert!(data.is_empty() || data == before, "{n}: all or nothing");
        whole += u64::from(!data.is_empty());
        gone += u64::from(data.is_empty());
        let engine = Arc::clone(&after.engine);
        drop(after);
        remove_state(&engine, group).expect("is removed");
        assert!(replicas_of(&engine).expect("is read").is_empty());
        if !cut {
            break;
        }
    }
    assert!(whole > 3 && gone > 0, "{whole} whole, {gone} gone");
}

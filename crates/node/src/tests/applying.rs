//! Applying commands does what the contract says, whatever the calls and flushes in between.

use bytes::Bytes;
use quorate_env::Random;
use quorate_env::sim::Crash;
use quorate_kv::{Condition, Mutation, Op, OpResult};
use quorate_replication::{Command as Committed, CommandBody, EntryId, StateMachine};
use quorate_sharding::{Answer, NamespaceKind, Operation, WriteId};

use super::harness::{Rig, crash, hash_of};
use super::script::{KINDS, ORDERED, Script, shard};
use crate::command::WritesBuilder;
use crate::outcome::{self, Outcome};

#[test]
fn apply_random_commands_agree_with_the_model() {
    for kind in KINDS {
        for seed in 1..=12 {
            let script = Script::random(seed, kind, 150, 60);
            let rig = Rig::new(seed, kind);
            let random = Random::from_seed(seed);
            for at in 0..script.commands.len() {
                rig.play(&script, at, at + 1, &random)
                    .and_then(|()| rig.check(&script))
                    .unwrap_or_else(|e| panic!("{kind:?}, seed {seed}: {e}"));
                if random.one_in(20) {
                    rig.engine.flush().expect("flushes");
                }
            }
        }
    }
}

#[test]
fn apply_in_calls_of_any_size_gives_the_same_state() {
    for kind in KINDS {
        let script = Script::random(5, kind, 120, 60);
        for seed in 1..=5 {
            let rig = Rig::new(seed, kind);
            let played = rig.play(&script, 0, script.commands.len(), &Random::from_seed(seed));
            played
                .and_then(|()| rig.check(&script))
                .unwrap_or_else(|e| panic!("{kind:?}, seed {seed}: {e}"));
            assert_eq!(rig.hash(), hash_of(&script, 99), "{kind:?}, seed {seed}");
        }
    }
}

#[test]
fn apply_again_from_an_earlier_flushed_point_gives_the_same_hash() {
    for kind in KINDS {
        for seed in 1..=5 {
            let script = Script::random(seed, kind, 80, 60);
            let (flushed, all) = (30, script.commands.len());
            let random = Random::from_seed(seed);
            let rig = Rig::new(seed, kind);
            rig.play(&script, 0, flushed, &random).expect("applies");
            rig.engine.flush().expect("flushes");
            assert_eq!(rig.state_machine().flushed(), Some(flushed as u64 - 1));
            rig.play(&script, flushed, all, &random).expect("applies");
            let hash = rig.hash();

            let again = Rig::open(&crash(&rig.sim, Crash::LoseAll), kind).expect("opens");
            assert_eq!(again.applied(), flushed, "{kind:?}, seed {seed}");
            again.check(&script).expect("the state of the flush");
            again.play(&script, flushed, all, &random).expect("applies");
            assert_eq!(again.hash(), hash, "{kind:?}, seed {seed}");
        }
    }
}

/// Applies one command of puts to one machine, and returns the answers.
pub(super) fn put_all(rig: &Rig, stamp: u64, puts: &[(&'static str, u64)]) -> Vec<Outcome> {
    let mut builder = WritesBuilder::new(stamp, u32::MAX);
    for (key, epoch) in puts {
        let put = Operation::Put {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(b"value"),
            condition: Condition::None,
        };
        builder.push(WriteId::default(), *epoch, &put);
    }
    apply(rig, builder)
}

fn apply(rig: &Rig, builder: WritesBuilder) -> Vec<Outcome> {
    let id = EntryId {
        term: 1,
        leader: 21,
        index: rig.applied() as u64,
    };
    let body = CommandBody::Write(builder.finish());
    let results = rig.state_machine().apply(&[Committed { id, body }]);
    let mut results = results.expect("applies");
    outcome::decode(results.remove(0)).expect("outcomes")
}

fn versions(outcomes: &[Outcome]) -> Vec<u64> {
    let version = |outcome: &Outcome| match outcome {
        Outcome::Done(Answer::Written { version, .. }) => *version,
        other => panic!("{other:?}"),
    };
    outcomes.iter().map(version).collect()
}

const EPOCH: u64 = 4;
const THREE: [(&str, u64); 3] = [("x", EPOCH), ("y", EPOCH), ("x", EPOCH)];

#[test]
fn apply_wide_takes_stamps_that_are_ahead_and_counts_on_from_those_behind() {
    let rig = Rig::new(1, ORDERED);
    assert_eq!(versions(&put_all(&rig, 500, &THREE)), [500, 501, 502]);
    assert_eq!(versions(&put_all(&rig, 100, &THREE)), [503, 504, 505]);
    assert_eq!(versions(&put_all(&rig, 505, &THREE)), [506, 507, 508]);
    assert_eq!(versions(&put_all(&rig, 600, &THREE)), [600, 601, 602]);
}

#[test]
fn apply_compact_counts_densely_whatever_the_stamp() {
    let rig = Rig::new(1, NamespaceKind::Compact);
    assert_eq!(versions(&put_all(&rig, 500, &THREE)), [1, 2, 3]);
    assert_eq!(versions(&put_all(&rig, 100, &THREE)), [4, 5, 6]);
}

#[test]
fn apply_at_a_wrong_epoch_or_out_of_range_is_refused_without_effect() {
    let rig = Rig::new(1, ORDERED);
    put_all(&rig, 500, &THREE);
    let before = rig.data();
    let refused = put_all(
        &rig,
        500,
        &[("x", EPOCH + 1), ("x", EPOCH - 1), ("a", EPOCH)],
    );
    let expected = [
        Outcome::WrongEpoch,
        Outcome::WrongEpoch,
        Outcome::OutOfRange,
    ];
    assert_eq!(refused, expected);
    assert_eq!(rig.data(), before);
    assert_eq!(rig.machine.version(), 502);
    assert!(!shard(ORDERED).contains(b"a"));
}

#[test]
fn apply_compare_answers_up_to_the_commands_limit_and_beyond_it_does_nothing() {
    let rig = Rig::new(1, ORDERED);
    put_all(&rig, 500, &THREE);
    let before = rig.data();
    let op = |key: &'static str| Op::Get { key: key.into() };
    // "x" and "y" hold 5 bytes each; what the branch writes counts as written, what is not there
    // counts as nothing.
    let compare = Operation::Compare {
        conditions: vec![("x".into(), Condition::Present)],
        then_ops: vec![
            op("x"),
            Op::Mutate(Mutation::put("y", "a longer value")),
            op("y"),
            Op::Mutate(Mutation::delete("x")),
            op("x"),
            op("z"),
        ],
        else_ops: vec![op("x"); 1000],
    };
    let bytes = (1 + 5 + 32) + (1 + 14 + 32);
    let run = |limit: u32| {
        let mut builder = WritesBuilder::new(600, limit);
        builder.push(WriteId::default(), EPOCH, &compare);
        apply(&rig, builder).remove(0)
    };
    assert_eq!(
        run(bytes - 1),
        Outcome::AnswerTooLarge {
            bytes: u64::from(bytes)
        }
    );
    assert_eq!(rig.data(), before);
    // The stamp counts as seen, as with every command; no version was given.
    assert_eq!(rig.machine.version(), 599);
    let Outcome::Done(Answer::Compare { results, .. }) = run(bytes) else {
        panic!("it fits");
    };
    let sizes: usize = results.iter().map(OpResult::size_bytes).sum();
    assert_eq!(sizes, bytes as usize);
    assert_eq!(rig.machine.version(), 600);
}

#[test]
fn apply_damaged_command_stops_with_an_error() {
    let rig = Rig::new(1, ORDERED);
    let id = EntryId {
        term: 1,
        leader: 21,
        index: 0,
    };
    for bytes in [&b""[..], b"\x02\x01", b"\x01\x07", b"\x01\x01\0\0"] {
        let body = CommandBody::Write(Bytes::copy_from_slice(bytes));
        let applied = rig.state_machine().apply(&[Committed { id, body }]);
        let error = applied.expect_err("damaged");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert_eq!(rig.applied(), 0);
    }
}

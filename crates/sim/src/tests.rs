//! The checkers reject what they must and accept what they may.

#[cfg(feature = "switches")]
mod cities;

use crate::history::{Action, History, Level, Op, Outcome, Value, Violation};
use crate::oracle::{Oracles, intervals, judge, linearizable, tokens};

const READ: Action = Action::Read(Level::Linearizable);

fn op(action: Action, began_us: u64, ended_us: u64, value: Value, version: u64) -> Op {
    let outcome = Outcome::Done {
        applied: true,
        value,
        version,
    };
    Op {
        client: 1,
        key: 1,
        action,
        began_us,
        ended_us,
        outcome,
    }
}

fn write(began_us: u64, ended_us: u64, value: Value, version: u64) -> Op {
    op(Action::Write(value), began_us, ended_us, value, version)
}

fn read(began_us: u64, ended_us: u64, value: Value, version: u64) -> Op {
    op(READ, began_us, ended_us, value, version)
}

fn unknown(action: Action, began_us: u64) -> Op {
    Op {
        outcome: Outcome::Unknown,
        ended_us: u64::MAX,
        ..op(action, began_us, 0, 0, 0)
    }
}

/// Both checkers must say the same.
#[track_caller]
fn assert_linearizable(is: bool, ops: &[Op]) {
    assert_eq!(linearizable::check(1, ops).is_ok(), is, "by search");
    assert_eq!(intervals::check(1, ops).is_ok(), is, "by versions");
}

#[test]
fn checkers_of_a_sound_history_accept() {
    let overlapping = [
        write(0, 10, 1, 5),
        write(2, 12, 2, 7),
        read(5, 9, 1, 5),
        read(13, 14, 2, 7),
    ];
    assert_linearizable(true, &overlapping);
    let deleted = [
        write(0, 1, 1, 5),
        write(2, 3, 0, 6),
        read(4, 5, 0, 0),
        write(6, 7, 3, 9),
        read(8, 9, 3, 9),
    ];
    assert_linearizable(true, &deleted);
}

#[test]
fn checkers_of_a_stale_read_reject() {
    let stale = [write(0, 1, 1, 5), write(2, 3, 2, 7), read(4, 5, 1, 5)];
    assert_linearizable(false, &stale);
    let absent = [write(0, 1, 1, 5), read(4, 5, 0, 0)];
    assert_linearizable(false, &absent);
    let back = [
        write(0, 9, 1, 5),
        write(0, 9, 2, 7),
        read(1, 2, 2, 7),
        read(3, 4, 1, 5),
    ];
    // Values alone allow it: the writes overlap. Their versions do not.
    assert!(linearizable::check(1, &back).is_ok());
    assert!(intervals::check(1, &back).is_err());
}

#[test]
fn checkers_of_a_write_of_unknown_outcome_accept_it_once_at_any_time_or_never() {
    let unseen = [
        write(0, 1, 1, 5),
        unknown(Action::Write(2), 2),
        read(4, 5, 1, 5),
    ];
    assert_linearizable(true, &unseen);
    let late = [
        write(0, 1, 1, 5),
        unknown(Action::Write(2), 2),
        read(4, 5, 1, 5),
        read(6, 7, 2, 8),
    ];
    assert_linearizable(true, &late);
    let twice = [
        unknown(Action::Write(2), 0),
        read(1, 2, 2, 3),
        write(3, 4, 1, 5),
        read(6, 7, 2, 3),
    ];
    assert_linearizable(false, &twice);
    let early = [read(1, 2, 2, 3), unknown(Action::Write(2), 3)];
    assert_linearizable(false, &early);
}

#[test]
fn checkers_of_a_condition_that_did_not_hold_reject() {
    let on = |expected, began, ended, value, version| {
        op(
            Action::WriteIf { expected, value },
            began,
            ended,
            value,
            version,
        )
    };
    let held = [write(0, 1, 1, 5), on(5, 2, 3, 2, 7)];
    assert_linearizable(true, &held);
    let lost_update = [write(0, 1, 1, 5), on(5, 2, 3, 2, 7), on(5, 4, 5, 3, 8)];
    assert_linearizable(false, &lost_update);
}

#[test]
fn checker_of_tokens_rejects_a_read_below_its_token() {
    let at_least = |token| Action::Read(Level::AtLeast(token));
    let writes = [write(0, 1, 1, 5), write(2, 3, 2, 7)];
    let with = |read: Op| [writes.as_slice(), &[read]].concat();
    assert!(tokens::check(1, &with(op(at_least(7), 4, 5, 1, 5))).is_err());
    assert!(tokens::check(1, &with(op(at_least(6), 4, 5, 1, 5))).is_ok());
    assert!(tokens::check(1, &with(op(at_least(7), 4, 5, 2, 7))).is_ok());
    let nobodys = op(Action::Read(Level::Stale), 4, 5, 9, 5);
    assert!(tokens::check(1, &with(nobodys)).is_err());
}

#[test]
fn judge_of_a_lost_acknowledged_write_names_it() {
    let ops = vec![write(0, 1, 1, 5), write(2, 3, 2, 7), read(8, 9, 1, 5)];
    let lost = judge(&History { ops }, &|_| 1);
    assert_eq!(
        lost.map_err(|violation| violation.oracle),
        Err("acknowledged_kept")
    );
}

#[test]
fn judge_of_versions_that_decrease_in_a_shard_rejects() {
    let other_key = |op: Op| Op { key: 2, ..op };
    let ops = vec![write(0, 1, 1, 9), other_key(write(2, 3, 2, 7))];
    let one = judge(&History { ops: ops.clone() }, &|_| 1);
    assert_eq!(
        one.map_err(|violation| violation.oracle),
        Err("versions_grow")
    );
    assert_eq!(judge(&History { ops }, &|key| key), Ok(2));
}

fn hear(oracles: &mut Oracles, name: &str, all: &[&[u64]]) -> Result<(), Violation> {
    all.iter()
        .try_for_each(|numbers| oracles.hear(name, numbers))
}

fn noticed_by(heard: Result<(), Violation>) -> &'static str {
    heard.expect_err("it goes unnoticed").oracle
}

#[test]
fn oracles_of_two_entries_at_one_index_reject() {
    let mut oracles = Oracles::default();
    let appended: [&[u64]; 2] = [&[2, 1, 5, 3, 1, 77], &[2, 4, 5, 3, 1, 78]];
    assert_eq!(
        noticed_by(hear(&mut oracles, "appended", &appended)),
        "log_matching"
    );
    let mut oracles = Oracles::default();
    let applied: [&[u64]; 2] = [&[2, 1, 5, 3, 1, 77], &[2, 4, 5, 4, 4, 77]];
    assert_eq!(
        noticed_by(hear(&mut oracles, "applied", &applied)),
        "committed_prefix"
    );
    let mut oracles = Oracles::default();
    let hashes: [&[u64]; 2] = [&[2, 5, 77, 3], &[2, 5, 78, 3]];
    assert_eq!(
        noticed_by(hear(&mut oracles, "hash", &hashes)),
        "replicas_equal"
    );
    let mut oracles = Oracles::default();
    let positions: [&[u64]; 2] = [&[2, 5, 10], &[2, 6, 9]];
    assert_eq!(
        noticed_by(hear(&mut oracles, "position", &positions)),
        "versions_grow"
    );
}

#[test]
fn oracle_of_leaders_rejects_a_term_led_twice_and_a_leader_without_what_was_committed() {
    let mut oracles = Oracles::default();
    let mut twice = || {
        oracles.hear("opened", &[2, 1])?;
        oracles.hear("appended", &[2, 1, 0, 3, 1, 70])?;
        oracles.hear("opened", &[2, 1])?;
        oracles.hear("appended", &[2, 1, 1, 3, 1, 71])
    };
    assert_eq!(noticed_by(twice()), "one_leader");
    let mut oracles = Oracles::default();
    let mut without = || {
        oracles.hear("appended", &[2, 1, 0, 3, 1, 70])?;
        oracles.hear("appended", &[2, 1, 1, 3, 1, 71])?;
        oracles.hear("applied", &[2, 1, 0, 3, 1, 70])?;
        oracles.hear("applied", &[2, 1, 1, 3, 1, 71])?;
        oracles.hear("appended", &[2, 4, 0, 3, 1, 70])?;
        oracles.hear("appended", &[2, 4, 1, 5, 4, 72])
    };
    assert_eq!(noticed_by(without()), "one_leader");
}

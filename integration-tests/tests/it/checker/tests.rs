//! The checker itself: what it has to accept, and what it has to reject.

use super::{Demand, Event, Op, Seen, Value, Verdict, Version, check};
use crate::support::Random;

/// An operation on key 1.
fn event(op: Op, seen: Seen, start: u64, end: u64) -> Event {
    Event {
        key: 1,
        op,
        seen,
        start,
        end,
    }
}

fn put(value: u64, version: u64, start: u64, end: u64) -> Event {
    event(
        Op::Put(value, Demand::None),
        Seen::Written(true, version),
        start,
        end,
    )
}

fn lost_put(value: u64, start: u64) -> Event {
    event(Op::Put(value, Demand::None), Seen::Unknown, start, 0)
}

fn found(value: u64, version: u64, start: u64, end: u64) -> Event {
    event(Op::Get, Seen::Found(Some((value, version))), start, end)
}

fn absent(start: u64, end: u64) -> Event {
    event(Op::Get, Seen::Found(None), start, end)
}

fn cas(value: u64, wanted: u64, seen: Seen, start: u64, end: u64) -> Event {
    event(Op::Put(value, Demand::Version(wanted)), seen, start, end)
}

fn is_rejected(history: &[Event]) -> bool {
    matches!(check(history), Err(Verdict::NotLinearizable { .. }))
}

#[test]
fn checker_of_a_sequential_history_accepts() {
    let history = [
        absent(0, 1),
        put(10, 1, 2, 3),
        found(10, 1, 4, 5),
        cas(11, 1, Seen::Written(true, 2), 6, 7),
        cas(12, 1, Seen::Written(false, 2), 8, 9),
        found(11, 2, 10, 11),
        event(Op::Delete(Demand::None), Seen::Written(true, 3), 12, 13),
        absent(14, 15),
        event(Op::Delete(Demand::None), Seen::Written(false, 0), 16, 17),
        event(Op::Put(13, Demand::Absent), Seen::Written(true, 4), 18, 19),
        event(Op::Put(14, Demand::Absent), Seen::Written(false, 4), 20, 21),
    ];
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn checker_of_overlapping_operations_accepts_any_order_that_fits() {
    // The second write takes effect first; a read during both sees either, in the same order.
    let history = [
        put(10, 2, 0, 10),
        put(20, 1, 1, 9),
        found(20, 1, 2, 4),
        found(10, 2, 3, 8),
        found(10, 2, 11, 12),
    ];
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn checker_of_several_keys_judges_each_alone() {
    let mut history = vec![put(10, 1, 0, 1), found(10, 1, 2, 3)];
    history.extend(
        history
            .clone()
            .into_iter()
            .map(|event| Event { key: 2, ..event }),
    );
    assert_eq!(check(&history), Ok(()));
    history.push(Event {
        key: 2,
        ..absent(4, 5)
    });
    let Err(Verdict::NotLinearizable { key, around }) = check(&history) else {
        panic!("key 2 lost its write");
    };
    assert_eq!(key, 2);
    assert!(around.contains(&Event {
        key: 2,
        ..absent(4, 5)
    }));
}

#[test]
fn checker_of_a_stale_read_rejects() {
    let history = [put(10, 1, 0, 1), put(20, 2, 2, 3), found(10, 1, 4, 5)];
    assert!(is_rejected(&history));
    // Also when another read saw the new value while the write was under way.
    let history = [
        put(10, 1, 0, 1),
        put(20, 2, 2, 10),
        found(20, 2, 3, 4),
        found(10, 1, 5, 6),
    ];
    assert!(is_rejected(&history));
}

#[test]
fn checker_of_a_lost_write_rejects() {
    assert!(is_rejected(&[put(10, 1, 0, 1), absent(2, 3)]));
    let history = [
        put(10, 1, 0, 1),
        put(20, 2, 2, 3),
        put(30, 3, 4, 5),
        found(20, 2, 6, 7),
    ];
    assert!(is_rejected(&history));
}

#[test]
fn checker_of_a_conditional_write_on_a_wrong_version_rejects() {
    let history = [
        put(10, 1, 0, 1),
        put(20, 2, 2, 3),
        cas(30, 1, Seen::Written(true, 3), 4, 5),
    ];
    assert!(is_rejected(&history));
    let refused_wrongly = [put(10, 1, 0, 1), cas(20, 1, Seen::Written(false, 1), 2, 3)];
    assert!(is_rejected(&refused_wrongly));
    let made_twice = [
        event(Op::Put(10, Demand::Absent), Seen::Written(true, 1), 0, 5),
        event(Op::Put(20, Demand::Absent), Seen::Written(true, 2), 0, 5),
    ];
    assert!(is_rejected(&made_twice));
}

#[test]
fn checker_of_an_unknown_write_accepts_it_late_or_never() {
    let never = [
        put(10, 1, 0, 1),
        lost_put(20, 2),
        found(10, 1, 5, 6),
        found(10, 1, 50, 60),
    ];
    assert_eq!(check(&never), Ok(()));
    let late = [
        put(10, 1, 0, 1),
        lost_put(20, 2),
        found(10, 1, 5, 6),
        found(20, 2, 50, 60),
        cas(30, 2, Seen::Written(true, 3), 70, 80),
    ];
    assert_eq!(check(&late), Ok(()));
    let unseen = [
        put(10, 1, 0, 1),
        lost_put(20, 2),
        cas(30, 1, Seen::Written(false, 2), 70, 80),
    ];
    assert_eq!(check(&unseen), Ok(()));
}

#[test]
fn checker_of_an_unknown_write_rejects_it_twice_or_early() {
    let twice = [
        lost_put(20, 0),
        found(20, 1, 2, 3),
        put(30, 2, 4, 5),
        found(20, 3, 6, 7),
    ];
    assert!(is_rejected(&twice));
    let early = [found(20, 1, 0, 1), lost_put(20, 2)];
    assert!(is_rejected(&early));
    let taken_back = [
        put(10, 1, 0, 1),
        lost_put(20, 2),
        found(20, 2, 5, 6),
        found(10, 1, 7, 8),
    ];
    assert!(is_rejected(&taken_back));
}

#[test]
fn checker_of_an_unknown_delete_accepts_it_once() {
    let delete = event(Op::Delete(Demand::None), Seen::Unknown, 2, 0);
    assert_eq!(check(&[put(10, 1, 0, 1), delete, absent(5, 6)]), Ok(()));
    assert_eq!(
        check(&[put(10, 1, 0, 1), delete, found(10, 1, 5, 6)]),
        Ok(())
    );
    let twice = [
        put(10, 1, 0, 1),
        delete,
        absent(5, 6),
        put(20, 3, 7, 8),
        absent(9, 10),
    ];
    assert!(is_rejected(&twice));
}

#[test]
fn checker_of_versions_that_shrink_rejects() {
    assert!(is_rejected(&[put(10, 5, 0, 1), put(20, 4, 2, 3)]));
    assert!(is_rejected(&[put(10, 5, 0, 1), found(10, 6, 2, 3)]));
}

#[test]
fn checker_of_a_long_history_with_many_unknown_writes_ends() {
    // Four clients take turns at overlapping writes; each tenth write's answer is lost, and half of
    // those take effect.
    let mut history = Vec::new();
    let (mut version, mut value) = (0, 0);
    for round in 0..2_000_u64 {
        let at = round * 10;
        value += 1;
        version += 1;
        match round % 10 {
            3 if round % 20 == 3 => {
                history.push(lost_put(value, at));
                history.push(found(value, version, at + 2, at + 9));
            }
            3 => {
                history.push(lost_put(value, at));
                version -= 1;
            }
            _ => {
                history.push(put(value, version, at, at + 12));
                history.push(found(value, version, at + 3, at + 14));
            }
        }
    }
    assert_eq!(check(&history), Ok(()));
    history.push(found(1, 1, 30_000, 30_001));
    assert!(check(&history).is_err());
}

/// The history of a true register under eight clients: of each hundred operations so many have no answer, and most
/// of those take effect, some of them late.
fn history_of_a_register(random: &mut Random, operations: u64, lost_in_100: u64) -> Vec<Event> {
    let mut moments: Vec<(u64, u64, bool)> = Vec::new();
    for n in 0..operations {
        let start = n * 4 + random.below(16);
        let is_lost = random.below(100) < lost_in_100;
        let late = if is_lost { 400 } else { 24 };
        moments.push((start + 1 + random.below(late), start, is_lost));
    }
    moments.sort_unstable();
    let (mut state, mut last) = (None::<(Value, Version)>, 0);
    let mut history = Vec::new();
    for (value, (at, start, is_lost)) in (1..).zip(moments) {
        let current = state.map_or(0, |(_, version)| version);
        let demand = match random.below(6) {
            0 => Demand::Absent,
            1 | 2 if current > 0 => Demand::Version(current - random.below(2)),
            _ => Demand::None,
        };
        let op = match random.below(5) {
            0 | 1 => Op::Get,
            2 | 3 => Op::Put(value, demand),
            _ => Op::Delete(demand),
        };
        let fits = match demand {
            Demand::None => true,
            Demand::Absent => state.is_none(),
            Demand::Version(version) => current == version,
        };
        let happens = fits && !(is_lost && random.below(3) == 0);
        let mut seen = match op {
            Op::Get => Seen::Found(state),
            Op::Put(..) if happens => {
                last += 1 + random.below(3);
                state = Some((value, last));
                Seen::Written(true, last)
            }
            Op::Delete(_) if happens && state.is_some() => {
                last += 1 + random.below(3);
                state = None;
                Seen::Written(true, last)
            }
            _ => Seen::Written(false, current),
        };
        if is_lost {
            seen = Seen::Unknown;
        }
        history.push(event(op, seen, start, at + random.below(24)));
    }
    history
}

#[test]
fn checker_of_true_histories_with_many_unknown_operations_accepts_them_all() {
    let mut random = Random::seeded();
    for n in 0..100 {
        let history = history_of_a_register(&mut random, 700, n % 15);
        assert_eq!(check(&history), Ok(()), "history {n}");
    }
}

#[test]
fn checker_of_true_histories_with_one_answer_changed_rejects_them_all() {
    let mut random = Random::seeded();
    let (mut changed, mut rejected) = (0, 0);
    for n in 0..100 {
        let mut history = history_of_a_register(&mut random, 700, n % 15);
        let reads = history.iter().enumerate();
        let reads = reads.filter(|(_, event)| matches!(event.seen, Seen::Found(Some(_))));
        let reads: Vec<usize> = reads.map(|(place, _)| place).collect();
        let (early, late) = (reads[reads.len() / 4], reads[reads.len() * 3 / 4]);
        if history[early].seen == history[late].seen {
            continue;
        }
        // A value that was long overwritten.
        history[late].seen = history[early].seen;
        changed += 1;
        rejected += u32::from(is_rejected(&history));
    }
    assert!(changed > 80, "{changed}");
    assert_eq!(rejected, changed);
}

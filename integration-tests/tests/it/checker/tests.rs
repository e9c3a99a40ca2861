//! The checker itself: what it has to accept, and what it has to reject.

use super::{Demand, Event, Op, Seen, Verdict, check};

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

//! The skip list against a sorted map, alone and with many threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ListCursor, SkipList, TOGETHER, bytes_needed, can_hold};
use crate::cursor::Cursor;
use crate::key::{Key, Kind};
use crate::planted::{Bug, plant};

fn key(place: &[u8], version: u64, sequence: u64) -> Key<'_> {
    Key {
        place,
        version,
        sequence,
        kind: Kind::Put,
    }
}

#[test]
fn skiplist_walks_both_ways_in_order() {
    let count = 2000u64;
    let list = Arc::new(SkipList::new(bytes_needed(
        count as usize * 8,
        1,
        count as usize,
    )));
    let mut model = BTreeMap::new();
    for sequence in 1..=count {
        let place = (sequence * 7919 % 1000).to_be_bytes();
        let place = &place[4..];
        list.insert(&key(place, sequence % 3, sequence), &place[..2]);
        let order = (place.to_vec(), u64::MAX - sequence % 3, u64::MAX - sequence);
        model.insert(order, place[..2].to_vec());
    }
    let mut cursor = ListCursor::new(Arc::clone(&list));
    cursor.seek_to_first().unwrap();
    for ((place, version, sequence), value) in &model {
        let found = cursor.key();
        assert_eq!(found.place, place);
        assert_eq!(found.version, u64::MAX - version);
        assert_eq!(found.sequence, u64::MAX - sequence);
        assert_eq!(cursor.value(), value);
        cursor.next().unwrap();
    }
    assert!(!cursor.valid());
    cursor.seek_to_last().unwrap();
    for ((place, ..), _) in model.iter().rev() {
        assert_eq!(cursor.key().place, place);
        cursor.prev().unwrap();
    }
    assert!(!cursor.valid());
    let (place, ..) = model.keys().nth(10).unwrap();
    cursor.seek(&Key::last_of(place)).unwrap();
    assert!(cursor.key().place > place.as_slice());
    cursor.seek_before(&Key::first_of(place)).unwrap();
    assert!(cursor.key().place < place.as_slice());
}

/// Told to by a variable, with links that make nothing known: a race, which Miri must find. Elsewhere memory
/// is seldom that weak.
fn plant_if_told() {
    if std::env::var_os("QUORATE_TORTURE_TEETH").is_some() {
        plant(Some(Bug::LinkIsRelaxed));
    }
}

fn insert_some(list: &SkipList, sequences: &[u64], place_of: fn(u64) -> u64) {
    let places: Vec<[u8; 8]> = sequences
        .iter()
        .map(|s| place_of(*s).to_be_bytes())
        .collect();
    let slices: Vec<&[u8]> = places.iter().map(|place| &place[..]).collect();
    let entries = slices.iter().zip(sequences);
    let entries: Vec<_> = entries
        .map(|(place, s)| (key(place, 0, *s), *place))
        .collect();
    match entries[..] {
        [(key, value)] => list.insert(&key, value),
        _ => list.insert_each(&entries),
    }
    // What this thread wrote it sees at once, whole.
    let mut seen = 0;
    list.get_each(&slices, 0, u64::MAX, |n, found| {
        assert_eq!(found.map(|(_, value)| value), Some(slices[n]));
        seen += 1;
    });
    assert_eq!(seen, sequences.len());
    let unknown = [0; 8];
    list.get_each(&[&unknown], 0, u64::MAX, |_, found| {
        assert!(found.is_none())
    });
    for (place, sequence) in slices.iter().zip(sequences) {
        let (_, value) = list.get(place, 0, *sequence).expect("there");
        assert_eq!(value, *place);
    }
}

/// Each thread inserts `group` entries at once.
fn insert_on_threads(place_of: fn(u64) -> u64, group: usize) {
    let (threads, each) = (4u64, if cfg!(miri) { 50 } else { 20_000 });
    let total = (threads * each) as usize;
    let list = Arc::new(SkipList::new(bytes_needed(total * 16, 1, total)));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let list = &list;
            scope.spawn(move || {
                plant_if_told();
                let sequences: Vec<u64> = (0..each).map(|n| 1 + n * threads + thread).collect();
                for some in sequences.chunks(group) {
                    insert_some(list, some, place_of);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..10 {
                let mut cursor = ListCursor::new(Arc::clone(&list));
                cursor.seek_to_first().unwrap();
                let mut last = Vec::new();
                while cursor.valid() {
                    assert!(cursor.key().place > last.as_slice());
                    assert_eq!(cursor.key().place, cursor.value());
                    last = cursor.key().place.to_vec();
                    cursor.next().unwrap();
                }
            }
        });
    });
    let mut cursor = ListCursor::new(Arc::clone(&list));
    cursor.seek_to_first().unwrap();
    let mut count = 0;
    while cursor.valid() {
        count += 1;
        cursor.next().unwrap();
    }
    assert_eq!(count, total);
    // From above, each level leads to all.
    for sequence in 1..=total as u64 {
        let place = place_of(sequence).to_be_bytes();
        assert!(list.get(&place, 0, sequence).is_some(), "{sequence}");
    }
}

#[test]
fn skiplist_threads_insert_while_others_read() {
    insert_on_threads(|sequence| sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15), 1);
}

#[test]
fn skiplist_threads_insert_and_get_many_at_once() {
    for group in [2, 5, TOGETHER] {
        insert_on_threads(
            |sequence| sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            group,
        );
    }
}

/// All threads insert between the same neighbours, and a group's keys lie side by side.
#[test]
fn skiplist_threads_insert_groups_into_the_same_places() {
    insert_on_threads(
        |sequence| (sequence % 7) << 60 | ((1 << 40) - sequence),
        TOGETHER,
    );
}

/// Nearly in order, so that threads meet at the end.
#[test]
fn skiplist_threads_append_while_others_read() {
    insert_on_threads(|sequence| sequence, 1);
    insert_on_threads(|sequence| sequence, TOGETHER);
}

#[test]
fn memtable_says_what_is_too_much_for_it() {
    assert!(can_hold(512 << 20, 1));
    assert!(can_hold(100 << 20, 10_000_000));
    // A legal number of bytes, but of so many entries.
    assert!(!can_hold(370 << 20, 93_000_000));
    assert!(!can_hold(usize::MAX, usize::MAX));
}

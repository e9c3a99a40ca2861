//! The skip list against a sorted map, alone and with many threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ListCursor, SkipList, bytes_needed};
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

fn insert_on_threads(place_of: fn(u64) -> u64) {
    let (threads, each) = (4u64, if cfg!(miri) { 50 } else { 20_000 });
    let total = (threads * each) as usize;
    let list = Arc::new(SkipList::new(bytes_needed(total * 16, 1, total)));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let list = &list;
            scope.spawn(move || {
                plant_if_told();
                for n in 0..each {
                    let sequence = 1 + n * threads + thread;
                    let place = place_of(sequence).to_be_bytes();
                    list.insert(&key(&place, 0, sequence), &place);
                    // What this thread wrote it sees at once, whole.
                    let (_, value) = list.get(&place, 0, sequence).unwrap();
                    assert_eq!(value, place);
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
    insert_on_threads(|sequence| sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15));
}

/// Nearly in order, so that threads meet at the end.
#[test]
fn skiplist_threads_append_while_others_read() {
    insert_on_threads(|sequence| sequence);
}

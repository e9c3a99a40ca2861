//! Fragments against the plain list of ranges.

use quorate_env::Random;

use super::{Mark, Tombstones, highest_seen};

fn mark(version: u64, sequence: u64) -> Mark {
    Mark { version, sequence }
}

/// The marks that the list has for a place.
fn listed(list: &[(Vec<u8>, Vec<u8>, Mark)], place: &[u8]) -> Vec<Mark> {
    let inside = |(start, end, _): &&(Vec<u8>, Vec<u8>, Mark)| {
        start.as_slice() <= place && place < end.as_slice()
    };
    let mut marks: Vec<Mark> = list.iter().filter(inside).map(|(.., mark)| *mark).collect();
    marks.sort();
    marks
}

#[test]
fn tombstones_fragmented_say_what_the_ranges_say() {
    for seed in 0..50 {
        let random = Random::from_seed(seed);
        let place = || vec![b'a' + random.below(12) as u8; random.below(3) as usize];
        let mut all = Tombstones::default();
        let mut list = Vec::new();
        for sequence in 1..=random.below(12) {
            let (start, end) = (place(), place());
            let mark = mark(random.below(3), sequence);
            all.insert(&start, &end, mark);
            list.push((start, end, mark));
        }
        if random.one_in(2) {
            let (from, to) = (place(), place());
            if from < to {
                all.remove(&from, Some(&to));
                let parts = std::mem::take(&mut list);
                for (start, end, mark) in parts {
                    list.push((start.clone(), end.clone().min(from.clone()), mark));
                    list.push((start.max(to.clone()), end, mark));
                }
            }
        }
        let again = Tombstones::decode(&all.encode()).unwrap();
        assert_eq!(again, all, "seed {seed}");
        let middle = place();
        let mut behind = all.clone();
        let before = behind.take_before(Some(&middle));
        for _ in 0..100 {
            let place = place();
            let stretch = all.around(&place);
            assert_eq!(
                stretch.marks,
                listed(&list, &place),
                "seed {seed}, {place:?}"
            );
            assert!(stretch.start <= place.as_slice(), "seed {seed}");
            assert!(stretch.end.is_none_or(|end| end > place.as_slice()));
            let side = if place < middle { &before } else { &behind };
            assert_eq!(side.around(&place).marks, stretch.marks, "seed {seed}");
        }
    }
}

#[test]
fn tombstones_hide_lower_versions_and_earlier_writes() {
    let deleted = mark(5, 100);
    assert!(deleted.hides(5, 99) && deleted.hides(4, 200));
    assert!(!deleted.hides(5, 101) && !deleted.hides(6, 1));
    let marks = [mark(3, 7), mark(5, 2), mark(5, 9)];
    assert_eq!(highest_seen(&marks, 9, 9), Some(mark(5, 9)));
    assert_eq!(highest_seen(&marks, 9, 8), Some(mark(5, 2)));
    assert_eq!(highest_seen(&marks, 4, 8), Some(mark(3, 7)));
    assert_eq!(highest_seen(&marks, 4, 6), None);
}

#[test]
fn tombstones_cover_only_without_gaps_and_join_what_is_alike() {
    let mut all = Tombstones::default();
    all.insert(b"a", b"f", mark(0, 3));
    all.insert(b"f", b"k", mark(0, 3));
    all.insert(b"m", b"p", mark(0, 9));
    assert!(all.covers(b"b", b"k", |m| m.sequence >= 3));
    assert!(!all.covers(b"b", b"k", |m| m.sequence > 3));
    assert!(!all.covers(b"b", b"n", |_| true));
    all.reduce(|_, _, marks| marks.retain(|m| m.sequence < 9));
    let pieces: Vec<_> = all.iter().collect();
    assert_eq!(pieces, [(&b"a"[..], &b"k"[..], &[mark(0, 3)][..])]);
}

#[test]
fn tombstones_damaged_are_refused() {
    let mut all = Tombstones::default();
    all.insert(b"a", b"f", mark(1, 3));
    all.insert(b"c", b"k", mark(2, 4));
    let bytes = all.encode();
    for length in 0..bytes.len() {
        assert_eq!(Tombstones::decode(&bytes[..length]), None);
    }
    let mut swapped = bytes.clone();
    // The end of the first piece becomes its beginning.
    swapped[4] = b'a';
    assert_eq!(Tombstones::decode(&swapped), None);
}

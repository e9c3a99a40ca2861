//! Voids against a set of live places.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_env::Random;

use super::{Passage, Voids};
use crate::batch::Batch;
use crate::key;
use crate::options::KeyspaceId;

const KEYSPACE: KeyspaceId = KeyspaceId(3);

fn place(n: u64) -> Vec<u8> {
    key::place(KEYSPACE, &[n as u8])
}

fn put(n: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(KEYSPACE, &[n as u8], b"");
    batch
}

#[test]
fn voids_hold_nothing_that_is_alive() {
    voids_hold_nothing_that_is_alive_in_any_history();
}

/// Writes and scans that end late, against what was alive when.
pub(crate) fn voids_hold_nothing_that_is_alive_in_any_history() {
    for seed in 0..200 {
        let random = Random::from_seed(seed);
        let voids = Voids::default();
        let mut alive: BTreeSet<u64> = BTreeSet::new();
        // What is alive after each sequence.
        let mut states = vec![alive.clone()];
        for _ in 0..200 {
            let last = states.len() as u64 - 1;
            let n = random.below(40);
            match random.below(4) {
                0 => {
                    voids.set_last(last + 1);
                    voids.cut(&put(n));
                    alive.insert(n);
                    states.push(alive.clone());
                }
                1 => {
                    voids.set_last(last + 1);
                    alive.remove(&n);
                    states.push(alive.clone());
                }
                2 => {
                    // A scan at a sequence of late, that ends now.
                    let sequence = last - random.below(last.min(4) + 1);
                    let end = states[sequence as usize].range(n..).next();
                    voids.note(&place(n), &place(*end.unwrap_or(&40)), sequence);
                }
                _ => {
                    let sequence = random.below(last + 1);
                    if let Some((start, end)) = voids.around(&place(n), sequence) {
                        let inside = |n: &&u64| start <= place(**n) && place(**n) < end;
                        let found = states[sequence as usize].iter().find(inside);
                        assert_eq!(found, None, "seed {seed}, at {sequence} of {last}");
                    }
                }
            }
        }
    }
}

#[test]
fn voids_are_used_by_whoever_finds_nothing_again() {
    let voids = Arc::new(Voids::default());
    voids.set_last(10);
    let walk = |sequence| {
        let mut passage = Passage::new(Some(Arc::clone(&voids)), sequence);
        let mut n = 0;
        let mut steps = 0;
        while n < 200 {
            steps += 1;
            n = match passage.over(&place(n)) {
                Some((_, end)) => u64::from(end.last().copied().unwrap()),
                None => n + 1,
            };
        }
        passage.end_at(&place(200));
        steps
    };
    // A write is under way: its key may be in there.
    assert_eq!(walk(9), 200);
    assert_eq!(walk(10), 200, "what was noted before was not sure");
    assert!(walk(10) < 10);
    assert_eq!(walk(9), 200, "who looks at what was before does not know");
    voids.set_last(11);
    voids.cut(&put(100));
    assert!(voids.around(&place(100), 11).is_none());
    assert!(voids.around(&place(99), 11).is_some() && voids.around(&place(101), 11).is_some());
}

//! Sets of ids against a plain set.

use std::collections::BTreeSet;

use crate::Ranges;

#[test]
fn ranges_agree_with_a_plain_set() {
    for seed in 0..200u64 {
        let mut state = seed;
        let mut draw = move |end: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % end
        };
        let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
        for _ in 0..100 {
            let id = draw(60) as i64;
            if draw(8) == 0 {
                ranges.remove_through(id / 2);
                model.retain(|m| *m > id / 2);
            } else {
                ranges.insert(id);
                model.insert(id);
            }
            assert_eq!(
                ranges.ids(),
                model.iter().copied().collect::<Vec<_>>(),
                "seed {seed}"
            );
            assert_eq!(ranges.last(), model.last().copied());
            assert_eq!(ranges.count(), model.len() as i64);
            assert_eq!(Ranges::from_flat(&ranges.to_flat()), Some(ranges.clone()));
            let (lows, highs) = ranges.gaps(-1);
            let missing: Vec<i64> = lows.iter().zip(&highs).flat_map(|(l, h)| *l..=*h).collect();
            let last = model.last().copied().unwrap_or(-1);
            let expected: Vec<i64> = (0..last).filter(|id| !model.contains(id)).collect();
            assert_eq!(missing, expected, "seed {seed}");
        }
    }
}

#[test]
fn ranges_that_are_none_are_refused() {
    assert_eq!(Ranges::from_flat(&[1]), None);
    assert_eq!(Ranges::from_flat(&[2, 1]), None);
    assert_eq!(Ranges::from_flat(&[1, 2, 3, 4]), None, "adjacent");
    assert!(Ranges::from_flat(&[1, 2, 4, 4]).is_some());
}

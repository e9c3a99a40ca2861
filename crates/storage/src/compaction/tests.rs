//! The rules of garbage, without a disk.

use super::garbage::{Garbage, Keep, Verdict};
use crate::key::{Key, Kind};

use Verdict::{Drop, Hold, Write};

/// Judges the entries of one place: version, sequence, whether it is a deletion.
fn judge(
    snapshots: &[u64],
    watermark: u64,
    at_bottom: bool,
    entries: &[(u64, u64, bool)],
) -> Vec<Verdict> {
    let snapshots = snapshots.to_vec();
    let mut garbage = Garbage::new(Keep { snapshots });
    garbage.begin(b"k", at_bottom, watermark, &[]);
    let verdict = |(version, sequence, deletion): &(u64, u64, bool)| {
        garbage.judge(&Key {
            place: b"k",
            version: *version,
            sequence: *sequence,
            kind: if *deletion { Kind::Delete } else { Kind::Put },
        })
    };
    entries.iter().map(verdict).collect()
}

#[test]
fn garbage_plain_keeps_what_snapshots_see() {
    let puts = [(0, 9, false), (0, 7, false), (0, 3, false), (0, 1, false)];
    assert_eq!(judge(&[], 0, false, &puts), [Write, Drop, Drop, Drop]);
    assert_eq!(judge(&[7], 0, false, &puts), [Write, Write, Drop, Drop]);
    assert_eq!(judge(&[2, 8], 0, false, &puts), [Write, Write, Drop, Write]);
}

#[test]
fn garbage_deletions_go_at_the_bottom_only() {
    let entries = [(0, 9, true), (0, 7, false)];
    assert_eq!(judge(&[], 0, false, &entries), [Write, Drop]);
    assert_eq!(judge(&[], 0, true, &entries), [Hold, Drop]);
    // The put is seen by a snapshot: the deletion is written before it.
    assert_eq!(judge(&[8], 0, true, &entries), [Hold, Write]);
}

#[test]
fn garbage_versions_go_when_shadowed_at_the_watermark() {
    let entries = [(30, 3, false), (20, 2, true), (10, 1, false)];
    assert_eq!(judge(&[], 0, true, &entries), [Write, Write, Write]);
    assert_eq!(judge(&[], 19, true, &entries), [Write, Write, Write]);
    assert_eq!(judge(&[], 20, true, &entries), [Write, Hold, Drop]);
    assert_eq!(judge(&[], 30, true, &entries), [Write, Drop, Drop]);
    // A snapshot taken before the later versions still reads version 10.
    assert_eq!(judge(&[1], 30, true, &entries), [Write, Drop, Write]);
    // Written again: the later of one version wins, whatever the watermark.
    let again = [(10, 5, false), (10, 1, false)];
    assert_eq!(judge(&[], 0, false, &again), [Write, Drop]);
}

//! The rules of garbage and the choices of the policy, without a disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_env::sim::Sim;

use super::garbage::{Garbage, Keep, Verdict};
use super::{CompactionPolicy, Leveled, View};
use crate::cache::BlockCache;
use crate::key::{Key, Kind};
use crate::levels::{Edit, Levels, Shelf, TableMeta};
use crate::options::Options;
use crate::table::Properties;

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

/// Levels of tables named by their first and last place: `(level, first, last, size)`.
fn levels(tables: &[(usize, &str, &str, u64)]) -> Levels {
    let disk = Sim::new(1).env().disk;
    let cache = Arc::new(BlockCache::new(0, 1));
    let shelf = Arc::new(Shelf::new(disk, std::path::Path::new("/"), cache));
    let mut edit = Edit::default();
    for (n, (level, first, last, size_bytes)) in tables.iter().enumerate() {
        let meta = TableMeta {
            number: n as u64 + 1,
            size_bytes: *size_bytes,
            properties: Properties {
                entries: 100,
                smallest: first.as_bytes().to_vec(),
                end: [last.as_bytes(), &[0]].concat(),
                ..Properties::default()
            },
            ingested: None,
        };
        edit.added.push((*level, Arc::new(meta)));
    }
    Levels::default().apply(&edit, &shelf).unwrap().0
}

/// What is chosen: level, and the numbers of its tables and of those below.
fn pick(levels: &Levels, busy: &[u64]) -> Option<(usize, Vec<u64>, Vec<u64>, bool)> {
    let policy = Leveled::new(&Options {
        l0_compact: 2,
        level_base_bytes: 100,
        level_factor: 10,
        ..Options::default()
    });
    let busy: BTreeSet<u64> = busy.iter().copied().collect();
    let choice = policy.pick(&View {
        levels,
        busy: &busy,
    })?;
    let numbers = |tables: &[Arc<crate::levels::TableFile>]| {
        let mut numbers: Vec<u64> = tables.iter().map(|t| t.meta.number).collect();
        numbers.sort_unstable();
        numbers
    };
    let (upper, lower) = (numbers(&choice.upper), numbers(&choice.lower));
    Some((choice.level, upper, lower, choice.moves))
}

#[test]
fn policy_rests_when_levels_are_small() {
    assert_eq!(
        pick(&levels(&[(0, "a", "z", 50), (1, "a", "z", 100 - 1)]), &[]),
        None
    );
}

#[test]
fn policy_takes_all_of_level_0_and_what_lies_below() {
    let levels = levels(&[
        (0, "c", "f", 10),
        (0, "e", "k", 10),
        (1, "a", "b", 10),
        (1, "d", "g", 10),
        (1, "k", "p", 10),
    ]);
    assert_eq!(pick(&levels, &[]), Some((0, vec![1, 2], vec![4, 5], false)));
    assert_eq!(pick(&levels, &[4]), None, "a busy table is left alone");
}

#[test]
fn policy_takes_the_table_with_least_below_and_moves_one_with_nothing() {
    let mut tables = vec![
        (1, "a", "c", 80),
        (1, "d", "f", 80),
        (2, "a", "b", 100),
        (2, "d", "d", 20),
    ];
    assert_eq!(
        pick(&levels(&tables), &[]),
        Some((1, vec![2], vec![4], false))
    );
    assert_eq!(
        pick(&levels(&tables), &[4]),
        Some((1, vec![1], vec![3], false))
    );
    tables.push((1, "x", "y", 80));
    assert_eq!(
        pick(&levels(&tables), &[]),
        Some((1, vec![5], vec![], true))
    );
}

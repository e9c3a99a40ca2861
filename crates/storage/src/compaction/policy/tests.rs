//! The choices of the policies, without a disk: single ones by hand, and random levels on which every
//! choice must keep the invariants, until nothing is left to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_env::Random;
use quorate_env::sim::Sim;

use super::*;
use crate::cache::BlockCache;
use crate::compaction::run::is_boundary;
use crate::expiry::Time;
use crate::levels::{Edit, Shelf, TableMeta};
use crate::options::{FifoOptions, KeyspaceId, KeyspaceOptions, TieredOptions};
use crate::planted::{Bug, is_noticed};
use crate::table::{KeyspaceProperties, Properties};

fn shelf() -> Arc<Shelf> {
    let disk = Sim::new(1).env().disk;
    let cache = Arc::new(BlockCache::new(0, 1));
    Arc::new(Shelf::new(disk, std::path::Path::new("/"), cache))
}

/// A table with a hundred entries from one place to another.
fn meta(number: u64, first: &str, last: &str, size_bytes: u64) -> TableMeta {
    TableMeta {
        number,
        size_bytes,
        properties: Properties {
            entries: 100,
            smallest: first.as_bytes().to_vec(),
            end: [last.as_bytes(), &[0]].concat(),
            max_sequence: number,
            written_ms: number * 1000,
            ..Properties::default()
        },
        ingested: None,
    }
}

fn levels_of(tables: Vec<(usize, TableMeta)>) -> Levels {
    let added = tables
        .into_iter()
        .map(|(level, meta)| (level, Arc::new(meta)));
    let edit = Edit {
        added: added.collect(),
        ..Edit::default()
    };
    Levels::default().apply(&edit, &shelf()).unwrap().0
}

/// Levels of tables named by their first and last place: `(level, first, last, size)`. Their numbers count
/// from 1.
fn levels(tables: &[(usize, &str, &str, u64)]) -> Levels {
    let one = |(n, (level, first, last, size)): (usize, &(usize, &str, &str, u64))| {
        (*level, meta(n as u64 + 1, first, last, *size))
    };
    levels_of(tables.iter().enumerate().map(one).collect())
}

fn keyspaces() -> Keyspaces {
    Keyspaces::new(&[KeyspaceOptions::versioned(0, "k")], Time::stopped())
}

fn view<'a>(levels: &'a Levels, busy: &'a BTreeSet<u64>, keyspaces: &'a Keyspaces) -> View<'a> {
    View {
        levels,
        busy,
        keyspaces,
        oldest_snapshot: u64::MAX,
        now_ms: 0,
        is_short_of_space: false,
    }
}

fn options(compaction: Compaction) -> Options {
    Options {
        l0_compact: 2,
        level_base_bytes: 100,
        level_factor: 10,
        compaction,
        ..Options::default()
    }
}

/// What is chosen: the numbers of each level that takes part, the output, and what is done.
type Picked = (Vec<(usize, Vec<u64>)>, usize, How);

fn named(choice: Choice) -> Picked {
    let numbers = |(level, tables): &(usize, Vec<Arc<TableFile>>)| {
        let mut numbers: Vec<u64> = tables.iter().map(|t| t.meta.number).collect();
        numbers.sort_unstable();
        (*level, numbers)
    };
    let inputs = choice.inputs.iter().map(numbers).collect();
    (inputs, choice.output, choice.how)
}

fn pick(compaction: Compaction, levels: &Levels, busy: &[u64]) -> Option<Picked> {
    let busy: BTreeSet<u64> = busy.iter().copied().collect();
    let keyspaces = keyspaces();
    let view = view(levels, &busy, &keyspaces);
    let choice = policy(&options(compaction)).pick(&view)?;
    choice.check(&view).unwrap();
    Some(named(choice))
}

const LEVELED: Compaction = Compaction::Leveled;

#[test]
fn leveled_rests_when_levels_are_small() {
    let levels = levels(&[(0, "a", "z", 50), (1, "a", "z", 100 - 1)]);
    assert_eq!(pick(LEVELED, &levels, &[]), None);
}

#[test]
fn leveled_takes_all_of_level_0_and_what_lies_below() {
    let levels = levels(&[
        (0, "c", "f", 10),
        (0, "e", "k", 10),
        (1, "a", "b", 10),
        (1, "d", "g", 10),
        (1, "k", "p", 10),
    ]);
    let all = vec![(0, vec![1, 2]), (1, vec![4, 5])];
    assert_eq!(pick(LEVELED, &levels, &[]), Some((all, 1, How::Merge)));
    assert_eq!(
        pick(LEVELED, &levels, &[4]),
        None,
        "a busy table is left alone"
    );
}

#[test]
fn leveled_takes_the_table_with_least_below_and_moves_one_with_nothing() {
    let mut tables = vec![
        (1, "a", "c", 80),
        (1, "d", "f", 80),
        (2, "a", "b", 100),
        (2, "d", "d", 20),
    ];
    let least = vec![(1, vec![2]), (2, vec![4])];
    let picked = pick(LEVELED, &levels(&tables), &[]);
    assert_eq!(picked, Some((least, 2, How::Merge)));
    let other = vec![(1, vec![1]), (2, vec![3])];
    let picked = pick(LEVELED, &levels(&tables), &[4]);
    assert_eq!(picked, Some((other, 2, How::Merge)));
    tables.push((1, "x", "y", 80));
    let picked = pick(LEVELED, &levels(&tables), &[]);
    assert_eq!(picked, Some((vec![(1, vec![5])], 2, How::Move)));
}

#[test]
fn outputs_end_where_tables_of_the_level_below_do() {
    let levels = levels(&[(2, "b", "d", 1), (2, "e", "g", 1)]);
    let ends = |last: &str, next: &str| is_boundary(&levels, 2, last.as_bytes(), next.as_bytes());
    assert!(ends("d", "e") && ends("a", "b") && ends("g", "h"));
    assert!(!ends("b", "c") && !ends("h", "i") && !ends("a", "aa"));
}

const TIERED: Compaction = Compaction::Tiered(TieredOptions {
    runs_max: 3,
    space_percent_max: 100,
});

#[test]
fn tiered_puts_runs_above_each_other_while_there_may_be_more() {
    let full = [(0, "a", "m", 10), (0, "c", "z", 10)];
    let l0 = vec![(0, vec![1, 2])];
    let picked = pick(TIERED, &levels(&full), &[]);
    assert_eq!(picked, Some((l0.clone(), 6, How::Merge)));
    let with = |more: &[(usize, &'static str, &'static str, u64)]| levels(&[&full, more].concat());
    let picked = pick(TIERED, &with(&[(6, "a", "z", 100)]), &[]);
    assert_eq!(picked, Some((l0, 5, How::Merge)));
    assert_eq!(
        pick(TIERED, &with(&[(6, "a", "z", 100)]), &[3]),
        None,
        "one at a time"
    );
    assert_eq!(pick(TIERED, &levels(&full[..1]), &[]), None);
}

#[test]
fn tiered_merges_runs_of_a_size_when_there_are_enough() {
    let levels = levels(&[
        (0, "a", "m", 10),
        (0, "c", "z", 10),
        (4, "a", "z", 20),
        (5, "a", "b", 15),
        (5, "c", "z", 15),
        (6, "a", "z", 500),
    ]);
    let of_a_size = vec![(0, vec![1, 2]), (4, vec![3]), (5, vec![4, 5])];
    assert_eq!(pick(TIERED, &levels, &[]), Some((of_a_size, 5, How::Merge)));
}

#[test]
fn tiered_merges_all_when_too_much_lies_above_the_last_run() {
    let levels = levels(&[(0, "a", "m", 10), (5, "a", "z", 60), (6, "a", "z", 60)]);
    let all = vec![(0, vec![1]), (5, vec![2]), (6, vec![3])];
    assert_eq!(pick(TIERED, &levels, &[]), Some((all, 6, How::Merge)));
}

fn fifo(size_bytes_max: u64, age_seconds: Option<u64>) -> Fifo {
    Fifo::new(&FifoOptions {
        size_bytes_max,
        age_max: age_seconds.map(Duration::from_secs),
    })
}

/// What a FIFO drops at a time.
fn dropped(fifo: &Fifo, levels: &Levels, now_ms: u64) -> Option<Picked> {
    let (busy, keyspaces) = (BTreeSet::new(), keyspaces());
    let view = View {
        now_ms,
        ..view(levels, &busy, &keyspaces)
    };
    let choice = fifo.pick(&view)?;
    choice.check(&view).unwrap();
    Some(named(choice))
}

#[test]
fn fifo_drops_the_oldest_by_size_and_by_age() {
    let new = levels(&[(0, "a", "z", 10), (0, "a", "z", 10), (0, "a", "z", 10)]);
    let gone = |numbers: &[u64]| Some((vec![(0, numbers.to_vec())], 0, How::Drop));
    assert_eq!(dropped(&fifo(30, None), &new, u64::MAX), None);
    assert_eq!(dropped(&fifo(29, None), &new, 0), gone(&[1]));
    assert_eq!(dropped(&fifo(15, None), &new, 0), gone(&[1, 2]));
    // Written at 1, 2 and 3 seconds.
    assert_eq!(dropped(&fifo(30, Some(5)), &new, 6_999), gone(&[1]));
    assert_eq!(dropped(&fifo(30, Some(5)), &new, 7_000), gone(&[1, 2]));
    // What a leveled store had further down is older than all of level 0.
    let deep = levels(&[(0, "a", "z", 10), (3, "m", "z", 10), (3, "a", "l", 10)]);
    let gone = Some((vec![(3, vec![2])], 3, How::Drop));
    assert_eq!(dropped(&fifo(29, None), &deep, 0), gone);
}

/// A table of which so many of a hundred entries are deletions, up to a version.
fn dying(number: u64, deletions: u64, max_version: u64) -> TableMeta {
    let mut meta = meta(number, "k", "q", 10);
    meta.properties.deletions = deletions;
    meta.properties.keyspaces.push(KeyspaceProperties {
        id: KeyspaceId(0),
        entries: 100,
        deletions,
        min_version: 0,
        max_version,
        expiring: 0,
        newest_ms: 0,
        prefix: crate::Prefix::None,
    });
    meta
}

#[test]
fn heavy_tables_are_compacted_by_themselves() {
    let with = |table: TableMeta, below: bool| {
        let mut tables = vec![(2, table), (2, meta(8, "r", "z", 10))];
        if below {
            tables.push((4, meta(9, "a", "z", 100)));
        }
        levels_of(tables)
    };
    let down = Some((vec![(2, vec![1]), (4, vec![9])], 4, How::Merge));
    assert_eq!(pick(LEVELED, &with(dying(1, 60, 0), true), &[]), down);
    assert_eq!(pick(TIERED, &with(dying(1, 60, 0), true), &[]), down);
    assert_eq!(pick(LEVELED, &with(dying(1, 49, 0), true), &[]), None);
    let alone = Some((vec![(2, vec![1])], 2, How::Merge));
    assert_eq!(pick(LEVELED, &with(dying(1, 60, 0), false), &[]), alone);
    // Deletions that are history must stay: it would be in vain, and for ever.
    assert_eq!(pick(LEVELED, &with(dying(1, 60, 7), false), &[]), None);
    let old = levels_of(vec![(2, dying(5, 60, 0))]);
    let (busy, keyspaces) = (BTreeSet::new(), keyspaces());
    let seen = |oldest_snapshot| {
        let view = View {
            oldest_snapshot,
            ..view(&old, &busy, &keyspaces)
        };
        pick_heavy(&view, 50, 1).is_none()
    };
    assert!(seen(4) && !seen(5), "a snapshot holds back what it sees");
    let few = levels_of(vec![(0, dying(1, 10, 0)), (4, meta(9, "a", "z", 100))]);
    let short = |is_short_of_space| {
        let view = View {
            is_short_of_space,
            ..view(&few, &busy, &keyspaces)
        };
        pick_heavy(&view, 50, 2).map(named)
    };
    let down = Some((vec![(0, vec![1]), (4, vec![9])], 4, How::Merge));
    assert_eq!((short(false), short(true)), (None, down));
}

/// Random levels that could be: below level 0 disjoint.
fn random_levels(random: &Random) -> Vec<(usize, TableMeta)> {
    let mut tables = Vec::new();
    let mut number = 1;
    for level in (1..LEVELS).rev() {
        let mut at = random.below(20);
        while !random.one_in(3) && at < 80 {
            let end = at + random.below(15);
            let size = 1 + random.below(100);
            let mut table = meta(number, &format!("{at:03}"), &format!("{end:03}"), size);
            if random.one_in(4) {
                table.properties.deletions = random.below(101);
            }
            tables.push((level, table));
            number += 1;
            at = end + 1 + random.below(10);
        }
    }
    for _ in 0..random.below(6) {
        let at = random.below(90);
        let end = at + random.below(40);
        let table = meta(
            number,
            &format!("{at:03}"),
            &format!("{end:03}"),
            1 + random.below(50),
        );
        tables.push((0, table));
        number += 1;
    }
    tables
}

/// What becomes of the levels: one table comes out for all that goes in, of half the size.
fn carry_out(levels: &Levels, choice: &Choice, number: u64) -> Levels {
    let tables = || choice.tables().map(|(_, t)| t);
    let removed = choice.tables().map(|(level, t)| (level, t.meta.number));
    let mut edit = Edit {
        removed: removed.collect(),
        ..Edit::default()
    };
    match choice.how {
        How::Drop => {}
        How::Move => {
            let moved = tables().map(|t| (choice.output, Arc::clone(&t.meta)));
            edit.added = moved.collect();
        }
        How::Merge => {
            let mut out = meta(number, "", "", 0);
            let p = || tables().map(|t| &t.meta.properties);
            out.properties.smallest = p().map(|p| p.smallest.clone()).min().unwrap();
            out.properties.end = p().map(|p| p.end.clone()).max().unwrap();
            out.size_bytes = tables().map(|t| t.meta.size_bytes).sum::<u64>().div_ceil(2);
            edit.added = vec![(choice.output, Arc::new(out))];
        }
    }
    levels.apply(&edit, &shelf()).unwrap().0
}

/// All policies, one after the other on the same levels, as when an engine is opened with another.
fn check_choices(seed: u64) -> Result<(), String> {
    let random = Random::from_seed(seed);
    let mut levels = levels_of(random_levels(&random));
    let mut number = 1000;
    for _ in 0..4 {
        let size_bytes_max = random.below(400);
        let fifo = FifoOptions {
            size_bytes_max,
            age_max: None,
        };
        let tiered = TieredOptions {
            runs_max: 2 + random.below(5) as usize,
            space_percent_max: 50 + random.below(300) as u32,
        };
        let all = [
            Compaction::Leveled,
            Compaction::Tiered(tiered),
            Compaction::Fifo(fifo),
        ];
        let compaction = all[random.below(3) as usize];
        let policy = policy(&options(compaction));
        let keyspaces = keyspaces();
        let mut busy = BTreeSet::new();
        for round in 0.. {
            let mut seen = view(&levels, &busy, &keyspaces);
            seen.now_ms = u64::MAX;
            let Some(choice) = policy.pick(&seen) else {
                if busy.is_empty() {
                    break;
                }
                busy.clear();
                continue;
            };
            let failed = |e| format!("{compaction:?}: {e}");
            choice.check(&seen).map_err(failed)?;
            if random.one_in(5) {
                // Somebody is at it: what is chosen next must leave it alone.
                busy.extend(choice.tables().map(|(_, t)| t.meta.number));
                continue;
            }
            levels = carry_out(&levels, &choice, number);
            number += 1;
            busy.clear();
            if round > 500 {
                return Err(format!("{compaction:?} finds no end"));
            }
        }
        check_bounds(compaction, &levels)?;
    }
    Ok(())
}

/// What holds when a policy has nothing to do.
fn check_bounds(compaction: Compaction, levels: &Levels) -> Result<(), String> {
    let filled: Vec<usize> = (1..LEVELS)
        .filter(|l| !levels.level(*l).is_empty())
        .collect();
    let sum: u64 = (0..LEVELS).map(|l| levels.bytes(l)).sum();
    let holds = match compaction {
        Compaction::Leveled => {
            let target = |level: usize| 100 * 10_u64.pow(level as u32 - 1);
            levels.level(0).len() < 2 && (1..6).all(|l| levels.bytes(l) < target(l))
        }
        Compaction::Tiered(tiered) => {
            let last = filled.last().map_or(u64::MAX, |l| levels.bytes(*l));
            let most = u128::from(last) * (100 + u128::from(tiered.space_percent_max)) / 100;
            levels.level(0).len() < 2 && filled.len() <= tiered.runs_max && u128::from(sum) <= most
        }
        Compaction::Fifo(fifo) => sum <= fifo.size_bytes_max,
    };
    match holds {
        true => Ok(()),
        false => Err(format!("the bounds of {compaction:?} don't hold")),
    }
}

fn check_all_choices() -> Result<(), String> {
    (0..300).try_for_each(|seed| check_choices(seed).map_err(|e| format!("seed {seed}: {e}")))
}

#[test]
fn policies_keep_the_invariants_on_any_levels() {
    check_all_choices().unwrap();
}

#[test]
fn policies_check_notices_a_run_left_behind_and_the_newest_dropped() {
    for bug in [Bug::TieredSkipsARun, Bug::FifoDropsTheNewest] {
        assert!(is_noticed(bug, check_all_choices), "{bug:?}");
    }
}

//! Damage is contained: what it may have taken is named, the rest is served, and once the ranges that it touched
//! are removed the damaged file goes and compaction goes on.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use quorate_env::Disk;
use quorate_env::sim::{Crash, Sim, SimDisk};

use super::corruption::copy;
use super::workload::{DATA, META, dir, tiny_apart};
use crate::{Batch, Engine, ErrorKind, KeyRange, Lsm, Options, ReadAt, Result, WriteOptions};

/// What stands for groups: keys with a common first byte, in both keyspaces.
const GROUPS: u8 = 12;
const KEYS: u8 = 10;

fn options() -> Options {
    Options {
        wal: false,
        large_value_bytes: 100,
        cache_bytes: 0,
        ..tiny_apart()
    }
}

fn key(group: u8, n: u8) -> [u8; 2] {
    [b'a' + group, n]
}

/// Every third is large enough to lie apart.
fn value(group: u8, n: u8, version: u64) -> Vec<u8> {
    let size = if n.is_multiple_of(3) { 120 } else { 20 };
    format!("{group}.{n}.{version}.")
        .bytes()
        .cycle()
        .take(size)
        .collect()
}

const VERSIONS: u64 = 3;

fn store() -> SimDisk {
    let sim = Sim::new(5);
    let lsm = Lsm::open(&sim.env(), dir(), options()).unwrap();
    for version in 1..=VERSIONS {
        for group in 0..GROUPS {
            let mut batch = Batch::new();
            for n in 0..KEYS {
                let value = value(group, n, version);
                batch.put_at(DATA, &key(group, n), version, &value);
                batch.put(META, &key(group, n), &value);
            }
            lsm.write(&batch, WriteOptions::APPLY).unwrap();
        }
        if version == 1 {
            lsm.compact_all().unwrap();
        }
    }
    lsm.close().unwrap();
    sim.disk.crash_with(Crash::KeepAll)
}

/// Reads all of a group; whatever is read must be right.
fn read(lsm: &Lsm, group: u8) -> Result<()> {
    for n in 0..KEYS {
        for version in 1..=VERSIONS {
            let found = lsm.get(DATA, &key(group, n), &ReadAt::version(version))?;
            let found = found.map(|entry| entry.value.to_vec());
            assert_eq!(
                found,
                Some(value(group, n, version)),
                "{group}.{n}@{version}"
            );
        }
        let found = lsm.get(META, &key(group, n), &ReadAt::NEWEST)?;
        let found = found.map(|entry| entry.value.to_vec());
        assert_eq!(found, Some(value(group, n, VERSIONS)), "{group}.{n}");
    }
    Ok(())
}

/// Judges what was found, and gives it up; returns the groups that it touches.
fn contain(lsm: &Lsm, touched: &mut BTreeSet<u8>) {
    for damaged in lsm.judge_damage() {
        for group in 0..GROUPS {
            let (lower, upper) = ([b'a' + group], [b'a' + group + 1]);
            let touches = |keyspace| damaged.touches(keyspace, &lower, Some(&upper));
            if touches(DATA) || touches(META) {
                touched.insert(group);
            }
        }
        lsm.give_up(&damaged);
    }
}

/// The life of a store with one damaged file; returns the groups that it lost.
fn live_on(sim: &Sim) -> BTreeSet<u8> {
    let lsm = Lsm::open_with_damage(&sim.env(), dir(), options()).unwrap();
    let mut touched = BTreeSet::new();
    contain(&lsm, &mut touched);
    for group in 0..GROUPS {
        if !touched.contains(&group)
            && let Err(error) = read(&lsm, group)
        {
            assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
            assert!(lsm.is_damaged(), "{error} is not noted");
            contain(&lsm, &mut touched);
            assert!(
                touched.contains(&group),
                "{error}, but {group} is not touched"
            );
        }
    }
    let mut removed = BTreeSet::new();
    while let Some(group) = touched.difference(&removed).next().copied() {
        let (lower, upper) = ([b'a' + group], [b'a' + group + 1]);
        let remove = |keyspace| lsm.remove_range(keyspace, KeyRange::new(&lower, &upper));
        match remove(DATA).and_then(|()| remove(META)) {
            Ok(()) => drop(removed.insert(group)),
            // More of it.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                let before = touched.len();
                contain(&lsm, &mut touched);
                assert!(touched.len() > before, "{error}");
            }
        }
    }
    // Compaction finds what nobody has read.
    while let Err(error) = lsm.compact_all() {
        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
        assert!(lsm.is_damaged(), "{error} is not noted");
        let before = touched.clone();
        contain(&lsm, &mut touched);
        for group in touched.difference(&before) {
            let (lower, upper) = ([b'a' + group], [b'a' + group + 1]);
            for keyspace in [DATA, META] {
                lsm.remove_range(keyspace, KeyRange::new(&lower, &upper))
                    .unwrap();
            }
        }
        assert!(touched.len() > before.len(), "{error}");
    }
    for group in (0..GROUPS).filter(|group| !touched.contains(group)) {
        read(&lsm, group).unwrap();
    }
    lsm.close().unwrap();
    let again = Lsm::open(&sim.env(), dir(), options()).expect("the damaged file is gone");
    again.compact_all().expect("nothing damaged is left");
    for group in (0..GROUPS).filter(|group| !touched.contains(group)) {
        read(&again, group).unwrap();
    }
    again.close().unwrap();
    touched
}

fn files(disk: &SimDisk, kind: &str) -> Vec<std::path::PathBuf> {
    let names = disk.list(dir()).unwrap();
    let names = names.iter().filter(|name| name.ends_with(kind));
    names.map(|name| dir().join(name)).collect()
}

#[test]
fn lsm_damage_anywhere_in_a_table_or_value_file_is_contained_and_goes() {
    let disk = store();
    let (mut hit, mut few) = (0, 0);
    for kind in [".table", ".values"] {
        for path in files(&copy(&disk).disk, kind) {
            let size = copy(&disk).disk.read(&path).unwrap().len() as u64;
            for byte in (0..size).step_by(1 + size as usize / 25) {
                let sim = copy(&disk);
                sim.disk.flip_bit(&path, byte * 8 + byte % 8).unwrap();
                let touched = live_on(&sim).len();
                hit += usize::from(touched > 0);
                few += usize::from((1..=3).contains(&touched));
            }
        }
    }
    assert!(hit > 40, "only {hit} flips touched anything");
    assert!(
        few * 2 > hit,
        "of {hit} flips only {few} touched few groups"
    );
}

#[test]
fn lsm_tables_that_are_gone_or_cut_are_contained() {
    let disk = store();
    for kind in [".table", ".values"] {
        for path in files(&copy(&disk).disk, kind) {
            let sim = copy(&disk);
            sim.disk.remove(&path).unwrap();
            assert!(!live_on(&sim).is_empty(), "{path:?} is gone");
            let sim = copy(&disk);
            let file = sim.disk.open(&path).unwrap();
            file.set_size(file.size().unwrap() / 2).unwrap();
            file.sync().unwrap();
            assert!(!live_on(&sim).is_empty(), "{path:?} is cut");
        }
    }
}

#[test]
fn lsm_damaged_file_is_kept_aside_and_what_was_misread_is_not() {
    let disk = store();
    let path = files(&copy(&disk).disk, ".table").remove(0);
    let sim = copy(&disk);
    let lsm = Lsm::open_with_damage(&sim.env(), dir(), options()).unwrap();
    // In the first block.
    let bit = 8 * 80;
    sim.disk.flip_bit(&path, bit).unwrap();
    let read_all = || (0..GROUPS).try_for_each(|group| read(&lsm, group));
    read_all().expect_err("it is damaged");
    // By the time it is judged the disk gives it whole.
    sim.disk.flip_bit(&path, bit).unwrap();
    assert!(lsm.is_damaged());
    assert_eq!(lsm.judge_damage(), []);
    read_all().unwrap();
    sim.disk.flip_bit(&path, bit).unwrap();
    let lsm = Arc::new(lsm);
    lsm.compact_all().expect_err("it is damaged");
    let found = lsm.judge_damage();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].path, path);
    assert!(found[0].what.contains(&path.display().to_string()));
    assert_eq!(
        files(&sim.disk, ".damaged"),
        Vec::<std::path::PathBuf>::new()
    );
    lsm.give_up(&found[0]);
    let aside = format!("{}.damaged", path.display());
    assert_eq!(files(&sim.disk, ".damaged"), [Path::new(&aside)]);
    assert!(!lsm.is_damaged());
}

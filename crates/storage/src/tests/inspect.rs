//! Looking at stores from outside, and saving what can be saved of damaged ones.

use std::path::Path;

use quorate_env::Disk;
use quorate_env::sim::{Crash, Sim, SimDisk};

use super::corruption::{copy, store};
use super::crash::{dump, up};
use super::workload::{dir, tiny, tiny_apart};
use crate::inspect::{Inspection, Repair, find, repair};
use crate::{ErrorKind, Lsm, Options};

fn with_log() -> Options {
    Options {
        wal: true,
        ..tiny()
    }
}

fn apart() -> Options {
    Options {
        wal: true,
        ..tiny_apart()
    }
}

/// The names of some kind in the store's directory.
fn names(disk: &SimDisk, kind: &str) -> Vec<String> {
    let mut names = disk.list(dir()).unwrap();
    names.retain(|name| name.ends_with(kind));
    names
}

fn run(sim: &Sim) -> crate::Result<Repair> {
    let mut last = (0, 0);
    let done = repair(&sim.env(), dir(), &mut |done, total| {
        assert!(last.0 <= done && done <= total, "{done} of {total}");
        last = (done, total);
    });
    assert_eq!(last.0, last.1, "all is looked at");
    done
}

fn open(sim: &Sim) -> Lsm {
    Lsm::open(&sim.env(), dir(), with_log()).unwrap()
}

#[test]
fn inspection_says_what_is_in_a_store_and_changes_nothing() {
    inspect_all_of(&with_log());
    inspect_all_of(&apart());
}

fn inspect_all_of(options: &Options) {
    let (disk, states) = store(options);
    let sim = copy(&disk);
    let lsm = open(&sim);
    let (stats, wanted) = (lsm.stats(), dump(&lsm));
    for refused in [
        Inspection::open(&sim.env(), dir()).map(drop),
        repair(&sim.env(), dir(), &mut |_, _| {}).map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::AlreadyOpen);
    }
    lsm.close().unwrap();
    drop(lsm);
    let orphan = dir().join("00000000000fffff.table");
    sim.disk.create(&orphan).unwrap();
    let operations = sim.disk.operations();
    let inspection = Inspection::open(&sim.env(), dir()).unwrap();
    let summary = inspection.summary();
    assert_eq!(summary.left_overs, ["00000000000fffff.table"]);
    assert_eq!(summary.flushed_sequence, stats.flushed_sequence);
    assert!(summary.logged && summary.keyspaces.len() == 3);
    for (level, of) in stats.levels.iter().enumerate() {
        let tables = summary.tables.iter().filter(|t| t.level == level);
        assert_eq!(tables.clone().count() as u64, of.files);
        assert_eq!(tables.map(|t| t.size_bytes).sum::<u64>(), of.size_bytes);
    }
    for table in &summary.tables {
        let entries: u64 = table.keyspaces.iter().map(|k| k.entries).sum();
        assert_eq!(entries, table.entries);
        assert_eq!(table.smallest.keyspace, table.keyspaces[0].id);
    }
    assert_eq!(summary.values.len() as u64, stats.value_files);
    let dead: u64 = summary.values.iter().map(|v| v.dead_bytes).sum();
    assert_eq!(dead, stats.value_dead_bytes);
    let apart: u64 = summary.tables.iter().map(|t| t.values_apart).sum();
    let alive: u64 = summary.values.iter().map(|v| v.live_values).sum();
    assert_eq!(apart, alive);
    let mut read = 0;
    let found = inspection.verify(&mut |bytes| read += bytes);
    assert_eq!(found.damages, []);
    assert_eq!(read, inspection.file_bytes());
    assert_eq!(
        (found.tables, found.bytes),
        (summary.tables.len() as u64, read)
    );
    assert!(found.log_batches > 0);
    assert_eq!(dump(&inspection.read().unwrap()), wanted);
    assert!(wanted == states[states.len() - 1]);
    drop(inspection);
    let repaired = run(&sim).unwrap();
    assert!(!repaired.needed && repaired.certain);
    assert_eq!(repaired.tables, summary.tables);
    assert_eq!(sim.disk.operations(), operations, "nothing is written");
}

#[test]
fn inspection_finds_the_engine_of_a_node() {
    let sim = Sim::new(1);
    let node = Path::new("/node");
    assert_eq!(
        find(&sim.env(), node).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    let engine = node.join("engine");
    drop(Lsm::open(&sim.env(), &engine, tiny()).unwrap());
    assert_eq!(find(&sim.env(), node).unwrap(), engine);
    assert_eq!(find(&sim.env(), &engine).unwrap(), engine);
    assert_eq!(
        Inspection::open(&sim.env(), node).unwrap().summary().dir,
        engine
    );
}

#[test]
fn verification_names_every_damaged_block_and_goes_on() {
    verify_damage(&with_log(), ".table");
    verify_damage(&apart(), ".table");
    verify_damage(&apart(), ".values");
}

fn verify_damage(options: &Options, kind: &str) {
    let (disk, _) = store(options);
    for table in names(&copy(&disk).disk, kind) {
        let size = copy(&disk).disk.read(&dir().join(&table)).unwrap().len() as u64;
        for byte in (0..size).step_by(53) {
            let sim = copy(&disk);
            sim.disk
                .flip_bit(&dir().join(&table), byte * 8 + 3)
                .unwrap();
            let inspection = Inspection::open(&sim.env(), dir()).unwrap();
            let found = inspection.verify(&mut |_| {});
            let [damage] = found.damages.as_slice() else {
                // 28 bytes of the footer and 36 of the header are reserved; the checksum has them.
                panic!("{table}, byte {byte} of {size}: {:?}", found.damages);
            };
            assert_eq!(damage.file, table);
            assert!(
                damage.at.is_none_or(|at| at <= byte),
                "{damage:?}, byte {byte}"
            );
        }
    }
    let sim = copy(&disk);
    let damaged = names(&sim.disk, kind);
    for table in &damaged {
        sim.disk.flip_bit(&dir().join(table), 8 * 70).unwrap();
    }
    let log = Path::new("/store/wal/0000000000000001.log");
    if sim.disk.exists(log).unwrap() {
        sim.disk.flip_bit(log, 8 * 70).unwrap();
    }
    let found = Inspection::open(&sim.env(), dir())
        .unwrap()
        .verify(&mut |_| {});
    assert!(found.damages.len() >= damaged.len());
}

#[test]
fn repair_of_a_lost_or_damaged_manifest_loses_nothing() {
    for options in [
        with_log(),
        Options {
            l0_compact: 4,
            ..with_log()
        },
        apart(),
    ] {
        let (disk, states) = store(&options);
        let wanted = &states[states.len() - 1];
        let manifest = names(&copy(&disk).disk, ".manifest").remove(0);
        let path = dir().join(&manifest);
        let size = copy(&disk).disk.read(&path).unwrap().len() as u64;
        let check = |what: &str, sim: &Sim| {
            assert!(
                Lsm::open(&sim.env(), dir(), options.clone()).is_err(),
                "{what}"
            );
            let repaired = run(sim).unwrap();
            assert!(
                repaired.needed && repaired.lost.is_empty(),
                "{what}: {repaired:?}"
            );
            assert!(repaired.manifest_damage.is_some(), "{what}");
            let again = run(sim).unwrap();
            assert!(!again.needed, "{what}: {again:?}");
            assert_eq!(again.tables, repaired.tables);
            let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
            assert!(dump(&lsm) == *wanted, "{what}: other content");
            lsm.compact_all().unwrap();
            assert!(
                dump(&lsm) == *wanted,
                "{what}: other content after compaction"
            );
            repaired
        };
        let sim = copy(&disk);
        sim.disk.remove(&dir().join("CURRENT")).unwrap();
        assert!(check("CURRENT lost", &sim).certain);
        let sim = copy(&disk);
        sim.disk.flip_bit(&dir().join("CURRENT"), 8 * 65).unwrap();
        assert!(check("CURRENT damaged", &sim).certain);
        let aside = Path::new("/store/damaged");
        assert_eq!(sim.disk.list(aside).unwrap(), ["CURRENT"]);
        let sim = copy(&disk);
        sim.disk.remove(&path).unwrap();
        assert!(!check("manifest lost", &sim).certain);
        let sim = copy(&disk);
        sim.disk.remove(&path).unwrap();
        sim.disk.remove(&dir().join("CURRENT")).unwrap();
        assert!(!check("both lost", &sim).certain);
        for byte in (0..size).step_by(91) {
            let sim = copy(&disk);
            sim.disk.flip_bit(&path, byte * 8 + 1).unwrap();
            let repaired = check(&format!("manifest, byte {byte}"), &sim);
            assert!(!repaired.certain);
            assert_eq!(sim.disk.list(aside).unwrap(), [manifest.as_str()]);
        }
    }
}

#[test]
fn repair_sets_damaged_tables_aside_and_says_what_is_lost() {
    repair_tables(&with_log());
    repair_tables(&apart());
}

fn repair_tables(options: &Options) {
    let (disk, _) = store(options);
    for certain in [true, false] {
        for table in names(&copy(&disk).disk, ".table") {
            let sim = copy(&disk);
            let before = Inspection::open(&sim.env(), dir()).unwrap().summary();
            sim.disk.flip_bit(&dir().join(&table), 8 * 70).unwrap();
            if !certain {
                sim.disk.remove(&dir().join("CURRENT")).unwrap();
                let manifest = names(&sim.disk, ".manifest").remove(0);
                sim.disk.remove(&dir().join(manifest)).unwrap();
            }
            let repaired = run(&sim).unwrap();
            assert_eq!(repaired.certain, certain);
            let [lost] = repaired.lost.as_slice() else {
                panic!("{table}: {:?}", repaired.lost);
            };
            let was = before.tables.iter().find(|t| t.file == table).unwrap();
            let content = (was.entries, was.smallest.clone(), was.largest.clone());
            assert_eq!(lost.content, Some(content));
            assert_eq!(lost.file, table);
            assert!(lost.why.contains("byte 64"), "{}", lost.why);
            let aside = Path::new("/store/damaged").join(&table);
            assert_eq!(lost.moved_to.as_ref(), Some(&aside));
            if certain {
                let entries = |tables: &[crate::inspect::TableContent]| {
                    tables.iter().map(|t| t.entries).sum::<u64>()
                };
                let kept = entries(&repaired.tables);
                assert_eq!(kept + was.entries, entries(&before.tables));
            }
            let lsm = open(&sim);
            dump(&lsm);
            lsm.compact_all().unwrap();
            lsm.close().unwrap();
            drop(lsm);
            assert!(sim.disk.exists(&aside).unwrap(), "opening leaves it alone");
            let inspection = Inspection::open(&sim.env(), dir()).unwrap();
            assert_eq!(inspection.verify(&mut |_| {}).damages, []);
        }
    }
    // A table that is gone altogether.
    let sim = copy(&disk);
    let table = names(&sim.disk, ".table").remove(0);
    sim.disk.remove(&dir().join(&table)).unwrap();
    let repaired = run(&sim).unwrap();
    assert_eq!(repaired.lost[0].file, table);
    assert_eq!(repaired.lost[0].moved_to, None);
    dump(&open(&sim));
}

#[test]
fn repair_that_the_power_ends_is_done_by_the_next_one() {
    let (disk, states) = store(&Options {
        l0_compact: 4,
        ..with_log()
    });
    let broken = |damage: &dyn Fn(&Sim)| {
        let sim = copy(&disk);
        damage(&sim);
        sim
    };
    let lost = broken(&|sim| {
        sim.disk.remove(&dir().join("CURRENT")).unwrap();
        let manifest = names(&sim.disk, ".manifest").remove(0);
        sim.disk.remove(&dir().join(manifest)).unwrap();
    });
    let flipped = broken(&|sim| {
        let manifest = names(&sim.disk, ".manifest").remove(0);
        let path = dir().join(manifest);
        let size = sim.disk.read(&path).unwrap().len() as u64;
        sim.disk.flip_bit(&path, size * 4).unwrap();
    });
    for broken in [lost, flipped] {
        for n in 0.. {
            let sim = up(&broken, Crash::KeepAll);
            sim.disk.crash_at(n);
            let _ = repair(&sim.env(), dir(), &mut |_, _| {});
            let over = sim.disk.operations() < n;
            let sim = up(
                &sim,
                [Crash::Random, Crash::LoseAll, Crash::KeepAll][n as usize % 3],
            );
            let repaired = run(&sim).unwrap();
            assert!(repaired.lost.is_empty(), "crash at {n}: {repaired:?}");
            let lsm = open(&sim);
            assert!(
                dump(&lsm) == states[states.len() - 1],
                "crash at {n}: other content"
            );
            if over {
                break;
            }
        }
    }
}

/// How many entries there are by what is listed.
fn count(lsm: &Lsm) -> usize {
    let of = |keyspace| {
        let all = crate::IterOptions {
            all_versions: keyspace != super::workload::META,
            ..crate::IterOptions::default()
        };
        super::conformance::list(lsm, keyspace, &all).len()
    };
    let ids = super::workload::keyspaces().into_iter().map(|k| k.id);
    ids.map(of).sum()
}

#[test]
fn repair_of_damaged_values_loses_only_them() {
    let (disk, _) = store(&apart());
    let sound = count(&open(&copy(&disk)));
    for certain in [true, false] {
        for values in names(&copy(&disk).disk, ".values") {
            for gone in [true, false] {
                let what = format!("{values}, certain {certain}, gone {gone}");
                let sim = copy(&disk);
                let before = Inspection::open(&sim.env(), dir()).unwrap().summary();
                let was = before.values.iter().find(|v| v.file == values).unwrap();
                let path = dir().join(&values);
                match gone {
                    true => sim.disk.remove(&path).unwrap(),
                    false => sim.disk.flip_bit(&path, 8 * 70).unwrap(),
                }
                if !certain {
                    sim.disk.remove(&dir().join("CURRENT")).unwrap();
                    let manifest = names(&sim.disk, ".manifest").remove(0);
                    sim.disk.remove(&dir().join(manifest)).unwrap();
                }
                let repaired = run(&sim).unwrap();
                assert_eq!(repaired.certain, certain, "{what}");
                let [lost] = repaired.lost.as_slice() else {
                    panic!("{what}: {:?}", repaired.lost);
                };
                assert_eq!(lost.file, values, "{what}");
                let entries = lost.content.as_ref().map_or(0, |(entries, ..)| *entries);
                let most = if gone { was.live_values } else { 1 };
                assert!(entries <= most, "{what}: {entries} of {most}");
                assert_eq!(lost.moved_to.is_some(), !gone, "{what}");
                // Nothing else is lost, and what was hidden may be back.
                let lsm = open(&sim);
                assert!(count(&lsm) + entries as usize >= sound, "{what}");
                lsm.compact_all().unwrap();
                lsm.close().unwrap();
                drop(lsm);
                let inspection = Inspection::open(&sim.env(), dir()).unwrap();
                assert_eq!(inspection.verify(&mut |_| {}).damages, [], "{what}");
                drop(inspection);
                assert!(!run(&sim).unwrap().needed, "{what}");
            }
        }
    }
}

#[test]
fn repair_of_values_that_the_power_ends_is_done_by_the_next_one() {
    let (disk, _) = store(&apart());
    let broken = copy(&disk);
    let values = names(&broken.disk, ".values").remove(0);
    broken.disk.flip_bit(&dir().join(&values), 8 * 70).unwrap();
    let whole = up(&broken, Crash::KeepAll);
    assert!(run(&whole).unwrap().needed);
    let wanted = dump(&open(&whole));
    for n in 0.. {
        let sim = up(&broken, Crash::KeepAll);
        sim.disk.crash_at(n);
        let _ = repair(&sim.env(), dir(), &mut |_, _| {});
        let over = sim.disk.operations() < n;
        let crash = [Crash::Random, Crash::LoseAll, Crash::KeepAll][n as usize % 3];
        let sim = up(&sim, crash);
        run(&sim).unwrap();
        assert!(dump(&open(&sim)) == wanted, "crash at {n}: other content");
        if over {
            break;
        }
    }
}

//! Bits flip in every file. What is read is right, or an error that names the file; never wrong,
//! never a panic. And the formats stay what they are: golden files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_env::Disk;
use quorate_env::sim::{Crash, Sim, SimDisk};

use super::crash::{dump, try_dump};
use super::workload::{DATA, FAR, META, Workload, dir, keyspaces, tiny, tiny_apart};
use crate::{
    Batch, Compression, Engine, ErrorKind, KeyRange, Lsm, Model, Options, Prefix, ReadAt, Result,
    WriteOptions,
};

/// A store with tables in some levels and batches in the log, and the states on the way there.
pub(super) fn store(options: &Options) -> (SimDisk, Vec<String>) {
    let sim = Sim::new(3);
    let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
    let model = Model::new(&keyspaces());
    let mut work = Workload::new(11);
    work.keys = 30;
    let mut states = vec![dump(&model)];
    for n in 0..70 {
        let batch = work.batch();
        lsm.write(&batch, WriteOptions::SYNCED).unwrap();
        model.write(&batch, WriteOptions::SYNCED).unwrap();
        states.push(dump(&model));
        if n == 30 {
            lsm.compact_all().unwrap();
        }
    }
    lsm.close().unwrap();
    (sim.disk.clone(), states)
}

/// A fresh copy of a disk.
pub(super) fn copy(disk: &SimDisk) -> Sim {
    let sim = Sim::new(1);
    Sim {
        disk: disk.crash_with(Crash::KeepAll),
        ..sim
    }
}

/// Opens, reads everything, compacts everything, reads again.
fn use_it(sim: &Sim, options: &Options) -> Result<String> {
    let lsm = Lsm::open(&sim.env(), dir(), options.clone())?;
    let before = try_dump(&lsm)?;
    let work = Workload::new(2);
    for _ in 0..20 {
        lsm.get(DATA, &work.key(), &ReadAt::version(15))?;
        lsm.get(META, &work.key(), &ReadAt::NEWEST)?;
    }
    lsm.compact_all()?;
    let after = try_dump(&lsm)?;
    assert_eq!(before, after, "compaction changed what is read");
    Ok(before)
}

#[test]
fn lsm_flipped_bits_are_found_or_harmless() {
    flip_bits(&Options {
        wal: true,
        ..tiny()
    });
}

#[test]
fn lsm_flipped_bits_are_found_or_harmless_with_values_apart() {
    flip_bits(&Options {
        wal: true,
        ..tiny_apart()
    });
}

fn flip_bits(options: &Options) {
    let (disk, states) = store(options);
    let last = states.len() - 1;
    let sound = use_it(&copy(&disk), options).unwrap();
    assert!(sound == states[last], "the store is sound before");
    let names = disk.crash_with(Crash::KeepAll).list(dir()).unwrap();
    let mut found = 0;
    for name in names
        .iter()
        .filter(|name| name.contains('.') || *name == "CURRENT")
    {
        let path = dir().join(name);
        let size = copy(&disk).disk.read(&path).unwrap().len() as u64;
        // Every byte of small files; of larger ones so many that all parts are hit.
        let step = (size / 200).max(1);
        for byte in (0..size).step_by(step as usize) {
            let sim = copy(&disk);
            sim.disk.flip_bit(&path, byte * 8 + byte % 8).unwrap();
            match use_it(&sim, options) {
                Ok(state) => assert!(state == states[last], "wrong data: {name}, byte {byte}"),
                Err(error) => {
                    found += 1;
                    let known = [ErrorKind::Corruption, ErrorKind::Incompatible];
                    assert!(
                        known.contains(&error.kind()),
                        "{name}, byte {byte}: {error}"
                    );
                    assert!(error.message().contains("/store"), "{error}");
                }
            }
        }
    }
    assert!(found > 300, "only {found} flips were found");
}

#[test]
fn lsm_damaged_log_is_reported_and_a_torn_end_is_not() {
    let options = Options {
        wal: true,
        memtable_bytes: 1 << 20,
        wal_segment_bytes: 64 << 10,
        ..tiny()
    };
    let (disk, states) = store(&options);
    let path = Path::new("/store/wal/0000000000000001.log");
    let (mut reported, mut cut) = (0, 0);
    for byte in (0..24_000).step_by(97) {
        let sim = copy(&disk);
        sim.disk.flip_bit(path, byte * 8 + 1).unwrap();
        match use_it(&sim, &options) {
            Ok(state) => {
                // Only the end may be missing: nothing proves that the last record was synced.
                let at = states.iter().position(|s| *s == state).unwrap();
                assert!(
                    at >= states.len() - 2,
                    "the damage at {byte} cut the log at {at}"
                );
                cut += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                assert!(error.message().contains("0000000000000001.log"), "{error}");
                reported += 1;
            }
        }
    }
    assert!(
        reported > 20 && cut > 20,
        "{reported} reported, {cut} without harm"
    );
}

#[test]
fn lsm_missing_or_foreign_tables_are_found() {
    let options = Options {
        wal: true,
        ..tiny()
    };
    let (disk, _) = store(&options);
    let names = copy(&disk).disk.list(dir()).unwrap();
    let tables: Vec<_> = names
        .iter()
        .filter(|name| name.ends_with(".table"))
        .collect();
    let (one, other) = (dir().join(tables[0]), dir().join(tables[1]));
    let sim = copy(&disk);
    sim.disk.remove(&one).unwrap();
    assert_eq!(
        use_it(&sim, &options).unwrap_err().kind(),
        ErrorKind::Corruption
    );
    let sim = copy(&disk);
    let content = sim.disk.read(&other).unwrap();
    sim.disk.remove(&one).unwrap();
    sim.disk
        .create(&one)
        .unwrap()
        .write_all_at(&content, 0)
        .unwrap();
    assert_eq!(
        use_it(&sim, &options).unwrap_err().kind(),
        ErrorKind::Corruption
    );
    let sim = copy(&disk);
    sim.disk.remove(&dir().join("CURRENT")).unwrap();
    assert_eq!(
        use_it(&sim, &options).unwrap_err().kind(),
        ErrorKind::Corruption
    );
}

#[test]
fn lsm_newer_format_is_refused() {
    let (disk, _) = store(&Options {
        wal: true,
        ..tiny()
    });
    let sim = copy(&disk);
    let path = dir().join("CURRENT");
    let mut bytes = sim.disk.read(&path).unwrap();
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    sim.disk.write_atomic(&path, &bytes).unwrap();
    let refused = Lsm::open(&sim.env(), dir(), tiny()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Incompatible, "{refused}");
    assert!(refused.message().contains("format 2"), "{refused}");
}

fn golden_options(compression: Compression) -> Options {
    let mut options = Options {
        keyspaces: keyspaces(),
        wal: false,
        auto_compact: false,
        large_value_bytes: 64,
        compression,
        ..Options::default()
    };
    options.keyspaces[0].prefix = Prefix::Delimiter(b'/');
    options.keyspaces[1].ttl = Some(Duration::from_secs(1 << 30));
    options
}

/// The files of a small store, without log, of which every byte is settled.
fn golden_store(options: &Options) -> Sim {
    let sim = Sim::new(1);
    let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
    for round in 0..2u64 {
        let mut batch = Batch::new();
        for n in 0..100u64 {
            let key = format!("key/{n:05}");
            batch.put_at(DATA, key.as_bytes(), 1000 * round + n, &[n as u8; 20]);
        }
        batch.delete_at(DATA, b"key/00007", 5000 + round);
        batch.put(META, b"round", &[round as u8]);
        batch.put(META, b"gone", b"soon");
        batch.put_at(FAR, b"large", 1 + round, &[round as u8; 200]);
        batch.put_at(FAR, b"larger", 1 + round, &large_value());
        batch.delete_range(META, KeyRange::new(b"a", b"h"));
        let tail = KeyRange {
            lower: b"key/00090",
            upper: None,
        };
        batch.delete_range_at(DATA, tail, 6000 + round);
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
        if round == 0 {
            lsm.compact_all().unwrap();
        }
    }
    lsm.close().unwrap();
    drop(lsm);
    sim
}

/// One that does not compress.
fn large_value() -> Vec<u8> {
    (0..200u64).map(|n| (n * n * 131 % 251) as u8).collect()
}

/// To be written anew, by the environment variable `QUORATE_BLESS`, only with a new format version,
/// into folders of its own (or while no release has the format). Compressed bytes may change with the
/// compressor: they are only read.
#[test]
fn lsm_golden_files_of_format_1_are_read_and_still_written() {
    check_golden(Compression::None, "plain");
    check_golden(Compression::Lz4, "lz4");
    #[cfg(feature = "zstd")]
    check_golden(Compression::Zstd, "zstd");
}

#[cfg(not(feature = "zstd"))]
#[test]
fn zstd_is_refused_without_the_feature() {
    let wanted = golden_options(Compression::Zstd);
    let sim = Sim::new(1);
    let refused = Lsm::open(&sim.env(), dir(), wanted).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    let sim = load_golden("zstd");
    let before = sim.disk.list(dir()).unwrap();
    let env = sim.env();
    for refused in [
        Lsm::open(&env, dir(), golden_options(Compression::Lz4)).map(drop),
        Lsm::open_read_only(&env, dir()).map(drop),
        crate::inspect::Inspection::open(&env, dir()).map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Incompatible, "{refused}");
        let text = refused.message();
        assert!(
            text.contains("/store/") && text.contains("feature zstd"),
            "{text}"
        );
    }
    let mut after = sim.disk.list(dir()).unwrap();
    after.retain(|name| name != "LOCK");
    let before: Vec<_> = before.into_iter().filter(|n| n != "LOCK").collect();
    assert_eq!(before, after, "nothing was changed");
}

#[cfg(feature = "zstd")]
#[test]
fn zstd_store_is_smaller_and_reads_back() {
    let size = |compression| {
        let options = Options {
            compression,
            wal: true,
            ..tiny_apart()
        };
        let (disk, states) = store(&options);
        assert!(use_it(&copy(&disk), &options).unwrap() == states[states.len() - 1]);
        let lsm = Lsm::open(&copy(&disk).env(), dir(), options).unwrap();
        lsm.compact_all().unwrap();
        let stats = lsm.stats();
        stats.levels.iter().map(|l| l.size_bytes).sum::<u64>() + stats.value_bytes
    };
    let (none, zstd) = (size(Compression::None), size(Compression::Zstd));
    assert!(zstd < none, "{zstd} against {none}");
}

fn golden_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/format-1")
        .join(name)
}

/// A machine with the golden files on its disk.
fn load_golden(name: &str) -> Sim {
    let sim = Sim::new(1);
    sim.disk.create_dir_all(dir()).unwrap();
    for entry in std::fs::read_dir(golden_folder(name)).unwrap() {
        let path = entry.unwrap().path();
        let ours = dir().join(path.file_name().unwrap());
        let file = sim.disk.create(&ours).unwrap();
        file.write_all_at(&std::fs::read(&path).unwrap(), 0)
            .unwrap();
    }
    sim
}

fn check_golden(compression: Compression, name: &str) {
    let options = golden_options(compression);
    let written = golden_store(&options);
    let names = written.disk.list(dir()).unwrap();
    if std::env::var_os("QUORATE_BLESS").is_some() {
        let folder = golden_folder(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        for name in &names {
            let content = written.disk.read(&dir().join(name)).unwrap();
            std::fs::write(folder.join(name), content).unwrap();
        }
    }
    let old = load_golden(name);
    assert_eq!(old.disk.list(dir()).unwrap(), names);
    for name in names.iter().filter(|_| compression == Compression::None) {
        let path = dir().join(name);
        let (golden, now) = (old.disk.read(&path), written.disk.read(&path));
        assert!(
            golden.unwrap() == now.unwrap(),
            "{name} is written differently"
        );
    }
    let lsm = Lsm::open(&old.env(), dir(), options).unwrap();
    assert!(lsm.stats().value_files > 0, "there are values apart");
    let entry = lsm
        .get(DATA, b"key/00042", &ReadAt::version(999))
        .unwrap()
        .unwrap();
    assert_eq!(
        (entry.version, entry.value.as_ref()),
        (42, [42; 20].as_slice())
    );
    assert_eq!(lsm.get(DATA, b"key/00007", &ReadAt::NEWEST).unwrap(), None);
    let newest = |key: &[u8]| lsm.get(META, key, &ReadAt::NEWEST).unwrap();
    assert_eq!(newest(b"round").unwrap().value.as_ref(), [1]);
    assert_eq!(newest(b"gone"), None);
    let far = |key: &[u8]| lsm.get(FAR, key, &ReadAt::NEWEST).unwrap();
    assert_eq!(far(b"large").unwrap().value, [1; 200].as_slice());
    assert_eq!(far(b"larger").unwrap().value, large_value());
    let at = |version| lsm.get(DATA, b"key/00095", &ReadAt::version(version));
    assert_eq!(at(5999).unwrap().unwrap().version, 1095);
    assert_eq!(at(6000).unwrap(), None);
}

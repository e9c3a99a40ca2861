//! Records, pointers, windows; and which files are collected.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use quorate_env::sim::Sim;
use quorate_env::{Disk, Random};

use super::builder::ValueBuilder;
use super::*;
use crate::cache::BlockCache;
use crate::key::Kind;
use crate::levels::{Shelf, TableMeta};
use crate::options::Compression;
use crate::planted::{self, Bug};
use crate::table::Properties;

fn dir() -> &'static Path {
    Path::new("/values")
}

fn shelf(sim: &Sim) -> Arc<Shelf> {
    shelf_with_cache(sim, 0)
}

fn shelf_with_cache(sim: &Sim, bytes: u64) -> Arc<Shelf> {
    sim.disk.create_dir_all(dir()).unwrap();
    let cache = Arc::new(BlockCache::new(bytes, 4096));
    Arc::new(Shelf::new(sim.env().disk, dir(), cache))
}

/// A table that needs so many records and bytes of value files.
fn table(number: u64, shares: &[(u64, u64, u64)]) -> TableMeta {
    let share = |(file, records, bytes): &(u64, u64, u64)| {
        let (records, bytes) = (*records, *bytes);
        (*file, Share { records, bytes })
    };
    TableMeta {
        number,
        size_bytes: 100,
        properties: Properties {
            shares: shares.iter().map(share).collect(),
            ..Properties::default()
        },
        ingested: None,
    }
}

fn meta(number: u64, records: u64, bytes: u64) -> ValueMeta {
    ValueMeta {
        number,
        all: Share { records, bytes },
        value_bytes: bytes,
        compression: Compression::None,
    }
}

/// Encoded pointers, and the values that they point to.
type Pointed = Vec<(Vec<u8>, Vec<u8>)>;

/// Value files with random values, and where each value lies.
fn written(sim: &Sim, shelf: &Arc<Shelf>, files: u64) -> (ValueFiles, Pointed) {
    let mut all = ValueFiles::default();
    let mut values = Vec::new();
    for number in 1..=files {
        let compression = [Compression::None, Compression::Lz4][number as usize % 2];
        let mut builder = ValueBuilder::create(shelf, number, compression).unwrap();
        for n in 0..200 {
            let length = sim.random.below(5000) as usize;
            let value: Vec<u8> = match n % 2 {
                0 => vec![number as u8; length],
                _ => (0..length).map(|_| sim.random.next_u64() as u8).collect(),
            };
            let mut pointer = Vec::new();
            builder.add(&value).unwrap().encode(&mut pointer);
            values.push((pointer, value));
        }
        let meta = builder.finish().unwrap();
        all.add(&[meta], shelf);
    }
    (all, values)
}

/// Reads values in runs, with holes, forward and back and anywhere, from several files in turn.
fn read_in_any_order(seed: u64) -> Result<(), String> {
    let sim = Sim::new(seed);
    // Without a cache, with one that holds a part, and with one for all.
    let cache = [0, 500 << 10, 64 << 20][seed as usize % 3];
    let (files, values) = written(&sim, &shelf_with_cache(&sim, cache), 4);
    let mut reader = ValueReader::new(Arc::new(files), !seed.is_multiple_of(4));
    let random = Random::from_seed(seed);
    let mut at = [0_i64; 4];
    for _ in 0..1500 {
        let file = random.below(4) as usize;
        at[file] += match random.below(20) {
            0 => random.below(200) as i64 - 100,
            1..=3 => 2 + random.below(8) as i64,
            4 | 5 => -1,
            _ => 1,
        };
        let n = at[file].rem_euclid(200) as usize + file * 200;
        let got = reader
            .get(&values[n].0, Bytes::new())
            .map_err(|e| e.to_string())?;
        if got != values[n].1 {
            return Err(format!("seed {seed}: value {n} is another"));
        }
    }
    Ok(())
}

#[test]
fn value_windows_give_every_value_in_any_order() {
    for seed in 0..24 {
        read_in_any_order(seed).unwrap();
    }
}

#[test]
fn value_windows_check_notices_files_mixed_up() {
    let bug = Bug::WindowsAreMixedUp;
    assert!(planted::is_noticed(bug, || read_in_any_order(0)));
}

#[test]
fn value_read_twice_is_read_from_the_disk_once_if_there_is_a_cache() {
    for (cache, most) in [(16 << 20, 0), (0, 800)] {
        let sim = Sim::new(3);
        let (files, values) = written(&sim, &shelf_with_cache(&sim, cache), 4);
        let get_all = || {
            for (pointer, value) in &values {
                assert_eq!(files.get_value(pointer).unwrap(), value);
            }
        };
        get_all();
        let before = sim.disk.reads();
        get_all();
        assert_eq!(sim.disk.reads() - before, most);
        let mut reader = ValueReader::new(Arc::new(files.clone()), true);
        let before = sim.disk.reads();
        for (pointer, value) in &values {
            assert_eq!(reader.get(pointer, Bytes::new()).unwrap(), value);
        }
        assert_eq!(sim.disk.reads() > before, cache == 0);
    }
}

#[test]
fn value_pointers_and_footers_are_read_as_written_or_refused() {
    let pointer = Pointer {
        file: 300,
        offset: 1 << 40,
        size: 70_000,
    };
    let mut bytes = Vec::new();
    pointer.encode(&mut bytes);
    assert_eq!(Pointer::decode(&bytes), Some(pointer));
    for cut in 0..bytes.len() {
        assert_eq!(Pointer::decode(&bytes[..cut]), None);
    }
    bytes.push(0);
    assert_eq!(Pointer::decode(&bytes), None, "more than a pointer");
    let meta = meta(7, 3, 1000);
    let path = Path::new("/x");
    let footer = meta.encode_footer();
    assert_eq!(ValueMeta::decode_footer(path, &footer).unwrap(), meta);
    for byte in 0..footer.len() {
        let mut wrong = footer;
        wrong[byte] ^= 4;
        assert!(ValueMeta::decode_footer(path, &wrong).is_err(), "{byte}");
    }
}

/// Two files of one value each, alike but for the content, whose records change places.
fn swap_records() -> Result<(), String> {
    let sim = Sim::new(1);
    let shelf = shelf(&sim);
    let mut files = ValueFiles::default();
    let mut pointers = Vec::new();
    for (number, byte) in [(1, b'a'), (2, b'b')] {
        let mut builder = ValueBuilder::create(&shelf, number, Compression::None).unwrap();
        let mut pointer = Vec::new();
        builder.add(&[byte; 100]).unwrap().encode(&mut pointer);
        pointers.push(pointer);
        files.add(&[builder.finish().unwrap()], &shelf);
    }
    let path = |number| value_path(dir(), number);
    let records = [1, 2].map(|n| sim.disk.read(&path(n)).unwrap()[64..][..109].to_vec());
    for (number, record) in [(1, &records[1]), (2, &records[0])] {
        let file = sim.disk.open(&path(number)).unwrap();
        file.write_all_at(record, 64).unwrap();
    }
    for pointer in &pointers {
        if let Ok(value) = files.get_value(pointer) {
            return Err(format!("read {value:?} of another file"));
        }
    }
    Ok(())
}

#[test]
fn value_of_another_file_does_not_match() {
    swap_records().unwrap();
}

#[test]
fn value_place_check_notices_checksums_without_the_file() {
    let bug = Bug::ValuesForgetTheirFile;
    assert!(planted::is_noticed(bug, swap_records));
}

#[test]
fn value_files_live_as_long_as_tables_need_them() {
    let sim = Sim::new(1);
    let shelf = shelf(&sim);
    let mut files = ValueFiles::default();
    files.add(&[meta(1, 10, 1000), meta(2, 10, 1000)], &shelf);
    let (a, b) = (
        table(11, &[(1, 4, 400)]),
        table(12, &[(1, 6, 600), (2, 1, 100)]),
    );
    files.need(&a).unwrap();
    files.need(&b).unwrap();
    assert!(files.sweep().unwrap().is_empty());
    let dead = |files: &ValueFiles| files.iter().map(Held::dead_bytes).collect::<Vec<_>>();
    assert_eq!(dead(&files), [0, 900]);
    files.release(&b).unwrap();
    let gone = files.sweep().unwrap();
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].meta.number, 2);
    assert_eq!(dead(&files), [600]);
    // What does not fit is refused.
    assert!(files.clone().need(&b).is_err(), "file 2 is gone");
    assert!(files.clone().release(&table(13, &[(1, 5, 1)])).is_err());
    let mut too_much = files.clone();
    too_much.need(&table(14, &[(1, 7, 700)])).unwrap();
    assert!(too_much.sweep().is_err());
}

#[test]
fn collection_takes_the_most_wasted_first_and_not_too_many() {
    let sim = Sim::new(1);
    let mut files = ValueFiles::default();
    let metas = [1, 2, 3, 4].map(|n| meta(n, 100, 1000));
    files.add(&metas, &shelf(&sim));
    // Alive: 90, 50, 20 and 40 percent.
    files
        .need(&table(
            9,
            &[(1, 9, 900), (2, 5, 500), (3, 2, 200), (4, 4, 400)],
        ))
        .unwrap();
    let files = Arc::new(files);
    let of = |percent, most| {
        let collect = Collect::wasted(&files, percent, most);
        collect.numbers.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(of(50, 10_000), [2, 3, 4]);
    assert_eq!(of(51, 10_000), [3, 4]);
    assert_eq!(of(50, 700), [3, 4]);
    assert_eq!(of(50, 1), [3], "one at least");
    assert!(of(90, 10_000).is_empty());
    assert_eq!(of(0, 10_000), [1, 2, 3, 4]);
}

#[test]
fn value_writer_splits_files_and_leaves_small_values() {
    let sim = Sim::new(1);
    let shelf = shelf(&sim);
    let (next, collect) = (AtomicU64::new(1), Collect::default());
    let options = ValueOptions {
        from_bytes: 10,
        file_bytes: 300,
        compression: Compression::None,
    };
    let mut writer = ValueWriter::new(&shelf, &next, options, &collect);
    let mut pointers = Vec::new();
    for (kind, length) in [(Kind::Put, 9), (Kind::Delete, 0)] {
        let value = vec![1; length];
        assert!(matches!(writer.place(kind, &value), Ok((k, v)) if k == kind && v == value));
    }
    for n in 0..8_u8 {
        let value = [n; 100];
        match writer.place(Kind::Put, &value) {
            Ok((Kind::Pointer, pointer)) => pointers.push(pointer.to_vec()),
            _ => panic!("value {n} is not apart"),
        }
    }
    let (metas, moved) = writer.finish().map_err(|e| e.to_string()).unwrap();
    assert_eq!((metas.len(), moved), (4, 0));
    let mut files = ValueFiles::default();
    files.add(&metas, &shelf);
    for (n, pointer) in pointers.iter().enumerate() {
        assert_eq!(
            files.get_value(pointer).unwrap(),
            Bytes::from(vec![n as u8; 100])
        );
    }
    let numbers: BTreeSet<u64> = metas.iter().map(|meta| meta.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4].into());
}

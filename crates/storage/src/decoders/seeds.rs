//! Valid encodings of everything, to be mutated.

use std::path::Path;
use std::sync::Arc;

use quorate_env::sim::Sim;

use super::SEALED_AT;
use crate::batch::Batch;
use crate::cache::BlockCache;
use crate::engine::KeyRange;
use crate::key::{Key, Kind, place};
use crate::levels::{Edit, Manifest, Shelf, TableMeta, manifest_path};
use crate::options::{Compression, KeyspaceId, KeyspaceOptions};
use crate::prefix::Prefix;
use crate::sync::atomic::AtomicU64;
use crate::table::block::BlockBuilder;
use crate::table::filter::FilterBuilder;
use crate::table::format::{Footer, Handle, Properties, seal_block};
use crate::table::{TableBuilder, TableOptions};
use crate::tombstones::{Mark, Tombstones};
use crate::values::{Collect, Pointer, Share, ValueMeta, ValueOptions, ValueWriter, value_path};

const PLAIN: KeyspaceId = KeyspaceId(1);
const VERSIONED: KeyspaceId = KeyspaceId(0);

fn a_batch() -> Batch {
    let mut batch = Batch::new();
    batch.put(PLAIN, b"key", b"value");
    batch.delete(PLAIN, b"gone");
    batch.put_at(VERSIONED, b"key", 300, &[7; 200]);
    batch.delete_at(VERSIONED, b"key", 301);
    batch.delete_range(PLAIN, KeyRange::new(b"a", b"b"));
    batch.delete_range_at(VERSIONED, KeyRange::ALL, 299);
    batch
}

fn record(batch: &Batch, first: u64) -> Vec<u8> {
    [&batch.header(first)[..], batch.operations()].concat()
}

pub(super) fn batches() -> Vec<Vec<u8>> {
    vec![record(&a_batch(), 77), record(&Batch::new(), 1)]
}

fn some_tombstones() -> Tombstones {
    let mut all = Tombstones::default();
    for (n, (from, to)) in [("a", "m"), ("f", "t"), ("x", "y")].into_iter().enumerate() {
        let mark = Mark {
            version: 10 * n as u64,
            sequence: 5 + n as u64,
        };
        let (from, to) = (
            place(VERSIONED, from.as_bytes()),
            place(VERSIONED, to.as_bytes()),
        );
        all.insert(&from, &to, mark);
    }
    all
}

pub(super) fn range_deletions() -> Vec<Vec<u8>> {
    vec![some_tombstones().encode(), Tombstones::default().encode()]
}

fn some_properties() -> Properties {
    let mut properties = Properties::default();
    for n in 0..5u64 {
        let place = place(VERSIONED, &[n as u8]);
        let key = Key {
            place: &place,
            version: n,
            sequence: n + 100,
            kind: Kind::Put,
        };
        properties.count(&key, b"value");
        properties.ended_with(&place);
    }
    let far = place(VERSIONED, b"far");
    let key = Key {
        place: &far,
        version: 1,
        sequence: 200,
        kind: Kind::Pointer,
    };
    properties.count(&key, &pointers()[0]);
    properties.ended_with(&far);
    properties.count_tombstones(&some_tombstones());
    properties
}

pub(super) fn properties() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    some_properties().encode(&mut out);
    vec![out]
}

fn some_edits() -> Vec<Edit> {
    let meta = |number, ingested| {
        Arc::new(TableMeta {
            number,
            size_bytes: 5000,
            properties: some_properties(),
            ingested,
        })
    };
    let first = Edit {
        keyspaces: vec![
            KeyspaceOptions::versioned(0, "data"),
            KeyspaceOptions::plain(1, "meta"),
        ],
        added: vec![(0, meta(9, None)), (3, meta(4, Some(50)))],
        values: vec![ValueMeta {
            number: 1,
            all: Share {
                records: 3,
                bytes: 15_000,
            },
            value_bytes: 20_000,
            compression: Compression::Lz4,
        }],
        flushed_sequence: Some(200),
        next_file: Some(10),
        watermarks: vec![(VERSIONED, 12)],
        ..Edit::default()
    };
    let second = Edit {
        removed: vec![(0, 9), (3, 4)],
        next_file: Some(300),
        ..Edit::default()
    };
    vec![first, second]
}

pub(super) fn edits() -> Vec<Vec<u8>> {
    some_edits().iter().map(Edit::encode).collect()
}

pub(super) fn blocks() -> Vec<Vec<u8>> {
    [1, 4, 16]
        .into_iter()
        .map(|interval| a_block(interval, 40))
        .collect()
}

fn a_block(interval: usize, entries: u64) -> Vec<u8> {
    let mut builder = BlockBuilder::new(interval);
    for n in 0..entries {
        let place = place(VERSIONED, format!("key/{:05}", n / 3).as_bytes());
        let key = Key {
            place: &place,
            version: 90 - n % 3,
            sequence: n * 50 % 7,
            kind: [Kind::Put, Kind::Delete][usize::from(n % 5 == 0)],
        };
        builder.add(&key, &[n as u8; 5][..n as usize % 5]);
    }
    builder.finish().to_vec()
}

pub(super) fn indexes() -> Vec<Vec<u8>> {
    let mut builder = BlockBuilder::new(1);
    for n in 0..20u64 {
        let place = place(VERSIONED, format!("key/{n:05}").as_bytes());
        let handle = Handle {
            offset: 64 + 4000 * n,
            size: 4000,
        };
        builder.add(&Key::last_of(&place), &handle.encode());
    }
    vec![builder.finish().to_vec()]
}

pub(super) fn filters() -> Vec<Vec<u8>> {
    let filter = |bits| {
        let mut builder = FilterBuilder::new(bits);
        (0..100u8).for_each(|n| builder.add(&[n]));
        builder.finish()
    };
    vec![filter(1), filter(10), filter(0)]
}

pub(super) fn sealed_blocks() -> Vec<Vec<u8>> {
    [Compression::None, Compression::Lz4]
        .into_iter()
        .map(|compression| {
            let mut out = Vec::new();
            seal_block(&mut out, SEALED_AT, &a_block(16, 200), compression);
            out
        })
        .collect()
}

pub(super) fn footers() -> Vec<Vec<u8>> {
    let handle = |offset, size| Handle { offset, size };
    let footer = Footer {
        index: handle(1000, 100),
        filter: handle(1100, 70),
        properties: handle(1170, 50),
        tombstones: handle(0, 0),
    };
    vec![footer.encode().to_vec()]
}

pub(super) fn tables() -> Vec<Vec<u8>> {
    [Compression::None, Compression::Lz4]
        .into_iter()
        .map(a_table)
        .collect()
}

fn a_table(compression: Compression) -> Vec<u8> {
    let (env, path) = (Sim::new(1).env(), Path::new("/t"));
    let options = TableOptions {
        block_bytes: 200,
        filter_bits_per_key: 10,
        compression,
        prefixes: [(VERSIONED, Prefix::Delimiter(b'/'))].into(),
        written_ms: 7,
    };
    env.disk
        .create_dir_all(Path::new("/"))
        .expect("there is room");
    let mut builder = TableBuilder::create(env.disk.as_ref(), path, options).expect("it is new");
    for n in 0..60u64 {
        let place = place(VERSIONED, format!("key/{n:05}").as_bytes());
        let key = Key {
            place: &place,
            version: n,
            sequence: n,
            kind: Kind::Put,
        };
        builder.add(&key, &[n as u8; 30]).expect("they ascend");
    }
    builder.set_tombstones(some_tombstones());
    builder.finish().expect("there is room");
    env.disk.read(path).expect("it is there")
}

pub(super) fn pointers() -> Vec<Vec<u8>> {
    let pointer = Pointer {
        file: 1,
        offset: 64,
        size: 5000,
    };
    let mut out = Vec::new();
    pointer.encode(&mut out);
    vec![out]
}

pub(super) fn values() -> Vec<Vec<u8>> {
    [Compression::None, Compression::Lz4]
        .into_iter()
        .map(a_value_file)
        .collect()
}

/// File 1, of a few values.
fn a_value_file(compression: Compression) -> Vec<u8> {
    let (env, dir) = (Sim::new(1).env(), Path::new("/v"));
    env.disk.create_dir_all(dir).expect("there is room");
    let cache = Arc::new(BlockCache::new(1 << 16, 4096));
    let shelf = Shelf::new(Arc::clone(&env.disk), dir, cache);
    let (next_file, nothing) = (AtomicU64::new(1), Collect::default());
    let options = ValueOptions {
        from_bytes: 1,
        file_bytes: u64::MAX,
        compression,
    };
    let mut writer = ValueWriter::new(&shelf, &next_file, options, &nothing);
    for n in 1..9u8 {
        let value = [n; 100];
        let placed = writer.place(Kind::Put, &value);
        assert!(placed.is_ok(), "there is room");
    }
    writer.finish().expect("there is room");
    env.disk.read(&value_path(dir, 1)).expect("it is there")
}

pub(super) fn manifests() -> Vec<Vec<u8>> {
    let (env, dir) = (Sim::new(1).env(), Path::new("/m"));
    env.disk.create_dir_all(dir).expect("there is room");
    let edits = some_edits();
    let mut manifest = Manifest::begin(&env.disk, dir, 7, &edits[0]).expect("it is new");
    manifest.append(&edits[1]).expect("there is room");
    vec![env.disk.read(&manifest_path(dir, 7)).expect("it is there")]
}

pub(super) fn currents() -> Vec<Vec<u8>> {
    let (env, dir) = (Sim::new(1).env(), Path::new("/c"));
    env.disk.create_dir_all(dir).expect("there is room");
    Manifest::begin(&env.disk, dir, 7, &some_edits()[0]).expect("it is new");
    vec![env.disk.read(&dir.join("CURRENT")).expect("it is there")]
}

pub(super) fn logs() -> Vec<Vec<u8>> {
    let (env, dir) = (Sim::new(1).env(), Path::new("/l"));
    let options = quorate_log::LogOptions {
        segment_bytes: 8 << 10,
        prepare_segments: false,
        ..Default::default()
    };
    let log = quorate_log::Log::open(&env, dir, options, &mut |_, _| Ok(())).expect("it is new");
    for n in 0..5u64 {
        let record = record(&a_batch(), 1 + 6 * n);
        let durability = [
            quorate_log::Durability::Synced,
            quorate_log::Durability::Buffered,
        ];
        let appended = log.append(&[&record], durability[n as usize % 2]);
        appended.expect("there is room");
    }
    vec![
        env.disk
            .read(&dir.join("0000000000000001.log"))
            .expect("it is there"),
    ]
}

//! Every decoder of this crate and of the log, as functions of arbitrary bytes: for fuzzers, and for the
//! test that mutates valid encodings. In no build but those.
//!
//! A decoder must not panic, whatever it is given, nor run or allocate out of proportion. What it accepts
//! is encoded again and must decode to the same. Here nothing is caught: a panic is the finding.
#![doc(hidden)]

mod mend;
mod seeds;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_env::Env;
use quorate_env::sim::Sim;

use crate::batch::Batch;
use crate::cache::BlockCache;
use crate::codec::Reader;
use crate::cursor::Cursor;
use crate::header;
use crate::key::{Key, place};
use crate::levels::{Edit, Manifest, Shelf, TableMeta, manifest_path};
use crate::lsm::open::number_of;
use crate::options::KeyspaceId;
use crate::table::block::{Block, BlockCursor};
use crate::table::filter::Filter;
use crate::table::format::{FOOTER_BYTES, Footer, Properties, open_block};
use crate::table::index::Index;
use crate::table::{Table, TableCursor, check_blocks, describe};
use crate::tombstones::Tombstones;
use crate::values::{Pointer, ValueFile, check_values, describe_values, value_path};

/// A decoder.
pub struct Target {
    /// What it decodes.
    pub name: &'static str,
    /// Decodes, and encodes what was accepted.
    pub run: fn(&[u8]),
    /// Valid encodings.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Makes checksums match, so that what lies behind them is reached.
    pub mend: fn(&mut [u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "batch",
        run: batch,
        seeds: seeds::batches,
        mend: |_| {},
    },
    Target {
        name: "edit",
        run: edit,
        seeds: seeds::edits,
        mend: |_| {},
    },
    Target {
        name: "properties",
        run: properties,
        seeds: seeds::properties,
        mend: |_| {},
    },
    Target {
        name: "range-deletions",
        run: range_deletions,
        seeds: seeds::range_deletions,
        mend: |_| {},
    },
    Target {
        name: "block",
        run: block,
        seeds: seeds::blocks,
        mend: |_| {},
    },
    Target {
        name: "index",
        run: index,
        seeds: seeds::indexes,
        mend: |_| {},
    },
    Target {
        name: "filter",
        run: filter,
        seeds: seeds::filters,
        mend: |_| {},
    },
    Target {
        name: "sealed-block",
        run: sealed_block,
        seeds: seeds::sealed_blocks,
        mend: |bytes| mend::block(bytes, SEALED_AT),
    },
    Target {
        name: "footer",
        run: footer,
        seeds: seeds::footers,
        mend: mend::footer,
    },
    Target {
        name: "table",
        run: table,
        seeds: seeds::tables,
        mend: mend::table,
    },
    Target {
        name: "pointer",
        run: pointer,
        seeds: seeds::pointers,
        mend: |_| {},
    },
    Target {
        name: "values",
        run: values,
        seeds: seeds::values,
        mend: mend::values,
    },
    Target {
        name: "manifest",
        run: manifest,
        seeds: seeds::manifests,
        mend: mend::manifest,
    },
    Target {
        name: "current",
        run: current,
        seeds: seeds::currents,
        mend: mend::current,
    },
    Target {
        name: "log",
        run: log,
        seeds: seeds::logs,
        mend: mend::log,
    },
    Target {
        name: "file-name",
        run: file_name,
        seeds: || vec![b"0000000000000001.table".to_vec(), b"ff.manifest".to_vec()],
        mend: |_| {},
    },
];

/// Where the sealed block lies that is decoded.
const SEALED_AT: u64 = 64;

/// A machine whose disk holds one file.
fn with_file(path: &Path, bytes: &[u8]) -> Env {
    let env = Sim::new(1).env();
    let dir = path.parent().unwrap_or(Path::new("/"));
    let make = || -> std::io::Result<()> {
        env.disk.create_dir_all(dir)?;
        env.disk.create(path)?.write_all_at(bytes, 0)
    };
    make().expect("the simulated disk takes a file");
    env
}

fn batch(bytes: &[u8]) {
    let Ok((first, batch)) = Batch::decode(bytes) else {
        return;
    };
    let again = [&batch.header(first)[..], batch.operations()].concat();
    assert_eq!(Batch::decode(&again), Ok((first, batch)));
}

fn edit(bytes: &[u8]) {
    if let Some(edit) = Edit::decode(bytes) {
        assert_eq!(Edit::decode(&edit.encode()), Some(edit));
    }
}

fn properties(bytes: &[u8]) {
    if let Some(properties) = Properties::decode(&mut Reader::new(bytes)) {
        let mut out = Vec::new();
        properties.encode(&mut out);
        let again = Properties::decode(&mut Reader::new(&out));
        assert_eq!(again, Some(properties));
    }
}

fn range_deletions(bytes: &[u8]) {
    if let Some(all) = Tombstones::decode(bytes) {
        black_box(all.around(bytes).marks.len());
        assert_eq!(Tombstones::decode(&all.encode()), Some(all));
    }
}

/// Keys before, behind and among those of the seeds.
fn targets(bytes: &[u8]) -> Vec<Vec<u8>> {
    let some = bytes.get(5..9).unwrap_or_default();
    let keyspace = KeyspaceId(0);
    vec![
        Vec::new(),
        place(keyspace, b"key/00007"),
        place(keyspace, some),
        vec![0xff; 9],
    ]
}

fn block(bytes: &[u8]) {
    let Ok(block) = Block::new(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let mut cursor = BlockCursor::new(block.clone());
    let mut forward = 0;
    let mut moved = cursor.seek_to_first();
    while moved.is_ok() && cursor.valid() {
        forward += 1;
        black_box((cursor.key().place.len(), cursor.value().len()));
        moved = cursor.next();
    }
    let sound = moved.is_ok();
    let mut back = 0;
    let mut moved = cursor.seek_to_last();
    while moved.is_ok() && cursor.valid() {
        back += 1;
        black_box(cursor.value_bytes());
        moved = cursor.prev();
        assert!(back <= bytes.len(), "going back ends");
    }
    assert!(
        !sound || moved.is_err() || back <= forward,
        "entries appear"
    );
    for place in targets(bytes) {
        let target = Key::seek(&place, 50);
        let _ = black_box(block.find(&target, u64::MAX));
        let _ = cursor.seek(&target);
        let _ = cursor.seek_before(&target);
    }
}

fn index(bytes: &[u8]) {
    let block = Block::new(Bytes::copy_from_slice(bytes));
    let Ok(index) = block.and_then(|block| Index::new(block, 1 << 20)) else {
        return;
    };
    for place in targets(bytes) {
        let found = index.position(&Key::seek(&place, 50));
        assert!(found.is_err() || found.is_ok_and(|n| n <= index.len()));
    }
    let _ = index.for_each(|place, handle| {
        black_box((place.len(), handle.end()));
    });
}

fn filter(bytes: &[u8]) {
    if let Ok(filter) = Filter::new(Bytes::copy_from_slice(bytes)) {
        for hash in [0, 1, u64::MAX, 0x9e37_79b9_7f4a_7c15] {
            black_box(filter.may_hold(hash));
        }
    }
}

fn sealed_block(bytes: &[u8]) {
    let _ = black_box(open_block(bytes.to_vec(), SEALED_AT));
}

fn footer(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<FOOTER_BYTES>() else {
        return;
    };
    if let Ok(footer) = Footer::decode(Path::new("/f"), bytes) {
        let again = Footer::decode(Path::new("/f"), &footer.encode());
        assert_eq!(again.ok(), Some(footer));
    }
}

fn table(bytes: &[u8]) {
    let path = Path::new("/store/0000000000000001.table");
    let env = with_file(path, bytes);
    let Ok((_, size_bytes, properties)) = describe(env.disk.as_ref(), path) else {
        return;
    };
    let meta = TableMeta {
        number: 1,
        size_bytes,
        properties,
        ingested: None,
    };
    let cache = Arc::new(BlockCache::new(1 << 16, 4096));
    let Ok(table) = Table::open(env.disk.as_ref(), path, &meta, cache) else {
        return;
    };
    black_box(check_blocks(
        &table,
        &meta.properties,
        &|_| Ok(()),
        &mut |_| {},
    ));
    for place in targets(bytes) {
        let _ = black_box(table.get(&place, u64::MAX, u64::MAX, None));
    }
    let mut cursor = TableCursor::new(Arc::new(table), true, None);
    let mut entries = 0;
    let mut moved = cursor.seek_to_first();
    while moved.is_ok() && cursor.valid() {
        entries += 1;
        assert!(entries < 1 << 20, "going on ends");
        moved = cursor.next();
    }
}

fn pointer(bytes: &[u8]) {
    if let Some(pointer) = Pointer::decode(bytes) {
        let mut out = Vec::new();
        pointer.encode(&mut out);
        assert_eq!(Pointer::decode(&out), Some(pointer));
    }
}

fn values(bytes: &[u8]) {
    let dir = Path::new("/store");
    let path = value_path(dir, 1);
    let env = with_file(&path, bytes);
    let Ok(meta) = describe_values(env.disk.as_ref(), &path) else {
        return;
    };
    let cache = Arc::new(BlockCache::new(1 << 16, 4096));
    let shelf = Arc::new(Shelf::new(Arc::clone(&env.disk), dir, cache));
    let file = ValueFile::new(meta, &shelf);
    let (records, problems) = check_values(&file, &mut |_| {});
    for (offset, size) in [(64, 16), (u64::MAX, u32::MAX), (bytes.len() as u64, 5)] {
        let pointer = Pointer {
            file: 1,
            offset,
            size,
        };
        let found = file.get(&pointer);
        assert!(found.is_err() || !problems.is_empty() || records.hold(&pointer));
    }
}

fn manifest(bytes: &[u8]) {
    let dir = Path::new("/store");
    let env = with_file(&manifest_path(dir, 7), bytes);
    let (edits, _) = Manifest::read_sound(env.disk.as_ref(), dir, 7);
    for edit in edits {
        assert_eq!(Edit::decode(&edit.encode()), Some(edit));
    }
}

fn current(bytes: &[u8]) {
    let dir = Path::new("/store");
    let env = with_file(&dir.join("CURRENT"), bytes);
    let _ = black_box(Manifest::current(env.disk.as_ref(), dir));
    let _ = header::check(dir, b"QUORCUR\0", bytes);
}

fn log(bytes: &[u8]) {
    let dir = Path::new("/wal");
    let env = with_file(&dir.join("0000000000000001.log"), bytes);
    let mut scanned = Vec::new();
    let scan = quorate_log::scan(&env, dir, &mut |_, record| {
        batch(record);
        scanned.push(record.to_vec());
        Ok(())
    });
    let options = quorate_log::LogOptions {
        segment_bytes: 8 << 10,
        prepare_segments: false,
        ..Default::default()
    };
    let mut replayed = Vec::new();
    let opened = quorate_log::Log::open(&env, dir, options, &mut |_, record| {
        replayed.push(record.to_vec());
        Ok(())
    });
    if scan.is_ok() && opened.is_ok() {
        assert_eq!(scanned, replayed, "who looks sees what the owner sees");
    }
}

fn file_name(bytes: &[u8]) {
    if let Ok(name) = std::str::from_utf8(bytes) {
        black_box(number_of(name));
    }
}

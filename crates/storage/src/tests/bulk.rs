//! Loads in bulk: in any order, seen as one write, in bounded memory, all or nothing.

use quorate_env::Random;
use quorate_env::sim::{Crash, Sim};

use super::crash::up;
use super::workload::{DATA, META, dir, tiny};
use crate::{
    Batch, BulkLoad, Engine, ErrorKind, IterOptions, Lsm, Model, Options, ReadAt, WriteOptions,
};

fn options() -> Options {
    Options {
        table_bytes: 32 << 10,
        block_bytes: 1024,
        ..tiny()
    }
}

/// All entries of both keyspaces.
fn dump(engine: &dyn Engine) -> Vec<(u16, Vec<u8>, u64, Vec<u8>)> {
    let mut all = Vec::new();
    for keyspace in [DATA, META] {
        let options = IterOptions {
            all_versions: keyspace == DATA,
            ..IterOptions::default()
        };
        let mut iter = engine.iterate(keyspace, options).unwrap();
        iter.seek_to_first().unwrap();
        while iter.valid() {
            let (key, value) = (iter.key().to_vec(), iter.value().to_vec());
            all.push((keyspace.0, key, iter.version(), value));
            iter.next().unwrap();
        }
    }
    all
}

/// Adds random entries to a load and to a model, some of them more than once.
fn add(load: &mut BulkLoad<'_>, model: &Model, random: &Random, count: u64, most: u64) {
    for n in 0..count {
        let key = random.below(count / 2).to_be_bytes();
        let value = vec![n as u8; random.below(200) as usize];
        let mut batch = Batch::new();
        match random.below(3) {
            0 => {
                let version = 100 + random.below(3);
                batch.put_at(DATA, &key, version, &value);
                load.put_at(DATA, &key, version, &value).unwrap();
            }
            _ => {
                batch.put(META, &key, &value);
                load.put(META, &key, &value).unwrap();
            }
        }
        model.write(&batch, WriteOptions::APPLY).unwrap();
        let takes = load.stats().memory_bytes;
        assert!(takes <= most, "{takes} of {most} bytes after {n}");
    }
}

/// A store and a model with some of the keys already, at lower versions.
fn begun(sim: &Sim, options: &Options) -> (Lsm, Model) {
    let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
    let model = Model::new(&options.keyspaces);
    for n in 0..300_u64 {
        let mut batch = Batch::new();
        batch.put_at(DATA, &(n * 3).to_be_bytes(), 5, b"old");
        batch.put(META, &(n * 3).to_be_bytes(), b"old");
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
        model.write(&batch, WriteOptions::APPLY).unwrap();
    }
    (lsm, model)
}

#[test]
fn bulk_load_in_any_order_is_one_write_in_bounded_memory() {
    let sim = Sim::new(1);
    let random = Random::from_seed(1);
    let memory = 128 << 10;
    let (lsm, model) = begun(&sim, &options());
    let before = dump(&lsm);
    let snapshot = lsm.snapshot();
    let mut load = lsm.bulk_load(memory).unwrap();
    // 10 times as much as it may hold.
    add(&mut load, &model, &random, 12_000, memory);
    assert!(load.stats().flushes > 10);
    assert!(dump(&lsm) == before, "it was seen before its end");
    let sequence = load.finish().unwrap();
    assert_eq!(sequence, lsm.stats().sequence);
    assert!(dump(&lsm) == dump(&model));
    let at = ReadAt {
        snapshot: Some(snapshot),
        ..ReadAt::NEWEST
    };
    let old = lsm.get(META, &0_u64.to_be_bytes(), &at).unwrap().unwrap();
    assert_eq!(old.value.as_ref(), b"old");
    let left = sim.env().disk.list(&dir().join("bulk")).unwrap();
    assert!(
        left.iter().all(|name| name == "LOCK" || name == "runs"),
        "{left:?}"
    );
    // It goes on, and so does the store after a restart.
    lsm.compact_all().unwrap();
    lsm.close().unwrap();
    drop(lsm);
    let lsm = Lsm::open(&sim.env(), dir(), options()).unwrap();
    assert!(dump(&lsm) == dump(&model));
}

#[test]
fn bulk_load_that_is_dropped_leaves_nothing_and_two_at_once_are_refused() {
    let sim = Sim::new(2);
    let (lsm, model) = begun(&sim, &options());
    let random = Random::from_seed(2);
    let mut load = lsm.bulk_load(64 << 10).unwrap();
    let other = Model::new(&options().keyspaces);
    add(&mut load, &other, &random, 500, 64 << 10);
    let second = lsm.bulk_load(64 << 10).err().unwrap();
    assert_eq!(second.kind(), ErrorKind::AlreadyOpen, "{second}");
    drop(load);
    assert!(dump(&lsm) == dump(&model));
    let mut load = lsm.bulk_load(64 << 10).unwrap();
    for refused in [
        load.put(DATA, b"key", b"versions are missing"),
        load.put_at(META, b"key", 1, b"versions are kept"),
        load.put(META, &[0; 70_000], b""),
        lsm.bulk_load(1).map(drop),
    ] {
        let kind = refused.unwrap_err().kind();
        assert!(matches!(
            kind,
            ErrorKind::InvalidArgument | ErrorKind::AlreadyOpen
        ));
    }
    load.put(META, b"key", b"value").unwrap();
    load.finish().unwrap();
    let found = lsm.get(META, b"key", &ReadAt::NEWEST).unwrap().unwrap();
    assert_eq!(found.value.as_ref(), b"value");
    assert_eq!(dump(&lsm).len(), dump(&model).len() + 1);
}

#[test]
fn bulk_load_that_the_power_ends_is_there_as_a_whole_or_not_at_all() {
    let mut whole = 0;
    for n in 0.. {
        let sim = Sim::new(3);
        let (lsm, model) = begun(&sim, &options());
        lsm.flush().unwrap();
        let before = dump(&lsm);
        // Most operations of the scratch engine are like each other.
        let at = sim.disk.operations() + n * 17;
        sim.disk.crash_at(at);
        let run = || {
            let mut load = lsm.bulk_load(64 << 10)?;
            for n in 0..400_u64 {
                let key = (n * 7919 % 400).to_be_bytes();
                load.put(META, &key, &[7; 100])?;
            }
            load.finish()
        };
        let done = run().is_ok();
        let over = sim.disk.operations() < at;
        for n in 0..400_u64 {
            let mut batch = Batch::new();
            batch.put(META, &n.to_be_bytes(), &[7; 100]);
            model.write(&batch, WriteOptions::APPLY).unwrap();
        }
        drop(lsm);
        let up = up(
            &sim,
            [Crash::Random, Crash::LoseAll, Crash::KeepAll][n as usize % 3],
        );
        let lsm = Lsm::open(&up.env(), dir(), options()).unwrap();
        let found = dump(&lsm);
        let all = found == dump(&model);
        assert!(
            all || !done && found == before,
            "crash {n}: neither before nor after"
        );
        whole += u64::from(all);
        // The next one clears what is left.
        let mut load = lsm.bulk_load(64 << 10).unwrap();
        load.put(META, b"later", b"later").unwrap();
        load.finish().unwrap();
        assert_eq!(dump(&lsm).len(), found.len() + 1);
        if over {
            break;
        }
    }
    assert!(whole > 0, "it was never there");
}

//! Tables made outside: what is refused, what is seen by whom, where they go, and the power going at
//! every disk operation while they are taken in. The random comparison with the model takes some in
//! as well.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_env::sim::{Crash, Fault, Sim, SimDisk};
use quorate_env::{Disk, Env};

use super::crash::{Script, dump, up};
use super::workload::{AtEnd, DATA, FAR, META, Workload, dir, keyspaces, tiny};
use crate::error::Error;
use crate::planted::{self, Bug};
use crate::{
    Batch, Engine, ErrorKind, IngestOptions, IterOptions, KeyRange, KeyspaceId, Lsm, Model,
    Options, ReadAt, TableWriter, WriteOptions,
};

/// Keyspace, key, version from above.
type EntryKey = (KeyspaceId, Vec<u8>, Reverse<u64>);

/// Sorted entries; `None` is a deletion.
pub(super) struct Tables {
    entries: BTreeMap<EntryKey, Option<Vec<u8>>>,
    /// The second table begins here.
    split: (KeyspaceId, Vec<u8>),
}

impl Tables {
    pub(super) fn random(work: &mut Workload) -> Self {
        let mut entries = BTreeMap::new();
        for _ in 0..work.random.below(12) {
            for op in work.batch().iter() {
                let key = (
                    op.keyspace,
                    op.key.to_vec(),
                    Reverse(op.version.unwrap_or(0)),
                );
                let value = (op.kind == crate::key::Kind::Put).then(|| op.value.to_vec());
                entries.insert(key, value);
            }
        }
        Tables {
            entries,
            split: (work.keyspace(), work.key()),
        }
    }

    /// All in one batch.
    pub(super) fn as_batch(&self) -> Batch {
        let mut batch = Batch::new();
        for ((id, key, version), value) in &self.entries {
            match (*id == META, value) {
                (true, Some(value)) => batch.put(*id, key, value),
                (true, None) => batch.delete(*id, key),
                (false, Some(value)) => batch.put_at(*id, key, version.0, value),
                (false, None) => batch.delete_at(*id, key, version.0),
            }
        }
        batch
    }

    /// Writes them to up to two files.
    pub(super) fn write(&self, env: &Env, options: &Options, name: u64) -> Vec<PathBuf> {
        self.try_write(env, options, name).unwrap()
    }

    pub(super) fn try_write(
        &self,
        env: &Env,
        options: &Options,
        name: u64,
    ) -> crate::Result<Vec<PathBuf>> {
        let outside = Path::new("/outside");
        let made = env.disk.create_dir_all(outside);
        made.map_err(|e| Error::disk(outside, "can't make", &e))?;
        let mut files = Vec::new();
        for part in [false, true] {
            let path = outside.join(format!("{name}-{part}"));
            let mut writer = TableWriter::create(env, &path, options)?;
            for ((id, key, version), value) in &self.entries {
                if ((*id, key) >= (self.split.0, &self.split.1)) != part {
                    continue;
                }
                let added = match (*id == META, value) {
                    (true, Some(value)) => writer.put(*id, key, value),
                    (true, None) => writer.delete(*id, key),
                    (false, Some(value)) => writer.put_at(*id, key, version.0, value),
                    (false, None) => writer.delete_at(*id, key, version.0),
                };
                added?;
            }
            if !writer.is_empty() {
                writer.finish()?;
                files.push(path);
            }
        }
        Ok(files)
    }
}

fn open(sim: &Sim, options: &Options) -> Lsm {
    Lsm::open(&sim.env(), dir(), options.clone()).unwrap()
}

fn put(lsm: &Lsm, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(META, key, value);
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
}

fn get(lsm: &Lsm, key: &[u8], at: &ReadAt) -> Option<Vec<u8>> {
    let found = lsm.get(META, key, at).unwrap();
    found.map(|entry| entry.value.to_vec())
}

/// A table of plain keys, all with one value.
fn table(env: &Env, name: &str, keys: &[&[u8]], value: &[u8]) -> PathBuf {
    env.disk.create_dir_all(Path::new("/outside")).unwrap();
    let path = Path::new("/outside").join(name);
    let mut writer = TableWriter::create(env, &path, &tiny()).unwrap();
    for key in keys {
        writer.put(META, key, value).unwrap();
    }
    writer.finish().unwrap();
    path
}

#[test]
fn table_writer_refuses_what_is_not_sorted() {
    let env = Sim::new(1).env();
    env.disk.create_dir_all(dir()).unwrap();
    let path = dir().join("new");
    let mut writer = TableWriter::create(&env, &path, &tiny()).unwrap();
    writer.put_at(DATA, b"b", 7, b"v").unwrap();
    let refused = [
        writer.put_at(DATA, b"a", 9, b"v"),
        writer.put_at(DATA, b"b", 7, b"v"),
        writer.delete_at(DATA, b"b", 8),
        writer.put(DATA, b"c", b"v"),
        writer.put_at(META, b"c", 1, b"v"),
        writer.put(KeyspaceId(5), b"c", b"v"),
        writer.put_at(DATA, &[b'c'; 70_000], 1, b"v"),
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    let error = writer.put_at(DATA, b"a\xff", 9, b"v").unwrap_err();
    let said = error.message();
    assert!(
        said.contains("/store/new") && said.contains("a\\xff"),
        "{said}"
    );
    writer.put_at(DATA, b"b", 6, b"v").unwrap();
    writer.delete(META, b"a").unwrap();
    let refused = writer.put_at(DATA, b"z", 1, b"v").unwrap_err();
    assert!(refused.message().contains("keyspace 1"), "{refused}");
    writer.finish().unwrap();
    assert!(
        TableWriter::create(&env, &path, &tiny()).is_err(),
        "it is there"
    );
    let empty = TableWriter::create(&env, &dir().join("empty"), &tiny()).unwrap();
    assert_eq!(
        empty.finish().unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert!(!env.disk.exists(&dir().join("empty")).unwrap());
}

#[test]
fn lsm_ingest_refuses_what_it_can_not_take_and_does_nothing() {
    let sim = Sim::new(1);
    let env = sim.env();
    let lsm = open(&sim, &tiny());
    put(&lsm, b"k", b"old");
    let one = table(&env, "one", &[b"a", b"m"], b"v");
    let overlapping = table(&env, "two", &[b"b"], b"v");
    let file = env.disk.create(Path::new("/outside/no-table")).unwrap();
    file.write_all_at(&[7; 300], 0).unwrap();
    let other = Options {
        keyspaces: vec![crate::KeyspaceOptions::plain(9, "other")],
        ..tiny()
    };
    let foreign = PathBuf::from("/outside/foreign");
    let mut writer = TableWriter::create(&env, &foreign, &other).unwrap();
    writer.put(KeyspaceId(9), b"k", b"v").unwrap();
    writer.finish().unwrap();
    lsm.flush().unwrap();
    put(&lsm, b"k", b"newer");
    let snapshot = lsm.snapshot();
    put(&lsm, b"k", b"newest");
    lsm.flush().unwrap();
    lsm.compact_all().unwrap();
    drop(snapshot);
    let names = env.disk.list(dir()).unwrap();
    let own = names.iter().find(|name| name.ends_with(".table")).unwrap();
    let flipped = table(&env, "flipped", &[b"q"], b"v");
    sim.disk.flip_bit(&flipped, 8 * 66).unwrap();
    let verify = IngestOptions {
        verify: true,
        ..IngestOptions::default()
    };
    let wrong: [(Vec<PathBuf>, ErrorKind); 6] = [
        (vec![one.clone(), overlapping], ErrorKind::InvalidArgument),
        (vec!["/outside/no-table".into()], ErrorKind::Corruption),
        (vec!["/outside/missing".into()], ErrorKind::Io),
        (vec![foreign], ErrorKind::InvalidArgument),
        (vec![dir().join(own)], ErrorKind::InvalidArgument),
        (vec![flipped], ErrorKind::Corruption),
    ];
    for (files, kind) in wrong {
        let refused = lsm.ingest(&files, &verify).unwrap_err();
        assert_eq!(refused.kind(), kind, "{files:?}: {refused}");
    }
    let missing = IngestOptions {
        excise: &[(KeyspaceId(77), KeyRange::ALL)],
        ..verify
    };
    assert!(lsm.ingest(&[], &missing).is_err());
    assert_eq!(
        env.disk.list(dir()).unwrap(),
        names,
        "nothing is left behind"
    );
    assert_eq!(get(&lsm, b"k", &ReadAt::NEWEST).unwrap(), b"newest");
    lsm.ingest(&[one], &verify).unwrap();
    assert_eq!(get(&lsm, b"m", &ReadAt::NEWEST).unwrap(), b"v");
}

/// What a read says of six keys, by lookups and by an iterator.
fn look(lsm: &Lsm, at: &ReadAt) -> String {
    let keys: [&[u8]; 6] = [b"a", b"b", b"k", b"l", b"m", b"z"];
    let text = |key: &&[u8]| {
        let value = get(lsm, key, at).unwrap_or(b"-".to_vec());
        String::from_utf8(value).unwrap()
    };
    let got: Vec<String> = keys.iter().map(text).collect();
    let options = IterOptions {
        at: at.clone(),
        ..IterOptions::default()
    };
    let listed = super::conformance::try_list(lsm, META, &options).unwrap();
    let there = got.iter().filter(|value| *value != "-").count();
    assert_eq!(listed.len(), there, "an iterator sees something else");
    got.join(" ")
}

/// What is seen of an ingest over and under other writes; `Err` says what is wrong.
fn visibility() -> Result<(), String> {
    let sim = Sim::new(1);
    let options = Options {
        auto_compact: false,
        ..tiny()
    };
    let lsm = open(&sim, &options);
    put(&lsm, b"a", b"old");
    lsm.compact_all().unwrap();
    put(&lsm, b"k", b"above");
    put(&lsm, b"l", b"above");
    lsm.flush().unwrap();
    let before = ReadAt::snapshot(&lsm.snapshot());
    let file = table(&sim.env(), "t", &[b"b", b"k", b"m"], b"new");
    let sequence = lsm.ingest(&[file], &IngestOptions::default());
    let sequence = sequence.map_err(|e| e.to_string())?;
    let after = ReadAt::snapshot(&lsm.snapshot());
    assert_eq!(sequence, lsm.stats().sequence);
    assert_eq!(sequence, lsm.flushed_sequence());
    put(&lsm, b"m", b"later");
    let check = |lsm: &Lsm, at: &ReadAt, wanted: &str| match look(lsm, at) {
        got if got == wanted => Ok(()),
        got => Err(format!("at {at:?}: {got} instead of {wanted}")),
    };
    for _ in 0..2 {
        check(&lsm, &ReadAt::NEWEST, "old new new above later -")?;
        check(&lsm, &before, "old - above above - -")?;
        check(&lsm, &after, "old new new above new -")?;
        lsm.compact_all().unwrap();
    }
    lsm.close().unwrap();
    drop(lsm);
    let lsm = open(&sim, &options);
    check(&lsm, &ReadAt::NEWEST, "old new new above later -")
}

#[test]
fn lsm_ingest_is_one_write_among_others() {
    visibility().unwrap();
}

#[test]
fn ingest_check_notices_a_wrong_level_and_a_missing_sequence() {
    for bug in [Bug::IngestTooDeep, Bug::IngestWithoutSequence] {
        assert!(
            planted::is_noticed(bug, visibility),
            "nobody missed {bug:?}"
        );
    }
}

#[test]
fn lsm_ingest_goes_as_deep_as_it_fits() {
    let sim = Sim::new(1);
    let options = Options {
        auto_compact: false,
        ..tiny()
    };
    let lsm = open(&sim, &options);
    let files = |level: usize| lsm.stats().levels[level].files;
    let none = IngestOptions::default();
    let take = |name: &str, keys: &[&[u8]]| {
        lsm.ingest(&[table(&sim.env(), name, keys, b"v")], &none)
            .unwrap();
    };
    take("bottom", &[b"a", b"f"]);
    take("beside", &[b"g", b"h"]);
    assert_eq!(files(6), 2);
    take("over", &[b"b", b"c"]);
    assert_eq!((files(6), files(5)), (2, 1));
    put(&lsm, b"c", b"memory");
    take("over memory", &[b"c", b"d"]);
    assert_eq!(files(0), 2, "what was written before lies below");
    assert_eq!(get(&lsm, b"c", &ReadAt::NEWEST).unwrap(), b"v");
    let excise = [(META, KeyRange::ALL)];
    let all = IngestOptions {
        excise: &excise,
        ..none
    };
    let file = table(&sim.env(), "alone", &[b"a", b"z"], b"alone");
    lsm.ingest(&[file], &all).unwrap();
    assert_eq!(files(6), 1);
    let tables: u64 = lsm.stats().levels.iter().map(|l| l.files).sum();
    assert_eq!(tables, 1, "what is excised makes room");
    assert_eq!(get(&lsm, b"c", &ReadAt::NEWEST), None);
}

/// A store, what is taken in, and the dumps before and after.
struct Case {
    script: Script,
    tables: Tables,
    batch: Batch,
    before: String,
    after: String,
}

const RANGE: KeyRange<'static> = KeyRange {
    lower: b"shared prefix/\0",
    upper: Some(b"shared prefix/\x04"),
};

impl Case {
    fn new(seed: u64, wal: bool) -> Self {
        let script = Script::new(seed, wal, 40);
        let mut work = Workload::new(seed + 100);
        work.keys = 20;
        let tables = loop {
            let tables = Tables::random(&mut work);
            if tables.entries.len() > 5 {
                break tables;
            }
        };
        let mut batch = Batch::new();
        batch.put(META, b"applied", b"42");
        let model = Model::new(&keyspaces());
        let how = WriteOptions::default();
        for batch in &script.batches {
            model.write(batch, how).unwrap();
        }
        let before = dump(&model);
        model.remove_range(DATA, RANGE);
        model.remove_range(FAR, KeyRange::ALL);
        model.write(&tables.as_batch(), how).unwrap();
        model.write(&batch, how).unwrap();
        Case {
            before,
            after: dump(&model),
            script,
            tables,
            batch,
        }
    }

    fn how(&self) -> WriteOptions {
        match self.script.options.wal {
            true => WriteOptions::SYNCED,
            false => WriteOptions::APPLY,
        }
    }

    /// Takes everything in, over a store that holds the script.
    fn ingest(&self, lsm: &Lsm, files: &[PathBuf]) -> crate::Result<u64> {
        let excise = [(DATA, RANGE), (FAR, KeyRange::ALL)];
        let options = IngestOptions {
            excise: &excise,
            batch: Some(&self.batch),
            move_files: true,
            verify: false,
        };
        lsm.ingest(files, &options)
    }

    /// Crashes at every operation of an ingest into a store that was closed; returns how often what
    /// came was there.
    fn crash_everywhere(&self, wrap: &dyn Fn(Env) -> Env) -> Result<usize, String> {
        let store = Sim::new(5);
        let lsm = open(&store, &self.script.options);
        for batch in &self.script.batches {
            lsm.write(batch, self.how()).unwrap();
        }
        lsm.close().unwrap();
        drop(lsm);
        let mut there = 0;
        for n in 0.. {
            let sim = up(&store, Crash::KeepAll);
            let env = wrap(sim.env());
            let files = self.tables.write(&env, &self.script.options, 1);
            let lsm = Lsm::open(&env, dir(), self.script.options.clone()).unwrap();
            sim.disk.crash_at(sim.disk.operations() + n);
            let limit = sim.disk.operations() + n;
            let done = self.ingest(&lsm, &files).is_ok();
            let over = sim.disk.operations() < limit;
            let kinds = [Crash::Random, Crash::LoseAll, Crash::Random, Crash::KeepAll];
            let up = up(&sim, kinds[n as usize % 4]);
            let opened = Lsm::open(&up.env(), dir(), self.script.options.clone());
            let lsm = opened.map_err(|e| format!("crash at {n}: {e}"))?;
            let found = super::crash::try_dump(&lsm).map_err(|e| format!("crash at {n}: {e}"))?;
            let known = found == self.after || !done && found == self.before;
            if !known {
                return Err(format!(
                    "crash at {n}, done {done}: neither before nor after"
                ));
            }
            there += usize::from(found == self.after);
            // Life goes on.
            put_anyhow(&lsm, self.how());
            lsm.compact_all().map_err(|e| e.to_string())?;
            if over {
                break;
            }
        }
        Ok(there)
    }
}

fn put_anyhow(lsm: &Lsm, how: WriteOptions) {
    let mut batch = Batch::new();
    batch.put(META, b"later", b"later");
    lsm.write(&batch, how).unwrap();
    assert_eq!(get(lsm, b"later", &ReadAt::NEWEST).unwrap(), b"later");
}

#[test]
fn lsm_crash_while_ingesting_leaves_all_or_nothing() {
    for seed in 0..3 {
        for wal in [true, false] {
            let case = Case::new(seed, wal);
            assert!(case.before != case.after);
            let there = case.crash_everywhere(&|env| env).unwrap();
            assert!(there > 0, "it was never there");
        }
    }
}

#[test]
fn ingest_check_notices_an_edit_before_the_sync_and_a_range_off_by_one() {
    // The tables' own sync is forgotten as well: their maker may not have made one.
    let forget = |env: Env| super::crash::forgetful(env, "/outside/1-false");
    for bug in [Bug::IngestUnsynced, Bug::ExciseOffByOne] {
        let noticed = (0..8).any(|seed| {
            let case = Case::new(seed, true);
            planted::is_noticed(bug, || case.crash_everywhere(&forget).map(|_| ()))
        });
        assert!(noticed, "nobody missed {bug:?}");
    }
    let sound = Case::new(0, true);
    assert!(
        sound.crash_everywhere(&forget).is_ok(),
        "it syncs by itself"
    );
}

#[test]
fn lsm_ingest_that_fails_leaves_nothing_and_blocks_nobody() {
    let case = Case::new(1, false);
    let sim = Sim::new(1);
    let lsm = open(&sim, &case.script.options);
    for batch in &case.script.batches {
        lsm.write(batch, case.how()).unwrap();
    }
    lsm.flush().unwrap();
    let files = case.tables.write(&sim.env(), &case.script.options, 1);
    let space = |sim: &Sim| u64::MAX - sim.disk.space(dir()).unwrap().free;
    sim.jobs.pump_all();
    sim.disk.set_capacity(Some(space(&sim) + 10));
    let failed = case.ingest(&lsm, &files).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::DiskFull, "{failed}");
    sim.disk.set_capacity(None);
    assert_eq!(dump(&lsm), case.before);
    lsm.retry();
    sim.jobs.pump_all();
    lsm.flush().unwrap();
    case.ingest(&lsm, &files).unwrap();
    assert_eq!(dump(&lsm), case.after);
    assert!(!sim.disk.exists(&files[0]).unwrap(), "it was moved in");
    // A sync that fails while the edit is made leaves the store in doubt.
    let files = case.tables.write(&sim.env(), &case.script.options, 2);
    let begun = sim.disk.operations();
    case.ingest(&lsm, &files).unwrap();
    assert!(sim.disk.operations() > begun);
    lsm.close().unwrap();
    drop(lsm);
    let lsm = open(&sim, &case.script.options);
    assert_eq!(dump(&lsm), case.after, "again the same");
    let names = sim.disk.list(dir()).unwrap();
    let on_disk = names.iter().filter(|name| name.ends_with(".table")).count() as u64;
    let known: u64 = lsm.stats().levels.iter().map(|level| level.files).sum();
    assert_eq!(on_disk, known);
}

#[test]
fn lsm_ingest_whose_sync_fails_poisons() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &tiny());
    let mut batch = Batch::new();
    batch.put(META, b"k", b"v");
    let options = IngestOptions {
        batch: Some(&batch),
        ..IngestOptions::default()
    };
    sim.disk.inject(Fault::Sync);
    assert!(lsm.ingest(&[], &options).is_err());
    let refused = lsm.ingest(&[], &options).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Poisoned, "{refused}");
    assert_eq!(get(&lsm, b"k", &ReadAt::NEWEST), None);
}

/// Ingests on real threads beside writers and readers: what comes in together is seen together.
#[test]
fn lsm_ingest_beside_writers_is_seen_whole() {
    let disk: Arc<SimDisk> = Arc::new(Sim::new(1).disk);
    let env = Env {
        disk,
        ..Env::real(2)
    };
    let options = Options {
        wal: true,
        wal_segment_bytes: 256 << 10,
        memtable_bytes: 32 << 10,
        ..tiny()
    };
    let lsm = Lsm::open(&env, dir(), options.clone()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0u64.. {
                let mut batch = Batch::new();
                batch.put_at(FAR, &[n as u8], n + 1, &[1; 100]);
                lsm.write(&batch, WriteOptions::default()).unwrap();
                if done.load(Ordering::Acquire) {
                    return;
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let options = IterOptions::default();
                let listed = super::conformance::try_list(&lsm, META, &options).unwrap();
                let values: Vec<_> = listed.iter().map(|look| look.2).collect();
                assert!(values.windows(2).all(|w| w[0] == w[1]), "{values:?}");
                assert!(matches!(listed.len(), 0 | 4), "{listed:?}");
            }
        });
        let _done = AtEnd(&done);
        for round in 0..40u8 {
            let name = format!("{round}");
            let keys: [&[u8]; 3] = [&[round], &[round, 1], &[200]];
            let file = table(&env, &name, &keys, &[round; 10]);
            let mut batch = Batch::new();
            batch.put(META, b"with", &[round; 10]);
            let ingest = IngestOptions {
                excise: &[(META, KeyRange::ALL)],
                batch: Some(&batch),
                ..IngestOptions::default()
            };
            lsm.ingest(&[file], &ingest).unwrap();
        }
    });
    lsm.close().unwrap();
}

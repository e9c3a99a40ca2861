//! Both engines agree under random operations: writes, reads at versions and snapshots, iterators
//! moved at random, flushes, compactions, reopening.

use quorate_env::Env;
use quorate_env::sim::Sim;

use super::ingest::Tables;
use super::workload::{
    DATA, META, Workload, dir, keyspaces, option_sets, random_options, seeds, write_options,
};
use crate::{
    Batch, Engine, Entry, ErrorKind, IngestOptions, Iter, IterOptions, KeyRange, KeyspaceId, Lsm,
    Model, Options, ReadAt, Snapshot, WriteOptions,
};

/// One engine under test and what it should answer.
pub(super) struct Pair {
    env: Env,
    options: Options,
    /// Whether each opening is with other settings.
    varied: bool,
    lsm: Option<Lsm>,
    model: Model,
    snapshots: Vec<(Snapshot, Snapshot)>,
    /// Whether the watermark may rise; versions below it are then not compared.
    watermark: Option<u64>,
    work: Workload,
}

impl Pair {
    fn new(seed: u64, options: Options, with_watermark: bool) -> Self {
        let env = Sim::new(seed).env();
        let lsm = Lsm::open(&env, dir(), options.clone()).unwrap();
        let mut work = Workload::new(seed);
        work.replays = !with_watermark;
        Pair {
            env,
            lsm: Some(lsm),
            model: Model::new(&keyspaces()),
            snapshots: Vec::new(),
            watermark: with_watermark.then_some(0),
            work,
            options,
            varied: false,
        }
    }

    fn lsm(&self) -> &Lsm {
        self.lsm.as_ref().unwrap()
    }

    /// A random place to read at, for both.
    fn read_at(&self) -> (ReadAt, ReadAt) {
        let random = &self.work.random;
        let lowest = self.watermark.unwrap_or(0);
        let version = match random.one_in(2) {
            true => u64::MAX,
            false => lowest + random.below(self.work.version + 2 - lowest),
        };
        let mut at = (ReadAt::version(version), ReadAt::version(version));
        if !self.snapshots.is_empty() && random.one_in(2) {
            let n = random.below(self.snapshots.len() as u64) as usize;
            at.0.snapshot = Some(self.snapshots[n].0.clone());
            at.1.snapshot = Some(self.snapshots[n].1.clone());
        }
        at
    }

    fn step(&mut self) {
        match self.work.random.below(100) {
            0..=54 => self.write(),
            55..=69 => self.check_get(),
            70..=84 => self.check_iterator(),
            85..=87 => self.take_snapshot(),
            88..=90 => drop(self.snapshots.pop()),
            91..=93 => drop(self.lsm().flush().unwrap()),
            94 => self.compact(),
            95 => self.reopen(),
            96 => self.raise_watermark(),
            97 => self.remove(),
            98 => self.ingest(),
            _ => self.check_sizes(),
        }
    }

    fn write(&mut self) {
        let batch = self.work.batch();
        let options = write_options(&self.options, &self.work.random);
        self.lsm().write(&batch, options).unwrap();
        self.model.write(&batch, options).unwrap();
    }

    fn check_get(&self) {
        let (at, model_at) = self.read_at();
        let (keyspace, key) = (self.work.keyspace(), self.work.key());
        let got = self.lsm().get(keyspace, &key, &at).unwrap();
        let wanted = self.model.get(keyspace, &key, &model_at).unwrap();
        assert_eq!(got, wanted, "get {keyspace:?} {key:?} at {at:?}");
        let keys: Vec<Vec<u8>> = (0..self.work.random.below(20))
            .map(|_| self.work.key())
            .collect();
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let got = self.lsm().multi_get(keyspace, &keys, &at).unwrap();
        let wanted = self.model.multi_get(keyspace, &keys, &model_at).unwrap();
        assert_eq!(got, wanted, "multi_get {keyspace:?} {keys:?} at {at:?}");
        self.check_get_below_watermark(keyspace, &key);
    }

    /// History that may be gone is refused or right.
    fn check_get_below_watermark(&self, keyspace: KeyspaceId, key: &[u8]) {
        let Some(watermark) = self.watermark.filter(|watermark| *watermark > 0) else {
            return;
        };
        let at = ReadAt::version(self.work.random.below(watermark));
        match self.lsm().get(keyspace, key, &at) {
            Ok(got) => {
                let wanted = self.model.get(keyspace, key, &at).unwrap();
                assert_eq!(got, wanted, "get {keyspace:?} {key:?} below the watermark");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Dropped, "{error}"),
        }
    }

    fn check_iterator(&self) {
        let (at, model_at) = self.read_at();
        let random = &self.work.random;
        let keyspace = self.work.keyspace();
        let mut options = IterOptions {
            at,
            all_versions: self.watermark.is_none() && keyspace != META && random.one_in(3),
            ..IterOptions::default()
        };
        if random.one_in(2) {
            let (a, b) = (self.work.key(), self.work.key());
            options.lower = a.clone().min(b.clone());
            options.upper = Some(a.max(b)).filter(|_| !random.one_in(4));
        }
        let mut mine = self.lsm().iterate(keyspace, options.clone()).unwrap();
        options.at = model_at;
        let mut wanted = self.model.iterate(keyspace, options.clone()).unwrap();
        for _ in 0..random.below(60) {
            let key = self.work.key();
            let mut name = "";
            for iter in [&mut mine, &mut wanted] {
                // Both take the same step: drawn once, from a copy of the stream.
                name = self.walk(iter.as_mut(), &key, options.lower.len());
            }
            self.work.random.next_u64();
            assert_eq!(
                look(mine.as_ref()),
                look(wanted.as_ref()),
                "{name} {key:?} {options:?}"
            );
        }
    }

    fn walk(&self, iter: &mut dyn Iter, key: &[u8], salt: usize) -> &'static str {
        let n = (key.len() * 7 + key.last().map_or(0, |b| usize::from(*b)) + salt) % 16;
        let (name, moved) = match n {
            0 => ("first", iter.seek_to_first()),
            1 => ("last", iter.seek_to_last()),
            2 | 3 => ("seek", iter.seek(key)),
            4 | 5 => ("seek_for_prev", iter.seek_for_prev(key)),
            _ if !iter.valid() && n.is_multiple_of(2) => ("first", iter.seek_to_first()),
            _ if !iter.valid() => ("last", iter.seek_to_last()),
            6..=10 => ("next", iter.next()),
            _ => ("prev", iter.prev()),
        };
        moved.unwrap();
        name
    }

    fn take_snapshot(&mut self) {
        let pair = (self.lsm().snapshot(), self.model.snapshot());
        self.snapshots.insert(0, pair);
    }

    fn compact(&self) {
        if self.work.random.one_in(2) {
            self.lsm().compact_all().unwrap();
        } else {
            let (a, b) = (self.work.key(), self.work.key());
            let range = KeyRange::new(a.as_slice().min(&b), a.as_slice().max(&b));
            self.lsm()
                .compact_range(self.work.keyspace(), range)
                .unwrap();
        }
    }

    fn remove(&self) {
        let (a, b) = (self.work.key(), self.work.key());
        let upper = Some(a.as_slice().max(&b)).filter(|_| !self.work.random.one_in(4));
        let lower = a.as_slice().min(&b);
        let range = KeyRange { lower, upper };
        let keyspace = self.work.keyspace();
        self.lsm().remove_range(keyspace, range).unwrap();
        self.model.remove_range(keyspace, range);
    }

    fn ingest(&mut self) {
        let tables = Tables::random(&mut self.work);
        let random = &self.work.random;
        let (a, b) = (self.work.key(), self.work.key());
        let range = KeyRange::new(a.as_slice().min(&b), a.as_slice().max(&b));
        let excise = [(DATA, range), (META, KeyRange::ALL)];
        let excise = &excise[..random.below(3) as usize];
        let mut batch = Batch::new();
        if random.one_in(2) {
            batch.put(META, &self.work.key(), b"with the tables");
        }
        let files = tables.write(&self.env, &self.options, random.next_u64());
        let options = IngestOptions {
            excise,
            batch: Some(&batch),
            move_files: true,
            verify: random.one_in(2),
        };
        self.lsm().ingest(&files, &options).unwrap();
        for (keyspace, range) in excise {
            self.model.remove_range(*keyspace, *range);
        }
        let how = WriteOptions::default();
        self.model.write(&tables.as_batch(), how).unwrap();
        self.model.write(&batch, how).unwrap();
    }

    fn reopen(&mut self) {
        self.snapshots.clear();
        self.lsm().close().unwrap();
        self.lsm = None;
        if self.varied {
            self.options = random_options(&self.work.random);
        }
        self.lsm = Some(Lsm::open(&self.env, dir(), self.options.clone()).unwrap());
    }

    fn raise_watermark(&mut self) {
        if let Some(watermark) = &mut self.watermark {
            *watermark = self.work.version;
            self.work.version += 1;
            for keyspace in keyspaces().iter().filter(|k| k.versioned) {
                let raised = self
                    .lsm
                    .as_ref()
                    .unwrap()
                    .set_watermark(keyspace.id, *watermark);
                raised.unwrap();
            }
        }
    }

    fn check_sizes(&self) {
        let keyspace = self.work.keyspace();
        let all = self
            .lsm()
            .approximate_bytes(keyspace, KeyRange::ALL)
            .unwrap();
        let (a, b) = (self.work.key(), self.work.key());
        let range = KeyRange::new(a.as_slice().min(&b), a.as_slice().max(&b));
        assert!(self.lsm().approximate_bytes(keyspace, range).unwrap() <= all);
        let middle = self.lsm().approximate_middle_key(keyspace, range).unwrap();
        if let Some(middle) = middle {
            assert!(range.lower < middle.as_slice() && middle.as_slice() < range.upper.unwrap());
        }
    }

    /// Everything, in both directions.
    fn check_all(&self) {
        for keyspace in keyspaces() {
            for all_versions in [false, true] {
                if all_versions && (self.watermark.is_some() || !keyspace.versioned) {
                    continue;
                }
                let options = IterOptions {
                    all_versions,
                    ..IterOptions::default()
                };
                let mine = list(self.lsm(), keyspace.id, &options);
                let wanted = list(&self.model, keyspace.id, &options);
                assert_eq!(mine, wanted, "all of {keyspace:?}");
            }
        }
    }
}

/// Key, version, length and hash of the value, whether it is a deletion.
pub(super) type Look = (Vec<u8>, u64, (usize, u64), bool);

/// What an iterator stands on.
fn look(iter: &dyn Iter) -> Option<Look> {
    iter.valid().then(|| {
        assert_eq!(iter.value(), iter.value_bytes());
        let deletion = iter.is_deletion();
        (
            iter.key().to_vec(),
            iter.version(),
            (iter.value().len(), xxhash_rust::xxh3::xxh3_64(iter.value())),
            deletion,
        )
    })
}

pub(super) type Listed = Vec<Look>;

/// All entries forward, which must be all entries back.
pub(super) fn list(engine: &dyn Engine, keyspace: KeyspaceId, options: &IterOptions) -> Listed {
    try_list(engine, keyspace, options).unwrap()
}

pub(super) fn try_list(
    engine: &dyn Engine,
    keyspace: KeyspaceId,
    options: &IterOptions,
) -> crate::Result<Listed> {
    let mut iter = engine.iterate(keyspace, options.clone())?;
    let (mut forward, mut back) = (Vec::new(), Vec::new());
    iter.seek_to_first()?;
    while let Some(entry) = look(iter.as_ref()) {
        forward.push(entry);
        iter.next()?;
    }
    iter.seek_to_last()?;
    while let Some(entry) = look(iter.as_ref()) {
        back.push(entry);
        iter.prev()?;
    }
    back.reverse();
    assert_eq!(forward, back, "the same both ways");
    Ok(forward)
}

pub(super) fn run(seed: u64, options: Options, with_watermark: bool, steps: usize) -> Pair {
    run_pair(Pair::new(seed, options, with_watermark), steps)
}

/// The same with other settings at each opening.
pub(super) fn run_varied(seed: u64, options: Options, with_watermark: bool, steps: usize) {
    let mut pair = Pair::new(seed, options, with_watermark);
    pair.varied = true;
    run_pair(pair, steps);
}

fn run_pair(mut pair: Pair, steps: usize) -> Pair {
    for _ in 0..steps {
        pair.step();
    }
    pair.check_all();
    pair.reopen();
    pair.check_all();
    pair.lsm().compact_all().unwrap();
    pair.check_all();
    pair
}

#[test]
fn engines_random_operations_agree() {
    for (set, options) in option_sets().into_iter().enumerate() {
        for seed in seeds(18) {
            let with_watermark = seed % 3 == 0;
            println!("option set {set}, seed {seed}");
            run(seed, options.clone(), with_watermark, 600);
        }
    }
}

#[test]
fn lsm_tiny_options_reach_deep_levels() {
    let pair = run(7, option_sets().remove(0), false, 3000);
    let stats = pair.lsm().stats();
    assert!(
        stats.levels[3..].iter().any(|level| level.files > 1),
        "{stats:?}"
    );
}

#[test]
fn lsm_keeps_its_word_on_versions_and_batches() {
    let env = Sim::new(1).env();
    let options = option_sets().remove(0);
    let lsm = Lsm::open(&env, dir(), options.clone()).unwrap();
    let mut batch = Batch::new();
    batch.put_at(DATA, b"k", 5, b"five");
    batch.put_at(DATA, b"k", 9, b"nine");
    batch.put(META, b"k", b"first");
    batch.put(META, b"k", b"second");
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    let at = |version| lsm.get(DATA, b"k", &ReadAt::version(version)).unwrap();
    let entry = |version, value: &'static str| {
        let value = value.into();
        Some(Entry { version, value })
    };
    assert_eq!(at(4), None);
    assert_eq!(at(8), entry(5, "five"));
    assert_eq!(at(u64::MAX), entry(9, "nine"));
    let newest = lsm.get(META, b"k", &ReadAt::NEWEST).unwrap();
    assert_eq!(newest, entry(0, "second"));
    // The watermark lets go of what only reads below it could see.
    lsm.set_watermark(DATA, 9).unwrap();
    lsm.compact_all().unwrap();
    let below = lsm.get(DATA, b"k", &ReadAt::version(8)).unwrap_err();
    assert_eq!(below.kind(), ErrorKind::Dropped);
    let all = IterOptions {
        all_versions: true,
        ..IterOptions::default()
    };
    assert_eq!(list(&lsm, DATA, &all).len(), 1);
    // A batch must suit its keyspaces.
    let mut wrong = Batch::new();
    wrong.put(DATA, b"k", b"v");
    let refused = lsm.write(&wrong, WriteOptions::APPLY).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let mut nowhere = Batch::new();
    nowhere.put(KeyspaceId(5), b"k", b"v");
    assert!(lsm.write(&nowhere, WriteOptions::APPLY).is_err());
    assert!(
        lsm.write(&batch, WriteOptions::SYNCED).is_err(),
        "there is no log"
    );
}

#[test]
fn lsm_multi_get_asks_for_each_block_once() {
    let lsm = Lsm::open(&Sim::new(1).env(), dir(), option_sets().remove(4)).unwrap();
    let key = |n: u64| n.to_be_bytes();
    let mut batch = Batch::new();
    for n in 0..4000 {
        batch.put(META, &key(n), &key(n));
    }
    lsm.write(&batch, WriteOptions::SYNCED).unwrap();
    lsm.compact_all().unwrap();
    let asked = || lsm.stats().cache_hits + lsm.stats().cache_misses;
    // From far and near, in no order, twice, and one that is not there.
    let numbers = (0..100).map(|n| n * 7919 % 100).chain([3999, 3999, 9999]);
    let keys: Vec<_> = numbers.clone().map(key).collect();
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_slice()).collect();
    let before = asked();
    let answers = lsm.multi_get(META, &keys, &ReadAt::NEWEST).unwrap();
    let blocks = asked() - before;
    assert!(
        blocks <= 3,
        "{blocks} blocks for a hundred keys side by side"
    );
    for (n, answer) in numbers.zip(answers) {
        let value = answer.map(|entry| entry.value.to_vec());
        assert_eq!(value, (n < 4000).then(|| key(n).to_vec()), "{n}");
    }
    let none = lsm.multi_get(META, &[], &ReadAt::NEWEST).unwrap();
    assert!(none.is_empty());
    assert!(
        lsm.multi_get(KeyspaceId(5), &keys, &ReadAt::NEWEST)
            .is_err()
    );
}

#[test]
fn lsm_opening_checks_lock_and_keyspaces() {
    let env = Sim::new(1).env();
    let options = option_sets().remove(0);
    let lsm = Lsm::open(&env, dir(), options.clone()).unwrap();
    let again = Lsm::open(&env, dir(), options.clone()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyOpen);
    lsm.close().unwrap();
    let mut missing = options.clone();
    missing.keyspaces.remove(1);
    let mut changed = options.clone();
    changed.keyspaces[1].versioned = true;
    for wrong in [missing, changed] {
        let refused = Lsm::open(&env, dir(), wrong).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Incompatible, "{refused}");
    }
    let mut more = options;
    more.keyspaces
        .push(crate::KeyspaceOptions::plain(9, "more"));
    let lsm = Lsm::open(&env, dir(), more).unwrap();
    let mut batch = Batch::new();
    batch.put(KeyspaceId(9), b"k", b"v");
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    lsm.close().unwrap();
    let closed = lsm.write(&batch, WriteOptions::APPLY).unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed);
}

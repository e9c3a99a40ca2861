//! Values that expire: at once to reads, in compaction for good, whatever the clock does.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use quorate_env::sim::Sim;
use quorate_env::{Clock, Env};

use super::conformance::{list, try_list};
use super::workload::{Workload, dir, option_sets, seeds, tiny, write_options};
use crate::planted::{Bug, is_noticed};
use crate::{
    Batch, Compression, Condition, Engine, ErrorKind, IngestOptions, IterOptions, KeyspaceId,
    KeyspaceOptions, Lsm, Model, Options, ReadAt, TableWriter, WriteOptions,
};

const CACHE: KeyspaceId = KeyspaceId(0);
const HISTORY: KeyspaceId = KeyspaceId(1);
const KEPT: KeyspaceId = KeyspaceId(2);
const TTL: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options {
        keyspaces: vec![
            KeyspaceOptions::plain(0, "cache").with_ttl(TTL),
            KeyspaceOptions::versioned(1, "history").with_ttl(TTL),
            KeyspaceOptions::plain(2, "kept"),
        ],
        ..tiny()
    }
}

fn open(env: &Env, options: &Options) -> Lsm {
    Lsm::open(env, dir(), options.clone()).unwrap()
}

fn put(engine: &dyn Engine, keyspace: KeyspaceId, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    match keyspace {
        HISTORY => batch.put_at(HISTORY, key, u64::from(value[0]), value),
        _ => batch.put(keyspace, key, value),
    }
    engine.write(&batch, WriteOptions::APPLY).unwrap();
}

fn get(engine: &dyn Engine, keyspace: KeyspaceId, key: &[u8]) -> Option<Vec<u8>> {
    let found = engine.get(keyspace, key, &ReadAt::NEWEST).unwrap();
    let many = engine.multi_get(keyspace, &[key], &ReadAt::NEWEST).unwrap();
    assert_eq!(many, std::slice::from_ref(&found));
    found.map(|entry| entry.value.to_vec())
}

fn keys(engine: &dyn Engine, keyspace: KeyspaceId) -> Vec<Vec<u8>> {
    let listed = list(engine, keyspace, &IterOptions::default());
    listed.into_iter().map(|look| look.0).collect()
}

#[test]
fn expiry_of_values_is_seen_at_once_wherever_they_are() {
    for place in ["memtable", "table", "bottom"] {
        let sim = Sim::new(1);
        let lsm = open(&sim.env(), &options());
        for keyspace in [CACHE, HISTORY, KEPT] {
            put(&lsm, keyspace, b"old", &[1]);
        }
        sim.clock.advance(TTL / 2);
        put(&lsm, CACHE, b"new", &[2]);
        match place {
            "memtable" => {}
            "table" => drop(lsm.flush().unwrap()),
            _ => lsm.compact_all().unwrap(),
        }
        assert_eq!(get(&lsm, CACHE, b"old"), Some(vec![1]), "{place}");
        let snapshot = lsm.snapshot();
        sim.clock.advance(TTL / 2 - Duration::from_millis(1));
        assert_eq!(keys(&lsm, CACHE), [b"new".to_vec(), b"old".to_vec()]);
        sim.clock.advance(Duration::from_millis(1));
        assert_eq!(get(&lsm, CACHE, b"old"), None, "{place}");
        assert_eq!(get(&lsm, HISTORY, b"old"), None);
        assert_eq!(get(&lsm, KEPT, b"old"), Some(vec![1]));
        assert_eq!(keys(&lsm, CACHE), [b"new".to_vec()]);
        let at = ReadAt::snapshot(&snapshot);
        assert_eq!(
            lsm.get(CACHE, b"old", &at).unwrap(),
            None,
            "snapshots don't stop time"
        );
        // To a condition it is absent.
        let mut batch = Batch::new();
        batch.require(CACHE, b"old", Condition::Absent);
        batch.put(CACHE, b"old", b"again");
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
        assert_eq!(get(&lsm, CACHE, b"old"), Some(b"again".to_vec()));
    }
}

#[test]
fn expiry_of_a_value_hides_what_is_older_and_shows_as_a_deletion() {
    let sim = Sim::new(1);
    let mut without = options();
    without.keyspaces[0].ttl = None;
    let lsm = open(&sim.env(), &without);
    put(&lsm, CACHE, b"k", b"for ever");
    lsm.close().unwrap();
    drop(lsm);
    let lsm = open(&sim.env(), &options());
    assert_eq!(get(&lsm, CACHE, b"k"), Some(b"for ever".to_vec()));
    put(&lsm, CACHE, b"k", b"for a minute");
    put(&lsm, HISTORY, b"k", &[9]);
    lsm.flush().unwrap();
    sim.clock.advance(TTL);
    let all = IterOptions {
        all_versions: true,
        ..IterOptions::default()
    };
    for _ in 0..2 {
        assert_eq!(get(&lsm, CACHE, b"k"), None);
        let history = list(&lsm, HISTORY, &all);
        assert!(
            history.len() == 1 && history[0].1 == 9 && history[0].3,
            "{history:?}"
        );
        lsm.compact_all().unwrap();
    }
    lsm.set_watermark(HISTORY, 9).unwrap();
    lsm.compact_all().unwrap();
    assert_eq!(lsm.stats().levels.iter().map(|l| l.files).sum::<u64>(), 0);
}

#[test]
fn expiry_by_another_ttl_holds_for_what_is_there() {
    let sim = Sim::new(1);
    let lsm = open(&sim.env(), &options());
    put(&lsm, CACHE, b"k", &[1]);
    lsm.close().unwrap();
    drop(lsm);
    sim.clock.advance(TTL);
    let with = |ttl| {
        let mut options = options();
        options.keyspaces[0].ttl = ttl;
        let lsm = open(&sim.env(), &options);
        let found = get(&lsm, CACHE, b"k").is_some();
        lsm.close().unwrap();
        found
    };
    assert!(with(Some(TTL * 2)) && with(None) && !with(Some(TTL)));
    let reader = Lsm::open_read_only(&sim.env(), dir()).unwrap();
    assert_eq!(
        get(&reader, CACHE, b"k"),
        None,
        "a reader knows the ttl of the store"
    );
    let mut wrong = options();
    wrong.keyspaces[0].ttl = Some(Duration::ZERO);
    let refused = Lsm::open(&sim.env(), dir(), wrong).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn expiry_of_whole_tables_drops_them_unread() {
    let sim = Sim::new(1);
    let plain = Options {
        compression: Compression::None,
        ..options()
    };
    let lsm = open(&sim.env(), &plain);
    for n in 0..200_u64 {
        put(&lsm, CACHE, &n.to_be_bytes(), &[7; 100]);
    }
    lsm.compact_all().unwrap();
    let before = lsm.stats();
    sim.clock.advance(TTL);
    // What looks is a flush of something else.
    put(&lsm, KEPT, b"k", &[1]);
    lsm.flush().unwrap();
    sim.jobs.pump_all();
    let after = lsm.stats();
    let tables: u64 = before.levels.iter().map(|l| l.files).sum();
    assert!(tables > 3);
    assert_eq!(after.dropped_tables - before.dropped_tables, tables);
    assert_eq!(after.compaction_read_bytes, before.compaction_read_bytes);
}

#[test]
fn expiry_of_ingested_values_counts_from_when_they_were_added() {
    let sim = Sim::new(1);
    let env = sim.env();
    let lsm = open(&env, &options());
    let file = std::path::Path::new("/outside.table");
    let mut table = TableWriter::create(&env, file, &options()).unwrap();
    table.put(CACHE, b"a", b"value").unwrap();
    table.delete(CACHE, b"b").unwrap();
    table.finish().unwrap();
    sim.clock.advance(TTL / 2);
    lsm.ingest(&[file.to_owned()], &IngestOptions::default())
        .unwrap();
    assert_eq!(get(&lsm, CACHE, b"a"), Some(b"value".to_vec()));
    sim.clock.advance(TTL / 2);
    assert_eq!(get(&lsm, CACHE, b"a"), None);
}

/// The simulated clock, with a calendar that leaps.
struct Leaping {
    clock: Arc<dyn Clock>,
    ahead_ms: AtomicI64,
}

impl Clock for Leaping {
    fn now(&self) -> Duration {
        self.clock.now()
    }
    fn unix_ms(&self) -> u64 {
        let ahead = self.ahead_ms.load(Ordering::SeqCst);
        self.clock.unix_ms().saturating_add_signed(ahead)
    }
}

/// What the head of `expiry.rs` says of leaps of the calendar.
fn check_leaps() -> Result<(), String> {
    let sim = Sim::new(1);
    let clock = Arc::new(Leaping {
        clock: sim.env().clock,
        ahead_ms: AtomicI64::new(0),
    });
    let env = Env {
        clock: clock.clone(),
        ..sim.env()
    };
    let leap = |to: i64| clock.ahead_ms.store(to * 1000, Ordering::SeqCst);
    let options = Options {
        wal: true,
        ..options()
    };
    let write = |lsm: &Lsm, key: &[u8]| {
        let mut batch = Batch::new();
        batch.put(CACHE, key, b"v");
        lsm.write(&batch, WriteOptions::SYNCED).unwrap();
    };
    let expect = |what: &str, lsm: &Lsm, key: &[u8], alive: bool| match get(lsm, CACHE, key) {
        found if found.is_some() == alive => Ok(()),
        found => Err(format!("{what}: {found:?}")),
    };
    let lsm = open(&env, &options);
    write(&lsm, b"a");
    leap(3600);
    expect("a leap while it is open", &lsm, b"a", true)?;
    leap(-3600);
    sim.clock.advance(TTL / 2);
    write(&lsm, b"b");
    sim.clock.advance(TTL / 2);
    expect("an hour behind, a minute later", &lsm, b"a", false)?;
    expect("half a minute later", &lsm, b"b", true)?;
    drop(lsm);
    sim.jobs.pump_all();
    // The log says how late it was at least.
    let lsm = open(&env, &options);
    expect("opened while it is behind", &lsm, b"b", true)?;
    sim.clock.advance(TTL);
    expect("a minute later", &lsm, b"b", false)?;
    lsm.flush().unwrap();
    lsm.close().unwrap();
    drop(lsm);
    leap(-7200);
    let lsm = open(&env, &options);
    expect("what expired is back", &lsm, b"b", false)?;
    write(&lsm, b"c");
    lsm.close().unwrap();
    drop(lsm);
    leap(3600);
    let lsm = open(&env, &options);
    expect("opened an hour ahead", &lsm, b"c", false)?;
    lsm.close().unwrap();
    drop(lsm);
    leap(0);
    let lsm = open(&env, &options);
    write(&lsm, b"d");
    sim.clock.advance(TTL - Duration::from_millis(1));
    expect("set right again, within its time", &lsm, b"d", true)?;
    sim.clock.advance(Duration::from_millis(1));
    expect("set right again, its time over", &lsm, b"d", false)
}

#[test]
fn expiry_goes_on_as_promised_when_the_calendar_leaps() {
    check_leaps().unwrap();
}

#[test]
fn expiry_check_notices_time_that_is_the_calendars() {
    assert!(is_noticed(Bug::TimeIsTheCalendars, check_leaps));
}

/// Engine and model under random writes, while time goes by in steps so large that what waits take of it
/// does not matter.
fn check_random(seed: u64, mut options: Options) -> Result<(), String> {
    for keyspace in &mut options.keyspaces[..2] {
        keyspace.ttl = Some(Duration::from_secs(2500));
    }
    let sim = Sim::new(seed);
    let model = Model::with_clock(&options.keyspaces, sim.env().clock);
    let mut lsm = Lsm::open(&sim.env(), dir(), options.clone()).map_err(|e| e.to_string())?;
    let mut work = Workload::new(seed);
    for step in 0..300 {
        match work.random.below(30) {
            0 => sim.clock.advance(Duration::from_secs(1000)),
            1 => drop(lsm.flush().unwrap()),
            2 => lsm.compact_all().unwrap(),
            3 => {
                lsm.close().unwrap();
                drop(lsm);
                lsm = Lsm::open(&sim.env(), dir(), options.clone()).map_err(|e| e.to_string())?;
            }
            4..=6 => drop(sim.jobs.pump()),
            _ => {
                let batch = work.batch();
                let how = write_options(&options, &work.random);
                lsm.write(&batch, how).unwrap();
                model.write(&batch, how).unwrap();
            }
        }
        let key = work.key();
        for keyspace in &options.keyspaces {
            let got = lsm
                .get(keyspace.id, &key, &ReadAt::NEWEST)
                .map_err(|e| e.to_string())?;
            if got != model.get(keyspace.id, &key, &ReadAt::NEWEST).unwrap() {
                return Err(format!(
                    "seed {seed}: get {key:?} of {}: {got:?}",
                    keyspace.name
                ));
            }
            for all_versions in [false, keyspace.versioned] {
                if !u32::is_multiple_of(step, 8) {
                    continue;
                }
                let options = IterOptions {
                    all_versions,
                    ..IterOptions::default()
                };
                let mine = try_list(&lsm, keyspace.id, &options).map_err(|e| e.to_string())?;
                if mine != list(&model, keyspace.id, &options) {
                    return Err(format!("seed {seed}: all of {}", keyspace.name));
                }
            }
        }
    }
    Ok(())
}

fn check_all_random() -> Result<(), String> {
    for options in option_sets() {
        seeds(4).try_for_each(|seed| check_random(seed, options.clone()))?;
    }
    Ok(())
}

#[test]
fn expiry_random_operations_agree_with_the_model() {
    check_all_random().unwrap();
}

/// A table that expires over one that does not.
fn check_uncovered() -> Result<(), String> {
    let sim = Sim::new(1);
    let mut without = options();
    without.keyspaces[0].ttl = None;
    without.auto_compact = false;
    let lsm = open(&sim.env(), &without);
    put(&lsm, CACHE, b"k", b"for ever");
    lsm.close().unwrap();
    drop(lsm);
    let lsm = open(
        &sim.env(),
        &Options {
            l0_compact: 4,
            l0_slow: 8,
            ..options()
        },
    );
    put(&lsm, CACHE, b"k", b"for a minute");
    lsm.flush().unwrap();
    sim.clock.advance(TTL);
    put(&lsm, KEPT, b"k", b"k");
    lsm.flush().unwrap();
    sim.jobs.pump_all();
    match get(&lsm, CACHE, b"k") {
        None => Ok(()),
        Some(_) => Err("what was overwritten came to light".to_owned()),
    }
}

#[test]
fn expiry_of_a_table_leaves_what_it_hides_hidden() {
    check_uncovered().unwrap();
}

#[test]
fn expiry_checks_notice_what_is_still_read_and_what_is_uncovered() {
    assert!(is_noticed(Bug::ExpiredTablesUncover, check_uncovered));
    // The model asks the same function: what it shares with the engine only the plain tests find.
    let plain = || {
        expiry_of_values_is_seen_at_once_wherever_they_are();
        Ok(())
    };
    assert!(is_noticed(Bug::ExpiredIsRead, plain));
}

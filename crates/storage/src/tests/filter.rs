//! Compaction filters: what they decide happens, and what snapshots and history see is left alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_env::sim::Sim;

use super::conformance::list;
use super::workload::{DATA, META, dir, tiny};
use crate::planted::{Bug, is_noticed};
use crate::{
    Batch, Candidate, CompactionFilter, Decision, Engine, IterOptions, KeyspaceOptions, Lsm,
    Options, ReadAt, WriteOptions,
};

/// Removes what begins with `x`, doubles what begins with `d`.
#[derive(Debug, Default)]
struct Rules {
    asked: AtomicU64,
}

impl CompactionFilter for Rules {
    fn decide(&self, entry: &Candidate<'_>) -> Decision {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match entry.value.first() {
            Some(b'x') => Decision::Remove,
            Some(b'd') => Decision::Change([b"D", &entry.value[1..], &entry.value[1..]].concat()),
            _ => Decision::Keep,
        }
    }
}

fn open(sim: &Sim, options: Options) -> (Lsm, Arc<Rules>) {
    let rules = Arc::new(Rules::default());
    let filter: Arc<dyn CompactionFilter> = rules.clone();
    let lsm = Lsm::open_with_filter(&sim.env(), dir(), options, filter).unwrap();
    (lsm, rules)
}

fn put(lsm: &Lsm, key: &str, value: &str) {
    let mut batch = Batch::new();
    batch.put(META, key.as_bytes(), value.as_bytes());
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
}

fn put_at(lsm: &Lsm, key: &str, version: u64, value: &str) {
    let mut batch = Batch::new();
    batch.put_at(DATA, key.as_bytes(), version, value.as_bytes());
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
}

fn get(lsm: &Lsm, key: &str, at: &ReadAt) -> Option<String> {
    let found = lsm.get(META, key.as_bytes(), at).unwrap();
    found.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
}

#[test]
fn filter_removes_and_changes_in_compaction_only() {
    check_rules(tiny());
}

/// The same rules; they see the values, not where these lie.
#[test]
fn filter_sees_values_that_lie_apart() {
    let check = || {
        check_rules(Options {
            large_value_bytes: 1,
            ..tiny()
        });
    };
    check();
    assert!(is_noticed(Bug::FilterSeesPointers, || {
        check();
        Ok(())
    }));
}

fn check_rules(options: Options) {
    let sim = Sim::new(1);
    let apart = options.large_value_bytes == 1;
    let (lsm, rules) = open(&sim, options);
    for (key, value) in [("a", "keep"), ("b", "x"), ("c", "dup"), ("e", "old")] {
        put(&lsm, key, value);
    }
    lsm.compact_all().unwrap();
    assert_eq!(rules.asked.load(Ordering::Relaxed), 4);
    let all = |lsm: &Lsm| ["a", "b", "c", "e"].map(|key| get(lsm, key, &ReadAt::NEWEST));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(all(&lsm), [text("keep"), None, text("Dupup"), text("old")]);
    assert_eq!(lsm.stats().value_files > 0, apart);
    // Over a value that lies deeper it leaves a deletion, not a hole.
    put(&lsm, "e", "x");
    lsm.flush().unwrap();
    assert_eq!(
        get(&lsm, "e", &ReadAt::NEWEST),
        text("x"),
        "a flush asks nobody"
    );
    lsm.compact_all().unwrap();
    assert_eq!(get(&lsm, "e", &ReadAt::NEWEST), None);
    lsm.close().unwrap();
    drop(lsm);
    let lsm = Lsm::open(&sim.env(), dir(), tiny()).unwrap();
    assert_eq!(all(&lsm), [text("keep"), None, text("Dupup"), None]);
    let listed = list(&lsm, META, &IterOptions::default());
    assert_eq!(listed.len(), 2);
}

fn check_snapshots() -> Result<(), String> {
    let (lsm, _) = open(&Sim::new(1), tiny());
    put(&lsm, "a", "x1");
    let old = lsm.snapshot();
    put(&lsm, "a", "x2");
    put(&lsm, "b", "x3");
    let snapshot = lsm.snapshot();
    put(&lsm, "c", "x4");
    lsm.compact_all().map_err(|e| e.to_string())?;
    let seen = |key, snapshot| get(&lsm, key, &ReadAt::snapshot(snapshot));
    let kept = [seen("a", &old), seen("a", &snapshot), seen("b", &snapshot)];
    let wanted = ["x1", "x2", "x3"].map(|value| Some(value.to_owned()));
    if kept != wanted || get(&lsm, "c", &ReadAt::NEWEST).is_some() {
        return Err(format!("snapshots see {kept:?}"));
    }
    drop((old, snapshot));
    lsm.compact_all().map_err(|e| e.to_string())?;
    match lsm.stats().levels.iter().map(|l| l.files).sum::<u64>() {
        0 => Ok(()),
        _ => Err("something is left, with nobody to see it".to_owned()),
    }
}

#[test]
fn filter_leaves_alone_what_snapshots_see() {
    check_snapshots().unwrap();
}

fn check_versions() -> Result<(), String> {
    let (lsm, _) = open(&Sim::new(1), tiny());
    for (version, value) in [(5, "x5"), (7, "x7"), (9, "x9")] {
        put_at(&lsm, "k", version, value);
    }
    lsm.set_watermark(DATA, 7).map_err(|e| e.to_string())?;
    lsm.compact_all().map_err(|e| e.to_string())?;
    let at = |version| lsm.get(DATA, b"k", &ReadAt::version(version)).unwrap();
    // The one that reads at the watermark see may be decided about; versions above may be read.
    let found = [7, 8, 9].map(|version| at(version).map(|entry| entry.version));
    match found {
        [None, None, Some(9)] => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn filter_leaves_alone_versions_above_the_watermark() {
    check_versions().unwrap();
}

#[test]
fn filter_checks_notice_one_that_is_asked_too_much() {
    assert!(is_noticed(Bug::FilterIgnoresSnapshots, check_snapshots));
    assert!(is_noticed(Bug::FilterIgnoresWatermark, check_versions));
}

#[test]
fn filter_changes_leave_version_and_time() {
    let sim = Sim::new(1);
    let mut options = tiny();
    options.keyspaces[1] = KeyspaceOptions::plain(1, "meta").with_ttl(Duration::from_secs(60));
    let (lsm, rules) = open(&sim, options);
    put(&lsm, "k", "dup");
    put_at(&lsm, "k", 4, "dup");
    lsm.set_watermark(DATA, 9).unwrap();
    sim.clock.advance(Duration::from_secs(30));
    lsm.compact_all().unwrap();
    assert_eq!(get(&lsm, "k", &ReadAt::NEWEST), Some("Dupup".to_owned()));
    let entry = lsm.get(DATA, b"k", &ReadAt::NEWEST).unwrap().unwrap();
    assert_eq!((entry.version, &entry.value[..]), (4, &b"Dupup"[..]));
    sim.clock.advance(Duration::from_secs(30));
    assert_eq!(get(&lsm, "k", &ReadAt::NEWEST), None);
    let asked = rules.asked.load(Ordering::Relaxed);
    lsm.compact_all().unwrap();
    let again = rules.asked.load(Ordering::Relaxed) - asked;
    assert_eq!(again, 1, "of what expired nobody is asked");
}

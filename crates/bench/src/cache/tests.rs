//! Caches held against the truth, for a short time: ours is right, naive ones are found out, and so are we if we lie.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_cache::CacheOptions;
use quorate_kv::BoxFuture;
use tokio::time::advance;

use super::shared::Telling;
use super::*;

const KEYS: usize = 24;

fn options() -> CacheOptions {
    CacheOptions {
        local_ttl: Duration::from_millis(25),
        breaker_pause: Duration::from_millis(10),
        ..CacheOptions::default()
    }
}

fn cell(seed: u64) -> Cell {
    Cell {
        readers: 12,
        writers: 6,
        duration: Duration::from_millis(70),
        reads_max: u64::MAX,
        seed,
        rest: options().local_ttl + rows::AGAIN_AFTER + Duration::from_millis(400),
    }
}

fn truth(fault: Fault, is_adversarial: bool) -> Arc<Truth> {
    let weather = Weather::new(fault, is_adversarial, 7);
    Arc::new(Truth::new(KEYS, 100_000, Arc::new(weather)))
}

/// Ours, adversarially, over a shared tier in memory.
async fn ours(row: &Row, fault: Fault, promise: Promise) -> Outcome {
    let (truth, tier) = (truth(fault, true), Telling::new(0));
    let caches = row.caches(&truth, &options(), || tier.shared());
    let caches = caches.expect("follows");
    let cell = match row.may_stick(fault) {
        true => Cell {
            rest: Duration::ZERO,
            ..cell(1)
        },
        false => cell(1),
    };
    run(&cell, Arc::new(caches), truth, Some(promise), None).await
}

fn row_named(name: &str) -> &'static Row {
    ROWS.iter().find(|row| row.name == name).expect("a row")
}

/// Cache-aside as it is usually written.
struct Naive {
    shared: Mutex<HashMap<usize, Bytes>>,
    truth: Arc<Truth>,
    /// Serves for ever what it first had.
    is_frozen: bool,
}

impl Naive {
    fn over(truth: &Arc<Truth>, is_frozen: bool) -> Arc<Naive> {
        Arc::new(Naive {
            shared: Mutex::default(),
            truth: truth.clone(),
            is_frozen,
        })
    }
}

impl Subject for Naive {
    fn get(&self, _: usize, key: usize) -> BoxFuture<'_, Result<Answer, String>> {
        Box::pin(async move {
            let cached = self.shared.lock().get(&key).cloned();
            if let Some(value) = cached {
                return Ok(Answer {
                    value: Some(value),
                    is_miss: false,
                });
            }
            let (value, _, _) = self.truth.fetch(key, false).await;
            self.truth.weather().pass(Point::Put).await;
            if let Some(value) = &value {
                self.shared.lock().insert(key, value.clone());
            }
            Ok(Answer {
                value,
                is_miss: true,
            })
        })
    }

    fn put<'a>(&'a self, write: &'a Write) -> BoxFuture<'a, Result<Reach, String>> {
        Box::pin(async move {
            self.truth.commit(write).await;
            self.truth.weather().pass(Point::Invalidate).await;
            if !self.is_frozen {
                self.shared.lock().remove(&write.key);
            }
            Ok(Reach::All)
        })
    }
}

async fn naive(is_adversarial: bool, is_frozen: bool) -> Outcome {
    let truth = truth(Fault::None, is_adversarial);
    let subject = Naive::over(&truth, is_frozen);
    let cell = Cell {
        duration: Duration::from_millis(400),
        ..cell(1)
    };
    run(&cell, subject, truth, None, None).await
}

/// Runs again and again, until all runs together show it: for at most a minute, on a machine that has no time.
async fn until(
    what: &str,
    mut run: impl AsyncFnMut() -> Outcome,
    is_shown: impl Fn(&Outcome) -> bool,
) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut all = Outcome::new();
    while !is_shown(&all) {
        assert!(Instant::now() < deadline, "{what}: {all:?}");
        all.merge(&run().await);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consistency_naive_cache_aside_is_found_stale() {
    let is_found = |all: &Outcome| all.stale > 0 && all.near > 0;
    let all = until("naive", async || naive(true, false).await, is_found).await;
    assert!(all.foreign == 0 && all.errors == 0, "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consistency_cache_that_never_changes_is_found_out_by_every_measure() {
    let is_found = |all: &Outcome| {
        let is_stale = all.stale > 0 && all.resurrected > 0 && all.own_missed > 0;
        // Of the 400 ms that a run takes.
        is_stale && all.stuck > KEYS as u64 / 2 && all.staleness.max() > 100_000
    };
    until("frozen", async || naive(false, true).await, is_found).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consistency_of_no_cache_is_perfect() {
    for is_adversarial in [false, true] {
        let direct = async || {
            let truth = truth(Fault::ReplicaLag, is_adversarial);
            let subject = Arc::new(direct(&truth));
            run(&cell(3), subject, truth, Some(Promise::AT_ONCE), None).await
        };
        let all = until("no cache", direct, |all| all.reads > 0 && all.writes > 0).await;
        assert_eq!((all.stale, all.stuck, all.foreign), (0, 0, 0));
        assert_eq!((all.misses, all.errors), (all.reads, 0));
        let fastest = all.latency.min();
        assert!(fastest > 900_000, "a round takes 1 ms, not {fastest} ns");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consistency_every_row_keeps_its_promise_in_all_weathers() {
    // They mostly wait.
    let lane = async |lane| {
        for row in ROWS.iter().skip(lane).step_by(4) {
            keeps_its_promise_in_all_weathers(row).await;
        }
    };
    tokio::join!(lane(0), lane(1), lane(2), lane(3));
}

async fn keeps_its_promise_in_all_weathers(row: &Row) {
    for fault in Fault::ALL {
        // A failover takes a real server and its replica: `cargo xtask bench cache --consistency`.
        if fault == Fault::RemoteFailedOver || !row.knows(fault) {
            continue;
        }
        let what = format!("{}, {}", row.name, fault.name());
        let promise = row.promise(&options(), fault);
        let ours = async || ours(row, fault, promise).await;
        let all = until(&what, ours, |all| all.reads > 0 && all.writes > 0).await;
        assert_eq!((all.broken, all.foreign), (0, 0), "{what}: {all:?}");
        if promise == Promise::AT_ONCE {
            assert_eq!(all.stale, 0, "{what}: {all:?}");
        }
        assert!(all.stuck == 0 || row.may_stick(fault), "{what}: {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consistency_check_notices_rows_that_promise_too_much() {
    let too_much = [
        // Other processes' own tiers are behind.
        ("versioned, L1+L2", Fault::None),
        // What nobody was told of stays.
        ("versioned, L2", Fault::WriterKilled),
        ("aside, L2", Fault::InvalidationsLost),
        ("bounded 50 ms, L1+L2", Fault::WriterKilled),
        // Who follows hears later.
        ("aside coherent within 25 ms, L1+L2", Fault::SubscriberCut),
        // What a lagging replica gave is kept.
        ("aside over a careless replica, L2", Fault::ReplicaLag),
    ];
    for (name, fault) in too_much {
        let ours = async || ours(row_named(name), fault, Promise::AT_ONCE).await;
        let all = until(name, ours, |all| all.broken > 0).await;
        assert_eq!(all.broken, all.stale, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consistency_check_notices_a_stream_that_hides_what_it_lost() {
    let row = row_named("versioned coherent within 25 ms, L1+L2");
    let hiding = async || {
        let (truth, tier) = (truth(Fault::None, false), Telling::new(3));
        let caches = row.caches(&truth, &options(), || tier.shared());
        let promise = row.promise(&options(), Fault::None);
        let cell = Cell {
            duration: Duration::from_millis(300),
            rest: Duration::ZERO,
            ..cell(1)
        };
        let caches = Arc::new(caches.expect("follows"));
        run(&cell, caches, truth, Some(promise), None).await
    };
    until(row.name, hiding, |all| all.broken > 0 && all.stuck > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consistency_aside_once_over_a_careless_replica_leaves_keys_stuck() {
    let once = row_named("aside over a careless replica, L2");
    let promise = once.promise(&options(), Fault::ReplicaLag);
    let ours = async || ours(once, Fault::ReplicaLag, promise).await;
    until(once.name, ours, |all| all.stuck > 0).await;
}

#[tokio::test(start_paused = true)]
async fn consistency_clock_that_is_set_back_makes_what_is_there_look_younger() {
    let (truth, tier) = (truth(Fault::ClockStepped, false), Telling::new(0));
    let row = Row {
        tiering: Tiering::Remote,
        ..*row_named("bounded 50 ms, L1+L2")
    };
    let caches = row.caches(&truth, &options(), || tier.shared());
    let caches = caches.expect("a row");
    truth.weather().turn(Duration::from_millis(40));
    assert!(caches.get(0, 0).await.expect("reads").is_miss);
    truth.weather().turn(Duration::ZERO);
    // By the clock before and after 50 ms have passed now, and 20 ms by the one that was set back.
    advance(Duration::from_millis(50)).await;
    assert!(!caches.get(1, 0).await.expect("reads").is_miss);
    advance(Duration::from_millis(31)).await;
    assert!(
        caches.get(1, 0).await.expect("reads").is_miss,
        "no more than it was set back by"
    );
}

fn write(truth: &Truth, process: usize, deletes: bool) -> Write {
    truth.begin(0, process, deletes).expect("room")
}

/// Judges key 0 as process 1 reads it, with what had to be seen.
fn judge(truth: &Truth, sight: &Sight, value: Option<&Bytes>) -> Verdict {
    truth.judge(0, 1, sight, value, Some(&Promise::AT_ONCE))
}

#[tokio::test]
async fn consistency_ledger_exempts_what_runs_beside_a_read() {
    let truth = truth(Fault::None, false);
    let (one, two) = (write(&truth, 0, false), write(&truth, 1, false));
    truth.commit(&one).await;
    truth.acknowledge(&one, Reach::All);
    let sight = truth.before(0);
    truth.commit(&two).await;
    truth.acknowledge(&two, Reach::All);
    assert_eq!(judge(&truth, &sight, one.value.as_ref()), Verdict::Fresh);
    assert_eq!(judge(&truth, &sight, two.value.as_ref()), Verdict::Fresh);
    let later = truth.before(0);
    let Verdict::Stale(stale) = judge(&truth, &later, one.value.as_ref()) else {
        panic!("two was acknowledged before");
    };
    assert!(stale.is_broken && stale.misses_own && !stale.is_resurrected);
    assert_eq!(judge(&truth, &later, two.value.as_ref()), Verdict::Fresh);
}

#[tokio::test]
async fn consistency_ledger_counts_committed_and_unacknowledged_as_neither() {
    let truth = truth(Fault::None, false);
    let first = truth.fetch(0, true).await.0;
    let one = write(&truth, 0, false);
    truth.commit(&one).await;
    let sight = truth.before(0);
    assert_eq!(judge(&truth, &sight, first.as_ref()), Verdict::Fresh);
    assert_eq!(judge(&truth, &sight, one.value.as_ref()), Verdict::Fresh);
    assert_ne!(
        judge(&truth, &truth.at_rest(0), first.as_ref()),
        Verdict::Fresh
    );
}

#[tokio::test]
async fn consistency_ledger_knows_what_was_deleted_and_what_is_foreign() {
    let truth = truth(Fault::None, false);
    let first = truth.fetch(0, true).await.0;
    let (gone, back) = (write(&truth, 0, true), write(&truth, 0, false));
    let before = truth.before(0);
    assert!(
        matches!(judge(&truth, &before, None), Verdict::Stale(_)),
        "never was nothing"
    );
    truth.commit(&gone).await;
    assert_eq!(
        judge(&truth, &before, None),
        Verdict::Fresh,
        "deleted meanwhile"
    );
    truth.acknowledge(&gone, Reach::All);
    let sight = truth.before(0);
    let Verdict::Stale(stale) = judge(&truth, &sight, first.as_ref()) else {
        panic!("it was deleted");
    };
    assert!(stale.is_resurrected && !stale.misses_own);
    assert_eq!(judge(&truth, &sight, None), Verdict::Fresh);
    truth.commit(&back).await;
    truth.acknowledge(&back, Reach::All);
    let Verdict::Stale(stale) = judge(&truth, &truth.before(0), None) else {
        panic!("it is back");
    };
    assert!(!stale.is_resurrected);
    let other = truth.fetch(1, true).await.0;
    assert_eq!(judge(&truth, &sight, other.as_ref()), Verdict::Foreign);
    let uncommitted = write(&truth, 0, false);
    assert_eq!(
        judge(&truth, &sight, uncommitted.value.as_ref()),
        Verdict::Foreign
    );
    assert_eq!(
        judge(&truth, &sight, Some(&Bytes::from_static(b"short"))),
        Verdict::Foreign
    );
}

#[tokio::test]
async fn consistency_promise_allows_who_was_not_told() {
    let hour = Duration::from_secs(3600);
    let promise = Promise {
        own: Duration::ZERO,
        others: Duration::ZERO,
        untold: hour,
    };
    for (reach, own, other) in [
        (Reach::All, true, true),
        (Reach::Own, true, false),
        (Reach::Nobody, false, false),
    ] {
        let truth = truth(Fault::None, false);
        let first = truth.fetch(0, true).await.0;
        let one = write(&truth, 1, false);
        truth.commit(&one).await;
        truth.acknowledge(&one, reach);
        for (process, is_broken) in [(1, own), (2, other)] {
            let verdict = truth.judge(0, process, &truth.before(0), first.as_ref(), Some(&promise));
            let Verdict::Stale(stale) = verdict else {
                panic!("it is stale");
            };
            assert_eq!(stale.is_broken, is_broken, "{reach:?}, process {process}");
            assert_eq!(stale.misses_own, process == 1 && reach != Reach::Nobody);
        }
    }
}

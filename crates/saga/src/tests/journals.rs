//! The journals: the suite that all pass, and their tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_kv::memory::MemoryKv;
use quorate_kv::{
    Batch, BatchResult, Compare, CompareResult, Delete, Domain, Entry, Get, Kv, Put, Scan,
    ScanPage, Written,
};
use quorate_outbox::kv::KvOutbox;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::store::BoxFuture;
use serde_json::json;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;

use super::support::{Lite, Pg, kv_outbox};
use crate::journal::{
    Append, Filter, Journal, KvJournal, MemoryJournal, PgJournal, Share, SqliteJournal, conformance,
};
use crate::machine::{End, Entry as Happened, Event};
use crate::{Begin, ErrorKind, Planner, Registry, Saga, Status, Step};

#[tokio::test]
async fn journal_in_memory_passes_the_suite() {
    conformance::run(&MemoryJournal::new()).await;
}

#[tokio::test]
async fn journal_over_kv_passes_the_suite() {
    conformance::run(&KvJournal::new(kv_outbox())).await;
}

#[tokio::test]
async fn journal_in_sqlite_passes_the_suite() {
    let lite = Lite::new().await;
    let journal = SqliteJournal::migrate(lite.outbox().await)
        .await
        .expect("migrates");
    conformance::run(&journal).await;
}

#[tokio::test]
async fn journal_in_postgres_passes_the_suite() {
    let pg = Pg::new().await;
    let journal = PgJournal::migrate(pg.outbox().await)
        .await
        .expect("migrates");
    conformance::run(&journal).await;
    pg.end().await;
}

/// The pool has one connection: whoever asks for a second one while it has the first waits for ever.
#[tokio::test]
async fn journal_migrates_again_on_the_only_connection() {
    let soon = std::time::Duration::from_secs(30);
    let lite = Lite::new().await;
    let file = lite.pool.connect_options();
    let one = SqlitePoolOptions::new().max_connections(1);
    let one = one.acquire_timeout(soon);
    let one = one.connect_with((*file).clone()).await.expect("opens");
    let outbox = SqliteOutbox::migrate(one, 1).await.expect("migrates");
    for _ in 0..2 {
        let made = SqliteJournal::migrate(outbox.clone()).await;
        made.expect("one connection is enough");
    }

    let pg = Pg::new().await;
    let server = pg.pool.connect_options();
    let one = PgPoolOptions::new().max_connections(1);
    let one = one.acquire_timeout(soon);
    let one = one.connect_with((*server).clone()).await.expect("connects");
    let outbox = PgOutbox::migrate(one.clone(), 1).await.expect("migrates");
    for _ in 0..2 {
        let made = PgJournal::migrate(outbox.clone()).await;
        made.expect("one connection is enough");
    }
    one.close().await;
    pg.end().await;
}

#[tokio::test]
async fn journal_tables_of_another_version_or_missing_are_refused_untouched() {
    let pg = Pg::new().await;
    let outbox = pg.outbox().await;
    let missing = PgJournal::open(outbox.clone())
        .await
        .err()
        .expect("no tables");
    assert_eq!(missing.kind(), ErrorKind::Missing);
    PgJournal::migrate(outbox.clone()).await.expect("migrates");
    PgJournal::migrate(outbox.clone())
        .await
        .expect("is there already");
    let newer = "UPDATE quorate_saga_schema SET version = 99";
    sqlx::query(newer).execute(&pg.pool).await.expect("changes");
    let error = PgJournal::migrate(outbox.clone())
        .await
        .err()
        .expect("newer");
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.message().contains("version 99"), "{error}");
    for damage in [
        "UPDATE quorate_saga_schema SET version = 1",
        "DROP TABLE quorate_saga_member",
    ] {
        let done = sqlx::query(AssertSqlSafe(damage)).execute(&pg.pool).await;
        done.expect("changes");
    }
    let error = PgJournal::migrate(outbox).await.err().expect("damaged");
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.message().contains("quorate_saga_member"), "{error}");
    pg.end().await;

    let lite = Lite::new().await;
    let outbox = lite.outbox().await;
    let missing = SqliteJournal::open(outbox.clone())
        .await
        .err()
        .expect("no tables");
    assert_eq!(missing.kind(), ErrorKind::Missing);
    SqliteJournal::migrate(outbox.clone())
        .await
        .expect("migrates");
    sqlx::query(newer)
        .execute(&lite.pool)
        .await
        .expect("changes");
    let error = SqliteJournal::migrate(outbox).await.err().expect("newer");
    assert_eq!(error.kind(), ErrorKind::Schema);
}

/// dtm's recovery picks any transaction at random, so that one may wait for ever, and does not look whose it is when it
/// changes it. Here who waits longest comes first, each saga is in one share, and who lost the lease writes nothing.
async fn recovers_in_order_and_under_a_lease(journal: &dyn Journal) {
    let step = Saga::named("order")
        .step(Step::new("reserve", "stock"))
        .build();
    let registry = Registry::new()
        .with(step.expect("builds"))
        .expect("a registry");
    let planner = Planner::new(registry, "replies");
    let mut waiting = Vec::new();
    for n in 0..40 {
        let begin = Begin::new("order", format!("k{n}"), json!({}));
        let mut one = planner.begin(&begin, 1_000).expect("begins");
        // Later ones have waited longer, by turns.
        one.wake_ms = Some(10_000 - (n * 7 % 40) * 10);
        waiting.push(one);
    }
    let written = journal.append(None, &waiting).await.expect("appends");
    assert!(written.iter().all(|written| *written));
    let wake_of = |id| {
        waiting
            .iter()
            .find(|one| one.id == id)
            .and_then(|one| one.wake_ms)
    };
    let known = [("order".to_owned(), 1)];
    let mut seen = 0;
    for rank in 0..2 {
        let share = Share { rank, of: 2 };
        let mut longest: Vec<i64> = waiting
            .iter()
            .filter(|one| share.has(one.id))
            .filter_map(|one| one.wake_ms)
            .collect();
        longest.sort_unstable();
        seen += longest.len();
        let due = journal.due(share, &known, 20_000, 5).await.expect("looks");
        let first: Vec<i64> = due.ids.iter().filter_map(|id| wake_of(*id)).collect();
        assert_eq!(first, longest[..5], "who waits longest comes first");
    }
    assert_eq!(seen, waiting.len(), "each is in one share");
    let ttl = std::time::Duration::from_secs(30);
    let lost = journal.join("owner", ttl).await.expect("joins");
    let taken = journal.join("owner", ttl).await.expect("joins");
    let ended = Append {
        seq: waiting[0].events.len() as i64,
        events: vec![Happened {
            at_ms: 1,
            event: Event::Ended(End::Completed),
        }],
        status: Status::Completed,
        wake_ms: None,
        messages: Vec::new(),
        ..waiting[0].clone()
    };
    let one = std::slice::from_ref(&ended);
    let refused = journal
        .append(Some(&lost), one)
        .await
        .expect_err("the lease is lost");
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    let found = journal.load(&[ended.id]).await.expect("loads");
    assert_eq!(found[0].status, Status::Running);
    assert_eq!(
        journal.append(Some(&taken), one).await.expect("appends"),
        [true]
    );
}

#[tokio::test]
async fn saga_dtm_recovery_takes_who_waits_longest_and_writes_under_a_lease_only() {
    recovers_in_order_and_under_a_lease(&MemoryJournal::new()).await;
    recovers_in_order_and_under_a_lease(&KvJournal::new(kv_outbox())).await;
    let lite = Lite::new().await;
    let journal = SqliteJournal::migrate(lite.outbox().await).await;
    recovers_in_order_and_under_a_lease(&journal.expect("migrates")).await;
    let pg = Pg::new().await;
    let journal = PgJournal::migrate(pg.outbox().await).await;
    recovers_in_order_and_under_a_lease(&journal.expect("migrates")).await;
    pg.end().await;
}

/// A `Kv` that counts the entries that are read.
struct Counting {
    kv: MemoryKv,
    read: AtomicUsize,
}

impl Kv for Counting {
    fn domain(&self) -> Domain {
        self.kv.domain()
    }

    fn get(&self, get: Get) -> BoxFuture<'_, quorate_kv::Result<Option<Entry>>> {
        self.read.fetch_add(1, Ordering::SeqCst);
        self.kv.get(get)
    }

    fn put(&self, put: Put) -> BoxFuture<'_, quorate_kv::Result<Written>> {
        self.kv.put(put)
    }

    fn delete(&self, delete: Delete) -> BoxFuture<'_, quorate_kv::Result<Written>> {
        self.kv.delete(delete)
    }

    fn batch(&self, batch: Batch) -> BoxFuture<'_, quorate_kv::Result<BatchResult>> {
        self.kv.batch(batch)
    }

    fn compare(&self, compare: Compare) -> BoxFuture<'_, quorate_kv::Result<CompareResult>> {
        self.kv.compare(compare)
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'_, quorate_kv::Result<ScanPage>> {
        Box::pin(async move {
            let page = self.kv.scan(scan).await?;
            self.read.fetch_add(page.entries.len(), Ordering::SeqCst);
            Ok(page)
        })
    }
}

/// What looks at open sagas reads as much beside ten that have ended as beside a thousand.
#[tokio::test]
async fn journal_over_kv_reads_none_of_the_ended_to_find_the_open() {
    let domain = Domain {
        cluster: 7,
        namespace: 1,
        incarnation: 1,
    };
    let kv = Arc::new(Counting {
        kv: MemoryKv::new(domain),
        read: AtomicUsize::new(0),
    });
    let outbox = KvOutbox::new(kv.clone(), "kv", vec!["one".into(), "two".into()]);
    let journal = KvJournal::new(outbox.expect("an outbox"));
    let definition = Saga::named("order")
        .step(Step::new("reserve", "stock"))
        .build();
    let registry = Registry::new().with(definition.expect("builds"));
    let planner = Planner::new(registry.expect("a registry"), "replies");
    let begin = |key: String, now_ms| {
        let begun = planner.begin(&Begin::new("order", key, json!({})), now_ms);
        Append {
            messages: Vec::new(),
            ..begun.expect("begins")
        }
    };
    let open: Vec<Append> = (0..5)
        .map(|n| begin(format!("open-{n}"), 500 + n))
        .collect();
    assert!(
        journal
            .append(None, &open)
            .await
            .expect("appends")
            .iter()
            .all(|written| *written)
    );
    let known = [("order".to_owned(), 1)];
    let all = Share { rank: 0, of: 1 };
    let stuck = Filter {
        status: Some(Status::Stuck),
        name: None,
    };
    let running = Filter {
        status: Some(Status::Running),
        name: None,
    };
    let mut reads = Vec::new();
    for (from, to) in [(0, 10), (10, 1000)] {
        for n in from..to {
            let first = begin(format!("ended-{n}"), n);
            let ended = Append {
                seq: first.events.len() as i64,
                events: vec![Happened {
                    at_ms: n,
                    event: Event::Ended(End::Completed),
                }],
                status: Status::Completed,
                wake_ms: None,
                ..first.clone()
            };
            for one in [first, ended] {
                assert_eq!(journal.append(None, &[one]).await.expect("appends"), [true]);
            }
        }
        let mut read = Vec::new();
        let count = || kv.read.swap(0, Ordering::SeqCst);
        count();
        let due = journal
            .due(all, &known, i64::MAX, 100)
            .await
            .expect("looks");
        assert_eq!(due.ids.len(), 5);
        read.push(count());
        let now = journal.open().await.expect("counts");
        assert_eq!((now.running, now.stuck, now.oldest_ms), (5, 0, Some(500)));
        read.push(count());
        assert!(journal.list(&stuck, 100).await.expect("lists").is_empty());
        read.push(count());
        assert_eq!(journal.list(&running, 100).await.expect("lists").len(), 5);
        read.push(count());
        // Nothing is as old as that.
        assert_eq!(journal.forget(0, 100).await.expect("forgets"), 0);
        read.push(count());
        reads.push(read);
    }
    assert_eq!(reads[0], reads[1], "due, open, stuck, running, forget");
    let counts = journal.count().await.expect("counts");
    let counts: Vec<(Status, i64)> = counts.iter().map(|one| (one.status, one.sagas)).collect();
    assert_eq!(counts, [(Status::Running, 5), (Status::Completed, 1000)]);
    // The oldest go first, and with them their places in the index.
    assert_eq!(journal.forget(700, 300).await.expect("forgets"), 300);
    let left = journal.list(&Filter::default(), 2).await.expect("lists");
    let left: Vec<i64> = left.iter().map(|saga| saga.started_ms).collect();
    assert_eq!(left, [300, 301]);
    assert_eq!(journal.forget(700, 1000).await.expect("forgets"), 400);
    let counts = journal.count().await.expect("counts");
    assert_eq!(counts.iter().map(|one| one.sagas).sum::<i64>(), 305);
}

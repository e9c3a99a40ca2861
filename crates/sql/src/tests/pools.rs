//! Pools that are full, leaked from, or idle.

use std::time::{Duration, Instant};

use sqlx::{MySql, Postgres, Sqlite};

use super::support::{Lite, My, Pg, eventually, number, open, run, write};
use crate::pool::LimitOptions;
use crate::{ErrorKind, Options, Read, Work};

/// So many at once, neither more nor less.
fn exactly(mut options: Options, count: usize) -> Options {
    options.pool.limit = LimitOptions {
        floor: count,
        start: count,
        ..LimitOptions::up_to(count)
    };
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_that_is_full_says_who_holds_what_for_how_long() {
    let pg = Pg::new().await;
    let mut options = exactly(pg.options(), 2);
    options.pool.patience = Duration::from_secs(1);
    let db = open::<Postgres>(options).await;
    let session = db.session();
    let one = session.read(Read::Primary).await.expect("a connection");
    let two = session.begin(Work::default()).await.expect("a connection");
    let begun = Instant::now();
    let error = session.read(Read::Primary).await.expect_err("full");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let said = error.message().matches("tests/pools.rs:").count();
    assert!(said == 2 && error.message().contains("2 of 2"), "{error}");
    let holders = db.status().primary.holders;
    assert_eq!(holders.len(), 2);
    assert!(holders[0].held >= holders[1].held);
    drop((one, two));
    session.read(Read::Primary).await.expect("free again");
    drop((session, db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_waiter_that_gives_up_takes_no_place_along() {
    let lite = Lite::new();
    let db = open::<Sqlite>(exactly(lite.options(), 1)).await;
    let session = db.session();
    let held = session.read(Read::Primary).await.expect("a connection");
    for _ in 0..20 {
        let waiting = tokio::time::timeout(Duration::from_millis(1), session.read(Read::Primary));
        waiting.await.expect_err("full");
    }
    drop(held);
    session.read(Read::Primary).await.expect("free");
    assert!(db.status().primary.holders.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_is_not_drained_by_leaks() {
    let pg = Pg::new().await;
    let mut options = exactly(pg.options(), 2);
    options.pool.hold_max = Some(Duration::from_millis(40));
    let db = open::<Postgres>(options).await;
    let session = db.session();
    const LEAKS: u64 = 12;
    for _ in 0..LEAKS {
        let lease = session
            .read(Read::Primary)
            .await
            .expect("there is one still");
        std::mem::forget(lease);
    }
    eventually("all are counted out", || async {
        let leaked = db.status().primary.leaked;
        (leaked == LEAKS).then_some(()).ok_or(leaked.to_string())
    })
    .await;
    let status = db.status().primary;
    assert!(
        status.replaced > 0 && status.holders.is_empty(),
        "{status:?}"
    );
    let both = (
        session.read(Read::Primary).await.expect("one"),
        session.read(Read::Primary).await.expect("two"),
    );
    drop((both, session, db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_lease_held_for_too_long_and_then_given_back_costs_nothing() {
    let lite = Lite::new();
    let mut options = exactly(lite.options(), 1);
    options.pool.hold_max = Some(Duration::from_millis(20));
    let db = open::<Sqlite>(options).await;
    let session = db.session();
    for _ in 0..8 {
        // Before the lease: on a busy machine it may be counted out as soon as it is held.
        let before = db.status().primary.leaked;
        let lease = session.read(Read::Primary).await.expect("a connection");
        eventually("it is counted out", || async {
            let leaked = db.status().primary.leaked;
            (leaked > before).then_some(()).ok_or(leaked.to_string())
        })
        .await;
        drop(lease);
    }
    session.read(Read::Primary).await.expect("a connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_leaked_transaction_loses_its_locks() {
    let (pg, my) = (Pg::new().await, My::new().await);
    let mut options = exactly(pg.options(), 2);
    options.pool.hold_max = Some(Duration::from_secs(1));
    let db = open::<Postgres>(options).await;
    let session = db.session();
    write(
        &session,
        &["CREATE TABLE t (n bigint)", "INSERT INTO t VALUES (1)"],
    )
    .await;
    let mut tx = session.begin(Work::default()).await.expect("begins");
    run::<Postgres>(&mut tx, "UPDATE t SET n = 2")
        .await
        .expect("locks");
    std::mem::forget(tx);
    write(&session, &["UPDATE t SET n = n + 10"]).await;
    let mut lease = session.read(Read::Primary).await.expect("reads");
    let n = number::<Postgres>(&mut lease, "SELECT n FROM t").await;
    assert_eq!(n.expect("reads"), Some(11));
    drop(lease);
    let mut options = exactly(my.options(), 2);
    options.pool.hold_max = Some(Duration::from_secs(1));
    let other = open::<MySql>(options).await;
    let session = other.session();
    write(
        &session,
        &["CREATE TABLE t (n bigint)", "INSERT INTO t VALUES (1)"],
    )
    .await;
    let mut tx = session.begin(Work::default()).await.expect("begins");
    run::<MySql>(&mut tx, "UPDATE t SET n = 2")
        .await
        .expect("locks");
    std::mem::forget(tx);
    write(&session, &["UPDATE t SET n = n + 10"]).await;
    let mut lease = session.read(Read::Primary).await.expect("reads");
    let n = number::<MySql>(&mut lease, "SELECT n FROM t").await;
    assert_eq!(n.expect("reads"), Some(11));
    drop((lease, session, other, db));
    pg.end().await;
    my.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_closes_connections_that_nobody_uses() {
    let pg = Pg::new().await;
    let mut options = exactly(pg.options(), 4);
    options.pool.idle_max = Duration::from_millis(500);
    let db = open::<Postgres>(options).await;
    let session = db.session();
    let mut leases = Vec::new();
    for _ in 0..4 {
        leases.push(session.read(Read::Primary).await.expect("a connection"));
    }
    assert_eq!(db.status().primary.size, 4);
    drop(leases);
    eventually("they are closed", || async {
        let size = db.status().primary.size;
        (size == 0).then_some(()).ok_or(format!("{size} are open"))
    })
    .await;
    drop((session, db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn database_that_is_gone_is_unavailable_in_time() {
    let mut options = Options::new("postgres://nobody@127.0.0.1:9/none");
    options.pool.patience = Duration::from_millis(300);
    let begun = Instant::now();
    let error = crate::Database::<Postgres>::connect(options)
        .await
        .expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let error = crate::Database::<Postgres>::connect(Options::new("what is this")).await;
    assert_eq!(error.expect_err("no URL").kind(), ErrorKind::Invalid);
}

#[test]
fn options_show_no_passwords() {
    let options = Options::new("postgres://me:secret@one/db");
    let options = options.replica("two", "postgres://me:secret@two/db");
    let shown = format!("{options:?}");
    assert!(
        shown.contains("two") && !shown.contains("secret"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_of_a_statement_is_told_without_running_it() {
    let (pg, my, lite) = (Pg::new().await, My::new().await, Lite::new());
    const MAKE: &str = "CREATE TABLE t (n bigint PRIMARY KEY)";
    const ASK: &str = "DELETE FROM t WHERE n = 1";
    const FILL: &str = "INSERT INTO t VALUES (1)";
    let db = open::<Postgres>(pg.options()).await;
    write(&db.session(), &[MAKE, FILL]).await;
    let plan = db.plan(ASK).await.expect("plans").join("\n");
    assert!(plan.contains("Delete on t"), "{plan}");
    let mut lease = db.session().read(Read::Primary).await.expect("reads");
    let count = number::<Postgres>(&mut lease, "SELECT count(*) FROM t").await;
    assert_eq!(count.expect("counts"), Some(1), "it was not run");
    drop(lease);
    let other = open::<MySql>(my.options()).await;
    write(&other.session(), &[MAKE, FILL]).await;
    let plan = other.plan(ASK).await.expect("plans").join("\n");
    assert!(plan.contains("\"table_name\": \"t\""), "{plan}");
    let third = open::<Sqlite>(lite.options()).await;
    write(&third.session(), &[MAKE, FILL]).await;
    let plan = third.plan(ASK).await.expect("plans").join("\n");
    assert!(plan.contains("SEARCH t"), "{plan}");
    drop((db, other));
    pg.end().await;
    my.end().await;
}

/// What is logged, as text.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_statement_is_logged_and_a_fast_one_is_not() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    // Of one thread only it would depend on what others have found enabled.
    tracing::subscriber::set_global_default(subscriber).expect("no other test has one");
    let pg = Pg::new().await;
    let mut options = exactly(pg.options(), 1);
    options.pool.slow = Duration::from_secs(1);
    let db = open::<Postgres>(options).await;
    let mut lease = db
        .session()
        .read(Read::Primary)
        .await
        .expect("a connection");
    run::<Postgres>(&mut lease, "SELECT 'a fast one'")
        .await
        .expect("runs");
    run::<Postgres>(&mut lease, "SELECT pg_sleep(1.2), 'a slow one'")
        .await
        .expect("runs");
    let said = String::from_utf8(log.0.lock().clone()).expect("text");
    assert!(
        said.contains("a slow one") && !said.contains("a fast one"),
        "{said}"
    );
    drop((lease, db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_statements_are_counted() {
    let pg = Pg::new().await;
    let db = open::<Postgres>(exactly(pg.options(), 1)).await;
    let mut lease = db
        .session()
        .read(Read::Primary)
        .await
        .expect("a connection");
    let before = lease.cached_statements();
    run::<Postgres>(&mut lease, "SELECT 1 + 1")
        .await
        .expect("runs");
    run::<Postgres>(&mut lease, "SELECT 1 + 1")
        .await
        .expect("runs");
    assert_eq!(lease.cached_statements(), before + 1);
    drop((lease, db));
    pg.end().await;
}

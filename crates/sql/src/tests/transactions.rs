//! Conflicts, commits whose answer is lost, and statements that take too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::{MySql, Postgres, Sqlite};
use tokio::sync::Barrier;

use super::proxy::{AtCommit, Proxy};
use super::support::{Lite, My, Pg, eventually, number, open, run, variable, write};
use crate::backend::Backend;
use crate::{
    Database, Error, ErrorKind, Isolation, Options, Outcome, Read, Session, SessionOptions, Work,
};

/// Two doctors are on call, and each goes if another stays. Both look before either goes, in their first
/// try. Answers how many are left, and how many tries there were.
async fn both_go<DB: Backend>(db: &Database<DB>, isolation: Isolation, meet: bool) -> (i64, u32) {
    let session = db.session();
    write(
        &session,
        &[
            "CREATE TABLE doctors (id bigint PRIMARY KEY, on_call bigint NOT NULL)",
            "INSERT INTO doctors VALUES (1, 1), (2, 1)",
        ],
    )
    .await;
    let tries = Arc::new(AtomicU32::new(0));
    let barrier = Arc::new(Barrier::new(2));
    let going = [1, 2].map(|id| {
        let session = db.session();
        let (tries, barrier) = (Arc::clone(&tries), Arc::clone(&barrier));
        tokio::spawn(async move {
            let first = AtomicU32::new(0);
            let work = Work::default().isolation(isolation);
            session
                .transaction(work, |tx| {
                    Box::pin(async {
                        tries.fetch_add(1, Ordering::Relaxed);
                        let look = "SELECT count(*) FROM doctors WHERE on_call = 1";
                        let count = number::<DB>(tx, look).await?;
                        if meet && first.fetch_add(1, Ordering::Relaxed) == 0 {
                            barrier.wait().await;
                        }
                        if count >= Some(2) {
                            let go = format!("UPDATE doctors SET on_call = 0 WHERE id = {id}");
                            run::<DB>(tx, &go).await?;
                        }
                        Ok(())
                    })
                })
                .await
        })
    });
    for gone in join_all(going).await {
        gone.expect("no panic").expect("commits");
    }
    let mut lease = session.read(Read::Primary).await.expect("reads");
    let look = "SELECT count(*) FROM doctors WHERE on_call = 1";
    let left = number::<DB>(&mut lease, look).await.expect("counts");
    (left.unwrap_or(-1), tries.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread")]
async fn serializable_write_skew_on_postgres_is_prevented_and_run_again() {
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.options()).await;
    let (left, tries) = both_go(&db, Isolation::Serializable, true).await;
    assert_eq!(left, 1);
    assert!(tries >= 3, "one was run again: {tries} tries");
    drop(db);
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serializable_write_skew_happens_without_it() {
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.options()).await;
    // The teeth of the tests beside it.
    assert_eq!(both_go(&db, Isolation::RepeatableRead, true).await, (0, 2));
    drop(db);
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serializable_write_skew_on_mysql_is_prevented_and_run_again() {
    let my = My::new().await;
    let db = open::<MySql>(my.options()).await;
    let (left, tries) = both_go(&db, Isolation::Serializable, true).await;
    assert_eq!(left, 1);
    assert!(tries >= 3, "one was run again: {tries} tries");
    drop(db);
    my.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serializable_write_skew_on_sqlite_is_prevented() {
    let lite = Lite::new();
    let db = open::<Sqlite>(lite.options()).await;
    // The second can't look while the first is at it, so they do not meet.
    assert_eq!(both_go(&db, Isolation::Serializable, false).await, (1, 2));
}

async fn counter<DB: Backend>(db: &Database<DB>) {
    let session = db.session();
    write(
        &session,
        &[
            "CREATE TABLE counter (id bigint PRIMARY KEY, n bigint NOT NULL)",
            "INSERT INTO counter VALUES (1, 0)",
        ],
    )
    .await;
    const TASKS: i64 = 6;
    const TIMES: i64 = 10;
    let work = Work {
        tries_max: 1000,
        budget: Duration::from_secs(100),
        ..Work::default()
    };
    let all = (0..TASKS).map(|_| {
        let session = db.session();
        tokio::spawn(async move {
            for _ in 0..TIMES {
                let added = session.transaction(work, |tx| {
                    Box::pin(async move {
                        let look = "SELECT n FROM counter WHERE id = 1";
                        let n = number::<DB>(tx, look).await?.unwrap_or(0);
                        let put = format!("UPDATE counter SET n = {} WHERE id = 1", n + 1);
                        run::<DB>(tx, &put).await
                    })
                });
                added.await.expect("commits");
            }
        })
    });
    for task in join_all(all).await {
        task.expect("no panic");
    }
    let mut lease = session.read(Read::Primary).await.expect("reads");
    let n = number::<DB>(&mut lease, "SELECT n FROM counter WHERE id = 1").await;
    assert_eq!(
        n.expect("reads"),
        Some(TASKS * TIMES),
        "no update was lost or doubled"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_collide_lose_and_double_no_update() {
    let (pg, my, lite) = (Pg::new().await, My::new().await, Lite::new());
    counter(&open::<Postgres>(pg.options()).await).await;
    counter(&open::<MySql>(my.options()).await).await;
    counter(&open::<Sqlite>(lite.options()).await).await;
    pg.end().await;
    my.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_that_always_collides_is_given_up_within_its_budget() {
    let lite = Lite::new();
    let db = open::<Sqlite>(lite.options()).await;
    let tries = AtomicU32::new(0);
    let mut work = Work {
        tries_max: 4,
        ..Work::default()
    };
    let session = db.session();
    let ended = session.transaction(work, |_| {
        Box::pin(async {
            tries.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(Error::new(ErrorKind::Conflict, "as ever"))
        })
    });
    let error = ended.await.expect_err("given up");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.message().contains("4 tries") && error.message().contains("as ever"),
        "{error}"
    );
    assert_eq!(tries.load(Ordering::Relaxed), 4);
    work.tries_max = u32::MAX;
    work.budget = Duration::from_millis(100);
    let ended = session.transaction(work, |_| {
        Box::pin(async { Err::<(), _>(Error::new(ErrorKind::Conflict, "as ever")) })
    });
    assert_eq!(
        ended.await.expect_err("given up").kind(),
        ErrorKind::Conflict
    );
    let ended = session.transaction(work, |_| {
        Box::pin(async {
            tries.store(0, Ordering::Relaxed);
            Err::<(), _>(Error::aborted("no stock"))
        })
    });
    assert_eq!(ended.await.expect_err("its own").message(), "no stock");
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_whose_code_dropped_an_error_is_not_told_as_committed() {
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.options()).await;
    let session = db.session();
    write(
        &session,
        &[
            "CREATE TABLE t (n bigint PRIMARY KEY)",
            "INSERT INTO t VALUES (1)",
        ],
    )
    .await;
    let before = session.token();
    let ended = session.transaction(Work::default(), |tx| {
        Box::pin(async move {
            run::<Postgres>(tx, "INSERT INTO t VALUES (2)").await?;
            let _ = run::<Postgres>(tx, "INSERT INTO t VALUES (1)").await;
            Ok(())
        })
    });
    // PostgreSQL answers to such a COMMIT as to any other.
    let error = ended.await.expect_err("it was rolled back");
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Refused, Some("25P02")),
        "{error}"
    );
    assert_eq!(session.token(), before);
    let mut lease = session.read(Read::Primary).await.expect("reads");
    let count = number::<Postgres>(&mut lease, "SELECT count(*) FROM t").await;
    assert_eq!(count.expect("counts"), Some(1));
    drop(lease);
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_that_had_ended_before_its_commit_is_of_unknown_outcome() {
    let my = My::new().await;
    let db = open::<MySql>(my.options()).await;
    let session = db.session();
    let tries = AtomicU32::new(0);
    // A change of the schema commits on MySQL: what follows is not in the transaction.
    let ended = session.transaction(Work::default(), |tx| {
        Box::pin(async {
            tries.fetch_add(1, Ordering::Relaxed);
            run::<MySql>(tx, "CREATE TABLE t (n bigint)").await?;
            run::<MySql>(tx, "INSERT INTO t VALUES (1)").await
        })
    });
    let error = ended.await.expect_err("it was no transaction");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert_eq!(tries.load(Ordering::Relaxed), 1);
    drop((session, db));
    my.end().await;
}

/// A PostgreSQL behind a proxy, with a table.
async fn behind_proxy(pg: &Pg) -> (Proxy, Database<Postgres>, Session<Postgres>) {
    let url = variable("QUORATE_POSTGRES");
    let options: sqlx::postgres::PgConnectOptions = url.parse().expect("a URL");
    let port = options.get_port();
    let proxy = Proxy::to(port).await;
    let url = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    let db = open::<Postgres>(Options::new(pg.within(&url))).await;
    let told = SessionOptions {
        commit_max: Duration::from_secs(2),
        ..SessionOptions::default()
    };
    let session = db.session_with(told);
    write(&session, &["CREATE TABLE t (n bigint)"]).await;
    (proxy, db, session)
}

async fn rows(pg: &Pg) -> i64 {
    let look = format!("SELECT count(*) FROM {}.t", pg.schema());
    let mut own = pg.admin.acquire().await.expect("connects");
    number::<Postgres>(&mut own, &look)
        .await
        .expect("counts")
        .unwrap_or(-1)
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_whose_answer_is_lost_is_of_unknown_outcome_and_not_run_again() {
    let pg = Pg::new().await;
    let (proxy, _db, session) = behind_proxy(&pg).await;
    let mut expected = 0;
    for (what, applied) in [
        (AtCommit::CutAfter, true),
        (AtCommit::CutBefore, false),
        (AtCommit::Swallow, false),
    ] {
        proxy.at_commit(what);
        let tries = AtomicU32::new(0);
        let token = session.token();
        let ended = session.transaction(Work::default(), |tx| {
            Box::pin(async {
                tries.fetch_add(1, Ordering::Relaxed);
                run::<Postgres>(tx, "INSERT INTO t VALUES (1)").await
            })
        });
        let error = ended.await.expect_err("no answer came");
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what:?}: {error}");
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert!(!error.is_retryable());
        assert_eq!(tries.load(Ordering::Relaxed), 1, "{what:?}: run again");
        assert_eq!(session.token(), token, "nothing is claimed");
        expected += i64::from(applied);
        assert_eq!(rows(&pg).await, expected, "{what:?}");
        proxy.at_commit(AtCommit::Pass);
    }
    drop((session, proxy, _db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_to_a_database_that_fell_silent_before_it_is_unavailable_and_undone() {
    let pg = Pg::new().await;
    let (proxy, _db, session) = behind_proxy(&pg).await;
    let mut tx = session.begin(Work::default()).await.expect("begins");
    run::<Postgres>(&mut tx, "INSERT INTO t VALUES (1)")
        .await
        .expect("writes");
    proxy.at_commit(AtCommit::Freeze);
    let error = tx.commit().await.expect_err("it is silent");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(session.past.lock().doubts, 0, "no commit was sent");
    proxy.at_commit(AtCommit::Pass);
    assert_eq!(rows(&pg).await, 0);
    drop((session, proxy, _db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_that_is_dropped_halfway_leaves_the_session_in_doubt() {
    let pg = Pg::new().await;
    let (proxy, _db, session) = behind_proxy(&pg).await;
    proxy.at_commit(AtCommit::Swallow);
    let mut tx = session.begin(Work::default()).await.expect("begins");
    run::<Postgres>(&mut tx, "INSERT INTO t VALUES (1)")
        .await
        .expect("writes");
    let cut = tokio::time::timeout(Duration::from_millis(50), tx.commit()).await;
    assert!(cut.is_err(), "it hangs");
    assert_eq!(session.past.lock().doubts, 1);
    proxy.at_commit(AtCommit::Pass);
    drop((session, proxy, _db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_whose_connection_breaks_before_the_commit_is_run_again() {
    let pg = Pg::new().await;
    let (proxy, _db, session) = behind_proxy(&pg).await;
    let port = {
        let url = variable("QUORATE_POSTGRES");
        let options: sqlx::postgres::PgConnectOptions = url.parse().expect("a URL");
        options.get_port()
    };
    let tries = AtomicU32::new(0);
    let ended = session.transaction(Work::default(), |tx| {
        Box::pin(async {
            run::<Postgres>(tx, "INSERT INTO t VALUES (1)").await?;
            if tries.fetch_add(1, Ordering::Relaxed) == 0 {
                proxy.turn(port);
            }
            run::<Postgres>(tx, "INSERT INTO t VALUES (2)").await
        })
    });
    ended.await.expect("commits");
    assert_eq!((tries.load(Ordering::Relaxed), rows(&pg).await), (2, 2));
    drop((session, proxy, _db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_that_exceeds_its_time_is_ended_by_the_server() {
    let (pg, my) = (Pg::new().await, My::new().await);
    let mut options = pg.options();
    options.pool.statement_max = Some(Duration::from_secs(1));
    let db = open::<Postgres>(options).await;
    let session = db.session();
    let mut lease = session.read(Read::Primary).await.expect("a connection");
    let error = run::<Postgres>(&mut lease, "SELECT pg_sleep(60)")
        .await
        .expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    run::<Postgres>(&mut lease, "SELECT 1")
        .await
        .expect("the connection is good");
    drop(lease);
    let mut options = my.options();
    options.pool.statement_max = Some(Duration::from_secs(1));
    let db = open::<MySql>(options).await;
    let session = db.session();
    let mut lease = session.read(Read::Primary).await.expect("a connection");
    // MariaDB's SLEEP answers 1 when it is cut short; a statement that works is an error.
    let long =
        "SELECT count(*) FROM seq_1_to_100000 a, seq_1_to_100000 b WHERE a.seq * b.seq % 7 = 8";
    let error = run::<MySql>(&mut lease, long).await.expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    drop((lease, session, db));
    pg.end().await;
    my.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_that_is_dropped_is_rolled_back_and_savepoints_work_within() {
    use sqlx::Acquire;
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.options()).await;
    let session = db.session();
    write(&session, &["CREATE TABLE t (n bigint)"]).await;
    let mut tx = session.begin(Work::default()).await.expect("begins");
    run::<Postgres>(&mut tx, "INSERT INTO t VALUES (1)")
        .await
        .expect("writes");
    drop(tx);
    let mut tx = session.begin(Work::default()).await.expect("begins");
    run::<Postgres>(&mut tx, "INSERT INTO t VALUES (2)")
        .await
        .expect("writes");
    let mut inner = (&mut *tx).begin().await.expect("a savepoint");
    run::<Postgres>(&mut inner, "INSERT INTO t VALUES (3)")
        .await
        .expect("writes");
    inner.rollback().await.expect("to the savepoint");
    tx.commit().await.expect("commits");
    eventually("the dropped one is gone", || async {
        let count = rows(&pg).await;
        (count == 1).then_some(()).ok_or(format!("{count} rows"))
    })
    .await;
    drop((session, db));
    pg.end().await;
}

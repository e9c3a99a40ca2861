//! Optimistic, row and advisory locks.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, MySql, Postgres, Sqlite};

use super::support::{Lite, My, Pg, eventually, number, open, run, write};
use crate::backend::Backend;
use crate::lock::{Patience, RowLock, Versioned, changed_one, until_no_conflict};
use crate::{Database, ErrorKind, Read, Work};

/// A table of one row, with its version.
async fn stock<DB: Backend>(db: &Database<DB>) {
    let make = "CREATE TABLE stock (id bigint PRIMARY KEY, left_over bigint, version bigint)";
    write(
        &db.session(),
        &[make, "INSERT INTO stock VALUES (1, 10, 1), (2, 10, 1)"],
    )
    .await;
}

/// Replaces the parameters of an update by numbers: the text is what is tested.
fn filled(text: &str, values: &[i64]) -> String {
    let mut text = text.to_owned();
    for (at, value) in values.iter().enumerate() {
        let numbered = format!("${}", at + 1);
        let found = if text.contains(&numbered) {
            numbered
        } else {
            "?".into()
        };
        text = text.replacen(&found, &value.to_string(), 1);
    }
    text
}

async fn optimistic<DB: Backend>(db: &Database<DB>) {
    stock(db).await;
    let table = Versioned::new("stock", "id", "version");
    let session = db.session();
    let tries = AtomicU32::new(0);
    let taken = until_no_conflict(5, || async {
        let mut tx = session.begin(Work::default()).await?;
        let left = number::<DB>(&mut tx, "SELECT left_over FROM stock WHERE id = 1").await?;
        let version = number::<DB>(&mut tx, "SELECT version FROM stock WHERE id = 1").await?;
        tx.rollback().await?;
        if tries.fetch_add(1, Ordering::Relaxed) == 0 {
            // Another is faster.
            write(
                &db.session(),
                &[&filled(&table.update::<DB>(&["left_over"]), &[3, 1, 1])],
            )
            .await;
        }
        let (left, version) = (left.unwrap_or(0), version.unwrap_or(0));
        let text = filled(&table.update::<DB>(&["left_over"]), &[left - 1, 1, version]);
        let mut tx = session.begin(Work::default()).await?;
        changed_one(run::<DB>(&mut tx, &text).await?)?;
        tx.commit().await?;
        Ok(left - 1)
    })
    .await;
    assert_eq!(taken.expect("at the second try"), 2);
    assert_eq!(tries.load(Ordering::Relaxed), 2);
    let mut tx = session.begin(Work::default()).await.expect("begins");
    let gone = run::<DB>(&mut tx, &filled(&table.delete::<DB>(), &[1, 1])).await;
    let error = changed_one(gone.expect("runs")).expect_err("of another version");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let gone = run::<DB>(&mut tx, &filled(&table.delete::<DB>(), &[1, 3])).await;
    changed_one(gone.expect("runs")).expect("deleted");
    tx.commit().await.expect("commits");
}

#[tokio::test(flavor = "multi_thread")]
async fn optimistic_change_of_another_version_conflicts_and_is_made_on_the_new_one() {
    let (pg, my, lite) = (Pg::new().await, My::new().await, Lite::new());
    optimistic(&open::<Postgres>(pg.options()).await).await;
    optimistic(&open::<MySql>(my.options()).await).await;
    optimistic(&open::<Sqlite>(lite.options()).await).await;
    pg.end().await;
    my.end().await;
}

async fn rows<DB: Backend>(db: &Database<DB>) {
    stock(db).await;
    let (one, two) = (db.session(), db.session());
    let work = Work::default().isolation(crate::Isolation::ReadCommitted);
    let select = |lock: RowLock, more: &str| {
        let clause = lock.clause::<DB>().expect("it has row locks");
        format!("SELECT id FROM stock {more}{clause}")
    };
    let mut holds = one.begin(work).await.expect("begins");
    let text = select(RowLock::Wait, "WHERE id = 1");
    assert_eq!(
        number::<DB>(&mut holds, &text).await.expect("locks"),
        Some(1)
    );
    let mut other = two.begin(work).await.expect("begins");
    let text = select(RowLock::SkipLocked, "ORDER BY id LIMIT 1");
    let found = number::<DB>(&mut other, &text).await.expect("locks");
    assert_eq!(found, Some(2), "the first is left out");
    let text = select(RowLock::NoWait, "WHERE id = 1");
    let error = number::<DB>(&mut other, &text)
        .await
        .expect_err("it is held");
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    assert!(error.is_retryable());
    other.rollback().await.expect("rolls back");
    holds.commit().await.expect("commits");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_lock_held_by_another_is_refused_or_skipped_as_asked() {
    let (pg, my) = (Pg::new().await, My::new().await);
    rows(&open::<Postgres>(pg.options()).await).await;
    rows(&open::<MySql>(my.options()).await).await;
    let error = RowLock::Wait.clause::<Sqlite>().expect_err("it has none");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    pg.end().await;
    my.end().await;
}

async fn advisory<DB: Backend>(db: &Database<DB>, key: &str) {
    let mut held = db.lock(key, Patience::None).await.expect("it is free");
    assert!(held.is_held().await);
    let error = db.lock(key, Patience::None).await.expect_err("it is held");
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    let short = Patience::Limited(Duration::from_millis(60));
    let error = db.lock(key, short).await.expect_err("it is held");
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    db.lock(format!("{key}-2"), Patience::None)
        .await
        .expect("another name");
    held.release().await.expect("it was held");
    // Given back by being dropped: who waits gets it.
    let held = db.lock(key, Patience::None).await.expect("it is free");
    let waits = tokio::spawn({
        let (db, key) = (db.clone(), key.to_owned());
        async move {
            db.lock(key, Patience::Limited(Duration::from_secs(30)))
                .await
        }
    });
    drop(held);
    let held = waits.await.expect("no panic").expect("it was released");
    held.release().await.expect("it was held");
}

#[tokio::test(flavor = "multi_thread")]
async fn advisory_lock_excludes_others_and_goes_with_its_guard() {
    let (pg, my, lite) = (Pg::new().await, My::new().await, Lite::new());
    let key = format!("lock-{}", std::process::id());
    advisory(&open::<Postgres>(pg.options()).await, &key).await;
    advisory(&open::<MySql>(my.options()).await, &key).await;
    let db = open::<Sqlite>(lite.options()).await;
    let error = db.lock(key, Patience::None).await.expect_err("it has none");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    pg.end().await;
    my.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn advisory_lock_whose_session_was_ended_says_that_it_is_lost() {
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.options()).await;
    let key = format!("ended-{}", std::process::id());
    let mut held = db.lock(&key, Patience::None).await.expect("it is free");
    let pid = number::<Postgres>(held.connection(), "SELECT pg_backend_pid()::bigint").await;
    let pid = pid.expect("reads").expect("a number");
    pg.run(&format!("SELECT pg_terminate_backend({pid})")).await;
    let other = eventually("another gets it", || async {
        let taken = db.lock(&key, Patience::None).await;
        taken.map_err(|error| error.to_string())
    })
    .await;
    assert!(!held.is_held().await);
    held.release().await.expect_err("it was lost");
    other.release().await.expect("it was held");
    drop(db);
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_by_skip_locked_gives_each_row_to_one_worker() {
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.options()).await;
    let session = db.session();
    write(
        &session,
        &[
            "CREATE TABLE jobs (id bigint PRIMARY KEY, done bigint NOT NULL)",
            "INSERT INTO jobs SELECT i, 0 FROM generate_series(1, 40) i",
        ],
    )
    .await;
    let clause = RowLock::SkipLocked
        .clause::<Postgres>()
        .expect("it has row locks");
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let session = db.session();
        workers.spawn(async move {
            let work = Work::default().isolation(crate::Isolation::ReadCommitted);
            let mut took = 0;
            loop {
                let mut tx = session.begin(work).await.expect("begins");
                let text =
                    format!("SELECT id FROM jobs WHERE done = 0 ORDER BY id LIMIT 1{clause}");
                let id = sqlx::query_scalar::<_, i64>(AssertSqlSafe(text));
                let Some(id) = id.fetch_optional(&mut *tx).await.expect("locks") else {
                    return took;
                };
                let done = format!("UPDATE jobs SET done = done + 1 WHERE id = {id}");
                run::<Postgres>(&mut tx, &done).await.expect("runs");
                tx.commit().await.expect("commits");
                took += 1;
            }
        });
    }
    let took: i32 = workers.join_all().await.into_iter().sum();
    assert_eq!(took, 40);
    let mut lease = session.read(Read::Primary).await.expect("reads");
    let look = "SELECT count(*) FROM jobs WHERE done = 1";
    assert_eq!(
        number::<Postgres>(&mut lease, look).await.expect("counts"),
        Some(40)
    );
    drop((lease, session, db));
    pg.end().await;
}

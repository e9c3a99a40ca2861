//! The journals: the suite that all pass, and their tables.

use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::sqlite::SqliteOutbox;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;

use super::support::{Lite, Pg, kv_outbox};
use crate::ErrorKind;
use crate::journal::{KvJournal, MemoryJournal, PgJournal, SqliteJournal, conformance};

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

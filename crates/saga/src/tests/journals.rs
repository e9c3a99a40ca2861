//! The journals: the suite that all pass, and their tables.

use sqlx::AssertSqlSafe;

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

//! Tables that are missing, half made, of another version, or made twice at once.

use sqlx::AssertSqlSafe;

use super::support::{Lite, My, Pg};
use crate::inbox::{MySqlInbox, PgInbox, SqliteInbox};
use crate::mysql::MySqlOutbox;
use crate::postgres::PgOutbox;
use crate::sqlite::SqliteOutbox;
use crate::store::Store;
use crate::{ErrorKind, Message};

fn refused<T>(what: crate::Result<T>, says: &str) {
    refused_as(ErrorKind::Schema, what, says);
}

fn refused_as<T>(kind: ErrorKind, what: crate::Result<T>, says: &str) {
    let Err(error) = what else {
        panic!("opened although: {says}");
    };
    assert_eq!(error.kind(), kind, "{error}");
    assert!(
        error.message().contains(says),
        "{error} does not say {says}"
    );
}

#[tokio::test]
async fn schema_postgres_missing_old_and_half_made_are_refused() {
    let pg = Pg::new().await;
    let run = async |text: &str| {
        sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&pg.pool)
            .await
            .expect("runs");
    };
    let missing = PgOutbox::open(pg.pool.clone()).await;
    refused_as(ErrorKind::Missing, missing, "no outbox yet");
    let invalid = PgOutbox::migrate(pg.pool.clone(), 0).await.map(|_| ());
    assert_eq!(invalid.expect_err("no parts").kind(), ErrorKind::Invalid);
    run("CREATE TABLE quorate_outbox (id bigint)").await;
    refused(
        PgOutbox::migrate(pg.pool.clone(), 4).await,
        "without a version",
    );
    run("DROP TABLE quorate_outbox").await;
    let both = tokio::join!(
        PgOutbox::migrate(pg.pool.clone(), 4),
        PgOutbox::migrate(pg.pool.clone(), 4)
    );
    let (one, two) = (both.0.expect("migrates"), both.1.expect("migrates too"));
    assert_eq!(one.source(), two.source(), "one of them made it");
    assert_eq!(
        PgOutbox::migrate(pg.pool.clone(), 9)
            .await
            .expect("is there")
            .parts(),
        4
    );
    run("DROP TABLE quorate_outbox_2_1").await;
    refused(PgOutbox::open(pg.pool.clone()).await, "quorate_outbox_2_1");
    run("UPDATE quorate_outbox_schema SET version = 2").await;
    refused(PgOutbox::open(pg.pool.clone()).await, "newer program");
    refused(PgOutbox::migrate(pg.pool.clone(), 4).await, "version 2");
    run("DELETE FROM quorate_outbox_schema").await;
    refused(PgOutbox::open(pg.pool.clone()).await, "empty");
    run("DROP TABLE quorate_outbox").await;
    let mut tx = pg.pool.begin().await.expect("begins");
    let error = one.enqueue(&mut tx, &Message::keyed("t", "k", "x")).await;
    assert_eq!(error.expect_err("no table").kind(), ErrorKind::Schema);
    drop(tx);
    pg.end().await;
}

#[tokio::test]
async fn schema_mysql_missing_old_and_half_made_are_refused() {
    let my = My::new().await;
    let run = async |text: &str| {
        sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&my.pool)
            .await
            .expect("runs");
    };
    let missing = MySqlOutbox::open(my.pool.clone()).await;
    refused_as(ErrorKind::Missing, missing, "no outbox yet");
    for parts in [0, 65] {
        let invalid = MySqlOutbox::migrate(my.pool.clone(), parts).await;
        refused_as(ErrorKind::Invalid, invalid, "1 to 64 parts");
    }
    run("CREATE TABLE quorate_outbox (id bigint)").await;
    refused(
        MySqlOutbox::migrate(my.pool.clone(), 4).await,
        "without a version",
    );
    run("DROP TABLE quorate_outbox").await;
    let both = tokio::join!(
        MySqlOutbox::migrate(my.pool.clone(), 4),
        MySqlOutbox::migrate(my.pool.clone(), 4)
    );
    let (one, two) = (both.0.expect("migrates"), both.1.expect("migrates too"));
    assert_eq!(one.source(), two.source(), "one of them made it");
    let again = MySqlOutbox::migrate(my.pool.clone(), 9).await;
    assert_eq!(again.expect("is there").parts(), 4);
    run("DELETE FROM quorate_outbox_counter WHERE part = 3").await;
    let opened = MySqlOutbox::open(my.pool.clone()).await;
    refused(opened, "quorate_outbox_counter has not a row for each part");
    let mut tx = my.pool.begin().await.expect("begins");
    for key in 0..20 {
        let message = Message::keyed("t", key.to_string(), "x");
        match one.enqueue(&mut tx, &message).await {
            Ok(gave) => assert!(gave.part < 3),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Schema, "{error}"),
        }
    }
    drop(tx);
    run("INSERT INTO quorate_outbox_counter VALUES (3, 0)").await;
    run("ALTER TABLE quorate_outbox_member ENGINE = MyISAM").await;
    let opened = MySqlOutbox::open(my.pool.clone()).await;
    refused(opened, "quorate_outbox_member is not an InnoDB table");
    run("ALTER TABLE quorate_outbox_member ENGINE = InnoDB").await;
    run("DROP TABLE quorate_outbox_key").await;
    let opened = MySqlOutbox::open(my.pool.clone()).await;
    refused(opened, "quorate_outbox_key is missing");
    let mut tx = my.pool.begin().await.expect("begins");
    let error = one.enqueue(&mut tx, &Message::keyed("t", "k", "x")).await;
    assert_eq!(error.expect_err("no table").kind(), ErrorKind::Schema);
    drop(tx);
    run("UPDATE quorate_outbox_schema SET version = 2").await;
    refused(MySqlOutbox::open(my.pool.clone()).await, "newer program");
    refused(MySqlOutbox::migrate(my.pool.clone(), 4).await, "version 2");
    run("DELETE FROM quorate_outbox_schema").await;
    refused(MySqlOutbox::open(my.pool.clone()).await, "empty");
    refused(MySqlOutbox::migrate(my.pool.clone(), 4).await, "empty");
    my.end().await;
}

#[tokio::test]
async fn schema_sqlite_missing_old_and_half_made_are_refused() {
    let lite = Lite::new().await;
    let run = async |text: &str| {
        sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&lite.pool)
            .await
            .expect("runs");
    };
    let missing = SqliteOutbox::open(lite.pool.clone()).await;
    refused_as(ErrorKind::Missing, missing, "no outbox yet");
    run("CREATE TABLE quorate_outbox (id INTEGER)").await;
    refused(
        SqliteOutbox::migrate(lite.pool.clone(), 2).await,
        "without a version",
    );
    run("DROP TABLE quorate_outbox").await;
    let both = tokio::join!(
        SqliteOutbox::migrate(lite.pool.clone(), 2),
        SqliteOutbox::migrate(lite.pool.clone(), 2)
    );
    let (one, two) = (both.0.expect("migrates"), both.1.expect("migrates too"));
    assert_eq!(one.source(), two.source(), "one of them made it");
    run("DROP TABLE quorate_outbox_parked").await;
    refused(
        SqliteOutbox::open(lite.pool.clone()).await,
        "quorate_outbox_parked",
    );
    run("UPDATE quorate_outbox_schema SET version = 7").await;
    refused(SqliteOutbox::open(lite.pool.clone()).await, "version 7");
}

#[tokio::test]
async fn schema_of_inbox_missing_and_newer_are_refused() {
    let (pg, my, lite) = (Pg::new().await, My::new().await, Lite::new().await);
    let missing = PgInbox::open(pg.pool.clone()).await.map(|_| ());
    refused_as(ErrorKind::Missing, missing, "no inbox yet");
    let missing = MySqlInbox::open(my.pool.clone()).await.map(|_| ());
    refused_as(ErrorKind::Missing, missing, "no inbox yet");
    MySqlInbox::migrate(my.pool.clone())
        .await
        .expect("migrates");
    MySqlInbox::migrate(my.pool.clone()).await.expect("twice");
    let missing = SqliteInbox::open(lite.pool.clone()).await.map(|_| ());
    refused_as(ErrorKind::Missing, missing, "no inbox yet");
    PgInbox::migrate(pg.pool.clone()).await.expect("migrates");
    PgInbox::migrate(pg.pool.clone()).await.expect("twice");
    SqliteInbox::migrate(lite.pool.clone())
        .await
        .expect("migrates");
    let newer = "UPDATE quorate_inbox_schema SET version = 5";
    sqlx::query(newer).execute(&pg.pool).await.expect("runs");
    sqlx::query(newer).execute(&my.pool).await.expect("runs");
    sqlx::query(newer).execute(&lite.pool).await.expect("runs");
    for opened in [
        MySqlInbox::open(my.pool.clone()).await,
        MySqlInbox::migrate(my.pool.clone()).await,
    ] {
        refused(opened.map(|_| ()), "version 5");
    }
    my.end().await;
    refused(
        PgInbox::open(pg.pool.clone()).await.map(|_| ()),
        "version 5",
    );
    refused(
        SqliteInbox::open(lite.pool.clone()).await.map(|_| ()),
        "version 5",
    );
    pg.end().await;
}

//! What the databases without positions answer, and roles that are not what they were named for.

use std::time::Duration;

use sqlx::{MySql, Postgres, Sqlite};

use super::support::{Lite, My, Pg, Replica, all_serve, eventually, number, open, variable, write};
use crate::{Database, ErrorKind, Options, Place, Read, SessionOptions, Token, Work};

const RULES: [Read; 6] = [
    Read::Primary,
    Read::AfterWrite(Duration::from_secs(1)),
    Read::Session,
    Read::Synchronous,
    Read::Bounded(Duration::from_secs(1)),
    Read::Any,
];

fn a_token() -> Token {
    "pg1.0000000000000007.1.ff".parse().expect("a token")
}

#[tokio::test]
async fn sqlite_meets_every_rule_by_its_file_and_has_no_replicas() {
    let lite = Lite::new();
    let error = Database::<Sqlite>::connect(lite.options().replica("one", "sqlite::memory:")).await;
    assert_eq!(error.expect_err("refused").kind(), ErrorKind::Unsupported);
    let db = open::<Sqlite>(lite.options()).await;
    let session = db.session();
    write(
        &session,
        &["CREATE TABLE t (n bigint)", "INSERT INTO t VALUES (7)"],
    )
    .await;
    for rule in RULES {
        let mut lease = session.read(rule).await.expect("reads");
        let n = number::<Sqlite>(&mut lease, "SELECT n FROM t").await;
        assert_eq!(
            (lease.place(), n.expect("reads")),
            (&Place::Primary, Some(7))
        );
    }
    assert_eq!(session.token(), None);
    let resumed = db.resume(a_token(), SessionOptions::default());
    assert_eq!(resumed.expect_err("none").kind(), ErrorKind::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_replica_serves_any_and_other_rules_are_unsupported() {
    let my = My::new().await;
    // The server itself stands in for a replica: nothing is claimed about replication here.
    let db = open::<MySql>(my.options().replica("one", my.url())).await;
    let session = db.session();
    write(
        &session,
        &["CREATE TABLE t (n bigint)", "INSERT INTO t VALUES (7)"],
    )
    .await;
    eventually("the replica serves", || async {
        let mut lease = session.read(Read::Any).await.expect("reads");
        let n = number::<MySql>(&mut lease, "SELECT n FROM t").await;
        assert_eq!(n.expect("reads"), Some(7));
        let there = *lease.place() == Place::Replica("one".into());
        there.then_some(()).ok_or("on the primary".to_owned())
    })
    .await;
    for rule in RULES.into_iter().filter(|rule| *rule != Read::Any) {
        let read = session.read(rule).await;
        if rule == Read::Primary {
            assert_eq!(read.expect("reads").place(), &Place::Primary);
        } else {
            assert_eq!(
                read.expect_err("no proof").kind(),
                ErrorKind::Unsupported,
                "{rule:?}"
            );
        }
    }
    let begun = session.begin(Work::default().synchronous()).await;
    assert_eq!(begun.expect_err("no proof").kind(), ErrorKind::Unsupported);
    let resumed = db.resume(a_token(), SessionOptions::default());
    assert_eq!(resumed.expect_err("none").kind(), ErrorKind::Unsupported);
    drop((session, db));
    my.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_is_a_replica_is_refused() {
    let url = variable("QUORATE_POSTGRES_REPLICA");
    let error = Database::<Postgres>::connect(Options::new(url)).await;
    let error = error.expect_err("it takes no writes");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains("takes no writes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_that_is_a_primary_does_not_serve() {
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.options().replica("one", pg.url())).await;
    let trouble = eventually("it is found out", || async {
        let trouble = db.status().replicas[0].trouble.clone().unwrap_or_default();
        trouble
            .contains("no replica")
            .then_some(trouble.clone())
            .ok_or(trouble)
    })
    .await;
    let lease = db.session().read(Read::Any).await.expect("reads");
    assert_eq!(lease.place(), &Place::Primary, "{trouble}");
    drop(lease);
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_another_system_or_ahead_of_the_primary_is_lost() {
    let _replica = Replica::take().await;
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.with_replica()).await;
    all_serve(&db).await;
    let fail = SessionOptions {
        otherwise: crate::Otherwise::Fail,
        patience: Duration::from_millis(50),
        ..SessionOptions::default()
    };
    let foreign = db.resume(a_token(), fail).expect("resumes");
    let error = foreign
        .read(Read::Session)
        .await
        .expect_err("of another system");
    assert_eq!(error.kind(), ErrorKind::TokenLost, "{error}");
    let foreign = db
        .resume(a_token(), SessionOptions::default())
        .expect("resumes");
    let lease = foreign.read(Read::Session).await.expect("on the primary");
    assert_eq!(lease.place(), &Place::Primary);
    drop(lease);

    let mut position = db.status().primary_position.expect("a position");
    position.lsn += 1 << 40;
    let goes = SessionOptions {
        patience: Duration::from_millis(50),
        ..SessionOptions::default()
    };
    let ahead = db.resume(Token::new(position), goes).expect("resumes");
    let error = ahead.read(Read::Session).await.expect_err("nobody has it");
    assert_eq!(error.kind(), ErrorKind::TokenLost, "{error}");
    position.timeline += 1;
    position.lsn = 1;
    let ahead = db.resume(Token::new(position), goes).expect("resumes");
    let error = ahead
        .read(Read::Session)
        .await
        .expect_err("of a primary to come");
    assert_eq!(error.kind(), ErrorKind::TokenLost, "{error}");
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_whose_user_may_not_see_its_timeline_proves_nothing() {
    let _replica = Replica::take().await;
    let pg = Pg::new().await;
    let role = format!("quorate_sql_blind_{}", std::process::id());
    pg.run(&format!("DROP ROLE IF EXISTS {role}")).await;
    pg.run(&format!("CREATE ROLE {role} LOGIN")).await;
    let url = variable("QUORATE_POSTGRES_REPLICA").replace("postgres@", &format!("{role}@"));
    let mut options = pg.options().replica("one", url);
    options.watch_every = Duration::from_millis(20);
    let db = open::<Postgres>(options).await;
    let fail = SessionOptions {
        otherwise: crate::Otherwise::Fail,
        patience: Duration::from_millis(100),
        ..SessionOptions::default()
    };
    let session = db.session_with(fail);
    write(
        &session,
        &["CREATE TABLE t (n bigint)", "INSERT INTO t VALUES (7)"],
    )
    .await;
    eventually("it serves any", || async {
        let lease = session.read(Read::Any).await;
        lease.map(drop).map_err(|error| error.to_string())
    })
    .await;
    for rule in [
        Read::Session,
        Read::Synchronous,
        Read::Bounded(Duration::from_secs(60)),
    ] {
        let error = session.read(rule).await.expect_err("nothing is proved");
        assert_eq!(error.kind(), ErrorKind::Stale, "{rule:?}: {error}");
    }
    drop((session, db));
    eventually("its sessions end", || async {
        let drop = sqlx::query(sqlx::AssertSqlSafe(format!("DROP ROLE {role}")));
        drop.execute(&pg.admin)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn position_and_token_need_no_privileges_on_the_primary() {
    let pg = Pg::new().await;
    let role = format!("quorate_sql_plain_{}", std::process::id());
    pg.run(&format!("DROP ROLE IF EXISTS {role}")).await;
    pg.run(&format!("CREATE ROLE {role} LOGIN")).await;
    let url = variable("QUORATE_POSTGRES").replace("postgres@", &format!("{role}@"));
    let db = open::<Postgres>(Options::new(url)).await;
    let session = db.session();
    write(
        &session,
        &[
            "CREATE TEMPORARY TABLE t (n bigint)",
            "INSERT INTO t VALUES (1)",
        ],
    )
    .await;
    assert!(session.token().is_some());
    drop((session, db));
    eventually("its sessions end", || async {
        let drop = sqlx::query(sqlx::AssertSqlSafe(format!("DROP ROLE {role}")));
        drop.execute(&pg.admin)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    pg.end().await;
}

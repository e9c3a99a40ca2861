//! Servers that die, come back and are promoted.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection, Postgres};

use super::pair::{self, Server};
use super::proxy::Proxy;
use super::support::{all_serve, eventually, number, open, run, write};
use crate::backend::Backend;
use crate::{Database, ErrorKind, Options, Otherwise, Place, Read, Session, SessionOptions, Work};

async fn see(session: &Session<Postgres>, rule: Read) -> crate::Result<(Place, Option<i64>)> {
    let mut lease = session.read(rule).await?;
    let n = number::<Postgres>(&mut lease, "SELECT coalesce(max(n), 0) FROM t").await?;
    Ok((lease.place().clone(), n))
}

fn told(otherwise: Otherwise) -> SessionOptions {
    SessionOptions {
        patience: Duration::from_millis(300),
        otherwise,
        ..SessionOptions::default()
    }
}

fn options(primary: u16, replica: u16) -> Options {
    let mut options = Options::new(pair::url(primary)).replica("one", pair::url(replica));
    options.watch_every = Duration::from_millis(20);
    options.pool.patience = Duration::from_secs(10);
    options
}

async fn trouble(db: &Database<Postgres>, what: &str) {
    eventually("the replica leaves the rotation", || async {
        let trouble = db.status().replicas[0].trouble.clone().unwrap_or_default();
        trouble.contains(what).then_some(()).ok_or(trouble)
    })
    .await;
}

/// A session that has written the first row, when all replicas serve.
async fn filled(db: &Database<Postgres>, otherwise: Otherwise) -> Session<Postgres> {
    let session = db.session_with(told(otherwise));
    let texts = ["CREATE TABLE t (n bigint)", "INSERT INTO t VALUES (1)"];
    write(&session, &texts).await;
    all_serve(db).await;
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_token_of_lost_writes_is_never_met_by_the_new_timeline() {
    let mut old = Server::primary();
    let stream = Proxy::to(old.port()).await;
    let promoted = Server::replica_of(stream.port());
    let entry = Proxy::to(old.port()).await;
    let db = open::<Postgres>(options(entry.port(), promoted.port())).await;
    let session = filled(&db, Otherwise::Fail).await;
    let kept = session.token().expect("a token");
    eventually("the first write is replicated", || async {
        let seen = see(&session, Read::Session)
            .await
            .map_err(|e| e.to_string())?;
        (seen == (Place::Replica("one".into()), Some(1)))
            .then_some(())
            .ok_or(format!("{seen:?}"))
    })
    .await;

    // What follows is acknowledged by the old primary and reaches nobody else.
    stream.turn(9);
    write(&session, &["INSERT INTO t VALUES (2)"]).await;
    let lost = session.token().expect("a token");
    assert!(lost.position().lsn > kept.position().lsn);
    old.kill();
    let mut admin = PgConnection::connect(&promoted.url())
        .await
        .expect("connects");
    let done = admin.execute("SELECT pg_promote(true, 60)").await;
    done.expect("promotes");
    entry.turn(promoted.port());
    trouble(&db, "promoted").await;

    // The new history passes the place at which the lost write was.
    let fill = "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 200000))";
    admin.execute(fill).await.expect("writes");
    let third = Server::replica_of(promoted.port());
    let next = open::<Postgres>(options(promoted.port(), third.port())).await;
    all_serve(&next).await;
    let standing = eventually("the new replica passes it", || async {
        let position = next.status().replicas[0].position.ok_or("no position")?;
        let passed = position.lsn > lost.position().lsn;
        passed.then_some(position).ok_or(format!("{position:?}"))
    })
    .await;
    assert_eq!(standing.timeline, lost.position().timeline + 1);

    for (db, token) in [(&db, lost), (&next, lost), (&next, kept)] {
        let strict = db.resume(token, told(Otherwise::Fail)).expect("resumes");
        let error = eventually("the fail-over is known", || async {
            let read = see(&strict, Read::Session).await;
            let error = read.expect_err("never served by the new timeline's replica");
            let known = error.kind() == ErrorKind::TokenLost;
            known.then_some(error.clone()).ok_or(error.to_string())
        })
        .await;
        assert!(error.message().contains("fail-over"), "{error}");
        let goes = db.resume(token, told(Otherwise::Primary)).expect("resumes");
        let seen = see(&goes, Read::Session).await.expect("the primary serves");
        assert_eq!(
            seen,
            (Place::Primary, Some(1)),
            "the primary, and the write is lost"
        );
    }
    // The session goes on with what it writes now.
    let session = next.session_with(SessionOptions {
        patience: Duration::from_secs(20),
        ..told(Otherwise::Fail)
    });
    write(&session, &["INSERT INTO t VALUES (3)"]).await;
    let seen = see(&session, Read::Session).await.expect("reads");
    assert_eq!(seen, (Place::Replica("one".into()), Some(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_old_primary_that_comes_back_does_not_serve_newer_tokens() {
    let mut old = Server::primary();
    let promoted = Server::replica_of(old.port());
    let mut admin = PgConnection::connect(&old.url()).await.expect("connects");
    admin
        .execute("CREATE TABLE t (n bigint)")
        .await
        .expect("makes");
    drop(admin);
    let mut admin = PgConnection::connect(&promoted.url())
        .await
        .expect("connects");
    eventually("it is replicated", || async {
        let mut own = PgConnection::connect(&promoted.url())
            .await
            .expect("connects");
        let there = number::<Postgres>(&mut own, "SELECT count(*) FROM t").await;
        there.map_err(|error| error.to_string())
    })
    .await;
    admin
        .execute("SELECT pg_promote(true, 60)")
        .await
        .expect("promotes");
    let db = open::<Postgres>(Options::new(promoted.url())).await;
    let session = db.session();
    write(&session, &["INSERT INTO t VALUES (1)"]).await;
    let token = session.token().expect("a token");
    // The old one was never told: it takes writes, and its log is longer.
    let mut admin = PgConnection::connect(&old.url()).await.expect("connects");
    let fill = "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 2000000))";
    admin.execute(fill).await.expect("writes");
    let stale = open::<Postgres>(Options::new(old.url())).await;
    let session = stale
        .resume(token, SessionOptions::default())
        .expect("resumes");
    let error = see(&session, Read::Session)
        .await
        .expect_err("it is not in its log");
    assert_eq!(error.kind(), ErrorKind::TokenLost, "{error}");
    old.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_that_dies_leaves_the_rotation_and_returns_by_itself() {
    let primary = Server::primary();
    let mut replica = Server::replica_of(primary.port());
    let db = open::<Postgres>(options(primary.port(), replica.port())).await;
    let session = filled(&db, Otherwise::Primary).await;
    let on_replica = || async {
        let seen = see(&session, Read::Session)
            .await
            .map_err(|e| e.to_string())?;
        let there = seen.0 == Place::Replica("one".into());
        there.then_some(seen.1).ok_or(format!("{seen:?}"))
    };
    assert_eq!(eventually("it serves", on_replica).await, Some(1));
    replica.kill();
    // At once: the connections are broken, and nobody has noticed yet.
    for n in 2..6 {
        write(&session, &[&format!("INSERT INTO t VALUES ({n})")]).await;
        let seen = see(&session, Read::Session)
            .await
            .expect("the primary serves");
        assert_eq!(seen, (Place::Primary, Some(n)));
    }
    assert!(db.status().replicas[0].trouble.is_some());
    let strict = db.session_with(told(Otherwise::Fail));
    let error = see(&strict, Read::Any).await.expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    replica.start();
    assert_eq!(eventually("it serves again", on_replica).await, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_that_crashed_under_its_postmaster_is_in_another_run() {
    let primary = Server::primary();
    let replica = Server::replica_of(primary.port());
    let db = open::<Postgres>(options(primary.port(), replica.port())).await;
    let session = filled(&db, Otherwise::Primary).await;
    let look = "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint";
    let mut own = PgConnection::connect(&replica.url())
        .await
        .expect("connects");
    let before = Postgres::observe(&mut own).await.expect("says").run;
    let postmaster = number::<Postgres>(&mut own, look).await.expect("says");
    let pid = number::<Postgres>(&mut own, "SELECT pg_backend_pid()::bigint").await;
    let pid = pid.expect("says").expect("a number").to_string();
    let killed = std::process::Command::new("kill")
        .args(["-9", &pid])
        .status();
    assert!(killed.expect("kill runs").success());
    let (after, same) = eventually("it has recovered", || async {
        let own = PgConnection::connect(&replica.url()).await;
        let mut own = own.map_err(|error| error.to_string())?;
        let seen = Postgres::observe(&mut own)
            .await
            .map_err(|error| error.to_string())?;
        let same = number::<Postgres>(&mut own, look)
            .await
            .map_err(|error| error.to_string())?;
        (seen.run != before)
            .then_some((seen.run, same))
            .ok_or(format!("{seen:?}"))
    })
    .await;
    assert!(
        after > before && same == postmaster,
        "the same postmaster recovered anew"
    );
    for n in 2..20 {
        write(&session, &[&format!("INSERT INTO t VALUES ({n})")]).await;
        let (place, seen) = see(&session, Read::Session).await.expect("is served");
        assert_eq!(seen, Some(n), "{place}");
    }
    eventually("it serves again", || async {
        let (place, _) = see(&session, Read::Session)
            .await
            .map_err(|e| e.to_string())?;
        (place != Place::Primary)
            .then_some(())
            .ok_or("on the primary".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_url_that_leads_to_several_servers_serves_from_the_watched_one_only() {
    let primary = Server::primary();
    let (first, second) = (
        Server::replica_of(primary.port()),
        Server::replica_of(primary.port()),
    );
    let balancer = Proxy::to(first.port()).await;
    let db = open::<Postgres>(options(primary.port(), balancer.port())).await;
    let session = filled(&db, Otherwise::Primary).await;
    // The second stands still before the next write; the watch goes on looking at the first.
    let mut own = PgConnection::connect(&second.url())
        .await
        .expect("connects");
    own.execute("SELECT pg_wal_replay_pause()")
        .await
        .expect("pauses");
    balancer.lead(second.port());
    for n in 2..6 {
        write(&session, &[&format!("INSERT INTO t VALUES ({n})")]).await;
        let seen = see(&session, Read::Session).await.expect("is served");
        assert_eq!(seen, (Place::Primary, Some(n)));
    }
    balancer.lead(first.port());
    eventually("the first serves", || async {
        let seen = see(&session, Read::Session)
            .await
            .map_err(|e| e.to_string())?;
        assert_eq!(seen.1, Some(5));
        (seen.0 != Place::Primary)
            .then_some(())
            .ok_or("on the primary".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_cut_off_from_its_primary_serves_no_bound_and_what_it_proved() {
    let primary = Server::primary();
    let stream = Proxy::to(primary.port()).await;
    let replica = Server::replica_of(stream.port());
    let db = open::<Postgres>(options(primary.port(), replica.port())).await;
    let session = filled(&db, Otherwise::Fail).await;
    eventually("it serves", || async {
        see(&session, Read::Session)
            .await
            .map_err(|e| e.to_string())
    })
    .await;
    stream.turn(9);
    write(&session, &["INSERT INTO t VALUES (2)"]).await;
    let bound = Duration::from_millis(500);
    let error = eventually("the bound passes", || async {
        let read = see(&session, Read::Bounded(bound)).await;
        read.err().ok_or("served".to_owned())
    })
    .await;
    // It answers, and believes itself to be current; what it lacks it has never heard of.
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    let (place, n) = see(&session, Read::Any).await.expect("any is any");
    assert_eq!((place, n), (Place::Replica("one".into()), Some(1)));
    let error = see(&session, Read::Session)
        .await
        .expect_err("it lacks the write");
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    stream.turn(primary.port());
    eventually("it catches up", || async {
        let seen = see(&session, Read::Session)
            .await
            .map_err(|e| e.to_string())?;
        (seen.1 == Some(2)).then_some(()).ok_or(format!("{seen:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_apply_holds_a_synchronous_commit_until_the_standby_has_applied_it() {
    let primary = Server::primary();
    let replica = Server::replica_of(primary.port());
    let db = open::<Postgres>(options(primary.port(), replica.port())).await;
    let session = db.session_with(SessionOptions {
        patience: Duration::from_secs(20),
        ..told(Otherwise::Fail)
    });
    write(&session, &["CREATE TABLE t (n bigint)"]).await;
    all_serve(&db).await;
    let mut admin = PgConnection::connect(&primary.url())
        .await
        .expect("connects");
    admin
        .execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        .await
        .expect("sets");
    admin
        .execute("SELECT pg_reload_conf()")
        .await
        .expect("reloads");
    eventually("the standby is synchronous", || async {
        let mut own = PgConnection::connect(&primary.url())
            .await
            .expect("connects");
        let look = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        let count = number::<Postgres>(&mut own, look).await.expect("counts");
        (count == Some(1)).then_some(()).ok_or(format!("{count:?}"))
    })
    .await;
    let mut standby = PgConnection::connect(&replica.url())
        .await
        .expect("connects");
    standby
        .execute("SELECT pg_wal_replay_pause()")
        .await
        .expect("pauses");
    let writing = tokio::spawn({
        let session = session.clone();
        async move {
            let mut tx = session.begin(Work::default().synchronous()).await?;
            run::<Postgres>(&mut tx, "INSERT INTO t VALUES (1)").await?;
            tx.commit().await
        }
    });
    eventually("the commit waits in the server", || async {
        let mut own = PgConnection::connect(&primary.url())
            .await
            .expect("connects");
        let look = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let count = number::<Postgres>(&mut own, look).await.expect("counts");
        (count == Some(1)).then_some(()).ok_or(format!("{count:?}"))
    })
    .await;
    // Nobody sees it before the standby has it, on the primary neither.
    let (_, n) = see(&session, Read::Primary).await.expect("reads");
    assert_eq!(n, Some(0));
    assert!(!writing.is_finished());
    standby
        .execute("SELECT pg_wal_replay_resume()")
        .await
        .expect("resumes");
    writing.await.expect("no panic").expect("commits");
}

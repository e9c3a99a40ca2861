//! Reads on replicas that lag: what each rule promises, and that the check would notice if it did not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::Postgres;

use super::pair::Server;
use super::support::{Pg, Replica, all_serve, eventually, number, open, run, write};
use crate::{Database, ErrorKind, Options, Otherwise, Place, Read, Session, SessionOptions, Work};

fn options(patience: Duration, otherwise: Otherwise) -> SessionOptions {
    SessionOptions {
        patience,
        otherwise,
        ..SessionOptions::default()
    }
}

async fn see(session: &Session<Postgres>, rule: Read) -> crate::Result<(Place, i64)> {
    let mut lease = session.read(rule).await?;
    let n = number::<Postgres>(&mut lease, "SELECT n FROM notes WHERE id = 1").await?;
    Ok((lease.place().clone(), n.unwrap_or(-1)))
}

/// The shared replica, for this test alone, and a schema that is read there.
async fn lagging() -> (Replica, Pg, Database<Postgres>) {
    let replica = Replica::take().await;
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.with_replica()).await;
    (replica, pg, db)
}

async fn notes(db: &Database<Postgres>) -> Session<Postgres> {
    let session = db.session_with(options(Duration::from_secs(20), Otherwise::Fail));
    write(
        &session,
        &["CREATE TABLE notes (id bigint PRIMARY KEY, n bigint)"],
    )
    .await;
    write(&session, &["INSERT INTO notes VALUES (1, 0)"]).await;
    all_serve(db).await;
    // The table is there on the replica from here on.
    let (place, n) = see(&session, Read::Session).await.expect("reads");
    assert_eq!((place, n), (Place::Replica("one".into()), 0));
    session
}

/// Many sessions write and read what they wrote, while the replica stops and goes on. Answers how many reads
/// were served by the replica, and how many of all missed their session's write.
async fn many_sessions(db: &Database<Postgres>, replica: &Replica, rule: Read) -> (u64, u64) {
    const SESSIONS: i64 = 12;
    const WRITES: i64 = 25;
    let (served, missed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for id in 0..SESSIONS {
        let session = db.session_with(options(Duration::from_millis(30), Otherwise::Primary));
        let (served, missed) = (Arc::clone(&served), Arc::clone(&missed));
        tasks.spawn(async move {
            for n in 1..=WRITES {
                let put = format!(
                    "INSERT INTO seen VALUES ({id}, {n}) ON CONFLICT (id) DO UPDATE SET n = {n}"
                );
                let work = Work::default().isolation(crate::Isolation::ReadCommitted);
                let mut tx = session.begin(work).await.expect("begins");
                run::<Postgres>(&mut tx, &put).await.expect("writes");
                tx.commit().await.expect("commits");
                let mut lease = session.read(rule).await.expect("a server");
                let look = format!("SELECT n FROM seen WHERE id = {id}");
                let got = number::<Postgres>(&mut lease, &look).await.expect("reads");
                if *lease.place() != Place::Primary {
                    served.fetch_add(1, Ordering::Relaxed);
                }
                if got.unwrap_or(0) < n {
                    missed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let done = AtomicBool::new(false);
    let disturb = async {
        while !done.load(Ordering::Relaxed) {
            replica.pause().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            replica.resume().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic");
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(disturb, all);
    replica.resume().await;
    (
        served.load(Ordering::Relaxed),
        missed.load(Ordering::Relaxed),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn session_reads_see_their_writes_on_a_lagging_replica_and_any_does_not() {
    let (replica, pg, db) = lagging().await;
    let first = notes(&db).await;
    write(
        &first,
        &["CREATE TABLE seen (id bigint PRIMARY KEY, n bigint)"],
    )
    .await;
    see(&first, Read::Session)
        .await
        .expect("the table is there");

    let (served, missed) = many_sessions(&db, &replica, Read::Session).await;
    assert_eq!(
        missed, 0,
        "a session missed what it wrote; {served} reads on the replica"
    );
    assert!(
        served > 0,
        "no read was served by the replica: nothing was shown"
    );

    write(&first, &["DELETE FROM seen"]).await;
    see(&first, Read::Session).await.expect("caught up");
    let (_, missed) = many_sessions(&db, &replica, Read::Any).await;
    assert!(missed > 0, "the replica did not lag: nothing was shown");

    // The teeth: with the wait taken out, the check of the first part finds it.
    write(&first, &["DELETE FROM seen"]).await;
    see(&first, Read::Session).await.expect("caught up");
    db.inner.blind.store(true, Ordering::Relaxed);
    let (_, missed) = many_sessions(&db, &replica, Read::Session).await;
    assert!(missed > 0, "the check does not notice that nothing waits");
    drop((first, db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_read_waits_for_the_replica_and_is_served_there() {
    let (replica, pg, db) = lagging().await;
    let session = notes(&db).await;
    replica.pause().await;
    write(&session, &["UPDATE notes SET n = 1"]).await;
    let reading = tokio::spawn({
        let session = session.clone();
        async move { see(&session, Read::Session).await }
    });
    let (_, old) = see(&session, Read::Any).await.expect("reads");
    assert_eq!(old, 0, "the replica stands");
    assert!(!reading.is_finished());
    replica.resume().await;
    let (place, n) = reading.await.expect("no panic").expect("reads");
    assert_eq!((place, n), (Place::Replica("one".into()), 1));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_of_a_replica_that_lags_for_ever_goes_to_the_primary_or_fails_as_told() {
    let (replica, pg, db) = lagging().await;
    let session = notes(&db).await;
    replica.pause().await;
    write(&session, &["UPDATE notes SET n = 1"]).await;
    let token = session.token().expect("a token");
    let patience = Duration::from_millis(50);
    let stays = db.resume(token, options(patience, Otherwise::Fail));
    let begun = Instant::now();
    let error = see(&stays.expect("resumes"), Read::Session).await;
    let error = error.expect_err("no replica has it");
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    assert!(error.message().contains("replica one"), "{error}");
    assert!(begun.elapsed() >= patience && begun.elapsed() < Duration::from_secs(20));
    let goes = db.resume(token, options(patience, Otherwise::Primary));
    let seen = see(&goes.expect("resumes"), Read::Session).await;
    assert_eq!(seen.expect("reads"), (Place::Primary, 1));
    replica.resume().await;
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_waiting_for_a_replica_holds_none_of_its_connections() {
    let replica = Replica::take().await;
    let pg = Pg::new().await;
    let mut with = pg.with_replica();
    with.pool.limit = crate::pool::LimitOptions::up_to(2);
    let db = open::<Postgres>(with).await;
    let session = notes(&db).await;
    replica.pause().await;
    write(&session, &["UPDATE notes SET n = 1"]).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let session = session.clone();
        waiting.spawn(async move { see(&session, Read::Session).await.expect("reads") });
    }
    for _ in 0..10 {
        let (place, n) = see(&session, Read::Any)
            .await
            .expect("a connection is free");
        assert_eq!((place, n), (Place::Replica("one".into()), 0));
    }
    replica.resume().await;
    for (place, n) in waiting.join_all().await {
        assert_eq!((place, n), (Place::Replica("one".into()), 1));
    }
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_outlives_the_process_by_its_string() {
    let (replica, pg, db) = lagging().await;
    let session = notes(&db).await;
    replica.pause().await;
    write(&session, &["UPDATE notes SET n = 5"]).await;
    let text = session.token().expect("a token").to_string();
    drop((session, db));
    // As another process would: nothing but the string is left.
    let db = open::<Postgres>(pg.with_replica()).await;
    let token = text.parse().expect("reads");
    let session = db.resume(token, options(Duration::from_secs(20), Otherwise::Fail));
    let session = session.expect("resumes");
    let reading = tokio::spawn(async move { see(&session, Read::Session).await });
    replica.resume().await;
    let seen = reading.await.expect("no panic").expect("reads");
    assert_eq!(seen, (Place::Replica("one".into()), 5));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_read_of_an_idle_primary_is_served_by_the_replica() {
    // Of its own: nobody else writes.
    let primary = Server::primary();
    let replica = Server::replica_of(primary.port());
    let mut with = Options::new(primary.url()).replica("one", replica.url());
    with.watch_every = Duration::from_millis(20);
    let db = open::<Postgres>(with).await;
    let session = notes(&db).await;
    let bound = Duration::from_secs(1);
    let look =
        "SELECT (extract(epoch FROM now() - pg_last_xact_replay_timestamp()) * 1000)::bigint";
    eventually(
        "the last transaction is old, and the read is served",
        || async {
            let mut lease = session.read(Read::Any).await.map_err(|e| e.to_string())?;
            let age = number::<Postgres>(&mut lease, look).await.expect("an age");
            drop(lease);
            let served = see(&session, Read::Bounded(bound)).await;
            let (place, _) = served.map_err(|error| error.to_string())?;
            assert_eq!(place, Place::Replica("one".into()));
            // Who believed the replica's own clock would call it too old by now.
            (age > Some(2000))
                .then_some(())
                .ok_or(format!("{age:?} ms"))
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_read_is_never_older_than_its_bound() {
    let (replica, pg, db) = lagging().await;
    let session = notes(&db).await;
    let bound = Duration::from_millis(300);
    replica.pause().await;
    write(&session, &["UPDATE notes SET n = 1"]).await;
    let written = Instant::now();
    let error = eventually("the bound passes", || async {
        let begun = Instant::now();
        match see(&session, Read::Bounded(bound)).await {
            Err(error) => Ok(error),
            Ok((_, n)) => {
                let late = begun > written + bound;
                assert!(n == 1 || !late, "{:?} after the write", begun - written);
                Err("served".to_owned())
            }
        }
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    assert!(written.elapsed() < Duration::from_secs(20));
    replica.resume().await;
    eventually("it is served again", || async {
        let seen = see(&session, Read::Bounded(bound)).await;
        seen.map_err(|error| error.to_string())
    })
    .await;
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_write_reads_on_the_primary_within_the_window_and_never_older_after() {
    let (replica, pg, db) = lagging().await;
    let session = notes(&db).await;
    let window = Duration::from_millis(400);
    replica.pause().await;
    write(&session, &["UPDATE notes SET n = 1"]).await;
    let written = Instant::now();
    let error = eventually("the window ends", || async {
        let begun = Instant::now();
        match see(&session, Read::AfterWrite(window)).await {
            Err(error) => Ok(error),
            Ok((place, n)) => {
                assert_eq!((place, n), (Place::Primary, 1), "{:?}", begun - written);
                Err("on the primary".to_owned())
            }
        }
    })
    .await;
    // A rule by time alone would read the old row here.
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    replica.resume().await;
    let seen = eventually("the replica serves", || async {
        let seen = see(&session, Read::AfterWrite(window)).await;
        seen.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(seen, (Place::Replica("one".into()), 1));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn synchronous_write_is_seen_by_every_session_on_the_replica() {
    let (replica, pg, db) = lagging().await;
    let writer = notes(&db).await;
    let reader = db.session_with(options(Duration::from_secs(20), Otherwise::Primary));
    let mut on_replica = 0;
    for n in 1..=30 {
        let mut tx = writer
            .begin(Work::default().synchronous())
            .await
            .expect("begins");
        let put = format!("UPDATE notes SET n = {n}");
        run::<Postgres>(&mut tx, &put).await.expect("writes");
        tx.commit().await.expect("commits");
        let (place, seen) = see(&reader, Read::Synchronous).await.expect("reads");
        assert_eq!(seen, n, "{place}");
        on_replica += u32::from(place != Place::Primary);
    }
    assert!(on_replica > 0, "nothing was shown");
    replica.pause().await;
    let hurried = db.session_with(options(Duration::from_millis(50), Otherwise::Primary));
    let mut tx = hurried
        .begin(Work::default().synchronous())
        .await
        .expect("begins");
    run::<Postgres>(&mut tx, "UPDATE notes SET n = 100")
        .await
        .expect("writes");
    let error = tx.commit().await.expect_err("the replica stands");
    assert_eq!(error.kind(), ErrorKind::Unsynchronized, "{error}");
    assert_eq!(error.outcome(), crate::Outcome::Applied);
    assert!(error.message().contains("replica one"), "{error}");
    let (_, seen) = see(&hurried, Read::Primary).await.expect("reads");
    assert_eq!(seen, 100, "committed it is");
    replica.resume().await;
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_hears_of_what_was_written_past_it() {
    let (replica, pg, db) = lagging().await;
    notes(&db).await;
    replica.pause().await;
    let past = sqlx::query("UPDATE notes SET n = 9")
        .execute(&db.primary())
        .await;
    past.expect("writes");
    let session = db.session_with(options(Duration::from_millis(50), Otherwise::Fail));
    let (_, old) = see(&session, Read::Session)
        .await
        .expect("it knows of no write");
    assert_eq!(old, 0);
    session.wrote().await.expect("asks");
    let error = see(&session, Read::Session)
        .await
        .expect_err("the replica stands");
    assert_eq!(error.kind(), ErrorKind::Stale);
    replica.resume().await;
    let (place, _pool) = session.pool(Read::Primary).await.expect("a pool");
    assert_eq!(place, Place::Primary);
    pg.end().await;
}

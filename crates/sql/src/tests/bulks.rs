//! Loads of many rows: whole, interrupted, and of bad rows.

use std::time::Duration;

use futures_util::stream;
use sqlx::{MySql, Postgres, Row as _, Sqlite};

use super::proxy::{AtCommit, Proxy};
use super::support::{Lite, My, Pg, number, open, variable, write};
use crate::backend::Backend;
use crate::bulk::{Bulk, Cell, Progress, Row};
use crate::{Database, Error, ErrorKind, Options, Read, SessionOptions};

const MAKE: &str =
    "CREATE TABLE words (id bigint PRIMARY KEY, word text, flag boolean, part double precision)";

fn row(id: i64) -> Row {
    let word = if id % 10 == 3 {
        Cell::Null
    } else {
        Cell::Text(format!("word\t{id}\n\\.\\N"))
    };
    vec![
        Cell::Int(id),
        word,
        Cell::Bool(id % 2 == 0),
        Cell::Float(id as f64 / 4.0),
    ]
}

fn rows(count: i64) -> impl futures_util::Stream<Item = crate::Result<Row>> + Send {
    stream::iter((0..count).map(|id| Ok(row(id))))
}

fn words() -> Bulk {
    let mut bulk = Bulk::new("words of the test", "words", ["id", "word", "flag", "part"]);
    bulk.batch_bytes = 4000;
    bulk
}

async fn interrupted<DB: Backend>(db: &Database<DB>) {
    const ROWS: i64 = 1000;
    let session = db.session();
    let make = if DB::NAME == "PostgreSQL" {
        MAKE.to_owned()
    } else {
        MAKE.replace("double precision", "double")
    };
    write(&session, &[&make]).await;
    // The source breaks in the middle.
    let broken = stream::iter((0..ROWS).map(|id| match id {
        600 => Err(Error::aborted("the file ends")),
        id => Ok(row(id)),
    }));
    let mut told: Vec<Progress> = Vec::new();
    let error = words()
        .load(&session, broken, |progress| told.push(*progress))
        .await;
    assert_eq!(error.expect_err("it broke").message(), "the file ends");
    let stood = told.last().expect("some batches were written").rows;
    assert!(stood > 0 && stood <= 600);
    let mut bytes = 0;
    for progress in &told {
        assert!(progress.bytes - bytes <= 4000, "{progress:?} after {bytes}");
        bytes = progress.bytes;
    }
    let done = words()
        .load(&session, rows(ROWS), |_| {})
        .await
        .expect("loads");
    assert_eq!((done.rows, done.skipped), (ROWS as u64, stood));
    let again = words()
        .load(&session, rows(ROWS), |_| {})
        .await
        .expect("has nothing to do");
    assert_eq!(
        (again.rows, again.skipped, again.bytes),
        (ROWS as u64, ROWS as u64, 0)
    );
    let mut lease = session.read(Read::Primary).await.expect("reads");
    for (look, expected) in [
        ("SELECT count(*) FROM words", ROWS),
        ("SELECT count(*) FROM words WHERE word IS NULL", ROWS / 10),
        ("SELECT count(*) FROM words WHERE flag", ROWS / 2),
        ("SELECT count(*) FROM words WHERE part * 4 = id", ROWS),
    ] {
        let got = number::<DB>(&mut lease, look).await.expect("counts");
        assert_eq!(got, Some(expected), "{look}");
    }
    drop(lease);
    words().forget(&session).await.expect("forgets");
    let error = words()
        .load(&session, rows(1), |_| {})
        .await
        .expect_err("the row is there");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_load_that_is_interrupted_goes_on_and_has_each_row_once() {
    let (pg, my, lite) = (Pg::new().await, My::new().await, Lite::new());
    let db = open::<Postgres>(pg.options()).await;
    interrupted(&db).await;
    let word = sqlx::query("SELECT word FROM words WHERE id = 7")
        .fetch_one(&db.primary())
        .await;
    let word: String = word.expect("reads").get(0);
    assert_eq!(word, "word\t7\n\\.\\N", "as it was given");
    interrupted(&open::<MySql>(my.options()).await).await;
    interrupted(&open::<Sqlite>(lite.options()).await).await;
    pg.end().await;
    my.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_load_whose_commits_are_lost_has_each_row_once() {
    let pg = Pg::new().await;
    let url = variable("QUORATE_POSTGRES");
    let options: sqlx::postgres::PgConnectOptions = url.parse().expect("a URL");
    let port = options.get_port();
    let proxy = Proxy::to(port).await;
    let url = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    let db = open::<Postgres>(Options::new(pg.within(&url))).await;
    let told = SessionOptions {
        commit_max: Duration::from_secs(5),
        ..SessionOptions::default()
    };
    let session = db.session_with(told);
    write(&session, &[MAKE]).await;
    let mut batches = 0;
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries < 50, "it does not come to its end");
        let bulk = words();
        let loading = bulk.load(&session, rows(500), |_| {
            // Every other commit is cut, now after and now before the server has it.
            batches += 1;
            proxy.at_commit(match batches % 4 {
                1 => AtCommit::CutAfter,
                3 => AtCommit::CutBefore,
                _ => AtCommit::Pass,
            });
        });
        let ended = loading.await;
        proxy.at_commit(AtCommit::Pass);
        match ended {
            Ok(done) => {
                assert_eq!(done.rows, 500);
                break;
            }
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::OutcomeUnknown | ErrorKind::Unavailable
                ),
                "{error}"
            ),
        }
    }
    assert!(tries > 1, "nothing was cut");
    let mut lease = session.read(Read::Primary).await.expect("reads");
    let count = number::<Postgres>(&mut lease, "SELECT count(*) FROM words").await;
    assert_eq!(count.expect("counts"), Some(500));
    drop((lease, session, db));
    pg.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_rows_that_cannot_be_are_refused_before_they_are_sent() {
    let pg = Pg::new().await;
    let db = open::<Postgres>(pg.options()).await;
    let session = db.session();
    write(&session, &[MAKE]).await;
    let short = stream::iter([Ok(vec![Cell::Int(1)])]);
    let error = words()
        .load(&session, short, |_| {})
        .await
        .expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.message().contains("row 1 has 1 values for 4 columns"),
        "{error}"
    );
    let mut nul = row(1);
    nul[1] = Cell::Text("a\0b".into());
    let error = words()
        .load(&session, stream::iter([Ok(nul)]), |_| {})
        .await;
    assert_eq!(error.expect_err("NUL").kind(), ErrorKind::Invalid);
    let mut bulk = words();
    bulk.batch_rows = 0;
    let error = bulk
        .load(&session, rows(1), |_| {})
        .await
        .expect_err("no rows");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let mut bulk = words();
    bulk.name = "it's a name".into();
    let done = bulk
        .load(&session, rows(1), |_| {})
        .await
        .expect("a quote is no harm");
    assert_eq!(done.rows, 1);
    drop((session, db));
    pg.end().await;
}

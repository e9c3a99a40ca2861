//! What the tests share: databases of their own, waiting, the shared replica.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, MySqlPool, PgPool, SqlSafeStr};
use tokio::sync::{Mutex, MutexGuard};

use crate::backend::Backend;
use crate::{Database, Options, Session};

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `cargo xtask services -- cargo test -p quorate-sql --features \
             postgres,mysql,sqlite`, or set what `cargo xtask services` prints"
        )
    })
}

static NEXT: AtomicU64 = AtomicU64::new(0);

fn own_name() -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("quorate_sql_{}_{number}", std::process::id())
}

/// A schema of its own on the primary, and so on its replica.
pub struct Pg {
    pub admin: PgPool,
    schema: String,
}

impl Pg {
    pub async fn new() -> Pg {
        let url = variable("QUORATE_POSTGRES");
        let admin = PgPoolOptions::new().max_connections(2).connect(&url).await;
        let admin = admin.expect("PostgreSQL answers");
        let schema = own_name();
        let pg = Pg { admin, schema };
        let schema = &pg.schema;
        pg.run(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE"))
            .await;
        pg.run(&format!("CREATE SCHEMA {schema}")).await;
        pg
    }

    pub fn schema(&self) -> &str {
        &self.schema
    }

    pub async fn run(&self, text: &str) {
        let done = sqlx::query(AssertSqlSafe(text.to_owned())).execute(&self.admin);
        done.await.expect("runs");
    }

    /// A URL whose sessions work in the schema.
    pub fn within(&self, url: &str) -> String {
        format!("{url}?options=-c%20search_path%3D{}", self.schema)
    }

    pub fn url(&self) -> String {
        self.within(&variable("QUORATE_POSTGRES"))
    }

    pub fn options(&self) -> Options {
        Options::new(self.url())
    }

    /// With the shared replica, which is looked at often.
    pub fn with_replica(&self) -> Options {
        let replica = self.within(&variable("QUORATE_POSTGRES_REPLICA"));
        let mut options = self.options().replica("one", replica);
        options.watch_every = Duration::from_millis(20);
        options
    }

    pub async fn end(self) {
        self.run(&format!("DROP SCHEMA {} CASCADE", self.schema))
            .await;
    }
}

/// The shared replica, for one test at a time.
pub struct Replica {
    pub pool: PgPool,
    _turn: MutexGuard<'static, ()>,
}

impl Replica {
    pub async fn take() -> Replica {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let url = variable("QUORATE_POSTGRES_REPLICA");
        let pool = PgPoolOptions::new().max_connections(1).connect(&url).await;
        let replica = Replica {
            pool: pool.expect("the replica answers"),
            _turn: turn,
        };
        replica.resume().await;
        replica
    }

    pub async fn pause(&self) {
        let pause = sqlx::query("SELECT pg_wal_replay_pause()");
        pause.execute(&self.pool).await.expect("pauses");
        eventually("replay stops", || async {
            let state = sqlx::query_scalar("SELECT pg_get_wal_replay_pause_state()");
            let state: String = state.fetch_one(&self.pool).await.expect("says");
            (state == "paused").then_some(()).ok_or(state)
        })
        .await;
    }

    pub async fn resume(&self) {
        let resume = sqlx::query("SELECT pg_wal_replay_resume()");
        resume.execute(&self.pool).await.expect("resumes");
    }
}

/// A database of its own in the server of MySQL's protocol.
pub struct My {
    admin: MySqlPool,
    name: String,
    url: String,
}

impl My {
    pub async fn new() -> My {
        let url = variable("QUORATE_MYSQL");
        let admin = MySqlPool::connect(&url).await.expect("MySQL answers");
        let name = own_name();
        let make = format!("CREATE DATABASE {name}");
        let made = sqlx::query(AssertSqlSafe(make)).execute(&admin).await;
        made.expect("creates");
        let (server, _) = url.rsplit_once('/').expect("a URL with a database");
        let url = format!("{server}/{name}");
        My { admin, name, url }
    }

    pub fn options(&self) -> Options {
        Options::new(&self.url)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn end(self) {
        let drop = format!("DROP DATABASE {}", self.name);
        let dropped = sqlx::query(AssertSqlSafe(drop)).execute(&self.admin).await;
        dropped.expect("drops");
    }
}

/// A database file of its own.
pub struct Lite {
    folder: tempfile::TempDir,
}

impl Lite {
    pub fn new() -> Lite {
        let folder = tempfile::tempdir().expect("a folder");
        Lite { folder }
    }

    pub fn options(&self) -> Options {
        let file = self.folder.path().join("test.db");
        Options::new(format!("sqlite://{}?mode=rwc", file.display()))
    }
}

/// Looks until the condition holds.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < end, "{what}: not in time; last: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn open<DB: Backend>(options: Options) -> Database<DB> {
    Database::connect(options).await.expect("connects")
}

/// Runs a statement; answers how many rows it changed.
pub async fn run<DB: Backend>(connection: &mut DB::Connection, text: &str) -> crate::Result<u64> {
    Ok(DB::run(connection, AssertSqlSafe(text.to_owned()).into_sql_str()).await?)
}

/// Reads a number; `None` if there is no row.
pub async fn number<DB: Backend>(
    connection: &mut DB::Connection,
    text: &str,
) -> crate::Result<Option<i64>> {
    Ok(DB::number(connection, AssertSqlSafe(text.to_owned()).into_sql_str()).await?)
}

/// Runs statements in a transaction of the session; MySQL changes schemas outside of transactions only.
pub async fn write<DB: Backend>(session: &Session<DB>, texts: &[&str]) {
    let alone = |text: &&&str| DB::NAME == "MySQL" && text.starts_with("CREATE TABLE");
    let mut lease = session
        .read(crate::Read::Primary)
        .await
        .expect("a connection");
    for text in texts.iter().filter(alone) {
        run::<DB>(&mut lease, text).await.expect("runs");
    }
    drop(lease);
    let texts = texts.iter().filter(|text| !alone(text));
    let mut tx = session.begin(crate::Work::default()).await.expect("begins");
    for text in texts {
        run::<DB>(&mut tx, text).await.expect("runs");
    }
    tx.commit().await.expect("commits");
}

/// Waits until every replica of a database serves.
pub async fn all_serve<DB: Backend>(db: &Database<DB>) {
    eventually("the replicas serve", || async {
        let status = db.status();
        let idle = |r: &crate::ReplicaStatus| r.trouble.is_none() && r.staleness.is_some();
        let all = status.replicas.iter().all(idle);
        all.then_some(()).ok_or_else(|| format!("{status:?}"))
    })
    .await;
}

//! What the tests share: databases of both kinds behind one face.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, PgPool, Row, SqlitePool};

use crate::at::postgres::{PgAt, PgAtTransaction, PgHome};
use crate::at::sqlite::{SqliteAt, SqliteAtTransaction, SqliteHome};
use crate::at::{AtCoordinator, Delete, Global, Home, Image, Insert, Resource, Rows, Update};
use crate::{ErrorKind, Result};

pub const SOON: Duration = Duration::from_secs(60);

pub fn postgres_url() -> String {
    std::env::var("QUORATE_POSTGRES").unwrap_or_else(|_| {
        panic!("QUORATE_POSTGRES is not set: run `cargo xtask test`, or `cargo xtask services`")
    })
}

/// Looks until the condition holds.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = std::result::Result<T, String>>,
{
    let end = Instant::now() + SOON;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < end, "{what}: not in time; last: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn pg_pool(schema: &str) -> PgPool {
    let options: PgConnectOptions = postgres_url().parse().expect("a URL");
    let options = options.options([("search_path", schema)]);
    let pool = PgPoolOptions::new()
        .max_connections(12)
        .acquire_timeout(SOON);
    pool.connect_with(options).await.expect("connects")
}

pub async fn lite_pool(path: &std::path::Path) -> SqlitePool {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(SOON);
    let pool = SqlitePoolOptions::new()
        .max_connections(6)
        .acquire_timeout(SOON);
    pool.connect_with(options).await.expect("opens")
}

/// A database with branches: a schema of PostgreSQL, or a file of SQLite.
pub enum Db {
    Pg {
        at: PgAt,
        schema: String,
    },
    Lite {
        at: SqliteAt,
        folder: Option<tempfile::TempDir>,
    },
}

pub enum Tx {
    Pg(PgAtTransaction),
    Lite(SqliteAtTransaction),
}

macro_rules! each {
    ($any:expr, $kind:ident, $one:pat => $do:expr) => {
        match $any {
            $kind::Pg($one) => $do,
            $kind::Lite($one) => $do,
        }
    };
}

impl Tx {
    pub async fn insert(&mut self, insert: &Insert) -> Result<u64> {
        each!(self, Tx, tx => tx.insert(insert).await)
    }

    pub async fn update(&mut self, update: &Update) -> Result<u64> {
        each!(self, Tx, tx => tx.update(update).await)
    }

    pub async fn delete(&mut self, delete: &Delete) -> Result<u64> {
        each!(self, Tx, tx => tx.delete(delete).await)
    }

    pub async fn read_locked(&mut self, rows: &Rows) -> Result<Vec<Image>> {
        each!(self, Tx, tx => tx.read_locked(rows).await)
    }

    pub async fn commit(self) -> Result<()> {
        each!(self, Tx, tx => tx.commit().await)
    }

    pub async fn rollback(self) -> Result<()> {
        each!(self, Tx, tx => tx.rollback().await)
    }
}

pub fn unique(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("quorate_{what}_{}_{number}", std::process::id())
}

impl Db {
    pub async fn pg() -> Db {
        let schema = unique("at");
        let admin = pg_pool("public").await;
        for text in [
            format!("DROP SCHEMA IF EXISTS {schema} CASCADE"),
            format!("CREATE SCHEMA {schema}"),
        ] {
            sqlx::query(AssertSqlSafe(text))
                .execute(&admin)
                .await
                .expect("makes a schema");
        }
        admin.close().await;
        Db::pg_of(&schema).await
    }

    pub async fn pg_of(schema: &str) -> Db {
        let at = PgAt::migrate(pg_pool(schema).await, "shop")
            .await
            .expect("migrates");
        Db::Pg {
            at,
            schema: schema.to_owned(),
        }
    }

    pub async fn lite() -> Db {
        let folder = tempfile::tempdir().expect("a folder");
        let mut db = Db::lite_of(&folder.path().join("test.db")).await;
        if let Db::Lite { folder: place, .. } = &mut db {
            *place = Some(folder);
        }
        db
    }

    pub async fn lite_of(path: &std::path::Path) -> Db {
        let at = SqliteAt::migrate(lite_pool(path).await, "shop")
            .await
            .expect("migrates");
        Db::Lite { at, folder: None }
    }

    pub async fn both() -> [Db; 2] {
        [Db::pg().await, Db::lite().await]
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Db::Pg { .. } => "PostgreSQL",
            Db::Lite { .. } => "SQLite",
        }
    }

    /// How a child process finds it.
    #[cfg(feature = "crash-points")]
    pub fn address(&self) -> String {
        match self {
            Db::Pg { schema, .. } => schema.clone(),
            Db::Lite { folder, .. } => {
                let folder = folder.as_ref().expect("a folder");
                folder.path().join("test.db").display().to_string()
            }
        }
    }

    pub fn resource(&self) -> Arc<dyn Resource> {
        match self {
            Db::Pg { at, .. } => Arc::new(at.clone()),
            Db::Lite { at, .. } => Arc::new(at.clone()),
        }
    }

    /// The same under another name, beside one that is named as all are.
    pub async fn second(&self) -> Arc<dyn Resource> {
        match self {
            Db::Pg { at, .. } => Arc::new(
                PgAt::open(at.pool().clone(), "second")
                    .await
                    .expect("opens"),
            ),
            Db::Lite { at, .. } => Arc::new(
                SqliteAt::open(at.pool().clone(), "second")
                    .await
                    .expect("opens"),
            ),
        }
    }

    pub async fn home(&self) -> Arc<dyn Home> {
        match self {
            Db::Pg { at, .. } => {
                Arc::new(PgHome::migrate(at.pool().clone()).await.expect("a home"))
            }
            Db::Lite { at, .. } => Arc::new(
                SqliteHome::migrate(at.pool().clone())
                    .await
                    .expect("a home"),
            ),
        }
    }

    pub async fn coordinator(&self) -> AtCoordinator {
        AtCoordinator::new(self.home().await, vec![self.resource()]).expect("a coordinator")
    }

    pub async fn begin(&self, global: &Global, branch: &str) -> Result<Tx> {
        Ok(match self {
            Db::Pg { at, .. } => Tx::Pg(at.begin(global, branch).await?),
            Db::Lite { at, .. } => Tx::Lite(at.begin(global, branch).await?),
        })
    }

    /// Runs one update as a branch, waiting as the wrapper does.
    pub async fn change(&self, global: &Global, branch: &str, updates: &[Update]) -> Result<()> {
        let updates = updates.to_vec();
        macro_rules! run {
            ($at:expr) => {
                $at.run(global, branch, SOON, move |tx| {
                    let updates = updates.clone();
                    Box::pin(async move {
                        for update in &updates {
                            tx.update(update).await?;
                        }
                        Ok(())
                    })
                })
                .await
            };
        }
        match self {
            Db::Pg { at, .. } => run!(at),
            Db::Lite { at, .. } => run!(at),
        }
    }

    pub async fn install_guard(&self, table: &str) -> Result<()> {
        match self {
            Db::Pg { at, .. } => at.install_guard(table).await,
            Db::Lite { at, .. } => at.install_guard(table).await,
        }
    }

    pub async fn remove_guard(&self, table: &str) -> Result<()> {
        match self {
            Db::Pg { at, .. } => at.remove_guard(table).await,
            Db::Lite { at, .. } => at.remove_guard(table).await,
        }
    }

    /// Runs statements past the wrapper.
    pub async fn try_run(&self, text: &str) -> sqlx::Result<()> {
        match self {
            Db::Pg { at, .. } => {
                sqlx::raw_sql(AssertSqlSafe(text))
                    .execute(at.pool())
                    .await?;
            }
            Db::Lite { at, .. } => {
                sqlx::raw_sql(AssertSqlSafe(text))
                    .execute(at.pool())
                    .await?;
            }
        }
        Ok(())
    }

    /// Has the deadline of a global transaction be over here.
    pub async fn expire(&self, gid: &str) {
        let over = match self {
            Db::Pg { .. } => "deadline = clock_timestamp() - interval '1 second'",
            Db::Lite { .. } => "deadline_ms = 0",
        };
        let text = format!("UPDATE quorate_at_work SET {over} WHERE gid = '{gid}'");
        self.run(&text).await;
    }

    pub async fn run(&self, text: &str) {
        self.try_run(text)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}"));
    }

    pub async fn number(&self, text: &str) -> i64 {
        let text = AssertSqlSafe(text.to_owned());
        match self {
            Db::Pg { at, .. } => sqlx::query(text)
                .fetch_one(at.pool())
                .await
                .expect("reads")
                .try_get(0),
            Db::Lite { at, .. } => sqlx::query(text)
                .fetch_one(at.pool())
                .await
                .expect("reads")
                .try_get(0),
        }
        .expect("a number")
    }

    pub async fn texts(&self, text: &str) -> Vec<String> {
        let text = AssertSqlSafe(text.to_owned());
        let read: sqlx::Result<Vec<String>> = match self {
            Db::Pg { at, .. } => {
                let rows = sqlx::query(text).fetch_all(at.pool()).await.expect("reads");
                rows.iter().map(|row| row.try_get(0)).collect()
            }
            Db::Lite { at, .. } => {
                let rows = sqlx::query(text).fetch_all(at.pool()).await.expect("reads");
                rows.iter().map(|row| row.try_get(0)).collect()
            }
        };
        read.expect("texts")
    }

    /// The table that most tests use, with so many accounts of 100 each.
    pub async fn accounts(&self, count: i64) {
        self.run(
            "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, note text)",
        )
        .await;
        for id in 1..=count {
            self.run(&format!("INSERT INTO account VALUES ({id}, 100, NULL)"))
                .await;
        }
    }

    pub async fn balance(&self, id: i64) -> i64 {
        self.number(&format!("SELECT balance FROM account WHERE id = {id}"))
            .await
    }

    pub async fn locks(&self) -> i64 {
        self.number("SELECT count(*) FROM quorate_at_lock").await
    }

    /// No lock, no image, nothing open.
    pub async fn assert_clean(&self, what: &str) {
        let kind = self.kind();
        assert_eq!(self.locks().await, 0, "{what}, {kind}: locks are left");
        let images = self.number("SELECT count(*) FROM quorate_at_undo").await;
        assert_eq!(images, 0, "{what}, {kind}: images are left");
        let open = self
            .number("SELECT count(*) FROM quorate_at_work WHERE state <> 1")
            .await;
        assert_eq!(open, 0, "{what}, {kind}: work is left");
    }

    pub async fn end(self) {
        if let Db::Pg { at, schema } = self {
            let drop = format!("DROP SCHEMA {schema} CASCADE");
            sqlx::query(AssertSqlSafe(drop))
                .execute(at.pool())
                .await
                .expect("drops");
            at.pool().close().await;
        }
    }
}

/// `account` by key.
pub fn account(id: i64) -> Rows {
    Rows::of("account").key(id)
}

pub fn add(id: i64, amount: i64) -> Update {
    account(id).update().add("balance", amount)
}

pub fn assert_kind<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, what: &str) -> String {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), kind, "{what}: {error}");
    error.to_string()
}

/// Random numbers from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

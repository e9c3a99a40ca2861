//! What the tests share: databases, brokers, waiting.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, MySql, MySqlPool, PgPool, Postgres, SqlitePool, Transaction};

use crate::Partition;
use crate::broker::{Positions, Start};
use crate::store::BoxFuture;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `cargo xtask test`, or `cargo xtask services` and set what it prints"
        )
    })
}

/// The broker with transactions.
pub fn kafka() -> String {
    variable("QUORATE_KAFKA")
}

/// The broker with groups that notice a member's death.
pub fn kafka_groups() -> String {
    std::env::var("QUORATE_KAFKA_GROUPS").unwrap_or_else(|_| kafka())
}

/// A schema of its own in the server.
pub struct Pg {
    pub pool: PgPool,
    admin: PgPool,
    schema: String,
}

impl Pg {
    pub async fn new() -> Pg {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let url = variable("QUORATE_POSTGRES");
        let admin = PgPoolOptions::new().max_connections(1).connect(&url).await;
        let admin = admin.expect("PostgreSQL answers");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let schema = format!("quorate_test_{}_{number}", std::process::id());
        let make = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
        sqlx::query(AssertSqlSafe(make))
            .execute(&admin)
            .await
            .expect("drops");
        let make = format!("CREATE SCHEMA {schema}");
        sqlx::query(AssertSqlSafe(make))
            .execute(&admin)
            .await
            .expect("creates");
        let options: PgConnectOptions = url.parse().expect("a URL");
        let pool = PgPoolOptions::new()
            .max_connections(24)
            .connect_with(options.options([("search_path", schema.as_str())]))
            .await
            .expect("connects");
        Pg {
            pool,
            admin,
            schema,
        }
    }

    pub async fn end(self) {
        self.pool.close().await;
        let drop = format!("DROP SCHEMA {} CASCADE", self.schema);
        sqlx::query(AssertSqlSafe(drop))
            .execute(&self.admin)
            .await
            .expect("drops");
    }
}

/// A database of its own in the server of MySQL's protocol.
pub struct My {
    pub pool: MySqlPool,
    pub admin: MySqlPool,
    pub options: Box<MySqlConnectOptions>,
    name: String,
}

impl My {
    pub async fn new() -> My {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let url = variable("QUORATE_MYSQL");
        let admin = MySqlPoolOptions::new().max_connections(2);
        let admin = admin.connect(&url).await.expect("MySQL answers");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("quorate_test_{}_{number}", std::process::id());
        for make in [
            format!("DROP DATABASE IF EXISTS {name}"),
            // Names and keys must not hang on what a server's default is.
            format!("CREATE DATABASE {name} CHARACTER SET latin1"),
        ] {
            let made = sqlx::query(AssertSqlSafe(make)).execute(&admin).await;
            made.expect("creates");
        }
        let options: MySqlConnectOptions = url.parse().expect("a URL");
        let options = options.database(&name);
        let pool = MySqlPoolOptions::new()
            .max_connections(24)
            .connect_with(options.clone())
            .await
            .expect("connects");
        My {
            pool,
            admin,
            options: Box::new(options),
            name,
        }
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A pool whose sessions begin with a statement.
    pub async fn pool_with(&self, first: &'static str) -> MySqlPool {
        let pool =
            MySqlPoolOptions::new()
                .max_connections(4)
                .after_connect(move |connection, _| {
                    Box::pin(async move {
                        sqlx::query(first).execute(connection).await?;
                        Ok(())
                    })
                });
        let connected = pool.connect_with((*self.options).clone()).await;
        connected.expect("connects")
    }

    pub async fn end(self) {
        self.pool.close().await;
        let drop = format!("DROP DATABASE {}", self.name);
        let dropped = sqlx::query(AssertSqlSafe(drop)).execute(&self.admin).await;
        dropped.expect("drops");
    }
}

/// A database file of its own.
pub struct Lite {
    pub pool: SqlitePool,
    _folder: tempfile::TempDir,
}

impl Lite {
    pub async fn new() -> Lite {
        let folder = tempfile::tempdir().expect("a folder");
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("test.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(20));
        let pool = SqlitePoolOptions::new().max_connections(8);
        let pool = pool.connect_with(options).await.expect("opens");
        Lite {
            pool,
            _folder: folder,
        }
    }
}

/// Begins every partition at its beginning.
#[derive(Default)]
pub struct FromStart;

impl Positions for FromStart {
    fn assigned(&self, partitions: Vec<Partition>, _: u64) -> BoxFuture<'_, Vec<Start>> {
        let starts = vec![Start::At(0); partitions.len()];
        Box::pin(async move { starts })
    }

    fn revoked(&self, _: Vec<Partition>) -> BoxFuture<'_, ()> {
        Box::pin(async {})
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
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An outbox in one of the databases.
pub enum AnyOutbox {
    Pg(Pg, crate::postgres::PgOutbox),
    My(My, crate::mysql::MySqlOutbox),
    Lite(Lite, crate::sqlite::SqliteOutbox),
    Kv(crate::kv::KvOutbox),
}

impl AnyOutbox {
    pub async fn pg(parts: u16) -> AnyOutbox {
        let pg = Pg::new().await;
        let outbox = crate::postgres::PgOutbox::migrate(pg.pool.clone(), parts).await;
        AnyOutbox::Pg(pg, outbox.expect("migrates"))
    }

    pub async fn my(parts: u16) -> AnyOutbox {
        let my = My::new().await;
        let outbox = crate::mysql::MySqlOutbox::migrate(my.pool.clone(), parts).await;
        AnyOutbox::My(my, outbox.expect("migrates"))
    }

    pub async fn lite(parts: u16) -> AnyOutbox {
        let lite = Lite::new().await;
        let outbox = crate::sqlite::SqliteOutbox::migrate(lite.pool.clone(), parts).await;
        AnyOutbox::Lite(lite, outbox.expect("migrates"))
    }

    pub fn kv(parts: u16) -> AnyOutbox {
        let domain = quorate_kv::Domain {
            cluster: 1,
            namespace: 1,
            incarnation: 0,
        };
        let kv = std::sync::Arc::new(quorate_kv::memory::MemoryKv::new(domain));
        let prefixes = (0..parts).map(|part| format!("p{part}")).collect();
        AnyOutbox::Kv(crate::kv::KvOutbox::new(kv, "kv-test", prefixes).expect("opens"))
    }

    pub fn store(&self) -> std::sync::Arc<dyn crate::store::Store> {
        match self {
            AnyOutbox::Pg(_, outbox) => std::sync::Arc::new(outbox.clone()),
            AnyOutbox::My(_, outbox) => std::sync::Arc::new(outbox.clone()),
            AnyOutbox::Lite(_, outbox) => std::sync::Arc::new(outbox.clone()),
            AnyOutbox::Kv(outbox) => std::sync::Arc::new(outbox.clone()),
        }
    }

    /// Enqueues in one transaction, and commits it or rolls it back.
    pub async fn enqueue(&self, messages: &[crate::Message], commit: bool) -> Vec<crate::Enqueued> {
        let mut gave = Vec::new();
        match self {
            AnyOutbox::Pg(..) | AnyOutbox::My(..) => {
                let mut tx = self.begin().await;
                for message in messages {
                    gave.push(tx.enqueue(message).await.expect("enqueues"));
                }
                if commit {
                    tx.commit().await;
                } else {
                    tx.rollback().await;
                }
            }
            AnyOutbox::Lite(lite, outbox) => {
                let mut tx = lite
                    .pool
                    .begin_with("BEGIN IMMEDIATE")
                    .await
                    .expect("begins");
                for message in messages {
                    gave.push(outbox.enqueue(&mut tx, message).await.expect("enqueues"));
                }
                if commit {
                    tx.commit().await.expect("commits");
                }
            }
            AnyOutbox::Kv(outbox) => {
                // A batch is there or not: nothing is to be rolled back.
                for message in messages.iter().filter(|_| commit) {
                    let parts = crate::store::Store::parts(outbox);
                    let prefix = format!("p{}", message.part(parts));
                    let data = quorate_kv::Mutation::put(format!("{prefix}/data"), "x");
                    let done = outbox.enqueue(&prefix, vec![data], message).await;
                    gave.push(done.expect("enqueues").0);
                }
            }
        }
        gave
    }

    pub async fn end(self) {
        match self {
            AnyOutbox::Pg(pg, _) => pg.end().await,
            AnyOutbox::My(my, _) => my.end().await,
            AnyOutbox::Lite(..) | AnyOutbox::Kv(_) => {}
        }
    }

    /// Begins a transaction, in a server.
    pub async fn begin(&self) -> AnyTx {
        match self {
            AnyOutbox::Pg(pg, outbox) => {
                AnyTx::Pg(pg.pool.begin().await.expect("begins"), outbox.clone())
            }
            AnyOutbox::My(my, outbox) => {
                AnyTx::My(my.pool.begin().await.expect("begins"), outbox.clone())
            }
            AnyOutbox::Lite(..) | AnyOutbox::Kv(_) => unreachable!("not a server"),
        }
    }

    /// Runs statements, one after the other; answers how many rows the last one changed.
    pub async fn run(&self, text: &str) -> u64 {
        let mut rows = 1;
        for text in text.split(';').filter(|text| !text.trim().is_empty()) {
            let query = AssertSqlSafe(text.to_owned());
            let done = match self {
                AnyOutbox::Pg(pg, _) => {
                    let done = sqlx::query(query).execute(&pg.pool).await;
                    done.map(|done| done.rows_affected())
                }
                AnyOutbox::My(my, _) => {
                    let done = sqlx::query(query).execute(&my.pool).await;
                    done.map(|done| done.rows_affected())
                }
                AnyOutbox::Lite(lite, _) => {
                    let done = sqlx::query(query).execute(&lite.pool).await;
                    done.map(|done| done.rows_affected())
                }
                AnyOutbox::Kv(_) => Ok(1),
            };
            rows = done.unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        rows
    }

    /// Reads a number.
    pub async fn number(&self, text: &'static str) -> i64 {
        match self {
            AnyOutbox::Pg(pg, _) => sqlx::query_scalar(text).fetch_one(&pg.pool).await,
            AnyOutbox::My(my, _) => sqlx::query_scalar(text).fetch_one(&my.pool).await,
            AnyOutbox::Lite(lite, _) => sqlx::query_scalar(text).fetch_one(&lite.pool).await,
            AnyOutbox::Kv(_) => Ok(0),
        }
        .unwrap_or_else(|error| panic!("{text}: {error}"))
    }
}

/// A transaction in one of the servers.
pub enum AnyTx {
    Pg(Transaction<'static, Postgres>, crate::postgres::PgOutbox),
    My(Transaction<'static, MySql>, crate::mysql::MySqlOutbox),
}

impl AnyTx {
    pub async fn enqueue(&mut self, message: &crate::Message) -> crate::Result<crate::Enqueued> {
        match self {
            AnyTx::Pg(tx, outbox) => outbox.enqueue(tx, message).await,
            AnyTx::My(tx, outbox) => outbox.enqueue(tx, message).await,
        }
    }

    pub async fn enqueue_all(&mut self, messages: &[crate::Message]) -> crate::Result<()> {
        match self {
            AnyTx::Pg(tx, outbox) => outbox.enqueue_all(tx, messages).await,
            AnyTx::My(tx, outbox) => outbox.enqueue_all(tx, messages).await,
        }
    }

    pub async fn commit(self) {
        match self {
            AnyTx::Pg(tx, _) => tx.commit().await,
            AnyTx::My(tx, _) => tx.commit().await,
        }
        .expect("commits");
    }

    pub async fn rollback(self) {
        match self {
            AnyTx::Pg(tx, _) => tx.rollback().await,
            AnyTx::My(tx, _) => tx.rollback().await,
        }
        .expect("rolls back");
    }
}

/// A broker that keeps what it gets and refuses what it is told to refuse.
#[derive(Default)]
pub struct Keeps {
    pub got: parking_lot::Mutex<Vec<crate::broker::Outgoing>>,
    /// Payloads that are poison.
    pub poison: parking_lot::Mutex<std::collections::HashSet<String>>,
    /// So many batches are refused for now, and are lost or, every other time, stored all the same.
    pub refuse: AtomicU64,
    /// Refuses everything while set.
    pub gone: std::sync::atomic::AtomicBool,
    /// Payloads that the server refuses with all that came with them.
    pub spoils: parking_lot::Mutex<std::collections::HashSet<String>>,
    /// Payloads whose batches are not answered while they are here.
    pub stuck: parking_lot::Mutex<std::collections::HashSet<String>>,
    /// The bytes of each batch.
    pub sizes: parking_lot::Mutex<Vec<usize>>,
    /// The number of the last batch, for a broker with transactions.
    pub last: parking_lot::Mutex<Option<i64>>,
}

impl Keeps {
    /// The payloads it got.
    pub fn texts(&self) -> Vec<String> {
        let text = |m: &crate::broker::Outgoing| String::from_utf8_lossy(&m.payload).into_owned();
        self.got.lock().iter().map(text).collect()
    }
}

impl crate::broker::Broker for Keeps {
    fn publish<'a>(
        &'a self,
        batch: crate::broker::Outbatch<'a>,
    ) -> BoxFuture<'a, crate::broker::Outcomes> {
        use crate::broker::Refusal;
        let text = |m: &crate::broker::Outgoing| String::from_utf8_lossy(&m.payload).into_owned();
        let has = |set: &parking_lot::Mutex<std::collections::HashSet<String>>| {
            let set = set.lock();
            batch.messages.iter().any(|m| set.contains(&text(m)))
        };
        let bytes = batch.messages.iter().map(|m| m.payload.len()).sum();
        self.sizes.lock().push(bytes);
        if has(&self.stuck) {
            return Box::pin(async move {
                let texts: Vec<String> = batch.messages.iter().map(text).collect();
                while texts.iter().any(|t| self.stuck.lock().contains(t)) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                vec![Err(Refusal::Retry("it took long".into())); texts.len()]
            });
        }
        if has(&self.spoils) {
            let all = vec![Err(Refusal::Together("spoilt".into())); batch.messages.len()];
            return Box::pin(async move { all });
        }
        let retry = Refusal::Retry("told to refuse".into());
        if self.gone.load(Ordering::SeqCst) {
            let all = vec![Err(retry); batch.messages.len()];
            return Box::pin(async move { all });
        }
        let left = self.refuse.load(Ordering::SeqCst);
        if left > 0 {
            self.refuse.store(left - 1, Ordering::SeqCst);
            if left.is_multiple_of(2) {
                // Stored, but the answer is lost.
                self.got.lock().extend(batch.messages.iter().cloned());
            }
            let all = vec![Err(retry); batch.messages.len()];
            return Box::pin(async move { all });
        }
        let poison = self.poison.lock().clone();
        let mut outcomes = Vec::new();
        let mut closed = crate::broker::Closed::default();
        for message in batch.messages {
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            if let Some(refusal) = closed.refusal(message) {
                outcomes.push(Err(refusal));
            } else if poison.contains(&text) {
                closed.close(message);
                outcomes.push(Err(Refusal::Poison("told to".into())));
            } else {
                self.got.lock().push(message.clone());
                outcomes.push(Ok(()));
            }
        }
        if let Some(last) = &mut *self.last.lock() {
            *last = batch.number;
        }
        Box::pin(async move { outcomes })
    }

    fn is_transactional(&self) -> bool {
        self.last.lock().is_some()
    }

    fn last_batch<'a>(
        &'a self,
        _: &'a str,
        _: crate::store::Fence,
    ) -> BoxFuture<'a, crate::Result<Option<i64>>> {
        let last = *self.last.lock();
        Box::pin(async move { Ok(last) })
    }

    fn subscribe<'a>(
        &'a self,
        _: &'a str,
        _: &'a [String],
        _: std::sync::Arc<dyn Positions>,
    ) -> BoxFuture<'a, crate::Result<Box<dyn crate::broker::Subscription>>> {
        Box::pin(async {
            let text = "this broker only keeps";
            Err(crate::Error::new(crate::ErrorKind::Unsupported, text))
        })
    }
}

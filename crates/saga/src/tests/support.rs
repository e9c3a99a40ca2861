//! What the tests share: databases, waiting.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_kv::Domain;
use quorate_kv::memory::MemoryKv;
use quorate_outbox::kv::KvOutbox;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::sqlite::SqliteOutbox;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};

/// A schema of its own in the server.
pub struct Pg {
    pub pool: PgPool,
    admin: PgPool,
    schema: String,
}

impl Pg {
    pub async fn new() -> Pg {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let url = std::env::var("QUORATE_POSTGRES").unwrap_or_else(|_| {
            panic!("QUORATE_POSTGRES is not set: run `cargo xtask test`, or `cargo xtask services`")
        });
        let admin = PgPoolOptions::new().max_connections(1).connect(&url).await;
        let admin = admin.expect("PostgreSQL answers");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let schema = format!("quorate_saga_test_{}_{number}", std::process::id());
        for make in ["DROP SCHEMA IF EXISTS {} CASCADE", "CREATE SCHEMA {}"] {
            let make = make.replace("{}", &schema);
            let made = sqlx::query(AssertSqlSafe(make)).execute(&admin).await;
            made.expect("makes the schema");
        }
        let options: PgConnectOptions = url.parse().expect("a URL");
        let pool = PgPoolOptions::new()
            .max_connections(12)
            .connect_with(options.options([("search_path", schema.as_str())]))
            .await
            .expect("connects");
        Pg {
            pool,
            admin,
            schema,
        }
    }

    pub async fn outbox(&self) -> PgOutbox {
        let outbox = PgOutbox::migrate(self.pool.clone(), 1).await;
        outbox.expect("migrates")
    }

    pub async fn end(self) {
        self.pool.close().await;
        let drop = format!("DROP SCHEMA {} CASCADE", self.schema);
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

    pub async fn outbox(&self) -> SqliteOutbox {
        let outbox = SqliteOutbox::migrate(self.pool.clone(), 1).await;
        outbox.expect("migrates")
    }
}

/// An outbox over a `Kv` in memory.
pub fn kv_outbox() -> KvOutbox {
    let domain = Domain {
        cluster: uuid::Uuid::now_v7().as_u128(),
        namespace: 1,
        incarnation: 1,
    };
    let kv = Arc::new(MemoryKv::new(domain));
    let outbox = KvOutbox::new(kv, "kv", vec!["one".into(), "two".into()]);
    outbox.expect("an outbox")
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

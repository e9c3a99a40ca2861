//! A test's database, and the processes that work on it.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quorate_outbox::inbox::{MySqlInbox, PgInbox};
use quorate_outbox::mysql::MySqlOutbox;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::store::Store;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlRow};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, FromRow, MySqlConnection, MySqlPool, PgConnection, PgPool};

/// How long anything may take.
pub const SOON: Duration = Duration::from_secs(90);

/// The setting that has a test on MySQL.
pub const MYSQL: &str = "database=mysql";

/// A variable that `cargo xtask test` sets.
///
/// # Panics
/// When it is not set.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `cargo xtask test`, or `cargo xtask services` and set what it prints"
        )
    })
}

/// A test's database.
pub enum Base {
    Pg(PgPool, PgOutbox),
    MySql(MySqlPool, MySqlOutbox),
}

/// A schema of PostgreSQL, or a database of MySQL, with orders, effects, outbox and inbox; and a topic.
pub struct Bench {
    pub base: Base,
    name: String,
    settings: Vec<String>,
}

const TABLES: &str = "\
    CREATE TABLE orders (id bigserial PRIMARY KEY, k text NOT NULL);
    CREATE TABLE effects (id bigserial PRIMARY KEY, k text, seq bigint, text text NOT NULL)";
const TABLES_MYSQL: &str = "\
    CREATE TABLE orders (id bigint AUTO_INCREMENT PRIMARY KEY, k varchar(255) NOT NULL);
    CREATE TABLE effects (
        id bigint AUTO_INCREMENT PRIMARY KEY, k varchar(255), seq bigint, text varchar(255) NOT NULL)";

async fn on_postgres(url: &str, name: &str) -> Base {
    run_on_postgres(url, format!("CREATE SCHEMA {name}")).await;
    let options: PgConnectOptions = url.parse().expect("a URL");
    let options = options.options([("search_path", name)]);
    let pool = PgPoolOptions::new().max_connections(3);
    let pool = pool.connect_with(options).await.expect("connects");
    let made = sqlx::raw_sql(TABLES).execute(&pool).await;
    made.expect("makes tables");
    let outbox = PgOutbox::migrate(pool.clone(), 2).await.expect("migrates");
    PgInbox::migrate(pool.clone()).await.expect("migrates");
    Base::Pg(pool, outbox)
}

async fn run_on_postgres(url: &str, text: String) {
    let mut admin = PgConnection::connect(url)
        .await
        .expect("PostgreSQL answers");
    let done = sqlx::query(AssertSqlSafe(text)).execute(&mut admin).await;
    done.expect("runs");
    admin.close().await.expect("closes");
}

async fn on_mysql(url: &str, name: &str) -> Base {
    run_on_mysql(url, format!("CREATE DATABASE {name}")).await;
    let options: MySqlConnectOptions = url.parse().expect("a URL");
    let pool = MySqlPoolOptions::new().max_connections(3);
    let pool = pool.connect_with(options.database(name)).await;
    let pool = pool.expect("connects");
    let made = sqlx::raw_sql(TABLES_MYSQL).execute(&pool).await;
    made.expect("makes tables");
    let outbox = MySqlOutbox::migrate(pool.clone(), 2).await;
    MySqlInbox::migrate(pool.clone()).await.expect("migrates");
    Base::MySql(pool, outbox.expect("migrates"))
}

async fn run_on_mysql(url: &str, text: String) {
    let mut admin = MySqlConnection::connect(url).await.expect("MySQL answers");
    let done = sqlx::query(AssertSqlSafe(text)).execute(&mut admin).await;
    done.expect("runs");
    admin.close().await.expect("closes");
}

impl Bench {
    /// Makes everything: on PostgreSQL, or on MySQL with the setting `database=mysql`. `kafka` is the variable
    /// that names the broker.
    pub async fn new(kafka: &str, settings: &[&str]) -> Bench {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("quorate_it_{}_{number}", std::process::id());
        let (base, url) = if settings.contains(&MYSQL) {
            let url = variable("QUORATE_MYSQL");
            (on_mysql(&url, &name).await, format!("mysql={url}"))
        } else {
            let url = variable("QUORATE_POSTGRES");
            (on_postgres(&url, &name).await, format!("postgres={url}"))
        };
        let mut all = vec![
            url,
            format!("schema={name}"),
            format!("kafka={}", variable(kafka)),
            format!("topic={name}"),
        ];
        all.extend(settings.iter().map(|s| (*s).to_owned()));
        Bench {
            base,
            name,
            settings: all,
        }
    }

    /// The outbox.
    pub fn store(&self) -> &dyn Store {
        match &self.base {
            Base::Pg(_, outbox) => outbox,
            Base::MySql(_, outbox) => outbox,
        }
    }

    /// Reads all orders, or all effects.
    pub async fn read<T>(&self, text: &'static str) -> Result<Vec<T>, String>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, MySqlRow> + Send + Unpin,
    {
        match &self.base {
            Base::Pg(pool, _) => sqlx::query_as(text).fetch_all(pool).await,
            Base::MySql(pool, _) => sqlx::query_as(text).fetch_all(pool).await,
        }
        .map_err(|e| e.to_string())
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.name
    }

    /// Starts a process of a role, which is to die at a point.
    pub fn start(&self, role: &str, crash: Option<&str>) -> Process {
        Process::start(role, &self.settings, crash)
    }

    /// Removes everything.
    pub async fn end(self) {
        match self.base {
            Base::Pg(pool, _) => {
                pool.close().await;
                let drop = format!("DROP SCHEMA {} CASCADE", self.name);
                run_on_postgres(&variable("QUORATE_POSTGRES"), drop).await;
            }
            Base::MySql(pool, _) => {
                pool.close().await;
                let drop = format!("DROP DATABASE {}", self.name);
                run_on_mysql(&variable("QUORATE_MYSQL"), drop).await;
            }
        }
    }
}

/// A process; killed when it is dropped.
pub struct Process {
    role: String,
    child: Child,
}

impl Process {
    pub fn start(role: &str, settings: &[String], crash: Option<&str>) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-role"));
        command.arg(role).args(settings).stdin(Stdio::null());
        if std::env::var_os("QUORATE_TEST_OUTPUT").is_none() {
            command.stdout(Stdio::null());
        }
        command.env_remove("QUORATE_CRASH_AT");
        if let Some(at) = crash {
            command.env("QUORATE_CRASH_AT", at);
        }
        Process {
            role: role.to_owned(),
            child: command.spawn().expect("the role starts"),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < end, "the {} does not end", self.role);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), signal).expect("it is there");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A test's database, and the processes that work on it.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quorate_outbox::inbox::PgInbox;
use quorate_outbox::postgres::PgOutbox;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

/// How long anything may take.
pub const SOON: Duration = Duration::from_secs(90);

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

/// A schema of PostgreSQL with orders, effects, outbox and inbox, and a topic.
pub struct Bench {
    pub pool: PgPool,
    pub outbox: PgOutbox,
    admin: PgPool,
    name: String,
    settings: Vec<String>,
}

const TABLES: &str = "\
    CREATE TABLE orders (id bigserial PRIMARY KEY, k text NOT NULL);
    CREATE TABLE effects (id bigserial PRIMARY KEY, k text, seq bigint, text text NOT NULL)";

impl Bench {
    /// Makes everything. `kafka` is the variable that names the broker.
    pub async fn new(kafka: &str, settings: &[&str]) -> Bench {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let url = variable("QUORATE_POSTGRES");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("quorate_it_{}_{number}", std::process::id());
        let admin = PgPoolOptions::new().max_connections(1).connect(&url).await;
        let admin = admin.expect("PostgreSQL answers");
        let make = format!("CREATE SCHEMA {name}");
        sqlx::query(AssertSqlSafe(make))
            .execute(&admin)
            .await
            .expect("creates");
        let options: PgConnectOptions = url.parse().expect("a URL");
        let options = options.options([("search_path", name.as_str())]);
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .connect_with(options)
            .await;
        let pool = pool.expect("connects");
        sqlx::raw_sql(TABLES)
            .execute(&pool)
            .await
            .expect("makes tables");
        let outbox = PgOutbox::migrate(pool.clone(), 2).await.expect("migrates");
        PgInbox::migrate(pool.clone()).await.expect("migrates");
        let mut all = vec![
            format!("postgres={url}"),
            format!("schema={name}"),
            format!("kafka={}", variable(kafka)),
            format!("topic={name}"),
        ];
        all.extend(settings.iter().map(|s| (*s).to_owned()));
        Bench {
            pool,
            outbox,
            admin,
            name,
            settings: all,
        }
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
        self.pool.close().await;
        let drop = format!("DROP SCHEMA {} CASCADE", self.name);
        sqlx::query(AssertSqlSafe(drop))
            .execute(&self.admin)
            .await
            .expect("drops");
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

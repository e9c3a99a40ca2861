//! Sagas whose process is killed by SIGKILL at each named point between two writes, on both databases: the books
//! balance, and every saga ends whole or undone.
//!
//! `QUORATE_TEST_SEEDS` is how many seeds a point gets; `QUORATE_TEST_POINT` runs one point alone.

mod apart;
mod commands;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use crate::support::Share;

/// How long anything may take.
const SOON: Duration = Duration::from_secs(120);
const SAGAS: i64 = 20;
/// So many cases at once: they mostly wait for leases to end.
const AT_ONCE: usize = 3;

/// One command a transaction.
const SINGLY: [&str; 19] = [
    "coordinator.stepped",
    "coordinator.appended",
    "journal.written",
    "journal.enqueued",
    "journal.committed",
    "participant.fenced",
    "bank.booked",
    "participant.acted",
    "participant.replied",
    "participant.attempted",
    "post.acted",
    "participant.called",
    "inbox.advanced",
    "inbox.applied",
    "inbox.committed",
    "relay.read",
    "relay.published",
    "relay.saved",
    "broker.append-committed",
];
/// Many commands a transaction.
const IN_BATCHES: [&str; 6] = [
    "participant.batch-fenced",
    "participant.batch-acted",
    "participant.batch-replied",
    "inbox.batch-applied",
    "inbox.batch-committed",
    "broker.appended",
];

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `cargo xtask test`, or `cargo xtask services` and set what it prints")
    })
}

/// A process; killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(settings: &[String], crash: Option<&str>) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_saga-role"));
        command.args(settings).stdin(Stdio::null());
        if std::env::var_os("QUORATE_TEST_OUTPUT").is_none() {
            command.stdout(Stdio::null());
        }
        command.env_remove("QUORATE_CRASH_AT");
        if let Some(at) = crash {
            command.env("QUORATE_CRASH_AT", at);
        }
        Process(command.spawn().expect("it starts"))
    }

    fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), signal).expect("it is there");
    }

    async fn ended(&mut self, what: &str) -> ExitStatus {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < end, "{what}: it does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sums of the book by account, and sagas by how they stand.
#[derive(Debug, PartialEq, Eq)]
struct Books {
    accounts: Vec<(String, i64)>,
    sagas: Vec<(i64, i64)>,
    /// Bookings that were made more than once.
    doubled: i64,
}

const ACCOUNTS: &str =
    "SELECT account, CAST(sum(amount) AS BIGINT) FROM money GROUP BY 1 ORDER BY 1";
const STANDING: &str =
    "SELECT CAST(status AS BIGINT), count(*) FROM quorate_saga GROUP BY 1 ORDER BY 1";
const DOUBLED: &str = "SELECT count(*) FROM (
    SELECT 1 AS one FROM money GROUP BY saga, branch, account, amount HAVING count(*) > 1) AS d";

macro_rules! read_books {
    ($connection:expr) => {{
        let mut connection = $connection;
        let books = Books {
            accounts: sqlx::query_as(ACCOUNTS)
                .fetch_all(&mut connection)
                .await
                .expect("reads"),
            sagas: sqlx::query_as(STANDING)
                .fetch_all(&mut connection)
                .await
                .expect("reads"),
            doubled: sqlx::query_scalar(DOUBLED)
                .fetch_one(&mut connection)
                .await
                .expect("reads"),
        };
        connection.close().await.expect("closes");
        books
    }};
}

/// Of five sagas the pivot of one is refused: of 20, 16 complete, 4 are compensated, and no money is lost or made.
fn expected(sagas: i64) -> Books {
    let (undone, done) = (sagas / 5, sagas - sagas / 5);
    let accounts = [("customer", -10 * done), ("escrow", 0), ("shop", 10 * done)];
    Books {
        accounts: accounts
            .iter()
            .map(|(name, sum)| ((*name).to_owned(), *sum))
            .collect(),
        sagas: vec![(3, done), (4, undone)],
        doubled: 0,
    }
}

/// A schema for one case.
struct Schema {
    url: String,
    name: String,
}

impl Schema {
    async fn new() -> Schema {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let schema = Schema {
            url: variable("QUORATE_POSTGRES"),
            name: format!("quorate_saga_it_{}_{number}", std::process::id()),
        };
        schema.run(format!("CREATE SCHEMA {}", schema.name)).await;
        schema
    }

    async fn run(&self, text: String) {
        let admin = PgPoolOptions::new()
            .max_connections(1)
            .connect(&self.url)
            .await;
        let admin = admin.expect("PostgreSQL answers");
        sqlx::query(AssertSqlSafe(text))
            .execute(&admin)
            .await
            .expect("runs");
        admin.close().await;
    }

    async fn drop(self) {
        let text = format!("DROP SCHEMA {} CASCADE", self.name);
        self.run(text).await;
    }

    async fn books(&self) -> Books {
        books_of_schemas(&self.url, &self.name).await
    }
}

/// The books that lie in these schemas together.
async fn books_of_schemas(url: &str, names: &str) -> Books {
    let options: PgConnectOptions = url.parse().expect("a URL");
    let options = options.options([("search_path", names)]);
    read_books!(options.connect().await.expect("connects"))
}

async fn books_of_file(folder: &Path) -> Books {
    let file = folder.join("data.db");
    let options = SqliteConnectOptions::new().filename(file);
    let options = options.busy_timeout(Duration::from_secs(20));
    read_books!(options.connect().await.expect("opens"))
}

fn seeds() -> u64 {
    let given = std::env::var("QUORATE_TEST_SEEDS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn cases(points: &[&'static str]) -> Vec<(&'static str, u64)> {
    let only = std::env::var("QUORATE_TEST_POINT").ok();
    let wanted = points
        .iter()
        .filter(|p| only.as_ref().is_none_or(|only| only == *p));
    wanted
        .flat_map(|point| (0..seeds()).map(move |seed| (*point, seed)))
        .collect()
}

async fn all_points(points: &[&'static str], batch: usize, on_postgres: bool) {
    let cases = futures_util::stream::iter(cases(points));
    let run = |(point, seed)| one(point, seed, batch, on_postgres);
    cases
        .map(run)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
}

/// Kills the process at a point, starts it again, and looks at the books once it has ended.
async fn one(point: &'static str, seed: u64, batch: usize, on_postgres: bool) {
    let count = match point.contains("batch") {
        true => 1,
        false => [1, 5, 3, 9][seed as usize % 4],
    };
    let at = format!("{point}:{count}");
    let what = format!("killed at {at}, seed {seed}, batch {batch}, postgres {on_postgres}");
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = vec![
        format!("folder={}", folder.path().display()),
        format!("sagas={SAGAS}"),
        format!("seed={seed}"),
        format!("batch={batch}"),
    ];
    let schema = match on_postgres {
        true => Some(Schema::new().await),
        false => None,
    };
    if let Some(schema) = &schema {
        settings.push(format!("postgres={}", schema.url));
        settings.push(format!("schema={}", schema.name));
    }
    let killed = Process::start(&settings, Some(&at)).ended(&what).await;
    assert_eq!(killed.signal(), Some(9), "{what}: {killed}");
    let ended = Process::start(&settings, None).ended(&what).await;
    assert!(ended.success(), "{what}: it ended with {ended}");
    let books = match &schema {
        Some(schema) => schema.books().await,
        None => books_of_file(folder.path()).await,
    };
    assert_eq!(books, expected(SAGAS), "{what}");
    if let Some(schema) = schema {
        schema.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_on_sqlite_killed_at_every_point_leaves_balanced_books() {
    let _share = Share::of(1).await;
    all_points(&SINGLY, 1, false).await;
    all_points(&IN_BATCHES, 50, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_on_postgres_killed_at_every_point_leaves_balanced_books() {
    let _share = Share::of(1).await;
    all_points(&SINGLY, 1, true).await;
    all_points(&["journal.begun"], 1, true).await;
    all_points(&IN_BATCHES, 50, true).await;
}

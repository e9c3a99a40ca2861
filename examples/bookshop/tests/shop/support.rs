//! What the tests share: the program, folders, servers, waiting.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::process::{Child, Command};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(150);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// The words of a line.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bookshop"));
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What a run came to.
pub struct Ended {
    pub is_good: bool,
    /// All that it printed.
    pub said: String,
}

/// Runs the bookshop to its end.
pub async fn bookshop(words: &[&str]) -> Ended {
    let running = command(words).output();
    let ended = tokio::time::timeout(SOON, running).await;
    let ended = ended.unwrap_or_else(|_| panic!("bookshop {words:?} does not end"));
    let ended = ended.expect("it starts");
    let said = [ended.stdout, ended.stderr].concat();
    Ended {
        is_good: ended.status.success(),
        said: String::from_utf8_lossy(&said).into_owned(),
    }
}

/// A process of the bookshop; killed when it is dropped.
pub struct Process(Child);

impl Process {
    pub fn start(words: &[&str]) -> Process {
        let mut command = command(words);
        if std::env::var_os("QUORATE_TEST_OUTPUT").is_none() {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        Process(command.spawn().expect("it starts"))
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.0.start_kill().expect("it is there");
        let status = self.0.wait().await.expect("a child");
        assert_eq!(status.signal(), Some(9), "it ended by itself: {status}");
    }
}

/// A folder for a shop.
pub struct Folder(tempfile::TempDir, String);

impl Folder {
    pub fn new() -> Folder {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().display().to_string();
        Folder(folder, path)
    }

    pub fn path(&self) -> &str {
        &self.1
    }

    /// Makes a file; answers its path.
    pub fn file(&self, name: &str) -> String {
        let file = self.0.path().join(name);
        std::fs::write(&file, "").expect("writes");
        file.display().to_string()
    }

    /// Waits for a file.
    pub async fn until_there(&self, name: &str) {
        let file = self.0.path().join(name);
        let end = Instant::now() + SOON;
        while !Path::new(&file).is_file() {
            assert!(Instant::now() < end, "{name} does not appear");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Changes what is in a service's database.
    pub async fn change(&self, service: &str, text: &'static str) {
        let file = self.0.path().join(format!("{service}.db"));
        let options = SqliteConnectOptions::new().filename(file);
        let mut connection = options.connect().await.expect("opens");
        let done = sqlx::query(text).execute(&mut connection).await;
        assert_eq!(done.expect("changes").rows_affected(), 1, "{text}");
        connection.close().await.expect("closes");
    }
}

#[cfg(all(feature = "postgres", feature = "kafka"))]
pub use servers::Servers;

#[cfg(all(feature = "postgres", feature = "kafka"))]
mod servers {
    use rustix::process::{Pid, Signal, kill_process};
    use sqlx::{AssertSqlSafe, PgConnection};

    use super::*;

    fn variable(name: &str) -> String {
        std::env::var(name).unwrap_or_else(|_| {
            panic!("{name} is not set: run `cargo xtask test`, or `cargo xtask services`")
        })
    }

    impl Process {
        /// SIGTERM: it ends in good order.
        pub async fn end(mut self) {
            let id = self.0.id().expect("it runs").cast_signed();
            kill_process(Pid::from_raw(id).expect("a process"), Signal::TERM).expect("it is there");
            let ended = tokio::time::timeout(SOON, self.0.wait()).await;
            let status = ended.expect("it ends").expect("a child");
            assert!(status.success(), "{status}");
        }
    }

    /// A shop in schemas and topics of its own.
    pub struct Servers {
        url: String,
        kafka: String,
        name: String,
    }

    impl Servers {
        pub fn new() -> Servers {
            Servers {
                url: variable("QUORATE_POSTGRES"),
                // The one that notices when a member of a group dies.
                kafka: variable("QUORATE_KAFKA_GROUPS"),
                name: format!("bookshop_test_{}", std::process::id()),
            }
        }

        pub fn settings(&self) -> String {
            let Servers { url, kafka, name } = self;
            format!("--postgres {url} --kafka {kafka} --name {name}")
        }

        async fn connect(&self) -> PgConnection {
            let connected = PgConnection::connect(&self.url).await;
            connected.expect("PostgreSQL answers")
        }

        /// How many rows a table has; none if it is not there yet.
        async fn rows(&self, connection: &mut PgConnection, what: &str) -> i64 {
            let text = format!("SELECT count(*) FROM {}_{what}", self.name);
            let counted = sqlx::query_scalar(AssertSqlSafe(text));
            counted.fetch_one(connection).await.unwrap_or(0)
        }

        /// Waits until a service has so many rows.
        pub async fn until_rows(&self, service: &str, table: &str, wanted: i64) {
            let end = Instant::now() + SOON;
            let mut connection = self.connect().await;
            let what = format!("{service}.{table}");
            loop {
                let rows = self.rows(&mut connection, &what).await;
                if rows >= wanted {
                    break;
                }
                assert!(Instant::now() < end, "{what}: {rows} rows, not {wanted}");
                tokio::time::sleep(LOOK).await;
            }
            connection.close().await.expect("closes");
        }

        /// Removes the schemas.
        pub async fn end(self) {
            let mut connection = self.connect().await;
            for service in ["accounts", "stock", "orders", "notify"] {
                let drop = format!("DROP SCHEMA {}_{service} CASCADE", self.name);
                let dropped = sqlx::query(AssertSqlSafe(drop));
                dropped.execute(&mut connection).await.expect("drops");
            }
        }
    }
}

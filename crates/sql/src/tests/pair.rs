//! PostgreSQL servers of a test's own, to be stopped, killed and promoted.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const USER: &str = "postgres";

/// A server. Dropping it kills it and removes its data.
pub struct Server {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// A new primary. REQUIRES: the thread that calls lives as long as the server should.
    pub fn primary() -> Server {
        let server = Server::empty();
        let data = server.data();
        let words = ["-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync", "-D"];
        server.tool("initdb", &words, &data);
        server.started()
    }

    /// A replica of whatever listens on that port.
    pub fn replica_of(port: u16) -> Server {
        let server = Server::empty();
        let from = format!("postgres://{USER}@127.0.0.1:{port}/postgres");
        let words = [
            "-c",
            "fast",
            "-X",
            "stream",
            "-R",
            "--no-sync",
            "-d",
            &from,
            "-D",
        ];
        let data = server.data();
        server.tool("pg_basebackup", &words, &data);
        server.started()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        url(self.port)
    }

    /// Kills it, as a power failure does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The child is setpriv no more: it has become the server.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn start(&mut self) {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        command.arg("-p").arg(self.port.to_string());
        command.arg("-k").arg(self.folder.path());
        for setting in [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "max_connections=60",
            "shared_buffers=16MB",
            "wal_retrieve_retry_interval=100ms",
        ] {
            command.arg("-c").arg(setting);
        }
        let log = std::fs::File::create(self.folder.path().join("server.log")).expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(command.stdin(Stdio::null()).spawn().expect("starts"));
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let mut ask = Command::new(programs().join("pg_isready"));
            let ready = ask.args(["-q", "-d", &self.url()]).status();
            if ready.expect("pg_isready runs").success() {
                return;
            }
            assert!(
                Instant::now() < end,
                "PostgreSQL does not start: {}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    fn empty() -> Server {
        let folder = tempfile::Builder::new().prefix("quorate-pair-").tempdir();
        let folder = folder.expect("a folder");
        if is_root() {
            let mut own = Command::new("chown");
            own.arg(format!("{USER}:{USER}")).arg(folder.path());
            assert!(own.status().expect("chown runs").success());
        }
        Server {
            folder,
            port: free_port(),
            child: None,
        }
    }

    fn started(mut self) -> Server {
        self.start();
        self
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        if is_root() {
            command.args(["--reuid", USER, "--regid", USER, "--init-groups"]);
        }
        command.args(["--pdeathsig", "KILL", "--"]);
        command.arg(programs().join(program));
        command.current_dir(self.folder.path());
        command.env("LC_ALL", "C.UTF-8");
        command
    }

    fn tool(&self, program: &str, words: &[&str], data: &Path) {
        let mut command = self.command(program);
        let done = command.args(words).arg(data).output().expect("runs");
        assert!(
            done.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn url(port: u16) -> String {
    format!("postgres://{USER}@127.0.0.1:{port}/postgres")
}

/// Where the newest version's programs are.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let found = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, programs)| programs.join("postgres").is_file())
        .max();
    let (_, programs) = found.expect("PostgreSQL is not installed: apt-get install -y postgresql");
    programs
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    id.stdout.trim_ascii() == b"0"
}

/// Below the ports that the kernel gives to outgoing connections, and not twice in this process.
fn free_port() -> u16 {
    static NEXT: std::sync::Mutex<u16> = std::sync::Mutex::new(0);
    let mut next = NEXT.lock().unwrap_or_else(|held| held.into_inner());
    if *next == 0 {
        *next = 12_000 + (std::process::id() % 1_000) as u16;
    }
    loop {
        *next += 1;
        if std::net::TcpListener::bind(("127.0.0.1", *next)).is_ok() {
            return *next;
        }
    }
}

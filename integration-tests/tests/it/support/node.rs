//! [`Node`]: one server process, its configuration file, data directory and log.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{SOON, binary, eventually};

/// How much of a log is shown when a test fails.
const LOG_LINES: usize = 40;

/// A server, running or not. Dropping it kills the process, by its own id.
pub struct Node {
    /// Where it listens.
    pub address: String,
    /// Its data directory.
    pub data: PathBuf,
    /// What its program is started by, if not directly.
    pub launcher: Vec<String>,
    /// Variables of its own.
    pub environment: Vec<(String, String)>,
    config: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

impl Node {
    /// A node whose files begin with `name` in `dir`; it does not run yet.
    pub fn new(dir: &Path, name: &str, port: u16) -> Node {
        Node {
            address: format!("127.0.0.1:{port}"),
            data: dir.join(name),
            launcher: Vec::new(),
            environment: Vec::new(),
            config: dir.join(format!("{name}.toml")),
            log: dir.join(format!("{name}.log")),
            process: None,
        }
    }

    /// Writes its configuration: where it listens, its data and seeds, then `rest`.
    pub fn configure(&self, seeds: &[String], rest: &str) {
        let text = format!(
            "listen = {:?}\ndata_dir = {:?}\nseeds = {seeds:?}\nthreads = 2\n{rest}",
            self.address,
            self.data.display().to_string()
        );
        fs::write(&self.config, text).expect("the test's directory is writable");
    }

    /// Starts the process, and does not wait for anything.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.address);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.expect("the test's directory is writable");
        let mut words = self.launcher.iter().map(OsString::from).collect::<Vec<_>>();
        words.push(binary().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUORATE_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // It ends with the pipe: a test that is killed leaves no process behind.
        let process = command
            .args(["serve", "--stop-at-eof", "--config"])
            .arg(&self.config)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        self.process = Some(process.expect("the program can be started"));
    }

    /// Whether a process was started and not killed.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Of a process that ended by itself there is nothing to kill.
            let _ = process.kill();
            process.wait().expect("our own child");
        }
    }

    /// SIGSTOP: the process lives and does nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        let id = i32::try_from(process.id()).expect("an id");
        let id = Pid::from_raw(id).expect("not zero");
        kill_process(id, signal).expect("our own child");
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        // Its standard input has to stay open: the end of it would stop the server as well.
        eventually("the process ends", SOON, || {
            let ended = process.try_wait().expect("our own child");
            std::future::ready(ended.ok_or_else(|| "it runs".to_owned()))
        })
        .await
    }

    /// The resident memory of the process.
    pub fn memory_bytes(&self) -> u64 {
        let id = self.process.as_ref().expect("it runs").id();
        let statm = fs::read_to_string(format!("/proc/{id}/statm")).expect("it lives");
        let pages = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok());
        pages.map_or(0, |pages: u64| pages * rustix::param::page_size() as u64)
    }

    /// The sum of a metric over its labels.
    pub async fn metric(&self, name: &str) -> Result<f64, String> {
        let (_, page) = self.http("/metrics").await?;
        let lines = page.lines().filter(|line| line.starts_with(name));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// What it answers to `GET` of a path: status and body.
    pub async fn http(&self, path: &str) -> Result<(u16, String), String> {
        let ask = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            let address = &self.address;
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(2), ask).await;
        let answer = answer.map_err(|_| "no answer in 2 s".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        let status = answer.get(9..12).and_then(|text| text.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        Ok((status.ok_or("not HTTP")?, body.to_owned()))
    }

    /// Waits until it answers at all.
    pub async fn answers(&mut self) {
        eventually("the server answers", SOON, || async {
            self.http("/health").await.map(drop)
        })
        .await;
    }

    /// Waits until it is ready: its replicas run and know their leaders.
    pub async fn healthy(&mut self) {
        eventually("the node is healthy", SOON, || async {
            match self.http("/health").await? {
                (200, _) => Ok(()),
                (status, body) => Err(format!("{status} {body}")),
            }
        })
        .await;
    }

    /// All that it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Shows the end of its log, for a test that fails.
    pub fn show_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        println!("---- {} ----\n{}", self.log.display(), tail.join("\n"));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            self.show_log();
        }
    }
}

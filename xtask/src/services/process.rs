//! A server that was started here: its process and its folder.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it ends the process and removes the folder.
pub struct Process {
    name: &'static str,
    child: Child,
    end: Signal,
    _folder: TempDir,
}

impl Process {
    /// Starts a command that dies with this process, its output in a file of the folder, and waits until
    /// it listens on the port.
    pub fn start(
        name: &'static str,
        command: &[String],
        end: Signal,
        folder: TempDir,
        port: u16,
    ) -> Result<Process> {
        let log = folder.path().join("server.log");
        let file = File::create(&log)?;
        let child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg("--")
            .args(command)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{name} could not be started"))?;
        let mut process = Process {
            name,
            child,
            end,
            _folder: folder,
        };
        process.wait_for(port, &log)?;
        Ok(process)
    }

    fn wait_for(&mut self, port: u16, log: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                bail!("{} does not listen on port {port}: {said}", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, self.end);
        }
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} does not stop by itself: it is killed", self.name);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nothing listens on, below those that the kernel gives to outgoing connections.
pub fn free_port() -> Result<u16> {
    let begin = 10_000 + (std::process::id() % 1_000) as u16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = TAKEN.lock().unwrap_or_else(|taken| taken.into_inner());
    let found = (begin..12_000).find(|port| !ports.contains(port) && free(port));
    let port = found.context("no free port from 10000 to 12000")?;
    ports.push(port);
    Ok(port)
}

static TAKEN: std::sync::Mutex<Vec<u16>> = std::sync::Mutex::new(Vec::new());

/// A new folder under the system's folder for temporary files, which every user may pass through.
pub fn folder() -> Result<TempDir> {
    let base: PathBuf = std::env::temp_dir();
    tempfile::Builder::new()
        .prefix("quorate-services-")
        .tempdir_in(base)
        .context("make a temporary folder")
}

//! PostgreSQL of Debian's package, with fsync on, as a user without privileges, and a streaming replica of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{self, Process};
use super::{Tool, is_root, require};
use crate::ci;

const PACKAGE: Tool = Tool {
    program: "pg_lsclusters",
    package: "postgresql",
};
/// The user that Debian's package makes.
const USER: &str = "postgres";

/// Starts a new, empty server; answers its URL.
pub fn start() -> Result<(String, Process)> {
    let programs = programs()?;
    let folder = process::folder()?;
    let data = folder.path().join("data");
    let as_user = as_user(folder.path())?;
    let mut words = as_user.clone();
    words.push(programs.join("initdb").display().to_string());
    words.extend(["-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync", "-D"].map(str::to_owned));
    words.push(data.display().to_string());
    prepare(&words, folder.path())?;
    let settings = ["fsync=on", "shared_buffers=256MB", "max_wal_size=4GB"];
    serve("PostgreSQL", as_user, folder, &settings)
}

/// Starts a streaming replica of a server on this machine, which needs no password; answers its URL.
pub fn start_replica(primary: &str) -> Result<(String, Process)> {
    let programs = programs()?;
    let folder = process::folder()?;
    let as_user = as_user(folder.path())?;
    wait_until_ready(&programs, primary)?;
    let mut words = as_user.clone();
    words.push(programs.join("pg_basebackup").display().to_string());
    // A checkpoint now: one at its leisure would take minutes.
    words.extend(["-c", "fast", "-X", "stream", "-R", "--no-sync", "-d"].map(str::to_owned));
    words.push(primary.to_owned());
    words.push("-D".to_owned());
    words.push(folder.path().join("data").display().to_string());
    prepare(&words, folder.path())?;
    // It can be made anew at any time: its syncs would only take the disk from the primary.
    let (url, process) = serve("PostgreSQL's replica", as_user, folder, &["fsync=off"])?;
    wait_until_ready(&programs, &url)?;
    Ok((url, process))
}

/// A server listens before it lets anyone in.
fn wait_until_ready(programs: &Path, url: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut ask = Command::new(programs.join("pg_isready"));
        let ready = ask.args(["-q", "-d", url]).status();
        if ready.context("pg_isready")?.success() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{url} lets nobody in");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The words before a command that make it run as a user who may run the server, whose folder this becomes.
fn as_user(folder: &Path) -> Result<Vec<String>> {
    if !is_root()? {
        return Ok(Vec::new());
    }
    own(folder)?;
    let words = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"];
    Ok(words.map(str::to_owned).to_vec())
}

fn prepare(words: &[String], folder: &Path) -> Result<()> {
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .current_dir(folder)
        .env("LC_ALL", "C.UTF-8")
        .stdout(std::process::Stdio::null());
    ci::run(command)
}

/// Starts a server on the folder's data directory.
fn serve(
    name: &'static str,
    as_user: Vec<String>,
    folder: TempDir,
    settings: &[&str],
) -> Result<(String, Process)> {
    let port = process::free_port()?;
    let data = folder.path().join("data");
    let mut words = as_user;
    // The parent's death is told to the process that execs last: setpriv keeps it if it is asked again.
    if !words.is_empty() {
        words.extend(["--pdeathsig", "KILL", "--"].map(str::to_owned));
    }
    words.push(programs()?.join("postgres").display().to_string());
    words.extend(["-D".to_owned(), data.display().to_string()]);
    words.extend(["-p".to_owned(), port.to_string()]);
    words.extend(["-k".to_owned(), folder.path().display().to_string()]);
    // A replica needs the limits of its primary.
    let limits = [
        "listen_addresses=127.0.0.1",
        "max_connections=300",
        "max_prepared_transactions=100",
    ];
    for setting in limits.iter().chain(settings) {
        words.extend(["-c".to_owned(), (*setting).to_owned()]);
    }
    let process = Process::start(name, &words, Signal::INT, folder, port)?;
    Ok((
        format!("postgres://{USER}@127.0.0.1:{port}/postgres"),
        process,
    ))
}

/// Where the newest version's programs are.
fn programs() -> Result<PathBuf> {
    let newest = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut found: Vec<(u32, PathBuf)> = versions
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let version = entry.file_name().to_str()?.parse().ok()?;
                let programs = entry.path().join("bin");
                programs
                    .join("postgres")
                    .is_file()
                    .then_some((version, programs))
            })
            .collect();
        found.sort();
        found.pop().map(|(_, programs)| programs)
    };
    if let Some(found) = newest() {
        return Ok(found);
    }
    require(&PACKAGE)?;
    newest().context("there is no /usr/lib/postgresql/*/bin/postgres")
}

fn own(folder: &Path) -> Result<()> {
    let mut command = Command::new("chown");
    command.arg(format!("{USER}:{USER}")).arg(folder);
    ci::run(command)
}

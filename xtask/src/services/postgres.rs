//! PostgreSQL of Debian's package, with fsync on, as a user without privileges.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::Signal;

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
    let as_user: Vec<String> = if is_root()? {
        own(folder.path())?;
        ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"]
            .map(str::to_owned)
            .to_vec()
    } else {
        Vec::new()
    };
    let mut words = as_user.clone();
    words.push(programs.join("initdb").display().to_string());
    words.extend(["-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync", "-D"].map(str::to_owned));
    words.push(data.display().to_string());
    let mut init = Command::new(&words[0]);
    init.args(&words[1..])
        .current_dir(folder.path())
        .env("LC_ALL", "C.UTF-8")
        .stdout(std::process::Stdio::null());
    ci::run(init)?;
    let port = process::free_port()?;
    let mut words = as_user;
    // The parent's death is told to the process that execs last: setpriv keeps it if it is asked again.
    if !words.is_empty() {
        words.extend(["--pdeathsig", "KILL", "--"].map(str::to_owned));
    }
    words.push(programs.join("postgres").display().to_string());
    words.extend(["-D".to_owned(), data.display().to_string()]);
    words.extend(["-p".to_owned(), port.to_string()]);
    words.extend(["-k".to_owned(), folder.path().display().to_string()]);
    for setting in [
        "listen_addresses=127.0.0.1",
        "fsync=on",
        "max_connections=300",
        "max_prepared_transactions=100",
        "shared_buffers=256MB",
        "max_wal_size=4GB",
    ] {
        words.extend(["-c".to_owned(), setting.to_owned()]);
    }
    let process = Process::start("PostgreSQL", &words, Signal::INT, folder, port)?;
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

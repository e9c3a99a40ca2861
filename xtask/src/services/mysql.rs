//! MariaDB of Debian's package, which speaks MySQL's protocol, with fsync on, as a user without privileges.

use std::process::Command;

use anyhow::Result;
use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{self, Process};
use super::{Tool, is_root, require};
use crate::ci;

const SERVER: Tool = Tool {
    program: "mariadbd",
    package: "mariadb-server",
};
const INSTALL: Tool = Tool {
    program: "mariadb-install-db",
    package: "mariadb-server",
};
/// The user that Debian's package makes.
const USER: &str = "mysql";

/// A new, empty data directory, and how to become the user that owns it.
pub struct Prepared {
    folder: TempDir,
    as_user: Vec<String>,
}

/// Finds the programs, or installs them.
pub fn require_all() -> Result<()> {
    require(&SERVER)?;
    require(&INSTALL)?;
    Ok(())
}

/// Makes the data directory: seconds, in which other servers can be started.
pub fn prepare() -> Result<Prepared> {
    let install = require(&INSTALL)?;
    let folder = process::folder()?;
    let as_user: Vec<String> = if is_root()? {
        let mut command = Command::new("chown");
        command.arg(format!("{USER}:{USER}")).arg(folder.path());
        ci::run(command)?;
        ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"]
            .map(str::to_owned)
            .to_vec()
    } else {
        Vec::new()
    };
    let mut words = as_user.clone();
    words.push(install.display().to_string());
    // Neither the machine's own settings nor those of a user count.
    words.extend(["--no-defaults", "--skip-test-db", "--skip-name-resolve"].map(str::to_owned));
    words.push("--auth-root-authentication-method=normal".to_owned());
    words.push(format!(
        "--datadir={}",
        folder.path().join("data").display()
    ));
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null());
    ci::run(command)?;
    Ok(Prepared { folder, as_user })
}

impl Prepared {
    /// Starts the server; answers its URL.
    pub fn start(self) -> Result<(String, Process)> {
        let port = process::free_port()?;
        let folder = self.folder.path();
        let mut words = self.as_user;
        // The parent's death is told to the process that execs last: setpriv keeps it if it is asked again.
        if !words.is_empty() {
            words.extend(["--pdeathsig", "KILL", "--"].map(str::to_owned));
        }
        words.push(require(&SERVER)?.display().to_string());
        words.push("--no-defaults".to_owned());
        words.push(format!("--datadir={}", folder.join("data").display()));
        words.push(format!("--socket={}", folder.join("socket").display()));
        words.push(format!("--pid-file={}", folder.join("pid").display()));
        words.push(format!("--port={port}"));
        for setting in [
            "bind-address=127.0.0.1",
            "skip-name-resolve",
            "innodb-flush-log-at-trx-commit=1",
            "innodb-buffer-pool-size=256M",
            "max-connections=300",
        ] {
            words.push(format!("--{setting}"));
        }
        let process = Process::start("MariaDB", &words, Signal::TERM, self.folder, port)?;
        Ok((format!("mysql://root@127.0.0.1:{port}/mysql"), process))
    }
}

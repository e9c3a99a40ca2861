//! Redis of Debian's package, a master and its replica, as a user without privileges. Nothing is kept on disk.

use std::process::Command;

use anyhow::Result;
use rustix::process::Signal;

use super::process::{self, Process};
use super::{Tool, is_root, require};
use crate::ci;

const SERVER: Tool = Tool {
    program: "redis-server",
    package: "redis-server",
};
/// The user that Debian's package makes.
const USER: &str = "redis";

/// A server, or the replica of the one at a port; answers its URL and its port.
pub fn start(replica_of: Option<u16>) -> Result<(String, u16, Process)> {
    let server = require(&SERVER)?;
    let folder = process::folder()?;
    let mut words: Vec<String> = Vec::new();
    if is_root()? {
        let mut own = Command::new("chown");
        own.arg(format!("{USER}:{USER}")).arg(folder.path());
        ci::run(own)?;
        words.extend(["setpriv", "--reuid", USER, "--regid", USER].map(str::to_owned));
        // The parent's death is told to the process that execs last: setpriv keeps it if it is asked again.
        words.extend(["--init-groups", "--pdeathsig", "KILL", "--"].map(str::to_owned));
    }
    let port = process::free_port()?;
    words.push(server.display().to_string());
    words.extend(["--port".to_owned(), port.to_string()]);
    words.extend(["--dir".to_owned(), folder.path().display().to_string()]);
    for setting in [
        "--bind 127.0.0.1",
        "--save",
        "--appendonly no",
        "--daemonize no",
        "--repl-diskless-sync-delay 0",
        "--maxmemory-policy noeviction",
    ] {
        words.extend(setting.split(' ').map(str::to_owned));
        if setting == "--save" {
            words.push(String::new());
        }
    }
    if let Some(master) = replica_of {
        words.extend(["--replicaof", "127.0.0.1"].map(str::to_owned));
        words.push(master.to_string());
    }
    let process = Process::start("Redis", &words, Signal::TERM, folder, port)?;
    Ok((format!("redis://127.0.0.1:{port}"), port, process))
}

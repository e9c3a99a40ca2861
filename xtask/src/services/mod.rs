//! `xtask services`: what tests and benchmarks need besides cargo, installed or asked for, and started.
//!
//! As root, missing programs are installed by apt; otherwise the run fails with the line to run.
//! `QUORATE_POSTGRES`, `QUORATE_MYSQL`, `QUORATE_REDIS` and `QUORATE_KAFKA` name servers that run already; then none is
//! started. Their replicas are named by `QUORATE_POSTGRES_REPLICA` and `QUORATE_REDIS_REPLICA`. What is started here
//! listens on loopback, on free ports, keeps its data in a temporary folder, and is stopped
//! when it is no longer needed, whatever becomes of the task.

mod kafka;
mod mysql;
mod postgres;
mod process;
mod redis;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::ci;

/// Servers for tests and benchmarks. Dropping it stops those that were started here.
pub struct Services {
    environment: Vec<(&'static str, String)>,
    running: Vec<process::Process>,
}

impl Services {
    /// Starts what no variable of the environment names. MariaDB takes its time to make a data directory, and
    /// does so while the others start; all servers are children of this thread, and die with it.
    pub fn start(root: &Path) -> Result<Services> {
        let wants_mysql = std::env::var_os("QUORATE_MYSQL").is_none();
        // Both may install packages, which apt does for one at a time.
        if wants_mysql {
            mysql::require_all().context("MariaDB")?;
        }
        std::thread::scope(|scope| {
            let prepared = wants_mysql.then(|| scope.spawn(mysql::prepare));
            let mut services = Services::start_others(root)?;
            if let Some(prepared) = prepared {
                let Ok(prepared) = prepared.join() else {
                    bail!("MariaDB: its data directory could not be made");
                };
                let started = prepared.and_then(mysql::Prepared::start);
                let (url, process) = started.context("MariaDB")?;
                services.environment.push(("QUORATE_MYSQL", url));
                services.running.push(process);
            }
            Ok(services)
        })
    }

    fn start_others(root: &Path) -> Result<Services> {
        let mut environment = Vec::new();
        let mut running = Vec::new();
        if std::env::var_os("QUORATE_POSTGRES").is_none() {
            let (url, process) = postgres::start().context("PostgreSQL")?;
            running.push(process);
            if std::env::var_os("QUORATE_POSTGRES_REPLICA").is_none() {
                let replica = postgres::start_replica(&url).context("PostgreSQL's replica")?;
                environment.push(("QUORATE_POSTGRES_REPLICA", replica.0));
                running.push(replica.1);
            }
            environment.push(("QUORATE_POSTGRES", url));
        }
        if std::env::var_os("QUORATE_REDIS").is_none() {
            let (url, port, process) = redis::start(None).context("Redis")?;
            environment.push(("QUORATE_REDIS", url));
            running.push(process);
            let (url, _, process) = redis::start(Some(port)).context("a replica of Redis")?;
            environment.push(("QUORATE_REDIS_REPLICA", url));
            running.push(process);
        }
        if let Some(address) = std::env::var_os("QUORATE_KAFKA") {
            // One broker that does both, unless another is named for groups.
            if std::env::var_os("QUORATE_KAFKA_GROUPS").is_none() {
                let address = address.to_string_lossy().into_owned();
                environment.push(("QUORATE_KAFKA_GROUPS", address));
            }
        } else {
            let brokers = kafka::install(root).context("a Kafka-compatible broker")?;
            let (address, process) = brokers.start_transactions()?;
            environment.push(("QUORATE_KAFKA", address));
            running.push(process);
            let (address, process) = brokers.start_groups()?;
            environment.push(("QUORATE_KAFKA_GROUPS", address));
            running.push(process);
        }
        Ok(Services {
            environment,
            running,
        })
    }

    /// Tells a command where they are.
    pub fn environment(&self, command: &mut Command) {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
    }
}

/// Starts all, and runs a command with them, or waits for Enter.
pub fn run(root: &Path, command: &[&str]) -> Result<()> {
    require_all()?;
    let services = Services::start(root)?;
    if let Some((program, words)) = command.split_first() {
        let mut command = Command::new(program);
        command.args(words);
        services.environment(&mut command);
        return ci::run(command);
    }
    for (name, value) in &services.environment {
        println!("export {name}={value}");
    }
    println!("# press Enter to stop them");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// A program that comes with a Debian package.
pub struct Tool {
    /// What is looked for.
    pub program: &'static str,
    /// The package that has it.
    pub package: &'static str,
}

/// The peer of the cluster benchmark.
pub const ETCD: Tool = Tool {
    program: "etcd",
    package: "etcd-server",
};
/// The peer of the storage benchmark, as a library.
pub const ROCKSDB: Tool = Tool {
    program: "librocksdb.so",
    package: "librocksdb-dev",
};
/// The list of installed packages is the tests' real input.
const DPKG: Tool = Tool {
    program: "dpkg",
    package: "dpkg",
};

/// What `xtask test` needs.
pub fn require_test_tools() -> Result<()> {
    require(&DPKG)?;
    if !Path::new("/var/lib/dpkg/status").exists() {
        bail!("/var/lib/dpkg/status is not there: the tests read it, as on any Debian or Ubuntu");
    }
    Ok(())
}

/// What everything needs, tests and benchmarks.
pub fn require_all() -> Result<()> {
    require_test_tools()?;
    println!("etcd: {}", require(&ETCD)?.display());
    Ok(())
}

/// Finds a program, installing its package if that is possible.
pub fn require(tool: &Tool) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
    require_in(tool, &folders)
}

/// Finds a library to link with, installing its package if that is possible.
pub fn require_library(tool: &Tool) -> Result<PathBuf> {
    let triple = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    require_in(
        tool,
        &[triple.into(), "/usr/lib".into(), "/usr/local/lib".into()],
    )
}

fn require_in(tool: &Tool, folders: &[PathBuf]) -> Result<PathBuf> {
    let find = || {
        let files = folders.iter().map(|folder| folder.join(tool.program));
        files.into_iter().find(|file| file.is_file())
    };
    if let Some(path) = find() {
        return Ok(path);
    }
    let line = format!("apt-get install -y {}", tool.package);
    if !is_root()? {
        bail!("{} is missing; install it: sudo {line}", tool.program);
    }
    println!("installing {}", tool.package);
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        // A package's service must not be started: ours run on their own ports.
        command
            .env("RUNLEVEL", "1")
            .stdout(std::process::Stdio::null());
        ci::run(command)
    };
    apt(&["update"])?;
    apt(&["install", "-y", "--no-install-recommends", tool.package])?;
    match find() {
        Some(path) => Ok(path),
        None => bail!("{line} did not bring {}", tool.program),
    }
}

pub(crate) fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output()?;
    Ok(output.stdout.trim_ascii() == b"0")
}

//! `xtask bench`: measurements against peers, in one run on this machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{ci, services};

/// Three nodes of ours against three of etcd. `more` goes to the generator.
pub fn cluster(root: &Path, more: &[&str]) -> Result<()> {
    beside_etcd(root, "cluster.json", &[], more)
}

/// How long writes stop when the leader dies, in ours and in etcd.
pub fn failover(root: &Path, more: &[&str]) -> Result<()> {
    beside_etcd(root, "failover.json", &["--failover", "200"], more)
}

/// What groups cost that nobody uses: memory, idle CPU, how long until all are led. Without a peer.
pub fn groups(root: &Path, more: &[&str]) -> Result<()> {
    let what = ["--rounds", "1", "--groups", "1000"];
    measure(root, "groups.json", None, &what, more)
}

/// What is left of our throughput when up to ten times as much is asked. Without a peer.
pub fn overload(root: &Path, more: &[&str]) -> Result<()> {
    measure(root, "overload.json", None, &["--overload"], more)
}

fn beside_etcd(root: &Path, out: &str, what: &[&str], more: &[&str]) -> Result<()> {
    let etcd = services::require(&services::ETCD)?;
    measure(root, out, Some(&etcd), what, more)
}

fn measure(
    root: &Path,
    out: &str,
    etcd: Option<&Path>,
    what: &[&str],
    more: &[&str],
) -> Result<()> {
    ci::cargo(root, &["build", "--release", "--package", "quorate-server"])?;
    let build = [
        "build",
        "--release",
        "--package",
        "quorate-bench",
        "--features",
        "peers",
    ];
    ci::cargo(root, &build)?;
    let release = ci::target_folder(root)?.join("release");
    let mut command = Command::new(release.join("quorate-bench"));
    command.arg("--quorate").arg(release.join("quorate"));
    if let Some(etcd) = etcd {
        command.arg("--etcd").arg(etcd);
    }
    command
        .arg("--out")
        .arg(root.join("target/bench").join(out));
    command.args(["--commit", &commit(root)?]);
    // Of an option that is said twice the last counts.
    command.args(what).args(more);
    ci::run(command)
}

/// The outbox: enqueuing, end to end, draining a backlog, and what others do beside it.
pub fn outbox(root: &Path, more: &[&str]) -> Result<()> {
    beside_servers(root, "quorate-outbox", "postgres,kafka", &["outbox"], more)
}

/// Sagas and TCC a second, and what AT costs, on PostgreSQL and SQLite.
pub fn saga(root: &Path) -> Result<()> {
    beside_servers(
        root,
        "quorate-saga",
        "postgres,sqlite",
        &["saga", "at"],
        &[],
    )
}

/// The SQL layer: a routed query beside sqlx, bulk loads beside inserts, questions to four shards.
pub fn sql(root: &Path, more: &[&str]) -> Result<()> {
    beside_servers(root, "quorate-sql", "postgres", &["sql"], more)
}

/// Runs examples of a package, `<name>_speed` each, which write `<name>.json`, beside real servers.
fn beside_servers(
    root: &Path,
    package: &str,
    features: &str,
    names: &[&str],
    more: &[&str],
) -> Result<()> {
    let examples: Vec<String> = names.iter().map(|name| format!("{name}_speed")).collect();
    let mut build = vec!["build", "--release", "--package", package];
    build.extend(["--features", features]);
    for example in &examples {
        build.extend(["--example", example]);
    }
    ci::cargo(root, &build)?;
    let servers = services::Services::start(root)?;
    let folder = root.join("target/bench");
    std::fs::create_dir_all(&folder)?;
    let programs = ci::target_folder(root)?.join("release/examples");
    for (name, example) in names.iter().zip(examples) {
        let mut command = Command::new(programs.join(example));
        command.arg(folder.join(name).with_extension("json"));
        command.args(more);
        servers.environment(&mut command);
        ci::run(command)?;
    }
    Ok(())
}

/// Our storage engine against others, all in one program of a package outside the workspace.
pub fn storage(root: &Path, more: &[&str]) -> Result<()> {
    services::require_library(&services::ROCKSDB)?;
    let mut command = apart(root, "peers", "storage-bench")?;
    command.arg("suite").arg("--out");
    command.arg(root.join("target/bench/storage.json"));
    let folder = ci::target_folder(root)?.join("bench/storage");
    command.arg("--dir").arg(folder);
    command.args(["--commit", &commit(root)?]).args(more);
    ci::run(command)
}

/// Our cache beside others, in such a program too: how fast, or, with `--consistency`, how stale.
pub fn cache(root: &Path, more: &[&str]) -> Result<()> {
    let (is_consistency, more): (Vec<&str>, Vec<&str>) =
        more.iter().partition(|word| **word == "--consistency");
    let mut command = apart(root, "caches", "cache-bench")?;
    if is_consistency.is_empty() {
        command.arg("speed").arg("--out");
        command.arg(root.join("target/bench/cache.json"));
    } else {
        command.arg("consistency").arg("--page");
        command.arg(root.join("docs/cache-consistency.md"));
    }
    command.args(["--commit", &commit(root)?]).args(more);
    let servers = services::Services::start(root)?;
    servers.environment(&mut command);
    ci::run(command)
}

/// A program of a package of `crates/bench` outside the workspace, built.
fn apart(root: &Path, package: &str, program: &str) -> Result<Command> {
    let manifest = root.join("crates/bench").join(package).join("Cargo.toml");
    let target = ci::target_folder(root)?.join("peers");
    let mut build = ci::cargo_command(root);
    build.args(["build", "--release", "--manifest-path"]);
    build.arg(&manifest).arg("--target-dir").arg(&target);
    ci::run(build)?;
    Ok(Command::new(target.join("release").join(program)))
}

fn commit(root: &Path) -> Result<String> {
    let mut command = Command::new("git");
    command
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(root);
    let output = command.output().context("git does not run")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

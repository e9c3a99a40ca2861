//! `xtask ci` and `xtask test`: the checks, in the order in which they fail soonest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{codegen, services, sim, tidy};

/// What tests want beyond the defaults.
const FEATURES: &str = "quorate-storage/zstd,quorate-server/outbox,quorate-bench/cache,\
     quorate-cache/redis,quorate-cache/postgres,quorate-sql/postgres,quorate-sql/mysql,quorate-sql/sqlite,\
     bookshop/postgres,bookshop/kafka";
/// What is checked beside, and run by commands of its own.
const FEATURES_OF_OTHERS: &str = "quorate-integration-tests/chaos,quorate-sim/switches";

/// All that must hold before a change lands.
pub fn ci(root: &Path) -> Result<()> {
    step("fmt", || cargo(root, &["fmt", "--all", "--check"]))?;
    step("tidy", || tidy::run(root))?;
    step("codegen", || codegen::run(root, true))?;
    // The profile of the tests, here and for the docs: so C libraries are built once.
    step("clippy", || {
        cargo(
            root,
            &[
                "clippy",
                "--profile",
                "test",
                "--workspace",
                "--all-targets",
                "--features",
                &format!("{FEATURES},{FEATURES_OF_OTHERS}"),
                "--quiet",
                "--",
                "-D",
                "warnings",
            ],
        )
    })?;
    step("docs", || {
        let mut command = cargo_command(root);
        command.args(["doc", "--profile", "test"]);
        command.args(["--workspace", "--no-deps", "--quiet"]);
        command.args(["--features", FEATURES]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        run(command)
    })?;
    step("without features", || {
        let refused = "zstd_is_refused_without_the_feature";
        cargo(
            root,
            &["test", "-p", "quorate-storage", "--lib", "--quiet", refused],
        )
    })?;
    step("test", || test(root, &[]))?;
    step("sim", || sim::check(root))
}

/// All tests: of the crates, then with real processes. `filter` goes to the test runner.
pub fn test(root: &Path, filter: &[&str]) -> Result<()> {
    services::require_test_tools()?;
    // All targets at once: so the binary that the integration tests start is built from the same
    // crates as the tests, and nothing is built twice.
    let build = [
        "build",
        "--workspace",
        "--all-targets",
        "--features",
        FEATURES,
        "--profile",
        "test",
        "--quiet",
    ];
    cargo(root, &build)?;
    let servers = services::Services::start(root)?;
    let mut command = cargo_command(root);
    command.args(["test", "--workspace", "--no-fail-fast", "--quiet"]);
    command.args(["--features", FEATURES]);
    servers.environment(&mut command);
    if !filter.is_empty() {
        command.arg("--").args(filter);
    }
    run(command)
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let started = Instant::now();
    run().with_context(|| format!("the step `{name}` failed"))?;
    println!(
        "== {name}: done in {:.0} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Cargo as it was called, in the workspace's root folder.
pub fn cargo_command(root: &Path) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.current_dir(root);
    command
}

/// Where cargo puts what it builds.
pub fn target_folder(root: &Path) -> Result<PathBuf> {
    let mut command = cargo_command(root);
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.output().context("cargo metadata does not run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rest = text
        .split_once("\"target_directory\":\"")
        .map(|(_, rest)| rest);
    let folder = rest
        .and_then(|rest| rest.split_once('"'))
        .map(|(folder, _)| folder);
    folder
        .map(PathBuf::from)
        .context("cargo metadata names no target folder")
}

/// Runs cargo to its end.
pub fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    let mut command = cargo_command(root);
    command.args(args);
    run(command)
}

/// Runs a command to its end; anything but success is an error.
pub fn run(mut command: Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("can't run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

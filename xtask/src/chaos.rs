//! `xtask chaos`: the tests whose faults need mounts. They run inside a mount namespace of their own,
//! which root has for the asking and others get together with a user namespace.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::ci;

const PACKAGE: &[&str] = &[
    "--package",
    "quorate-integration-tests",
    "--features",
    "chaos",
];

/// Builds the server and the tests, then runs those whose names begin with `chaos`.
pub fn run(root: &Path, filter: &[&str]) -> Result<()> {
    let server = ["build", "--profile", "test", "--package", "quorate-server"];
    ci::cargo(root, &server)?;
    ci::cargo(root, &[&["test", "--no-run"], PACKAGE].concat())?;
    let unshare = namespace()?;
    let mut command = Command::new("unshare");
    command.args(unshare).current_dir(root);
    command.arg(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    let filter = if filter.is_empty() {
        &["chaos"]
    } else {
        filter
    };
    command.arg("test").args(PACKAGE).arg("--").args(filter);
    ci::run(command)
}

/// How a mount namespace is made here.
fn namespace() -> Result<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    for way in WAYS {
        let tried = Command::new("unshare")
            .args(way)
            .args(["mount", "-t", "tmpfs", "none", "/mnt"])
            .output()
            .context("unshare is missing: apt-get install util-linux")?;
        if tried.status.success() {
            return Ok(way);
        }
    }
    bail!(
        "no mount namespace can be made here: run `cargo xtask chaos` as root, or allow user \
         namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
    )
}

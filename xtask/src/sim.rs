//! `xtask sim`: builds the simulator and plays seeds with it.
//!
//! It is built by itself, with the switches in the product's code turned on; no other build has them.

use std::path::Path;

use anyhow::Result;

use crate::ci;

/// `sim [--seeds N] [--seed S] [--twice] [--minutes M]`, `sim --bugs [--only A,B]`.
pub fn run(root: &Path, words: &[&str]) -> Result<()> {
    let mut command = ci::cargo_command(root);
    command.args(["run", "--quiet", "--profile", "test"]);
    command.args(["--package", "quorate-sim", "--features", "switches"]);
    command.args(["--bin", "quorate-sim", "--"]).args(words);
    ci::run(command)
}

/// What must hold before a change lands: its own tests pass, seeds are played without a failure, some of them twice
/// alike, and some planted bugs are found.
pub fn check(root: &Path) -> Result<()> {
    let mut tests = ci::cargo_command(root);
    tests.args(["test", "--quiet", "--package", "quorate-sim", "--lib"]);
    tests.args(["--features", "switches"]);
    ci::run(tests)?;
    run(root, &["--seeds", "200"])?;
    run(root, &["--seeds", "10", "--seed", "1000", "--twice"])?;
    run(root, &["--bugs", "--seeds", "60", "--only", QUICKLY_FOUND])
}

/// Planted bugs that few seeds find.
const QUICKLY_FOUND: &str = "acknowledged_before_synced,vote_not_kept,read_index_without_quorum,\
                             commit_without_quorum,unknown_outcome_said_not_applied,wiped_node_returns";

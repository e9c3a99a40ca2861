//! Faults that need mounts and networks of their own. `cargo xtask chaos` runs these tests inside namespaces, where a
//! test may mount and cut what it likes and everything is gone with the last process.

mod disks;
mod faults;
mod long;
mod network;
mod probes;

use std::process::Command;

/// Runs a program of the system to its good end.
///
/// # Panics
/// With what it said, and how such tests are run.
fn system(words: &[&str]) {
    let done = Command::new(words[0]).args(&words[1..]).output();
    let done = done.unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    assert!(
        done.status.success(),
        "{}: {}; run it as root by `cargo xtask chaos`",
        words.join(" "),
        String::from_utf8_lossy(&done.stderr).trim()
    );
}

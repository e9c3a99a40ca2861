//! `xtask torture`: the safety checks of a crate, for as long as one likes.
//!
//! The parts are tests named `torture_<part>` of the crate; two variables tell them how long to go on and
//! from which seed. They run side by side, as many as there are cores, so that each gets its share.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ci;

/// What `torture storage` runs. `threads` and `kill` use several cores themselves.
const STORAGE: &[&str] = &[
    "crash", "faults", "damage", "options", "threads", "kill", "decoders",
];

/// Random schedules: a build of its own, see `crates/storage/src/sync.rs`.
const SCHEDULES: &str = "schedules";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    minutes: u64,
    seed: Option<u64>,
    only: Option<String>,
}

/// `torture storage [--minutes N] [--seed S] [--only PART]`.
pub fn storage(root: &Path, words: &[&str]) -> Result<()> {
    let wish = parse(words)?;
    let parts: Vec<&str> = match wish.only.as_deref() {
        Some(SCHEDULES) => return schedules(root, wish.minutes * 60, wish.seed),
        Some(part) => vec![part],
        None => STORAGE.to_vec(),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = cores.min(parts.len());
    let seconds = wish.minutes * 60 * at_once as u64 / parts.len() as u64;
    let minutes = Duration::from_secs(seconds * parts.len() as u64 / at_once as u64).as_secs() / 60;
    println!(
        "torture storage: {} for {seconds} s each, {at_once} at once: about {minutes} minutes",
        parts.join(", ")
    );
    let mut command = ci::cargo_command(root);
    command.args([
        "test",
        "--quiet",
        "--package",
        "quorate-storage",
        "--lib",
        "--",
    ]);
    command.args([
        "--nocapture",
        "--exact",
        "--test-threads",
        &at_once.to_string(),
    ]);
    for part in parts {
        command.arg(format!("tests::torture::{part}::torture_{part}"));
    }
    run(command, seconds, wish.seed)?;
    match wish.only {
        Some(_) => Ok(()),
        None => schedules(root, seconds, wish.seed),
    }
}

/// First that the schedules find bugs, then that there are none.
fn schedules(root: &Path, seconds: u64, seed: Option<u64>) -> Result<()> {
    println!("torture storage: {SCHEDULES} for {seconds} s");
    let mut command = ci::cargo_command(root);
    command.args(["test", "--quiet", "--package", "quorate-storage", "--lib"]);
    command.arg("--target-dir");
    command.arg(ci::target_folder(root)?.join("shuttle"));
    command.args(["--", "--nocapture", "--test-threads", "1", "schedules"]);
    command.env("RUSTFLAGS", "--cfg shuttle");
    command.env("SHUTTLE_SILENCE_ORDERING_WARNING", "1");
    run(command, seconds, seed)
}

fn run(mut command: Command, seconds: u64, seed: Option<u64>) -> Result<()> {
    command.env("QUORATE_TORTURE_SECONDS", seconds.to_string());
    if let Some(seed) = seed {
        command.env("QUORATE_TORTURE_SEED", seed.to_string());
    }
    ci::run(command)
}

fn parse(words: &[&str]) -> Result<Wish> {
    let mut wish = Wish {
        minutes: 10,
        seed: None,
        only: None,
    };
    let number = |of: &str, word: &str| -> Result<u64> {
        let number = word.parse();
        number.with_context(|| format!("{of} wants a number, not {word}"))
    };
    for pair in words.chunks(2) {
        match pair {
            ["--minutes", n] => wish.minutes = number("--minutes", n)?,
            ["--seed", n] => wish.seed = Some(number("--seed", n)?),
            ["--only", part] if STORAGE.contains(part) || *part == SCHEDULES => {
                wish.only = Some((*part).to_owned())
            }
            ["--only", part] => {
                bail!(
                    "there is no part {part}, but {}, {SCHEDULES}",
                    STORAGE.join(", ")
                )
            }
            other => bail!("not understood: {}", other.join(" ")),
        }
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torture_words_are_understood_or_refused() {
        let wish = parse(&["--only", "crash", "--seed", "7"]).expect("it is sound");
        let only = Some("crash".to_owned());
        let wanted = Wish {
            minutes: 10,
            seed: Some(7),
            only,
        };
        assert_eq!(wish, wanted);
        assert!(parse(&["--only", "nothing"]).is_err());
        assert!(parse(&["--minutes"]).is_err());
    }
}

//! Torture: the safety checks that can go on for as long as one likes.
//!
//! Each *part* is a function of a seed, a *round*. The normal tests run a few rounds of each; `cargo xtask
//! torture storage` runs them until the time is over, from a seed that it prints, and when one fails
//! says how to see it again. What a part does is the same in both.

mod crash;
mod damage;
mod decoders;
mod faults;
mod history;
mod kill;
mod options;
mod teeth;
mod threads;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use quorate_env::Random;

use super::workload::seeds;

/// For so many seconds each part goes on; without it, for a few rounds.
const SECONDS: &str = "QUORATE_TORTURE_SECONDS";
/// The first seed of a part that goes on.
const SEED: &str = "QUORATE_TORTURE_SEED";
/// How often a part that goes on says how far it is.
const SAY: Duration = Duration::from_secs(10);

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Whether there is time to leave nothing out.
fn is_thorough() -> bool {
    std::env::var_os(SECONDS).is_some()
}

/// Runs rounds of a part. A round returns how many checks it made, which are called `what`.
pub(super) fn rounds(part: &str, few: u64, what: &str, round: impl Fn(u64) -> Result<u64, String>) {
    let run = |seed: u64| -> u64 {
        let failed = |why: &str| {
            format!(
                "{part}: seed {seed} fails; to see it again: cargo xtask torture storage --only {part} \
                 --seed {seed}\n{why}"
            )
        };
        match catch_unwind(AssertUnwindSafe(|| round(seed))) {
            Ok(checks) => checks.unwrap_or_else(|why| panic!("{}", failed(&why))),
            Err(panic) => {
                println!("{}", failed("it panicked"));
                resume_unwind(panic)
            }
        }
    };
    let Some(seconds) = number(SECONDS) else {
        let checks: u64 = seeds(few).map(run).sum();
        println!("{part}: {few} rounds, {checks} {what}");
        return;
    };
    let first = number(SEED).unwrap_or_else(|| Random::from_os().below(1 << 32));
    println!("{part}: {seconds} s from seed {first}");
    let (begin, end) = (Instant::now(), Duration::from_secs(seconds));
    let (mut checks, mut rounds, mut said) = (0, 0, begin);
    while rounds == 0 || begin.elapsed() < end {
        checks += run(first + rounds);
        rounds += 1;
        if said.elapsed() > SAY || begin.elapsed() >= end {
            said = Instant::now();
            let took = begin.elapsed().as_secs_f64();
            let each = checks as f64 / took;
            println!("{part}: {rounds} rounds, {checks} {what} in {took:.0} s, {each:.0} a second");
        }
    }
}

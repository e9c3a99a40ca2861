//! `quorate-sim`: plays seeds. `cargo xtask sim` builds and calls it.
//!
//! Each seed is played in a process of its own, so that counters and hashers inside libraries begin anew; this
//! program starts itself for that.

mod runner;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_sim::run::{self, Wish};

/// What the system's source of randomness gives in this process: hashers' keys, and the seeds of every
/// generator of a library, follow from it.
static ENTROPY: AtomicU64 = AtomicU64::new(0);

/// Takes the place of the C library's function.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn getrandom(buf: *mut u8, len: usize, _flags: u32) -> isize {
    for at in 0..len {
        let state = ENTROPY.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let byte = (mixed ^ (mixed >> 29)) as u8;
        // SAFETY: the caller passes a buffer of `len` bytes, as the function's contract asks.
        unsafe { buf.add(at).write(byte) };
    }
    len as isize
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["one", seed, bugs @ ..] => one(seed, bugs),
        words => runner::run(words),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Plays one seed here, and prints its line. `QUORATE_SIM_TRACE` names a file for its trace.
fn one(seed: &str, bugs: &[&str]) -> Result<bool, String> {
    let seed: u64 = seed
        .parse()
        .map_err(|_| format!("a seed is a number, not {seed}"))?;
    ENTROPY.store(seed, Ordering::Relaxed);
    run::watch_panics();
    let trace = match std::env::var_os("QUORATE_SIM_TRACE") {
        Some(path) => Some(std::fs::File::create(&path).map_err(|e| format!("{path:?}: {e}"))?),
        None => None,
    };
    let report = run::play(Wish {
        seed,
        bugs: bugs.iter().map(|bug| (*bug).to_owned()).collect(),
        trace,
    });
    println!("{}", report.line());
    // Not by way of destructors: threads that sleep for ever are left to the system.
    std::process::exit(i32::from(report.verdict.is_some()));
}

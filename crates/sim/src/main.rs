//! `quorate-sim`: plays seeds. `cargo xtask sim` builds and calls it.

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

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let seed: u64 = args.first().and_then(|a| a.parse().ok()).unwrap_or(1);
    ENTROPY.store(seed, Ordering::Relaxed);
    run::watch_panics();
    let trace = std::env::var("QUORATE_SIM_TRACE").ok();
    let report = run::play(Wish {
        seed,
        bugs: args.iter().skip(1).cloned().collect(),
        trace: trace.map(|path| std::fs::File::create(path).expect("the trace can be written")),
    });
    println!("{}", report.line());
}

//! What happened, as one number: two runs of a seed that differ anywhere have different ones.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The trace of a run. Clones are one trace.
#[derive(Clone, Default)]
pub struct Trace {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    hash: u64,
    lines: u64,
    now_us: u64,
    file: Option<BufWriter<File>>,
}

impl Trace {
    /// A trace that is also written to a file, line by line, to be compared with another's.
    pub fn to_file(file: File) -> Trace {
        let state = State {
            file: Some(BufWriter::new(file)),
            ..State::default()
        };
        Trace {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The time of what comes next.
    pub fn set_now(&self, now_us: u64) {
        self.state.lock().now_us = now_us;
    }

    /// Something happened.
    pub fn note(&self, what: &str, numbers: &[u64]) {
        let mut state = self.state.lock();
        let mut bytes = Vec::with_capacity(what.len() + 8 * numbers.len() + 8);
        bytes.extend_from_slice(what.as_bytes());
        bytes.extend_from_slice(&state.now_us.to_le_bytes());
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        state.hash = xxh3_64_with_seed(&bytes, state.hash);
        state.lines += 1;
        let now_us = state.now_us;
        if let Some(file) = &mut state.file {
            // A trace that can't be written is of no use, and harms nothing.
            let _ = writeln!(file, "{now_us} {what} {numbers:?}");
        }
    }

    /// The hash of all so far, and how many notes it is of.
    pub fn hash(&self) -> (u64, u64) {
        let mut state = self.state.lock();
        if let Some(file) = &mut state.file {
            let _ = file.flush();
        }
        (state.hash, state.lines)
    }
}

/// The hash of some bytes.
pub fn digest(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, 0)
}

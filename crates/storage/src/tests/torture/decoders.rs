//! Decoders on arbitrary bytes: a corpus, and mutations of valid encodings with checksums that match.
//!
//! No panic, no hang, no allocation out of proportion; what is accepted decodes again to the same.
#![expect(unsafe_code, reason = "an allocator that watches")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_env::Random;
use rustix::time::{ClockId, clock_gettime};

use super::rounds;
use crate::decoders::{TARGETS, Target};

/// The system's allocator, which notes the largest piece that a thread asks for.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: as our caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as our caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// What a decoder may ask for at once beside 300 times its input: LZ4 makes 255 bytes of one, and the
/// simulated disk and the caches have a size of their own.
const LARGEST_ALLOCATION: usize = 1 << 20;
/// Of the processor's time: the machine may be busy with something else.
const LONGEST: Duration = Duration::from_secs(2);

/// Numbers at which something happens.
const INTERESTING: [u64; 9] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

/// Changes bytes in a few places.
fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        let pick = |n: usize| random.below(n.max(1) as u64) as usize;
        match random.below(9) {
            0..=2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 if at < bytes.len() => bytes[at] = random.next_u64() as u8,
            4 => bytes.truncate(at),
            5 => {
                let number = INTERESTING[pick(INTERESTING.len())];
                let width = [1, 2, 4, 8][pick(4)];
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            6 => {
                // A varint in the place of a byte.
                let mut number = Vec::new();
                crate::codec::put_varint(&mut number, INTERESTING[pick(INTERESTING.len())]);
                bytes.splice(at..(at + 1).min(bytes.len()), number);
            }
            7 => {
                let part = bytes[at..(at + pick(64)).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let other = &others[pick(others.len())];
                let from = pick(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}

/// What this thread has had of the processor.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs a decoder and says what is wrong with it, if anything.
fn run(target: &Target, bytes: &[u8]) -> Result<(), String> {
    LARGEST.set(0);
    let begin = thread_time();
    let run = target.run;
    let copy = bytes.to_vec();
    let panicked = catch_unwind(move || run(&copy)).is_err();
    let (took, largest) = (thread_time().saturating_sub(begin), LARGEST.get());
    let what = if panicked {
        "it panics".to_owned()
    } else if took > LONGEST {
        format!("it takes {took:?}")
    } else if largest > LARGEST_ALLOCATION + 300 * bytes.len() {
        format!("it allocates {largest} bytes at once")
    } else {
        return Ok(());
    };
    Err(format!(
        "{}: {what}, of {:?}",
        target.name,
        bytes.escape_ascii().to_string()
    ))
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus")
}

/// Valid encodings, and what was once found; `QUORATE_BLESS` adds the former.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let folder = corpus().join(target.name);
    let mut all = (target.seeds)();
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        for (n, bytes) in all.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n}")), bytes).unwrap();
        }
    }
    let files = std::fs::read_dir(&folder).into_iter().flatten();
    all.extend(files.map(|file| std::fs::read(file.unwrap().path()).unwrap()));
    all
}

pub(super) fn round(seed: u64, each: u64) -> Result<u64, String> {
    let random = Random::from_seed(seed);
    for target in TARGETS {
        let inputs = inputs(target);
        for bytes in &inputs {
            run(target, bytes)?;
        }
        for _ in 0..each {
            let n = random.below(inputs.len() as u64) as usize;
            let mut bytes = inputs[n].clone();
            mutate(&mut bytes, &inputs, &random);
            if !random.one_in(4) {
                (target.mend)(&mut bytes);
            }
            run(target, &bytes)?;
        }
    }
    Ok(each * TARGETS.len() as u64)
}

#[test]
fn torture_decoders() {
    rounds("decoders", 4, "inputs", |seed| round(seed, 400));
}

//! All decoders of the engine and its log. The first byte says which; the second whether checksums are
//! made to match first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_storage::decoders::TARGETS;

fuzz_target!(|input: &[u8]| {
    let [which, mend, bytes @ ..] = input else {
        return;
    };
    let target = &TARGETS[usize::from(*which) % TARGETS.len()];
    let mut bytes = bytes.to_vec();
    if mend % 2 == 1 {
        (target.mend)(&mut bytes);
    }
    (target.run)(&bytes);
});

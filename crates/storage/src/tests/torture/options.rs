//! The same operations give the same answers whatever the settings, and though these change.

use quorate_env::Random;

use super::rounds;
use crate::tests::conformance;
use crate::tests::workload::random_options;

/// A random history of operations under random settings, compared with the model.
pub(super) fn round(seed: u64, steps: usize) {
    let random = Random::from_seed(seed.rotate_left(17));
    let options = random_options(&random);
    conformance::run_varied(seed, options, seed.is_multiple_of(3), steps);
}

#[test]
fn torture_options() {
    rounds("options", 20, "steps", |seed| {
        round(seed, 600);
        Ok(600)
    });
}

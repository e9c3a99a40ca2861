//! The scheduler: what happens next is drawn from a seed.

use super::model::{Model, Violation};

/// Numbers from a seed.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `end`, which is above 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A model by its seed: every third is of processes that hear of each other.
fn model(seed: u64) -> (Model, Chance, usize) {
    let mut chance = Chance::new(seed);
    let hear = seed % 3 == 2;
    let model = Model::new(&mut chance, hear);
    (model, chance, if hear { 60 } else { 30 })
}

/// One schedule.
pub fn run(seed: u64) -> Result<(), Violation> {
    let (mut model, mut chance, steps) = model(seed);
    for _ in 0..steps {
        step(&mut model, &mut chance)?;
    }
    model.finish(&mut chance)
}

/// How often each kind of step is taken.
const WEIGHTS: [u64; 9] = [12, 5, 5, 3, 1, 1, 1, 2, 2];
/// The same where processes hear of each other.
const WEIGHTS_HEARING: [u64; 10] = [6, 8, 6, 3, 0, 0, 1, 1, 4, 12];

fn step(model: &mut Model, chance: &mut Chance) -> Result<(), Violation> {
    let weights = match model.hears() {
        true => &WEIGHTS_HEARING[..],
        false => &WEIGHTS[..],
    };
    let mut drawn = chance.below(weights.iter().sum());
    let kind = weights.iter().position(|weight| {
        let is_it = drawn < *weight;
        drawn = drawn.saturating_sub(*weight);
        is_it
    });
    match kind.unwrap_or(0) {
        0 => return model.advance_reader(chance),
        1 => return model.read(chance),
        2 => model.advance_writer(chance),
        3 => model.write(chance),
        4 => model.commit_unseen(chance),
        5 => model.gap(chance),
        6 => model.fail_over(chance),
        7 => model.evict(chance),
        8 => model.pass_time(chance),
        _ => model.hear(chance),
    }
    model.broken.take().map_or(Ok(()), Err)
}

/// How many schedules; `QUORATE_TEST_SEEDS` times as many if it is set.
fn schedules() -> u64 {
    let times = std::env::var("QUORATE_TEST_SEEDS");
    let times: u64 = times.ok().and_then(|t| t.parse().ok()).unwrap_or(1);
    1_000_000 * times
}

#[test]
fn protocol_random_schedules_never_serve_what_is_older_than_promised() {
    for seed in 0..schedules() {
        if let Err(violation) = run(seed) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn protocol_random_schedules_serve_at_all() {
    let mut served = [0u64; 3];
    let mut heard = 0;
    for seed in 0..2_000 {
        let (mut model, mut chance, steps) = model(seed);
        for _ in 0..steps {
            step(&mut model, &mut chance).expect("keeps its promises");
        }
        for (sum, n) in served.iter_mut().zip(model.served) {
            *sum += n;
        }
        heard += model.stream.served;
    }
    assert!(heard > 50, "by those that hear of others: {heard}");
    assert!(
        served.iter().all(|n| *n > 300),
        "local, remote, source: {served:?}"
    );
}

/// `QUORATE_TEST_SEED=518 cargo test -p quorate-cache protocol_one -- --nocapture` says what happens in one.
#[test]
fn protocol_one_schedule_keeps_its_promises() {
    let seed = std::env::var("QUORATE_TEST_SEED");
    let seed = seed.ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    if let Err(violation) = run(seed) {
        panic!("seed {seed}: {violation}");
    }
}

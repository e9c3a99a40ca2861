//! The adaptive limit against simulated servers, and the gate.

use std::time::Duration;

use proptest::prelude::*;

use crate::pool::limit::{Limit, LimitOptions};

fn options(floor: usize, ceiling: usize, start: usize) -> LimitOptions {
    LimitOptions {
        floor,
        start,
        ..LimitOptions::up_to(ceiling)
    }
}

/// A server that does `width` things at once and queues the rest.
fn held(width: usize, in_use: usize) -> Duration {
    let rounds = in_use as f64 / width as f64;
    Duration::from_millis(10).mul_f64(rounds.max(1.0))
}

/// So many callers, of whom the limit lets in what it will.
fn drive(limit: &mut Limit, width: usize, callers: usize, holds: usize) {
    for _ in 0..holds {
        let in_use = limit.get().min(callers);
        limit.released(held(width, in_use), in_use);
    }
}

#[test]
fn limit_finds_the_knee_of_a_simulated_server() {
    for width in [2, 4, 8, 20] {
        let mut limit = Limit::new(options(1, 100, 1));
        drive(&mut limit, width, 1000, 20_000);
        let found = limit.get();
        // Twice the width doubles the time: that is the tolerance.
        assert!(
            found >= width && found <= 3 * width,
            "width {width}: {found}"
        );
    }
}

#[test]
fn limit_backs_off_when_the_server_slows_down() {
    let mut limit = Limit::new(options(1, 64, 64));
    drive(&mut limit, 64, 1000, 2_000);
    assert_eq!(limit.get(), 64);
    drive(&mut limit, 4, 1000, 2_000);
    assert!(limit.get() <= 16, "{}", limit.get());
}

#[test]
fn limit_that_is_not_used_up_does_not_grow() {
    let mut limit = Limit::new(options(1, 64, 8));
    drive(&mut limit, 64, 3, 10_000);
    assert_eq!(limit.get(), 8);
}

proptest! {
    #[test]
    fn limit_stays_within_its_bounds(
        floor in 0usize..10, ceiling in 0usize..50, start in 0usize..100,
        steps in proptest::collection::vec((0u64..100_000, 0usize..200, any::<bool>()), 0..2000),
    ) {
        let mut limit = Limit::new(options(floor, ceiling, start));
        let floor = floor.max(1);
        for (micros, in_use, fails) in steps {
            if fails {
                limit.failed();
            } else {
                limit.released(Duration::from_micros(micros), in_use);
            }
            prop_assert!(limit.get() >= floor && limit.get() <= ceiling.max(floor));
        }
    }
}

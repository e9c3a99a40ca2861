//! The checks have teeth: with any one guard taken away they fail.

use super::schedules::run;
use crate::core::planted::{self, Bug};

const SCHEDULES: u64 = 100_000;

/// The first schedule that notices a bug.
fn noticed(bug: Bug) -> Option<u64> {
    planted::plant(Some(bug));
    let found = (0..SCHEDULES).find(|seed| run(*seed).is_err());
    planted::plant(None);
    found
}

#[test]
fn protocol_check_notices_every_guard_that_is_taken_away() {
    let mut missed = Vec::new();
    for bug in Bug::PROTOCOL {
        match noticed(bug) {
            Some(seed) => println!("{bug:?}: schedule {seed}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

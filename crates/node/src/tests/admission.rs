//! Who is taken in and who is not, by the measured rate.

use std::time::Duration;

use crate::admission::{Admission, DrainRate};

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(60);

fn rate(units: usize, took: Duration) -> DrainRate {
    let mut rate = DrainRate::default();
    rate.add(units, took);
    rate
}

const ADMISSION: Admission = Admission {
    delay_max: Duration::from_millis(100),
    always: 1000,
};

#[test]
fn admission_refuses_who_would_wait_too_long_and_says_when_to_come_again() {
    // 10 a millisecond: 1,000 take 100 ms.
    let rate = rate(100_000, 10_000 * MS);
    assert_eq!(ADMISSION.judge(&rate, 1000, LONG), Ok(()));
    let admission = Admission {
        always: 10,
        ..ADMISSION
    };
    assert_eq!(admission.judge(&rate, 1000, LONG), Ok(()));
    assert_eq!(admission.judge(&rate, 2000, LONG), Err(200 * MS));
}

#[test]
fn admission_lets_half_of_a_requests_time_pass_in_the_queue() {
    let rate = rate(100_000, 10_000 * MS);
    let admission = Admission {
        always: 10,
        ..ADMISSION
    };
    assert_eq!(admission.judge(&rate, 500, 101 * MS), Ok(()));
    assert_eq!(admission.judge(&rate, 500, 99 * MS), Err(50 * MS));
}

#[test]
fn admission_of_what_goes_with_the_next_command_needs_no_rate() {
    let slow = rate(1, LONG);
    assert_eq!(ADMISSION.judge(&slow, 1000, LONG), Ok(()));
    assert_eq!(
        ADMISSION.judge(&DrainRate::default(), 1 << 40, LONG),
        Ok(())
    );
    // Nothing in all that time: as good as never, and said so within bounds.
    assert_eq!(
        ADMISSION.judge(&slow, 1001, LONG),
        Err(Duration::from_secs(1))
    );
}

#[test]
fn admission_rate_follows_a_stall_and_forgets_it() {
    let mut rate = rate(1000, 10 * MS);
    let wait = |rate: &DrainRate| rate.time_for(1000).expect("measured");
    assert!(wait(&rate) <= 10 * MS);
    rate.add(1000, 3000 * MS);
    assert!(wait(&rate) > 1000 * MS, "{:?}", wait(&rate));
    for _ in 0..200 {
        rate.add(1000, 10 * MS);
    }
    assert!(wait(&rate) < 20 * MS, "{:?}", wait(&rate));
}

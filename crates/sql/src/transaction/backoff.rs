//! Waits between tries: doubling, with jitter, so that those who collided do not collide again.

use std::time::Duration;

use super::Work;

/// The waits of one piece of work, as a pure core: what is drawn is given.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub fn new(work: &Work) -> Backoff {
        Backoff {
            next: work.wait_min.min(work.wait_max),
            longest: work.wait_max,
        }
    }

    /// The next wait: between half and the whole of its nominal length.
    pub fn next(&mut self, drawn: u64) -> Duration {
        let nominal = self.next;
        self.next = (nominal * 2).min(self.longest);
        nominal.mul_f64(0.5 + (drawn % 1000) as f64 / 2000.0)
    }
}

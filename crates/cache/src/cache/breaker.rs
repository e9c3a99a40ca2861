//! [`Breaker`]: after some failures in a row, a pause in which nothing is tried.

/// Closed, open until a time, or waiting for the one call that tries. Times are in microseconds.
#[derive(Debug)]
pub(super) struct Breaker {
    failures_max: u32,
    pause: u64,
    failures: u32,
    open_until: Option<u64>,
}

impl Breaker {
    /// A closed one. With `failures_max` 0 it never opens.
    pub fn new(failures_max: u32, pause: u64) -> Self {
        Breaker {
            failures_max,
            pause,
            failures: 0,
            open_until: None,
        }
    }

    /// Whether a call may be made now. Of those that ask after a pause the first may; the others wait for what
    /// becomes of it, at most for another pause.
    pub fn admits(&mut self, now: u64) -> bool {
        match self.open_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now.saturating_add(self.pause));
                true
            }
        }
    }

    /// A call went well.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.open_until = None;
    }

    /// A call failed.
    pub fn failed(&mut self, now: u64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures_max > 0 && self.failures >= self.failures_max {
            self.open_until = Some(now.saturating_add(self.pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaker_opens_after_failures_in_a_row_and_lets_one_call_try() {
        let mut breaker = Breaker::new(2, 100);
        breaker.failed(0);
        breaker.succeeded();
        breaker.failed(1);
        assert!(breaker.admits(1), "not two in a row");
        breaker.failed(2);
        assert!(!breaker.admits(101));
        assert!(breaker.admits(102), "one tries");
        assert!(!breaker.admits(103), "only one");
        breaker.failed(110);
        assert!(!breaker.admits(209));
        assert!(breaker.admits(210));
        breaker.succeeded();
        assert!(breaker.admits(211) && breaker.admits(211));
    }

    #[test]
    fn breaker_whose_trial_never_ends_tries_again_after_a_pause() {
        let mut breaker = Breaker::new(1, 100);
        breaker.failed(0);
        assert!(breaker.admits(100));
        assert!(!breaker.admits(199));
        assert!(breaker.admits(200));
    }

    #[test]
    fn breaker_of_no_failures_never_opens() {
        let mut breaker = Breaker::new(0, 100);
        (0..1000).for_each(|at| breaker.failed(at));
        assert!(breaker.admits(1000));
    }
}

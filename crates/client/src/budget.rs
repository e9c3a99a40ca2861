//! [`RetryBudget`]: how much may be asked twice.
//!
//! Repetitions of what a loaded node refused, or did not answer in time, are load themselves, and can keep a
//! cluster overloaded by themselves long after its cause is gone (Bronson et al., *Metastable failures*, 2021). So
//! they are paid for: each operation pays in a part of a repetition, and what is saved up has an upper bound. When
//! nothing is left the caller gets the error at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one repetition costs, in parts.
const COST: u64 = 100;

/// The repetitions that a client may still make. Full at first.
#[derive(Debug)]
pub struct RetryBudget {
    parts: AtomicU64,
    /// What each operation pays in: of a hundred operations so many may be repeated.
    percent: u64,
    most: u64,
}

impl RetryBudget {
    /// A budget of `percent` of the operations, that saves up at most `burst` repetitions.
    pub fn new(percent: u32, burst: u32) -> RetryBudget {
        let most = u64::from(burst) * COST;
        RetryBudget {
            parts: AtomicU64::new(most),
            percent: u64::from(percent),
            most,
        }
    }

    /// Pays in for an operation.
    pub fn earn(&self) {
        // Most of the time it is full, and nothing is written. Racing ones may go past the bound by a little.
        if self.parts.load(Ordering::Relaxed) + self.percent <= self.most {
            self.parts.fetch_add(self.percent, Ordering::Relaxed);
        }
    }

    /// Pays for a repetition, if there is enough.
    pub fn spend(&self) -> bool {
        let pay = |parts: u64| parts.checked_sub(COST);
        let paid = self
            .parts
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        paid.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::RetryBudget;

    fn spend_all(budget: &RetryBudget) -> u32 {
        (0..).take_while(|_| budget.spend()).count() as u32
    }

    #[test]
    fn budget_allows_its_burst_and_then_a_share_of_the_operations() {
        let budget = RetryBudget::new(10, 5);
        assert_eq!(spend_all(&budget), 5);
        (0..1000).for_each(|_| {
            budget.earn();
            if budget.spend() {
                panic!("a tenth of a repetition is not one");
            }
            (0..9).for_each(|_| budget.earn());
            assert!(budget.spend());
        });
    }

    #[test]
    fn budget_saves_up_no_more_than_its_burst() {
        let budget = RetryBudget::new(10, 5);
        (0..1000).for_each(|_| budget.earn());
        assert_eq!(spend_all(&budget), 5);
    }

    #[test]
    fn budget_of_nothing_allows_nothing() {
        let budget = RetryBudget::new(0, 0);
        (0..1000).for_each(|_| budget.earn());
        assert_eq!(spend_all(&budget), 0);
    }
}

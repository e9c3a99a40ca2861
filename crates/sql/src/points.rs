//! Named points between two commits, at which a test makes the process die, and bugs that a test plants. Neither does
//! anything in a build that is no test.

#[cfg(not(test))]
#[inline(always)]
pub(crate) fn pass(_name: &str) {}

#[cfg(test)]
pub(crate) use on::pass;

/// What is left out on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// Reads do not look where their bucket is.
    BlindReads,
    /// Writes do not lock their bucket's line.
    UnlockedWrites,
    /// Questions to all count copies.
    CopiesCount,
    /// A switch does not wait for the last changes.
    EarlySwitch,
    /// What is written while rows are copied is not noted.
    DeafCopy,
    /// Who has lost a move goes on writing.
    NoFence,
    /// Who comes too late with a change of keys makes it all the same.
    LateApply,
    /// Who ends a change of keys does not ask for its outcome.
    OutcomeIgnored,
    /// The source of a change of keys goes on as if there were none.
    NotParted,
    /// Questions to all do not compare what was sent with what was received.
    SumsIgnored,
}

#[cfg(test)]
mod on {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    fn wanted() -> Option<(String, u64)> {
        let text = std::env::var("QUORATE_CRASH_AT").ok()?;
        let (name, count) = text.rsplit_once(':')?;
        Some((name.to_owned(), count.parse().ok()?))
    }

    /// Passes a point. `QUORATE_CRASH_AT=name:n` has the process killed when it gets there for the nth time.
    pub fn pass(name: &str) {
        let Some((at, count)) = WANTED.get_or_init(wanted) else {
            return;
        };
        if at == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *count {
            let own = std::process::id().to_string();
            let killed = std::process::Command::new("kill")
                .args(["-9", &own])
                .status();
            killed.expect("kill runs");
            loop {
                std::thread::park();
            }
        }
    }
}

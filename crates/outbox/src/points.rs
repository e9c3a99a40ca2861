//! Named points between two writes, at which a test can make the process die by [`pass`].
//!
//! Without the feature `crash-points` a point is nothing. With it, `QUORATE_CRASH_AT=name:n` kills
//! the process by SIGKILL when it reaches that point for the nth time (from 1).

/// Passes a point.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn pass(_name: &str) {}

#[cfg(feature = "crash-points")]
pub use on::pass;

#[cfg(feature = "crash-points")]
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

    /// Passes a point; dies there if that is asked for.
    pub fn pass(name: &str) {
        let Some((at, count)) = WANTED.get_or_init(wanted) else {
            return;
        };
        if at == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *count {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            loop {
                std::thread::park();
            }
        }
    }
}

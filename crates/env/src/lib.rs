//! The machine as the crates below the server see it: disk, clock, randomness, background jobs.
//!
//! Nothing in `log`, `storage`, `replication` or `node` opens a file, reads a clock, draws a random
//! number or starts a thread but through an [`Env`]. In production it is [`Env::real`]; in tests it
//! is [`sim::SimDisk`] and its companions, where a seed decides everything, unsynced data is lost in
//! a crash, and any disk operation can be made to fail.
//!
//! This crate does not know what is stored.

mod clock;
mod disk;
mod jobs;
mod random;
mod real_disk;
pub mod sim;
pub mod switch;
#[cfg(test)]
mod tests;

pub use clock::{Clock, RealClock};
pub use disk::{Disk, DiskLock, File, Space};
pub use jobs::{Event, Job, JobClass, Jobs, PanicHook, ThreadJobs};
pub use random::Random;
pub use real_disk::RealDisk;

use std::sync::Arc;

/// Disk, clock, jobs and randomness, passed to whatever needs them. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// Files and directories.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Background work and waiting for it.
    pub jobs: Arc<dyn Jobs>,
    /// Random numbers.
    pub random: Random,
}

impl Env {
    /// The real machine inside somebody's process, with `compaction_threads` threads for the largest
    /// kind of work.
    pub fn real(compaction_threads: usize) -> Env {
        Env::real_with(ThreadJobs::new(compaction_threads))
    }

    /// The real machine with these jobs: a process of its own has them with a panic hook.
    pub fn real_with(jobs: ThreadJobs) -> Env {
        Env {
            disk: Arc::new(RealDisk),
            clock: Arc::new(RealClock::new()),
            jobs: Arc::new(jobs),
            random: Random::from_os(),
        }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").finish_non_exhaustive()
    }
}

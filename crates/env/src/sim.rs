//! The simulated machine: everything follows from a seed.

mod clock;
mod disk;
mod hooked;
mod jobs;

pub use clock::SimClock;
pub use disk::{Crash, Fault, SimDisk};
pub use hooked::{HookedDisk, Hooks};
pub use jobs::SimJobs;

use std::sync::Arc;

use crate::{Env, Random};

/// A simulated machine and the handles that steer it.
#[derive(Clone, Debug)]
pub struct Sim {
    /// Its disk: crash it, fill it, make it fail.
    pub disk: SimDisk,
    /// Its clock: set it forward.
    pub clock: SimClock,
    /// Its queue of jobs: pump it.
    pub jobs: SimJobs,
    /// Its randomness.
    pub random: Random,
}

impl Sim {
    /// A machine with an empty disk.
    pub fn new(seed: u64) -> Sim {
        let random = Random::from_seed(seed);
        let clock = SimClock::new();
        Sim {
            disk: SimDisk::new(random.clone()),
            jobs: SimJobs::new(random.clone(), clock.clone()),
            clock,
            random,
        }
    }

    /// What the code under test gets.
    pub fn env(&self) -> Env {
        Env {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.clock.clone()),
            jobs: Arc::new(self.jobs.clone()),
            random: self.random.clone(),
        }
    }

    /// The power goes: queued jobs are gone, and of the disk's unsynced data what the seed decides.
    /// Open handles of the old disk fail from now on. Returns the machine as it comes up again.
    pub fn crash(&self) -> Sim {
        let disk = self.disk.crash();
        self.jobs.clear();
        let clock = self.clock.clone();
        let jobs = SimJobs::new(self.random.clone(), clock.clone());
        Sim {
            disk,
            clock,
            jobs,
            random: self.random.clone(),
        }
    }
}

//! A disk that takes its time: each operation on a file sets the simulated clock forward.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_env::Env;
use quorate_env::sim::{HookedDisk, Hooks, Sim, SimClock};

const EACH: Duration = Duration::from_millis(1);

struct Slow(SimClock);

impl Hooks for Slow {
    fn access(&self, _: &Path) -> io::Result<()> {
        self.0.advance(EACH);
        Ok(())
    }
    fn sync(&self, _: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        self.0.advance(EACH);
        sync()
    }
    fn sync_dir(&self, _: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        self.0.advance(EACH);
        sync()
    }
}

/// The machine, with a disk that takes a millisecond for each read, write and sync.
pub(super) fn slow(sim: &Sim) -> Env {
    let env = sim.env();
    let disk = HookedDisk::new(Arc::clone(&env.disk), Arc::new(Slow(sim.clock.clone())));
    Env {
        disk: Arc::new(disk),
        ..env
    }
}

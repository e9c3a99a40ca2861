//! Switches inside the code that only a simulation turns on.
//!
//! - a *place* ([`fires`], [`delay`], [`pick`]): a named spot where the code may do, now and then, something
//!   that is allowed and rare: a small batch, a file that ends early, an error that may be tried again.
//!   Which places are alive and when they fire follows from the seed of the simulation;
//! - a *bug* ([`bug`]): something that is not allowed, planted to show that the simulation notices;
//! - a *probe* ([`probe`]): numbers that the simulation's oracles want to hear of.
//!
//! Without the feature `switches` all of them are constants, and the compiler leaves nothing of them. Only
//! the crate `sim` turns the feature on; no product does. With it, nothing happens either before
//! `install` is called.

use std::time::Duration;

/// What stands behind the switches while a simulation runs.
pub trait Switches: Send {
    /// Whether a place fires now.
    fn fires(&mut self, place: &'static str) -> bool;

    /// A number below `bound`, for a place that fired.
    fn below(&mut self, bound: u64) -> u64;

    /// Whether a planted bug is on.
    fn bug(&mut self, name: &'static str) -> bool;

    /// Hears of numbers under a name.
    fn probe(&mut self, name: &'static str, numbers: &[u64]);
}

#[cfg(feature = "switches")]
mod on {
    use super::Switches;
    use parking_lot::Mutex;

    static SWITCHES: Mutex<Option<Box<dyn Switches>>> = Mutex::new(None);

    /// Puts these switches behind all places, bugs and probes of the process.
    pub fn install(switches: Box<dyn Switches>) {
        *SWITCHES.lock() = Some(switches);
    }

    pub(super) fn with<T>(ask: impl FnOnce(&mut dyn Switches) -> T) -> Option<T> {
        SWITCHES
            .lock()
            .as_mut()
            .map(|switches| ask(&mut **switches))
    }
}

#[cfg(feature = "switches")]
pub use on::install;

#[cfg(not(feature = "switches"))]
#[inline(always)]
fn with<T>(_ask: impl FnOnce(&mut dyn Switches) -> T) -> Option<T> {
    None
}

#[cfg(feature = "switches")]
use on::with;

/// Whether the place fires now.
#[inline(always)]
pub fn fires(place: &'static str) -> bool {
    with(|switches| switches.fires(place)).unwrap_or(false)
}

/// Whether the place fires now, where that is to be rarer still: once in `n` times that it would.
#[inline(always)]
pub fn rarely(place: &'static str, n: u64) -> bool {
    with(|switches| switches.below(n.max(1)) == 0 && switches.fires(place)).unwrap_or(false)
}

/// How long to wait here, up to `most`, if the place fires.
#[inline(always)]
pub fn delay(place: &'static str, most: Duration) -> Option<Duration> {
    with(|switches| {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        let fires = switches.fires(place);
        fires.then(|| Duration::from_micros(switches.below(micros.max(1))))
    })
    .flatten()
}

/// A number below `bound` if the place fires.
#[inline(always)]
pub fn pick(place: &'static str, bound: u64) -> Option<u64> {
    with(|switches| {
        let fires = switches.fires(place);
        fires.then(|| switches.below(bound.max(1)))
    })
    .flatten()
}

/// Whether the planted bug is on.
#[inline(always)]
pub fn bug(name: &'static str) -> bool {
    with(|switches| switches.bug(name)).unwrap_or(false)
}

/// Tells the oracles numbers. `numbers` is called only where somebody listens.
#[inline(always)]
pub fn probe<const N: usize>(name: &'static str, numbers: impl FnOnce() -> [u64; N]) {
    if with(|_| ()).is_some() {
        // Outside of the lock: what is asked for them may pass switches itself.
        let numbers = numbers();
        with(|switches| switches.probe(name, &numbers));
    }
}

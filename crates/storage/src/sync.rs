//! Locks and atomics of the engine: those of `parking_lot` and std.
//!
//! With `--cfg shuttle`, which only `xtask torture` sets, they are ones at whose every step a scheduler may
//! let another thread go on; so the tests in `tests/schedules.rs` run the engine in many orders that real
//! threads hardly ever take. The orders are sequentially consistent: what weaker memory does is for Miri.
//! A lock that is never held where another of these is used may be any other one.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic;

#[cfg(shuttle)]
pub(crate) use scheduled::{Mutex, RwLock};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::{MutexGuard, atomic};

#[cfg(shuttle)]
mod scheduled {
    use std::sync::PoisonError;

    use shuttle::sync::{self, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// As that of `parking_lot`.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    /// As that of `parking_lot`.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            RwLock(sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

//! [`Flights`]: at most one load of a key under way, and at most one more that gathers readers for the next.
//!
//! A flight is *open* until it asks a tier or the source for the first time; who joins it until then is a member,
//! for whom all that it finds is new enough. Who joins one that is *running* may get something from before its
//! own read began, and has to look whether that will do. An invalidation detaches what is running: nobody joins
//! it any more, and those who have may take what it finds, since they came before.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::fill::Answer;
use crate::core::Want;
use crate::core::planted::{self, Bug};
use crate::{Error, ErrorKind, Result};

/// One load, and those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Flight {
    found: OnceLock<Result<Answer>>,
    /// Wakes in the order of waiting, so that a run from a seed is the same each time.
    over: Notify,
}

impl Flight {
    /// What it found. It is not stopped when nobody waits for it.
    pub async fn outcome(&self) -> Result<Answer> {
        let mut over = pin!(self.over.notified());
        over.as_mut().enable();
        if self.found.get().is_none() {
            over.await;
        }
        self.found.get().cloned().unwrap_or_else(|| Err(panicked()))
    }
}

fn panicked() -> Error {
    let message = "the load ended without an answer: the source panicked, or the runtime stops";
    Error::new(ErrorKind::Panicked, message)
}

#[derive(Default)]
struct Slot {
    open: Option<(Arc<Flight>, Want)>,
    running: Option<Arc<Flight>>,
}

/// The flights of all keys.
#[derive(Clone, Default)]
pub(super) struct Flights {
    slots: Arc<Mutex<HashMap<Bytes, Slot>>>,
}

/// A place in a flight.
pub(super) struct Joined {
    pub flight: Arc<Flight>,
    /// Whether all that it finds is new enough for who joined.
    pub is_member: bool,
    /// To be run, if the flight was made for who joined.
    pub takeoff: Option<Takeoff>,
}

impl Flights {
    /// Joins what is under way for a key, or makes a flight. As a member, if that has to be.
    pub fn join(&self, key: &Bytes, want: Want, as_member: bool) -> Joined {
        let mut slots = self.slots.lock();
        let slot = slots.entry(key.clone()).or_default();
        if let Some(running) = slot.running.as_ref().filter(|_| !as_member) {
            return Joined {
                flight: running.clone(),
                is_member: false,
                takeoff: None,
            };
        }
        if let Some((open, wants)) = &mut slot.open {
            *wants = wants.and(want);
            return Joined {
                flight: open.clone(),
                is_member: true,
                takeoff: None,
            };
        }
        let flight = Arc::new(Flight::default());
        slot.open = Some((flight.clone(), want));
        let takeoff = Takeoff {
            flights: self.clone(),
            key: key.clone(),
            flight: flight.clone(),
            before: slot.running.clone(),
        };
        Joined {
            flight,
            is_member: true,
            takeoff: Some(takeoff),
        }
    }

    /// Lets nobody join any more what runs for a key.
    pub fn detach(&self, key: &Bytes) {
        if planted::is_on(Bug::RunningIsNotDetached) {
            return;
        }
        self.change(key, |slot| slot.running = None);
    }

    /// The same for all keys.
    pub fn detach_all(&self) {
        self.slots.lock().retain(|_, slot| {
            slot.running = None;
            slot.open.is_some()
        });
    }

    /// How many keys have flights.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slots.lock().len()
    }

    fn change(&self, key: &Bytes, change: impl FnOnce(&mut Slot)) {
        let mut slots = self.slots.lock();
        if let Entry::Occupied(mut slot) = slots.entry(key.clone()) {
            change(slot.get_mut());
            if slot.get().open.is_none() && slot.get().running.is_none() {
                slot.remove();
            }
        }
    }
}

/// A flight's side of those who wait. However it is dropped, the flight is over.
pub(super) struct Takeoff {
    flights: Flights,
    key: Bytes,
    flight: Arc<Flight>,
    /// What ran when the flight was made.
    pub before: Option<Arc<Flight>>,
}

impl Takeoff {
    /// Whose value it is.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// Begins: nobody is a member any more. Answers what all members want.
    pub fn run(&self) -> Want {
        let mut want = Want::default();
        self.flights.change(&self.key, |slot| {
            if let Some((open, wants)) = slot.open.take() {
                want = wants;
                slot.running = Some(open);
            }
        });
        want
    }

    /// Lets nobody join any more.
    pub fn close(&self) {
        self.leave();
    }

    /// Ends with what was found.
    pub fn land(self, found: Result<Answer>) {
        let _ = self.flight.found.set(found);
    }

    fn leave(&self) {
        self.flights.change(&self.key, |slot| {
            let is_this = |flight: &Arc<Flight>| Arc::ptr_eq(flight, &self.flight);
            if slot.running.as_ref().is_some_and(is_this) {
                slot.running = None;
            }
            if slot.open.as_ref().is_some_and(|(open, _)| is_this(open)) {
                slot.open = None;
            }
        });
    }
}

impl Drop for Takeoff {
    fn drop(&mut self) {
        self.leave();
        let _ = self.flight.found.set(Err(panicked()));
        self.flight.over.notify_waiters();
    }
}

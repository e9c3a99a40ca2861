//! The adaptive limit before a pool, and who is inside.
//!
//! A permit is kept in the table of holders, not in the lease: so a lease that was leaked can be counted out.
//! Waiters are served in the order in which they came.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limit::{Limit, LimitOptions};
use crate::{Error, ErrorKind, Result};

/// Who holds a connection, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Where in the program it was asked for.
    pub place: &'static Location<'static>,
    /// For how long it has been held.
    pub held: Duration,
}

struct Held {
    place: &'static Location<'static>,
    since: Instant,
    permit: OwnedSemaphorePermit,
}

struct Inner {
    limit: Limit,
    /// Permits that exist, free or not.
    granted: usize,
    next: u64,
    held: HashMap<u64, Held>,
}

/// Lets so many in as the limit allows.
pub(crate) struct Gate {
    semaphore: Arc<Semaphore>,
    inner: Mutex<Inner>,
}

impl Gate {
    pub fn new(options: LimitOptions) -> Gate {
        let limit = Limit::new(options);
        let granted = limit.get();
        let held = HashMap::new();
        Gate {
            semaphore: Arc::new(Semaphore::new(granted)),
            inner: Mutex::new(Inner {
                limit,
                granted,
                next: 0,
                held,
            }),
        }
    }

    /// Waits for a place; answers its number.
    pub async fn enter(
        &self,
        place: &'static Location<'static>,
        patience: Duration,
    ) -> Result<u64> {
        let waiting = Arc::clone(&self.semaphore).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(patience, waiting).await else {
            return Err(self.exhausted(patience));
        };
        let mut inner = self.inner.lock();
        inner.next += 1;
        let number = inner.next;
        let since = Instant::now();
        inner.held.insert(
            number,
            Held {
                place,
                since,
                permit,
            },
        );
        Ok(number)
    }

    /// Gives a place back. False if it had been counted out already.
    pub fn leave(&self, number: u64) -> bool {
        let mut inner = self.inner.lock();
        let in_use = inner.held.len();
        let Some(held) = inner.held.remove(&number) else {
            return false;
        };
        inner.limit.released(held.since.elapsed(), in_use);
        self.settle(&mut inner, held.permit);
        true
    }

    /// Gives a place back after the database failed its holder.
    pub fn fail(&self, number: u64) {
        let mut inner = self.inner.lock();
        if let Some(held) = inner.held.remove(&number) {
            inner.limit.failed();
            self.settle(&mut inner, held.permit);
        }
    }

    /// Brings the permits to the limit.
    fn settle(&self, inner: &mut Inner, permit: OwnedSemaphorePermit) {
        let wanted = inner.limit.get();
        if inner.granted > wanted {
            permit.forget();
            inner.granted -= 1;
        } else {
            drop(permit);
        }
        if inner.granted > wanted {
            inner.granted -= self.semaphore.forget_permits(inner.granted - wanted);
        } else {
            self.semaphore.add_permits(wanted - inner.granted);
            inner.granted = wanted;
        }
    }

    /// Counts out those who are inside for longer than that; answers who they were.
    pub fn evict(&self, longer: Duration) -> Vec<Holder> {
        let mut inner = self.inner.lock();
        let old: Vec<u64> = inner
            .held
            .iter()
            .filter(|(_, held)| held.since.elapsed() > longer)
            .map(|(number, _)| *number)
            .collect();
        let mut evicted = Vec::new();
        for number in old {
            if let Some(held) = inner.held.remove(&number) {
                evicted.push(Holder {
                    place: held.place,
                    held: held.since.elapsed(),
                });
                self.settle(&mut inner, held.permit);
            }
        }
        evicted
    }

    /// Who is inside, the longest first.
    pub fn holders(&self) -> Vec<Holder> {
        let inner = self.inner.lock();
        let mut holders: Vec<Holder> = inner
            .held
            .values()
            .map(|held| Holder {
                place: held.place,
                held: held.since.elapsed(),
            })
            .collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.held));
        holders
    }

    /// How many are inside.
    pub fn in_use(&self) -> usize {
        self.inner.lock().held.len()
    }

    /// How many may be inside.
    pub fn limit(&self) -> usize {
        self.inner.lock().limit.get()
    }

    fn exhausted(&self, patience: Duration) -> Error {
        const SHOWN: usize = 8;
        let holders = self.holders();
        let mut said: Vec<String> = holders
            .iter()
            .take(SHOWN)
            .map(|holder| format!("{} for {:.1?}", holder.place, holder.held))
            .collect();
        if holders.len() > SHOWN {
            said.push(format!("{} others", holders.len() - SHOWN));
        }
        Error::new(
            ErrorKind::Exhausted,
            format!(
                "no connection became free in {patience:?}; {} of {} are held, by {}",
                holders.len(),
                self.limit(),
                said.join(", ")
            ),
        )
    }
}

//! Countermeasures against what sagas lack, isolation: semantic locks, and rereading versions.
//!
//! Between a saga's steps others see what may still be undone. A *semantic lock* is a row that says "this saga
//! is at work on that": the first step takes it, the last one and every compensation give it back. It outlives
//! transactions, so waiting for it could go round in a circle: by *wait-die* only an older saga waits for a
//! younger one, and a younger one is refused at once, and compensates.
//!
//! *Rereading* is for a saga that decides by what it has read before: it carries the version that it read, and the
//! step that acts on it refuses if that has changed since.

use std::future::Future;

use uuid::Uuid;

use super::fences::Fences;
use crate::Result;
use crate::machine::Outcome;
use crate::message::Command;

/// What became of asking for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// The saga has it: by this call, or before.
    Held,
    /// A younger saga has it: ask again later.
    Wait(Uuid),
    /// An older saga has it: give up.
    Die(Uuid),
}

impl Grant {
    /// What the step answers when it was not given the lock: `Unknown`, so that it is tried again as its
    /// [`Retry`](crate::Retry) says, or `Refused`.
    pub fn refusal(&self, name: &str) -> Option<Outcome> {
        match self {
            Grant::Held => None,
            Grant::Wait(saga) => Some(Outcome::Unknown(format!(
                "`{name}` is locked by the younger saga {saga}"
            ))),
            Grant::Die(saga) => Some(Outcome::Refused(format!(
                "`{name}` is locked by the older saga {saga}"
            ))),
        }
    }
}

/// Semantic locks in a service's database.
pub trait Locks: Fences {
    /// Takes a lock if it is free; answers who has it then, and since when that saga runs.
    fn take(
        &self,
        tx: &mut Self::Connection,
        name: &str,
        saga: Uuid,
        started_ms: i64,
    ) -> impl Future<Output = Result<(Uuid, i64)>> + Send;

    /// Gives back all locks of a saga. Answers how many they were.
    fn release(
        &self,
        tx: &mut Self::Connection,
        saga: Uuid,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// Asks for a lock for the saga of a command.
    fn lock(
        &self,
        tx: &mut Self::Connection,
        name: &str,
        command: &Command,
    ) -> impl Future<Output = Result<Grant>> + Send {
        async move {
            let own = (command.started_ms, command.saga);
            let (saga, started_ms) = self.take(tx, name, own.1, own.0).await?;
            Ok(if saga == command.saga {
                Grant::Held
            } else if own < (started_ms, saga) {
                Grant::Wait(saga)
            } else {
                Grant::Die(saga)
            })
        }
    }
}

/// Compares the version that a saga has read before with what is there now: `None` if it is the same, else what
/// the step answers.
pub fn reread(what: &str, read: i64, found: Option<i64>) -> Option<Outcome> {
    match found {
        Some(found) if found == read => None,
        Some(found) => Some(Outcome::Refused(format!(
            "{what} was read in version {read}, and is in version {found} by now"
        ))),
        None => Some(Outcome::Refused(format!(
            "{what} was read in version {read}, and is gone by now"
        ))),
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn open_error(error: sqlx::Error) -> crate::Error {
    let made = crate::Error::from(error);
    match made.kind() {
        crate::ErrorKind::Schema => crate::Error::new(
            crate::ErrorKind::Missing,
            "the database has no fences yet: migrate it (PgFences::migrate, SqliteFences::migrate)",
        ),
        _ => made,
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn check_version(found: Option<i64>, known: i64) -> Result<()> {
    if found == Some(known) {
        return Ok(());
    }
    let text = match found {
        None => "quorate_saga_fence_schema is empty: migrate again".to_owned(),
        Some(found) => format!(
            "the fence tables are of version {found}, this program knows {known}: use the program that \
             fits, or migrate them"
        ),
    };
    Err(crate::Error::new(crate::ErrorKind::Schema, text))
}

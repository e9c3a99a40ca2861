//! Locking: optimistic by a version column, pessimistic by row locks, and advisory locks.
//!
//! *Optimistic*: read a row with its version, change it where the version is the same still. Nobody waits;
//! who comes second gets [`ErrorKind::Conflict`] and reads again ([`until_no_conflict`]).
//!
//! *Pessimistic*: [`RowLock`] says what `SELECT ... FOR UPDATE` does about rows that others hold.
//!
//! *Advisory*: [`AdvisoryLock`] is a name that one session of the database holds.

mod advisory;

use crate::backend::{Backend, unsupported};
use crate::{Error, ErrorKind, Result};

pub use crate::backend::Patience;
pub use crate::transaction::until_no_conflict;
pub use advisory::AdvisoryLock;

/// A table whose rows carry a version, by which changes are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    table: String,
    key: String,
    version: String,
}

impl Versioned {
    /// A table, the column of its key, and the one of its version: a whole number that each change raises.
    pub fn new(
        table: impl Into<String>,
        key: impl Into<String>,
        version: impl Into<String>,
    ) -> Versioned {
        Versioned {
            table: table.into(),
            key: key.into(),
            version: version.into(),
        }
    }

    /// The statement that changes columns of a row if its version is the one that was read, and raises it.
    /// Parameters: the columns' values in order, the key, the version. Its count of rows goes to
    /// [`changed_one`].
    pub fn update<DB: Backend>(&self, columns: &[&str]) -> String {
        let mut number = 0;
        let mut parameter = || {
            number += 1;
            DB::parameter(number)
        };
        let version = DB::quote(&self.version);
        let mut sets: Vec<String> = columns
            .iter()
            .map(|column| format!("{} = {}", DB::quote(column), parameter()))
            .collect();
        sets.push(format!("{version} = {version} + 1"));
        format!(
            "UPDATE {} SET {} WHERE {} = {} AND {version} = {}",
            DB::quote(&self.table),
            sets.join(", "),
            DB::quote(&self.key),
            parameter(),
            parameter()
        )
    }

    /// The same for deletion. Parameters: the key, the version.
    pub fn delete<DB: Backend>(&self) -> String {
        format!(
            "DELETE FROM {} WHERE {} = {} AND {} = {}",
            DB::quote(&self.table),
            DB::quote(&self.key),
            DB::parameter(1),
            DB::quote(&self.version),
            DB::parameter(2)
        )
    }
}

/// Reads the count of rows that a versioned change answered.
///
/// Errors: `Conflict` if the row has another version by now, or is gone; `Invalid` if there were several, so
/// that the key is none.
pub fn changed_one(rows: u64) -> Result<()> {
    match rows {
        1 => Ok(()),
        0 => Err(Error::new(
            ErrorKind::Conflict,
            "the row was changed by another, or is gone: read it again",
        )),
        many => Err(Error::new(
            ErrorKind::Invalid,
            format!("{many} rows have that key and version: roll back"),
        )),
    }
}

/// What a locking read does about rows that others have locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowLock {
    /// Waits for them.
    Wait,
    /// Fails at once with [`ErrorKind::Locked`].
    NoWait,
    /// Leaves them out: for queues of which each takes another row.
    SkipLocked,
}

impl RowLock {
    /// The clause to end a `SELECT` with, a space before it.
    ///
    /// Errors: `Unsupported` where rows can't be locked: on SQLite a transaction holds the whole file.
    pub fn clause<DB: Backend>(self) -> Result<&'static str> {
        if !DB::ROW_LOCKS {
            return unsupported("row locks", DB::NAME);
        }
        Ok(match self {
            RowLock::Wait => " FOR UPDATE",
            RowLock::NoWait => " FOR UPDATE NOWAIT",
            RowLock::SkipLocked => " FOR UPDATE SKIP LOCKED",
        })
    }
}

//! AT: compensation that writes itself.
//!
//! A branch of a global transaction is an ordinary transaction of one database, run through a wrapper that
//! knows which rows it changes. For each it keeps, in the same transaction, the image of before and of after,
//! and a global lock. To commit the whole means to throw images and locks away; to roll it back means to write
//! the images of before, the newest change first. Follows Seata's AT mode.
//!
//! ```text
//! branch     BEGIN; change + images + locks, one statement each; register (gid, branch); COMMIT
//! decision   home: INSERT (gid, commit | rollback) unless one is there
//! commit     each resource: images and locks of many transactions go, in one statement
//! rollback   each resource: is every row as the branch left it? ─ yes: write what was ─► images and locks go
//!                                                               └ no: nothing is written; an operator decides
//! ```
//!
//! # A worked example
//!
//! Global transaction G takes 10 from `ann` in database A and is to give it to `bob` in database B. The branch
//! in A commits: `ann` is locked by G, her image of before says 100, that of after 90. B refuses. The home
//! decides to roll G back. In A `ann` still has 90, so 100 is written, and her lock goes, in one transaction. Had
//! somebody without the wrapper set her to 95 meanwhile, nothing would be written: an operator would see 90
//! expected, 95 found, 100 before, and would repair and `retry`, or `force` 100, or `accept` 95.
//!
//! # What is promised
//!
//! - *Nothing is begun by a write of its own.* A global transaction without a decision is rolled back when its
//!   deadline has passed (presumed abort). The decision is one row, written once; who comes later learns it.
//! - *No lost update among branches.* Images, locks and changes are committed together. Another global
//!   transaction that changes a locked row is told `Locked`, and its local transaction writes nothing.
//! - *No deadlock.* An older transaction waits for the lock of a younger one, holding no row meanwhile; a
//!   younger one gives way at once (wait-die). Rows are locked by key within a statement.
//! - *A branch counts once.* A (gid, branch) that is there is refused, and so is every branch that comes after
//!   its global transaction has ended in that database.
//! - *Images are exact*, by the type's own text, and undone in the order of a sequence, never of time.
//!
//! # What it does not do
//!
//! Reads see what global transactions have committed locally and may yet undo, unless rows are read by
//! `read_locked`. Writers that do not use the wrapper are seen when it is too late, or refused by the guard, where
//! it is installed. Changes that triggers and cascades make to *other* rows have no image: a delete or update
//! that would cascade is refused. A primary key can't be changed, and has types whose text is canonical.

mod coordinator;
mod global;
mod home;
mod image;
#[cfg(feature = "postgres")]
pub mod postgres;
mod resource;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod statement;
#[cfg(all(test, feature = "postgres", feature = "sqlite"))]
pub(crate) mod tests;

pub use coordinator::{AtCoordinator, Ending, Swept};
pub use global::{Decision, Global, GlobalStatus, NAME_MAX};
#[cfg(feature = "postgres")]
pub(crate) use global::{check_name, millis};
pub use image::{Difference, Image};
pub use resource::{Home, Order, Ordered, Resource, Undone, Which, Work};
pub use statement::{Delete, Insert, Op, Rows, Update, Value};

use std::time::{Duration, Instant};

use crate::{Error, ErrorKind, Result};

/// A row belongs to another global transaction: the older waits, the younger gives way.
pub(crate) fn locked(global: &Global, row: &str, owner: &str, owner_began_ms: i64) -> Error {
    if global.is_older_than(owner_began_ms, owner) {
        let text = format!(
            "row {row} is locked by the younger global transaction {owner}: roll this branch back and \
             run it again until that has ended"
        );
        return Error::new(ErrorKind::Unavailable, text);
    }
    let text = format!(
        "row {row} is locked by the older global transaction {owner}: give way, roll {} back, and begin it \
         again with its age (Global::again)",
        global.gid()
    );
    Error::new(ErrorKind::Locked, text)
}

/// How long, and how often by now, a branch is run again.
pub(crate) struct Patience {
    end: Instant,
    round: u32,
}

impl Patience {
    pub(crate) fn of(time: Duration) -> Patience {
        Patience {
            end: Instant::now() + time,
            round: 0,
        }
    }

    /// Whether the branch is to be run again after this error, as it met a younger one's lock, or the database was
    /// not there; waits before that.
    pub(crate) async fn bears(&mut self, error: &Error) -> bool {
        let may_pass = error.is_retryable() && error.is_outcome_known();
        if !may_pass || Instant::now() >= self.end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(2 << self.round.min(5))).await;
        self.round += 1;
        true
    }
}

pub(crate) fn check_deadline(global: &Global) -> Result<()> {
    if global.left() > Duration::ZERO {
        return Ok(());
    }
    let text = format!(
        "the deadline of global transaction {} has passed: begin anew",
        global.gid()
    );
    Err(Error::new(ErrorKind::Fenced, text))
}

/// Why a branch was not registered.
pub(crate) fn refused_branch(global: &Global, branch: &str, is_open: bool) -> Error {
    let gid = global.gid();
    if is_open {
        let text = format!("branch `{branch}` of global transaction {gid} has committed already");
        return Error::new(ErrorKind::Conflict, text);
    }
    let text = format!("global transaction {gid} has ended: its branch `{branch}` comes too late");
    Error::new(ErrorKind::Fenced, text)
}

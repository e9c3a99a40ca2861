//! [`Participant`]: the service that does a step. Its effect happens once, and can be undone once, whatever
//! comes twice, late, or in the wrong order.
//!
//! A participant is a [`Handler`](quorate_outbox::inbox::Handler) of a consumer at
//! [`Level::AtLeastOnce`]: see [`options`]. In the transaction of the consumer it
//! writes a *fence* row, lets the [`Service`] work, and enqueues the reply:
//!
//! ```text
//! act      insert (saga, branch, act)     ─ there already? reply as it was settled ─► effect ─► reply
//! undo     insert (saga, branch, undo)    ─ there already? reply done
//!          insert (saga, branch, act)     ─ not there before? nothing was done: the act is barred, and this is all
//!                                         ─ there, and done? ─► compensation ─► reply
//! confirm  insert (saga, branch, confirm) ─ there already? reply done ─► effect ─► reply
//! ```
//!
//! So an undo of what never came changes nothing and shuts out what comes later; so it is for TCC, where act is
//! *try* and undo is *cancel*: empty cancel, repetition and late try (the barrier of dtm, the fence of Seata).
//! Every fence is one `INSERT ... ON CONFLICT DO NOTHING` of a row by its primary key, at read committed: there is
//! no `SELECT ... FOR UPDATE`, and no lock on a gap. Two commands of one branch that come at once wait for each
//! other at that row.
//!
//! # What is not in the database
//!
//! A service that acts elsewhere, by a call, implements [`External`]. Before the call a row `attempted` is committed: the
//! command goes through the participant's own outbox once more, and is done when it comes back. An undo that
//! finds that row is always passed on to the service, whether the act was done, was refused, or died halfway.

mod external;
mod fences;
mod handle;
pub mod locks;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

use quorate_outbox::inbox::{Failure, OnFailure};
use quorate_outbox::store::BoxFuture;
use quorate_outbox::{ConsumerOptions, Level};

use crate::machine::Outcome;
use crate::message::Command;

pub use external::{External, ExternalParticipant};
pub use fences::{FenceKey, Fences, Slot};
pub use handle::Participant;
#[cfg(feature = "postgres")]
pub use postgres::{PG_FENCES_VERSION, PgFences};
#[cfg(feature = "sqlite")]
pub use sqlite::{SQLITE_FENCES_VERSION, SqliteFences};

/// The settings of a consumer of commands. What can't be read as a command is set aside, and others go on.
pub fn options(name: impl Into<String>, topics: &[&str]) -> ConsumerOptions {
    ConsumerOptions {
        level: Level::AtLeastOnce,
        on_failure: OnFailure::SkipMessage,
        batch: 500,
        patience: Duration::from_secs(30),
        ..ConsumerOptions::new(name, topics)
    }
}

/// What a call of a service gives: the outcome, or a failure after which the transaction is rolled back and the
/// command tried again.
pub type Answer<'a> = BoxFuture<'a, Result<Outcome, Failure>>;
/// The same for many.
pub type Answers<'a> = BoxFuture<'a, Result<Vec<Outcome>, Failure>>;

/// What a service does for its steps, in its database. `C` is the connection, inside the transaction; a service
/// must not commit or roll it back. Nothing is left in the database of what is refused or unknown.
pub trait Service<C>: Send + Sync + 'static {
    /// Does the step; a TCC branch's try. Called once for a (saga, branch) unless it said `Unknown` or failed.
    fn act<'a>(&'a self, tx: &'a mut C, command: &'a Command) -> Answer<'a>;

    /// Undoes what [`Service::act`] did; a TCC branch's cancel. Only called after it was done, once. Can't be
    /// refused: that counts as `Unknown`, and it is tried again.
    fn undo<'a>(&'a self, tx: &'a mut C, command: &'a Command) -> Answer<'a>;

    /// Confirms what [`Service::act`] tried, for TCC.
    fn confirm<'a>(&'a self, _tx: &'a mut C, command: &'a Command) -> Answer<'a> {
        let text = format!("`{}` confirms nothing", command.branch);
        Box::pin(async move { Ok(Outcome::Refused(text)) })
    }

    /// Does the step for many sagas at once, one outcome for each; `None` (the default): one by one. Here the
    /// service itself sees to it that nothing is left of what it refuses.
    fn act_all<'a>(&'a self, _tx: &'a mut C, _commands: &'a [Command]) -> Option<Answers<'a>> {
        None
    }

    /// Confirms for many sagas at once.
    fn confirm_all<'a>(&'a self, _tx: &'a mut C, _commands: &'a [Command]) -> Option<Answers<'a>> {
        None
    }
}

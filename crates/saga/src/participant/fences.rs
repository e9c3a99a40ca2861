//! The seam [`Fences`]: the fence rows in a participant's database.

use std::future::Future;

use quorate_outbox::Message;
use uuid::Uuid;

use crate::Result;
use crate::machine::Outcome;

/// What a fence is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// The action, or TCC's try.
    Act,
    /// The compensation, or TCC's cancel.
    Undo,
    /// TCC's confirm.
    Confirm,
    /// A call outside of the database may have been made.
    Attempted,
}

impl Slot {
    /// As it is stored.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn number(self) -> i16 {
        match self {
            Slot::Act => 0,
            Slot::Undo => 1,
            Slot::Confirm => 2,
            Slot::Attempted => 3,
        }
    }
}

/// The name of a fence row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FenceKey {
    /// The saga.
    pub saga: Uuid,
    /// The branch.
    pub branch: String,
    /// What of it.
    pub slot: Slot,
}

impl FenceKey {
    /// The name of a row.
    pub fn new(saga: Uuid, branch: &str, slot: Slot) -> FenceKey {
        FenceKey {
            saga,
            branch: branch.to_owned(),
            slot,
        }
    }
}

/// Fence rows, and the outbox beside them, in one database. All in the caller's transaction.
pub trait Fences: Clone + Send + Sync + 'static {
    /// The connection.
    type Connection: Send + 'static;

    /// Writes rows that say `done`, unless they are there. Answers for each whether it was not. Waits for other
    /// transactions that write the same ones. The keys are all different.
    fn claim(
        &self,
        tx: &mut Self::Connection,
        keys: &[FenceKey],
    ) -> impl Future<Output = Result<Vec<bool>>> + Send;

    /// What rows say; `None` for those that are not there.
    fn look(
        &self,
        tx: &mut Self::Connection,
        keys: &[FenceKey],
    ) -> impl Future<Output = Result<Vec<Option<Outcome>>>> + Send;

    /// Says something else in rows that are there.
    fn settle(
        &self,
        tx: &mut Self::Connection,
        outcomes: &[(FenceKey, Outcome)],
    ) -> impl Future<Output = Result<()>> + Send;

    /// Takes rows away.
    fn give_up(
        &self,
        tx: &mut Self::Connection,
        keys: &[FenceKey],
    ) -> impl Future<Output = Result<()>> + Send;

    /// Enqueues messages.
    fn send(
        &self,
        tx: &mut Self::Connection,
        messages: &[Message],
    ) -> impl Future<Output = Result<()>> + Send;

    /// Wakes the relays of this process.
    fn wake(&self);

    /// Runs a statement without parameters: savepoints.
    fn run(
        &self,
        tx: &mut Self::Connection,
        text: &'static str,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// What a row says, as it is stored: nothing for `Done(null)`.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn text_of(outcome: &Outcome) -> Result<Option<String>> {
    if *outcome == Outcome::Done(serde_json::Value::Null) {
        return Ok(None);
    }
    let text = serde_json::to_string(outcome);
    let text =
        text.map_err(|e| crate::Error::new(crate::ErrorKind::Invalid, format!("an outcome: {e}")))?;
    Ok(Some(text))
}

/// Reads what [`text_of`] wrote.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn outcome_of(text: Option<&str>) -> Result<Outcome> {
    let Some(text) = text else {
        return Ok(Outcome::Done(serde_json::Value::Null));
    };
    serde_json::from_str(text).map_err(|e| {
        let text = format!("a row of quorate_saga_fence can't be read: {e}; mend it");
        crate::Error::new(crate::ErrorKind::Corrupt, text)
    })
}

//! The error of this crate. A kind tells the caller what to do and what is known of the outcome.

use std::io;

use quorate_kv::{ErrorKind, Outcome};

use crate::types::{GroupId, Leader};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong with a request to a group.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This replica can't take the request; nothing happened. Retry at the leader if one is known,
    /// else after an election.
    #[error("this replica does not lead its group (leader: {leader:?})")]
    NotLeader {
        /// Who leads, as far as this replica knows.
        leader: Option<Leader>,
    },
    /// The proposal is past the limit; nothing happened. Make it smaller.
    #[error("a proposal of {bytes} bytes is past the limit of {limit}")]
    TooLarge {
        /// The size of the proposal.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Too much is in flight already; nothing happened. Retry a little later.
    #[error("too many proposals are in flight")]
    Overloaded,
    /// The proposal was handed to the log and its fate is not known: it may be applied, now or
    /// later, or never.
    #[error("the outcome of the proposal is not known: {0}")]
    OutcomeUnknown(String),
    /// The time given ran out; nothing was changed by this request.
    #[error("the deadline passed: {0}")]
    DeadlineExceeded(String),
    /// A quorum does not answer; nothing happened. Retry later.
    #[error("no quorum of the group answers")]
    NoQuorum,
    /// Another change of the group is under way; nothing happened. Retry when it is done.
    #[error("another change of the group is under way")]
    Busy,
    /// This node has no replica of the group.
    #[error("this node has no replica of group {0}")]
    NoSuchGroup(GroupId),
    /// The group or the node has stopped, by shutdown or because its disk or state machine failed.
    #[error("stopped: {0}")]
    Stopped(String),
    /// The request makes no sense; do not retry.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// What is on disk can't be read back: damage, or a newer version wrote it.
    #[error("log: {0}")]
    Corrupt(String),
    /// The disk failed.
    #[error("disk: {0}")]
    Io(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Error::Corrupt(error.to_string()),
            _ => Error::Io(error.to_string()),
        }
    }
}

impl From<Error> for quorate_kv::Error {
    fn from(error: Error) -> Self {
        let (kind, outcome) = match &error {
            Error::NotLeader { .. } => (ErrorKind::NotLeader, Outcome::NotApplied),
            Error::TooLarge { .. } => (ErrorKind::TooLarge, Outcome::NotApplied),
            Error::Overloaded | Error::Busy => (ErrorKind::Overloaded, Outcome::NotApplied),
            Error::OutcomeUnknown(_) => (ErrorKind::DeadlineExceeded, Outcome::Unknown),
            Error::DeadlineExceeded(_) => (ErrorKind::DeadlineExceeded, Outcome::NotApplied),
            Error::NoQuorum => (ErrorKind::NoQuorum, Outcome::NotApplied),
            Error::NoSuchGroup(_) => (ErrorKind::NotLeader, Outcome::NotApplied),
            Error::Stopped(_) => (ErrorKind::Unavailable, Outcome::NotApplied),
            Error::Invalid(_) => (ErrorKind::InvalidArgument, Outcome::NotApplied),
            Error::Corrupt(_) => (ErrorKind::Corruption, Outcome::NotApplied),
            Error::Io(_) => (ErrorKind::Internal, Outcome::NotApplied),
        };
        let outcome = match quorate_env::switch::bug("unknown_outcome_said_not_applied") {
            true => Outcome::NotApplied,
            false => outcome,
        };
        quorate_kv::Error::new(kind, error.to_string()).with_outcome(outcome)
    }
}

//! The one error type of the contract. A kind tells the caller what to do; the detail is prose.

use std::fmt;
use std::time::Duration;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in terms of what the caller can do about it. The numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum ErrorKind {
    /// The request itself is wrong (empty key, bad range): fix it, do not retry.
    InvalidArgument = 1,
    /// A key, value or batch is past its limit: make it smaller.
    TooLarge = 2,
    /// The namespace does not exist: create it first.
    UnknownNamespace = 3,
    /// A thing to be created is there already.
    AlreadyExists = 4,
    /// The operation spans shards, which this call can't do.
    CrossShard = 5,
    /// The token is of another cluster, namespace or incarnation: drop it.
    WrongDomain = 6,
    /// This store does not have that operation.
    Unsupported = 7,
    /// The request assumed an old shard map: refresh it and retry.
    WrongEpoch = 8,
    /// This replica does not lead its group: retry at the leader.
    NotLeader = 9,
    /// Too few replicas answer: retry later, or read stale.
    NoQuorum = 10,
    /// The time given ran out.
    DeadlineExceeded = 11,
    /// Queues are full: retry after the hint.
    Overloaded = 12,
    /// The disk is full: free space; reads go on.
    DiskFull = 13,
    /// The server could not be reached, or is stopping: retry elsewhere.
    Unavailable = 14,
    /// Stored data failed its checksum: an operator has to act.
    Corruption = 15,
    /// A bug or a failure of the machine below.
    Internal = 16,
}

impl ErrorKind {
    /// Every kind, in the order of the wire numbers.
    pub const ALL: [ErrorKind; 16] = [
        ErrorKind::InvalidArgument,
        ErrorKind::TooLarge,
        ErrorKind::UnknownNamespace,
        ErrorKind::AlreadyExists,
        ErrorKind::CrossShard,
        ErrorKind::WrongDomain,
        ErrorKind::Unsupported,
        ErrorKind::WrongEpoch,
        ErrorKind::NotLeader,
        ErrorKind::NoQuorum,
        ErrorKind::DeadlineExceeded,
        ErrorKind::Overloaded,
        ErrorKind::DiskFull,
        ErrorKind::Unavailable,
        ErrorKind::Corruption,
        ErrorKind::Internal,
    ];

    /// The number that stands for this kind on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The kind of a wire number; one that a newer peer sent and we do not know is `Internal`.
    pub fn from_code(code: u32) -> ErrorKind {
        (code as usize)
            .checked_sub(1)
            .and_then(|i| Self::ALL.get(i).copied())
            .unwrap_or(ErrorKind::Internal)
    }

    /// Whether the same request may succeed later without being changed.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            ErrorKind::WrongEpoch
                | ErrorKind::NotLeader
                | ErrorKind::NoQuorum
                | ErrorKind::Overloaded
                | ErrorKind::Unavailable
                | ErrorKind::DiskFull
        )
    }
}

/// What is known of a write that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Outcome {
    /// It surely did not happen.
    NotApplied = 0,
    /// It happened; only the answer was lost.
    Applied = 1,
    /// It may or may not have happened, now or later.
    Unknown = 2,
}

impl Outcome {
    /// The outcome of a wire number; what we do not know is `Unknown`, the safe reading.
    pub fn from_code(code: u32) -> Outcome {
        match code {
            0 => Outcome::NotApplied,
            1 => Outcome::Applied,
            _ => Outcome::Unknown,
        }
    }
}

/// An error of a [`Kv`](crate::Kv): its kind, what is known of the outcome, and the detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    outcome: Outcome,
    retry_after: Option<Duration>,
    message: String,
}

impl Error {
    /// An error after which nothing was applied.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            outcome: Outcome::NotApplied,
            retry_after: None,
            message: message.into(),
        }
    }

    /// The same error with another outcome.
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// The same error with a hint when to try again.
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the write happened, as far as anyone knows. Reads are always `NotApplied`.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// When to try again, if the server gave a hint.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The detail: what, where, and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether sending the very same request again is both useful and safe.
    pub fn is_safe_to_retry(&self) -> bool {
        self.kind.is_retryable() && self.outcome == Outcome::NotApplied
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.outcome {
            Outcome::NotApplied => Ok(()),
            Outcome::Applied => f.write_str(" (the write was applied)"),
            Outcome::Unknown => f.write_str(" (whether the write was applied is not known)"),
        }
    }
}

impl std::error::Error for Error {}

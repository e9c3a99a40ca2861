//! The one error type of the crate. A kind tells the caller what to do; the detail is prose.

use std::fmt;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in terms of what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key, an option or an address can't be as it is: fix it, do not retry.
    Invalid,
    /// A key is past its limit: make it smaller.
    TooLarge,
    /// The token is of another source, or of a history that a failover ended: drop it and read again.
    WrongDomain,
    /// The source answered something older than the level asks: retry, or read from another source.
    Behind,
    /// The source or a tier does not answer or refused for now: retry.
    Unavailable,
    /// The time given ran out: retry.
    Timeout,
    /// What the source gave can't be decoded: mend the data, or the decoder.
    Undecodable,
    /// The source does not have that operation or level.
    Unsupported,
    /// The source panicked: a bug there.
    Panicked,
}

/// An error: its kind, whether a change may have happened all the same, and the detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    outcome_known: bool,
    message: String,
}

impl Error {
    /// An error after which nothing was changed.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            outcome_known: true,
            message: message.into(),
        }
    }

    /// The same, where the change may have happened.
    pub fn outcome_unknown(mut self) -> Self {
        self.outcome_known = false;
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it is certain that nothing was changed. False when an answer was lost.
    pub fn is_outcome_known(&self) -> bool {
        self.outcome_known
    }

    /// Whether the same call may succeed later without being changed.
    pub fn is_retryable(&self) -> bool {
        use ErrorKind::{Behind, Timeout, Unavailable};
        matches!(self.kind, Behind | Timeout | Unavailable)
    }

    /// The detail: what, where, and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.outcome_known {
            f.write_str(" (whether it was done is not known)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<quorate_kv::Error> for Error {
    fn from(error: quorate_kv::Error) -> Self {
        use quorate_kv::ErrorKind as Kv;
        let kind = match error.kind() {
            Kv::InvalidArgument | Kv::UnknownNamespace => ErrorKind::Invalid,
            Kv::TooLarge => ErrorKind::TooLarge,
            Kv::WrongDomain => ErrorKind::WrongDomain,
            Kv::Unsupported => ErrorKind::Unsupported,
            Kv::DeadlineExceeded => ErrorKind::Timeout,
            _ => ErrorKind::Unavailable,
        };
        let made = Error::new(kind, error.message());
        match error.outcome() {
            quorate_kv::Outcome::NotApplied => made,
            _ => made.outcome_unknown(),
        }
    }
}

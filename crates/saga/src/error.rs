//! The one error type of the crate. A kind tells the caller what to do; the detail is prose.

use std::fmt;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in terms of what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The definition, the input or the order can't be as it is: fix it, do not retry.
    Invalid,
    /// A name, key, input or output is past its limit: make it smaller.
    TooLarge,
    /// Something else is there under this key, such as a saga begun with another input. Nothing was written.
    Conflict,
    /// What was asked for is not there.
    NotFound,
    /// Our tables are half made, older or newer than this program: migrate, or use the program that fits
    /// them. Nothing was written.
    Schema,
    /// None of our tables is there: migrate, or look for another database. Nothing was written.
    Missing,
    /// A row is locked by another transaction, which goes first: roll back, and begin again.
    Locked,
    /// Another process holds the lease by now. Nothing was written; stop this work.
    Fenced,
    /// The database or the broker does not answer or refused for now: retry.
    Unavailable,
    /// This store does not have that operation.
    Unsupported,
    /// Something stored can't be read: an operator has to act.
    Corrupt,
}

/// An error: its kind, whether a write may have happened all the same, and the detail.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    outcome_known: bool,
    message: String,
}

impl Error {
    /// An error after which nothing was written.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            outcome_known: true,
            message: message.into(),
        }
    }

    /// The same, where the write may have happened.
    pub fn outcome_unknown(mut self) -> Self {
        self.outcome_known = false;
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it is certain that nothing was written. False when an answer was lost.
    pub fn is_outcome_known(&self) -> bool {
        self.outcome_known
    }

    /// Whether the same call may succeed later without being changed.
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Unavailable
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
            f.write_str(" (whether it was written is not known)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<quorate_outbox::Error> for Error {
    fn from(error: quorate_outbox::Error) -> Self {
        use quorate_outbox::ErrorKind as From;
        let kind = match error.kind() {
            From::Invalid | From::CrossShard => ErrorKind::Invalid,
            From::TooLarge => ErrorKind::TooLarge,
            From::Schema => ErrorKind::Schema,
            From::Missing => ErrorKind::Missing,
            From::Fenced => ErrorKind::Fenced,
            From::Unsupported => ErrorKind::Unsupported,
            From::Corrupt => ErrorKind::Corrupt,
            _ => ErrorKind::Unavailable,
        };
        Error {
            kind,
            outcome_known: error.is_outcome_known(),
            message: error.message().to_owned(),
        }
    }
}

/// So that a service may use `?`: it fails, and is tried again if that may help.
impl From<Error> for quorate_outbox::inbox::Failure {
    fn from(error: Error) -> Self {
        Self {
            retry: error.is_retryable(),
            reason: error.to_string(),
        }
    }
}

impl From<quorate_kv::Error> for Error {
    fn from(error: quorate_kv::Error) -> Self {
        quorate_outbox::Error::from(error).into()
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        quorate_outbox::Error::from(error).into()
    }
}

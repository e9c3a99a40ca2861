//! The one error type of the crate. A kind tells the caller what to do; the detail is prose.

use std::fmt;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in terms of what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The message or the setting can't be as it is: fix it, do not retry.
    Invalid,
    /// A payload, key or header is past its limit: make it smaller.
    TooLarge,
    /// Our tables are half made, older or newer than this program: migrate, or use the program that fits
    /// them. Nothing was written.
    Schema,
    /// None of our tables is there: migrate, or look for another database. Nothing was written.
    Missing,
    /// Another process holds the lease by now. Nothing was written; stop this work.
    Fenced,
    /// Data and message are in different shards: give both the same routing prefix.
    CrossShard,
    /// The database or the broker does not answer or refused for now: retry.
    Unavailable,
    /// This store or broker does not have that operation.
    Unsupported,
    /// A stored row or message can't be read: an operator has to act.
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

impl From<quorate_kv::Error> for Error {
    fn from(error: quorate_kv::Error) -> Self {
        use quorate_kv::ErrorKind as Kv;
        let kind = match error.kind() {
            Kv::InvalidArgument => ErrorKind::Invalid,
            Kv::TooLarge => ErrorKind::TooLarge,
            Kv::CrossShard => ErrorKind::CrossShard,
            Kv::Unsupported => ErrorKind::Unsupported,
            Kv::Corruption => ErrorKind::Corrupt,
            _ => ErrorKind::Unavailable,
        };
        let made = Error::new(kind, error.message());
        match error.outcome() {
            quorate_kv::Outcome::NotApplied => made,
            _ => made.outcome_unknown(),
        }
    }
}

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let kind = match &error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => ErrorKind::Corrupt,
            sqlx::Error::Database(from) => database_kind(from.as_ref()),
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("database: {error}"))
    }
}

/// A table or column that is not there is a matter of migrations; everything else may pass.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
fn database_kind(error: &dyn sqlx::error::DatabaseError) -> ErrorKind {
    let missing = match error.code() {
        Some(code) => matches!(
            code.as_ref(),
            "42P01" | "42703" | "3F000" | "42883" | "42S02" | "42S22"
        ),
        None => false,
    };
    let text = error.message();
    if missing || text.starts_with("no such table") || text.starts_with("no such column") {
        ErrorKind::Schema
    } else {
        ErrorKind::Unavailable
    }
}

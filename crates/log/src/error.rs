//! The one error type of the log.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The record is larger than 1 GiB, or the size of segments is out of bounds: split it, or change that.
    TooLarge,
    /// The disk is full: nothing of the record was kept; free space and try again.
    DiskFull,
    /// Stored bytes are not what was written: an operator has to act.
    Corruption,
    /// The files are of a format that this program does not know: use a newer one.
    NewerFormat,
    /// A write or sync failed before, and what is on disk is unknown; or the log was closed. Open it again.
    Poisoned,
    /// Any other failure of the disk.
    Io,
    /// What was asked for is not there.
    NotFound,
}

/// An error of the log; cheap to clone, since one failed sync fails many records.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: Arc<str>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into().into(),
        }
    }

    pub(crate) fn io(doing: &str, path: &Path, error: &io::Error) -> Error {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{doing} {}: {error}", path.display()))
    }

    pub(crate) fn corruption(path: &Path, offset: u64, what: &str) -> Error {
        let message = format!(
            "{} is damaged at byte {offset}: {what}; restore the file or remove this replica's data",
            path.display()
        );
        Error::new(ErrorKind::Corruption, message)
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

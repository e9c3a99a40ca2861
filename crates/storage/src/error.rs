//! The one error of this crate: a kind that says what to do, and a message that says what happened.

use std::fmt;
use std::io;
use std::path::Path;

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller is to do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense. Nothing was done; don't retry.
    InvalidArgument,
    /// Not built. Nothing was done; don't retry.
    Unsupported,
    /// Another engine, perhaps of another process, has the directory open.
    AlreadyOpen,
    /// The directory was written by a newer or differently configured engine. Nothing was changed.
    Incompatible,
    /// What was read is not what was written. The message names the file and the place.
    Corruption,
    /// The disk is full. Nothing was done; retry when there is space.
    DiskFull,
    /// The disk refused. The outcome of a write is unknown until the engine is opened again.
    Io,
    /// An earlier failure left the files in doubt: this engine takes no more writes. The message is
    /// that of the failure.
    Poisoned,
    /// The engine was closed.
    Closed,
    /// A condition of the batch does not hold. Nothing was done; read again and decide anew.
    ConditionFailed,
    /// Background work is behind, and the write did not want to wait. Nothing was done; retry later.
    Busy,
    /// The deadline of a write was over before it was under way. Nothing was done.
    DeadlineExceeded,
    /// A read at a version whose data compaction was free to drop; see `Lsm::set_watermark`.
    Dropped,
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::InvalidArgument, message)
    }

    pub(crate) fn corrupt(path: &Path, what: impl fmt::Display) -> Self {
        Error::new(
            ErrorKind::Corruption,
            format!("{} is damaged: {what}", path.display()),
        )
    }

    /// An error of the disk while doing `what` to the file at `path`.
    pub(crate) fn disk(path: &Path, what: &str, cause: &io::Error) -> Self {
        let kind = match cause.kind() {
            io::ErrorKind::StorageFull => ErrorKind::DiskFull,
            io::ErrorKind::UnexpectedEof => ErrorKind::Corruption,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{what} {}: {cause}", path.display()))
    }

    /// A full disk where it can't be recovered from.
    pub(crate) fn not_full(mut self) -> Self {
        if self.kind == ErrorKind::DiskFull {
            self.kind = ErrorKind::Io;
        }
        self
    }

    /// The same failure, told to those who come after it.
    pub(crate) fn poisoned(&self) -> Self {
        Error::new(
            ErrorKind::Poisoned,
            format!("the engine stopped writing after: {}", self.message),
        )
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What happened, naming the file where there is one.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

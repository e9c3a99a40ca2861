//! The one error type of the node: what stops it from opening, or a request to it from being done.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a node did not open, or an operation of its owner failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the data directory open.
    #[error("the data directory {} is in use by another process: stop that one first", .0.display())]
    AlreadyOpen(PathBuf),
    /// Files are of a format that this program does not know.
    #[error("{0}")]
    NewerFormat(String),
    /// Files are not what was written.
    #[error("{0}")]
    Corruption(String),
    /// The request does not fit this node: another cluster, another node, a bad setting.
    #[error("{0}")]
    Invalid(String),
    /// The storage engine failed.
    #[error(transparent)]
    Storage(#[from] quorate_storage::Error),
    /// Replication failed.
    #[error(transparent)]
    Replication(#[from] quorate_replication::Error),
    /// The disk failed.
    #[error("{0}")]
    Io(String),
    /// A bug: a job panicked, and nothing is served since. Open the node again.
    #[error("{0}")]
    Panicked(String),
}

impl Error {
    pub(crate) fn io(doing: &str, path: &Path, error: &std::io::Error) -> Error {
        Error::Io(format!("{doing} {}: {error}", path.display()))
    }
}

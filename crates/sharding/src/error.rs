//! What can be wrong with a map or its bytes.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate. But for [`Error::Unsettled`], none is worth a retry with the same input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes end early, have junk behind them, or hold a value that cannot be.
    #[error("damaged shard map bytes: {0}")]
    Damaged(&'static str),
    /// Bytes of a format that this version does not read: upgrade the binary.
    #[error("shard map format {0} is newer than this version reads (2)")]
    NewerFormat(u8),
    /// A map breaks one of its invariants: a bug of who made it.
    #[error("invalid shard map: {0}")]
    InvalidMap(String),
    /// What was asked for cannot be done as asked: the caller has to ask differently.
    #[error("{0}")]
    InvalidArgument(String),
    /// A thing of that name is there already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The members of a shard are being changed: try again when that is done.
    #[error("the replicas of shard {0} are being changed already: try again when that is done")]
    Unsettled(u64),
}

impl From<Error> for quorate_kv::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Damaged(_) | Error::NewerFormat(_) => quorate_kv::ErrorKind::Corruption,
            Error::InvalidMap(_) => quorate_kv::ErrorKind::Internal,
            Error::InvalidArgument(_) => quorate_kv::ErrorKind::InvalidArgument,
            Error::AlreadyExists(_) => quorate_kv::ErrorKind::AlreadyExists,
            Error::Unsettled(_) => quorate_kv::ErrorKind::Unavailable,
        };
        quorate_kv::Error::new(kind, error.to_string())
    }
}

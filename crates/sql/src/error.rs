//! The one error type of the crate. A kind tells the caller what to do; the detail is prose.

use std::fmt;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in terms of what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call or the setting can't be as it is: fix it, do not retry.
    Invalid,
    /// This database does not have that.
    Unsupported,
    /// The database refused the statement: a constraint, a type, a syntax. Fix it, do not retry.
    Refused,
    /// A row was to be there and is not.
    Missing,
    /// A stored value is not of the type that was asked for: an operator has to act.
    Corrupt,
    /// Others changed the same data: serialization failure, deadlock, another version. Run all of the
    /// transaction again.
    Conflict,
    /// Another holds the lock: come again later.
    Locked,
    /// The statement took longer than it may and was ended: retry, or allow it more.
    Timeout,
    /// No connection became free in time; the message says who holds them. Retry later, or find the leak.
    Exhausted,
    /// No replica meets the read rule in time, and the session was told not to go to the primary instead.
    Stale,
    /// The token is of another system or of history that a fail-over left: drop it, and read anew what it
    /// stood for.
    TokenLost,
    /// The database does not answer, or is not in the role it was named for: retry.
    Unavailable,
    /// Committed on the primary, but not shown to be on every replica in time. Do not run it again.
    Unsynchronized,
    /// The answer to a commit was lost. Look whether it happened before running it again.
    OutcomeUnknown,
    /// The transaction's own code gave it up.
    Aborted,
}

/// Whether the work of the call that failed was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing was changed.
    NotApplied,
    /// It was committed.
    Applied,
    /// One of both.
    Unknown,
}

/// An error: its kind, whether the change happened all the same, and the detail.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    code: Option<String>,
    message: String,
}

impl Error {
    /// An error of a kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            code: None,
            message: message.into(),
        }
    }

    /// For a transaction's own code: rolls it back, and is answered to the caller as it is.
    pub fn aborted(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Aborted, message)
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the change was made. Of a single statement outside a transaction whose connection broke
    /// (`Unavailable`), this crate can't say more than that it got no answer: write in transactions.
    pub fn outcome(&self) -> Outcome {
        match self.kind {
            ErrorKind::OutcomeUnknown => Outcome::Unknown,
            ErrorKind::Unsynchronized => Outcome::Applied,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later without being changed, and can't do its work twice.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Conflict
                | ErrorKind::Locked
                | ErrorKind::Timeout
                | ErrorKind::Exhausted
                | ErrorKind::Stale
                | ErrorKind::Unavailable
        )
    }

    /// The database's own code, if it gave one: SQLSTATE, or SQLite's number.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The detail: what, where, and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with words before its message.
    pub(crate) fn within(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same detail under another kind.
    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.outcome() {
            Outcome::Unknown => f.write_str(" (whether it was committed is not known)"),
            Outcome::Applied => f.write_str(" (it was committed)"),
            Outcome::NotApplied => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let kind = match &error {
            sqlx::Error::Database(from) => database_kind(from.as_ref()),
            sqlx::Error::RowNotFound => ErrorKind::Missing,
            sqlx::Error::PoolTimedOut => ErrorKind::Exhausted,
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::TypeNotFound { .. } => ErrorKind::Corrupt,
            sqlx::Error::Configuration(_)
            | sqlx::Error::InvalidArgument(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::Encode(_) => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        };
        let code = error.as_database_error().and_then(|e| e.code());
        Error {
            kind,
            code: code.map(|code| code.into_owned()),
            message: format!("database: {error}"),
        }
    }
}

/// What a code of a database means. SQLSTATE has five characters; SQLite's codes are numbers.
fn database_kind(error: &dyn sqlx::error::DatabaseError) -> ErrorKind {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return mysql_kind(error.number());
    }
    let Some(code) = error.code() else {
        return ErrorKind::Refused;
    };
    match code.as_ref() {
        "40001" | "40P01" => ErrorKind::Conflict,
        "55P03" => ErrorKind::Locked,
        "57014" => ErrorKind::Timeout,
        code if code.len() == 5 => match &code[..2] {
            // Connection, resources, operator, I/O: not the statement's fault.
            "08" | "53" | "57" | "58" | "XX" => ErrorKind::Unavailable,
            // idle_in_transaction_session_timeout, transaction_timeout: the session is gone.
            "25" if code == "25P03" || code == "25P04" => ErrorKind::Unavailable,
            _ => ErrorKind::Refused,
        },
        // SQLITE_BUSY and its extended codes, SQLITE_LOCKED: another writes.
        "5" | "261" | "517" | "773" | "6" | "262" => ErrorKind::Conflict,
        // SQLITE_IOERR, SQLITE_CORRUPT, SQLITE_FULL, SQLITE_CANTOPEN.
        "10" | "13" | "14" => ErrorKind::Unavailable,
        "11" | "26" => ErrorKind::Corrupt,
        _ => ErrorKind::Refused,
    }
}

#[cfg(feature = "mysql")]
fn mysql_kind(number: u16) -> ErrorKind {
    match number {
        // Deadlock; a record changed since the snapshot; a transaction that was rolled back.
        1213 | 1020 | 1402 | 3101 => ErrorKind::Conflict,
        // Lock wait time-out, NOWAIT.
        1205 | 3572 => ErrorKind::Locked,
        // max_statement_time of MariaDB, max_execution_time of MySQL, interrupted.
        1969 | 3024 | 1317 => ErrorKind::Timeout,
        // Too many connections, shutting down, killed, no server.
        1040 | 1053 | 1927 | 2006 | 2013 | 1203 | 1129 => ErrorKind::Unavailable,
        _ => ErrorKind::Refused,
    }
}

//! Two-phase commit over several PostgreSQL databases, by `PREPARE TRANSACTION`.
//!
//! ```text
//! prepare    each database: PREPARE TRANSACTION 'quorate:coordinator:log:transaction:branch'
//! decide     log: INSERT (transaction, commit) unless one is there     <- from here on it is committed
//! commit     each database: COMMIT PREPARED; then the log's row is marked as ended
//! ```
//!
//! Presumed abort: nothing is written before the decision, and what is prepared without one is rolled back when it
//! is too old. The sweeper that does so first writes the abort into the log, so that a coordinator which wakes up
//! late learns it instead of committing.
//!
//! # A worked example
//!
//! Accounts and stock are prepared, the log has the decision, accounts is committed, and the process dies. The next
//! sweep, of any process of this coordinator, lists `pg_prepared_xacts` of every database, finds stock's with a
//! decision to commit, and commits it. Had the process died before the decision, the sweep would find both without
//! one, and roll them back once they are older than the time-out. Is stock's server down, then it is done when it
//! is back: what is prepared survives a restart, and keeps its row locks meanwhile.
//!
//! # What is promised
//!
//! - All branches commit or none, whoever dies when. The outcome is the row in the log.
//! - What others have prepared is never touched: names carry the coordinator and the identity of its log.
//! - Recovery may be repeated, killed, and run by several at once.
//!
//! # What it does not do
//!
//! *Commits are not seen at one moment.* Between the first and the last `COMMIT PREPARED` a reader of two databases
//! may see the one changed and the other not yet: for milliseconds, or as long as a database is down. A
//! transaction can't be prepared that has used temporary tables, `LISTEN`, `NOTIFY` or cursors `WITH HOLD`. What is
//! prepared holds its locks and holds up vacuum: watch [`TwoPhase::prepared`]. A log that is restored from a backup
//! has lost decisions: settle by hand what is prepared before the coordinator starts again.

mod log;
mod name;
mod sweep;
#[cfg(all(test, feature = "sqlite"))]
mod tests;
mod transaction;

pub use log::{TWO_PHASE_SCHEMA_VERSION, TwoPhaseOutcome};
pub use name::BranchName;
pub use sweep::{Prepared, TwoPhaseSwept};
pub use transaction::{Settled, TwoPhaseTransaction};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgPool, Row};

use crate::{Error, ErrorKind, Result};
use log::DecisionLog;

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwoPhaseOptions {
    /// A transaction that is not decided within it is rolled back.
    pub timeout: Duration,
    /// What is prepared for longer is warned of, whoever prepared it.
    pub alarm_age: Duration,
    /// Outcomes are kept for so long after their end. At least ten times the time-out.
    pub retention: Duration,
}

impl Default for TwoPhaseOptions {
    fn default() -> Self {
        TwoPhaseOptions {
            timeout: Duration::from_secs(30),
            alarm_age: Duration::from_secs(300),
            retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// A coordinator over a decision log and databases with names. Cheap to clone; several processes may run the same
/// one.
#[derive(Clone)]
pub struct TwoPhase {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    log: DecisionLog,
    databases: BTreeMap<String, PgPool>,
    options: TwoPhaseOptions,
}

impl TwoPhase {
    /// Makes the log's tables unless they are there, and opens the coordinator.
    ///
    /// # Errors
    /// As [`TwoPhase::open`].
    pub async fn migrate(
        log: PgPool,
        name: impl Into<String>,
        databases: Vec<(String, PgPool)>,
        options: TwoPhaseOptions,
    ) -> Result<TwoPhase> {
        log::migrate(&log).await?;
        TwoPhase::open(log, name, databases, options).await
    }

    /// Opens a coordinator. A database that does not answer is looked at later.
    ///
    /// # Errors
    /// `Invalid` for a name, or two of one name, or options; `Unsupported` when a database has
    /// `max_prepared_transactions = 0`; `Missing`, `Schema` for the log's tables; `Unavailable` log.
    pub async fn open(
        log: PgPool,
        name: impl Into<String>,
        databases: Vec<(String, PgPool)>,
        options: TwoPhaseOptions,
    ) -> Result<TwoPhase> {
        let name = name.into();
        name::check("coordinator", &name)?;
        let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
        if options.retention < options.timeout.saturating_mul(10) {
            return invalid("outcomes are to be kept for at least ten times the time-out".into());
        }
        let mut named = BTreeMap::new();
        for (database, pool) in databases {
            name::check("database", &database)?;
            check_setting(&database, &pool).await?;
            if named.insert(database.clone(), pool).is_some() {
                return invalid(format!("two databases are named `{database}`"));
            }
        }
        let log = DecisionLog::open(log).await?;
        let inner = Inner {
            name,
            log,
            databases: named,
            options,
        };
        Ok(TwoPhase {
            inner: Arc::new(inner),
        })
    }

    /// Begins a transaction. Nothing is written yet.
    pub fn begin(&self) -> TwoPhaseTransaction {
        TwoPhaseTransaction::new(self.clone())
    }

    /// What became of a transaction; `None` when nothing is decided, and for one that is forgotten.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn outcome(&self, transaction: &str) -> Result<Option<TwoPhaseOutcome>> {
        self.inner.log.outcome(transaction).await
    }

    fn database(&self, name: &str) -> Result<&PgPool> {
        self.inner.databases.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.inner.databases.keys().map(String::as_str).collect();
            let text = format!(
                "there is no database `{name}`; there are: {}",
                known.join(", ")
            );
            Error::new(ErrorKind::NotFound, text)
        })
    }
}

/// A server as it is installed prepares nothing.
async fn check_setting(database: &str, pool: &PgPool) -> Result<()> {
    let read = "SELECT current_setting('max_prepared_transactions')::int";
    let Ok(row) = sqlx::query(read).fetch_one(pool).await else {
        return Ok(());
    };
    if row.try_get::<i32, _>(0)? > 0 {
        return Ok(());
    }
    Err(disabled(database))
}

fn disabled(database: &str) -> Error {
    let text = format!(
        "the server of database `{database}` has max_prepared_transactions = 0, so that it can prepare none: set \
         it to at least max_connections in postgresql.conf, and restart the server"
    );
    Error::new(ErrorKind::Unsupported, text)
}

/// What a database says about preparing, in terms of what can be done about it.
fn failed(database: &str, error: sqlx::Error) -> Error {
    let code = error
        .as_database_error()
        .and_then(|from| Some(from.code()?.into_owned()));
    let text = |what: &str| format!("database `{database}`: {what} ({error})");
    match code.as_deref() {
        Some("55000") if error.to_string().contains("disabled") => disabled(database),
        Some("53200" | "53400") if error.to_string().contains("prepared") => {
            let what = "as many transactions are prepared as max_prepared_transactions allows: raise it, and see \
                        whether some are left over";
            Error::new(ErrorKind::Unavailable, text(what))
        }
        Some("0A000") => Error::new(ErrorKind::Unsupported, text("this can't be prepared")),
        Some("42501") => {
            let what = "only the user who prepared a transaction, or a superuser, may end it";
            Error::new(ErrorKind::Invalid, text(what))
        }
        Some(code) if code.starts_with("23") => {
            Error::new(ErrorKind::Conflict, text("a constraint refuses"))
        }
        Some(code) if code.starts_with("22") => {
            Error::new(ErrorKind::Invalid, text("a value is refused"))
        }
        _ => {
            let made = Error::from(error);
            Error::new(
                made.kind(),
                format!("database `{database}`: {}", made.message()),
            )
        }
    }
}

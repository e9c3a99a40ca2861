//! Sessions: what a pool's must be like, and transactions that leave no locks behind when their process freezes.

use std::time::Duration;

use sqlx::mysql::{MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, MySql, MySqlConnection, MySqlPool, Row as _, Transaction};

use crate::{Error, ErrorKind, Result};

/// The longest key that fits into our indexes, in bytes.
pub(crate) const KEY_BYTES: usize = 2048;
/// The longest name: of a topic, a source, a consumer, a relay.
pub(crate) const NAME_BYTES: usize = 255;
/// A transaction of a relay is ended by the server when its process was silent for so long.
pub(crate) const IDLE: Duration = Duration::from_secs(5);

/// Looks whether sessions of the pool are such that nothing is lost; answers the largest packet, in bytes.
pub(crate) async fn check(pool: &MySqlPool) -> Result<usize> {
    let rows = sqlx::query(
        "SHOW VARIABLES WHERE Variable_name IN
         ('autocommit', 'max_allowed_packet', 'transaction_isolation', 'tx_isolation')",
    )
    .fetch_all(pool)
    .await?;
    let mut packet = 1 << 20;
    for row in &rows {
        let (name, value) = (text(row, 0)?, text(row, 1)?);
        let refused = match (name.as_str(), value.as_str()) {
            ("autocommit", "ON") => continue,
            ("autocommit", _) => "autocommit is off: set it to 1 for the sessions of the pool",
            ("max_allowed_packet", bytes) => {
                packet = bytes.parse().unwrap_or(packet);
                continue;
            }
            (_, "READ-UNCOMMITTED") => {
                "sessions of the pool read what is not committed: set transaction_isolation to READ-COMMITTED"
            }
            _ => continue,
        };
        return Err(Error::new(ErrorKind::Invalid, refused));
    }
    Ok(packet)
}

/// A transaction at READ COMMITTED, so without locks on gaps. The server ends its session, and so the
/// transaction, when nothing is heard of it for a while.
pub(crate) struct Tx {
    inner: Option<Transaction<'static, MySql>>,
    mark: Option<&'static str>,
}

impl Tx {
    /// Begins. With a `mark` it can be told later whether the transaction is still the same.
    pub(crate) async fn begin(
        pool: &MySqlPool,
        idle: Duration,
        mark: Option<&'static str>,
    ) -> Result<Tx> {
        let secs = idle.as_secs().saturating_add(1).min(31_536_000);
        let mut text = format!(
            "SET @quorate_wait = @@SESSION.wait_timeout; SET SESSION wait_timeout = {secs};
             SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION"
        );
        if let Some(mark) = mark {
            text.push_str(&format!("; SAVEPOINT {mark}"));
        }
        let inner = pool.begin_with(AssertSqlSafe(text)).await?;
        Ok(Tx {
            inner: Some(inner),
            mark,
        })
    }

    /// The connection.
    pub(crate) fn connection(&mut self) -> &mut MySqlConnection {
        self.inner.as_mut().expect("it is open until it is ended")
    }

    /// Whether it is the transaction that was begun. MySQL ends one at a deadlock, or when tables are changed;
    /// what is written after that is committed at once, statement by statement.
    pub(crate) async fn is_alive(&mut self) -> Result<()> {
        let Some(mark) = self.mark else {
            return Ok(());
        };
        let text = format!("RELEASE SAVEPOINT {mark}; SAVEPOINT {mark}");
        run(self.connection(), text).await.map_err(lost)
    }

    /// Commits. When the database refuses, it is known that nothing was written.
    pub(crate) async fn commit(mut self) -> std::result::Result<(), sqlx::Error> {
        let released = match self.mark {
            Some(mark) => format!("RELEASE SAVEPOINT {mark}; "),
            None => String::new(),
        };
        let text = format!("{released}COMMIT; SET SESSION wait_timeout = @quorate_wait");
        run(self.connection(), text).await?;
        // For sqlx it still is open.
        if let Some(inner) = self.inner.take() {
            let _ = inner.commit().await;
        }
        Ok(())
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else {
            return;
        };
        // Without a runtime the connection goes away with its transaction.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let text = "ROLLBACK; SET SESSION wait_timeout = @quorate_wait".to_owned();
                let _ = run(&mut inner, text).await;
                let _ = inner.rollback().await;
            });
        }
    }
}

/// Runs statements one after the other, up to the first that fails.
pub(crate) async fn run(
    connection: &mut MySqlConnection,
    text: String,
) -> std::result::Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(text))
        .execute(connection)
        .await
        .map(|_| ())
}

/// The server's number of an error.
pub(crate) fn number(error: &sqlx::Error) -> Option<u16> {
    let from = error.as_database_error()?;
    let from = from.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(from.number())
}

/// `SAVEPOINT … does not exist`: there is no transaction, or it is another one.
pub(crate) const NO_SAVEPOINT: u16 = 1305;

fn lost(error: sqlx::Error) -> Error {
    if number(&error) != Some(NO_SAVEPOINT) {
        return error.into();
    }
    let text =
        "the transaction was ended from within: by a deadlock, or by a statement that commits";
    Error::new(ErrorKind::Unavailable, text)
}

/// What a failed commit says.
pub(crate) fn commit_error(error: sqlx::Error) -> Error {
    match number(&error) {
        Some(NO_SAVEPOINT) => lost(error),
        _ => crate::inbox::sql::commit_error(error),
    }
}

/// A column of bytes that are text.
pub(crate) fn text(row: &MySqlRow, column: usize) -> Result<String> {
    optional(row, column).map(Option::unwrap_or_default)
}

/// The same, or null.
pub(crate) fn optional(row: &MySqlRow, column: usize) -> Result<Option<String>> {
    let bytes: Option<Vec<u8>> = row.try_get(column)?;
    let read = bytes.map(String::from_utf8).transpose();
    read.map_err(|_| {
        let text = format!("column {column}: stored bytes are no UTF-8");
        Error::new(ErrorKind::Corrupt, text)
    })
}

/// Refuses what would not fit into a column: a session need not have a strict `sql_mode`.
pub(crate) fn fits(what: &str, text: &str, limit: usize) -> Result<()> {
    if text.len() <= limit {
        return Ok(());
    }
    let text = format!(
        "{what}: {} bytes, more than the {limit} that MySQL's indexes take",
        text.len()
    );
    Err(Error::new(ErrorKind::TooLarge, text))
}

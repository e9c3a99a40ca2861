//! MySQL and MariaDB. Their replicas are served by `Any` only: positions (GTIDs) are not read yet.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, ConnectOptions, MySql, Row, SqlStr};

use super::{
    Answer, Backend, Observation, Patience, Settlement, Standing, insert_text, int_value,
    text_value,
};
use crate::bulk::Cell;
use crate::pool::PoolOptions;
use crate::shard::{Kind, Value, Wire};
use crate::transaction::Isolation;
use crate::{Error, ErrorKind, Result};

const UNKNOWN_VARIABLE: u16 = 1193;

impl Backend for MySql {
    const REPLICAS: bool = true;
    const POSITIONS: bool = false;
    const ROW_LOCKS: bool = true;
    const NULLS_FIRST: bool = true;
    const PARAMETERS_MAX: usize = 65_535;

    fn connect_options(url: &str, options: &PoolOptions) -> Result<MySqlConnectOptions> {
        let connect: MySqlConnectOptions = url.parse()?;
        Ok(connect.log_slow_statements(log::LevelFilter::Warn, options.slow))
    }

    fn prepare<'c>(
        connection: &'c mut MySqlConnection,
        options: &'c PoolOptions,
    ) -> Answer<'c, ()> {
        Box::pin(async move {
            if let Some(longest) = options.statement_max {
                // MariaDB's ends any statement and counts seconds, MySQL's ends reads and counts milliseconds.
                let seconds = longest.as_secs_f64();
                set(
                    &mut *connection,
                    "max_statement_time",
                    format!("{seconds:.3}"),
                )
                .await?;
                let milliseconds = longest.as_millis().max(1).to_string();
                set(&mut *connection, "max_execution_time", milliseconds).await?;
            }
            if let Some(longest) = options.hold_max {
                let seconds = longest.as_secs().max(1).to_string();
                set(connection, "idle_transaction_timeout", seconds).await?;
            }
            Ok(())
        })
    }

    fn standing(connection: &mut MySqlConnection) -> Answer<'_, Standing> {
        Box::pin(async move {
            let read_only: i64 = sqlx::query_scalar("SELECT CAST(@@global.read_only AS SIGNED)")
                .fetch_one(connection)
                .await?;
            Ok(Standing {
                writable: read_only == 0,
                position: None,
            })
        })
    }

    fn observe(connection: &mut MySqlConnection) -> Answer<'_, Observation> {
        Box::pin(async move {
            sqlx::query("SELECT 1").execute(connection).await?;
            Ok(Observation {
                replica: true,
                system: None,
                run: None,
                position: None,
            })
        })
    }

    fn run(connection: &mut MySqlConnection, statement: SqlStr) -> Answer<'_, u64> {
        Box::pin(async move {
            let done = sqlx::query(statement).execute(connection).await?;
            Ok(done.rows_affected())
        })
    }

    fn number(connection: &mut MySqlConnection, statement: SqlStr) -> Answer<'_, Option<i64>> {
        Box::pin(async move {
            sqlx::query_scalar(statement)
                .fetch_optional(connection)
                .await
        })
    }

    fn begin(isolation: Isolation) -> (Option<&'static str>, &'static str) {
        let before = match isolation {
            Isolation::ReadCommitted => "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            Isolation::RepeatableRead => "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            Isolation::Serializable => "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        };
        (Some(before), "BEGIN")
    }

    fn synchronous(_: &mut MySqlConnection) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn settle(connection: &mut MySqlConnection) -> Answer<'_, Settlement> {
        Box::pin(async move {
            // A deadlock rolls the whole transaction back, a change of the schema commits it: what follows is
            // committed statement by statement.
            let asked = sqlx::query_scalar("SELECT CAST(@@in_transaction AS SIGNED)");
            match asked.fetch_one(connection).await {
                Ok(0i64) => Ok(Settlement::Ended),
                Ok(_) => Ok(Settlement::Wrote),
                // MySQL itself has no such variable.
                Err(error) if number(&error) == Some(UNKNOWN_VARIABLE) => Ok(Settlement::Wrote),
                Err(error) => Err(error),
            }
        })
    }

    fn refused_commit(error: &sqlx::Error) -> bool {
        // Deadlock, or certification: nothing else that answers a commit says for certain what became of it.
        matches!(number(error), Some(1213 | 1402 | 3101))
    }

    fn plan(connection: &mut MySqlConnection, statement: String) -> Answer<'_, Vec<String>> {
        Box::pin(async move {
            let text = AssertSqlSafe(format!("EXPLAIN FORMAT=JSON {statement}"));
            sqlx::query_scalar(text).fetch_all(connection).await
        })
    }

    fn lock<'c>(
        connection: &'c mut MySqlConnection,
        key: &'c str,
        patience: Patience,
    ) -> BoxFuture<'c, Result<bool>> {
        let seconds = match patience {
            Patience::None => 0.0,
            Patience::Limited(longest) => longest.as_secs_f64(),
        };
        Box::pin(async move {
            let taken = sqlx::query_scalar("SELECT CAST(GET_LOCK(?, ?) AS SIGNED)");
            let taken = taken.bind(name(key)).bind(seconds);
            let taken: Option<i64> = taken.fetch_one(connection).await?;
            taken.map(|taken| taken == 1).ok_or_else(|| {
                Error::new(ErrorKind::Unavailable, "the server could not give the lock")
            })
        })
    }

    fn unlock<'c>(
        connection: &'c mut MySqlConnection,
        key: &'c str,
    ) -> BoxFuture<'c, Result<bool>> {
        Box::pin(async move {
            let gave = sqlx::query_scalar("SELECT CAST(RELEASE_LOCK(?) AS SIGNED)").bind(name(key));
            let gave: Option<i64> = gave.fetch_one(connection).await?;
            Ok(gave == Some(1))
        })
    }

    insert_by_parameters!(MySqlConnection);

    fetch_by_cells!(MySqlConnection);

    fn value(row: &MySqlRow, at: usize, wire: Wire) -> Result<Value> {
        match wire {
            Wire::Plain(Kind::Int) => Ok(int_value(row.try_get(at)?)),
            Wire::Plain(Kind::Float) => {
                let number: Option<f64> = row.try_get(at)?;
                Ok(number.map_or(Value::Null, Value::Float))
            }
            Wire::Plain(Kind::Text) | Wire::Sum => {
                // Read as bytes, so that they are compared as such.
                let bytes: Option<Vec<u8>> = row.try_get(at)?;
                let text = bytes.map(String::from_utf8).transpose();
                let text = text.map_err(|error| Error::new(ErrorKind::Corrupt, error.to_string()));
                text_value(text?, wire)
            }
        }
    }

    fn reading(column: &str, kind: Kind) -> String {
        match kind {
            Kind::Int => format!("CAST({column} AS SIGNED)"),
            Kind::Float => format!("CAST({column} AS DOUBLE)"),
            Kind::Text => format!("CAST(CONVERT({column} USING utf8mb4) AS BINARY)"),
        }
    }

    fn compared(parameter: String, text: bool) -> String {
        if text {
            format!("CAST(CONVERT({parameter} USING utf8mb4) AS BINARY)")
        } else {
            parameter
        }
    }

    fn sum_text(column: &str) -> String {
        format!("CAST(CAST(SUM({column}) AS CHAR) AS BINARY)")
    }

    fn quote(name: &str) -> String {
        let parts = name.split('.');
        let quoted: Vec<String> = parts
            .map(|part| format!("`{}`", part.replace('`', "``")))
            .collect();
        quoted.join(".")
    }

    fn parameter(_: usize) -> String {
        "?".to_owned()
    }
}

/// Sets a variable of the session, where the server knows it.
async fn set(
    connection: &mut MySqlConnection,
    variable: &str,
    value: String,
) -> std::result::Result<(), sqlx::Error> {
    let text = AssertSqlSafe(format!("SET SESSION {variable} = {value}"));
    match sqlx::query(text).execute(connection).await {
        Err(error) if number(&error) != Some(UNKNOWN_VARIABLE) => Err(error),
        _ => Ok(()),
    }
}

fn number(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?;
    let error = error.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(error.number())
}

/// The name by which MySQL knows a lock: at most 64 characters.
fn name(key: &str) -> String {
    let number = xxhash_rust::xxh3::xxh3_64(key.as_bytes());
    format!("quorate:{number:016x}")
}

//! SQLite: one file, one writer at a time. It has no replicas, so every read rule is met by the file itself.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Row, SqlStr, Sqlite};

use super::{
    Answer, Backend, Observation, Patience, Settlement, Standing, insert_text, int_value,
    text_value, unsupported,
};
use crate::Result;
use crate::bulk::Cell;
use crate::pool::PoolOptions;
use crate::shard::{Kind, Value, Wire};
use crate::transaction::Isolation;

impl Backend for Sqlite {
    const REPLICAS: bool = false;
    const POSITIONS: bool = false;
    const ROW_LOCKS: bool = false;
    const NULLS_FIRST: bool = true;
    const PARAMETERS_MAX: usize = 32_766;

    fn connect_options(url: &str, options: &PoolOptions) -> Result<SqliteConnectOptions> {
        let connect: SqliteConnectOptions = url.parse()?;
        let connect = connect
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(options.patience);
        Ok(connect.log_slow_statements(log::LevelFilter::Warn, options.slow))
    }

    fn prepare<'c>(_: &'c mut SqliteConnection, _: &'c PoolOptions) -> Answer<'c, ()> {
        Box::pin(async { Ok(()) })
    }

    fn standing(connection: &mut SqliteConnection) -> Answer<'_, Standing> {
        Box::pin(async move {
            let read_only: i64 = sqlx::query_scalar("PRAGMA query_only")
                .fetch_one(connection)
                .await?;
            Ok(Standing {
                writable: read_only == 0,
                position: None,
            })
        })
    }

    fn observe(_: &mut SqliteConnection) -> Answer<'_, Observation> {
        Box::pin(async {
            Ok(Observation {
                replica: false,
                system: None,
                run: None,
                position: None,
            })
        })
    }

    fn run(connection: &mut SqliteConnection, statement: SqlStr) -> Answer<'_, u64> {
        Box::pin(async move {
            let done = sqlx::query(statement).execute(connection).await?;
            Ok(done.rows_affected())
        })
    }

    fn number(connection: &mut SqliteConnection, statement: SqlStr) -> Answer<'_, Option<i64>> {
        Box::pin(async move {
            sqlx::query_scalar(statement)
                .fetch_optional(connection)
                .await
        })
    }

    fn begin(_: Isolation) -> (Option<&'static str>, &'static str) {
        // The writer's lock at once: taken later it could fail for what another has written meanwhile.
        (None, "BEGIN IMMEDIATE")
    }

    fn synchronous(_: &mut SqliteConnection) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn settle(_: &mut SqliteConnection) -> Answer<'_, Settlement> {
        // The commit of what was rolled back is an error of its own.
        Box::pin(async { Ok(Settlement::Wrote) })
    }

    fn refused_commit(error: &sqlx::Error) -> bool {
        let code = error.as_database_error().and_then(|e| e.code());
        let number = code.and_then(|code| code.parse::<u32>().ok());
        // The primary code is the low byte: no transaction, busy, locked, a constraint.
        number.is_some_and(|number| matches!(number & 0xff, 1 | 5 | 6 | 19))
    }

    fn plan(connection: &mut SqliteConnection, statement: String) -> Answer<'_, Vec<String>> {
        Box::pin(async move {
            let text = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
            let rows = sqlx::query(text).fetch_all(connection).await?;
            rows.iter().map(|row| row.try_get("detail")).collect()
        })
    }

    fn lock<'c>(
        _: &'c mut SqliteConnection,
        _: &'c str,
        _: Patience,
    ) -> BoxFuture<'c, Result<bool>> {
        Box::pin(async { unsupported("advisory locks", <Self as sqlx::Database>::NAME) })
    }

    fn unlock<'c>(_: &'c mut SqliteConnection, _: &'c str) -> BoxFuture<'c, Result<bool>> {
        Box::pin(async { unsupported("advisory locks", <Self as sqlx::Database>::NAME) })
    }

    insert_by_parameters!(SqliteConnection);

    fetch_by_cells!(SqliteConnection);

    fn value(row: &SqliteRow, at: usize, wire: Wire) -> Result<Value> {
        match wire {
            Wire::Plain(Kind::Int) => Ok(int_value(row.try_get(at)?)),
            Wire::Plain(Kind::Float) => {
                let number: Option<f64> = row.try_get(at)?;
                Ok(number.map_or(Value::Null, Value::Float))
            }
            Wire::Plain(Kind::Text) | Wire::Sum => text_value(row.try_get(at)?, wire),
        }
    }

    fn reading(column: &str, kind: Kind) -> String {
        match kind {
            Kind::Int => format!("CAST({column} AS INTEGER)"),
            Kind::Float => format!("CAST({column} AS REAL)"),
            Kind::Text => format!("CAST({column} AS TEXT) COLLATE BINARY"),
        }
    }

    fn sum_text(column: &str) -> String {
        // A sum of whole numbers past 64 bits is an error here, so it is made of two halves.
        let read = Self::reading(column, Kind::Int);
        format!("SUM({read} >> 32) || ':' || SUM({read} & 4294967295)")
    }

    fn quote(name: &str) -> String {
        let parts = name.split('.');
        let quoted: Vec<String> = parts
            .map(|part| format!("\"{}\"", part.replace('"', "\"\"")))
            .collect();
        quoted.join(".")
    }

    fn parameter(_: usize) -> String {
        "?".to_owned()
    }
}

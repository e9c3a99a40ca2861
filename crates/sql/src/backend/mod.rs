//! What differs between the databases. One implementation each; the rest of the crate knows none of them.

/// Binds cells in their order.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! bind {
    ($query:expr, $cells:expr) => {{
        let mut query = $query;
        for cell in $cells {
            query = match cell {
                Cell::Null => query.bind(None::<i64>),
                Cell::Bool(value) => query.bind(value),
                Cell::Int(value) => query.bind(value),
                Cell::Float(value) => query.bind(value),
                Cell::Text(value) => query.bind(value),
                Cell::Bytes(value) => query.bind(value),
            };
        }
        query
    }};
}

/// [`Backend::fetch`], which needs the types of one database.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! fetch_by_cells {
    ($connection:ty) => {
        fn fetch(
            connection: &mut $connection,
            statement: String,
            cells: Vec<Cell>,
        ) -> BoxStream<'_, std::result::Result<Self::Row, sqlx::Error>> {
            bind!(sqlx::query(AssertSqlSafe(statement)), cells).fetch(connection)
        }
    };
}

/// [`Backend::insert`] where all cells are parameters of one statement.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
macro_rules! insert_by_parameters {
    ($connection:ty) => {
        fn insert<'c>(
            connection: &'c mut $connection,
            table: &'c str,
            columns: &'c [String],
            rows: &'c [Vec<Cell>],
        ) -> BoxFuture<'c, Result<u64>> {
            Box::pin(async move {
                let mut done = 0;
                for rows in rows.chunks(Self::PARAMETERS_MAX / columns.len().max(1)) {
                    let text = AssertSqlSafe(insert_text::<Self>(table, columns, rows.len()));
                    let query = sqlx::query(text).persistent(false);
                    let query = bind!(query, rows.iter().flatten());
                    done += query.execute(&mut *connection).await?.rows_affected();
                }
                Ok(done)
            })
        }
    };
}

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::{Connection, SqlStr};

use crate::bulk::Cell;
use crate::pool::PoolOptions;
use crate::shard::{Kind, Value, Wire};
use crate::token::Position;
use crate::transaction::Isolation;
use crate::{Error, ErrorKind, Result};

/// What sqlx answers.
pub(crate) type Answer<'c, T> = BoxFuture<'c, std::result::Result<T, sqlx::Error>>;

/// What a primary says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// It takes writes.
    pub writable: bool,
    /// The end of its log, where the database has positions.
    pub position: Option<Position>,
}

/// What a replica says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// It follows a primary.
    pub replica: bool,
    /// Its system, where the database has such.
    pub system: Option<u64>,
    /// Tells one run of a replica from another: when its recovery began, in microseconds. Within a run, what is
    /// visible only grows.
    pub run: Option<i64>,
    /// What it has replayed; `None` where the timeline can't be said.
    pub position: Option<Position>,
}

/// What became of a transaction so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// It can be committed, and has written or may have.
    Wrote,
    /// It can be committed, and has written nothing.
    ReadOnly,
    /// It is none any more: what came after its end was committed statement by statement.
    Ended,
}

/// How long to wait for an advisory lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Not at all.
    None,
    /// At most so long.
    Limited(Duration),
}

pub(crate) mod sealed {
    //! Nobody else implements [`Backend`](super::Backend).
    pub trait Sealed {}
    #[cfg(feature = "mysql")]
    impl Sealed for sqlx::MySql {}
    #[cfg(feature = "postgres")]
    impl Sealed for sqlx::Postgres {}
    #[cfg(feature = "sqlite")]
    impl Sealed for sqlx::Sqlite {}
}

/// A database that this crate works on: `sqlx::Postgres`, `sqlx::MySql` and `sqlx::Sqlite`, by feature. What
/// it asks for is for the crate's own use.
#[doc(hidden)]
pub trait Backend: sqlx::Database + sealed::Sealed {
    /// Whether replicas can be named.
    const REPLICAS: bool;
    /// Whether positions, and so tokens and proofs of freshness, exist.
    const POSITIONS: bool;
    /// Whether rows can be locked by `SELECT ... FOR UPDATE`.
    const ROW_LOCKS: bool;
    /// Whether rows without a value come before the others.
    const NULLS_FIRST: bool;
    /// Parameters that a statement may have.
    const PARAMETERS_MAX: usize;

    /// How to connect, with the settings that go with the connection.
    fn connect_options(
        url: &str,
        options: &PoolOptions,
    ) -> Result<<Self::Connection as Connection>::Options>;

    /// Settings that are made after connecting.
    fn prepare<'c>(
        connection: &'c mut Self::Connection,
        options: &'c PoolOptions,
    ) -> Answer<'c, ()>;

    /// Asks a primary.
    fn standing(connection: &mut Self::Connection) -> Answer<'_, Standing>;

    /// Asks a replica.
    fn observe(connection: &mut Self::Connection) -> Answer<'_, Observation>;

    /// Lets some time pass, less if the replica reaches the position before.
    fn pause<'c>(
        _: &'c mut Self::Connection,
        _: Option<Position>,
        longest: Duration,
    ) -> Answer<'c, ()> {
        Box::pin(async move {
            tokio::time::sleep(longest).await;
            Ok(())
        })
    }

    /// Runs one statement; answers how many rows it changed.
    fn run(connection: &mut Self::Connection, statement: SqlStr) -> Answer<'_, u64>;

    /// Reads one whole number.
    fn number(connection: &mut Self::Connection, statement: SqlStr) -> Answer<'_, Option<i64>>;

    /// A statement to run before `BEGIN`, and the one that begins.
    fn begin(isolation: Isolation) -> (Option<&'static str>, &'static str);

    /// Has commits wait until replicas have applied them. Run within a transaction.
    fn synchronous(connection: &mut Self::Connection) -> Answer<'_, ()>;

    /// Looks whether a transaction can be committed, and whether it has written: a database may answer to the
    /// `COMMIT` of a failed one as if all were well.
    fn settle(connection: &mut Self::Connection) -> Answer<'_, Settlement>;

    /// Whether an error that answered `COMMIT` says for certain that nothing was committed.
    fn refused_commit(error: &sqlx::Error) -> bool;

    /// The plan of a statement, by lines, without running it.
    fn plan(connection: &mut Self::Connection, statement: String) -> Answer<'_, Vec<String>>;

    /// Takes an advisory lock for the session; false if another holds it for longer than that.
    fn lock<'c>(
        connection: &'c mut Self::Connection,
        key: &'c str,
        patience: Patience,
    ) -> BoxFuture<'c, Result<bool>>;

    /// Gives it back; false if this session did not hold it.
    fn unlock<'c>(
        connection: &'c mut Self::Connection,
        key: &'c str,
    ) -> BoxFuture<'c, Result<bool>>;

    /// Inserts rows by what is fastest.
    fn insert<'c>(
        connection: &'c mut Self::Connection,
        table: &'c str,
        columns: &'c [String],
        rows: &'c [Vec<Cell>],
    ) -> BoxFuture<'c, Result<u64>>;

    /// Reads rows as they come.
    fn fetch(
        connection: &mut Self::Connection,
        statement: String,
        cells: Vec<Cell>,
    ) -> BoxStream<'_, std::result::Result<Self::Row, sqlx::Error>>;

    /// Reads a column of a row.
    fn value(row: &Self::Row, at: usize, wire: Wire) -> Result<Value>;

    /// A column, to be read as a kind; its order is that of [`Value`].
    fn reading(column: &str, kind: Kind) -> String;

    /// A column, to be compared and ordered by: as it is where its order is the same.
    fn comparing(column: &str, kind: Kind) -> String {
        match kind {
            Kind::Text => Self::reading(column, kind),
            Kind::Int | Kind::Float => column.to_owned(),
        }
    }

    /// A parameter that it is compared to.
    fn compared(parameter: String, _text: bool) -> String {
        parameter
    }

    /// The exact sum of a column of whole numbers, as text.
    fn sum_text(column: &str) -> String;

    /// A name, quoted.
    fn quote(name: &str) -> String;

    /// The parameter of that number, from 1.
    fn parameter(number: usize) -> String;
}

/// The text of a column that has one.
#[allow(dead_code, reason = "without any feature there is no database")]
fn text_value(text: Option<String>, wire: Wire) -> Result<Value> {
    match text {
        None => Ok(Value::Null),
        Some(text) if wire == Wire::Sum => crate::shard::parse_sum(&text),
        Some(text) => Ok(Value::Text(text)),
    }
}

#[allow(dead_code, reason = "without any feature there is no database")]
fn int_value(number: Option<i64>) -> Value {
    number.map_or(Value::Null, |number| Value::Int(number.into()))
}

#[allow(dead_code, reason = "not every feature has all")]
pub(crate) fn unsupported<T>(what: &str, database: &str) -> Result<T> {
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("{database} has no {what}"),
    ))
}

/// `INSERT INTO t (a, b) VALUES (?, ?), (?, ?)`
#[allow(dead_code, reason = "PostgreSQL copies")]
pub(crate) fn insert_text<DB: Backend>(table: &str, columns: &[String], rows: usize) -> String {
    let names: Vec<String> = columns.iter().map(|name| DB::quote(name)).collect();
    let row = |row: usize| {
        let first = row * columns.len() + 1;
        let all: Vec<String> = (first..first + columns.len()).map(DB::parameter).collect();
        format!("({})", all.join(", "))
    };
    let values: Vec<String> = (0..rows).map(row).collect();
    format!(
        "INSERT INTO {} ({}) VALUES {}",
        DB::quote(table),
        names.join(", "),
        values.join(", ")
    )
}

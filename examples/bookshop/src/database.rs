//! A service's database: an SQLite file, or a schema of PostgreSQL. The services are written once for both.
//!
//! [`Database`] opens it and makes all that the crates keep in it; [`Connection`] runs the few kinds of statements that
//! the services need, in SQL that both databases understand.

use std::future::Future;
use std::ops::DerefMut;
use std::sync::Arc;

use anyhow::Result;
use quorate_outbox::inbox::Ledger;
use quorate_outbox::store::Store;
use quorate_saga::journal::Journal;
use quorate_saga::participant::Fences;
use sqlx::FromRow;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::Settings;

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;

#[cfg(feature = "postgres")]
pub use postgres::Postgres;
pub use sqlite::Sqlite;

/// A service's database.
pub trait Database: Clone + Send + Sync + 'static {
    /// What handlers and services get, inside a transaction.
    type Connection: Connection;
    /// The records of consumers.
    type Inbox: Ledger<Connection = Self::Connection>;
    /// The fences of saga participants, with the outbox beside them.
    type Fences: Fences<Connection = Self::Connection>;

    /// Opens the database of a service. Makes it, the service's tables and those of the crates if they are not there.
    fn open(
        settings: &Settings,
        service: &'static str,
        tables: &'static str,
    ) -> impl Future<Output = Result<Self>> + Send;

    /// For the relay.
    fn outbox(&self) -> Arc<dyn Store>;

    /// For the consumers.
    fn inbox(&self) -> Self::Inbox;

    /// For participants; they also send messages by it.
    fn fences(&self) -> Self::Fences;

    /// For the coordinator.
    fn journal(&self) -> impl Future<Output = Result<Arc<dyn Journal>>> + Send;

    /// A connection outside of consumers' transactions; each statement is a transaction.
    fn connection(
        &self,
    ) -> impl Future<Output = Result<impl DerefMut<Target = Self::Connection> + Send>> + Send;
}

/// A value of a statement.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// `TEXT`.
    Text(&'a str),
    /// `BIGINT`.
    Number(i64),
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Value::Text(text)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(text)
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Value::Number(number)
    }
}

/// What a row can be read as: tuples of `String` and `i64`.
#[cfg(feature = "postgres")]
pub trait Row:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin
{
}
#[cfg(feature = "postgres")]
impl<R> Row for R where
    R: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin
{
}
/// What a row can be read as: tuples of `String` and `i64`.
#[cfg(not(feature = "postgres"))]
pub trait Row: for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}
#[cfg(not(feature = "postgres"))]
impl<R> Row for R where R: for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}

/// A connection to either database.
pub trait Connection: Send + 'static {
    /// Runs a statement; answers how many rows it has changed.
    fn run(
        &mut self,
        text: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = sqlx::Result<u64>> + Send;

    /// Runs a statement; answers its rows.
    fn rows<R: Row>(
        &mut self,
        text: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = sqlx::Result<Vec<R>>> + Send;

    /// Runs a statement; answers its row, if it has one.
    fn row<R: Row>(
        &mut self,
        text: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = sqlx::Result<Option<R>>> + Send {
        async move { Ok(self.rows(text, values).await?.pop()) }
    }
}

macro_rules! connection {
    ($connection:ty) => {
        impl Connection for $connection {
            async fn run(&mut self, text: &'static str, values: &[Value<'_>]) -> sqlx::Result<u64> {
                let mut query = sqlx::query(text);
                for value in values {
                    query = match *value {
                        Value::Text(text) => query.bind(text.to_owned()),
                        Value::Number(number) => query.bind(number),
                    };
                }
                Ok(query.execute(self).await?.rows_affected())
            }

            async fn rows<R: Row>(
                &mut self,
                text: &'static str,
                values: &[Value<'_>],
            ) -> sqlx::Result<Vec<R>> {
                let mut query = sqlx::query_as(text);
                for value in values {
                    query = match *value {
                        Value::Text(text) => query.bind(text.to_owned()),
                        Value::Number(number) => query.bind(number),
                    };
                }
                query.fetch_all(self).await
            }
        }
    };
}

connection!(SqliteConnection);
#[cfg(feature = "postgres")]
connection!(sqlx::postgres::PgConnection);

//! AT in an SQLite database, by sqlx.
//!
//! SQLite has one writer at a time, and a branch begins as one, so changes, images and locks of a branch are of
//! one moment. Locks are looked at when it commits: until then nobody else writes.
//!
//! Open your pool with WAL and a busy time-out. Keep a branch short: all others wait for it.

mod catalog;
mod guard;
mod home;
mod resource;
mod schema;
mod transaction;
mod undo;

pub use home::SqliteHome;
pub use schema::SQLITE_AT_SCHEMA_VERSION;
pub use transaction::SqliteAtTransaction;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_outbox::store::BoxFuture;
use sqlx::{SqliteConnection, SqlitePool};

use super::global::check_name;
use super::image::Image;
use super::{Global, Patience};
use crate::{Error, ErrorKind, Result};
use catalog::Table;

/// An SQLite database in which branches run. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct SqliteAt {
    pool: SqlitePool,
    name: String,
    tables: Arc<Mutex<HashMap<String, Arc<Table>>>>,
}

impl SqliteAt {
    /// Makes the tables unless they are there, and opens the resource under a name.
    ///
    /// # Errors
    /// `Invalid` name; `Schema` when the tables are newer than this program or damaged; `Unavailable`.
    pub async fn migrate(pool: SqlitePool, name: impl Into<String>) -> Result<SqliteAt> {
        schema::migrate(&pool, &schema::RESOURCE).await?;
        SqliteAt::open(pool, name).await
    }

    /// Opens a resource whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete.
    pub async fn open(pool: SqlitePool, name: impl Into<String>) -> Result<SqliteAt> {
        let name = name.into();
        check_name("resource", &name)?;
        schema::check(&pool, &schema::RESOURCE).await?;
        Ok(SqliteAt {
            pool,
            name,
            tables: Arc::default(),
        })
    }

    /// The pool of its connections.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Begins a branch. Its name is unique within the global transaction: the name of the step, say.
    ///
    /// # Errors
    /// `Invalid` name; `Fenced` past the deadline; `Unavailable`.
    pub async fn begin(&self, global: &Global, branch: &str) -> Result<SqliteAtTransaction> {
        check_name("branch", branch)?;
        super::check_deadline(global)?;
        let tx = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        Ok(SqliteAtTransaction::new(
            self.clone(),
            tx,
            global.clone(),
            branch.to_owned(),
        ))
    }

    /// Runs a branch and commits it. Where it meets the lock of a younger global transaction, it is rolled back,
    /// waits, and runs again, for so long at most; where it meets an older one's, it gives way at once.
    ///
    /// # Errors
    /// What `work` answers, and as [`SqliteAtTransaction::commit`]. After `Locked` roll the global transaction
    /// back, and begin it again by [`Global::again`].
    pub async fn run<T, F>(
        &self,
        global: &Global,
        branch: &str,
        patience: Duration,
        mut work: F,
    ) -> Result<T>
    where
        F: for<'t> FnMut(&'t mut SqliteAtTransaction) -> BoxFuture<'t, Result<T>> + Send,
    {
        let mut patience = Patience::of(patience);
        loop {
            let mut tx = self.begin(global, branch).await?;
            let done = match work(&mut tx).await {
                Ok(value) => tx.commit().await.map(|()| value),
                Err(error) => {
                    tx.rollback().await?;
                    Err(error)
                }
            };
            match done {
                Err(error) if patience.bears(&error).await => {}
                done => return done,
            }
        }
    }

    async fn table(&self, connection: &mut SqliteConnection, name: &str) -> Result<Arc<Table>> {
        if let Some(table) = self.tables.lock().get(name) {
            return Ok(table.clone());
        }
        let table = Arc::new(Table::read(connection, name).await?);
        self.tables.lock().insert(name.to_owned(), table.clone());
        Ok(table)
    }

    /// Forgets what the catalog said: call it after a table was changed.
    pub fn refresh(&self) {
        self.tables.lock().clear();
    }
}

/// What the database says, in terms of what can be done about it.
fn failed(error: sqlx::Error) -> Error {
    use sqlx::error::ErrorKind as Of;
    let from = error.as_database_error();
    let is_constraint = from.is_some_and(|from| !matches!(from.kind(), Of::Other));
    let is_guard = from.is_some_and(|from| guard::owner_of(from.message()).is_some());
    let kind = if is_guard {
        ErrorKind::Locked
    } else {
        ErrorKind::Conflict
    };
    if is_constraint || is_guard {
        return Error::new(kind, format!("database: {error}"));
    }
    Error::from(error)
}

fn image_of(text: &str) -> Result<Image> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(
            ErrorKind::Corrupt,
            format!("an image of a row can't be read: {error}"),
        )
    })
}

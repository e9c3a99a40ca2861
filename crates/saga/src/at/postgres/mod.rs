//! AT in a PostgreSQL database (13 or newer), by sqlx.
//!
//! # Why no update is lost
//!
//! A statement that changes rows locks them, reads their images of before, changes them, and writes locks and
//! images, all in one. From then until its local transaction ends nobody else can change those rows. If the row
//! was another global transaction's, its lock is still there, since it goes in the transaction that undoes the
//! row, or after the decision to keep it: then this one is told `Locked`, and its local transaction is rolled
//! back before it waits, so that it never holds a row that another needs in order to end.
//!
//! # Why images are exact
//!
//! A value is kept as what its type's output function writes, under fixed settings, and is read again by the
//! type's input function. That is what a dump of the database relies on.
//!
//! # Why a late branch can do no harm
//!
//! A branch registers in the row of its global transaction in `quorate_at_work`, in its own transaction. The end
//! of the global transaction writes the same row first. Whoever comes second waits for the first: an end then
//! sees the branch, or the branch sees the end, and is refused.

mod catalog;
mod guard;
mod home;
mod resource;
mod schema;
mod transaction;
mod undo;

pub use home::PgHome;
pub use schema::PG_AT_SCHEMA_VERSION;
pub use transaction::PgAtTransaction;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_outbox::store::BoxFuture;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use super::global::check_name;
use super::image::Image;
use super::{Global, Patience};
use crate::{Error, ErrorKind, Result};
use catalog::Table;

/// A PostgreSQL database in which branches run. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct PgAt {
    pool: PgPool,
    name: String,
    tables: Arc<Mutex<HashMap<String, Arc<Table>>>>,
}

impl PgAt {
    /// Makes the tables unless they are there, and opens the resource under a name.
    ///
    /// # Errors
    /// `Invalid` name; `Schema` when the tables are newer than this program or damaged; `Unavailable`.
    pub async fn migrate(pool: PgPool, name: impl Into<String>) -> Result<PgAt> {
        schema::migrate(&pool, &schema::RESOURCE).await?;
        PgAt::open(pool, name).await
    }

    /// Opens a resource whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete.
    pub async fn open(pool: PgPool, name: impl Into<String>) -> Result<PgAt> {
        let name = name.into();
        check_name("resource", &name)?;
        schema::check(&pool, &schema::RESOURCE).await?;
        Ok(PgAt {
            pool,
            name,
            tables: Arc::default(),
        })
    }

    /// The pool of its connections.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Begins a branch. Its name is unique within the global transaction: the name of the step, say.
    ///
    /// # Errors
    /// `Invalid` name; `Fenced` past the deadline; `Unavailable`.
    pub async fn begin(&self, global: &Global, branch: &str) -> Result<PgAtTransaction> {
        check_name("branch", branch)?;
        super::check_deadline(global)?;
        let begin = begin_of(global.gid());
        let tx = self
            .pool
            .begin_with(AssertSqlSafe(begin))
            .await
            .map_err(failed)?;
        Ok(PgAtTransaction::new(
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
    /// What `work` answers, and as [`PgAtTransaction::commit`]. After `Locked` roll the global transaction back,
    /// and begin it again by [`Global::again`].
    pub async fn run<T, F>(
        &self,
        global: &Global,
        branch: &str,
        patience: Duration,
        mut work: F,
    ) -> Result<T>
    where
        F: for<'t> FnMut(&'t mut PgAtTransaction) -> BoxFuture<'t, Result<T>> + Send,
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

    async fn table(&self, connection: &mut PgConnection, name: &str) -> Result<Arc<Table>> {
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

/// How a transaction begins that the guard lets pass. Names have no quotes.
fn begin_of(gid: &str) -> String {
    format!(
        "BEGIN; SELECT set_config(name, value, true) FROM (VALUES {}, ('quorate.gid', '{gid}')) v (name, value)
         WHERE current_setting(name, true) IS DISTINCT FROM value",
        transaction::EXACT
    )
}

/// What the database says, in terms of what can be done about it.
fn failed(error: sqlx::Error) -> Error {
    let kind = error.as_database_error().and_then(|from| {
        let code = from.code()?;
        match code.as_ref() {
            guard::CODE => Some(ErrorKind::Locked),
            // A table changed since its catalog was read, or a value does not fit its column.
            _ if code.starts_with("22") => Some(ErrorKind::Invalid),
            _ if code.starts_with("23") => Some(ErrorKind::Conflict),
            _ => None,
        }
    });
    match kind {
        Some(kind) => Error::new(kind, format!("database: {error}")),
        None => Error::from(error),
    }
}

/// What a failed commit says. What the database has refused is not written.
fn commit_failed(error: sqlx::Error) -> Error {
    let is_refused = error.as_database_error().is_some();
    let made = failed(error);
    if is_refused {
        made
    } else {
        made.outcome_unknown()
    }
}

/// The same for a statement that the guard may have refused: its detail names the owner.
fn guarded(global: &Global, error: sqlx::Error) -> Error {
    let owner = error.as_database_error().and_then(|from| {
        let from = from.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
        let (owner, began) = from
            .detail()
            .filter(|_| from.code() == guard::CODE)?
            .rsplit_once(';')?;
        Some((
            from.message().to_owned(),
            owner.to_owned(),
            began.parse::<i64>().ok()?,
        ))
    });
    match owner {
        Some((row, owner, began_ms)) => super::locked(global, &row, &owner, began_ms),
        None => failed(error),
    }
}

fn locked(global: &Global, table: &str, key: &str, owner: &str, owner_began_ms: i64) -> Error {
    super::locked(global, &format!("{table} {key}"), owner, owner_began_ms)
}

fn image_of(text: &str) -> Result<Image> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(
            ErrorKind::Corrupt,
            format!("an image of a row can't be read: {error}"),
        )
    })
}

/// Bytes as PostgreSQL reads them.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

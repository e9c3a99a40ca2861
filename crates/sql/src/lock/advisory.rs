//! Advisory locks, held by a connection of their own.

use std::future::Future;
use std::panic::Location;

use crate::backend::{Backend, Patience};
use crate::database::Database;
use crate::pool::Lease;
use crate::{Error, ErrorKind, Result};

/// A name that one session of the primary holds. It keeps a connection until it is released.
///
/// Dropped without [`AdvisoryLock::release`], its connection is closed, with which the database releases it.
/// If the connection breaks, the database has released it without a word: look by
/// [`AdvisoryLock::is_held`] before what matters. It is no fence: a holder that slept goes on believing.
pub struct AdvisoryLock<DB: Backend> {
    lease: Lease<DB>,
    key: String,
}

impl<DB: Backend> Database<DB> {
    /// Takes an advisory lock on the primary.
    ///
    /// Errors: `Locked` if another holds it for longer than the patience; `Unsupported` on SQLite.
    #[track_caller]
    pub fn lock(
        &self,
        key: impl Into<String>,
        patience: Patience,
    ) -> impl Future<Output = Result<AdvisoryLock<DB>>> + Send + '_ {
        let at = Location::caller();
        let key = key.into();
        async move {
            let mut lease = self.inner.on_primary(at).await?;
            // If this future is dropped the server may still give the lock.
            lease.close_on_drop();
            if DB::lock(&mut lease, &key, patience).await? {
                return Ok(AdvisoryLock { lease, key });
            }
            let text = format!("another session holds the lock {key:?}");
            Err(Error::new(ErrorKind::Locked, text))
        }
    }
}

impl<DB: Backend> AdvisoryLock<DB> {
    /// Whether it is held still: whether its connection answers.
    pub async fn is_held(&mut self) -> bool {
        let statement = sqlx::SqlSafeStr::into_sql_str("SELECT 1");
        DB::run(&mut self.lease, statement).await.is_ok()
    }

    /// The connection that holds it, to work on while it is held.
    pub fn connection(&mut self) -> &mut DB::Connection {
        &mut self.lease
    }

    /// Releases it.
    ///
    /// Errors: `Unavailable` if it had been lost before: what was done under it may have been done beside
    /// another.
    pub async fn release(mut self) -> Result<()> {
        if DB::unlock(&mut self.lease, &self.key).await? {
            return Ok(());
        }
        let text = format!("the lock {:?} had been lost", self.key);
        Err(Error::new(ErrorKind::Unavailable, text))
    }
}

impl<DB: Backend> std::fmt::Debug for AdvisoryLock<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdvisoryLock({:?})", self.key)
    }
}

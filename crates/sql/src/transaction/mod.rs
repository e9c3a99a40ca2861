//! Transactions of a session: run again after conflicts, never after a commit of unknown outcome.

mod backoff;
mod run;

pub use run::until_no_conflict;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::time::{Duration, Instant};

use sqlx::SqlSafeStr;
use sqlx_core::transaction::TransactionManager;

use crate::backend::{Backend, Settlement, unsupported};
use crate::pool::Lease;
use crate::session::Session;
use crate::token::Token;
use crate::{Error, ErrorKind, Result};

pub(crate) use backoff::Backoff;

/// How far transactions are kept apart. SQLite's are serializable, whatever is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see one snapshot.
    RepeatableRead,
    /// As if one ran after the other.
    #[default]
    Serializable,
}

/// How a transaction is run.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Work {
    /// How far it is kept apart from others.
    pub isolation: Isolation,
    /// How often it is tried at most. At least 1.
    pub tries_max: u32,
    /// No new try is begun after this.
    pub budget: Duration,
    /// The wait before the second try; it doubles with each, and each is drawn between half and the whole.
    pub wait_min: Duration,
    /// The longest wait.
    pub wait_max: Duration,
    /// The commit is acknowledged when every replica shows it, so that [`Read::Synchronous`] sees it in any
    /// session; on PostgreSQL with `synchronous_commit = remote_apply`. A replica that is gone makes it
    /// [`ErrorKind::Unsynchronized`].
    ///
    /// [`Read::Synchronous`]: crate::Read::Synchronous
    pub synchronous: bool,
}

impl Default for Work {
    fn default() -> Self {
        Work {
            isolation: Isolation::Serializable,
            tries_max: 10,
            budget: Duration::from_secs(10),
            wait_min: Duration::from_millis(5),
            wait_max: Duration::from_millis(500),
            synchronous: false,
        }
    }
}

impl Work {
    /// Acknowledged when every replica shows it.
    pub fn synchronous(mut self) -> Work {
        self.synchronous = true;
        self
    }

    /// At this isolation.
    pub fn isolation(mut self, isolation: Isolation) -> Work {
        self.isolation = isolation;
        self
    }
}

/// A transaction on the primary. Use it as sqlx's: `&mut *tx` is an executor, and beginning another within
/// makes a savepoint. Dropped without [`Transaction::commit`] it is rolled back.
pub struct Transaction<'s, DB: Backend> {
    session: &'s Session<DB>,
    lease: Lease<DB>,
    synchronous: bool,
    open: bool,
}

impl<'s, DB: Backend> Transaction<'s, DB> {
    pub(crate) async fn begin(
        session: &'s Session<DB>,
        work: &Work,
        at: &'static Location<'static>,
    ) -> Result<Transaction<'s, DB>> {
        if work.synchronous && !DB::POSITIONS && !session.inner.members.is_empty() {
            return unsupported(
                "proof of what a replica shows: no synchronous writes",
                DB::NAME,
            );
        }
        let lease = session.inner.on_primary(at).await?;
        let mut tx = Transaction {
            session,
            lease,
            synchronous: work.synchronous,
            open: true,
        };
        let (before, begin) = DB::begin(work.isolation);
        if let Some(before) = before {
            DB::run(&mut tx.lease, before.into_sql_str()).await?;
        }
        DB::TransactionManager::begin(&mut tx.lease, Some(begin.into_sql_str())).await?;
        if work.synchronous {
            DB::synchronous(&mut tx.lease).await?;
        }
        Ok(tx)
    }

    /// Commits. Answers the session's token; `None` where the database has none.
    ///
    /// Errors: `OutcomeUnknown` if no answer came, also after the session's `commit_max`; `Unsynchronized`;
    /// `Conflict` and others, after which nothing was committed.
    pub async fn commit(mut self) -> Result<Option<Token>> {
        let wrote = self.settle().await?;
        self.send().await?;
        if !wrote || !DB::POSITIONS {
            let mut past = self.session.past.lock();
            past.doubts -= 1;
            return Ok(past.token);
        }
        // Without its position the session stays in doubt, and reads on the primary: committed it is.
        let asking = DB::standing(&mut self.lease);
        let standing = tokio::time::timeout(self.session.options.commit_max, asking).await;
        let position = standing.ok().and_then(|standing| standing.ok()?.position);
        let token = position.map(|position| {
            let mut past = self.session.past.lock();
            past.doubts -= 1;
            let token = Token::raise(past.token, Token::new(position));
            past.token = Some(token);
            token
        });
        if self.synchronous {
            let Some(position) = position else {
                return Err(unsynchronized("its position was not learned"));
            };
            let everywhere = self.session.everywhere(position).await;
            everywhere.map_err(|left| unsynchronized(&left))?;
        }
        Ok(token.or_else(|| self.session.token()))
    }

    /// Whether it has written; an error if it can't be committed.
    async fn settle(&mut self) -> Result<bool> {
        let limit = self.session.options.commit_max;
        let asking = DB::settle(&mut self.lease);
        let Ok(settled) = tokio::time::timeout(limit, asking).await else {
            // The commit has not been sent: dropped, the transaction is rolled back with its session.
            let text = format!("the database has not answered in {limit:?}, before the commit");
            return Err(Error::new(ErrorKind::Unavailable, text));
        };
        match settled {
            Ok(Settlement::Ended) => {
                self.session.past.lock().doubts += 1;
                Err(self.unknown(
                "the transaction had ended before its commit, by an error that its code dropped or by a \
                 statement that commits; what came after was committed one by one",
            ))
            }
            Ok(settlement) => Ok(settlement == Settlement::Wrote),
            Err(error) => {
                let error = Error::from(error).within("the transaction can't be committed");
                let _ = self.undo().await;
                Err(error)
            }
        }
    }

    /// Sends the commit. From before that until the position is known, the session is in doubt: this future
    /// may be dropped at any await.
    async fn send(&mut self) -> Result<()> {
        self.session.past.lock().doubts += 1;
        let limit = self.session.options.commit_max;
        let commit = DB::TransactionManager::commit(&mut self.lease);
        match tokio::time::timeout(limit, commit).await {
            Ok(Ok(())) => {
                self.open = false;
                self.session.past.lock().wrote = Some(Instant::now());
                Ok(())
            }
            Ok(Err(error)) if DB::refused_commit(&error) => {
                self.session.past.lock().doubts -= 1;
                let _ = self.undo().await;
                Err(error.into())
            }
            Ok(Err(error)) => Err(self.unknown(&unanswered(&error.to_string()))),
            Err(_) => Err(self.unknown(&unanswered(&format!("none in {limit:?}")))),
        }
    }

    fn unknown(&mut self, why: &str) -> Error {
        self.open = false;
        self.lease.close_on_drop();
        self.session.past.lock().wrote = Some(Instant::now());
        Error::new(ErrorKind::OutcomeUnknown, why)
    }

    /// Rolls back. An error means that the connection is gone, and the transaction with it.
    pub async fn rollback(mut self) -> Result<()> {
        self.undo().await
    }

    async fn undo(&mut self) -> Result<()> {
        self.open = false;
        let limit = self.session.options.commit_max;
        let rolling = DB::TransactionManager::rollback(&mut self.lease);
        let rolled = tokio::time::timeout(limit, rolling).await;
        if let Ok(Ok(())) = rolled {
            return Ok(());
        }
        self.lease.close_on_drop();
        let text = format!("a rollback had no answer in {limit:?}");
        rolled.map_err(|_| Error::new(ErrorKind::Unavailable, text))??;
        Ok(())
    }
}

fn unanswered(why: &str) -> String {
    format!("the answer to a commit was lost: {why}")
}

fn unsynchronized(why: &str) -> Error {
    let text = format!("committed, but not shown to be on every replica: {why}");
    Error::new(ErrorKind::Unsynchronized, text)
}

impl<DB: Backend> Deref for Transaction<'_, DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        &self.lease
    }
}

impl<DB: Backend> DerefMut for Transaction<'_, DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.lease
    }
}

impl<DB: Backend> fmt::Debug for Transaction<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

impl<DB: Backend> Drop for Transaction<'_, DB> {
    fn drop(&mut self) {
        if self.open {
            // A statement may be under way, or a commit of which nobody hears: the session's end ends both.
            DB::TransactionManager::start_rollback(&mut self.lease);
            self.lease.close_on_drop();
        }
    }
}

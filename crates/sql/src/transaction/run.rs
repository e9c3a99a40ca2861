//! Running a closure in transactions until one commits.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::panic::Location;
use std::time::Instant;

use futures_util::future::BoxFuture;

use super::{Backoff, Transaction, Work};
use crate::backend::Backend;
use crate::route::View;
use crate::session::Session;
use crate::token::Position;
use crate::{Error, ErrorKind, Result};

impl<DB: Backend> Session<DB> {
    /// Begins a transaction on the primary, which the caller commits. What it gets wrong it has to run again
    /// itself; [`Session::transaction`] does.
    #[track_caller]
    pub fn begin(
        &self,
        work: Work,
    ) -> impl Future<Output = Result<Transaction<'_, DB>>> + Send + '_ {
        let at = Location::caller();
        async move { Transaction::begin(self, &work, at).await }
    }

    /// Runs a closure in a transaction on the primary and commits. After a conflict, or when the connection
    /// broke before the commit was sent, all of it is run again, after a wait, until its tries or its
    /// budget are used up. An error of the closure's own rolls back and is answered.
    ///
    /// REQUIRES: the closure has no effect outside its transaction that must not happen twice.
    ///
    /// Errors: `OutcomeUnknown` when the answer to a commit was lost: it is not run again. `Conflict` and the
    /// like after the last try, with their number.
    #[track_caller]
    pub fn transaction<'s, T, F>(
        &'s self,
        work: Work,
        mut closure: F,
    ) -> impl Future<Output = Result<T>> + Send + 's
    where
        T: Send,
        F: for<'t> FnMut(&'t mut Transaction<'s, DB>) -> BoxFuture<'t, Result<T>> + Send + 's,
    {
        let at = Location::caller();
        async move {
            let begun = Instant::now();
            let mut waits = Backoff::new(&work);
            let mut tries = 0;
            loop {
                tries += 1;
                let error = match self.once(&work, at, &mut closure).await {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                };
                let again = matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable);
                if !again {
                    return Err(error);
                }
                let wait = waits.next(RandomState::new().hash_one(tries));
                if tries >= work.tries_max || begun.elapsed() + wait > work.budget {
                    let spent = begun.elapsed();
                    return Err(
                        error.within(format!("given up after {tries} tries in {spent:.1?}"))
                    );
                }
                tracing::debug!(%error, tries, ?wait, "a transaction is run again");
                tokio::time::sleep(wait).await;
            }
        }
    }

    async fn once<'s, T, F>(
        &'s self,
        work: &Work,
        at: &'static Location<'static>,
        closure: &mut F,
    ) -> Result<T>
    where
        F: for<'t> FnMut(&'t mut Transaction<'s, DB>) -> BoxFuture<'t, Result<T>>,
    {
        let mut tx = Transaction::begin(self, work, at).await?;
        match closure(&mut tx).await {
            Ok(value) => tx.commit().await.map(|_| value),
            Err(error) => {
                // If it fails the connection is gone, and the transaction with it.
                let _ = tx.rollback().await;
                Err(error)
            }
        }
    }

    /// Waits until every replica shows a position; says which did not in time.
    pub(crate) async fn everywhere(&self, position: Position) -> std::result::Result<(), String> {
        let members = &self.inner.members;
        let mut changes = self.inner.changes();
        let _wanted: Vec<_> = members.iter().map(|m| m.state.want(position)).collect();
        let shows = |view: &View| view.position.is_some_and(|p| p.reaches(&position));
        let all = async {
            loop {
                changes.mark_unchanged();
                if members.iter().all(|m| shows(&m.state.view(0)))
                    || changes.changed().await.is_err()
                {
                    return;
                }
            }
        };
        if tokio::time::timeout(self.options.patience, all)
            .await
            .is_ok()
        {
            return Ok(());
        }
        let left = members.iter().filter(|m| !shows(&m.state.view(0)));
        let names: Vec<&str> = left.map(|m| m.lane.name()).collect();
        Err(format!("not by {}", names.join(", ")))
    }
}

/// Runs a closure again while it answers [`ErrorKind::Conflict`], at most so often: for optimistic locking,
/// where it reads, changes and writes if nobody else has.
pub async fn until_no_conflict<T, F, Fut>(tries_max: u32, mut closure: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut waits = Backoff::new(&Work::default());
    let mut tries = 0;
    loop {
        tries += 1;
        match closure().await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                if tries >= tries_max {
                    return Err(Error::within(
                        error,
                        format!("given up after {tries} tries"),
                    ));
                }
            }
            done => return done,
        }
        tokio::time::sleep(waits.next(RandomState::new().hash_one(tries))).await;
    }
}

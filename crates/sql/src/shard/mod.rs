//! Tables spread over several databases: which one has a key, and questions to all of them.
//!
//! The [`Router`] is a pure core: keys in, shard numbers out. [`Shards`] joins it with the databases.
//! [`Shards::scatter`] asks all of them at once, and [`merge`] puts ordered answers together with one row of
//! each in hand, so that a million rows need no memory but what is read ahead.
//!
//! [`Shards::aggregate`] has each shard add up its own rows, and [`Shards::page`] reads all of them by pages. On
//! PostgreSQL `Buckets` is for tables whose shards change while they are used.
//!
//! It parses no statement: who asks says the key. A transaction stays within one shard.

mod aggregate;
#[cfg(feature = "postgres")]
mod buckets;
mod merge;
mod page;
mod router;
mod value;

use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::backend::Backend;
use crate::database::Database;
use crate::pool::Lease;
use crate::route::Read;
use crate::session::SessionOptions;
use crate::{Error, ErrorKind, Result};

pub(crate) use aggregate::Wire;
pub use aggregate::{Aggregate, Group};
#[cfg(all(test, feature = "postgres"))]
pub(crate) use buckets::{Begun, Try};
#[cfg(feature = "postgres")]
pub use buckets::{Buckets, KeyChange, Move, MoveStatus, Step};
pub use merge::merge;
pub use page::{Direction, Listing, Page, PageToken};
pub use router::{Key, Router};
pub(crate) use value::parse_sum;
pub use value::{Kind, Value};

/// Databases that share tables among them by key.
pub struct Shards<DB: Backend> {
    router: Router,
    databases: Vec<Database<DB>>,
}

impl<DB: Backend> Shards<DB> {
    /// Databases in the order of their numbers.
    ///
    /// Errors: `Invalid` if the router names a shard that has no database.
    pub fn new(router: Router, databases: Vec<Database<DB>>) -> Result<Shards<DB>> {
        let named = router.shards();
        if named <= databases.len() {
            return Ok(Shards { router, databases });
        }
        let text = format!(
            "the router names shard {}, and there are {} databases",
            named - 1,
            databases.len()
        );
        Err(Error::new(ErrorKind::Invalid, text))
    }

    /// The router.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The database that has a key.
    ///
    /// Errors: `Invalid` for a key that the router can't place.
    pub fn for_key(&self, key: impl Into<Key>) -> Result<&Database<DB>> {
        let shard = self.router.for_key(&key.into())?;
        Ok(&self.databases[shard])
    }

    /// All databases, by number.
    pub fn all(&self) -> &[Database<DB>] {
        &self.databases
    }

    /// Asks every shard at once, each on a connection that meets the rule for a new session. `query` sends its
    /// rows; it waits while `ahead` of them are not taken. What was begun ends when the answer is dropped.
    ///
    /// An error of a shard is the last item of its rows.
    #[track_caller]
    pub fn scatter<T, F>(&self, rule: Read, ahead: usize, query: F) -> Vec<Rows<T>>
    where
        T: Send + 'static,
        F: Fn(usize, Lease<DB>, Sender<T>) -> BoxFuture<'static, Result<()>>,
        F: Clone + Send + Sync + 'static,
    {
        let at = Location::caller();
        let ask = |(shard, database): (usize, &Database<DB>)| {
            let session = database.session_with(SessionOptions::default());
            let query = query.clone();
            Rows::of(shard, ahead, async move |rows| {
                let lease = session.lease(rule, at).await?;
                query(shard, lease, rows).await
            })
        };
        self.databases.iter().enumerate().map(ask).collect()
    }
}

/// Where a shard's query puts its rows.
pub struct Sender<T>(mpsc::Sender<Result<T>>);

impl<T> Sender<T> {
    /// Sends a row, waiting while too many are not taken. False if nobody wants more.
    pub async fn send(&self, row: T) -> bool {
        self.0.send(Ok(row)).await.is_ok()
    }
}

/// The rows of one shard. Dropping it ends its query.
pub struct Rows<T> {
    rows: mpsc::Receiver<Result<T>>,
    task: JoinHandle<()>,
}

impl<T: Send + 'static> Rows<T> {
    /// What a shard's query sends.
    fn of<F, Fut>(shard: usize, ahead: usize, query: F) -> Rows<T>
    where
        F: FnOnce(Sender<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send,
    {
        let (sender, rows) = mpsc::channel(ahead.max(1));
        let task = tokio::spawn(async move {
            if let Err(error) = query(Sender(sender.clone())).await {
                // Nobody to tell: the rows were dropped.
                let told = Err(error.within(format!("shard {shard}")));
                let _ = sender.send(told).await;
            }
        });
        Rows { rows, task }
    }
}

impl<T> Stream for Rows<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        self.rows.poll_recv(cx)
    }
}

impl<T> Drop for Rows<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

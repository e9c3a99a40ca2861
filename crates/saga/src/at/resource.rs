//! The seams: a database with branches, and the place where outcomes are decided.

use std::time::Duration;

use quorate_outbox::store::BoxFuture;

use super::image::{Difference, Treatment};
use super::{Decision, GlobalStatus};
use crate::Result;

/// A global transaction as a resource knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Its name.
    pub gid: String,
    /// Its branches here.
    pub branches: Vec<String>,
    /// Whether its deadline has passed, by the database's clock.
    pub expired: bool,
    /// What an operator has to decide on; else empty.
    pub differences: Vec<Difference>,
}

/// Which of a resource's global transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those with branches that are neither kept nor undone, past their deadline.
    Expired,
    /// Those that wait for an operator.
    Dirty,
    /// Those with branches that are neither kept nor undone.
    Open,
}

/// What an operator wants done with rows that were changed by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Look once more: the rows were repaired by hand.
    Retry,
    /// Write the images of before over what is there.
    Force,
    /// Keep what is there, undo the rest.
    Accept,
}

impl Order {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Order::Retry => "retry",
            Order::Force => "force",
            Order::Accept => "accept",
        }
    }

    pub(crate) fn treatment(self) -> Treatment {
        match self {
            Order::Retry => Treatment::Ask,
            Order::Force => Treatment::Force,
            Order::Accept => Treatment::Accept,
        }
    }
}

/// An order, who gave it, and why. It is kept in the resource's audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    /// What is to be done.
    pub order: Order,
    /// Who wants it.
    pub who: String,
    /// Why.
    pub why: String,
}

/// How undoing ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undone {
    /// Nothing of it is left.
    Done,
    /// Nothing was written: these rows are not as the transaction left them.
    NeedsOperator(Vec<Difference>),
}

/// A database in which branches run.
pub trait Resource: Send + Sync {
    /// Its name among the resources of a coordinator.
    fn name(&self) -> &str;

    /// Global transactions of a home, by name, from after one.
    fn work<'a>(
        &'a self,
        home: &'a str,
        which: Which,
        after: &'a str,
        limit: i64,
    ) -> BoxFuture<'a, Result<Vec<Work>>>;

    /// One global transaction, unless nothing is known of it.
    fn find<'a>(&'a self, home: &'a str, gid: &'a str) -> BoxFuture<'a, Result<Option<Work>>>;

    /// Keeps what these have changed: their images and locks go, further branches are refused. May be repeated.
    fn finish<'a>(&'a self, home: &'a str, gids: &'a [String]) -> BoxFuture<'a, Result<()>>;

    /// Undoes one, and refuses further branches of it. May be repeated. One that waits for an operator is not
    /// tried again without an order.
    fn undo<'a>(
        &'a self,
        home: &'a str,
        gid: &'a str,
        ordered: Option<&'a Ordered>,
    ) -> BoxFuture<'a, Result<Undone>>;

    /// Forgets what ended so long ago; answers how many.
    fn forget<'a>(&'a self, home: &'a str, age: Duration) -> BoxFuture<'a, Result<u64>>;
}

/// The place where outcomes are decided: one row for each, written once.
pub trait Home: Send + Sync {
    /// Its name, which its global transactions carry.
    fn name(&self) -> &str;

    /// Decides, unless that is done; answers what is decided.
    fn decide<'a>(&'a self, gid: &'a str, decision: Decision) -> BoxFuture<'a, Result<Decision>>;

    /// What is decided; `None` is nothing yet.
    fn status<'a>(&'a self, gid: &'a str) -> BoxFuture<'a, Result<Option<GlobalStatus>>>;

    /// Decided ones that have not ended, by name, from after one. Without those that wait for an operator.
    fn unfinished<'a>(
        &'a self,
        after: &'a str,
        limit: i64,
    ) -> BoxFuture<'a, Result<Vec<(String, Decision)>>>;

    /// Moves some from one status to another; those that have another by now stay.
    fn advance<'a>(
        &'a self,
        gids: &'a [String],
        from: GlobalStatus,
        to: GlobalStatus,
    ) -> BoxFuture<'a, Result<u64>>;

    /// Forgets what ended so long ago; answers how many.
    fn forget(&self, age: Duration) -> BoxFuture<'_, Result<u64>>;
}

//! A connection on loan.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::Connection;
use sqlx::pool::PoolConnection;

use super::Lane;
use crate::backend::Backend;

/// Where a read is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the primary.
    Primary,
    /// On the replica of that name.
    Replica(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Primary => f.write_str("the primary"),
            Place::Replica(name) => write!(f, "replica {name}"),
        }
    }
}

/// A connection, given back when it is dropped. Use it as sqlx's: `&mut *lease` is an executor.
pub struct Lease<DB: Backend> {
    lane: Arc<Lane<DB>>,
    connection: PoolConnection<DB>,
    number: u64,
    generation: u64,
    place: Place,
}

impl<DB: Backend> Lease<DB> {
    pub(crate) fn new(
        lane: Arc<Lane<DB>>,
        connection: PoolConnection<DB>,
        number: u64,
        generation: u64,
        place: Place,
    ) -> Lease<DB> {
        Lease {
            lane,
            connection,
            number,
            generation,
            place,
        }
    }

    /// Which server it leads to.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// How many prepared statements this connection keeps.
    pub fn cached_statements(&self) -> usize
    where
        DB: sqlx::database::HasStatementCache,
    {
        self.connection.cached_statements_size()
    }

    /// Has it closed instead of given back: what its session holds in the database goes with it.
    pub fn close_on_drop(&mut self) {
        self.connection.close_on_drop();
    }
}

impl<DB: Backend> Deref for Lease<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<DB: Backend> DerefMut for Lease<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl<DB: Backend> fmt::Debug for Lease<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease of {}", self.place)
    }
}

impl<DB: Backend> Drop for Lease<DB> {
    fn drop(&mut self) {
        if !self.lane.left(self.number, self.generation) {
            // Counted out: the server may have ended its session, and nobody waits for it.
            self.connection.close_on_drop();
        }
    }
}

//! The way to one server: its gate, its pool, and what is checked of each new connection.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use sqlx::{Connection, Pool};

use super::gate::Gate;
use super::lease::Lease;
use super::{Holder, Place, PoolOptions, PoolStatus};
use crate::backend::Backend;
use crate::{Error, ErrorKind, Result};

/// Looks at a new connection before anyone gets it; an error closes it.
pub(crate) type Welcome<DB> = Arc<
    dyn for<'c> Fn(&'c mut <DB as sqlx::Database>::Connection) -> BoxFuture<'c, Result<()>>
        + Send
        + Sync,
>;

type ConnectOptions<DB> = <<DB as sqlx::Database>::Connection as Connection>::Options;

pub(crate) struct Lane<DB: Backend> {
    name: String,
    options: PoolOptions,
    connect: ConnectOptions<DB>,
    welcome: Welcome<DB>,
    /// Why the last new connection was not welcome.
    refusal: Arc<Mutex<Option<Error>>>,
    pool: RwLock<(u64, Pool<DB>)>,
    gate: Gate,
    /// Connections that leaked leases took out of the present pool.
    lost: Mutex<usize>,
    leaked: AtomicU64,
}

impl<DB: Backend> Lane<DB> {
    pub fn new(
        name: String,
        url: &str,
        options: PoolOptions,
        welcome: Welcome<DB>,
    ) -> Result<Arc<Lane<DB>>> {
        let connect = DB::connect_options(url, &options)?;
        let refusal = Arc::default();
        let pool = build::<DB>(&options, &connect, &welcome, &refusal);
        Ok(Arc::new(Lane {
            gate: Gate::new(options.limit),
            pool: RwLock::new((0, pool)),
            name,
            connect,
            welcome,
            refusal,
            lost: Mutex::new(0),
            leaked: AtomicU64::new(0),
            options,
        }))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn options(&self) -> &PoolOptions {
        &self.options
    }

    /// The present pool.
    pub fn pool(&self) -> Pool<DB> {
        self.pool.read().1.clone()
    }

    /// How many leases are held.
    pub fn in_use(&self) -> usize {
        self.gate.in_use()
    }

    /// A connection that is not of the pool, for what watches over the server.
    pub async fn connect(&self) -> Result<DB::Connection> {
        let connecting = DB::Connection::connect_with(&self.connect);
        match tokio::time::timeout(self.options.patience, connecting).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("{} does not answer", self.name),
            )),
        }
    }

    /// Waits for a place and a connection, at most for the pool's patience in all, of which `connecting` may
    /// go to opening one.
    pub async fn lease(
        self: &Arc<Self>,
        at: &'static Location<'static>,
        place: Place,
        connecting: Duration,
    ) -> Result<Lease<DB>> {
        let begun = Instant::now();
        let patience = self.options.patience;
        let number = self.gate.enter(at, patience).await;
        let number = number.map_err(|error| error.within(&self.name))?;
        // Whoever gives up waiting gives his place back.
        let mut ticket = Ticket {
            lane: Arc::clone(self),
            number: Some(number),
        };
        let (generation, pool) = self.pool.read().clone();
        let left = patience.saturating_sub(begun.elapsed()).min(connecting);
        match tokio::time::timeout(left, pool.acquire()).await {
            Ok(Ok(connection)) => {
                ticket.number = None;
                Ok(Lease::new(
                    Arc::clone(self),
                    connection,
                    number,
                    generation,
                    place,
                ))
            }
            Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => {
                self.gate.fail(number);
                Err(self.unreachable(left))
            }
            Ok(Err(error)) => {
                self.gate.fail(number);
                Err(Error::from(error).within(&self.name))
            }
        }
    }

    fn unreachable(&self, patience: Duration) -> Error {
        match self.refusal.lock().clone() {
            Some(error) => error.within(&self.name),
            None => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{}: no connection could be opened in {patience:?}",
                    self.name
                ),
            ),
        }
    }

    /// Takes a lease's place back; false if it had been counted out.
    pub fn left(&self, number: u64, generation: u64) -> bool {
        if self.gate.leave(number) {
            return true;
        }
        // Its connection goes back to the pool that it is of, if that is still the present one.
        if self.pool.read().0 == generation {
            let mut lost = self.lost.lock();
            *lost = lost.saturating_sub(1);
        }
        false
    }

    /// Counts out leases that are held for too long.
    pub fn reclaim(&self) {
        let Some(longest) = self.options.hold_max else {
            return;
        };
        let evicted = self.gate.evict(longest);
        if evicted.is_empty() {
            return;
        }
        self.leaked
            .fetch_add(evicted.len() as u64, Ordering::Relaxed);
        for Holder { place, held } in &evicted {
            tracing::warn!(server = %self.name, %place, ?held, "a connection is held for too long: counted out");
        }
        let mut lost = self.lost.lock();
        *lost += evicted.len();
        if *lost >= spare(&self.options) {
            *lost = 0;
            let mut pool = self.pool.write();
            let fresh = build::<DB>(&self.options, &self.connect, &self.welcome, &self.refusal);
            // The old one is not closed: leases of it may be in good use yet, and it goes with the last.
            *pool = (pool.0 + 1, fresh);
            tracing::warn!(server = %self.name, "leaks used up the pool's spare connections: it is replaced");
        }
    }

    pub fn status(&self) -> PoolStatus {
        let pool = self.pool.read();
        PoolStatus {
            name: self.name.clone(),
            limit: self.gate.limit(),
            holders: self.gate.holders(),
            size: pool.1.size() as usize,
            idle: pool.1.num_idle(),
            leaked: self.leaked.load(Ordering::Relaxed),
            replaced: pool.0,
        }
    }
}

struct Ticket<DB: Backend> {
    lane: Arc<Lane<DB>>,
    number: Option<u64>,
}

impl<DB: Backend> Drop for Ticket<DB> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.lane.gate.leave(number);
        }
    }
}

/// Connections beyond what the gate lets in, for leaks.
fn spare(options: &PoolOptions) -> usize {
    options.limit.ceiling.div_ceil(4).max(1)
}

fn build<DB: Backend>(
    options: &PoolOptions,
    connect: &ConnectOptions<DB>,
    welcome: &Welcome<DB>,
    refusal: &Arc<Mutex<Option<Error>>>,
) -> Pool<DB> {
    let size = options.limit.ceiling.max(options.limit.floor).max(1) + spare(options);
    let welcome = Arc::clone(welcome);
    let refusal = Arc::clone(refusal);
    let options = options.clone();
    sqlx::pool::PoolOptions::<DB>::new()
        .max_connections(u32::try_from(size).unwrap_or(u32::MAX))
        .acquire_timeout(options.patience)
        .idle_timeout(options.idle_max)
        .max_lifetime(options.life_max)
        .after_connect(move |connection, _| {
            let welcome = Arc::clone(&welcome);
            let refusal = Arc::clone(&refusal);
            let options = options.clone();
            Box::pin(async move {
                DB::prepare(connection, &options).await?;
                let refused = welcome(connection).await.err();
                refusal.lock().clone_from(&refused);
                match refused {
                    None => Ok(()),
                    Some(error) => Err(sqlx::Error::Protocol(error.to_string())),
                }
            })
        })
        .connect_lazy_with(connect.clone())
}

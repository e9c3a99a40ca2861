//! Buckets that move between databases while they are used.
//!
//! Every row of a sharded table carries the number of its *bucket*, the hash of its key. Which database has a bucket
//! stands in that database itself, in `quorate_buckets`: there is no other authority, and nothing to keep
//! in step. A process only remembers where it last found one.
//!
//! - *A write* locks its bucket's line in its transaction, and goes elsewhere if the bucket is no longer owned there. So who takes a
//!   bucket away waits for the writes under way, and none comes after.
//! - *A read* looks at the line before and after: if it is the same, nobody else had the bucket meanwhile.
//! - *A question to all* takes a snapshot of each database with the buckets that it owns there, and begins
//!   again unless each bucket is owned exactly once. Rows of buckets that are not owned (copies on their way, what
//!   a move left) are not counted.
//!
//! Invariant: a bucket is owned by at most one database. While it changes hands nobody owns it, for as long as it takes to copy
//! the last changes.

mod ask;
mod copy;
mod job;
mod moves;
mod rekey;

use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row};
use tokio::time::Instant;

use super::Key;
use crate::database::Database;
use crate::points::Planted;
use crate::pool::Lease;
use crate::route::Read;
use crate::session::SessionOptions;
use crate::transaction::{Isolation, Transaction, Work};
use crate::{Error, ErrorKind, Result};

pub use moves::{Move, MoveStatus, Step};
pub use rekey::KeyChange;
#[cfg(test)]
pub(crate) use rekey::{Begun, Try};

/// A line of `quorate_buckets`: what its database is to a bucket.
mod state {
    /// Nothing: it may hold copies.
    pub const ABSENT: i16 = 0;
    /// Its rows are here.
    pub const OWNED: i16 = 1;
    /// Its rows are here still, and nobody reads or writes them.
    pub const LEAVING: i16 = 2;
    /// Some of its rows are here and about to be elsewhere: nobody reads or writes it by key.
    pub const PARTING: i16 = 3;
}

const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS quorate_bucket_sets ( \
        name varchar(100) PRIMARY KEY, shard int NOT NULL, shards int NOT NULL, buckets int NOT NULL); \
    CREATE TABLE IF NOT EXISTS quorate_buckets ( \
        name varchar(100) NOT NULL, bucket int NOT NULL, state smallint NOT NULL, epoch bigint NOT NULL, \
        PRIMARY KEY (name, bucket)); \
    CREATE TABLE IF NOT EXISTS quorate_bucket_moves ( \
        id bigint PRIMARY KEY, name varchar(100) NOT NULL, source int NOT NULL, target int NOT NULL, \
        buckets int[] NOT NULL, tables text[] NOT NULL, step text NOT NULL, cursor text, \
        copied bigint NOT NULL, followed bigint NOT NULL, since timestamptz NOT NULL, trouble text); \
    CREATE TABLE IF NOT EXISTS quorate_bucket_fences ( \
        id bigint PRIMARY KEY, name varchar(100) NOT NULL, buckets int[] NOT NULL, run bigint NOT NULL, \
        open boolean NOT NULL); \
    CREATE TABLE IF NOT EXISTS quorate_bucket_changes ( \
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, move bigint NOT NULL, part int NOT NULL, key text NOT NULL); \
    CREATE INDEX IF NOT EXISTS quorate_bucket_changes_of ON quorate_bucket_changes (move, id); \
    CREATE TABLE IF NOT EXISTS quorate_key_outcomes ( \
        id bigint PRIMARY KEY, name varchar(100) NOT NULL, applied boolean NOT NULL); \
    CREATE TABLE IF NOT EXISTS quorate_key_sums ( \
        name varchar(100) NOT NULL, peer int NOT NULL, received boolean NOT NULL, total bigint NOT NULL, \
        PRIMARY KEY (name, peer, received)); \
    CREATE TABLE IF NOT EXISTS quorate_key_changes ( \
        id bigint PRIMARY KEY, name varchar(100) NOT NULL, parted int NOT NULL, target int NOT NULL, \
        tables text[] NOT NULL, keys text[] NOT NULL, since timestamptz NOT NULL)";

/// Tables that are spread over PostgreSQL databases by buckets. All of a set's tables have a column `bucket` of type
/// `int`, filled by [`Buckets::bucket`], and best an index that begins with it.
pub struct Buckets {
    name: String,
    count: u32,
    databases: Vec<Database<Postgres>>,
    /// How long to wait for a bucket that changes hands.
    patience: Duration,
    /// How long a move waits for a lock.
    lock_max: Duration,
    /// Where each bucket was last found.
    places: Mutex<Vec<usize>>,
    #[cfg(test)]
    pub(crate) planted: Option<Planted>,
}

/// What a database says of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    state: i16,
    epoch: i64,
}

impl Buckets {
    /// Opens the set of that name, and makes it if it is not there: `count` buckets, dealt out evenly over the databases that
    /// there are then. Databases are numbered by their order; later ones may be added at the end, and own
    /// nothing until buckets are moved to them.
    ///
    /// Errors: `Invalid` for another number of buckets than the set has, or databases in another order than it was
    /// made with.
    pub async fn open(
        name: impl Into<String>,
        count: u32,
        databases: Vec<Database<Postgres>>,
    ) -> Result<Buckets> {
        let name = name.into();
        let wrong = |text: &str| Err(Error::new(ErrorKind::Invalid, text));
        if name.is_empty() || name.len() > 100 {
            return wrong("a set's name has from 1 to 100 bytes");
        }
        if databases.is_empty() || databases.len() > MAX_SHARDS {
            return wrong("a set of buckets is over 1 to 4,096 databases");
        }
        if count < databases.len() as u32 || count > 65_536 {
            return wrong("there are at least as many buckets as databases, and at most 65,536");
        }
        let set = Buckets {
            places: Mutex::new(vec![0; count as usize]),
            count,
            databases,
            patience: Duration::from_secs(10),
            lock_max: Duration::from_secs(3),
            #[cfg(test)]
            planted: None,
            name,
        };
        let mut shards = None;
        for shard in 0..set.databases.len() {
            let known = set.settle(shard, shards).await;
            shards = Some(known.map_err(|error| error.within(format!("shard {shard}")))?);
        }
        set.find().await?;
        Ok(set)
    }

    /// With another time to wait for a bucket that changes hands: 10 seconds if nothing is said.
    pub fn patience(mut self, patience: Duration) -> Buckets {
        self.patience = patience;
        self
    }

    /// With another time that a move waits for transactions which hold a table or a bucket, and has later ones wait behind it:
    /// 3 seconds if nothing is said.
    pub fn lock_max(mut self, lock_max: Duration) -> Buckets {
        self.lock_max = lock_max;
        self
    }

    /// The bucket of a key.
    pub fn bucket(&self, key: &Key) -> i32 {
        (key.hash() % u64::from(self.count)) as i32
    }

    /// All databases, by number.
    pub fn all(&self) -> &[Database<Postgres>] {
        &self.databases
    }

    /// Makes a database's tables and lines, where they are missing. The first database says over how many the set was
    /// dealt out, so that this can be repeated with more of them, and after a crash. Answers that number.
    async fn settle(&self, shard: usize, shards: Option<i32>) -> Result<i32> {
        let db = &self.databases[shard];
        let mut lease = db.inner.on_primary(Location::caller()).await?;
        // The last of them: to make what is there would wait for writers.
        let there = "SELECT to_regclass('quorate_key_changes') IS NOT NULL";
        let there: bool = sqlx::query_scalar(there).fetch_one(&mut *lease).await?;
        // Two who make them at once: PostgreSQL refuses the second, for which they are there.
        if !there && sqlx::raw_sql(TABLES).execute(&mut *lease).await.is_err() {
            sqlx::raw_sql(TABLES).execute(&mut *lease).await?;
        }
        drop(lease);
        let now = self.databases.len() as i32;
        let (name, count) = (self.name.as_str(), self.count as i32);
        let session = db.session();
        let row = session.transaction(work(), |tx| {
            Box::pin(async move {
                let make = "INSERT INTO quorate_bucket_sets VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
                let make = sqlx::query(make).bind(name).bind(shard as i32);
                let make = make.bind(shards.unwrap_or(now)).bind(count);
                make.execute(&mut **tx).await?;
                let look = "SELECT shard, shards, buckets FROM quorate_bucket_sets WHERE name = $1";
                let row = sqlx::query(look).bind(name).fetch_one(&mut **tx).await?;
                let (own, shards): (i32, i32) = (row.try_get(0)?, row.try_get(1)?);
                let deal = "INSERT INTO quorate_buckets \
                    SELECT $1, b, CASE WHEN b * $2::bigint / $3 = $4 THEN 1 ELSE 0 END, 0 \
                    FROM generate_series(0, $3 - 1) b ON CONFLICT DO NOTHING";
                let deal = sqlx::query(deal).bind(name).bind(shards).bind(count).bind(own);
                deal.execute(&mut **tx).await?;
                Ok((own, shards, row.try_get::<i32, _>(2)?))
            })
        });
        let (own, dealt, buckets) = row.await?;
        let text = if own != shard as i32 {
            format!("this database is shard {own} of the set: are they in another order?")
        } else if buckets != count {
            format!("the set has {buckets} buckets, not {count}")
        } else if shards.is_some_and(|shards| shards != dealt) {
            format!("the set was made over {dealt} databases here, and over others elsewhere")
        } else {
            return Ok(dealt);
        };
        Err(Error::new(ErrorKind::Invalid, text))
    }

    /// Looks anew which database has which bucket. Buckets that change hands stay where they were.
    async fn find(&self) -> Result<()> {
        for (shard, db) in self.databases.iter().enumerate() {
            let mut lease = db.inner.on_primary(Location::caller()).await?;
            let owned = "SELECT bucket FROM quorate_buckets WHERE name = $1 AND state = ANY($2)";
            let owned = sqlx::query_scalar(owned).bind(&self.name);
            let owned = owned.bind([state::OWNED, state::PARTING].as_slice());
            let owned: Vec<i32> = owned.fetch_all(&mut *lease).await?;
            let mut places = self.places.lock();
            for bucket in owned {
                if let Some(place) = places.get_mut(bucket as usize) {
                    *place = shard;
                }
            }
        }
        Ok(())
    }

    fn place(&self, bucket: i32) -> usize {
        self.places.lock()[bucket as usize]
    }

    /// Runs a closure in a transaction on the database that has a key, as [`Session::transaction`] does, and gives it
    /// the key's bucket. While the bucket changes hands it waits.
    ///
    /// REQUIRES: what the closure changes belongs to this bucket.
    ///
    /// Errors: `Unavailable` if the bucket does not come to rest in time; those of a transaction.
    ///
    /// [`Session::transaction`]: crate::Session::transaction
    pub async fn write<T, F>(&self, key: impl Into<Key>, work: Work, closure: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Transaction<'_, Postgres>, i32) -> BoxFuture<'t, Result<T>>,
        F: Send + Sync,
    {
        let bucket = self.bucket(&key.into());
        let (closure, name) = (&closure, self.name.as_str());
        let locks = self.locks();
        let mut search = Search::new(self.patience);
        loop {
            let gone = &AtomicBool::new(false);
            let session = self.databases[self.place(bucket)].session();
            let done = session.transaction(work, |tx| {
                Box::pin(async move {
                    if line(tx, name, bucket, locks).await?.state == state::OWNED {
                        return closure(tx, bucket).await;
                    }
                    gone.store(true, Ordering::Relaxed);
                    Err(Error::aborted("the bucket is elsewhere"))
                })
            });
            let done = done.await;
            if !gone.load(Ordering::Relaxed) {
                return done;
            }
            search.again(self, bucket).await?;
        }
    }

    /// Runs a closure on a connection that meets the rule to the database that has a key. It is run again if the bucket
    /// changed hands meanwhile. On a replica that lags, where a bucket is and what is in it are of the same age. The rule
    /// is met for a new session, which has written nothing.
    ///
    /// Errors: `Unavailable` if the bucket does not come to rest in time; those of a read.
    pub async fn read<T, F>(&self, key: impl Into<Key>, rule: Read, closure: F) -> Result<T>
    where
        F: for<'t> Fn(&'t mut Lease<Postgres>, i32) -> BoxFuture<'t, Result<T>>,
    {
        let bucket = self.bucket(&key.into());
        let (found, _) = self.read_in(bucket, rule, &closure).await?;
        Ok(found)
    }

    /// The same by bucket; answers the line too, which was the same before and after.
    async fn read_in<T, F>(&self, bucket: i32, rule: Read, closure: &F) -> Result<(T, Line)>
    where
        F: for<'t> Fn(&'t mut Lease<Postgres>, i32) -> BoxFuture<'t, Result<T>>,
    {
        let mut search = Search::new(self.patience);
        loop {
            let db = &self.databases[self.place(bucket)];
            let session = db.session_with(SessionOptions::default());
            let mut lease = session.lease(rule, Location::caller()).await?;
            let before = line(&mut lease, &self.name, bucket, false).await?;
            if before.state == state::OWNED || self.blind() {
                let found = closure(&mut lease, bucket).await?;
                let after = line(&mut lease, &self.name, bucket, false).await?;
                if after == before || self.blind() {
                    return Ok((found, before));
                }
            }
            drop(lease);
            search.again(self, bucket).await?;
        }
    }

    /// Whether reads do not look where their bucket is.
    fn blind(&self) -> bool {
        self.plants(Planted::BlindReads)
    }

    /// Whether writes lock their bucket's line.
    fn locks(&self) -> bool {
        !self.plants(Planted::UnlockedWrites)
    }

    /// Whether a bug is planted, to show that the tests notice.
    #[cfg_attr(not(test), allow(unused_variables, clippy::unused_self))]
    fn plants(&self, bug: Planted) -> bool {
        #[cfg(test)]
        return self.planted == Some(bug);
        #[cfg(not(test))]
        false
    }

    /// Has a transaction wait for no lock longer than it may.
    async fn limit_locks(&self, tx: &mut PgConnection) -> Result<()> {
        let limit = self.lock_max.as_millis().clamp(1, i32::MAX as u128);
        let limit = sql(format!("SET LOCAL lock_timeout = '{limit}ms'"));
        sqlx::query(limit).execute(tx).await?;
        Ok(())
    }
}

impl std::fmt::Debug for Buckets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Buckets {:?} ({} over {})",
            self.name,
            self.count,
            self.databases.len()
        )
    }
}

/// What the number of a move leaves for that of its shard.
const MAX_SHARDS: usize = 4096;

fn work() -> Work {
    Work::default().isolation(Isolation::ReadCommitted)
}

fn sql(text: String) -> AssertSqlSafe<String> {
    AssertSqlSafe(text)
}

/// What a database says of a bucket. Locked, it stays so until the transaction ends.
async fn line(connection: &mut PgConnection, name: &str, bucket: i32, lock: bool) -> Result<Line> {
    const LOOK: &str = "SELECT state, epoch FROM quorate_buckets WHERE name = $1 AND bucket = $2";
    let look = if lock {
        sql(format!("{LOOK} FOR SHARE"))
    } else {
        sql(LOOK.to_owned())
    };
    let row = sqlx::query(look).bind(name).bind(bucket);
    let row = row.fetch_one(connection).await?;
    Ok(Line {
        state: row.try_get(0)?,
        epoch: row.try_get(1)?,
    })
}

/// Looking for a bucket that is not where it was.
struct Search {
    end: Instant,
    wait: Duration,
}

impl Search {
    fn new(patience: Duration) -> Search {
        Search {
            end: Instant::now() + patience,
            wait: Duration::from_millis(1),
        }
    }

    async fn again(&mut self, set: &Buckets, bucket: i32) -> Result<()> {
        if Instant::now() >= self.end {
            let text = format!("bucket {bucket} changes hands, and has not come to rest in time");
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(Duration::from_millis(50));
        // Who can't end it looks again: others may.
        let _ = set.end_stalled(set.place(bucket)).await;
        set.find().await
    }
}

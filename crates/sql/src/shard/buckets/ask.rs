//! Questions to all databases of a set, each row of which is counted once whatever moves meanwhile.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::future::try_join_all;
use sqlx::{Postgres, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::time::Instant;

use super::super::aggregate::{AHEAD, Aggregate, Group};
use super::super::page::{Listing, Page, PageToken, check_size};
use super::super::{Rows, Sender};
use super::{Buckets, state};
use crate::backend::Backend;
use crate::points::Planted;
use crate::pool::Lease;
use crate::route::Read;
use crate::session::SessionOptions;
use crate::{Error, ErrorKind, Result};

/// A connection in a transaction that sees one instant of its database.
pub(super) struct Snapshot {
    pub lease: Lease<Postgres>,
    owned: Vec<i32>,
    sums: Sums,
    open: bool,
}

/// By peer, and whether received of it or sent to it: the changes of keys that are done.
type Sums = BTreeMap<(i32, bool), i64>;

impl Snapshot {
    /// Ends the transaction, so that the connection can be used again.
    pub async fn end(mut self) -> Result<()> {
        let rolling = <Postgres as sqlx::Database>::TransactionManager::rollback(&mut self.lease);
        rolling.await?;
        self.open = false;
        Ok(())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if self.open {
            self.lease.close_on_drop();
        }
    }
}

impl Buckets {
    /// Snapshots of all databases in which every bucket is owned exactly once.
    async fn snapshots(&self, rule: Read, at: &'static Location<'static>) -> Result<Vec<Snapshot>> {
        let end = Instant::now() + self.patience;
        loop {
            let shards = (0..self.databases.len()).map(|shard| self.snapshot(shard, rule, at));
            let all = try_join_all(shards).await?;
            let mut owners = vec![0_u32; self.count as usize];
            for bucket in all.iter().flat_map(|snapshot| &snapshot.owned) {
                if let Some(count) = owners.get_mut(*bucket as usize) {
                    *count += 1;
                }
            }
            let wrong = owners.iter().position(|count| *count != 1);
            let wrong = wrong.map(|wrong| format!("bucket {wrong} changes hands"));
            let wrong = wrong.or_else(|| self.unbalanced(&all));
            let Some(wrong) = wrong.filter(|_| !self.counts_all()) else {
                return Ok(all);
            };
            for snapshot in all {
                snapshot.end().await?;
            }
            if Instant::now() >= end {
                let text = format!("{wrong}, and that has not come to rest in time");
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            for shard in 0..self.databases.len() {
                // A primary that does not answer is no reason to ask its replicas no more.
                let _ = self.end_stalled(shard).await;
            }
        }
    }

    /// Two databases of which one has a change of keys behind it and the other has not: its rows are in both or in neither.
    fn unbalanced(&self, all: &[Snapshot]) -> Option<String> {
        let sum = |of: usize, peer: usize, received: bool| {
            let sum = all[of].sums.get(&(peer as i32, received));
            sum.copied().unwrap_or(0)
        };
        let pairs = (0..all.len()).flat_map(|from| (0..all.len()).map(move |to| (from, to)));
        let mut pairs = pairs.filter(|_| !self.plants(Planted::SumsIgnored));
        let pair = pairs.find(|(from, to)| sum(*from, *to, false) != sum(*to, *from, true));
        pair.map(|(from, to)| format!("rows go from shard {from} to shard {to}"))
    }

    async fn snapshot(
        &self,
        shard: usize,
        rule: Read,
        at: &'static Location<'static>,
    ) -> Result<Snapshot> {
        let session = self.databases[shard].session_with(SessionOptions::default());
        let asked = async {
            let mut snapshot = Snapshot {
                lease: session.lease(rule, at).await?,
                owned: Vec::new(),
                sums: Sums::new(),
                open: true,
            };
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".into_sql_str();
            <Postgres as sqlx::Database>::TransactionManager::begin(
                &mut snapshot.lease,
                Some(begin),
            )
            .await?;
            let owned = "SELECT bucket FROM quorate_buckets WHERE name = $1 AND state = ANY($2)";
            let owned = sqlx::query_scalar(owned).bind(&self.name);
            let owned = owned.bind([state::OWNED, state::PARTING].as_slice());
            snapshot.owned = owned.fetch_all(&mut *snapshot.lease).await?;
            let sums = "SELECT peer, received, total FROM quorate_key_sums WHERE name = $1";
            let sums: Vec<(i32, bool, i64)> = sqlx::query_as(sums)
                .bind(&self.name)
                .fetch_all(&mut *snapshot.lease)
                .await?;
            let sums = sums.into_iter();
            snapshot.sums = sums
                .map(|(peer, received, sum)| ((peer, received), sum))
                .collect();
            Ok(snapshot)
        };
        asked
            .await
            .map_err(|error: Error| error.within(format!("shard {shard}")))
    }

    /// The condition that leaves out what a database does not own. What is about to leave, by a change of its key, is there
    /// as long as the other database has not got it: then the sums differ.
    fn owned(&self) -> String {
        let name = self.name.replace('\'', "''");
        format!(
            "bucket IN (SELECT bucket FROM quorate_buckets WHERE name = '{name}' AND state IN ({}, {}))",
            state::OWNED,
            state::PARTING
        )
    }

    /// Adds up over all databases, as [`Shards::aggregate`](crate::shard::Shards::aggregate) does, while buckets move:
    /// each row counts once. What each database answers is of one instant, those of two of two. It holds a connection of
    /// each until it is done.
    ///
    /// Errors: `Unavailable` if a bucket does not come to rest in time; those of `Shards::aggregate`.
    #[track_caller]
    pub fn aggregate<'a>(
        &'a self,
        rule: Read,
        aggregate: &'a Aggregate,
    ) -> impl Future<Output = Result<impl Stream<Item = Result<Group>> + Send + use<>>> + Send + 'a
    {
        let at = Location::caller();
        async move {
            let plan = Arc::new(aggregate.plan::<Postgres>(self.narrow().as_deref())?);
            let ask = |(shard, mut snapshot): (usize, Snapshot)| {
                let plan = Arc::clone(&plan);
                Rows::of(shard, AHEAD, async move |rows: Sender<Group>| {
                    plan.ask::<Postgres>(&mut snapshot.lease, &rows).await?;
                    snapshot.end().await
                })
            };
            let shards = self.snapshots(rule, at).await?;
            let shards = shards.into_iter().enumerate().map(ask).collect();
            Ok(plan.merge(shards, Postgres::NULLS_FIRST))
        }
    }

    /// A page of rows of all databases, as [`Shards::page`](crate::shard::Shards::page) gives it, while buckets move.
    #[track_caller]
    pub fn page<'a>(
        &'a self,
        rule: Read,
        listing: &'a Listing,
        size: usize,
        after: Option<&'a PageToken>,
    ) -> impl Future<Output = Result<Page<sqlx::postgres::PgRow>>> + Send + 'a {
        let at = Location::caller();
        async move {
            check_size(size)?;
            let plan = listing.plan::<Postgres>(size, after, self.narrow().as_deref())?;
            let plan = Arc::new(plan);
            let ask = |(shard, mut snapshot): (usize, Snapshot)| {
                let plan = Arc::clone(&plan);
                Rows::of(shard, size.min(AHEAD), async move |rows| {
                    plan.ask::<Postgres>(&mut snapshot.lease, &rows).await?;
                    snapshot.end().await
                })
            };
            let shards = self.snapshots(rule, at).await?;
            let shards = shards.into_iter().enumerate().map(ask).collect();
            plan.merge(listing, size, shards).await
        }
    }

    /// What a question to all is narrowed to.
    fn narrow(&self) -> Option<String> {
        Some(self.owned()).filter(|_| !self.counts_all())
    }

    /// Whether copies count too.
    fn counts_all(&self) -> bool {
        self.plants(Planted::CopiesCount)
    }
}

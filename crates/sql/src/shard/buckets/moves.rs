//! Moving buckets from one database to another while they are used, as a job that any process can go on with.
//!
//! The source's database keeps the journal, `quorate_bucket_moves`. The steps:
//!
//! 1. *planned*: what a former try left at the target is removed, and triggers at the source begin to note the keys of rows that
//!    change;
//! 2. *copying*: rows are copied by batches, in the order of their keys; how far is noted;
//! 3. *following*: rows whose keys were noted are copied as they are now; buckets are compared, while they are written;
//! 4. *switching*: the source gives the buckets up, which waits for writes under way. Nobody owns them: the last changes are
//!    copied, and what could not be compared before is. Then the target takes them, and notes what changes there;
//! 5. *switched*: until [`Buckets::finish`] removes the source's rows, [`Buckets::undo`] brings the changes back.
//!
//! Each step of the source is one transaction with its note. Every step may be done twice: rows are copied as they are, never
//! by what was noted of them. Whoever goes on with a job raises its *fence* at both databases first, and every transaction
//! of a job looks at the fence: so of two who work at one job, the former can't write any more.

use std::collections::BTreeSet;
use std::panic::Location;

use sqlx::{PgConnection, Postgres, Row};

use super::copy::Table;
use super::job::Job;
use super::{Buckets, MAX_SHARDS, state, work};
use crate::{Error, ErrorKind, Result};

/// Buckets to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The database that has them.
    pub source: usize,
    /// The one that is to have them.
    pub target: usize,
    /// Which ones.
    pub buckets: Vec<i32>,
    /// All tables of the set: those that have a column `bucket`, in the schemas in which the databases' sessions look. They
    /// are the same in both databases. An index that begins with the column `bucket` makes it fast.
    pub tables: Vec<String>,
}

/// Where a move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Nothing was done yet.
    Planned,
    /// Rows are copied.
    Copying,
    /// What changes meanwhile is copied, and copies are compared.
    Following,
    /// Nobody owns the buckets.
    Switching,
    /// The target owns the buckets; it can be undone.
    Switched,
    /// The source's rows are removed.
    Finishing,
    /// All is done.
    Finished,
    /// What changed at the target is brought back.
    Returning,
    /// The source owns the buckets, and copies are removed.
    Clearing,
    /// As if it had not been.
    Undone,
}

const STEPS: [(Step, &str); 10] = [
    (Step::Planned, "planned"),
    (Step::Copying, "copying"),
    (Step::Following, "following"),
    (Step::Switching, "switching"),
    (Step::Switched, "switched"),
    (Step::Finishing, "finishing"),
    (Step::Finished, "finished"),
    (Step::Returning, "returning"),
    (Step::Clearing, "clearing"),
    (Step::Undone, "undone"),
];

impl Step {
    /// As it stands in the journal.
    pub fn name(self) -> &'static str {
        let found = STEPS.iter().find(|(step, _)| *step == self);
        found.map_or("", |(_, name)| name)
    }

    fn parse(name: &str) -> Result<Step> {
        let found = STEPS.iter().find(|(_, known)| *known == name);
        found.map(|(step, _)| *step).ok_or_else(|| {
            let text =
                format!("the journal of moves has a step {name:?}: it is of a newer version");
            Error::new(ErrorKind::Corrupt, text)
        })
    }
}

/// What an operator sees of a move.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MoveStatus {
    /// Its number.
    pub id: i64,
    /// What is moved.
    pub plan: Move,
    /// Where it stands.
    pub step: Step,
    /// For how many seconds.
    pub since_seconds: f64,
    /// Rows that were copied.
    pub copied: i64,
    /// Changes that were copied after.
    pub followed: i64,
    /// Changes that are yet to be copied.
    pub backlog: i64,
    /// What ended its last run, if that ended before its time.
    pub trouble: Option<String>,
}

impl Buckets {
    /// Plans a move; answers its number. [`Buckets::carry_out`] does it.
    ///
    /// Errors: `Invalid` if the source does not own the buckets, if one of them is in another move that is not finished or undone,
    /// and for tables that differ, or have no primary key or no column `bucket`.
    pub async fn plan(&self, plan: &Move) -> Result<i64> {
        self.check(plan).await?;
        self.end_stalled(plan.source).await?;
        let name = self.name.as_str();
        let session = self.databases[plan.source].session();
        let planned = session.transaction(work(), |tx| {
            Box::pin(async move {
                let lock = "SELECT 1 FROM quorate_bucket_sets WHERE name = $1 FOR UPDATE";
                sqlx::query(lock).bind(name).execute(&mut **tx).await?;
                let busy = "SELECT id FROM quorate_bucket_fences WHERE name = $1 AND open AND buckets && $2 LIMIT 1";
                let busy = sqlx::query_scalar(busy).bind(name).bind(&plan.buckets);
                let busy: Option<i64> = busy.fetch_optional(&mut **tx).await?;
                if let Some(other) = busy {
                    return invalid(format!("move {other} has some of these buckets: finish or undo it first"));
                }
                let owned = count(tx, name, &plan.buckets, state::OWNED).await?;
                if owned != plan.buckets.len() {
                    return invalid(format!(
                        "shard {} owns {owned} of the {} buckets",
                        plan.source,
                        plan.buckets.len()
                    ));
                }
                let id = "INSERT INTO quorate_bucket_moves SELECT \
                    (coalesce(max(id), 0) / $1 + 1) * $1 + $2, $3, $2, $4, $5, $6, 'planned', NULL, 0, 0, now(), NULL \
                    FROM quorate_bucket_moves RETURNING id";
                let id = sqlx::query_scalar(id).bind(MAX_SHARDS as i64).bind(plan.source as i32);
                let id = id.bind(name).bind(plan.target as i32).bind(&plan.buckets).bind(&plan.tables);
                let id: i64 = id.fetch_one(&mut **tx).await?;
                let fence = "INSERT INTO quorate_bucket_fences VALUES ($1, $2, $3, 0, true)";
                let fence = sqlx::query(fence).bind(id).bind(name).bind(&plan.buckets);
                fence.execute(&mut **tx).await?;
                Ok(id)
            })
        });
        planned.await
    }

    async fn check(&self, plan: &Move) -> Result<()> {
        let shards = self.databases.len();
        let unique: BTreeSet<i32> = plan.buckets.iter().copied().collect();
        if plan.source == plan.target || plan.source >= shards || plan.target >= shards {
            return invalid(format!("a move is between two of the {shards} databases"));
        }
        if unique.is_empty() || unique.len() != plan.buckets.len() {
            return invalid("a move names buckets, each once".to_owned());
        }
        if plan.tables.is_empty() {
            return invalid("a move names all tables of the set".to_owned());
        }
        let mut source = self.primary(plan.source).await?;
        let mut target = self.primary(plan.target).await?;
        let left = Table::left_out(&mut source, &plan.tables).await?;
        if let Some(left) = left {
            return invalid(format!(
                "the table {left} has a column bucket, and is not named: its rows would stay behind"
            ));
        }
        for name in &plan.tables {
            let own = Table::load(&mut source, name).await?;
            if own != Table::load(&mut target, name).await? {
                let text = format!("the table {name} is not the same in both databases");
                return invalid(text);
            }
        }
        Ok(())
    }

    pub(super) async fn primary(&self, shard: usize) -> Result<crate::Lease<Postgres>> {
        self.databases[shard]
            .inner
            .on_primary(Location::caller())
            .await
    }

    /// Moves, from wherever the move stands to [`Step::Switched`]. If it ends before, by an error or with its process, call
    /// it again, in any process.
    ///
    /// Errors: `Corrupt` if copies differ from their rows: the source owns the buckets, and the move can be undone; `Locked` if
    /// another goes on with the move, or a transaction holds a table or a bucket for too long; `Invalid` for one that is undone.
    pub async fn carry_out(&self, id: i64) -> Result<MoveStatus> {
        let job = self.take(id).await?;
        let done = job.forward().await;
        job.end(done).await
    }

    /// Undoes a move that is not finished, wherever it stands: the source owns the buckets again, with all that changed at the
    /// target. May be called again like [`Buckets::carry_out`], with the same errors.
    pub async fn undo(&self, id: i64) -> Result<MoveStatus> {
        let job = self.take(id).await?;
        let done = job.backward().await;
        job.end(done).await
    }

    /// Finishes a move that has switched: removes the rows that the source does not own any more. It can't be undone then.
    pub async fn finish(&self, id: i64) -> Result<MoveStatus> {
        let job = self.take(id).await?;
        let done = job.finish().await;
        job.end(done).await
    }

    /// All moves, those that are done too.
    pub async fn moves(&self) -> Result<Vec<MoveStatus>> {
        let mut all = Vec::new();
        for shard in 0..self.databases.len() {
            let mut lease = self.primary(shard).await?;
            let ids = "SELECT id FROM quorate_bucket_moves WHERE name = $1 ORDER BY id";
            let ids = sqlx::query_scalar(ids).bind(&self.name);
            let ids: Vec<i64> = ids.fetch_all(&mut *lease).await?;
            drop(lease);
            for id in ids {
                all.push(self.status(id).await?);
            }
        }
        Ok(all)
    }

    pub(super) async fn status(&self, id: i64) -> Result<MoveStatus> {
        let mut status = self.journal(id).await?;
        for shard in [status.plan.source, status.plan.target] {
            let mut lease = self.primary(shard).await?;
            let backlog = "SELECT count(*) FROM quorate_bucket_changes WHERE move = $1";
            let backlog = sqlx::query_scalar(backlog).bind(id);
            let backlog: i64 = backlog.fetch_one(&mut *lease).await?;
            status.backlog += backlog;
        }
        Ok(status)
    }

    pub(super) async fn journal(&self, id: i64) -> Result<MoveStatus> {
        let shard = usize::try_from(id % MAX_SHARDS as i64).unwrap_or(usize::MAX);
        let missing = || Error::new(ErrorKind::Missing, format!("there is no move {id}"));
        if shard >= self.databases.len() {
            return Err(missing());
        }
        let mut lease = self.primary(shard).await?;
        let look = "SELECT target, buckets, tables, step, copied, followed, trouble, \
            extract(epoch FROM now() - since)::float8 FROM quorate_bucket_moves WHERE id = $1 AND name = $2";
        let look = sqlx::query(look).bind(id).bind(&self.name);
        let row = look
            .fetch_optional(&mut *lease)
            .await?
            .ok_or_else(missing)?;
        let target: i32 = row.try_get(0)?;
        let target = usize::try_from(target)
            .ok()
            .filter(|shard| *shard < self.databases.len());
        let step: String = row.try_get(3)?;
        Ok(MoveStatus {
            id,
            plan: Move {
                source: shard,
                target: target.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Invalid,
                        "the move's target is not among the databases",
                    )
                })?,
                buckets: row.try_get(1)?,
                tables: row.try_get(2)?,
            },
            step: Step::parse(&step)?,
            copied: row.try_get(4)?,
            followed: row.try_get(5)?,
            backlog: 0,
            trouble: row.try_get(6)?,
            since_seconds: row.try_get(7)?,
        })
    }

    /// Carries a move out as a process does that stood still while another took the move over.
    #[cfg(test)]
    pub(crate) async fn carry_out_late(&self, id: i64) -> Result<()> {
        let late = self.take(id).await?;
        self.take(id).await?;
        late.forward().await
    }

    /// Takes a job over: who had it can't write any more.
    async fn take(&self, id: i64) -> Result<Job<'_>> {
        let plan = self.journal(id).await?.plan;
        self.end_stalled(plan.source).await?;
        self.end_stalled(plan.target).await?;
        let raise = "UPDATE quorate_bucket_fences SET run = run + 1 WHERE id = $1 RETURNING run";
        let mut source = self.primary(plan.source).await?;
        let run: i64 = sqlx::query_scalar(raise)
            .bind(id)
            .fetch_one(&mut *source)
            .await?;
        let mut target = self.primary(plan.target).await?;
        let raise = "INSERT INTO quorate_bucket_fences VALUES ($1, $2, $3, $4, true) \
            ON CONFLICT (id) DO UPDATE SET run = greatest(quorate_bucket_fences.run, excluded.run)";
        let raise = sqlx::query(raise)
            .bind(id)
            .bind(&self.name)
            .bind(&plan.buckets)
            .bind(run);
        raise.execute(&mut *target).await?;
        let mut tables = Vec::new();
        for name in &plan.tables {
            tables.push(Table::load(&mut source, name).await?);
        }
        Ok(Job {
            source: self.databases[plan.source].session(),
            target: self.databases[plan.target].session(),
            set: self,
            plan,
            id,
            run,
            tables,
        })
    }
}

pub(super) fn invalid<T>(text: String) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, text))
}

/// How many of the buckets are in that state.
pub(super) async fn count(
    connection: &mut PgConnection,
    name: &str,
    buckets: &[i32],
    state: i16,
) -> Result<usize> {
    let text = "SELECT bucket FROM quorate_buckets WHERE name = $1 AND bucket = ANY($2) AND state = $3 FOR SHARE";
    let found = sqlx::query(text).bind(name).bind(buckets).bind(state);
    Ok(found.fetch_all(connection).await?.len())
}

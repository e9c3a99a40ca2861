//! A move in one run: what is done in each step. The steps and why they are safe are told in [`moves`](super::moves).

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{PgConnection, Postgres};

use super::copy::{Lines, Table};
use super::moves::{Move, MoveStatus, Step, count, invalid};
use super::{Buckets, state, work};
use crate::points::{Planted, pass};
use crate::session::Session;
use crate::transaction::Transaction;
use crate::{Error, ErrorKind, Result};

/// Rows of a batch; in tests a bucket has several.
const BATCH: usize = if cfg!(test) { 20 } else { 500 };

/// A move in one run.
pub(super) struct Job<'b> {
    pub set: &'b Buckets,
    pub plan: Move,
    pub id: i64,
    pub run: i64,
    pub tables: Vec<Table>,
    pub source: Session<Postgres>,
    pub target: Session<Postgres>,
}

/// A part of the tables and a bucket.
type Piece = (usize, i32);

impl Job<'_> {
    /// Notes how a run ended.
    pub async fn end(&self, done: Result<()>) -> Result<MoveStatus> {
        let Err(error) = done else {
            return self.set.status(self.id).await;
        };
        let note = "UPDATE quorate_bucket_moves m SET trouble = $2 FROM quorate_bucket_fences f \
            WHERE m.id = $1 AND f.id = $1 AND f.run = $3";
        if let Ok(mut lease) = self.set.primary(self.plan.source).await {
            let note = sqlx::query(note)
                .bind(self.id)
                .bind(error.message())
                .bind(self.run);
            // If this fails too the error is told all the same.
            let _ = note.execute(&mut *lease).await;
        }
        Err(error.within(format!("move {}", self.id)))
    }

    async fn step(&self) -> Result<Step> {
        Ok(self.set.journal(self.id).await?.step)
    }

    /// A transaction that nobody commits who has lost the job.
    async fn begin<'s>(&self, session: &'s Session<Postgres>) -> Result<Transaction<'s, Postgres>> {
        let mut tx = session.begin(work()).await?;
        self.set.limit_locks(&mut tx).await?;
        let look = "SELECT run FROM quorate_bucket_fences WHERE id = $1 FOR SHARE";
        let run: i64 = sqlx::query_scalar(look)
            .bind(self.id)
            .fetch_one(&mut *tx)
            .await?;
        if run == self.run || self.set.plants(Planted::NoFence) {
            return Ok(tx);
        }
        Err(Error::new(
            ErrorKind::Locked,
            "another goes on with this move",
        ))
    }

    async fn set_step(&self, tx: &mut PgConnection, step: Step) -> Result<()> {
        let text = "UPDATE quorate_bucket_moves SET step = $2, cursor = NULL, since = now(), trouble = NULL WHERE id = $1";
        let set = sqlx::query(text).bind(self.id).bind(step.name());
        set.execute(tx).await?;
        Ok(())
    }

    /// Changes what a database is to the buckets.
    async fn mark(&self, tx: &mut PgConnection, from: i16, to: i16) -> Result<()> {
        let text = "UPDATE quorate_buckets SET state = $4, epoch = epoch + 1 \
            WHERE name = $1 AND bucket = ANY($2) AND state = $3";
        let set = sqlx::query(text)
            .bind(&self.set.name)
            .bind(&self.plan.buckets);
        let changed = set
            .bind(from)
            .bind(to)
            .execute(&mut *tx)
            .await?
            .rows_affected() as usize;
        let there = count(tx, &self.set.name, &self.plan.buckets, to).await?;
        if there == self.plan.buckets.len() {
            return Ok(());
        }
        if count(tx, &self.set.name, &self.plan.buckets, state::PARTING).await? > 0 {
            let text = "rows of the buckets are changing their key: come again";
            return Err(Error::new(ErrorKind::Locked, text));
        }
        let text = format!(
            "{changed} buckets went from state {from} to {to}, and {there} are in it: not all"
        );
        Err(Error::new(ErrorKind::Corrupt, text))
    }

    async fn note_on(&self, tx: &mut PgConnection) -> Result<()> {
        for (part, table) in self.tables.iter().enumerate() {
            let text = table.note_on(self.id, part, &self.plan.buckets);
            sqlx::raw_sql(super::sql(text)).execute(&mut *tx).await?;
        }
        Ok(())
    }

    async fn note_off(&self, tx: &mut PgConnection) -> Result<()> {
        for (part, table) in self.tables.iter().enumerate() {
            let text = table.note_off(self.id, part);
            sqlx::raw_sql(super::sql(text)).execute(&mut *tx).await?;
        }
        let forget = "DELETE FROM quorate_bucket_changes WHERE move = $1";
        sqlx::query(forget).bind(self.id).execute(tx).await?;
        Ok(())
    }

    pub async fn forward(&self) -> Result<()> {
        let mut unproved = self.pieces();
        loop {
            match self.step().await? {
                Step::Planned => {
                    self.clear(&self.target).await?;
                    pass("move-cleared");
                    let mut tx = self.begin(&self.source).await?;
                    if !self.set.plants(Planted::DeafCopy) {
                        self.note_on(&mut tx).await?;
                    }
                    self.set_step(&mut tx, Step::Copying).await?;
                    tx.commit().await?;
                    pass("move-noting");
                }
                Step::Copying => {
                    self.copy().await?;
                    let mut tx = self.begin(&self.source).await?;
                    self.set_step(&mut tx, Step::Following).await?;
                    tx.commit().await?;
                    pass("move-copied");
                }
                Step::Following => {
                    unproved = self.follow().await?;
                    pass("move-followed");
                    let mut tx = self.begin(&self.source).await?;
                    self.mark(&mut tx, state::OWNED, state::LEAVING).await?;
                    self.set_step(&mut tx, Step::Switching).await?;
                    tx.commit().await?;
                    pass("move-given-up");
                }
                Step::Switching => self.switch(&unproved).await?,
                Step::Switched | Step::Finishing | Step::Finished => return Ok(()),
                Step::Returning | Step::Clearing | Step::Undone => {
                    return invalid("it is undone, or about to be".to_owned());
                }
            }
        }
    }

    fn pieces(&self) -> Vec<Piece> {
        let parts = 0..self.tables.len();
        let piece = |part| self.plan.buckets.iter().map(move |bucket| (part, *bucket));
        parts.flat_map(piece).collect()
    }

    /// Copies all rows, from where the last run stopped.
    async fn copy(&self) -> Result<()> {
        let pieces = self.pieces();
        let mut lease = self.set.primary(self.plan.source).await?;
        let look = "SELECT cursor FROM quorate_bucket_moves WHERE id = $1";
        let cursor: Option<String> = sqlx::query_scalar(look)
            .bind(self.id)
            .fetch_one(&mut *lease)
            .await?;
        drop(lease);
        // The number of the piece, and the last key of it that was copied.
        let (mut at, mut after) = match cursor.as_deref().and_then(|text| text.split_once(' ')) {
            Some((at, key)) => (at.parse().unwrap_or(0), Some(key.to_owned())),
            None => (0, None),
        };
        while let Some((part, bucket)) = pieces.get(at).copied() {
            let table = &self.tables[part];
            let mut lease = self.set.primary(self.plan.source).await?;
            let lines = table
                .batch(&mut lease, bucket, after.as_deref(), BATCH)
                .await?;
            drop(lease);
            pass("move-batch-read");
            let Some(last) = lines.keys.last().cloned() else {
                (at, after) = (at + 1, None);
                continue;
            };
            self.put(&self.target, table, &lines).await?;
            pass("move-batch-put");
            let mut tx = self.begin(&self.source).await?;
            let note =
                "UPDATE quorate_bucket_moves SET cursor = $2, copied = copied + $3 WHERE id = $1";
            let note = sqlx::query(note).bind(self.id).bind(format!("{at} {last}"));
            note.bind(lines.rows.len() as i64).execute(&mut *tx).await?;
            tx.commit().await?;
            pass("move-batch-noted");
            after = Some(last);
        }
        Ok(())
    }

    async fn put(&self, to: &Session<Postgres>, table: &Table, lines: &Lines) -> Result<()> {
        let mut tx = self.begin(to).await?;
        table.put(&mut tx, lines, &self.plan.buckets).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Copies rows whose keys were noted, until there is none; answers how many keys there were. The row is read after its
    /// note: so it has at least that change, and what changes later is noted again.
    async fn drain(
        &self,
        from: usize,
        from_session: &Session<Postgres>,
        to: &Session<Postgres>,
    ) -> Result<usize> {
        let mut total = 0;
        loop {
            let mut lease = self.set.primary(from).await?;
            let look = "SELECT id, part, key FROM quorate_bucket_changes WHERE move = $1 ORDER BY id LIMIT 500";
            let noted: Vec<(i64, i32, String)> = sqlx::query_as(look)
                .bind(self.id)
                .fetch_all(&mut *lease)
                .await?;
            if noted.is_empty() {
                return Ok(total);
            }
            let mut keys: BTreeMap<i32, BTreeSet<&str>> = BTreeMap::new();
            for (_, part, key) in &noted {
                keys.entry(*part).or_default().insert(key);
            }
            for (part, keys) in keys {
                let table = usize::try_from(part)
                    .ok()
                    .and_then(|part| self.tables.get(part));
                let Some(table) = table else {
                    return invalid("a note is of a table that is not in the move".to_owned());
                };
                let keys = keys.into_iter().map(str::to_owned).collect();
                let lines = table.find(&mut lease, keys, &self.plan.buckets).await?;
                pass("move-change-read");
                self.put(to, table, &lines).await?;
            }
            drop(lease);
            pass("move-change-put");
            total += noted.len();
            let ids: Vec<i64> = noted.iter().map(|(id, _, _)| *id).collect();
            let mut tx = self.begin(from_session).await?;
            let forget = "DELETE FROM quorate_bucket_changes WHERE id = ANY($1)";
            sqlx::query(forget).bind(&ids).execute(&mut *tx).await?;
            tx.commit().await?;
            let mut tx = self.begin(&self.source).await?;
            let note = "UPDATE quorate_bucket_moves SET followed = followed + $2 WHERE id = $1";
            let note = sqlx::query(note).bind(self.id).bind(ids.len() as i64);
            note.execute(&mut *tx).await?;
            tx.commit().await?;
            pass("move-change-noted");
        }
    }

    /// Follows what is written, and compares. Answers the pieces that were not seen to be equal, because they are being written.
    async fn follow(&self) -> Result<Vec<Piece>> {
        const ROUNDS: usize = 3;
        let mut pieces = self.pieces();
        for _ in 0..ROUNDS {
            self.drain_forward().await?;
            pieces = self.unequal(pieces).await?;
            if pieces.is_empty() {
                break;
            }
        }
        self.drain_forward().await?;
        Ok(pieces)
    }

    async fn drain_forward(&self) -> Result<usize> {
        self.drain(self.plan.source, &self.source, &self.target)
            .await
    }

    async fn unequal(&self, pieces: Vec<Piece>) -> Result<Vec<Piece>> {
        let mut unequal = Vec::new();
        let mut source = self.set.primary(self.plan.source).await?;
        let mut target = self.set.primary(self.plan.target).await?;
        for (part, bucket) in pieces {
            let table = &self.tables[part];
            let own = table.digest(&mut source, bucket).await?;
            if own != table.digest(&mut target, bucket).await? {
                unequal.push((part, bucket));
            }
        }
        Ok(unequal)
    }

    fn differs(&self, (part, bucket): Piece) -> Error {
        let text = format!(
            "the copy of table {} differs in bucket {bucket}; the buckets stay where they were: undo the move",
            self.tables[part].name
        );
        Error::new(ErrorKind::Corrupt, text)
    }

    /// Nobody owns the buckets: gives them to the target.
    async fn switch(&self, unproved: &[Piece]) -> Result<()> {
        if !self.target_owns().await? {
            if !self.set.plants(Planted::EarlySwitch) {
                self.drain_forward().await?;
                pass("move-last-changes");
                if let Some(piece) = self.unequal(unproved.to_vec()).await?.first() {
                    let mut tx = self.begin(&self.source).await?;
                    // Perhaps a former run had ended them.
                    self.note_on(&mut tx).await?;
                    self.mark(&mut tx, state::LEAVING, state::OWNED).await?;
                    self.set_step(&mut tx, Step::Following).await?;
                    tx.commit().await?;
                    return Err(self.differs(*piece));
                }
            }
            let mut tx = self.begin(&self.source).await?;
            self.note_off(&mut tx).await?;
            tx.commit().await?;
            pass("move-notes-ended");
            let mut tx = self.begin(&self.target).await?;
            self.note_on(&mut tx).await?;
            self.mark(&mut tx, state::ABSENT, state::OWNED).await?;
            tx.commit().await?;
            pass("move-taken");
        }
        let mut tx = self.begin(&self.source).await?;
        self.mark(&mut tx, state::LEAVING, state::ABSENT).await?;
        self.set_step(&mut tx, Step::Switched).await?;
        tx.commit().await?;
        pass("move-switched");
        Ok(())
    }

    async fn target_owns(&self) -> Result<bool> {
        let mut tx = self.begin(&self.target).await?;
        let owned = count(&mut tx, &self.set.name, &self.plan.buckets, state::OWNED).await?;
        Ok(owned == self.plan.buckets.len())
    }

    pub async fn backward(&self) -> Result<()> {
        loop {
            match self.step().await? {
                Step::Planned | Step::Copying | Step::Following => {
                    let mut tx = self.begin(&self.source).await?;
                    self.note_off(&mut tx).await?;
                    self.set_step(&mut tx, Step::Clearing).await?;
                    tx.commit().await?;
                }
                Step::Switching if self.target_owns().await? => self.switch(&[]).await?,
                Step::Switching => {
                    let mut tx = self.begin(&self.source).await?;
                    self.mark(&mut tx, state::LEAVING, state::OWNED).await?;
                    self.note_off(&mut tx).await?;
                    self.set_step(&mut tx, Step::Clearing).await?;
                    tx.commit().await?;
                }
                Step::Switched => {
                    let mut tx = self.begin(&self.source).await?;
                    self.set_step(&mut tx, Step::Returning).await?;
                    tx.commit().await?;
                    pass("undo-begun");
                }
                Step::Returning => self.give_back().await?,
                Step::Clearing => {
                    pass("undo-clearing");
                    let mut tx = self.begin(&self.target).await?;
                    self.mark(&mut tx, state::LEAVING, state::ABSENT).await?;
                    tx.commit().await?;
                    self.clear(&self.target).await?;
                    pass("undo-cleared");
                    self.close(Step::Undone).await?;
                }
                Step::Undone => return Ok(()),
                Step::Finishing | Step::Finished => {
                    return invalid(
                        "it is finished, and can't be undone: move the buckets back".to_owned(),
                    );
                }
            }
        }
    }

    /// Brings back what has changed at the target, and gives the buckets to the source.
    async fn give_back(&self) -> Result<()> {
        self.drain(self.plan.target, &self.target, &self.source)
            .await?;
        pass("undo-followed");
        let mut tx = self.begin(&self.target).await?;
        self.mark(&mut tx, state::OWNED, state::LEAVING).await?;
        tx.commit().await?;
        pass("undo-given-up");
        self.drain(self.plan.target, &self.target, &self.source)
            .await?;
        pass("undo-last-changes");
        if let Some((part, bucket)) = self.unequal(self.pieces()).await?.first().copied() {
            let mut tx = self.begin(&self.target).await?;
            self.mark(&mut tx, state::LEAVING, state::OWNED).await?;
            tx.commit().await?;
            return Err(self.differs((part, bucket)));
        }
        let mut tx = self.begin(&self.target).await?;
        self.note_off(&mut tx).await?;
        tx.commit().await?;
        pass("undo-notes-ended");
        let mut tx = self.begin(&self.source).await?;
        self.mark(&mut tx, state::ABSENT, state::OWNED).await?;
        self.set_step(&mut tx, Step::Clearing).await?;
        tx.commit().await?;
        Ok(())
    }

    pub async fn finish(&self) -> Result<()> {
        loop {
            match self.step().await? {
                Step::Switched => {
                    let mut tx = self.begin(&self.source).await?;
                    self.set_step(&mut tx, Step::Finishing).await?;
                    tx.commit().await?;
                    pass("finish-begun");
                }
                Step::Finishing => {
                    let mut tx = self.begin(&self.target).await?;
                    self.note_off(&mut tx).await?;
                    tx.commit().await?;
                    pass("finish-notes-ended");
                    self.clear(&self.source).await?;
                    pass("finish-cleared");
                    self.close(Step::Finished).await?;
                }
                Step::Finished => return Ok(()),
                step => {
                    return invalid(format!(
                        "it is {}: only what has switched is finished",
                        step.name()
                    ));
                }
            }
        }
    }

    /// Removes the rows of the buckets where they are not owned.
    async fn clear(&self, session: &Session<Postgres>) -> Result<()> {
        for table in &self.tables {
            loop {
                let mut tx = self.begin(session).await?;
                let absent =
                    count(&mut tx, &self.set.name, &self.plan.buckets, state::ABSENT).await?;
                if absent != self.plan.buckets.len() {
                    let text = "rows were to be removed whose buckets are owned there: nothing was";
                    return Err(Error::new(ErrorKind::Corrupt, text));
                }
                let removed = table.remove(&mut tx, &self.plan.buckets).await?;
                tx.commit().await?;
                if removed == 0 {
                    break;
                }
                pass("move-removed");
            }
        }
        Ok(())
    }

    /// The end of a job; other jobs may have the buckets.
    async fn close(&self, step: Step) -> Result<()> {
        let close = "UPDATE quorate_bucket_fences SET open = false WHERE id = $1";
        let mut tx = self.begin(&self.target).await?;
        sqlx::query(close).bind(self.id).execute(&mut *tx).await?;
        tx.commit().await?;
        pass("move-closed");
        let mut tx = self.begin(&self.source).await?;
        sqlx::query(close).bind(self.id).execute(&mut *tx).await?;
        self.set_step(&mut tx, step).await?;
        tx.commit().await?;
        Ok(())
    }
}

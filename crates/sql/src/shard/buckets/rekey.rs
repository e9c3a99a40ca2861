//! Rows that change their shard key, and so their bucket and perhaps their database, while they are used.
//!
//! Two databases commit apart, so one of them decides. The steps:
//!
//! 1. the source notes the change and *parts* with the bucket: after the writes under way, nobody reads or writes it by key;
//! 2. the target inserts the rows under their new key, and notes the *outcome*: this commit is the change;
//! 3. the source removes the rows, and has the bucket again;
//! 4. the target forgets the outcome.
//!
//! Whoever meets a bucket that was parted with for too long ends the change: he asks the target for the outcome, and
//! writes that there is to be none where there is none yet. So a process that died holds the bucket up for a second, and one
//! that stood still comes too late to insert. Outcomes of this kind are never forgotten; there is one for each change that was
//! given up.
//!
//! Questions to all compare what was sent with what was received: each pair of databases keeps the sum (XOR) of the
//! changes' random numbers, raised by the steps 2 and 3. If the sums are the same in two snapshots, both have the same changes
//! behind them, but for a chance of one in 2^64.
//!
//! Invariant: but for the time between 2 and 3, in which nobody reads the source's bucket, a row is in one database.

use sqlx::{PgConnection, Postgres, Row};

use super::copy::{Lines, Table, list};
use super::{Buckets, Search, state, work};
use crate::points::{Planted, pass};
use crate::shard::Key;
use crate::transaction::Transaction;
use crate::{Error, ErrorKind, Result};

/// How long others leave a change to whoever began it, in milliseconds.
const STALLED_MS: u32 = if cfg!(test) { 300 } else { 1_000 };

const DUPLICATE: &str = "23505";

/// Rows that are to have another shard key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    from: Key,
    to: Key,
    parts: Vec<Part>,
}

/// Rows of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    table: String,
    matching: (Vec<String>, Vec<String>),
    set: (Vec<String>, Vec<String>),
}

impl KeyChange {
    /// From a key to another; of no rows yet.
    pub fn new(from: impl Into<Key>, to: impl Into<Key>) -> KeyChange {
        let parts = Vec::new();
        let (from, to) = (from.into(), to.into());
        KeyChange { from, to, parts }
    }

    /// Those rows of a table, of the former key's bucket, whose columns have these values; `set` is what changes in them, by name
    /// and value. Values are as PostgreSQL writes them. The column `bucket` changes by itself. Parents come before children.
    pub fn rows<'c, V: ToString>(
        mut self,
        table: impl Into<String>,
        matching: impl IntoIterator<Item = (&'c str, V)>,
        set: impl IntoIterator<Item = (&'c str, V)>,
    ) -> KeyChange {
        let pair = |(name, value): (&str, V)| (name.to_owned(), value.to_string());
        self.parts.push(Part {
            table: table.into(),
            matching: matching.into_iter().map(pair).unzip(),
            set: set.into_iter().map(pair).unzip(),
        });
        self
    }
}

/// A change that was begun: what the source has noted.
#[derive(Debug)]
pub(crate) struct Begun {
    id: i64,
    pub(crate) source: usize,
    pub(crate) target: usize,
    /// The rows, by the change's parts.
    lines: Vec<Lines>,
}

impl Begun {
    fn rows(&self) -> u64 {
        self.lines.iter().map(|lines| lines.rows.len() as u64).sum()
    }
}

/// How a try ended that did not fail.
pub(crate) enum Try {
    /// The change was made, in one database.
    Done(u64),
    /// The source has parted with the bucket.
    Begun(Begun),
    /// A bucket is not where it was looked for.
    Moved,
}

impl Buckets {
    /// Has rows belong to another key: they are removed from the bucket of the former and inserted into that of the latter, which
    /// may be in another database. Answers how many there were. A reader by key finds them under the one or
    /// the other, and questions to all count each once. Meanwhile the former's bucket is neither read nor written by key: for
    /// three commits if the databases are two, and for a second if this process dies.
    ///
    /// Rows go as they do in a move; triggers and foreign keys see a deletion and an insertion. Between two databases the deletion
    /// is tried first, and undone.
    ///
    /// Errors: `Missing` if no row matches; `Refused` if a database refuses the change, as for a key that is there already;
    /// `Invalid` for a table or a column that can't be; `Locked` if a transaction holds a bucket for too long; `Unavailable` if
    /// the buckets do not come to rest in time, or the target keeps such rows of a move that is not finished; `OutcomeUnknown` if the target's answer was lost, and it does not answer
    /// since.
    pub async fn change_key(&self, change: &KeyChange) -> Result<u64> {
        let (from, to) = (self.bucket(&change.from), self.bucket(&change.to));
        let mut search = Search::new(self.patience);
        let mut tries = 0;
        loop {
            tries += 1;
            let begun = match self.part(change).await? {
                Try::Done(rows) => return Ok(rows),
                Try::Begun(begun) => begun,
                Try::Moved => {
                    search.again(self, from).await?;
                    continue;
                }
            };
            pass("key-parted");
            match self.apply(change, &begun).await {
                Ok(true) => {
                    pass("key-applied");
                    // It is done; what is left others do if this process can't.
                    if let Err(error) = self.close(&begun, true).await {
                        tracing::warn!(%error, "a change of keys is done, and its source not told");
                    }
                    return Ok(begun.rows());
                }
                Ok(false) => {
                    self.give_up(&begun).await?;
                    search.again(self, to).await?;
                }
                Err(error) => {
                    let asked = self.give_up(&begun).await;
                    let unknown = |why: Error| {
                        let text = format!("a change of keys: {error}; then {why}");
                        Error::new(ErrorKind::OutcomeUnknown, text)
                    };
                    return match asked.map_err(unknown)? {
                        true => Ok(begun.rows()),
                        false
                            if error.code() == Some(DUPLICATE)
                                && (tries < 3 || self.is_left_over(change, &begun).await?) =>
                        {
                            // Of a move: a copy that came between, or what is kept until it is finished.
                            search.again(self, to).await?;
                            continue;
                        }
                        false if error.kind() == ErrorKind::OutcomeUnknown => {
                            Err(error.with_kind(ErrorKind::Unavailable))
                        }
                        false => Err(error),
                    };
                }
            }
        }
    }

    /// The first step; all of it if one database has both buckets.
    pub(crate) async fn part(&self, change: &KeyChange) -> Result<Try> {
        let (from, to) = (self.bucket(&change.from), self.bucket(&change.to));
        let (source, target) = (self.place(from), self.place(to));
        let session = self.databases[source].session();
        let mut tx = self.limited(&session).await?;
        let (own, away) = (state::OWNED, state::PARTING);
        let there = if source == target {
            // One transaction, like any write of the two.
            self.share(&mut tx, from, own).await? && self.share(&mut tx, to, own).await?
        } else {
            let parts = !self.plants(Planted::NotParted);
            let next = if parts { away } else { own };
            self.pass_on(&mut tx, from, own, next).await?
        };
        if !there {
            tx.rollback().await?;
            return Ok(Try::Moved);
        }
        let mut lines = Vec::new();
        let mut tables = Vec::new();
        for part in &change.parts {
            let table = part.check(&mut tx).await?;
            lines.push(table.matching(&mut tx, from, &part.matching).await?);
            tables.push(table);
        }
        let mut begun = Begun {
            id: 0,
            source,
            target,
            lines,
        };
        if begun.rows() == 0 {
            let text = "no row of the former key matches the change";
            return Err(Error::new(ErrorKind::Missing, text));
        }
        if source == target {
            let all = || change.parts.iter().zip(&tables).zip(&begun.lines);
            for ((_, table), lines) in all().rev() {
                table.take(&mut tx, &list(&lines.keys), from).await?;
            }
            for ((part, table), lines) in all() {
                table
                    .give(&mut tx, &lines.rows, &part.set, (&self.name, to))
                    .await?;
            }
            tx.commit().await?;
            return Ok(Try::Done(begun.rows()));
        }
        let tables = tables.iter().zip(&begun.lines).rev();
        try_taking(&mut tx, tables, from).await?;
        let keys: Vec<String> = begun.lines.iter().map(|lines| list(&lines.keys)).collect();
        let names: Vec<&str> = change.parts.iter().map(|part| &*part.table).collect();
        let note = "INSERT INTO quorate_key_changes SELECT \
            ('x' || substr(md5(gen_random_uuid()::text), 1, 16))::bit(64)::bigint, $1, $2, $3, $4, $5, clock_timestamp() \
            RETURNING id";
        let note = sqlx::query_scalar(note).bind(&self.name).bind(from);
        let note = note.bind(target as i32).bind(&names).bind(&keys);
        begun.id = note.fetch_one(&mut *tx).await?;
        // If it is not known whether that is noted: no target inserts anything.
        let noted = tx.commit().await;
        noted.map_err(|error| match error.kind() {
            ErrorKind::OutcomeUnknown => error.with_kind(ErrorKind::Unavailable),
            _ => error,
        })?;
        Ok(Try::Begun(begun))
    }

    /// The second step. False if the target does not have the bucket any more.
    pub(crate) async fn apply(&self, change: &KeyChange, begun: &Begun) -> Result<bool> {
        let to = self.bucket(&change.to);
        let session = self.databases[begun.target].session();
        let mut tx = self.limited(&session).await?;
        let note = "INSERT INTO quorate_key_outcomes VALUES ($1, $2, true) ON CONFLICT DO NOTHING";
        let note = sqlx::query(note).bind(begun.id).bind(&self.name);
        let noted = note.execute(&mut *tx).await?.rows_affected();
        if noted == 0 && !self.plants(Planted::LateApply) {
            let text = "the change took too long, and another has given it up";
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        // What leaves it for a third bucket is known by its keys: rows may come.
        let there = self.share(&mut tx, to, state::OWNED).await?
            || self.share(&mut tx, to, state::PARTING).await?;
        if !there {
            tx.rollback().await?;
            return Ok(false);
        }
        for (part, lines) in change.parts.iter().zip(&begun.lines) {
            let table = part.check(&mut tx).await?;
            table
                .give(&mut tx, &lines.rows, &part.set, (&self.name, to))
                .await?;
        }
        self.sum(&mut tx, begun.source, true, begun.id).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Whether the target has rows of these keys in a bucket that is not its own: of a move that is not finished.
    async fn is_left_over(&self, change: &KeyChange, begun: &Begun) -> Result<bool> {
        let session = self.databases[begun.target].session();
        let mut tx = self.limited(&session).await?;
        let to = self.bucket(&change.to);
        for (part, lines) in change.parts.iter().zip(&begun.lines) {
            let table = part.check(&mut tx).await?;
            let given = (&part.set, &*self.name, to);
            if table.is_left_over(&mut tx, &lines.rows, given).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends a change that can't be, or whose outcome is not known. Answers whether it was made after all.
    async fn give_up(&self, begun: &Begun) -> Result<bool> {
        let applied = self.decide(begun.id, begun.target).await?;
        pass("key-decided");
        if let Err(error) = self.close(begun, applied).await {
            tracing::warn!(%error, applied, "a change of keys is decided, and its source not told");
        }
        Ok(applied)
    }

    /// The outcome of a change: from now on there is one.
    async fn decide(&self, id: i64, target: usize) -> Result<bool> {
        if self.plants(Planted::OutcomeIgnored) {
            return Ok(false);
        }
        let session = self.databases[target].session();
        let mut tx = self.limited(&session).await?;
        let give_up =
            "INSERT INTO quorate_key_outcomes VALUES ($1, $2, false) ON CONFLICT DO NOTHING";
        let give_up = sqlx::query(give_up).bind(id).bind(&self.name);
        give_up.execute(&mut *tx).await?;
        let look = "SELECT applied FROM quorate_key_outcomes WHERE id = $1";
        let applied = sqlx::query_scalar(look).bind(id).fetch_one(&mut *tx).await;
        let applied: bool = applied?;
        tx.commit().await?;
        Ok(applied)
    }

    /// The third step and the fourth; the first undone if the change was not made. May be done twice.
    pub(crate) async fn close(&self, begun: &Begun, applied: bool) -> Result<()> {
        let (id, source, target) = (begun.id, begun.source, begun.target);
        let session = self.databases[source].session();
        let mut tx = self.limited(&session).await?;
        let forget = "DELETE FROM quorate_key_changes WHERE id = $1 RETURNING parted, tables, keys";
        let row = sqlx::query(forget)
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(row) = row {
            let bucket: i32 = row.try_get(0)?;
            let (tables, keys): (Vec<String>, Vec<String>) = (row.try_get(1)?, row.try_get(2)?);
            if applied {
                for (table, keys) in tables.iter().zip(&keys).rev() {
                    let table = Table::load(&mut tx, table).await?;
                    table.take(&mut tx, keys, bucket).await?;
                }
                self.sum(&mut tx, target, false, id).await?;
            }
            let (from, to) = (state::PARTING, state::OWNED);
            let back = self.pass_on(&mut tx, bucket, from, to).await?;
            if !back && !self.plants(Planted::NotParted) {
                let text = format!("bucket {bucket} has a change of keys, and is not marked so");
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
        }
        tx.commit().await?;
        pass("key-closed");
        if applied {
            let session = self.databases[target].session();
            let mut tx = self.limited(&session).await?;
            let forget = "DELETE FROM quorate_key_outcomes WHERE id = $1 AND applied";
            sqlx::query(forget).bind(id).execute(&mut *tx).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// Ends the changes that a database's buckets have been held up by for too long.
    pub(super) async fn end_stalled(&self, source: usize) -> Result<()> {
        let mut lease = self.primary(source).await?;
        let look = "SELECT id, target FROM quorate_key_changes \
            WHERE name = $1 AND since < clock_timestamp() - $2 * interval '1 millisecond'";
        let look = sqlx::query_as(look)
            .bind(&self.name)
            .bind(STALLED_MS as i32);
        let stalled: Vec<(i64, i32)> = look.fetch_all(&mut *lease).await?;
        drop(lease);
        for (id, target) in stalled {
            let target = usize::try_from(target).unwrap_or(usize::MAX);
            if target >= self.databases.len() {
                let text = "a change of keys is to a database that is not among those of the set";
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            let lines = Vec::new();
            let begun = Begun {
                id,
                source,
                target,
                lines,
            };
            self.give_up(&begun).await?;
        }
        Ok(())
    }

    /// A transaction that waits for no lock too long.
    async fn limited<'s>(
        &self,
        session: &'s crate::Session<Postgres>,
    ) -> Result<Transaction<'s, Postgres>> {
        let mut tx = session.begin(work()).await?;
        self.limit_locks(&mut tx).await?;
        Ok(tx)
    }

    /// Locks a bucket's line until the end of the transaction; false if it is not in that state.
    async fn share(&self, tx: &mut PgConnection, bucket: i32, of: i16) -> Result<bool> {
        let share = "SELECT 1 FROM quorate_buckets WHERE name = $1 AND bucket = $2 AND state = $3 FOR SHARE";
        let share = sqlx::query(share).bind(&self.name).bind(bucket).bind(of);
        Ok(share.fetch_optional(tx).await?.is_some())
    }

    /// Changes the state of a bucket; false if it is in another. Those who write the bucket are waited for.
    async fn pass_on(
        &self,
        tx: &mut PgConnection,
        bucket: i32,
        from: i16,
        to: i16,
    ) -> Result<bool> {
        let change = "UPDATE quorate_buckets SET state = $4, epoch = epoch + 1 \
            WHERE name = $1 AND bucket = $2 AND state = $3";
        let change = sqlx::query(change).bind(&self.name).bind(bucket);
        let changed = change.bind(from).bind(to).execute(tx).await?;
        Ok(changed.rows_affected() == 1)
    }

    /// Adds a change to what a database has received of another, or sent to it.
    async fn sum(&self, tx: &mut PgConnection, peer: usize, received: bool, id: i64) -> Result<()> {
        let add = "INSERT INTO quorate_key_sums AS s VALUES ($1, $2, $3, $4) \
            ON CONFLICT (name, peer, received) DO UPDATE SET total = s.total # excluded.total";
        let add = sqlx::query(add).bind(&self.name).bind(peer as i32);
        add.bind(received).bind(id).execute(tx).await?;
        Ok(())
    }
}

/// Whether the source will let the rows go: what refers to them is found before the target has them.
async fn try_taking<'l>(
    tx: &mut PgConnection,
    tables: impl Iterator<Item = (&'l Table, &'l Lines)>,
    bucket: i32,
) -> Result<()> {
    sqlx::raw_sql("SAVEPOINT quorate_trial")
        .execute(&mut *tx)
        .await?;
    for (table, lines) in tables {
        table.take(tx, &list(&lines.keys), bucket).await?;
    }
    let undo = "SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO quorate_trial";
    sqlx::raw_sql(undo).execute(tx).await?;
    Ok(())
}

impl Part {
    /// The table, with the columns that are named.
    async fn check(&self, connection: &mut PgConnection) -> Result<Table> {
        let table = Table::load(connection, &self.table).await?;
        let (matching, set) = (&self.matching.0, &self.set.0);
        let unknown = matching.iter().chain(set).find(|name| !table.has(name));
        let text = if let Some(name) = unknown {
            format!("{} has no column {name} that can be written", self.table)
        } else if set.iter().any(|name| name == "bucket") {
            format!("the column bucket of {} changes by itself", self.table)
        } else if matching.is_empty() {
            format!(
                "a change of keys says which rows of {} it is of",
                self.table
            )
        } else {
            return Ok(table);
        };
        Err(Error::new(ErrorKind::Invalid, text))
    }
}

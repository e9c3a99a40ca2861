//! A branch: one statement for a change, its images and its locks.

use std::sync::Arc;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row, Transaction};

use super::catalog::{Column, Table, quoted};
use super::{PgAt, failed, schema};
use crate::at::image::Image;
use crate::at::statement::{Condition, Set};
use crate::at::{Delete, Global, Insert, Rows, Update, Value};
use crate::{Error, ErrorKind, Result, points};

/// What images and keys are written by must not depend on the session. sqlx's own sessions have all of this, and
/// nothing is set then.
pub(super) const EXACT: &str = "('TimeZone', 'UTC'), ('DateStyle', 'ISO, MDY'), ('IntervalStyle', 'postgres'), \
     ('extra_float_digits', '2'), ('bytea_output', 'hex')";

/// Locks and images of the rows of `u (key, before, after)`, and how many there are of both. Parameters 1 to 4 are ours.
const RECORD: &str = "\
    l AS (INSERT INTO quorate_at_lock (tbl, digest, key, gid, began_ms)
          SELECT $3, sha256(convert_to(key, 'UTF8')), key, $1, $4 FROM u ORDER BY key
          ON CONFLICT (tbl, digest) DO NOTHING RETURNING 1),
    n AS (INSERT INTO quorate_at_undo (gid, branch, tbl, key, before, after)
          SELECT $1, $2, $3, key, before, after FROM u)
    SELECT (SELECT count(*) FROM u), (SELECT count(*) FROM l)";
/// Our parameters of every statement.
const OURS: usize = 4;

/// A branch of a global transaction: a transaction of the database that can be undone after it is committed.
///
/// Time zone, date, interval, float and bytea settings are fixed within it. Dropping it rolls it back.
pub struct PgAtTransaction {
    at: PgAt,
    tx: Transaction<'static, Postgres>,
    global: Global,
    branch: String,
    has_recorded: bool,
    is_broken: bool,
}

/// A statement in the making: its text, and its values as text.
struct Draft<'t> {
    table: &'t Table,
    values: Vec<Option<String>>,
}

impl PgAtTransaction {
    pub(super) fn new(
        at: PgAt,
        tx: Transaction<'static, Postgres>,
        global: Global,
        branch: String,
    ) -> PgAtTransaction {
        PgAtTransaction {
            at,
            tx,
            global,
            branch,
            has_recorded: false,
            is_broken: false,
        }
    }

    /// The transaction itself, for reads, the outbox, and whatever else commits with it. What is written here
    /// past this wrapper is not undone.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Inserts rows; answers how many.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Unsupported` for the table or a column; `Conflict` when a constraint refuses;
    /// `Locked` when a row belongs to another global transaction; `Unavailable`. After any of the database's
    /// the transaction can only be rolled back.
    pub async fn insert(&mut self, insert: &Insert) -> Result<u64> {
        let rows = insert.checked()?;
        let table = self.table(&insert.table).await?;
        let mut draft = Draft {
            table: &table,
            values: Vec::new(),
        };
        let mut names = Vec::new();
        for column in &insert.columns {
            names.push(quoted(&table.column(column)?.name));
        }
        let mut tuples = Vec::new();
        for row in rows {
            let mut tuple = Vec::new();
            for (column, value) in insert.columns.iter().zip(row) {
                tuple.push(draft.value(table.column(column)?, value)?);
            }
            tuples.push(format!("({})", tuple.join(", ")));
        }
        let text = format!(
            "WITH u AS (INSERT INTO {} AS t ({}) VALUES {}
                 RETURNING {} AS key, NULL::jsonb AS before, {} AS after), {RECORD}",
            table.name,
            names.join(", "),
            tuples.join(", "),
            table.key_text("t"),
            table.image("t"),
        );
        let values = draft.values;
        Ok(self.run(&table, text, values).await?.0)
    }

    /// Changes rows; answers how many.
    ///
    /// # Errors
    /// As [`PgAtTransaction::insert`].
    pub async fn update(&mut self, update: &Update) -> Result<u64> {
        let table = self.table(&update.rows.table).await?;
        let mut draft = Draft {
            table: &table,
            values: Vec::new(),
        };
        let filter = draft.filter(&update.rows)?;
        let mut sets = Vec::new();
        for (name, set) in &update.sets {
            let column = table.column(name)?;
            table.check_update(column)?;
            let name = quoted(name);
            sets.push(match set {
                Set::To(value) => format!("{name} = {}", draft.value(column, value)?),
                Set::Add(value) => format!("{name} = t.{name} + {}", draft.value(column, value)?),
            });
        }
        if sets.is_empty() {
            let text = format!("an update of `{}` needs a column", update.rows.table);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let text = format!(
            "WITH b AS MATERIALIZED (SELECT {}, {} AS image FROM {} AS t WHERE {filter}
                 ORDER BY {} FOR NO KEY UPDATE OF t),
             u AS (UPDATE {} AS t SET {} FROM b WHERE {}
                 RETURNING {} AS key, b.image AS before, {} AS after), {RECORD}",
            table.key_aliased(),
            table.image("t"),
            table.name,
            table.key_columns(),
            table.name,
            sets.join(", "),
            table.key_joined(),
            table.key_text("t"),
            table.image("t"),
        );
        let values = draft.values;
        Ok(self.run(&table, text, values).await?.0)
    }

    /// Deletes rows; answers how many.
    ///
    /// # Errors
    /// As [`PgAtTransaction::insert`].
    pub async fn delete(&mut self, delete: &Delete) -> Result<u64> {
        let table = self.table(&delete.rows.table).await?;
        table.check_delete()?;
        let mut draft = Draft {
            table: &table,
            values: Vec::new(),
        };
        let filter = draft.filter(&delete.rows)?;
        let text = format!(
            "WITH b AS MATERIALIZED (SELECT {} FROM {} AS t WHERE {filter} ORDER BY {} FOR UPDATE OF t),
             u AS (DELETE FROM {} AS t USING b WHERE {}
                 RETURNING {} AS key, {} AS before, NULL::jsonb AS after), {RECORD}",
            table.key_aliased(),
            table.name,
            table.key_columns(),
            table.name,
            table.key_joined(),
            table.key_text("t"),
            table.image("t"),
        );
        let values = draft.values;
        Ok(self.run(&table, text, values).await?.0)
    }

    /// Reads rows and takes their global locks: what is read is committed, and stays so until the global
    /// transaction ends.
    ///
    /// # Errors
    /// As [`PgAtTransaction::insert`].
    pub async fn read_locked(&mut self, rows: &Rows) -> Result<Vec<Image>> {
        let table = self.table(&rows.table).await?;
        let mut draft = Draft {
            table: &table,
            values: Vec::new(),
        };
        let filter = draft.filter(rows)?;
        let text = format!(
            "WITH r AS MATERIALIZED (SELECT {} AS key, {} AS image FROM {} AS t WHERE {filter}
                 ORDER BY {} FOR NO KEY UPDATE OF t),
             u AS (SELECT key, NULL::jsonb AS before, NULL::jsonb AS after FROM r), {RECORD},
             (SELECT array_agg(image::text) FROM r)",
            table.key_text("t"),
            table.image("t"),
            table.name,
            table.key_columns(),
        );
        let values = draft.values;
        let (_, row) = self.run(&table, text, values).await?;
        let images: Option<Vec<String>> = row.try_get(2)?;
        images
            .unwrap_or_default()
            .iter()
            .map(|text| super::image_of(text))
            .collect()
    }

    async fn table(&mut self, name: &str) -> Result<Arc<Table>> {
        if self.is_broken {
            let text = "this transaction has met a lock or an error: roll it back";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.at.table(&mut self.tx, name).await
    }

    async fn run(
        &mut self,
        table: &Table,
        text: String,
        values: Vec<Option<String>>,
    ) -> Result<(u64, PgRow)> {
        self.is_broken = true;
        self.has_recorded = true;
        let mut query = self.ours(&table.name, text);
        for value in values {
            query = query.bind(value);
        }
        let row = query.fetch_one(&mut *self.tx).await;
        let row = row.map_err(|error| super::guarded(&self.global, error))?;
        points::pass("at.changed");
        let (count, locked): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if locked < count {
            self.lock_again(table, count).await?;
        }
        self.is_broken = false;
        Ok((count.unsigned_abs(), row))
    }

    // Identifiers are quoted names of the catalog; everything else is a parameter.
    fn ours<'q>(&self, table: &str, text: String) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(text))
            .bind(self.global.gid.clone())
            .bind(self.branch.clone())
            .bind(table.to_owned())
            .bind(self.global.began_ms)
    }

    /// Of the rows that were recorded last some were locked already: by this global transaction, or by another.
    async fn lock_again(&mut self, table: &Table, rows: i64) -> Result<()> {
        let text =
            "SELECT key FROM quorate_at_undo WHERE gid = $1 AND branch = $2 AND tbl = $3 AND $4 > 0
             ORDER BY seq DESC LIMIT $5";
        let recorded = self.ours(&table.name, text.to_owned()).bind(rows);
        let recorded = recorded.fetch_all(&mut *self.tx).await.map_err(failed)?;
        let keys = recorded.iter().map(|row| Ok(row.try_get(0)?));
        let keys = keys.collect::<Result<Vec<String>>>()?;
        loop {
            let owners = sqlx::query(
                "SELECT key, gid, began_ms FROM quorate_at_lock WHERE tbl = $1 AND digest = ANY (
                    SELECT sha256(convert_to(k, 'UTF8')) FROM unnest($2::text[]) k)",
            );
            let owners = owners
                .bind(&table.name)
                .bind(&keys)
                .fetch_all(&mut *self.tx)
                .await;
            let owners = owners.map_err(failed)?;
            for owner in &owners {
                let (key, gid): (String, String) = (owner.try_get(0)?, owner.try_get(1)?);
                if gid != self.global.gid {
                    return Err(super::locked(
                        &self.global,
                        &table.name,
                        &key,
                        &gid,
                        owner.try_get(2)?,
                    ));
                }
            }
            if owners.len() >= keys.len() {
                return Ok(());
            }
            // Another has released its lock since. Its rows are ours, in this transaction, so this ends.
            let text = "INSERT INTO quorate_at_lock (tbl, digest, key, gid, began_ms)
                 SELECT $3, sha256(convert_to(k, 'UTF8')), k, $1, $4 FROM unnest($5::text[]) k
                 WHERE $2 <> '' ORDER BY k ON CONFLICT (tbl, digest) DO NOTHING";
            let query = self.ours(&table.name, text.to_owned()).bind(&keys);
            query.execute(&mut *self.tx).await.map_err(failed)?;
        }
    }

    /// Commits the branch. It can be undone from then on, until its global transaction ends.
    ///
    /// # Errors
    /// `Fenced` when the global transaction has ended here; `Conflict` when a branch of this name has committed
    /// already; `Unavailable`, where the outcome may be unknown: run the same branch again, and it is told.
    pub async fn commit(mut self) -> Result<()> {
        if self.is_broken {
            let text = "this transaction has met a lock or an error: nothing is committed";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if !self.has_recorded {
            self.tx.commit().await.map_err(super::commit_failed)?;
            return Ok(());
        }
        points::pass("at.registering");
        let Global { gid, home, .. } = &self.global;
        let left_ms = crate::at::global::millis(self.global.left());
        // In one message, so that the row of the global transaction is held for the commit alone. Names have no
        // quotes. The transaction that is chained is empty: it ends when this is dropped.
        let text = format!(
            "SELECT quorate_at_register('{gid}', '{home}', '{}', {left_ms}); COMMIT AND CHAIN",
            self.branch
        );
        let done = sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&mut *self.tx)
            .await;
        done.map_err(|error| self.commit_failed(error))?;
        points::pass("at.local-committed");
        Ok(())
    }

    /// The row of the global transaction is what its end and a late branch meet at.
    fn commit_failed(&self, error: sqlx::Error) -> Error {
        let code = error
            .as_database_error()
            .and_then(|from| Some(from.code()?.into_owned()));
        match code.as_deref() {
            Some(schema::REPEATED) => crate::at::refused_branch(&self.global, &self.branch, true),
            Some(schema::ENDED) => crate::at::refused_branch(&self.global, &self.branch, false),
            _ => super::commit_failed(error),
        }
    }

    /// Undoes all of it, as if it had never been.
    ///
    /// # Errors
    /// `Unavailable`; the database rolls it back all the same.
    pub async fn rollback(self) -> Result<()> {
        self.tx.rollback().await.map_err(failed)
    }
}

impl Draft<'_> {
    /// A value as a parameter of its column's type.
    fn value(&mut self, column: &Column, value: &Value) -> Result<String> {
        let text = match value {
            Value::Null => None,
            Value::Bool(value) => Some(value.to_string()),
            Value::Int(value) => Some(value.to_string()),
            Value::Real(value) => Some(value.to_string()),
            Value::Text(value) if value.contains('\0') => {
                let text = format!("the text for column {} has a zero byte", column.name);
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            Value::Text(value) => Some(value.clone()),
            Value::Bytes(value) => Some(super::hex(value)),
        };
        self.values.push(text);
        Ok(self.table.cast(column, OURS + self.values.len()))
    }

    fn filter(&mut self, rows: &Rows) -> Result<String> {
        rows.check()?;
        let mut parts = vec!["true".to_owned()];
        for condition in &rows.conditions {
            parts.push(match condition {
                Condition::Compare(name, op, value) => {
                    let column = self.table.column(name)?;
                    let value = self.value(column, value)?;
                    format!("t.{} {} {value}", quoted(name), op.sql())
                }
                Condition::IsNull(name, is_null) => {
                    let column = quoted(&self.table.column(name)?.name);
                    format!("t.{column} IS {}NULL", if *is_null { "" } else { "NOT " })
                }
                Condition::In(name, values) => self.is_in(name, values)?,
                Condition::Key(values) => self.key(values)?,
            });
        }
        Ok(parts.join(" AND "))
    }

    fn is_in(&mut self, name: &str, values: &[Value]) -> Result<String> {
        let column = self.table.column(name)?;
        if values.is_empty() {
            return Ok("false".into());
        }
        let mut list = Vec::with_capacity(values.len());
        for value in values {
            list.push(self.value(column, value)?);
        }
        Ok(format!("t.{} IN ({})", quoted(name), list.join(", ")))
    }

    fn key(&mut self, values: &[Value]) -> Result<String> {
        let table = self.table;
        if values.len() != table.key.len() {
            let text = format!(
                "the primary key of {} has {} columns, not {}",
                table.name,
                table.key.len(),
                values.len()
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let mut parts = Vec::new();
        for (&i, value) in table.key.iter().zip(values) {
            let column = &table.columns[i];
            let name = quoted(&column.name);
            parts.push(format!("t.{name} = {}", self.value(column, value)?));
        }
        Ok(parts.join(" AND "))
    }
}

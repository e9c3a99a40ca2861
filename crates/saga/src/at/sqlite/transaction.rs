//! A branch: changes with their images, kept until the commit; then locks and images at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Row, Sqlite, SqliteConnection, Transaction};

use super::catalog::{Table, quoted};
use super::{SqliteAt, failed};
use crate::at::image::{Change, Image};
use crate::at::statement::{Condition, Set};
use crate::at::{Delete, Global, Insert, Rows, Update, Value};
use crate::{Error, ErrorKind, Result, points};

/// So many rows in one statement.
const ROWS_AT_ONCE: usize = 500;

/// A branch of a global transaction: a transaction of the database that can be undone after it is committed.
/// Dropping it rolls it back.
pub struct SqliteAtTransaction {
    at: SqliteAt,
    tx: Transaction<'static, Sqlite>,
    global: Global,
    branch: String,
    changes: Vec<Change>,
    is_owner: bool,
    is_broken: bool,
}

/// A statement with its values.
pub(super) fn query(text: String, values: Vec<Value>) -> Query<'static, Sqlite, SqliteArguments> {
    // Identifiers are quoted names of the catalog; everything else is a parameter.
    let mut query = sqlx::query(AssertSqlSafe(text));
    for value in values {
        query = match value {
            Value::Null => query.bind(None::<i64>),
            Value::Bool(value) => query.bind(value),
            Value::Int(value) => query.bind(value),
            Value::Real(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
            Value::Bytes(value) => query.bind(value),
        };
    }
    query
}

impl SqliteAtTransaction {
    pub(super) fn new(
        at: SqliteAt,
        tx: Transaction<'static, Sqlite>,
        global: Global,
        branch: String,
    ) -> SqliteAtTransaction {
        SqliteAtTransaction {
            at,
            tx,
            global,
            branch,
            changes: Vec::new(),
            is_owner: false,
            is_broken: false,
        }
    }

    /// The transaction itself, for reads, the outbox, and whatever else commits with it. What is written here
    /// past this wrapper is not undone.
    pub fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }

    /// Inserts rows; answers how many.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Unsupported` for the table or a column; `Conflict` when a constraint refuses;
    /// `Unavailable`. After any of the database's the transaction can only be rolled back.
    pub async fn insert(&mut self, insert: &Insert) -> Result<u64> {
        let rows = insert.checked()?;
        let table = self.table(&insert.table).await?;
        let mut names = Vec::new();
        for column in &insert.columns {
            names.push(quoted(&table.column(column)?.name));
        }
        let marks = vec!["?"; names.len()].join(", ");
        let text = format!(
            "INSERT INTO {} ({}) VALUES ({marks}) RETURNING {}",
            quoted(&table.name),
            names.join(", "),
            table.selected()
        );
        self.begin_write().await?;
        let mut count = 0;
        for row in rows {
            let after = self.rows(&table, text.clone(), row.to_vec()).await?;
            count += after.len() as u64;
            self.record(&table, HashMap::new(), after).await?;
        }
        self.is_broken = false;
        Ok(count)
    }

    /// Changes rows; answers how many.
    ///
    /// # Errors
    /// As [`SqliteAtTransaction::insert`].
    pub async fn update(&mut self, update: &Update) -> Result<u64> {
        let table = self.table(&update.rows.table).await?;
        let (filter, filtered) = filter(&table, &update.rows)?;
        let mut sets = Vec::new();
        let mut values = Vec::new();
        for (name, set) in &update.sets {
            let column = table.column(name)?;
            table.check_update(column)?;
            let name = quoted(&column.name);
            let (text, value) = match set {
                Set::To(value) => (format!("{name} = ?"), value),
                Set::Add(value) => (format!("{name} = {name} + ?"), value),
            };
            sets.push(text);
            values.push(value.clone());
        }
        if sets.is_empty() {
            let text = format!("an update of `{}` needs a column", update.rows.table);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.begin_write().await?;
        let before = self.select(&table, &filter, &filtered).await?;
        let text = format!(
            "UPDATE {} SET {} WHERE {filter} RETURNING {}",
            quoted(&table.name),
            sets.join(", "),
            table.selected()
        );
        values.extend(filtered);
        let after = self.rows(&table, text, values).await?;
        let count = after.len() as u64;
        self.record(&table, before, after).await?;
        self.is_broken = false;
        Ok(count)
    }

    /// Deletes rows; answers how many.
    ///
    /// # Errors
    /// As [`SqliteAtTransaction::insert`].
    pub async fn delete(&mut self, delete: &Delete) -> Result<u64> {
        let table = self.table(&delete.rows.table).await?;
        table.check_delete()?;
        let (filter, values) = filter(&table, &delete.rows)?;
        self.begin_write().await?;
        let before = self.select(&table, &filter, &values).await?;
        let text = format!("DELETE FROM {} WHERE {filter}", quoted(&table.name));
        let done = query(text, values)
            .execute(&mut *self.tx)
            .await
            .map_err(failed)?;
        points::pass("at.changed");
        self.record(&table, before, HashMap::new()).await?;
        self.is_broken = false;
        Ok(done.rows_affected())
    }

    /// Reads rows and takes their global locks when this commits: what is read is committed then, and stays so
    /// until the global transaction ends.
    ///
    /// # Errors
    /// As [`SqliteAtTransaction::insert`]; `Locked`, or `Unavailable` where the owner is younger.
    pub async fn read_locked(&mut self, rows: &Rows) -> Result<Vec<Image>> {
        let table = self.table(&rows.table).await?;
        let (filter, values) = filter(&table, rows)?;
        self.begin_write().await?;
        let found = self.select(&table, &filter, &values).await?;
        let mut found: Vec<(String, Image)> = found.into_iter().collect();
        found.sort();
        for (key, _) in &found {
            self.check_owner(&table.name, key).await?;
            let (table, key) = (table.name.clone(), key.clone());
            self.changes.push(Change {
                table,
                key,
                before: None,
                after: None,
            });
        }
        self.is_broken = false;
        Ok(found.into_iter().map(|(_, image)| image).collect())
    }

    async fn table(&mut self, name: &str) -> Result<Arc<Table>> {
        if self.is_broken {
            let text = "this transaction has met a lock or an error: roll it back";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.at.table(&mut self.tx, name).await
    }

    /// Tells the guard's triggers whose transaction this is. Nobody else ever sees the row like that.
    async fn begin_write(&mut self) -> Result<()> {
        self.is_broken = true;
        if !self.is_owner {
            self.own(Some(self.global.gid.clone())).await?;
            self.is_owner = true;
        }
        Ok(())
    }

    async fn own(&mut self, gid: Option<String>) -> Result<()> {
        let owner =
            sqlx::query("UPDATE quorate_at_owner SET gid = ?").bind(gid.unwrap_or_default());
        owner.execute(&mut *self.tx).await.map_err(failed)?;
        Ok(())
    }

    async fn select(
        &mut self,
        table: &Table,
        filter: &str,
        values: &[Value],
    ) -> Result<HashMap<String, Image>> {
        let text = format!(
            "SELECT {} FROM {} WHERE {filter} ORDER BY {}",
            table.selected(),
            quoted(&table.name),
            table.key_columns()
        );
        self.rows(table, text, values.to_vec()).await
    }

    async fn rows(
        &mut self,
        table: &Table,
        text: String,
        values: Vec<Value>,
    ) -> Result<HashMap<String, Image>> {
        let rows = query(text, values).fetch_all(&mut *self.tx).await;
        let rows = rows.map_err(|error| self.guarded(error))?;
        points::pass("at.changed");
        rows.iter().map(|row| table.row_of(row)).collect()
    }

    /// A statement that the guard has refused met another's lock.
    fn guarded(&self, error: sqlx::Error) -> Error {
        let text = error
            .as_database_error()
            .map(|from| from.message().to_owned());
        let owner = text.as_deref().and_then(super::guard::owner_of);
        match owner {
            Some((owner, began_ms)) => {
                crate::at::locked(&self.global, "of a guarded table", owner, began_ms)
            }
            None => failed(error),
        }
    }

    async fn record(
        &mut self,
        table: &Table,
        mut before: HashMap<String, Image>,
        mut after: HashMap<String, Image>,
    ) -> Result<()> {
        if table.has_triggers {
            for (key, image) in &mut after {
                let text = format!(
                    "SELECT {} FROM {} WHERE {}",
                    table.selected(),
                    quoted(&table.name),
                    table.key_is()
                );
                let found = query(text, table.key_of(image)?)
                    .fetch_optional(&mut *self.tx)
                    .await;
                let found = found.map_err(failed)?.ok_or_else(|| {
                    let text = format!("a trigger has deleted row {key} of {}", table.name);
                    Error::new(ErrorKind::Unsupported, text)
                })?;
                *image = table.row_of(&found)?.1;
            }
        }
        let keys: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
        for key in keys {
            let (before, after) = (before.remove(&key), after.remove(&key));
            self.changes.push(Change {
                table: table.name.clone(),
                key,
                before,
                after,
            });
        }
        Ok(())
    }

    /// Commits the branch. It can be undone from then on, until its global transaction ends.
    ///
    /// # Errors
    /// `Locked` when a row belongs to an older global transaction, `Unavailable` to a younger one, for which to
    /// wait; `Fenced` when the global transaction has ended here; `Conflict` when a branch of this name has
    /// committed already. Nothing is committed then.
    pub async fn commit(mut self) -> Result<()> {
        if self.is_broken {
            let text = "this transaction has met a lock or an error: nothing is committed";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if self.changes.is_empty() {
            if self.is_owner {
                self.own(None).await?;
            }
            return self.tx.commit().await.map_err(failed);
        }
        self.lock().await?;
        points::pass("at.locked");
        self.keep_images().await?;
        points::pass("at.registering");
        self.register().await?;
        self.own(None).await?;
        points::pass("at.registered");
        self.tx
            .commit()
            .await
            .map_err(|error| failed(error).outcome_unknown())?;
        points::pass("at.local-committed");
        Ok(())
    }

    async fn lock(&mut self) -> Result<()> {
        let rows = self
            .changes
            .iter()
            .map(|change| (change.table.clone(), change.key.clone()));
        let rows: BTreeSet<(String, String)> = rows.collect();
        let rows: Vec<(String, String)> = rows.into_iter().collect();
        for some in rows.chunks(ROWS_AT_ONCE) {
            let marks = vec!["(?, ?, ?, ?)"; some.len()].join(", ");
            let text = format!(
                "INSERT INTO quorate_at_lock (tbl, key, gid, began_ms) VALUES {marks}
                 ON CONFLICT (tbl, key) DO NOTHING"
            );
            let mut insert = sqlx::query(AssertSqlSafe(text));
            for (table, key) in some {
                insert = insert.bind(table).bind(key);
                insert = insert.bind(&self.global.gid).bind(self.global.began_ms);
            }
            let done = insert.execute(&mut *self.tx).await.map_err(failed)?;
            if done.rows_affected() == some.len() as u64 {
                continue;
            }
            for (table, key) in some {
                self.check_owner(table, key).await?;
            }
        }
        Ok(())
    }

    async fn check_owner(&mut self, table: &str, key: &str) -> Result<()> {
        let read =
            "SELECT gid, began_ms FROM quorate_at_lock WHERE tbl = ? AND key = ? AND gid <> ?";
        let read = sqlx::query(read)
            .bind(table)
            .bind(key)
            .bind(&self.global.gid);
        let owner = read.fetch_optional(&mut *self.tx).await.map_err(failed)?;
        let Some(owner) = owner else { return Ok(()) };
        let (gid, began_ms): (String, i64) = (owner.try_get(0)?, owner.try_get(1)?);
        Err(crate::at::locked(
            &self.global,
            &format!("{table} {key}"),
            &gid,
            began_ms,
        ))
    }

    async fn keep_images(&mut self) -> Result<()> {
        let changes = std::mem::take(&mut self.changes);
        let text_of = |image: &Option<Image>| {
            image
                .as_ref()
                .map(|image| serde_json::to_string(image).unwrap_or_default())
        };
        for some in changes.chunks(ROWS_AT_ONCE) {
            let marks = vec!["(?, ?, ?, ?, ?, ?)"; some.len()].join(", ");
            let text = format!(
                "INSERT INTO quorate_at_undo (gid, branch, tbl, key, before, after) VALUES {marks}"
            );
            let mut insert = sqlx::query(AssertSqlSafe(text));
            for change in some {
                insert = insert.bind(&self.global.gid).bind(&self.branch);
                insert = insert.bind(&change.table).bind(&change.key);
                insert = insert
                    .bind(text_of(&change.before))
                    .bind(text_of(&change.after));
            }
            insert.execute(&mut *self.tx).await.map_err(failed)?;
        }
        points::pass("at.images-kept");
        Ok(())
    }

    /// SQLite has one writer: what is read here can't change before the commit.
    async fn register(&mut self) -> Result<()> {
        let read = "SELECT branches, state FROM quorate_at_work WHERE gid = ?";
        let row = sqlx::query(read)
            .bind(&self.global.gid)
            .fetch_optional(&mut *self.tx)
            .await;
        let mut branches = Vec::new();
        if let Some(row) = row.map_err(failed)? {
            branches = super::resource::branches_of(row.try_get(0)?)?;
            let is_open = row.try_get::<i64, _>(1)? == super::resource::OPEN;
            if !is_open || branches.contains(&self.branch) {
                return Err(crate::at::refused_branch(
                    &self.global,
                    &self.branch,
                    is_open,
                ));
            }
        }
        branches.push(self.branch.clone());
        let write = "INSERT INTO quorate_at_work (gid, home, branches, state, deadline_ms)
             VALUES (?, ?, ?, 0, ?) ON CONFLICT (gid) DO UPDATE SET branches = excluded.branches";
        let write = sqlx::query(write)
            .bind(&self.global.gid)
            .bind(&self.global.home);
        let write = write.bind(serde_json::to_string(&branches).unwrap_or_default());
        let write = write.bind(self.global.deadline_ms);
        write.execute(&mut *self.tx).await.map_err(failed)?;
        Ok(())
    }

    /// Undoes all of it, as if it had never been.
    ///
    /// # Errors
    /// `Unavailable`; the database rolls it back all the same.
    pub async fn rollback(self) -> Result<()> {
        self.tx.rollback().await.map_err(failed)
    }
}

fn filter(table: &Table, rows: &Rows) -> Result<(String, Vec<Value>)> {
    rows.check()?;
    let mut parts = vec!["true".to_owned()];
    let mut values = Vec::new();
    for condition in &rows.conditions {
        parts.push(match condition {
            Condition::Compare(name, op, value) => {
                values.push(value.clone());
                format!("{} {} ?", quoted(&table.column(name)?.name), op.sql())
            }
            Condition::IsNull(name, is_null) => {
                let column = quoted(&table.column(name)?.name);
                format!("{column} IS {}NULL", if *is_null { "" } else { "NOT " })
            }
            Condition::In(name, list) => {
                let column = quoted(&table.column(name)?.name);
                values.extend(list.iter().cloned());
                format!("{column} IN ({})", vec!["?"; list.len()].join(", "))
            }
            Condition::Key(key) if key.len() == table.key.len() => {
                values.extend(key.iter().cloned());
                table.key_is()
            }
            Condition::Key(key) => {
                let text = format!(
                    "the primary key of {} has {} columns, not {}",
                    table.name,
                    table.key.len(),
                    key.len()
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
        });
    }
    Ok((parts.join(" AND "), values))
}

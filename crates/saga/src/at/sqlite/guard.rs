//! The guard: triggers that refuse writes to a locked row by anybody but the lock's owner.
//!
//! SQLite has no settings of a session, but one writer: a branch puts its name into `quorate_at_owner` and takes it
//! out before it commits, so that no other writer ever finds a name there.

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::catalog::{Table, quoted};
use super::{SqliteAt, failed};
use crate::Result;

const SAYS: &str = "the row is locked by global transaction ";

/// The owner of a lock and its age, from what the guard says.
pub(super) fn owner_of(message: &str) -> Option<(&str, i64)> {
    let (_, owner) = message.split_once(SAYS)?;
    let (owner, began) = owner.split_once(';')?;
    Some((owner, began.trim_end_matches(')').parse().ok()?))
}

impl SqliteAt {
    /// Installs the guard on a table, or brings it up to date after the primary key was changed. Whoever writes
    /// to a row that a global transaction has locked gets an error with the owner's name.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported` for the table; `Unavailable`.
    pub async fn install_guard(&self, table: &str) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let table = Table::read(&mut tx, table).await?;
        drop_triggers(&mut tx, &table).await?;
        for (what, rows) in [
            ("insert", &["NEW."][..]),
            ("update", &["OLD.", "NEW."]),
            ("delete", &["OLD."]),
        ] {
            run(&mut tx, &trigger(&table, what, rows)).await?;
        }
        tx.commit().await.map_err(failed)
    }

    /// Removes the guard from a table; nothing happens where there is none.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported` for the table; `Unavailable`.
    pub async fn remove_guard(&self, table: &str) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let table = Table::read(&mut tx, table).await?;
        drop_triggers(&mut tx, &table).await?;
        tx.commit().await.map_err(failed)
    }
}

fn name_of(table: &Table, what: &str) -> String {
    quoted(&format!("quorate_at_guard_{what}_{}", table.name))
}

fn trigger(table: &Table, what: &str, rows: &[&str]) -> String {
    let name = table.name.replace('\'', "''");
    let keys: Vec<String> = rows.iter().map(|row| table.key_text(row)).collect();
    // After the row is written: its key may be one that the database has drawn.
    format!(
        "CREATE TRIGGER {} AFTER {} ON {} BEGIN
             SELECT RAISE(ABORT, '{SAYS}' || l.gid || ';' || l.began_ms) FROM quorate_at_lock l
             WHERE l.tbl = '{name}' AND l.key IN ({})
             AND l.gid <> (SELECT o.gid FROM quorate_at_owner o);
         END",
        name_of(table, what),
        what.to_uppercase(),
        quoted(&table.name),
        keys.join(", ")
    )
}

async fn drop_triggers(connection: &mut SqliteConnection, table: &Table) -> Result<()> {
    for what in ["insert", "update", "delete"] {
        run(
            connection,
            &format!("DROP TRIGGER IF EXISTS {}", name_of(table, what)),
        )
        .await?;
    }
    Ok(())
}

// The names in these statements are quoted.
async fn run(connection: &mut SqliteConnection, text: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(text))
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

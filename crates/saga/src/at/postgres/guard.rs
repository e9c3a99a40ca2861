//! The guard: triggers that refuse writes to a locked row by anybody but the lock's owner.
//!
//! They run after the row is written, so after every wait for another's transaction, and look with a snapshot of
//! their own: under read committed no lock escapes them. It keeps out mistakes, not malice: who sets
//! `quorate.gid` passes.

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::catalog::{Table, quoted};
use super::{PgAt, failed};
use crate::{Error, ErrorKind, Result};

/// The SQLSTATE of a refusal: object in use.
pub(super) const CODE: &str = "55006";
const TRIGGER: &str = "quorate_at_guard";
const TRUNCATE: &str = "quorate_at_guard_truncate";

impl PgAt {
    /// Installs the guard on a table, or brings it up to date after the primary key was changed. Whoever writes
    /// to a row that a global transaction has locked gets SQLSTATE 55006 with the owner's name.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported` for the table; `Unavailable`.
    pub async fn install_guard(&self, table: &str) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let table = Table::read(&mut tx, table).await?;
        let (schema, function) = function_of(&mut tx, &table).await?;
        run(&mut tx, &body(&schema, &function, &table)).await?;
        drop_triggers(&mut tx, &table).await?;
        let each = format!(
            "CREATE TRIGGER {TRIGGER} AFTER INSERT OR UPDATE OR DELETE ON {}
             FOR EACH ROW EXECUTE FUNCTION {function}()",
            table.name
        );
        run(&mut tx, &each).await?;
        let truncate = format!(
            "CREATE TRIGGER {TRUNCATE} BEFORE TRUNCATE ON {}
             FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
            table.name
        );
        run(&mut tx, &truncate).await?;
        tx.commit().await.map_err(failed)
    }

    /// Removes the guard from a table; nothing happens where there is none.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported` for the table; `Unavailable`.
    pub async fn remove_guard(&self, table: &str) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let table = Table::read(&mut tx, table).await?;
        let (_, function) = function_of(&mut tx, &table).await?;
        drop_triggers(&mut tx, &table).await?;
        run(&mut tx, &format!("DROP FUNCTION IF EXISTS {function}()")).await?;
        tx.commit().await.map_err(failed)
    }
}

/// The schema of our tables, and the name of a table's function in it, both quoted. A writer's search path may be
/// another than ours.
async fn function_of(connection: &mut PgConnection, table: &Table) -> Result<(String, String)> {
    let found = sqlx::query(
        "SELECT quote_ident(n.nspname), to_regclass($1)::oid::text FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('quorate_at_lock')",
    );
    let row = found
        .bind(&table.name)
        .fetch_optional(connection)
        .await
        .map_err(failed)?;
    let missing = || {
        Error::new(
            ErrorKind::Missing,
            "there is no table quorate_at_lock: migrate it",
        )
    };
    let row = row.ok_or_else(missing)?;
    let (schema, oid): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    Ok((
        schema.clone(),
        format!("{schema}.{}", quoted(&format!("quorate_at_guard_{oid}"))),
    ))
}

async fn drop_triggers(connection: &mut PgConnection, table: &Table) -> Result<()> {
    for trigger in [TRIGGER, TRUNCATE] {
        run(
            connection,
            &format!("DROP TRIGGER IF EXISTS {trigger} ON {}", table.name),
        )
        .await?;
    }
    Ok(())
}

fn body(schema: &str, function: &str, table: &Table) -> String {
    let name = table.name.replace('\'', "''");
    let (old, new) = (table.key_text("OLD"), table.key_text("NEW"));
    let hint = "it is free when that global transaction has ended; write through the AT wrapper to wait for it";
    format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql
         SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD' SET bytea_output = 'hex' AS $quorate$
         DECLARE
             held record;
         BEGIN
             IF TG_OP = 'TRUNCATE' THEN
                 SELECT l.key, l.gid, l.began_ms INTO held FROM {schema}.quorate_at_lock l
                 WHERE l.tbl = '{name}' LIMIT 1;
             ELSE
                 IF TG_OP <> 'INSERT' THEN
                     SELECT l.key, l.gid, l.began_ms INTO held FROM {schema}.quorate_at_lock l
                     WHERE l.tbl = '{name}' AND l.digest = sha256(convert_to({old}, 'UTF8'))
                     AND l.gid <> coalesce(current_setting('quorate.gid', true), '');
                 END IF;
                 IF held IS NULL AND TG_OP <> 'DELETE' THEN
                     SELECT l.key, l.gid, l.began_ms INTO held FROM {schema}.quorate_at_lock l
                     WHERE l.tbl = '{name}' AND l.digest = sha256(convert_to({new}, 'UTF8'))
                     AND l.gid <> coalesce(current_setting('quorate.gid', true), '');
                 END IF;
             END IF;
             IF held IS NOT NULL THEN
                 RAISE EXCEPTION 'row % of {name} is locked by global transaction %', held.key, held.gid
                 USING ERRCODE = '{CODE}', DETAIL = held.gid || ';' || held.began_ms, HINT = '{hint}';
             END IF;
             RETURN NULL;
         END $quorate$"
    )
}

// The names in these statements are quoted by the catalog or by us.
async fn run(connection: &mut PgConnection, text: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(text))
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

//! Undoing a global transaction here, in one transaction.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::catalog::Table;
use super::resource::{DIRTY, ENDED, OPEN};
use super::{PgAt, begin_of, failed, image_of};
use crate::at::global::check_name;
use crate::at::image::{
    self, Change, Difference, Image, Plan, RowName, Step, Treatment, differences_of, refusal,
    refused_step,
};
use crate::at::{Ordered, Undone};
use crate::{Error, ErrorKind, Result, points};

/// A row that somebody holds is waited for so long; then the next sweep tries.
const PATIENCE: &str = "SET LOCAL lock_timeout = '5s'";

impl PgAt {
    pub(super) async fn undo_one(
        &self,
        home: &str,
        gid: &str,
        ordered: Option<&Ordered>,
    ) -> Result<Undone> {
        check_name("global transaction", gid)?;
        let begin = format!("{}; {PATIENCE}", begin_of(gid));
        let mut tx = self
            .pool
            .begin_with(AssertSqlSafe(begin))
            .await
            .map_err(failed)?;
        let (state, known) = claim(&mut tx, home, gid).await?;
        points::pass("at.undo-claimed");
        if state == ENDED {
            tx.commit().await.map_err(failed)?;
            return Ok(Undone::Done);
        }
        if state == DIRTY && ordered.is_none() {
            return Ok(Undone::NeedsOperator(known));
        }
        let treatment = ordered.map_or(Treatment::Ask, |ordered| ordered.order.treatment());
        let differences = self.write_all(&mut tx, gid, treatment).await?;
        if let Some(ordered) = ordered {
            audit(&mut tx, gid, ordered, &known).await?;
            points::pass("at.undo-audited");
        }
        if differences.is_empty() {
            end(&mut tx, gid).await?;
        } else {
            mark_dirty(&mut tx, gid, &differences).await?;
        }
        points::pass("at.undo-written");
        tx.commit().await.map_err(failed)?;
        points::pass("at.undo-committed");
        if differences.is_empty() {
            return Ok(Undone::Done);
        }
        Ok(Undone::NeedsOperator(differences))
    }

    /// Writes what was before, or nothing where an operator has to decide.
    async fn write_all(
        &self,
        tx: &mut PgConnection,
        gid: &str,
        treatment: Treatment,
    ) -> Result<Vec<Difference>> {
        let mut changes = changes(tx, gid).await?;
        let mut tables = HashMap::new();
        for change in &changes {
            if tables.contains_key(&change.table) {
                continue;
            }
            match Table::read_quoted(tx, &change.table).await {
                Ok(table) => drop(tables.insert(change.table.clone(), table)),
                Err(error) if error.is_retryable() => return Err(error),
                // The table is gone: to accept is to leave it at that.
                Err(_) if treatment == Treatment::Accept => {}
                Err(error) => return Ok(vec![refusal(change, &error)]),
            }
        }
        changes.retain(|change| tables.contains_key(&change.table));
        let current = current(tx, &tables, &changes).await?;
        let Plan { steps, differences } = image::plan(&changes, &current, treatment);
        if !differences.is_empty() && treatment == Treatment::Ask {
            return Ok(differences);
        }
        write_steps(tx, &tables, &steps, treatment).await
    }
}

/// Writes all, or nothing and says why; where an operator accepts what is there, all that can be written.
async fn write_steps(
    tx: &mut PgConnection,
    tables: &HashMap<String, Table>,
    steps: &[Step],
    treatment: Treatment,
) -> Result<Vec<Difference>> {
    let accepts = treatment == Treatment::Accept;
    for (number, step) in steps.iter().enumerate() {
        let Some(table) = tables.get(&step.name.0) else {
            continue;
        };
        if number == 0 || accepts {
            sqlx::raw_sql("SAVEPOINT quorate_undo")
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        let written = write(tx, table, step).await;
        points::pass("at.undo-row");
        if let Err(error) = written {
            // A constraint stands against what was before: rows of unmanaged writers refer to it, say.
            if !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Invalid) {
                return Err(error);
            }
            let back = sqlx::raw_sql("ROLLBACK TO SAVEPOINT quorate_undo");
            back.execute(&mut *tx).await.map_err(failed)?;
            if !accepts {
                return Ok(vec![refused_step(step, &error)]);
            }
        }
    }
    Ok(Vec::new())
}

/// Marks the row of the global transaction as being ended, and makes one where no branch has come yet: it then
/// refuses those that come.
async fn claim(tx: &mut PgConnection, home: &str, gid: &str) -> Result<(i16, Vec<Difference>)> {
    let made = sqlx::query(
        "INSERT INTO quorate_at_work (gid, home, branches, state, deadline, ended)
         VALUES ($1, $2, '{}', 1, clock_timestamp(), clock_timestamp()) ON CONFLICT (gid) DO NOTHING",
    );
    let made = made
        .bind(gid)
        .bind(home)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    if made.rows_affected() == 1 {
        return Ok((ENDED, Vec::new()));
    }
    let read =
        "SELECT state, differences FROM quorate_at_work WHERE gid = $1 AND home = $2 FOR UPDATE";
    let row = sqlx::query(read)
        .bind(gid)
        .bind(home)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
    let row = row.ok_or_else(|| {
        let text = format!("global transaction {gid} belongs to another home than `{home}`");
        Error::new(ErrorKind::Invalid, text)
    })?;
    let state: i16 = row.try_get(0)?;
    if !matches!(state, OPEN | ENDED | DIRTY) {
        let text =
            format!("quorate_at_work has state {state} for {gid}, which is none: restore the row");
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok((state, differences_of(row.try_get(1)?)?))
}

/// What has changed, the newest first.
async fn changes(tx: &mut PgConnection, gid: &str) -> Result<Vec<Change>> {
    let read = "SELECT tbl, key, before::text, after::text FROM quorate_at_undo
         WHERE gid = $1 ORDER BY seq DESC";
    let rows = sqlx::query(read)
        .bind(gid)
        .fetch_all(tx)
        .await
        .map_err(failed)?;
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        let image = |text: Option<String>| text.map(|text| image_of(&text)).transpose();
        changes.push(Change {
            table: row.try_get(0)?,
            key: row.try_get(1)?,
            before: image(row.try_get(2)?)?,
            after: image(row.try_get(3)?)?,
        });
    }
    Ok(changes)
}

/// The rows as they are now, locked, in the order of their keys.
async fn current(
    tx: &mut PgConnection,
    tables: &HashMap<String, Table>,
    changes: &[Change],
) -> Result<HashMap<RowName, Option<Image>>> {
    let names = changes
        .iter()
        .map(|change| (change.table.clone(), change.key.clone()));
    let mut names: Vec<RowName> = names.collect();
    names.sort();
    names.dedup();
    let mut current = HashMap::with_capacity(names.len());
    for name in names {
        let Some(table) = tables.get(&name.0) else {
            continue;
        };
        let text = format!(
            "SELECT ({})::text FROM {} AS t WHERE {} FOR UPDATE OF t",
            table.image("t"),
            table.name,
            table.key_is(1)
        );
        let read = sqlx::query(AssertSqlSafe(text)).bind(&name.1);
        let row = read.fetch_optional(&mut *tx).await.map_err(failed)?;
        let image = row.map(|row| image_of(row.try_get(0)?)).transpose()?;
        current.insert(name, image);
    }
    Ok(current)
}

/// Writes one row as it was.
async fn write(tx: &mut PgConnection, table: &Table, step: &Step) -> Result<()> {
    let name = &table.name;
    let text = match (&step.from, &step.to) {
        (_, None) => format!("DELETE FROM {name} AS t WHERE {}", table.key_is(1)),
        (Some(_), Some(_)) => {
            let written = table.written(2, false);
            if written.is_empty() {
                return Ok(());
            }
            let sets: Vec<String> = written
                .iter()
                .map(|(c, value)| format!("{c} = {value}"))
                .collect();
            format!(
                "UPDATE {name} AS t SET {} WHERE {}",
                sets.join(", "),
                table.key_is(1)
            )
        }
        (None, Some(_)) => {
            let (columns, values): (Vec<_>, Vec<_>) = table.written(2, true).into_iter().unzip();
            format!(
                "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE SELECT {} WHERE $1::text <> ''",
                columns.join(", "),
                values.join(", ")
            )
        }
    };
    let mut query = sqlx::query(AssertSqlSafe(text)).bind(&step.name.1);
    if let Some(image) = &step.to {
        query = query.bind(serde_json::to_string(image).unwrap_or_default());
    }
    let done = query.execute(tx).await.map_err(failed)?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    let text = format!(
        "row {} of {name} was not written: a trigger or a policy keeps it",
        step.name.1
    );
    Err(Error::new(ErrorKind::Conflict, text))
}

/// Nothing is left of it but its row.
async fn end(tx: &mut PgConnection, gid: &str) -> Result<()> {
    let free = "WITH u AS (DELETE FROM quorate_at_undo WHERE gid = $1 RETURNING gid, tbl, key)
         DELETE FROM quorate_at_lock l USING u
         WHERE l.tbl = u.tbl AND l.digest = sha256(convert_to(u.key, 'UTF8')) AND l.gid = u.gid";
    sqlx::query(free)
        .bind(gid)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let mark = "UPDATE quorate_at_work SET state = 1, differences = '', ended = clock_timestamp()
         WHERE gid = $1";
    sqlx::query(mark)
        .bind(gid)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    Ok(())
}

async fn mark_dirty(tx: &mut PgConnection, gid: &str, differences: &[Difference]) -> Result<()> {
    let text = serde_json::to_string(differences).unwrap_or_default();
    let mark = sqlx::query("UPDATE quorate_at_work SET state = 2, differences = $2 WHERE gid = $1");
    mark.bind(gid)
        .bind(text)
        .execute(tx)
        .await
        .map_err(failed)?;
    Ok(())
}

async fn audit(
    tx: &mut PgConnection,
    gid: &str,
    ordered: &Ordered,
    known: &[Difference],
) -> Result<()> {
    let insert = "INSERT INTO quorate_at_audit (gid, action, who, why, differences)
         VALUES ($1, $2, $3, $4, $5)";
    let query = sqlx::query(insert).bind(gid).bind(ordered.order.name());
    let query = query.bind(&ordered.who).bind(&ordered.why);
    let query = query.bind(serde_json::to_string(known).unwrap_or_default());
    query.execute(tx).await.map_err(failed)?;
    Ok(())
}

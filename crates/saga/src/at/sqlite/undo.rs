//! Undoing a global transaction here, in one transaction.

use std::collections::HashMap;

use sqlx::{Row, SqliteConnection};

use super::catalog::{Table, quoted, value_of};
use super::resource::{DIRTY, ENDED, FREE, OPEN};
use super::transaction::query;
use super::{SqliteAt, failed, image_of};
use crate::at::global::now_ms;
use crate::at::image::{
    self, Change, Difference, Image, Plan, RowName, Step, Treatment, differences_of, refusal,
    refused_step,
};
use crate::at::{Ordered, Undone};
use crate::{Error, ErrorKind, Result, points};

impl SqliteAt {
    pub(super) async fn undo_one(
        &self,
        home: &str,
        gid: &str,
        ordered: Option<&Ordered>,
    ) -> Result<Undone> {
        let mut tx = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
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
        // The guard lets the owner pass.
        own(&mut tx, gid).await?;
        let treatment = ordered.map_or(Treatment::Ask, |ordered| ordered.order.treatment());
        let differences = write_all(&mut tx, gid, treatment).await?;
        own(&mut tx, "").await?;
        if let Some(ordered) = ordered {
            audit(&mut tx, gid, ordered, &known).await?;
            points::pass("at.undo-audited");
        }
        if differences.is_empty() {
            end(&mut tx, gid).await?;
        } else {
            let text = serde_json::to_string(&differences).unwrap_or_default();
            let mark = "UPDATE quorate_at_work SET state = 2, differences = ? WHERE gid = ?";
            sqlx::query(mark)
                .bind(text)
                .bind(gid)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        points::pass("at.undo-written");
        tx.commit().await.map_err(failed)?;
        points::pass("at.undo-committed");
        if differences.is_empty() {
            return Ok(Undone::Done);
        }
        Ok(Undone::NeedsOperator(differences))
    }
}

async fn own(tx: &mut SqliteConnection, gid: &str) -> Result<()> {
    let owner = sqlx::query("UPDATE quorate_at_owner SET gid = ?").bind(gid);
    owner.execute(tx).await.map_err(failed)?;
    Ok(())
}

/// What is known here. Where no branch has come yet, a row is made that refuses those that come.
async fn claim(tx: &mut SqliteConnection, home: &str, gid: &str) -> Result<(i64, Vec<Difference>)> {
    let read = "SELECT state, differences, home FROM quorate_at_work WHERE gid = ?";
    let row = sqlx::query(read)
        .bind(gid)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
    let Some(row) = row else {
        let made = "INSERT INTO quorate_at_work (gid, home, branches, state, deadline_ms, ended_ms)
             VALUES (?, ?, '[]', 1, ?, ?)";
        let made = sqlx::query(made)
            .bind(gid)
            .bind(home)
            .bind(now_ms())
            .bind(now_ms());
        made.execute(tx).await.map_err(failed)?;
        return Ok((ENDED, Vec::new()));
    };
    if row.try_get::<String, _>(2)? != home {
        let text = format!("global transaction {gid} belongs to another home than `{home}`");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let state: i64 = row.try_get(0)?;
    if !matches!(state, OPEN | ENDED | DIRTY) {
        let text =
            format!("quorate_at_work has state {state} for {gid}, which is none: restore the row");
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok((state, differences_of(row.try_get(1)?)?))
}

/// Writes what was before, or nothing where an operator has to decide.
async fn write_all(
    tx: &mut SqliteConnection,
    gid: &str,
    treatment: Treatment,
) -> Result<Vec<Difference>> {
    let mut changes = changes(tx, gid).await?;
    let mut tables = HashMap::new();
    for change in &changes {
        if tables.contains_key(&change.table) {
            continue;
        }
        match Table::read(tx, &change.table).await {
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

/// What has changed, the newest first.
async fn changes(tx: &mut SqliteConnection, gid: &str) -> Result<Vec<Change>> {
    let read =
        "SELECT tbl, key, before, after FROM quorate_at_undo WHERE gid = ? ORDER BY seq DESC";
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

async fn current(
    tx: &mut SqliteConnection,
    tables: &HashMap<String, Table>,
    changes: &[Change],
) -> Result<HashMap<RowName, Option<Image>>> {
    let mut current = HashMap::new();
    for change in changes {
        let name = (change.table.clone(), change.key.clone());
        let (Some(table), Some(image)) = (
            tables.get(&change.table),
            change.before.as_ref().or(change.after.as_ref()),
        ) else {
            continue;
        };
        if current.contains_key(&name) {
            continue;
        }
        let text = format!(
            "SELECT {} FROM {} WHERE {}",
            table.selected(),
            quoted(&table.name),
            table.key_is()
        );
        let row = query(text, table.key_of(image)?)
            .fetch_optional(&mut *tx)
            .await;
        let found = row
            .map_err(failed)?
            .map(|row| Ok::<_, Error>(table.row_of(&row)?.1));
        current.insert(name, found.transpose()?);
    }
    Ok(current)
}

/// Writes one row as it was.
async fn write(tx: &mut SqliteConnection, table: &Table, step: &Step) -> Result<()> {
    let name = quoted(&table.name);
    let mut values = Vec::new();
    let mut columns = Vec::new();
    if let Some(image) = &step.to {
        for column in &table.columns {
            columns.push(quoted(&column.name));
            values.push(value_of(image.get(&column.name))?);
        }
    }
    let text = match (&step.from, &step.to) {
        (Some(from), None) => {
            values = table.key_of(from)?;
            format!("DELETE FROM {name} WHERE {}", table.key_is())
        }
        (None, None) => return Ok(()),
        (Some(_), Some(to)) => {
            values.extend(table.key_of(to)?);
            let sets: Vec<String> = columns
                .iter()
                .map(|column| format!("{column} = ?"))
                .collect();
            format!(
                "UPDATE {name} SET {} WHERE {}",
                sets.join(", "),
                table.key_is()
            )
        }
        (None, Some(_)) => {
            let marks = vec!["?"; columns.len()].join(", ");
            format!(
                "INSERT INTO {name} ({}) VALUES ({marks})",
                columns.join(", ")
            )
        }
    };
    let done = query(text, values).execute(tx).await.map_err(failed)?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    let text = format!(
        "row {} of {} was not written: a trigger keeps it",
        step.name.1, table.name
    );
    Err(Error::new(ErrorKind::Conflict, text))
}

/// Nothing is left of it but its row.
async fn end(tx: &mut SqliteConnection, gid: &str) -> Result<()> {
    let list = serde_json::to_string(&[gid]).unwrap_or_default();
    for text in FREE {
        sqlx::query(text)
            .bind(&list)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
    }
    let mark = "UPDATE quorate_at_work SET state = 1, differences = '', ended_ms = ? WHERE gid = ?";
    sqlx::query(mark)
        .bind(now_ms())
        .bind(gid)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    Ok(())
}

async fn audit(
    tx: &mut SqliteConnection,
    gid: &str,
    ordered: &Ordered,
    known: &[Difference],
) -> Result<()> {
    let insert =
        "INSERT INTO quorate_at_audit (gid, action, who, why, differences) VALUES (?, ?, ?, ?, ?)";
    let query = sqlx::query(insert).bind(gid).bind(ordered.order.name());
    let query = query.bind(&ordered.who).bind(&ordered.why);
    let query = query.bind(serde_json::to_string(known).unwrap_or_default());
    query.execute(tx).await.map_err(failed)?;
    Ok(())
}

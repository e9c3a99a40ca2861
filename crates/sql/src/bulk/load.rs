//! The load itself.

use futures_util::{Stream, StreamExt, pin_mut};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::{Bulk, Cell, Progress, Row};
use crate::backend::Backend;
use crate::session::Session;
use crate::transaction::{Isolation, Work};
use crate::{Error, ErrorKind, Result};

const NOTES: &str = "quorate_bulk";

/// Rows that go together, and how many bytes they have.
#[derive(Default)]
struct Batch {
    rows: Vec<Row>,
    bytes: usize,
}

impl Batch {
    /// Whether another row does not go with them. A row that is larger than a batch is one by itself.
    fn is_full(&self, row: &Row, bulk: &Bulk) -> bool {
        let bytes = self.bytes + size(row);
        let full = bytes > bulk.batch_bytes || self.rows.len() >= bulk.batch_rows;
        full && !self.rows.is_empty()
    }

    fn push(&mut self, row: Row) {
        self.bytes += size(&row);
        self.rows.push(row);
    }
}

fn size(row: &Row) -> usize {
    row.iter().map(Cell::size).sum()
}

impl Bulk {
    /// Loads rows, and goes on where a load of this name has stopped. `progress` hears of every batch.
    ///
    /// REQUIRES: the rows are the same, in the same order, whenever the load is begun again.
    ///
    /// Memory: one batch, and the row that did not fit into it. The table `quorate_bulk` keeps the notes; it
    /// is made if it is not there, and [`Bulk::forget`] removes a note.
    ///
    /// Errors: `Invalid` for a row with other than the columns' number of values; `Conflict` if another
    /// process loads the same; what the database refuses. What was told to `progress` stays.
    pub async fn load<DB: Backend>(
        &self,
        session: &Session<DB>,
        rows: impl Stream<Item = Result<Row>> + Send,
        mut progress: impl FnMut(&Progress) + Send,
    ) -> Result<Progress> {
        self.check()?;
        make_notes(session).await?;
        let noted = self.noted(session).await?;
        let mut done = Progress {
            rows: noted,
            skipped: noted,
            bytes: 0,
        };
        pin_mut!(rows);
        let mut batch = Batch::default();
        let mut seen = 0;
        while let Some(row) = rows.next().await {
            let row = row?;
            seen += 1;
            if seen <= noted {
                continue;
            }
            self.check_row(&row, seen)?;
            if batch.is_full(&row, self) {
                self.write(session, &mut batch, &mut done).await?;
                progress(&done);
            }
            batch.push(row);
        }
        if !batch.rows.is_empty() {
            self.write(session, &mut batch, &mut done).await?;
            progress(&done);
        }
        Ok(done)
    }

    fn check_row(&self, row: &Row, number: u64) -> Result<()> {
        let (values, columns) = (row.len(), self.columns.len());
        if values == columns {
            return Ok(());
        }
        let text = format!("row {number} has {values} values for {columns} columns");
        Err(Error::new(ErrorKind::Invalid, text))
    }

    /// Forgets how far a load has come: the next of this name begins at the first row.
    pub async fn forget<DB: Backend>(&self, session: &Session<DB>) -> Result<()> {
        make_notes(session).await?;
        let text = format!(
            "DELETE FROM {} WHERE name = {}",
            NOTES,
            literal(&self.name)?
        );
        let mut tx = session.begin(work()).await?;
        DB::run(&mut tx, AssertSqlSafe(text).into_sql_str()).await?;
        tx.commit().await.map(drop)
    }

    /// One batch and its note, and empties it. When the answer to the commit is lost, the note tells what became of it.
    async fn write<DB: Backend>(
        &self,
        session: &Session<DB>,
        batch: &mut Batch,
        done: &mut Progress,
    ) -> Result<()> {
        let before = done.rows;
        let rows = batch.rows.as_slice();
        let after = before + rows.len() as u64;
        let written = session.transaction(work(), |tx| {
            Box::pin(async move {
                self.note::<DB>(tx, before, after).await?;
                DB::insert(tx, &self.table, &self.columns, rows).await?;
                Ok(())
            })
        });
        match written.await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                // The server may be at it still: who waits for the note's row sees what became of it.
                if self.noted(session).await? != after {
                    return Err(error.with_kind(ErrorKind::Unavailable));
                }
            }
            Err(error) => return Err(error),
        }
        done.rows = after;
        done.bytes += batch.bytes as u64;
        *batch = Batch::default();
        Ok(())
    }

    /// Raises the note from one count to another, and so holds its row.
    async fn note<DB: Backend>(
        &self,
        connection: &mut DB::Connection,
        before: u64,
        after: u64,
    ) -> Result<()> {
        let name = literal(&self.name)?;
        let text =
            format!("UPDATE {NOTES} SET done = {after} WHERE name = {name} AND done = {before}");
        let changed = DB::run(connection, AssertSqlSafe(text).into_sql_str()).await?;
        if changed == 1 {
            return Ok(());
        }
        let text = format!("the load {:?} is under way elsewhere", self.name);
        Err(Error::new(ErrorKind::Refused, text))
    }

    /// Reads the note, making it if there is none. It is taken with its lock: a commit that is still under
    /// way is waited for.
    async fn noted<DB: Backend>(&self, session: &Session<DB>) -> Result<u64> {
        session
            .transaction(work(), |tx| {
                Box::pin(async move {
                    let name = literal(&self.name)?;
                    let text = format!(
                        "INSERT INTO {NOTES} (name, done) SELECT {name}, 0 WHERE NOT EXISTS \
                         (SELECT 1 FROM {NOTES} WHERE name = {name})"
                    );
                    DB::run(tx, AssertSqlSafe(text).into_sql_str()).await?;
                    // A change of nothing takes the row's lock on every database.
                    let text = format!("UPDATE {NOTES} SET done = done WHERE name = {name}");
                    DB::run(tx, AssertSqlSafe(text).into_sql_str()).await?;
                    let text = format!("SELECT done FROM {NOTES} WHERE name = {name}");
                    let count = DB::number(tx, AssertSqlSafe(text).into_sql_str()).await?;
                    Ok(count.unwrap_or(0).max(0).cast_unsigned())
                })
            })
            .await
    }
}

fn work() -> Work {
    Work::default().isolation(Isolation::ReadCommitted)
}

async fn make_notes<DB: Backend>(session: &Session<DB>) -> Result<()> {
    let text = format!(
        "CREATE TABLE IF NOT EXISTS {NOTES} (name varchar(200) NOT NULL PRIMARY KEY, done bigint NOT NULL)"
    );
    let mut lease = session
        .inner
        .on_primary(std::panic::Location::caller())
        .await?;
    match DB::run(&mut lease, AssertSqlSafe(text.clone()).into_sql_str()).await {
        Ok(_) => Ok(()),
        // Two who make it at once: PostgreSQL refuses the second, for which it is there.
        Err(_) => {
            DB::run(&mut lease, AssertSqlSafe(text).into_sql_str()).await?;
            Ok(())
        }
    }
}

/// A name as a literal of any of the databases.
fn literal(name: &str) -> Result<String> {
    if name.chars().any(|c| c.is_control() || c == '\\') {
        let text = "a load's name has no backslash and no control characters";
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(format!("'{}'", name.replace('\'', "''")))
}

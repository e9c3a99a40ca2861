//! Loading many rows: in batches bounded by bytes, each with the note of how far the load has come.
//!
//! A batch and its note are one transaction, so a load that is interrupted, by whatever, goes on where it
//! was: the same rows given again in the same order are skipped up to the note. So each row is there once,
//! also when the answer to a commit was lost. PostgreSQL takes the rows by `COPY`, the others by inserts of
//! many rows.

mod cell;
mod load;

#[cfg(feature = "postgres")]
pub(crate) use cell::copy_text;
pub use cell::{Cell, Row};

use crate::{Error, ErrorKind, Result};

/// A load of rows into a table. Its name is that of its note: another load has another.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Bulk {
    /// What the load is called.
    pub name: String,
    /// The table, with its schema before a dot if it needs one.
    pub table: String,
    /// The columns that each row gives.
    pub columns: Vec<String>,
    /// A batch ends when its rows have so many bytes.
    pub batch_bytes: usize,
    /// Or so many rows.
    pub batch_rows: usize,
}

/// How far a load has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Rows in the table by this load, now or earlier.
    pub rows: u64,
    /// Of these, rows that had been there when this run began.
    pub skipped: u64,
    /// Bytes of the rows of this run.
    pub bytes: u64,
}

impl Bulk {
    /// A load, in batches of 1 MiB or 10,000 rows.
    pub fn new(
        name: impl Into<String>,
        table: impl Into<String>,
        columns: impl IntoIterator<Item = impl Into<String>>,
    ) -> Bulk {
        Bulk {
            name: name.into(),
            table: table.into(),
            columns: columns.into_iter().map(Into::into).collect(),
            batch_bytes: 1 << 20,
            batch_rows: 10_000,
        }
    }

    fn check(&self) -> Result<()> {
        let invalid = |text: &str| Err(Error::new(ErrorKind::Invalid, text));
        if self.columns.is_empty() {
            return invalid("a load needs columns");
        }
        if self.name.is_empty() || self.name.len() > 200 {
            return invalid("a load's name has from 1 to 200 bytes");
        }
        if self.batch_bytes == 0 || self.batch_rows == 0 {
            return invalid("a batch holds at least one row");
        }
        Ok(())
    }
}

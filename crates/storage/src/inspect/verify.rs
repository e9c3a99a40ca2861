//! Reading everything, and saying all that is wrong.

use super::{Inspection, file_name};
use crate::levels::TableFile;
use crate::lsm::read_only::read_log;
use crate::table::{Problem, check_blocks, describe};

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file's name, in the engine's directory.
    pub file: String,
    /// The byte where the block begins; `None` if it is no matter of one block.
    pub at: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// What reading everything showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Tables that were checked.
    pub tables: u64,
    /// Their size.
    pub bytes: u64,
    /// Entries in them.
    pub entries: u64,
    /// Batches in the write-ahead log.
    pub log_batches: u64,
    /// All that is wrong; empty if the store is sound.
    pub damages: Vec<Damage>,
}

impl Inspection {
    /// The bytes of all tables: what [`Inspection::verify`] goes through.
    pub fn table_bytes(&self) -> u64 {
        let tables = self.recovered.levels.iter().flatten();
        tables.map(|t| t.meta.size_bytes).sum()
    }

    /// Reads every block of every table, and the log, and compares with what they say of themselves.
    /// `progress` hears of bytes that are done, [`Inspection::table_bytes`] in all.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Verification {
        let mut found = Verification::default();
        for table in self.recovered.levels.iter().flatten() {
            found.tables += 1;
            found.bytes += table.meta.size_bytes;
            found.entries += table.meta.properties.entries;
            let file = file_name(table.meta.number, "table");
            let problems = check_table(table, progress).into_iter();
            found.damages.extend(problems.map(|(at, what)| Damage {
                file: file.clone(),
                at,
                what,
            }));
        }
        match read_log(&self.env, &self.shelf.dir.join("wal")) {
            Ok(batches) => found.log_batches = batches.len() as u64,
            Err(error) => found.damages.push(Damage {
                file: "wal".to_owned(),
                at: None,
                what: error.message().to_owned(),
            }),
        }
        found
    }
}

/// All that is wrong with a table. `progress` hears of as many bytes as it is long.
pub(super) fn check_table(table: &TableFile, progress: &mut dyn FnMut(u64)) -> Vec<Problem> {
    let mut rest = table.meta.size_bytes;
    let problems = match table.table() {
        Err(error) => vec![(None, why_unreadable(table, error.message()))],
        Ok(open) => check_blocks(open, &table.meta.properties, &mut |bytes| {
            rest = rest.saturating_sub(bytes);
            progress(bytes);
        }),
    };
    progress(rest);
    problems
}

/// Why a table does not open; of two reasons the one that the file itself shows.
fn why_unreadable(table: &TableFile, otherwise: &str) -> String {
    match describe(table.disk(), &table.path()) {
        Err(error) => error.message().to_owned(),
        Ok(_) => otherwise.to_owned(),
    }
}

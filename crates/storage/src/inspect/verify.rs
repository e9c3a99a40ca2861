//! Reading everything, and saying all that is wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::{Inspection, file_name};
use crate::levels::TableFile;
use crate::lsm::read_only::read_log;
use crate::table::{PointerCheck, Problem, check_blocks, describe};
use crate::values::{Pointer, Records, ValueFiles, check_values};

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
    /// Value files that were checked.
    pub value_files: u64,
    /// The size of both.
    pub bytes: u64,
    /// Entries in them.
    pub entries: u64,
    /// Batches in the write-ahead log.
    pub log_batches: u64,
    /// All that is wrong; empty if the store is sound.
    pub damages: Vec<Damage>,
}

impl Inspection {
    /// The bytes of all tables and value files: what [`Inspection::verify`] goes through.
    pub fn file_bytes(&self) -> u64 {
        let levels = &self.recovered.levels;
        let tables = levels.iter().flatten().map(|t| t.meta.size_bytes);
        let values = levels.values().iter().map(|v| v.file.meta.size_bytes());
        tables.chain(values).sum()
    }

    /// Reads every value, every block of every table, and the log, and compares with what they say of
    /// themselves and of each other. `progress` hears of bytes that are done, [`Inspection::file_bytes`]
    /// in all.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Verification {
        let mut found = Verification::default();
        let (values, problems) = CheckedValues::read(self.recovered.levels.values(), progress);
        for held in self.recovered.levels.values().iter() {
            found.value_files += 1;
            found.bytes += held.file.meta.size_bytes();
        }
        for (number, (at, what)) in problems {
            let file = file_name(number, "values");
            found.damages.push(Damage { file, at, what });
        }
        let pointed = |pointer: &Pointer| values.judge(pointer);
        for table in self.recovered.levels.iter().flatten() {
            found.tables += 1;
            found.bytes += table.meta.size_bytes;
            let entries = table.meta.properties.entries;
            found.entries = found.entries.saturating_add(entries);
            let file = file_name(table.meta.number, "table");
            let problems = check_table(table, &pointed, progress).into_iter();
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

/// What reading value files showed.
#[derive(Default)]
pub(super) struct CheckedValues {
    /// Where sound records lie, by the number of the file.
    records: BTreeMap<u64, Records>,
    /// Files of which something is wrong.
    pub(super) bad: BTreeSet<u64>,
}

impl CheckedValues {
    /// Reads all value files; returns also what is wrong, with the number of the file.
    pub(super) fn read(
        files: &ValueFiles,
        progress: &mut dyn FnMut(u64),
    ) -> (CheckedValues, Vec<(u64, Problem)>) {
        let (mut checked, mut wrong) = (CheckedValues::default(), Vec::new());
        for held in files.iter() {
            let number = held.file.meta.number;
            let mut rest = held.file.meta.size_bytes();
            let (records, problems) = check_values(&held.file, &mut |bytes| {
                rest = rest.saturating_sub(bytes);
                progress(bytes);
            });
            progress(rest);
            checked.records.insert(number, records);
            if !problems.is_empty() {
                checked.bad.insert(number);
            }
            wrong.extend(problems.into_iter().map(|problem| (number, problem)));
        }
        (checked, wrong)
    }

    /// Whether a pointer points to a value, which may be one of a damaged file: that speaks for itself.
    /// The text says why not.
    pub(super) fn judge(&self, pointer: &Pointer) -> Result<(), String> {
        let file = file_name(pointer.file, "values");
        match self.records.get(&pointer.file) {
            None => Err(format!("a value lies in {file}, which is not there")),
            Some(_) if self.bad.contains(&pointer.file) => Ok(()),
            Some(records) if records.hold(pointer) => Ok(()),
            Some(_) => Err(format!(
                "a value should be at byte {} of {file}, where none begins",
                pointer.offset
            )),
        }
    }
}

/// All that is wrong with a table, its pointers judged by `pointed`. `progress` hears of as many bytes as it is long.
pub(super) fn check_table(
    table: &TableFile,
    pointed: &PointerCheck<'_>,
    progress: &mut dyn FnMut(u64),
) -> Vec<Problem> {
    let mut rest = table.meta.size_bytes;
    let problems = match table.table() {
        Err(error) => vec![(None, why_unreadable(table, error.message()))],
        Ok(open) => check_blocks(open, &table.meta.properties, pointed, &mut |bytes| {
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

//! Saving tables whose values are damaged: what is sound moves to a new value file, entries whose value is
//! lost are left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_env::Env;

use super::file_name;
use super::verify::CheckedValues;
use crate::compaction::{Input, Keep, LostValues, Outputs, Written, write_table};
use crate::cursor::Cursor;
use crate::error::{ErrorKind, Result};
use crate::keyspaces::Keyspaces;
use crate::levels::{Shelf, TableFile};
use crate::lsm::open::number_of;
use crate::merge::MergeCursor;
use crate::options::Options;
use crate::sync::atomic::AtomicU64;
use crate::table::{Problem, TableOptions};
use crate::tombstones::Tombstones;
use crate::values::{
    Collect, Pointer, ValueFiles, ValueMeta, ValueOptions, describe_values, value_path,
};

/// The value files of a store under repair.
#[derive(Default)]
pub(super) struct Values {
    pub(super) files: Arc<ValueFiles>,
    checked: CheckedValues,
    /// What went with each of them.
    pub(super) lost: BTreeMap<u64, LostValues>,
    pub(super) written: Vec<ValueMeta>,
}

impl Values {
    /// Adds value files that no manifest speaks of any more to those that one does.
    pub(super) fn add_unknown(
        files: &mut ValueFiles,
        env: &Env,
        shelf: &Arc<Shelf>,
        names: &[String],
    ) -> Result<Vec<(u64, String)>> {
        let mut unreadable = Vec::new();
        for name in names.iter().filter(|name| name.ends_with(".values")) {
            let Some(number) = number_of(name).filter(|n| files.get(*n).is_none()) else {
                continue;
            };
            match describe_values(env.disk.as_ref(), &value_path(&shelf.dir, number)) {
                Ok(meta) => files.add(&[meta], shelf),
                Err(error) if error.kind() == ErrorKind::Corruption => {
                    unreadable.push((number, error.message().to_owned()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(unreadable)
    }

    /// Reads all value files; returns what is wrong, with the number of the file.
    pub(super) fn check(
        files: ValueFiles,
        progress: &mut dyn FnMut(u64),
    ) -> (Values, Vec<(u64, Problem)>) {
        let (checked, problems) = CheckedValues::read(&files, progress);
        let values = Values {
            files: Arc::new(files),
            checked,
            ..Values::default()
        };
        (values, problems)
    }

    /// Whether a pointer is sound, as far as its table is concerned.
    pub(super) fn judge(&self, pointer: &Pointer) -> std::result::Result<(), String> {
        match self.is_bad(pointer.file) {
            true => Ok(()),
            false => self.checked.judge(pointer),
        }
    }

    pub(super) fn is_bad(&self, file: u64) -> bool {
        self.checked.bad.contains(&file) || self.files.get(file).is_none()
    }

    /// Whether a table has pointers into files that are damaged or missing.
    pub(super) fn are_bad_for(&self, table: &TableFile) -> bool {
        let shares = &table.meta.properties.shares;
        shares.iter().any(|(file, _)| self.is_bad(*file))
    }

    /// The files that the store needs from now on.
    pub(super) fn sound(&self) -> Vec<ValueMeta> {
        let files = self.files.iter().map(|held| held.file.meta);
        let files = files.filter(|meta| !self.checked.bad.contains(&meta.number));
        files.chain(self.written.iter().copied()).collect()
    }

    /// Merges tables, the newest first, into new ones, without entries whose values are lost.
    pub(super) fn merge(
        &mut self,
        tables: &[Arc<TableFile>],
        shelf: &Shelf,
        keyspaces: &Keyspaces,
        next_file: &AtomicU64,
        table_bytes: u64,
    ) -> Result<Written> {
        let options = Options::default();
        let mut sources: Vec<Box<dyn Cursor>> = Vec::new();
        let mut tombstones = Tombstones::default();
        for table in tables {
            tombstones.add(table.table()?.tombstones());
            sources.push(Box::new(table.cursor(false)?));
        }
        let written = tables.iter().map(|t| t.meta.properties.written_ms);
        let written_ms = written.max().unwrap_or(0);
        let needed = tables.iter().flat_map(|t| &t.meta.properties.shares);
        let needed = needed.map(|(file, _)| *file).filter(|f| self.is_bad(*f));
        let collect = Collect {
            numbers: needed.collect(),
            files: Arc::clone(&self.files),
            salvage: true,
        };
        let outputs = Outputs {
            shelf,
            next_file,
            // By the newest of what goes in.
            options: TableOptions::new(&options, options.compression, written_ms),
            table_bytes,
            below: None,
            without: &[],
            values: ValueOptions::new(&options),
            collect: &collect,
        };
        let keep = Keep {
            snapshots: Vec::new(),
        };
        // Deletions stay: nobody knows what a repair of the repair may bring back.
        let input = Input {
            cursor: &mut MergeCursor::new(sources),
            tombstones,
            below: None,
            filter: None,
        };
        let written = write_table(input, keyspaces, keep, &outputs, &|| false);
        let mut written = written.map_err(|failure| failure.error().clone())?;
        self.written.append(&mut written.values);
        for (file, lost) in std::mem::take(&mut written.lost) {
            match self.lost.get_mut(&file) {
                Some(there) => there.add(lost),
                None => drop(self.lost.insert(file, lost)),
            }
        }
        Ok(written)
    }
}

/// The name of a value file.
pub(super) fn name_of(number: u64) -> String {
    file_name(number, "values")
}

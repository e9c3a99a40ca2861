//! Judging files that were found damaged, and giving up what is lost of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::Inner;
use crate::cursor::Cursor;
use crate::damage::{DamagedFile, Lost};
use crate::key::{Key, Kind};
use crate::levels::{Levels, TableFile};
use crate::table::lost_blocks;
use crate::values::{Pointer, ValueFile};

/// How many damaged files are kept aside: a person may want to look at them.
const KEPT_MAX: usize = 8;

impl Inner {
    /// See [`Lsm::judge_damage`](super::Lsm::judge_damage).
    pub(super) fn judge_damage(self: &Arc<Self>) -> Vec<DamagedFile> {
        let noted = self.shelf.damages.take_noted();
        if noted.is_empty() {
            return Vec::new();
        }
        let levels = Arc::clone(&self.state().levels);
        let mut found = Vec::new();
        for (number, what) in noted {
            let judged = match (levels.find(number), levels.values().get(number)) {
                (Some(table), _) => self.judge_table(table),
                (None, Some(values)) => self.judge_values(&levels, values),
                // Compaction was faster: it no longer matters.
                (None, None) => continue,
            };
            // Judging meets the same damage again.
            self.shelf.damages.forget_noted(number);
            if let Some((path, lost, places)) = judged {
                found.push(DamagedFile {
                    number,
                    lost,
                    path,
                    what,
                    places,
                });
            }
        }
        self.shelf.damages.retain(|number| {
            levels.find(number).is_some() || levels.values().get(number).is_some()
        });
        if found.is_empty() {
            // It was misread and not damaged, or is gone.
            self.resume_compactions();
        }
        found
    }

    fn judge_table(&self, table: &TableFile) -> Option<Judged> {
        // Opened anew: a handle that is open has read its index long ago.
        let anew = TableFile::new(Arc::clone(&table.meta), &self.shelf);
        let properties = &table.meta.properties;
        let Ok(open) = anew.table() else {
            let all = (properties.smallest.clone(), properties.end.clone());
            return Some((table.path(), Lost::Table, vec![all]));
        };
        let blocks = lost_blocks(open, properties);
        if blocks.is_empty() {
            return None;
        }
        let (offsets, places) = blocks.into_iter().unzip();
        Some((table.path(), Lost::At(offsets), places))
    }

    fn judge_values(&self, levels: &Levels, values: &ValueFile) -> Option<Judged> {
        let anew = ValueFile::new(values.meta, &self.shelf);
        let number = values.meta.number;
        let (mut offsets, mut places) = (BTreeSet::new(), Vec::new());
        let needs = |t: &&Arc<TableFile>| {
            let shares = &t.meta.properties.shares;
            shares.iter().any(|(file, _)| *file == number)
        };
        for table in levels.iter().flatten().filter(needs) {
            let mut look = |key: &Key<'_>, value: &[u8]| {
                let pointer = Pointer::decode(value).filter(|p| p.file == number);
                let Some(pointer) = pointer.filter(|_| key.kind == Kind::Pointer) else {
                    return;
                };
                if anew.read_anew(&pointer).is_err() {
                    offsets.insert(pointer.offset);
                    let mut behind = key.place.to_vec();
                    behind.push(0);
                    places.push((key.place.to_vec(), behind));
                }
            };
            // A table that can't be read is judged by itself: the read has noted it.
            let walked = table.salvage(|cursor| {
                cursor.seek_to_first()?;
                while cursor.valid() {
                    look(&cursor.key(), cursor.value());
                    cursor.next()?;
                }
                Ok(())
            });
            if walked.is_err() {
                continue;
            }
        }
        let damaged = !places.is_empty();
        damaged.then(|| (values.path(), Lost::At(offsets), places))
    }

    /// See [`Lsm::give_up`](super::Lsm::give_up).
    pub(super) fn give_up(self: &Arc<Self>, damaged: &DamagedFile) {
        self.keep_aside(&damaged.path);
        self.shelf
            .damages
            .give_up(damaged.number, damaged.lost.clone());
        self.resume_compactions();
    }

    /// Gives a damaged file a second name, under which it stays when compaction is done with it. Nothing
    /// depends on that.
    fn keep_aside(&self, path: &Path) {
        let is_kept = |name: &&String| name.ends_with(".damaged");
        let kept = self.env.disk.list(&self.dir);
        let kept = kept.map_or(KEPT_MAX, |names| names.iter().filter(is_kept).count());
        if kept < KEPT_MAX {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".damaged");
            let _ = self.env.disk.hard_link(path, Path::new(&aside));
        }
    }

    fn resume_compactions(self: &Arc<Self>) {
        self.work.lock().unreadable = None;
        self.spawn_compactions();
    }
}

/// Where a file is, what of it is lost, and where that may have been.
type Judged = (std::path::PathBuf, Lost, Vec<(Vec<u8>, Vec<u8>)>);

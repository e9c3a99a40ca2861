//! Saving what can be saved: a manifest from the tables that are sound.
//!
//! What is certain stays as it was. If a manifest is whole, its levels count, without the tables that
//! are damaged or gone. If not, all sound tables are taken: those that the part that can be read still
//! knows, and those that it does not know, but not those that it says were replaced. How they lay above
//! each other is then not known, but every entry has its sequence: tables that overlap are merged into
//! new ones, in which of two entries at one version the later counts, and all go to the lowest level.
//!
//! Of such a guess three things may be wrong, and nothing can be done about them: a table that was
//! replaced, but not yet removed when the process ended, brings back what it held; a table that was
//! ingested over others counts as older than they are; and a damaged table that held deletions or newer
//! values uncovers what they hid.
//!
//! Damaged files get a second name in the folder `damaged` before the new manifest counts, and lose the
//! first one after: nothing is removed that somebody may still read something from, and after a crash
//! on the way another repair finds all that this one had. The write-ahead log is left alone, and replayed at the next opening.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_env::Env;

use super::salvage::{Values, name_of};
use super::verify::check_table;
use super::{PlacedKey, TableContent, file_name, find, shelf};
use crate::error::{Error, Result};
use crate::expiry::Time;
use crate::keyspaces::Keyspaces;
use crate::levels::{
    Edit, LEVELS, Levels, Manifest, Shelf, TableFile, TableMeta, manifest_path, table_path,
};
use crate::lsm::checkpoint::refuse_incomplete;
use crate::lsm::open::{Recovered, first_free, list, number_of, take_lock};
use crate::options::Options;
use crate::sync::atomic::AtomicU64;
use crate::table::describe;
use crate::values::{Pointer, ValueFiles};

/// Where damaged files go.
const ASIDE: &str = "damaged";

/// A table that could not be kept, and what went with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Its file's name.
    pub file: String,
    /// What is wrong with it.
    pub why: String,
    /// What it held, if manifest or table still say so: entries, first and last key.
    pub content: Option<(u64, PlacedKey, PlacedKey)>,
    /// Where the file is now; `None` if it is missing.
    pub moved_to: Option<PathBuf>,
}

/// What a repair found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The engine's own directory.
    pub dir: PathBuf,
    /// Whether anything was wrong. If not, nothing was changed.
    pub needed: bool,
    /// What was wrong with `CURRENT` or the manifest; `None` if only tables were damaged.
    pub manifest_damage: Option<String>,
    /// Whether it is certain which tables counted: a manifest was whole.
    pub certain: bool,
    /// The tables of the store as it is now.
    pub tables: Vec<TableContent>,
    /// Tables that were merged into new ones, since what lay above what was not known.
    pub merged: Vec<String>,
    /// Tables that a damaged manifest knew and that are not there: replaced since, or lost.
    pub missing: Vec<String>,
    /// Tables that are lost.
    pub lost: Vec<Lost>,
}

/// What the manifests say.
struct Base {
    recovered: Recovered,
    certain: bool,
    damage: Option<String>,
    /// Tables that were replaced.
    replaced: BTreeSet<u64>,
    /// Files to be set aside.
    unreadable: Vec<PathBuf>,
}

/// A repair under way.
struct Work<'a> {
    env: &'a Env,
    shelf: Arc<Shelf>,
    names: Vec<String>,
    base: Base,
    values: Values,
    report: Repair,
}

/// Makes a store that does not open, or of which tables are damaged, one that opens, with all that is
/// sound. `progress` hears of bytes that are done and of how many there are.
///
/// Fails with `AlreadyOpen` while a process has the store open, with `Incompatible` if a newer engine
/// wrote it.
pub fn repair(env: &Env, dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Repair> {
    let dir = find(env, dir)?;
    let _lock = take_lock(env, &dir)?;
    refuse_incomplete(env.disk.as_ref(), &dir)?;
    let shelf = shelf(env, &dir);
    let names = list(env, &dir)?;
    let base = read_base(&shelf, &names)?;
    let report = Repair {
        dir,
        needed: base.damage.is_some(),
        manifest_damage: base.damage.clone(),
        certain: base.certain,
        tables: Vec::new(),
        merged: Vec::new(),
        missing: Vec::new(),
        lost: Vec::new(),
    };
    let mut work = Work {
        env,
        shelf,
        names,
        base,
        values: Values::default(),
        report,
    };
    let sound = work.check_tables(progress)?;
    work.report.needed |= !work.report.lost.is_empty();
    if work.report.needed {
        work.write(sound)?;
    } else {
        work.list_tables();
    }
    Ok(work.report)
}

/// Reads what the manifests still say.
fn read_base(shelf: &Arc<Shelf>, names: &[String]) -> Result<Base> {
    let disk = shelf.disk.as_ref();
    let current = match Manifest::current(disk, &shelf.dir) {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err("CURRENT is missing".to_owned()),
        Err(error) if error.kind() == crate::ErrorKind::Incompatible => return Err(error),
        Err(error) => Err(error.message().to_owned()),
    };
    let manifests = names.iter().filter(|name| name.ends_with(".manifest"));
    let newest = manifests.filter_map(|name| number_of(name)).max();
    let mut base = Base {
        recovered: Recovered::default(),
        certain: false,
        damage: current.as_ref().err().cloned(),
        replaced: BTreeSet::new(),
        unreadable: Vec::new(),
    };
    if current.is_err() && names.iter().any(|name| name == "CURRENT") {
        base.unreadable.push(shelf.dir.join("CURRENT"));
    }
    let Some(number) = current.ok().or(newest) else {
        return Ok(base);
    };
    let (edits, damage) = Manifest::read_sound(disk, &shelf.dir, number);
    let mut damage = match damage {
        Some(error) if error.kind() == crate::ErrorKind::Incompatible => return Err(error),
        damage => damage.map(|error| error.message().to_owned()),
    };
    for edit in edits {
        let gone: Vec<u64> = edit.removed.iter().map(|(_, number)| *number).collect();
        let came: Vec<u64> = edit.added.iter().map(|(_, table)| table.number).collect();
        if let Err(what) = base.recovered.apply(edit, shelf) {
            damage = Some(format!(
                "{}: {what}",
                manifest_path(&shelf.dir, number).display()
            ));
            break;
        }
        base.replaced.extend(gone);
        base.replaced.retain(|number| !came.contains(number));
    }
    base.certain = damage.is_none();
    if damage.is_some() && names.contains(&file_name(number, "manifest")) {
        base.unreadable.push(manifest_path(&shelf.dir, number));
    }
    base.damage = base.damage.or(damage);
    Ok(base)
}

impl Work<'_> {
    /// Checks all tables that may count; returns those that are sound, with their level.
    fn check_tables(
        &mut self,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<(usize, Arc<TableFile>)>> {
        let levels = self.base.recovered.levels.clone();
        let levels = levels.iter().enumerate();
        let mut tables: Vec<(usize, Arc<TableFile>)> = levels
            .flat_map(|(level, of)| of.iter().map(move |t| (level, Arc::clone(t))))
            .collect();
        if !self.base.certain {
            self.add_unknown(&mut tables)?;
        }
        if !self.base.certain {
            let missing = |t: &Arc<TableFile>| {
                let file = file_name(t.meta.number, "table");
                (!self.names.contains(&file)).then_some(file)
            };
            self.report.missing = tables.iter().filter_map(|(_, t)| missing(t)).collect();
            tables.retain(|(_, t)| missing(t).is_none());
        }
        let values = self.known_values()?;
        let of_values = values.iter().map(|held| held.file.meta.size_bytes());
        let of_tables = tables.iter().map(|(_, t)| t.meta.size_bytes);
        let total = of_tables.chain(of_values).sum();
        let mut done = 0;
        let mut progress = |bytes| {
            done += bytes;
            progress(done, total);
        };
        let problems;
        (self.values, problems) = Values::check(values, &mut progress);
        for (number, (at, what)) in problems {
            let file = name_of(number);
            if self.report.lost.iter().all(|lost| lost.file != file) {
                self.lose(file, at, what, None);
            }
        }
        let mut sound = Vec::new();
        for (level, table) in tables {
            let file = file_name(table.meta.number, "table");
            let pointed = |pointer: &Pointer| self.values.judge(pointer);
            let problems = check_table(&table, &pointed, &mut progress);
            match problems.into_iter().next() {
                None => sound.push((level, table)),
                Some((at, what)) => self.lose(file, at, what, Some(&table.meta)),
            }
        }
        Ok(sound)
    }

    /// The value files of the manifest, and if it is not certain all that there are.
    fn known_values(&mut self) -> Result<ValueFiles> {
        let mut files = ValueFiles::clone(self.base.recovered.levels.values());
        if !self.base.certain {
            // One that is gone was perhaps replaced; tables that need it will tell.
            files.retain(|number| self.names.contains(&name_of(number)));
            let (env, shelf) = (self.env, &self.shelf);
            let unreadable = Values::add_unknown(&mut files, env, shelf, &self.names)?;
            for (number, what) in unreadable {
                self.lose(name_of(number), None, what, None);
            }
        }
        Ok(files)
    }

    /// Adds tables that no manifest speaks of any more.
    fn add_unknown(&mut self, tables: &mut Vec<(usize, Arc<TableFile>)>) -> Result<()> {
        let names = self.names.iter().filter(|name| name.ends_with(".table"));
        let numbers: Vec<u64> = names.filter_map(|name| number_of(name)).collect();
        for number in numbers {
            let known = tables.iter().any(|(_, t)| t.meta.number == number);
            if known || self.base.replaced.contains(&number) {
                continue;
            }
            let path = table_path(&self.shelf.dir, number);
            match describe(self.env.disk.as_ref(), &path) {
                Ok((_, size_bytes, properties)) => {
                    let meta = Arc::new(TableMeta {
                        number,
                        size_bytes,
                        properties,
                        ingested: None,
                    });
                    tables.push((LEVELS - 1, TableFile::new(meta, &self.shelf)));
                }
                Err(error) if error.kind() == crate::ErrorKind::Corruption => {
                    let what = error.message().to_owned();
                    self.lose(file_name(number, "table"), None, what, None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn lose(&mut self, file: String, at: Option<u64>, what: String, meta: Option<&TableMeta>) {
        let content = meta.map(|meta| {
            let p = &meta.properties;
            (
                p.entries,
                PlacedKey::new(&p.smallest),
                PlacedKey::last_below(&p.end),
            )
        });
        let aside = self.shelf.dir.join(ASIDE).join(&file);
        // An earlier repair that did not end may have moved it.
        let there = self.names.contains(&file) || self.env.disk.exists(&aside).unwrap_or(false);
        self.report.lost.push(Lost {
            why: match at {
                Some(at) => format!("block at byte {at}: {what}"),
                None => what,
            },
            moved_to: there.then_some(aside),
            content,
            file,
        });
    }

    /// Writes what the store is from now on.
    fn write(&mut self, sound: Vec<(usize, Arc<TableFile>)>) -> Result<()> {
        let free = first_free(&self.names, self.base.recovered.next_file);
        let next_file = AtomicU64::new(free);
        // Also of entries that are left out: the log is to go on behind them.
        let highest = sound.iter().map(|(_, t)| t.meta.sequences().1);
        let highest = highest.max().unwrap_or(0);
        let added = match self.base.certain {
            true => self.keep_in_place(sound, &next_file)?,
            false => self.arrange(sound.into_iter().map(|(_, t)| t).collect(), &next_file)?,
        };
        let damaged = self.set_aside()?;
        self.tell_lost_values();
        let edit = Edit {
            added,
            values: self.values.sound(),
            ..Edit::default()
        };
        let applied = Levels::default().apply(&edit, &self.shelf);
        let (levels, _) = applied.map_err(|what| Error::corrupt(&self.shelf.dir, what))?;
        let number = next_file.into_inner();
        let recovered = &mut self.base.recovered;
        recovered.flushed = recovered.flushed.max(highest);
        recovered.levels = levels;
        recovered.next_file = number + 1;
        Manifest::begin(
            &self.env.disk,
            &self.shelf.dir,
            number,
            &recovered.as_edit(),
        )?;
        // What stays of them and of what was merged, the next opening removes.
        for path in damaged.iter().filter(|path| !path.ends_with("CURRENT")) {
            let _ = self.env.disk.remove(path);
        }
        self.list_tables();
        Ok(())
    }

    fn list_tables(&mut self) {
        for (level, of) in self.base.recovered.levels.iter().enumerate() {
            let tables = of.iter().map(|t| TableContent::new(level, &t.meta));
            self.report.tables.extend(tables);
        }
    }

    /// Puts tables into the lowest level; those that overlap are merged into new ones before.
    fn arrange(
        &mut self,
        mut tables: Vec<Arc<TableFile>>,
        next_file: &AtomicU64,
    ) -> Result<Vec<(usize, Arc<TableMeta>)>> {
        tables.sort_by(|a, b| a.meta.properties.smallest.cmp(&b.meta.properties.smallest));
        let mut clusters: Vec<(Vec<u8>, Vec<Arc<TableFile>>)> = Vec::new();
        for table in tables {
            let p = &table.meta.properties;
            match clusters.last_mut() {
                Some((end, cluster)) if p.smallest < *end => {
                    if p.end > *end {
                        end.clone_from(&p.end);
                    }
                    cluster.push(table);
                }
                _ => clusters.push((p.end.clone(), vec![table])),
            }
        }
        let mut added = Vec::new();
        for (_, cluster) in clusters {
            let metas = match cluster.as_slice() {
                [one] if !self.values.are_bad_for(one) => vec![Arc::clone(&one.meta)],
                several => self.merge(several.to_vec(), next_file)?,
            };
            added.extend(metas.into_iter().map(|meta| (LEVELS - 1, meta)));
        }
        Ok(added)
    }

    fn merge(
        &mut self,
        mut tables: Vec<Arc<TableFile>>,
        next_file: &AtomicU64,
    ) -> Result<Vec<Arc<TableMeta>>> {
        // Where sequences are equal, the newer table counts.
        tables.sort_by_key(|t| std::cmp::Reverse(t.meta.number));
        let names = tables.iter().map(|t| file_name(t.meta.number, "table"));
        self.report.merged.extend(names);
        let table_bytes = Options::default().table_bytes;
        self.write_anew(&tables, next_file, table_bytes)
    }

    fn write_anew(
        &mut self,
        tables: &[Arc<TableFile>],
        next_file: &AtomicU64,
        table_bytes: u64,
    ) -> Result<Vec<Arc<TableMeta>>> {
        // Without watermarks all history stays.
        let keyspaces = Keyspaces::new(&self.base.recovered.keyspaces_or_guess(), Time::stopped());
        let (values, shelf) = (&mut self.values, &self.shelf);
        let written = values.merge(tables, shelf, &keyspaces, next_file, table_bytes)?;
        Ok(written.tables)
    }

    /// The tables where they lie; those with damaged values are written anew without these.
    fn keep_in_place(
        &mut self,
        sound: Vec<(usize, Arc<TableFile>)>,
        next_file: &AtomicU64,
    ) -> Result<Vec<(usize, Arc<TableMeta>)>> {
        // Level 0 is ordered by the age of its files: all of it is written anew, from the oldest on.
        let bad = |t: &TableFile| self.values.are_bad_for(t);
        let all_of_0 = sound.iter().any(|(level, t)| *level == 0 && bad(t));
        let stays = |(level, t): &(usize, Arc<TableFile>)| (*level > 0 || !all_of_0) && !bad(t);
        let (stay, mut anew): (Vec<_>, Vec<_>) = sound.into_iter().partition(stays);
        let stay = stay
            .into_iter()
            .map(|(level, t)| (level, Arc::clone(&t.meta)));
        let mut kept: Vec<(usize, Arc<TableMeta>)> = stay.collect();
        anew.sort_by_key(|(_, table)| table.meta.number);
        for (level, table) in anew {
            let metas = self.write_anew(&[table], next_file, u64::MAX)?;
            kept.extend(metas.into_iter().map(|meta| (level, meta)));
        }
        Ok(kept)
    }

    /// Says what went with each damaged value file.
    fn tell_lost_values(&mut self) {
        for (number, lost) in std::mem::take(&mut self.values.lost) {
            let (first, last) = (PlacedKey::new(&lost.first), PlacedKey::new(&lost.last));
            let content = Some((lost.entries, first, last));
            let file = name_of(number);
            match self.report.lost.iter_mut().find(|lost| lost.file == file) {
                Some(told) => told.content = content,
                None => self.report.lost.push(Lost {
                    file,
                    why: "the file is missing".to_owned(),
                    content,
                    moved_to: None,
                }),
            }
        }
    }

    /// Gives what is damaged a second name where nothing removes it; returns the first ones.
    fn set_aside(&self) -> Result<Vec<PathBuf>> {
        let (disk, dir) = (&self.env.disk, &self.shelf.dir);
        let lost = self.report.lost.iter().map(|lost| &lost.file);
        let damaged = lost.filter(|file| self.names.contains(file));
        let damaged = damaged.map(|file| dir.join(file));
        let damaged: Vec<PathBuf> = damaged
            .chain(self.base.unreadable.iter().cloned())
            .collect();
        if damaged.is_empty() {
            return Ok(damaged);
        }
        let aside = dir.join(ASIDE);
        let run = || {
            disk.create_dir_all(&aside)?;
            for from in &damaged {
                let to = aside.join(from.file_name().unwrap_or_default());
                if !disk.exists(&to)? {
                    disk.hard_link(from, &to)?;
                }
            }
            disk.sync_dir(&aside)
        };
        run().map_err(|e| Error::disk(&aside, "can't move damaged files to", &e))?;
        Ok(damaged)
    }
}

//! Files of every kind are damaged: bits flip, ends are cut off, sectors are lost or from elsewhere.
//!
//! Damage is found, by an error that names the file, or does no harm. It is contained: what does not lie in
//! the damaged file is read as before, and new batches are written. Nothing wrong is ever served.
//!
//! Two things nobody can tell from a crash: a log or a manifest that is cut off exactly behind a record.
//! What is served then is an earlier state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quorate_env::sim::{Crash, Sim};
use quorate_env::{Disk, Random};

use super::history::{History, Run, State, look, other_random};
use super::rounds;
use crate::inspect::{self, Inspection};
use crate::tests::crash::up;
use crate::tests::workload::{META, dir, keyspaces};
use crate::{Batch, Engine, ErrorKind, Lsm, Options, ReadAt, WriteOptions};

/// What is done to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(u64),
    Cut(usize),
    /// A sector is lost.
    Zeros(usize),
    /// A sector is another one of the same file.
    Stale {
        from: usize,
        to: usize,
    },
    Append(usize),
    Missing,
}

const SECTOR: usize = 512;

impl Damage {
    fn random(random: &Random, size: usize) -> Self {
        let below = |n: usize| random.below(n.max(1) as u64) as usize;
        let sectors = size.div_ceil(SECTOR);
        match random.below(20) {
            0..=9 => Damage::Flip(random.below(8 * size.max(1) as u64)),
            10..=12 => Damage::Cut(below(size)),
            13..=15 => Damage::Zeros(below(sectors)),
            16..=17 => Damage::Stale {
                from: below(sectors),
                to: below(sectors),
            },
            18 => Damage::Append(1 + below(2000)),
            _ => Damage::Missing,
        }
    }

    fn apply(&self, disk: &dyn Disk, path: &Path) {
        let mut bytes = disk.read(path).unwrap();
        disk.remove(path).unwrap();
        let sector = |n: usize| n * SECTOR;
        match *self {
            Damage::Flip(bit) => bytes[bit as usize / 8] ^= 1 << (bit % 8),
            Damage::Cut(at) => bytes.truncate(at),
            Damage::Zeros(n) => {
                let end = bytes.len().min(sector(n + 1));
                bytes[sector(n)..end].fill(0);
            }
            Damage::Stale { from, to } => {
                let length = SECTOR
                    .min(bytes.len() - sector(from))
                    .min(bytes.len() - sector(to));
                bytes.copy_within(sector(from)..sector(from) + length, sector(to));
            }
            Damage::Append(count) => bytes.resize(bytes.len() + count, 0xa5),
            Damage::Missing => return,
        }
        disk.create(path).unwrap().write_all_at(&bytes, 0).unwrap();
    }

    /// Whether it may look as if the last records had never been written.
    fn looks_like_a_crash(&self, path: &Path) -> bool {
        let logged = path
            .extension()
            .is_some_and(|e| e == "log" || e == "manifest");
        logged && !matches!(self, Damage::Append(_))
    }
}

/// A store, at rest, with something in its log if it has one.
struct Store<'a> {
    history: &'a History,
    options: Options,
    sim: Sim,
    /// The newest of every key.
    newest: State,
}

impl<'a> Store<'a> {
    fn new(seed: u64, history: &'a History) -> Self {
        let mut run = Run::new(history, Sim::new(seed), 0);
        run.open().unwrap();
        while run.done < history.steps.len() {
            run.step().unwrap();
        }
        let options = history.options_at(run.done).clone();
        let newest = look(run.lsm().unwrap(), &ReadAt::NEWEST, false).unwrap();
        if !options.wal {
            run.lsm().unwrap().close().unwrap();
        }
        run.drop_store();
        Store {
            history,
            options,
            sim: run.sim,
            newest,
        }
    }

    fn copy(&self) -> Sim {
        let copy = up(
            &Sim {
                disk: self.sim.disk.clone(),
                ..Sim::new(1)
            },
            Crash::KeepAll,
        );
        Sim {
            disk: copy.disk,
            ..Sim::new(1)
        }
    }

    /// All files but those that nothing refers to.
    fn files(&self, sim: &Sim) -> Vec<PathBuf> {
        let inspection = Inspection::open(&sim.env(), dir()).unwrap();
        let orphans = inspection.summary().left_overs;
        let list = |dir: &Path| sim.disk.list(dir).unwrap_or_default().into_iter();
        let top = list(dir()).filter(|name| !orphans.contains(name));
        let top = top.map(|name| dir().join(name));
        let wal = dir().join("wal");
        let logs = list(&wal).map(|name| wal.join(name));
        let all = top.chain(logs);
        all.filter(|path| sim.disk.read(path).is_ok()).collect()
    }

    fn last(&self) -> &State {
        &self.history.states[self.history.steps.len()]
    }
}

/// Damages a file, and reads and writes all that can be. Returns whether anybody noticed.
fn damage(store: &Store<'_>, sim: &Sim, path: &Path, damage: &Damage) -> Result<bool, String> {
    damage.apply(&sim.disk, path);
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let named = |error: &crate::Error| {
        let kind = [ErrorKind::Corruption, ErrorKind::Incompatible];
        match kind.contains(&error.kind()) && error.message().contains("/store") {
            true => Ok(()),
            false => Err(format!("this names no damage: {error}")),
        }
    };
    let verified = verify(sim, &name, damage.looks_like_a_crash(path))?;
    let lsm = match Lsm::open(&sim.env(), dir(), store.options.clone()) {
        Err(error) => return named(&error).map(|()| true),
        Ok(lsm) => lsm,
    };
    let found = store.history.look(&lsm);
    match &found {
        Ok(state) if state == store.last() => {}
        Ok(state) => {
            let earlier = store.history.states.contains(state);
            if !earlier || !damage.looks_like_a_crash(path) {
                return Err("what is read is wrong".to_owned());
            }
            return Ok(false);
        }
        Err(error) => {
            named(error)?;
            if !error.message().contains(&name) {
                return Err(format!("{name} is damaged, and not named by: {error}"));
            }
            if verified {
                return Err(format!("it was called sound, and then: {error}"));
            }
        }
    }
    contained(store, &lsm, &name)?;
    Ok(found.is_err())
}

/// Whether the store is called sound. An earlier state misses tables that have gone since.
fn verify(sim: &Sim, name: &str, earlier: bool) -> Result<bool, String> {
    let Ok(inspection) = Inspection::open(&sim.env(), dir()) else {
        return Ok(false);
    };
    let damages = inspection.verify(&mut |_| {}).damages;
    let is_other = |d: &&inspect::Damage| d.file != name && d.file != "wal";
    match damages.iter().find(is_other) {
        Some(other) if !earlier => Err(format!("it is no damage: {other:?}")),
        _ => Ok(damages.is_empty()),
    }
}

/// Key by key, answers are right or name the damaged file; and new batches are written and read.
fn contained(store: &Store<'_>, lsm: &Lsm, name: &str) -> Result<(), String> {
    let (mut right, mut refused) = (0, 0);
    for ((keyspace, listed), newest) in keyspaces().iter().zip(store.last()).zip(&store.newest) {
        let mut all: BTreeMap<_, _> = listed.iter().map(|(key, ..)| (key, None)).collect();
        all.extend(
            newest
                .iter()
                .map(|(key, version, value, _)| (key, Some((*version, *value)))),
        );
        for (key, wanted) in all {
            match lsm.get(keyspace.id, key, &ReadAt::NEWEST) {
                Ok(got) => {
                    let of = |value: &[u8]| (value.len(), xxhash_rust::xxh3::xxh3_64(value));
                    let got = got.map(|entry| (entry.version, of(&entry.value)));
                    if got != wanted {
                        return Err(format!("{key:?} is {got:?}, not {wanted:?}"));
                    }
                    right += 1;
                }
                Err(error) if error.message().contains(name) => refused += 1,
                Err(error) => return Err(format!("{name} is damaged, not named by: {error}")),
            }
        }
    }
    let mut batch = Batch::new();
    batch.put(META, b"\xfe\xff new", b"value");
    let how = match store.options.wal {
        true => WriteOptions {
            throttle: false,
            ..WriteOptions::SYNCED
        },
        false => WriteOptions::APPLY,
    };
    let text = |e: crate::Error| format!("nothing new can be written: {e}");
    lsm.write(&batch, how).map_err(text)?;
    lsm.flush().map_err(text)?;
    let got = lsm.get(META, b"\xfe\xff new", &ReadAt::NEWEST);
    match got {
        Ok(Some(entry)) if entry.value.as_ref() == b"value" => Ok(()),
        Err(error) if error.message().contains(name) => Ok(()),
        other => Err(format!(
            "what is new is {other:?} ({right} right, {refused} refused)"
        )),
    }
}

pub(super) fn round(seed: u64, length: usize, damages: u64) -> Result<u64, String> {
    let history = History::new(seed, length);
    let store = Store::new(seed, &history);
    let random = other_random(seed);
    let sound = store.copy();
    let files = store.files(&sound);
    let mut found = 0;
    for n in 0..damages {
        let path = &files[random.below(files.len() as u64) as usize];
        let sim = store.copy();
        let size = sim.disk.read(path).unwrap().len();
        let what = Damage::random(&random, size);
        let noticed = damage(&store, &sim, path, &what);
        let noticed = noticed.map_err(|e| format!("{n}: {what:?} of {}: {e}", path.display()))?;
        found += u64::from(noticed);
    }
    Ok(found)
}

#[test]
fn torture_damage() {
    rounds("damage", 6, "damages found", |seed| round(seed, 100, 40));
}

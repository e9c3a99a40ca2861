//! Backups: whole by themselves, only what is new copied, damage not taken over, the power going meanwhile.

use std::io;
use std::path::Path;
use std::sync::Arc;

use quorate_env::Env;
use quorate_env::sim::{HookedDisk, Hooks, Sim};

use super::checkpoint::{Made, crash_everywhere};
use super::crash::{Script, dump};
use super::workload::{dir, tiny_apart};
use crate::planted::{self, Bug};
use crate::{Backup, Engine, ErrorKind, Lsm, Options, WriteOptions};

/// Backups lie on a file system of their own.
struct Elsewhere;

impl Hooks for Elsewhere {
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let apart = |path: &Path| path.starts_with("/backups");
        match apart(from) == apart(to) {
            true => Ok(()),
            false => Err(io::ErrorKind::CrossesDevices.into()),
        }
    }
}

fn env(sim: &Sim) -> Env {
    Env {
        disk: Arc::new(HookedDisk::new(sim.env().disk, Arc::new(Elsewhere))),
        ..sim.env()
    }
}

fn options(script: &Script) -> Options {
    Options {
        keyspaces: script.options.keyspaces.clone(),
        ..tiny_apart()
    }
}

fn write(lsm: &Lsm, script: &Script, range: std::ops::Range<usize>) {
    for batch in &script.batches[range] {
        lsm.write(batch, WriteOptions::APPLY).unwrap();
    }
}

#[test]
fn backup_copies_only_what_the_one_before_lacks_and_each_is_whole() {
    let sim = Sim::new(1);
    let script = Script::new(21, false, 90);
    let lsm = Lsm::open(&env(&sim), dir(), options(&script)).unwrap();
    let mut previous = None;
    let mut reports = Vec::new();
    for (n, upto) in [60, 62, 90].into_iter().enumerate() {
        let from = [0, 60, 62][n];
        write(&lsm, &script, from..upto);
        let to = Path::new("/backups").join(n.to_string());
        let report = lsm.backup(&to, previous.as_deref()).unwrap();
        assert_eq!(report.sequence, lsm.stats().sequence);
        reports.push(report);
        previous = Some(to);
    }
    let [first, second, third]: [Backup; 3] = reports.try_into().unwrap();
    assert_eq!((first.shared_files, first.shared_bytes), (0, 0));
    assert!(
        first.copied_files > 5 && first.copied_bytes > 5_000,
        "{first:?}"
    );
    assert!(
        second.shared_files > 5 && second.copied_bytes < first.copied_bytes / 2,
        "{second:?}"
    );
    assert!(third.shared_bytes > 0, "{third:?}");
    // Neither the store nor another backup is needed.
    lsm.close().unwrap();
    let disk = env(&sim).disk;
    for gone in [dir(), Path::new("/backups/0"), Path::new("/backups/1")] {
        let upto = match gone.file_name().unwrap().to_str().unwrap() {
            "0" => Some(60),
            "1" => Some(62),
            _ => None,
        };
        if let Some(upto) = upto {
            let copy = Lsm::open(&env(&sim), gone, options(&script)).unwrap();
            assert_eq!(dump(&copy), script.states[upto]);
            copy.close().unwrap();
        }
        for name in disk.list(gone).unwrap() {
            let _ = disk.remove(&gone.join(name));
        }
    }
    let last = Path::new("/backups/2");
    let copy = Lsm::open(&env(&sim), last, options(&script)).unwrap();
    assert_eq!(dump(&copy), script.states[90]);
}

#[test]
fn backup_takes_over_no_damage_and_shares_nothing_with_a_stranger() {
    let sim = Sim::new(1);
    let script = Script::new(4, false, 60);
    let lsm = Lsm::open(&env(&sim), dir(), options(&script)).unwrap();
    write(&lsm, &script, 0..60);
    lsm.flush().unwrap();
    // Another store, whose files have the same numbers.
    let other = Script::new(5, false, 60);
    let stranger = Lsm::open(&env(&sim), Path::new("/backups/other"), options(&other)).unwrap();
    write(&stranger, &other, 0..60);
    stranger.close().unwrap();
    let to = Path::new("/backups/mine");
    let report = lsm.backup(to, Some(Path::new("/backups/other"))).unwrap();
    assert_eq!(report.shared_files, 0, "{report:?}");
    let disk = env(&sim).disk;
    let mut hurt = 0;
    for name in disk.list(dir()).unwrap() {
        if !name.ends_with(".table") && !name.ends_with(".values") {
            continue;
        }
        hurt += 1;
        let path = dir().join(&name);
        // In the first block.
        sim.disk.flip_bit(&path, 8 * 80).unwrap();
        let to = Path::new("/backups").join(&name);
        let error = lsm.backup(&to, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
        assert!(error.message().contains(&name), "{error}");
        assert!(disk.list(&to).unwrap().is_empty());
        sim.disk.flip_bit(&path, 8 * 80).unwrap();
    }
    assert!(hurt > 5, "{hurt} files");
}

#[test]
fn lsm_crash_while_making_a_backup_leaves_nothing_or_the_whole() {
    for seed in 0..3 {
        let script = Script::new(seed, true, 20);
        let whole = crash_everywhere(&script, Made::Backup).unwrap();
        assert!(whole > 0, "it was never whole");
    }
    let noticed = (0..8).any(|seed| {
        let script = Script::new(seed, true, 20);
        planted::is_noticed(Bug::BackupUnsynced, || {
            crash_everywhere(&script, Made::Backup).map(|_| ())
        })
    });
    assert!(noticed, "nobody missed the sync of the copies");
}

//! A process that writes to a real disk is killed, again and again; what it said was written is there.
//!
//! The process is this test binary: the test `torture_child` in it writes if it is told where, and says on
//! its output what was acknowledged. SIGKILL loses nothing that the operating system has, so with a log
//! each acknowledged batch must be there, synced or not, whole in all keyspaces, with none missing before
//! it; without a log each batch that a flush took to disk.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use quorate_env::{Env, Random};

use super::rounds;
use crate::tests::workload::{DATA, META, random_options, write_options};
use crate::{Batch, Durability, Engine, IterOptions, KeyRange, Lsm, Options, ReadAt, WriteOptions};

/// Where the child is to write, and with which seed.
const DIRECTORY: &str = "QUORATE_TORTURE_CHILD";
const CHILD_SEED: &str = "QUORATE_TORTURE_CHILD_SEED";
const WRITERS: u8 = 3;
/// A writer's numbers go round in so many keys.
const KEYS: u64 = 50;

fn options(seed: u64) -> Options {
    let random = Random::from_seed(seed);
    Options {
        wal: !random.one_in(4),
        // A real disk takes a while for each file.
        memtable_bytes: 16 << 10,
        table_bytes: 32 << 10,
        level_base_bytes: 64 << 10,
        ..random_options(&random)
    }
}

/// The `n`th batch of a writer.
fn batch(writer: u8, n: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(META, &[writer], &n.to_be_bytes());
    let key = [&[writer], &(n % KEYS).to_be_bytes()[..]].concat();
    batch.put_at(DATA, &key, n, &[n as u8; 100]);
    if n.is_multiple_of(97) {
        // Nothing is there.
        batch.delete_range(META, KeyRange::new(&[writer, 1], &[writer, 2]));
    }
    batch
}

/// How many batches of a writer are there; they must be whole and without a hole.
fn count(engine: &dyn Engine, writer: u8) -> Result<u64, String> {
    let found = engine.get(META, &[writer], &ReadAt::NEWEST);
    let found = found.map_err(|e| e.to_string())?;
    let last = found.map_or(0, |entry| {
        u64::from_be_bytes(entry.value.as_ref().try_into().unwrap_or_default())
    });
    let options = IterOptions::prefix(&[writer]);
    let mut iter = engine.iterate(DATA, options).map_err(|e| e.to_string())?;
    let mut versions = Vec::new();
    iter.seek_to_first().map_err(|e| e.to_string())?;
    while iter.valid() {
        versions.push(iter.version());
        if iter.value() != [iter.version() as u8; 100] {
            return Err(format!(
                "version {} is not what was written",
                iter.version()
            ));
        }
        iter.next().map_err(|e| e.to_string())?;
    }
    versions.sort_unstable();
    let first = last.saturating_sub(KEYS) + 1;
    let expected: Vec<u64> = (first..=last).collect();
    match versions == expected {
        true => Ok(last),
        false => Err(format!(
            "writer {writer} is at {last}, and there are {versions:?}"
        )),
    }
}

/// Not a test of its own: what the killed process does.
#[test]
fn torture_child() {
    let Some(dir) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let seed: u64 = std::env::var(CHILD_SEED).unwrap().parse().unwrap();
    let options = options(seed);
    let random = Random::from_os();
    let lsm = Lsm::open(&Env::real(2), Path::new(&dir), options.clone()).unwrap();
    let (lsm, options, random) = (&lsm, &options, &random);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let first = 1 + count(lsm, writer).unwrap();
            scope.spawn(move || {
                for n in first.. {
                    let how = WriteOptions {
                        throttle: true,
                        ..write_options(options, random)
                    };
                    lsm.write(&batch(writer, n), how).unwrap();
                    if how.durability != Durability::None {
                        println!("acknowledged {writer} {n}");
                    } else if n.is_multiple_of(50) {
                        lsm.flush().unwrap();
                        println!("acknowledged {writer} {n}");
                    }
                }
            });
        }
        scope.spawn(|| {
            for n in 0u64.. {
                match random.below(3) {
                    0 => lsm.compact_all().unwrap(),
                    1 => drop(lsm.flush().unwrap()),
                    _ => lsm
                        .remove_range(META, KeyRange::new(&[200], &[201]))
                        .unwrap(),
                }
                if n.is_multiple_of(8) {
                    std::thread::yield_now();
                }
            }
        });
    });
}

/// Lets the child write in a directory, kills it after so many acknowledgements; returns the last of each
/// writer.
fn write_and_kill(dir: &Path, seed: u64, after: u64) -> Result<Vec<u64>, String> {
    let binary = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new(binary)
        .args([
            "--exact",
            "tests::torture::kill::torture_child",
            "--nocapture",
        ])
        .env(DIRECTORY, dir)
        .env(CHILD_SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let output = child.stdout.take().ok_or("the child has no output")?;
    let mut acknowledged = vec![0; usize::from(WRITERS)];
    let mut lines = BufReader::new(output).lines();
    let mut killed = false;
    for heard in 0.. {
        if heard == after {
            child.kill().map_err(|e| e.to_string())?;
            killed = true;
        }
        // What it said before it was killed counts.
        let Some(Ok(line)) = lines.next() else {
            break;
        };
        let words: Vec<&str> = line.split(' ').collect();
        if let ["acknowledged", writer, n] = words.as_slice()
            && let (Ok(writer), Ok(n)) = (writer.parse::<usize>(), n.parse())
        {
            acknowledged[writer] = n;
        }
    }
    let ended = child.wait_with_output().map_err(|e| e.to_string())?;
    match killed {
        true => Ok(acknowledged),
        false => Err(String::from_utf8_lossy(&ended.stderr).into_owned()),
    }
}

/// One store, killed so many times.
pub(super) fn round(seed: u64, kills: u64) -> Result<u64, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let dir = folder.path().join("store");
    let random = Random::from_seed(seed);
    for kill in 0..kills {
        let after = 1 + random.below(400);
        let acknowledged = write_and_kill(&dir, seed, after)?;
        let lsm = Lsm::open(&Env::real(1), &dir, options(seed)).map_err(|e| e.to_string())?;
        for (writer, at_least) in acknowledged.iter().enumerate() {
            let there = count(&lsm, writer as u8).map_err(|e| format!("kill {kill}: {e}"))?;
            if there < *at_least {
                return Err(format!(
                    "kill {kill}: writer {writer} was told of {at_least}, there are {there}"
                ));
            }
        }
        // Whoever only lets go of a store gives it free a moment later.
        lsm.close().map_err(|e| e.to_string())?;
    }
    Ok(kills)
}

#[test]
fn torture_kill() {
    rounds("kill", 2, "kills", |seed| round(seed, 5));
}

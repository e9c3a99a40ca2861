//! How fast the engine is: keys of 16 bytes and values of 100, as in LevelDB's db_bench.
//!
//! `speed [directory] [entries] [threads] [workload…]`; without workloads it runs them all.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use quorate_env::{Env, Random};
use quorate_storage::{
    Batch, Durability, Engine, IterOptions, KeyspaceId, KeyspaceOptions, Lsm, Options, ReadAt,
    WriteOptions,
};

const DATA: KeyspaceId = KeyspaceId(0);

struct Bench {
    dir: PathBuf,
    entries: u64,
    threads: u64,
}

fn key(n: u64) -> [u8; 16] {
    let mut key = *b"0000000000000000";
    let mut n = n;
    for digit in key.iter_mut().rev() {
        *digit = b'0' + (n % 10) as u8;
        n /= 10;
    }
    key
}

/// Half random, half repeated, so that compression has something to do.
fn value(random: &Random) -> [u8; 100] {
    let mut value = [0; 100];
    for chunk in value[..50].chunks_mut(8) {
        let bytes = random.next_u64().to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    value.copy_within(..50, 50);
    value
}

impl Bench {
    fn open(&self, wal: bool) -> quorate_storage::Result<Arc<Lsm>> {
        let options = Options {
            keyspaces: vec![KeyspaceOptions::versioned(DATA.0, "data")],
            wal,
            ..Options::default()
        };
        let dir = self.dir.join(if wal { "wal" } else { "plain" });
        Ok(Arc::new(Lsm::open(&Env::real(1), &dir, options)?))
    }

    /// Runs `work` on all threads, each with its share, and prints the rate.
    fn time(&self, name: &str, count: u64, work: impl Fn(u64, u64, &Random) + Sync) {
        let share = count / self.threads;
        let start = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..self.threads {
                let work = &work;
                scope.spawn(move || work(thread * share, share, &Random::from_seed(thread + 1)));
            }
        });
        let seconds = start.elapsed().as_secs_f64();
        let rate = (share * self.threads) as f64 / seconds;
        println!("{name:<24} {:>10.0} /s {:>8.2} s", rate, seconds);
    }

    fn fill(&self, store: &Lsm, name: &str, durability: Durability, count: u64, random_keys: bool) {
        let options = WriteOptions {
            durability,
            throttle: true,
            ..WriteOptions::default()
        };
        self.time(name, count, |from, share, random| {
            let mut batch = Batch::new();
            for n in from..from + share {
                let n = if random_keys {
                    random.below(self.entries)
                } else {
                    n
                };
                batch.clear();
                batch.put_at(DATA, &key(n), 1, &value(random));
                store.write(&batch, options).expect("a write");
            }
        });
    }

    fn read(&self, store: &Lsm, name: &str) {
        self.time(name, self.entries.min(1_000_000), |_, share, random| {
            let mut found = 0;
            for _ in 0..share {
                let key = key(random.below(self.entries));
                found += u64::from(
                    store
                        .get(DATA, &key, &ReadAt::NEWEST)
                        .expect("a read")
                        .is_some(),
                );
            }
            assert!(found > 0, "the store holds something");
        });
    }

    fn scan(&self, store: &Lsm, name: &str, back: bool) {
        self.time(name, self.entries, |_, share, _| {
            let mut iter = store
                .iterate(DATA, IterOptions::default())
                .expect("an iterator");
            let start = if back {
                iter.seek_to_last()
            } else {
                iter.seek_to_first()
            };
            start.expect("a seek");
            let mut seen = 0;
            while iter.valid() && seen < share {
                seen += iter.value().len().min(1) as u64;
                let moved = if back { iter.prev() } else { iter.next() };
                moved.expect("a step");
            }
        });
    }

    fn run(&self, workload: &str) -> quorate_storage::Result<()> {
        let wal = workload.starts_with("wal");
        let store = self.open(wal)?;
        match workload {
            "fillseq" => self.fill(
                &store,
                "fillseq, no log",
                Durability::None,
                self.entries,
                false,
            ),
            "fillrandom" => {
                self.fill(
                    &store,
                    "fillrandom, no log",
                    Durability::None,
                    self.entries,
                    true,
                );
            }
            "walfillseq" => {
                self.fill(
                    &store,
                    "fillseq, log",
                    Durability::Buffered,
                    self.entries,
                    false,
                );
            }
            "walfillrandom" => {
                self.fill(
                    &store,
                    "fillrandom, log",
                    Durability::Buffered,
                    self.entries,
                    true,
                );
            }
            "walfillsync" => self.fill(&store, "fillsync", Durability::Synced, 4_000, true),
            "readrandom" => self.read(&store, "readrandom"),
            "readseq" => self.scan(&store, "readseq", false),
            "readreverse" => self.scan(&store, "readreverse", true),
            "compact" => self.time("compact", 1, |_, _, _| {
                store.compact_all().expect("it works")
            }),
            other => println!("there is no workload {other}"),
        }
        let stats = store.stats();
        if stats.flushes + stats.compactions > 0 {
            println!(
                "  {} flushes, {} compactions, {} moves, {} MiB compacted, stalled {} ms",
                stats.flushes,
                stats.compactions,
                stats.moves,
                stats.compaction_write_bytes >> 20,
                stats.stall_micros / 1000
            );
        }
        store.close()
    }
}

fn main() -> quorate_storage::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let entries = args
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1_000_000);
    let threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(1);
    let bench = Bench {
        dir: dir.join("quorate-speed"),
        entries,
        threads,
    };
    let all = [
        "walfillseq",
        "walfillrandom",
        "walfillsync",
        "fillseq",
        "fillrandom",
        "readrandom",
        "readseq",
        "readreverse",
        "compact",
        "readrandom",
        "readseq",
        "readreverse",
    ];
    let mut chosen: Vec<String> = args.collect();
    if chosen.is_empty() {
        let _ = std::fs::remove_dir_all(&bench.dir);
        chosen = all.map(str::to_owned).to_vec();
    }
    for workload in &chosen {
        bench.run(workload)?;
    }
    Ok(())
}

//! The workloads. Each runs in a process of its own; some need the directory that `fillrandom` left.

mod reads;
mod special;
mod writes;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::engines::{self, Setup, Store};
use crate::measure::Metrics;

/// What a case is told.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    pub engine: String,
    pub dir: PathBuf,
    pub keys: u64,
    pub key_bytes: usize,
    pub value_bytes: usize,
    pub threads: u64,
    pub seconds: u64,
    pub cache_bytes: u64,
    pub separate_from: Option<usize>,
    pub seed: u64,
}

impl Case {
    pub fn setup(&self) -> Setup {
        Setup {
            cache_bytes: self.cache_bytes,
            write_buffer_bytes: 64 << 20,
            keyspaces: 1,
            separate_from: self.separate_from,
            large_values: false,
            versioned: false,
        }
    }

    pub fn open(&self, setup: &Setup) -> Result<Box<dyn Store>> {
        engines::open(&self.engine, &self.dir, setup)
    }

    pub fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// All names, for the help.
pub const NAMES: &[&str] = &[
    "fillseq",
    "fillrandom",
    "overwrite",
    "fillsync",
    "settle",
    "readrandom",
    "readmissing",
    "multiget",
    "readseq",
    "readreverse",
    "seekrandom",
    "seekreverse",
    "readwhilewriting",
    "ycsb-a",
    "ycsb-b",
    "ycsb-c",
    "ycsb-e",
    "ycsb-f",
    "large-overwrite",
    "large-scan",
    "queue",
    "deleterange",
    "keyspaces",
    "versions-latest",
    "versions-at",
    "soak",
];

/// Runs one case.
pub fn run(case: &Case) -> Result<Metrics> {
    match case.name.as_str() {
        "fillseq" => writes::fill(case, false),
        "fillrandom" => writes::fill(case, true),
        "overwrite" => writes::overwrite(case),
        "fillsync" => writes::fill_synced(case),
        "large-overwrite" => writes::large_overwrite(case),
        "soak" => writes::soak(case),
        "settle" => reads::settle(case),
        "readrandom" => reads::random(case, true),
        "readmissing" => reads::random(case, false),
        "multiget" => reads::multi_get(case),
        "readseq" | "large-scan" => reads::sequential(case, false),
        "readreverse" => reads::sequential(case, true),
        "seekrandom" => reads::seek(case, false),
        "seekreverse" => reads::seek(case, true),
        "readwhilewriting" => reads::while_writing(case),
        "ycsb-a" | "ycsb-b" | "ycsb-c" | "ycsb-e" | "ycsb-f" => special::ycsb(case),
        "queue" => special::queue(case),
        "deleterange" => special::delete_range(case),
        "keyspaces" => special::keyspaces(case),
        "versions-latest" => special::versions(case, true),
        "versions-at" => special::versions(case, false),
        other => bail!("`{other}` is none of {NAMES:?}"),
    }
}

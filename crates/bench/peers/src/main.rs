//! `storage-bench`: one workload on one engine, or the whole suite in turns.

mod cases;
mod cgroup;
mod engines;
mod keys;
mod measure;
mod suite;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Storage engines, measured alike")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one case of one engine in this process, and prints its metrics as one line of JSON.
    Run(RunArgs),
    /// Runs everything, in turns, and writes a report.
    Suite(suite::SuiteArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// quorate, rocksdb, fjall, redb or sled; with -inline behind it, the first two without value files.
    #[arg(long)]
    engine: String,
    /// The workload.
    #[arg(long)]
    case: String,
    /// The engine's directory.
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 3_000_000)]
    keys: u64,
    #[arg(long, default_value_t = 16)]
    key_bytes: usize,
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Threads; in the cases of versions, versions for each key.
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// How long a case without a number of keys runs.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 256)]
    cache_mib: u64,
    /// The size from which values lie apart; otherwise each engine's own choice or the case's.
    #[arg(long)]
    separate_from: Option<usize>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Suite(args) => suite::run(args),
        Command::Run(run) => {
            let case = cases::Case {
                name: run.case,
                engine: run.engine,
                dir: run.dir,
                keys: run.keys,
                key_bytes: run.key_bytes,
                value_bytes: run.value_bytes,
                threads: run.threads,
                seconds: run.seconds,
                cache_bytes: run.cache_mib << 20,
                separate_from: run.separate_from,
                seed: run.seed,
            };
            println!("{}", serde_json::to_string(&cases::run(&case)?)?);
            Ok(())
        }
    }
}

//! `cache-bench`: our cache beside others: how fast, and how stale.

mod consistency;
mod host;
mod naive;
mod page;
mod servers;
mod speed;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Caches, measured alike", args_override_self = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Hits, misses, stampedes and batches; writes a report.
    #[command(args_override_self = true)]
    Speed(speed::SpeedArgs),
    /// Stale reads by strategy and fault; writes a page.
    #[command(args_override_self = true)]
    Consistency(consistency::ConsistencyArgs),
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match &args.command {
            Command::Speed(args) => speed::measure(args).await,
            Command::Consistency(args) => consistency::measure(args).await,
        }
    })
}

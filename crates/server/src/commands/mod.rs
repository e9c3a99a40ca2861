//! The commands: those that talk to a cluster as its client, and those on the files of a stopped node.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use quorate_client::{Client, NamespaceKv};
use quorate_sharding::{Encoding, RoutingPrefix};

use crate::args::{Cli, CompletionArgs, ConnectArgs, TargetArgs};

mod bench;
mod checkpoint;
#[cfg(feature = "outbox")]
mod database;
mod feed;
mod keys;
mod load;
mod members;
mod namespace;
mod order;
#[cfg(feature = "outbox")]
mod outbox;
mod output;
mod progress;
#[cfg(feature = "outbox")]
mod saga;
mod status;
mod storage;
mod verify;

pub use bench::bench;
pub use keys::{del, get, put, scan};
pub use load::load;
pub use members::{node, shard};
pub use namespace::namespace;
#[cfg(feature = "outbox")]
pub use outbox::outbox;
#[cfg(feature = "outbox")]
pub use saga::saga;
pub use status::status;
pub use storage::{parse_escaped, storage};
pub use verify::verify;

/// What a command that worked, but has bad news, ends with.
const BAD_NEWS: u8 = 1;

/// Runs a command on a runtime of its own.
///
/// # Errors
/// What the command fails with.
pub fn block_on(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

/// Prints a completion script.
pub fn completion(args: CompletionArgs) -> ExitCode {
    let mut command = Cli::command();
    clap_complete::generate(args.shell, &mut command, "quorate", &mut std::io::stdout());
    ExitCode::SUCCESS
}

/// Reads an encoding as the command line has it.
pub fn parse_encoding(text: &str) -> Result<Encoding, String> {
    let hashed = |prefix| Ok(Encoding::Hashed { prefix });
    match text {
        "ordered" => Ok(Encoding::Ordered),
        "hashed" => hashed(RoutingPrefix::WholeKey),
        _ => match text.strip_prefix("hashed-until=").map(str::as_bytes) {
            Some([delimiter]) => hashed(RoutingPrefix::Until(*delimiter)),
            _ => Err("it is `ordered`, `hashed` or `hashed-until=` with one byte".into()),
        },
    }
}

async fn connect(args: &ConnectArgs) -> Result<Client> {
    Ok(Client::connect(&args.endpoints, args.options()).await?)
}

async fn open(args: &TargetArgs) -> Result<NamespaceKv> {
    let client = connect(&args.connect).await?;
    Ok(client.namespace(&args.namespace).await?)
}

#[cfg(test)]
mod tests;

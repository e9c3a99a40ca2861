//! The binary `quorate`: the server and the commands of its operators.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

mod args;
mod commands;
mod dev;
mod init;
mod input;
mod serve;

use args::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Dev(flags) => dev::run(flags).map(done),
        Command::Init(flags) => init::run(flags).map(done),
        Command::Serve(flags) => serve::run(flags).map(done),
        Command::Put(args) => commands::block_on(commands::put(args)),
        Command::Get(args) => commands::block_on(commands::get(args)),
        Command::Del(args) => commands::block_on(commands::del(args)),
        Command::Scan(args) => commands::block_on(commands::scan(args)),
        Command::Namespace(args) => commands::block_on(commands::namespace(args)),
        Command::Node(args) => commands::block_on(commands::node(args)),
        Command::Shard(args) => commands::block_on(commands::shard(args)),
        Command::Status(args) => commands::block_on(commands::status(args)),
        Command::Load(args) => commands::block_on(commands::load(args)),
        Command::Verify(args) => commands::block_on(commands::verify(args)),
        Command::Bench(args) => commands::block_on(commands::bench(args)),
        Command::Storage(args) => commands::storage(args),
        #[cfg(feature = "outbox")]
        Command::Outbox(args) => commands::block_on(commands::outbox(args)),
        #[cfg(feature = "outbox")]
        Command::Saga(args) => commands::block_on(commands::saga(args)),
        #[cfg(not(feature = "outbox"))]
        Command::Outbox(_) | Command::Saga(_) => anyhow::bail!(
            "this binary has no commands `outbox` and `saga`: build it with `cargo build --release \
             --package quorate-server --features outbox`"
        ),
        Command::Completion(args) => Ok(commands::completion(args)),
    }
}

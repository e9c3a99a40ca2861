//! The binary `quorate`.

mod dev;
mod init;
mod serve;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "quorate", version)]
enum Command {
    Dev(dev::Flags),
    Init(init::Flags),
    Serve(serve::Flags),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Dev(flags) => dev::run(flags),
        Command::Init(flags) => init::run(flags),
        Command::Serve(flags) => serve::run(flags),
    }
}

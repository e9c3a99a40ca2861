//! The binary `quorate`.

mod serve;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "quorate", version)]
enum Command {
    Serve(serve::Flags),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Serve(flags) => serve::run(flags),
    }
}

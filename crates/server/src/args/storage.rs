//! The command line of `quorate storage`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Output;

/// Arguments of `storage`.
#[derive(Debug, Args)]
#[command(after_help = "\
DIR is the directory of an engine, or the data directory of a node. A directory that a process has open
is refused: stop the node, or look at a checkpoint.

Examples:
  quorate storage inspect /var/lib/quorate
  quorate storage verify /var/lib/quorate
  quorate storage dump /var/lib/quorate --keyspace data --limit 10 --output json
  quorate storage repair /var/lib/quorate/engine")]
pub struct StorageArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: StorageCommand,
}

/// What can be done with the files of an engine.
#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// Show what is in it, table by table
    Inspect(InspectArgs),
    /// Read every block and compare with its checksum, order and counts
    Verify(CheckArgs),
    /// Print entries: every version, deletions too
    Dump(DumpArgs),
    /// Make a manifest from the sound tables, when manifest or tables are damaged
    Repair(CheckArgs),
}

/// Arguments of `storage inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The directory
    pub dir: PathBuf,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// Arguments of `storage verify` and `storage repair`.
#[derive(Debug, Args)]
#[command(after_help = "\
verify ends with 1 if anything is wrong. repair ends with 1 if anything is lost; it changes nothing
if nothing is wrong. Damaged files are moved to the folder `damaged` below the engine's directory.")]
pub struct CheckArgs {
    /// The directory
    pub dir: PathBuf,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
    /// No progress bar
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `storage dump`.
#[derive(Debug, Args)]
#[command(after_help = "\
Keys are printed, and taken, as text with \\xNN for bytes that are none, \\\\ for a backslash.

Examples:
  quorate storage dump DIR --keyspace meta
  quorate storage dump DIR --from '\\x00\\x00\\x00\\x01user/' --limit 0")]
pub struct DumpArgs {
    /// The directory
    pub dir: PathBuf,
    /// Only this keyspace, by name or number
    #[arg(long)]
    pub keyspace: Option<String>,
    /// The first key
    #[arg(long, default_value = "", value_parser = crate::commands::parse_escaped)]
    pub from: Escaped,
    /// The end, not included
    #[arg(long, value_parser = crate::commands::parse_escaped)]
    pub to: Option<Escaped>,
    /// At most so many entries; 0: all
    #[arg(long, default_value_t = 100)]
    pub limit: u64,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// Bytes that were written as text with escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Escaped(pub Vec<u8>);

//! The command line: what there is to say, with help and examples.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use quorate_client::ClientOptions;

use crate::input::Format;

mod members;
#[cfg(feature = "outbox")]
mod outbox;
#[cfg(feature = "outbox")]
mod saga;
mod storage;

pub use members::{
    DrainArgs, ListNodesArgs, MoveArgs, NodeArgs, NodeCommand, RebuildArgs, ShardArgs, ShardCommand,
};
#[cfg(feature = "outbox")]
pub use outbox::{
    ChoiceArgs, DatabaseArgs, DlqArgs, DlqChoiceArgs, DlqCommand, DlqListArgs, DlqShowArgs,
    LagArgs, ListArgs, OutboxArgs, OutboxCommand, ShowArgs,
};
#[cfg(feature = "outbox")]
pub use saga::{AuditArgs, ListSagasArgs, ListStuckArgs, SagaArgs, SagaCommand, ShowSagaArgs};
pub use storage::{CheckArgs, DumpArgs, Escaped, InspectArgs, StorageArgs, StorageCommand};

/// Quorate: a sharded, strongly consistent key-value store.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, propagate_version = true)]
#[command(after_help = "\
Examples:
  quorate put greeting hello
  quorate get greeting
  quorate load /var/lib/dpkg/status --format deb
  quorate status --replicas")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a cluster of three nodes on this machine, to try it
    Dev(crate::dev::Flags),
    /// Found a cluster, once
    Init(crate::init::Flags),
    /// Run a node
    Serve(crate::serve::Flags),
    /// Write one key
    Put(PutArgs),
    /// Read one key
    Get(GetArgs),
    /// Delete one key
    Del(DelArgs),
    /// Read a range of keys
    Scan(ScanArgs),
    /// Create, list and show namespaces
    Namespace(NamespaceArgs),
    /// List nodes, take replicas off one, remove it
    Node(NodeArgs),
    /// Move one replica of a shard to another node, or have it made anew
    Shard(ShardArgs),
    /// Show the nodes, their shards, and whether replicas agree
    Status(StatusArgs),
    /// Load records from a file
    Load(LoadArgs),
    /// Compare what is stored with a file
    Verify(VerifyArgs),
    /// Put a load on a cluster and measure it
    Bench(BenchArgs),
    /// Look at, check and repair the files of a node that is stopped
    Storage(StorageArgs),
    /// Look at what a service's outbox and its consumers have set aside, and order what becomes of it
    #[cfg(feature = "outbox")]
    Outbox(OutboxArgs),
    /// Not in this binary: build it with `--features outbox`
    #[cfg(not(feature = "outbox"))]
    #[command(hide = true)]
    Outbox(AbsentArgs),
    /// Look at how a service's sagas stand, and order what becomes of those that are stuck
    #[cfg(feature = "outbox")]
    Saga(SagaArgs),
    /// Not in this binary: build it with `--features outbox`
    #[cfg(not(feature = "outbox"))]
    #[command(hide = true)]
    Saga(AbsentArgs),
    /// Print the completion script of a shell
    Completion(CompletionArgs),
}

/// Whatever was said to a command that this binary does not have.
#[cfg(not(feature = "outbox"))]
#[derive(Debug, Args)]
pub struct AbsentArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _all: Vec<String>,
}

/// How to reach the cluster.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// Nodes to ask first, as host:port, with commas between them; one that is up is enough
    #[arg(
        long,
        env = "QUORATE_ENDPOINTS",
        default_value = "127.0.0.1:7001",
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    pub endpoints: Vec<String>,
    /// The most time one operation may take, in milliseconds
    #[arg(long, default_value_t = 5000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout_ms: u64,
    /// Connections to each node
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub connections: u16,
}

impl ConnectArgs {
    /// The client's settings.
    pub fn options(&self) -> ClientOptions {
        ClientOptions {
            timeout: Duration::from_millis(self.timeout_ms),
            connections: self.connections.into(),
            ..ClientOptions::default()
        }
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs: one JSON object, or one a line
    Json,
}

/// What the commands on keys share.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// The namespace
    #[arg(short, long, env = "QUORATE_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// How fresh a read has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Sees every write that was answered before
    Linearizable,
    /// What some replica has, however old; needs no quorum
    Stale,
}

/// Arguments of `put`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate put greeting hello
  quorate put config --file app.toml
  echo hello | quorate put greeting -
  quorate put lock me --if-absent
  quorate put greeting hi --if-version 1042")]
pub struct PutArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The key
    pub key: String,
    /// The value; `-`: standard input, byte for byte
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub value: Option<String>,
    /// Take the value from this file
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Only if the key is not there
    #[arg(long, conflicts_with_all = ["if_present", "if_version"])]
    pub if_absent: bool,
    /// Only if the key is there
    #[arg(long, conflicts_with = "if_version")]
    pub if_present: bool,
    /// Only if the key is at this version
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<u64>,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 1 if the key is not there.

Examples:
  quorate get greeting
  quorate get greeting --level stale
  quorate get greeting --token $TOKEN      sees at least the write that gave the token
  quorate get greeting --output json       with versions")]
pub struct GetArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The key
    pub key: String,
    /// How fresh
    #[arg(long, default_value = "linearizable", value_enum)]
    pub level: Level,
    /// See at least the write that gave this token
    #[arg(long, conflicts_with = "level")]
    pub token: Option<String>,
}

/// Arguments of `del`.
#[derive(Debug, Args)]
#[command(after_help = "Ends with 1 if nothing was deleted.")]
pub struct DelArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The key
    pub key: String,
    /// Only if the key is at this version
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<u64>,
}

/// Arguments of `scan`.
#[derive(Debug, Args)]
#[command(after_help = "\
A hashed namespace is scanned in order only within one routing prefix; else use --unordered.

Examples:
  quorate scan --prefix user/
  quorate scan --start a --end b --reverse --limit 10
  quorate scan --unordered --limit 0 --keys-only")]
pub struct ScanArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Keys that begin with this
    #[arg(long, conflicts_with_all = ["start", "end"])]
    pub prefix: Option<String>,
    /// The first key
    #[arg(long, default_value = "")]
    pub start: String,
    /// The end, not included; empty: no end
    #[arg(long, default_value = "")]
    pub end: String,
    /// At most so many; 0: all
    #[arg(long, default_value_t = 100)]
    pub limit: u64,
    /// Downwards
    #[arg(long, conflicts_with = "unordered")]
    pub reverse: bool,
    /// In the store's own order
    #[arg(long)]
    pub unordered: bool,
    /// Without values
    #[arg(long)]
    pub keys_only: bool,
    /// How fresh
    #[arg(long, default_value = "linearizable", value_enum)]
    pub level: Level,
}

/// Arguments of `namespace`.
#[derive(Debug, Args)]
pub struct NamespaceArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: NamespaceCommand,
}

/// What can be done with namespaces.
#[derive(Debug, Subcommand)]
pub enum NamespaceCommand {
    /// Create a namespace
    Create(CreateNamespaceArgs),
    /// List all namespaces
    List(ListNamespacesArgs),
    /// Show one namespace and its shards
    Show(ShowNamespaceArgs),
    /// Drop a namespace and all that is in it
    Drop(DropNamespaceArgs),
}

/// Arguments of `namespace create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Encodings of wide namespaces:
  hashed            spreads keys evenly; scans are unordered
  hashed-until=/    keys with the same part before the first `/` stay together, in order
  ordered           keys in order over all shards; give --splits unless keys begin evenly spread

Examples:
  quorate namespace create sessions --shards 16
  quorate namespace create carts --encoding hashed-until=/ --shards 8
  quorate namespace create names --encoding ordered --splits g,n,t
  quorate namespace create config --kind compact")]
pub struct CreateNamespaceArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Its name
    pub name: String,
    /// wide: many shards; compact: one group, dense versions
    #[arg(long, default_value = "wide", value_enum)]
    pub kind: Kind,
    /// How a wide namespace's keys are laid out: ordered, hashed, hashed-until=CHAR
    #[arg(long, default_value = "hashed", value_parser = crate::commands::parse_encoding)]
    pub encoding: quorate_sharding::Encoding,
    /// How many shards; a compact namespace has one
    #[arg(long, value_name = "N")]
    pub shards: Option<u32>,
    /// How many replicas each shard has
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub replicas: u32,
    /// Keys between the shards of an ordered namespace, with commas between them
    #[arg(long, value_delimiter = ',', conflicts_with = "shards")]
    pub splits: Vec<String>,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// A namespace's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Many shards
    Wide,
    /// One group with dense versions
    Compact,
}

/// Arguments of `namespace list`.
#[derive(Debug, Args)]
pub struct ListNamespacesArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// Arguments of `namespace show`.
#[derive(Debug, Args)]
pub struct ShowNamespaceArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Its name
    pub name: String,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// Arguments of `namespace drop`.
#[derive(Debug, Args)]
pub struct DropNamespaceArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Its name
    pub name: String,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = "\
With --replicas each shard's replicas hash what they hold at one and the same log entry, and the
hashes are compared. Ends with 1 if a node is down or replicas differ.")]
pub struct StatusArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Compare the replicas of each shard
    #[arg(long)]
    pub replicas: bool,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// What to do with a record that makes no sense, or that the server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnError {
    /// Say which line, and end
    Stop,
    /// Say which line, and go on
    Skip,
}

/// What `load` and `verify` share.
#[derive(Debug, Clone, Args)]
pub struct InputArgs {
    /// The format; else told by the name or the content
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// The field of JSON lines that holds the key
    #[arg(long, value_name = "FIELD")]
    pub key: Option<String>,
    /// What to do with a malformed record
    #[arg(long, default_value = "stop", value_enum)]
    pub on_error: OnError,
    /// Operations in flight at once
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub concurrency: u32,
    /// How long one record is tried while the cluster cannot serve it, in milliseconds
    #[arg(long, default_value_t = 60_000, value_name = "MS")]
    pub retry_ms: u64,
    /// No progress bar
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `load`.
#[derive(Debug, Args)]
#[command(after_help = "\
Formats, told by name or content: Debian package index (key: name/architecture/version, value: the
stanza), JSON lines (value: the line), TSV (key TAB value). Plain, gzip, xz or LZ4 frames.

Of a key that is repeated the last record wins; repeated keys are counted. A write whose outcome is
not known is written again: storing the same value twice changes nothing.

With --checkpoint the number of records that are surely stored, without a gap, is kept in a file;
--resume goes on behind them. Memory: what is in flight, and 16 bytes for each distinct key.

Examples:
  quorate load /var/lib/dpkg/status
  quorate load Packages.xz --checkpoint packages.at
  quorate load Packages.xz --checkpoint packages.at --resume
  zcat users.jsonl.gz | quorate load - --format jsonl --key id --on-error skip")]
pub struct LoadArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The file; `-`: standard input
    pub file: PathBuf,
    #[command(flatten)]
    pub input: InputArgs,
    /// Keep how far the load came in this file
    #[arg(long, value_name = "PATH")]
    pub checkpoint: Option<PathBuf>,
    /// Go on where the checkpoint says
    #[arg(long, requires = "checkpoint", conflicts_with = "skip")]
    pub resume: bool,
    /// Pass over the first N records
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub skip: u64,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads every key of the file, linearizable, and compares: of a repeated key the last record is
expected. The file is read twice. Ends with 1 if anything is missing or different.

Examples:
  quorate verify /var/lib/dpkg/status
  quorate verify Packages.xz --first 20000     what an interrupted load had stored")]
pub struct VerifyArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The file
    pub file: PathBuf,
    #[command(flatten)]
    pub input: InputArgs,
    /// Only the first N records; a key that is repeated behind them may differ and is left out
    #[arg(long, value_name = "N")]
    pub first: Option<u64>,
}

/// Arguments of `completion`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate completion bash > ~/.local/share/bash-completion/completions/quorate
  quorate completion zsh > ~/.zfunc/_quorate")]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// What a benchmark's clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchOperation {
    /// Write random keys
    Put,
    /// Read random keys, linearizable
    Get,
    /// Read random keys from any replica
    StaleGet,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Keys are k000000000000000 and so on: use a namespace of its own.

Examples:
  quorate namespace create bench
  quorate bench put --namespace bench --clients 100 --seconds 10
  quorate bench get --namespace bench --clients 100 --output json")]
pub struct BenchArgs {
    /// What each client does, again and again
    #[arg(value_enum)]
    pub operation: BenchOperation,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Clients, each with one operation in flight
    #[arg(long, default_value_t = 100, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    pub clients: usize,
    /// For how long, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// How many distinct keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// The size of a value
    #[arg(long, default_value_t = 100)]
    pub value_bytes: usize,
    /// Each operation is a call of its own, for comparison
    #[arg(long)]
    pub unbatched: bool,
}

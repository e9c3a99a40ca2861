//! The arguments of `node` and `shard`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{ConnectArgs, Output};

/// `quorate node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes and what they hold
    List(ListNodesArgs),
    /// Move all replicas of a node to others, one after the other, while the cluster serves
    Drain(DrainArgs),
    /// Drain a node, then remove it from the cluster for good. It may be dead; a majority of each shard must live
    Remove(RemoveNodeArgs),
}

/// `quorate node list`.
#[derive(Debug, Args)]
pub struct ListNodesArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// How long a change of a shard's replicas is waited for.
#[derive(Debug, Clone, Copy, Args)]
pub struct WaitArgs {
    /// The most seconds to wait for one shard; the change goes on all the same
    #[arg(long, default_value_t = 600, value_name = "S")]
    wait_s: u64,
}

impl WaitArgs {
    /// The time.
    pub fn wait(self) -> Duration {
        Duration::from_secs(self.wait_s)
    }
}

/// `quorate node drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The node's id, as `quorate node list` shows it
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub node: u64,
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `quorate node remove`.
#[derive(Debug, Args)]
pub struct RemoveNodeArgs {
    #[command(flatten)]
    pub drain: DrainArgs,
}

/// `quorate shard`.
#[derive(Debug, Args)]
pub struct ShardArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ShardCommand,
}

/// What can be done with a shard.
#[derive(Debug, Subcommand)]
pub enum ShardCommand {
    /// Move a replica to another node; with one of --from and --to only, take one away or add one
    Move(MoveArgs),
    /// Have a replica that is damaged made anew on its node, from the others
    Rebuild(RebuildArgs),
}

/// `quorate shard move`.
#[derive(Debug, Args)]
#[group(id = "ends", required = true, multiple = true, args = ["from", "to"])]
pub struct MoveArgs {
    /// The shard's id, as `quorate namespace show` and `quorate status` show it
    pub shard: u64,
    /// The node whose replica goes
    #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    pub from: Option<u64>,
    /// The node that gets a new one
    #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Option<u64>,
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `quorate shard rebuild`.
#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// The shard's id
    pub shard: u64,
    /// The node whose replica is made anew
    #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    pub node: u64,
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub wait: WaitArgs,
}

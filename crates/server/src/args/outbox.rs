//! Arguments of `outbox`.

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use quorate_outbox::store::Which;
use uuid::Uuid;

use super::Output;

/// Arguments of `outbox`.
#[derive(Debug, Args)]
#[command(after_help = "\
The tables of outbox and inbox are those of the crate `quorate-outbox`. What is asked for here is noted in
the database; the service's own relay or consumer carries it out, within a second.

Examples:
  export QUORATE_DATABASE=postgres://shop@db.example/shop      or mysql://…, or sqlite:/var/lib/shop/shop.db
  quorate outbox lag
  quorate outbox list
  quorate outbox retry --topic orders --key customer-7
  quorate outbox dlq list
  quorate outbox dlq replay --consumer billing 0193e1a2-7c1b-7a60-b3c1-5f7d6e0c9a11")]
pub struct OutboxArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: OutboxCommand,
}

/// What can be done with an outbox and its consumers.
#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// Show what waits, how old the oldest is, and what is set aside
    Lag(LagArgs),
    /// List the messages that relays have set aside
    List(ListArgs),
    /// Show one message that a relay has set aside, with headers and payload
    Show(ShowArgs),
    /// Have messages sent again, in order
    Retry(ChoiceArgs),
    /// Leave messages out: skip records are sent in their places
    Skip(ChoiceArgs),
    /// Forget messages, and send nothing in their places
    #[command(after_help = "\
For messages whose topic will never be there. Consumers that get later messages of the key after all wait
at the gap.")]
    Drop(ChoiceArgs),
    /// What consumers have set aside: dead letters, and what waits behind them
    Dlq(DlqArgs),
}

/// Where the tables are.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// The service's database: postgres://USER@HOST/NAME, mysql://USER@HOST/NAME or sqlite:FILE
    #[arg(
        long,
        env = "QUORATE_DATABASE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub database: String,
    /// How to print
    #[arg(short, long, default_value = "text", value_enum)]
    pub output: Output,
}

/// Arguments of `outbox lag`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 1 if anything is set aside, or past one of the two bounds: so a check can be made of it.")]
pub struct LagArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// So many messages that wait are too many
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub waiting_max: i64,
    /// A message that waits this long, in seconds, waits too long
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub oldest_max: u64,
}

/// Which messages are listed.
#[derive(Debug, Clone, Args)]
pub struct FilterArgs {
    /// Only of this topic and key
    #[arg(long, requires = "key")]
    pub topic: Option<String>,
    /// Only of this topic and key
    #[arg(long, requires = "topic")]
    pub key: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: usize,
}

impl FilterArgs {
    /// What is meant; `None`: all.
    pub fn which(&self) -> Option<Which> {
        stream(&self.topic, &self.key)
    }
}

/// Arguments of `outbox list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// Arguments of `outbox show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The message's id, as `list` prints it
    pub id: Uuid,
}

/// One message, or all of a topic and key.
#[derive(Debug, Clone, Args)]
pub struct SelectArgs {
    /// One message: its id, as `list` prints it
    #[arg(conflicts_with = "topic")]
    pub id: Option<Uuid>,
    /// All messages of this topic and key
    #[arg(long, requires = "key")]
    pub topic: Option<String>,
    /// All messages of this topic and key
    #[arg(long, requires = "topic")]
    pub key: Option<String>,
}

impl SelectArgs {
    /// What is meant.
    ///
    /// # Errors
    /// When nothing is named.
    pub fn which(&self) -> Result<Which> {
        let one = self.id.map(Which::Message);
        one.or_else(|| stream(&self.topic, &self.key))
            .context("name one message by its id, or all of a key by --topic and --key")
    }
}

fn stream(topic: &Option<String>, key: &Option<String>) -> Option<Which> {
    Some(Which::Stream {
        topic: topic.clone()?,
        key: key.clone()?,
    })
}

/// Arguments of `outbox retry`, `skip` and `drop`.
#[derive(Debug, Args)]
#[command(after_help = "Ends with 1 if nothing like that is set aside.")]
pub struct ChoiceArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub select: SelectArgs,
}

/// Arguments of `outbox dlq`.
#[derive(Debug, Args)]
pub struct DlqArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DlqCommand,
}

/// What can be done with the messages that consumers have set aside.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List them, of one consumer or of all
    List(DlqListArgs),
    /// Show one, with headers and payload
    Show(DlqShowArgs),
    /// Have them handled again, in order
    #[command(after_help = "\
A message that waits at a gap may be named by its id: then what is missing before it is given up.
Ends with 1 if nothing like that is set aside.")]
    Replay(DlqChoiceArgs),
    /// Go on without them
    #[command(after_help = "Ends with 1 if nothing like that is set aside.")]
    Skip(DlqChoiceArgs),
}

/// Arguments of `outbox dlq list`.
#[derive(Debug, Args)]
pub struct DlqListArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Only of this consumer
    #[arg(long, value_name = "NAME")]
    pub consumer: Option<String>,
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// Arguments of `outbox dlq show`.
#[derive(Debug, Args)]
pub struct DlqShowArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The consumer
    #[arg(long, value_name = "NAME")]
    pub consumer: String,
    /// The message's id, as `dlq list` prints it
    pub id: Uuid,
}

/// Arguments of `outbox dlq replay` and `skip`.
#[derive(Debug, Args)]
pub struct DlqChoiceArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The consumer
    #[arg(long, value_name = "NAME")]
    pub consumer: String,
    #[command(flatten)]
    pub select: SelectArgs,
}

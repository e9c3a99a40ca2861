//! Arguments of `saga`.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use quorate_saga::journal::saga_id;
use quorate_saga::{Order, Outcome, Status};
use serde_json::Value;
use uuid::Uuid;

use super::DatabaseArgs;

/// Arguments of `saga`.
#[derive(Debug, Args)]
#[command(after_help = "\
The tables are those of the crate `quorate-saga`. An order is noted in the saga's log, with who gave it and
why; a coordinator of the service that knows the definition carries it out within a second, or declines it.
What became of it is in the history that `show` prints.

Examples:
  export QUORATE_DATABASE=postgres://shop@db.example/shop      or sqlite:/var/lib/shop/shop.db
  quorate saga stuck
  quorate saga show --name order --key order-17
  quorate saga retry 0193e1a2-7c1b-7a60-b3c1-5f7d6e0c9a11 --reason 'the bank is back'
  quorate saga force --name order --key order-17 --step pay --outcome done --reason 'seen in the books'")]
pub struct SagaArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: SagaCommand,
}

/// What can be done with sagas.
#[derive(Debug, Subcommand)]
pub enum SagaCommand {
    /// Count the sagas, by definition and standing
    Count(DatabaseArgs),
    /// List sagas, the oldest first
    List(ListSagasArgs),
    /// List the steps that can't go on by themselves
    #[command(after_help = "Ends with 1 if any is stuck: so a check can be made of it.")]
    Stuck(ListStuckArgs),
    /// Show one saga, with its steps and its history
    Show(ShowSagaArgs),
    /// Have stuck steps tried again
    Retry(RetryArgs),
    /// Go on without a stuck step: its action counts as done, or its compensation as made
    Skip(StepArgs),
    /// Say what became of a step whose outcome is known to you
    Force(ForceArgs),
    /// Undo what was done; not after the pivot was sent
    Abort(AbortArgs),
}

/// Arguments of `saga list`.
#[derive(Debug, Args)]
pub struct ListSagasArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Only those that stand so: running, compensating, stuck, completed or compensated
    #[arg(long, value_parser = status)]
    pub status: Option<Status>,
    /// Only those of this definition
    #[arg(long)]
    pub name: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: usize,
}

fn status(text: &str) -> Result<Status, String> {
    let all = Status::ALL.map(|status| status.to_string());
    let found = Status::ALL
        .into_iter()
        .find(|status| status.to_string() == text);
    found.ok_or_else(|| format!("it is one of {}", all.join(", ")))
}

/// Arguments of `saga stuck`.
#[derive(Debug, Args)]
pub struct ListStuckArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// At most so many sagas
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: usize,
}

/// One saga.
#[derive(Debug, Clone, Args)]
pub struct OneSagaArgs {
    /// The saga's id, as `list` prints it
    #[arg(conflicts_with = "name")]
    pub id: Option<Uuid>,
    /// Its definition's name, with --key
    #[arg(long, requires = "key")]
    pub name: Option<String>,
    /// The key that it was begun with, with --name
    #[arg(long, requires = "name")]
    pub key: Option<String>,
}

impl OneSagaArgs {
    /// Its id.
    ///
    /// # Errors
    /// When nothing is named.
    pub fn id(&self) -> Result<Uuid> {
        let keyed = || Some(saga_id(self.name.as_deref()?, self.key.as_deref()?));
        self.id
            .or_else(keyed)
            .context("name one saga by its id, or by --name and --key")
    }
}

/// Arguments of `saga show`.
#[derive(Debug, Args)]
pub struct ShowSagaArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub saga: OneSagaArgs,
}

/// Who gives an order, and why.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub saga: OneSagaArgs,
    /// Why: it stays in the saga's history
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Who gives the order: it stays in the saga's history [default: your login name]
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

impl AuditArgs {
    /// Who gives the order.
    pub fn who(&self) -> String {
        let login = || {
            let mut names = ["LOGNAME", "USER"].into_iter();
            names.find_map(|name| {
                std::env::var(name)
                    .ok()
                    .filter(|name| !name.trim().is_empty())
            })
        };
        let number = || format!("user {}", rustix::process::getuid().as_raw());
        self.by.clone().or_else(login).unwrap_or_else(number)
    }
}

/// Arguments of `saga retry`.
#[derive(Debug, Args)]
pub struct RetryArgs {
    #[command(flatten)]
    pub audit: AuditArgs,
    /// The stuck step; without it all that are stuck
    #[arg(long)]
    pub step: Option<String>,
}

/// Arguments of `saga skip`.
#[derive(Debug, Args)]
pub struct StepArgs {
    #[command(flatten)]
    pub audit: AuditArgs,
    /// The stuck step
    #[arg(long)]
    pub step: String,
}

/// Arguments of `saga abort`.
#[derive(Debug, Args)]
pub struct AbortArgs {
    #[command(flatten)]
    pub audit: AuditArgs,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verdict {
    /// It is done
    Done,
    /// It is not done, and will not be
    Refused,
}

/// Arguments of `saga force`.
#[derive(Debug, Args)]
pub struct ForceArgs {
    #[command(flatten)]
    pub audit: AuditArgs,
    /// The step
    #[arg(long)]
    pub step: String,
    /// What became of it
    #[arg(long, value_enum)]
    pub outcome: Verdict,
    /// What the step answered, for later steps, with `--outcome done` [default: null]
    #[arg(long, value_name = "JSON", value_parser = json)]
    pub value: Option<Value>,
    /// Why it was refused, with `--outcome refused` [default: the reason]
    #[arg(long, value_name = "TEXT", conflicts_with = "value")]
    pub why: Option<String>,
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))
}

impl ForceArgs {
    /// The order.
    ///
    /// # Errors
    /// When the answer does not fit the outcome.
    pub fn order(&self) -> Result<Order> {
        let outcome = match (self.outcome, &self.value, &self.why) {
            (Verdict::Done, _, Some(_)) => bail!("--why goes with `--outcome refused`"),
            (Verdict::Refused, Some(_), _) => bail!("--value goes with `--outcome done`"),
            (Verdict::Done, value, None) => Outcome::Done(value.clone().unwrap_or_default()),
            (Verdict::Refused, None, why) => {
                Outcome::Refused(why.clone().unwrap_or_else(|| self.audit.reason.clone()))
            }
        };
        Ok(Order::Force {
            step: self.step.clone(),
            outcome,
        })
    }
}

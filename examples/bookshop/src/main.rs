//! A bookshop of three services, each with a database of its own, and a notifier: orders go by a saga, payment by TCC,
//! mails by outbox and inbox. docs/bookshop.md walks through it.
//!
//! ```text
//! accounts.rs  stock.rs  orders.rs  notify.rs    the services, each a file
//! shop.rs      what joins them: broker, relays, consumers
//! database.rs  a service's database: SQLite or PostgreSQL
//! books.rs     what is in the books in the end, and whether they balance
//! run.rs       all in one process, or each in its own;  crash.rs  the process killed again and again
//! ```

mod accounts;
mod books;
mod catalogue;
mod crash;
mod database;
mod notify;
mod orders;
mod run;
mod shop;
mod stock;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

/// How to get what is not built in.
#[cfg(not(all(feature = "postgres", feature = "kafka")))]
const WITH_FEATURES: &str = "cargo run --release -p bookshop --features postgres,kafka -- ...";

/// Takes orders, and looks whether the books balance. Ends with 1 if they do not.
#[derive(Debug, Parser)]
#[command(name = "bookshop", version)]
struct Args {
    /// A service alone, in a process of its own (needs --kafka); without: the whole shop.
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    settings: Settings,
    /// Runs the shop as a process that is killed so many times at random moments, and started again.
    #[arg(long, value_name = "TIMES")]
    crash: Option<u32>,
    /// Draws the moments of --crash; printed if it is not given.
    #[arg(long)]
    seed: Option<u64>,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
enum Role {
    /// Customers' money.
    Accounts,
    /// Books.
    Stock,
    /// Takes orders and leads them to their end.
    Orders,
    /// Writes mails.
    Notify,
    /// Waits for the end of all orders, and looks at the books.
    Check,
}

/// Where the shop is, and how large.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// So many orders; more than before takes the rest.
    #[arg(long, global = true, default_value_t = 300)]
    orders: usize,
    /// The folder of the SQLite files, and of the broker's.
    #[arg(long, global = true, default_value = "target/bookshop")]
    folder: PathBuf,
    /// Schemas of this PostgreSQL in the place of SQLite files: postgres://USER@HOST/DATABASE.
    #[arg(long, global = true, value_name = "URL", hide_env_values = true)]
    postgres: Option<String>,
    /// Kafka between the services in the place of the broker in the process: HOST:PORT,HOST:PORT.
    #[arg(long, global = true, value_name = "SERVERS")]
    kafka: Option<String>,
    /// Begins the names of topics and schemas: several shops may share servers.
    #[arg(long, global = true, default_value = "bookshop", value_parser = name)]
    name: String,
    /// How long the last order may take to its end, in seconds.
    #[arg(long, global = true, default_value_t = 120, value_name = "SECONDS")]
    within: u64,
}

fn name(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
    match begins && text.len() <= 40 && text.chars().all(legal) {
        true => Ok(text.to_owned()),
        false => Err("1 to 40 of a-z 0-9 _, and a letter first".into()),
    }
}

impl Settings {
    /// The folder, made if it is not there.
    fn folder(&self) -> Result<&PathBuf> {
        let folder = &self.folder;
        std::fs::create_dir_all(folder)
            .with_context(|| format!("the folder {} can't be made (--folder)", folder.display()))?;
        Ok(folder)
    }

    fn topic(&self, what: &str) -> String {
        format!("{}.{what}", self.name)
    }

    #[cfg(feature = "postgres")]
    fn schema(&self, service: &str) -> String {
        format!("{}_{service}", self.name)
    }

    fn within(&self) -> Duration {
        Duration::from_secs(self.within)
    }

    /// As words of a command line.
    fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("--orders={}", self.orders),
            format!("--folder={}", self.folder.display()),
            format!("--name={}", self.name),
            format!("--within={}", self.within),
        ];
        words.extend(self.postgres.iter().map(|url| format!("--postgres={url}")));
        words.extend(self.kafka.iter().map(|at| format!("--kafka={at}")));
        words
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "error".into()))
        .with_writer(std::io::stderr)
        .init();
    match choose(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bookshop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Which kind of database.
async fn choose(args: Args) -> Result<()> {
    if args.settings.postgres.is_none() {
        return start::<database::Sqlite>(args).await;
    }
    #[cfg(feature = "postgres")]
    return start::<database::Postgres>(args).await;
    #[cfg(not(feature = "postgres"))]
    bail!("this bookshop was built without PostgreSQL: {WITH_FEATURES}");
}

async fn start<D: database::Database>(args: Args) -> Result<()> {
    let settings = &args.settings;
    match (args.role, args.crash) {
        (None, None) => run::everything::<D>(settings).await,
        (None, Some(times)) => crash::again_and_again::<D>(settings, times, args.seed).await,
        (Some(_), Some(_)) => bail!("--crash kills the whole shop: without a service"),
        (Some(Role::Check), None) => run::check::<D>(settings).await,
        (Some(role), None) => run::service::<D>(settings, role).await,
    }
}

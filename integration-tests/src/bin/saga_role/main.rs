//! The process of the saga crash tests: `saga-role SETTING=VALUE...`
//!
//! A shop whose sagas move money from a customer through an escrow to the shop. Without `role` everything is in one
//! process: coordinator, participants, relay, and a durable broker in a file. `role=coordinator` and `role=participant`
//! are processes apart (see `apart`). `QUORATE_CRASH_AT=point:n` kills it by SIGKILL when it passes that point for the
//! nth time. It ends by itself when all its sagas have; a participant never.

mod apart;
mod services;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_outbox::broker::Broker;
use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::inbox::{Ledger, PgInbox, SqliteInbox};
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::store::Store;
use quorate_outbox::{Consumer, ConsumerOptions, Relay, RelayOptions};
use quorate_saga::journal::{Filter, Journal, PgJournal, SqliteJournal};
use quorate_saga::participant::{
    self, ExternalParticipant, Fences, PgFences, Service, SqliteFences,
};
use quorate_saga::{
    Begin, Coordinator, CoordinatorOptions, Definition, Participant, Registry, Retry, Saga, Step,
};
use serde_json::json;
use services::{Bank, Post};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

/// What the command line says.
struct Settings(HashMap<String, String>);

impl Settings {
    fn get(&self, name: &str) -> Result<&str> {
        let value = self.0.get(name).map(String::as_str);
        value.with_context(|| format!("the setting {name} is missing"))
    }

    fn number(&self, name: &str) -> Result<usize> {
        let number = self.get(name)?.parse();
        number.with_context(|| format!("{name} is no number"))
    }
}

/// Money goes to the escrow, then to the shop; the goods are sent by post, which is not in the database. Topics begin
/// with `prefix`; `deadline` is how long an answer is waited for.
fn order(prefix: &str, deadline: Duration) -> Result<Definition> {
    let retry = Retry {
        attempts: 50,
        first: Duration::from_millis(50),
        max: Duration::from_millis(500),
    };
    let step = |name, topic| {
        let step = Step::new(name, format!("{prefix}{topic}")).deadline(deadline);
        step.retry(retry).undo_retry(retry)
    };
    let saga =
        Saga::named("order").parallel([vec![step("reserve", "bank")], vec![step("label", "post")]]);
    Ok(saga
        .pivot(step("pay", "bank"))
        .then(step("ship", "post"))
        .build()?)
}

/// Consumers of a kind of database, while they live.
struct Running<L: Ledger> {
    _bank: Consumer<L>,
    _post: Consumer<L>,
}

fn options(settings: &Settings, name: &str, prefix: &str) -> Result<ConsumerOptions> {
    Ok(ConsumerOptions {
        batch: settings.number("batch")?,
        retry_min: Duration::from_millis(10),
        retry_max: Duration::from_millis(200),
        ..participant::options(name, &[&format!("{prefix}{name}")])
    })
}

async fn consume<L, F>(
    settings: &Settings,
    ledger: L,
    fences: F,
    broker: &Arc<dyn Broker>,
) -> Result<Running<L>>
where
    L: Ledger,
    F: Fences<Connection = L::Connection>,
    Bank: Service<L::Connection>,
{
    let bank = Participant::new(fences.clone(), Bank);
    let bank = match settings.number("batch")? {
        1 => bank,
        _ => bank.in_batches(),
    };
    let post = ExternalParticipant::new(fences, Post);
    let at_bank = options(settings, "bank", "")?;
    let at_post = options(settings, "post", "")?;
    Ok(Running {
        _bank: Consumer::start(ledger.clone(), Arc::clone(broker), Arc::new(bank), at_bank).await?,
        _post: Consumer::start(ledger, Arc::clone(broker), Arc::new(post), at_post).await?,
    })
}

/// A relay and a coordinator.
struct Shop {
    relay: Relay,
    coordinator: Coordinator,
    journal: Arc<dyn Journal>,
    store: Arc<dyn Store>,
}

impl Shop {
    async fn start(
        definition: Definition,
        options: CoordinatorOptions,
        (journal, store): (Arc<dyn Journal>, Arc<dyn Store>),
        broker: Arc<dyn Broker>,
    ) -> Result<Shop> {
        let relay = RelayOptions {
            lease: Duration::from_secs(1),
            // Each round passes the points of saving.
            save_every: Duration::ZERO,
            ..RelayOptions::default()
        };
        let relay = Relay::start(Arc::clone(&store), Arc::clone(&broker), relay)?;
        let options = CoordinatorOptions {
            lease: Duration::from_secs(1),
            tick: Duration::from_millis(100),
            ..options
        };
        let registry = Registry::new().with(definition)?;
        let coordinator =
            Coordinator::start(Arc::clone(&journal), broker, registry, options).await?;
        Ok(Shop {
            relay,
            coordinator,
            journal,
            store,
        })
    }

    /// Begins all sagas; those that are there already are the same.
    async fn begin(&self, settings: &Settings) -> Result<()> {
        let seed = settings.number("seed")?;
        let mut begins = tokio::task::JoinSet::new();
        for number in 0..settings.number("sagas")? {
            let sagas = self.coordinator.sagas();
            let input = json!({"amount": 10, "refuse": number % 5 == seed % 5});
            let begin = Begin::new("order", format!("order-{number}"), input);
            begins.spawn(async move { sagas.begin(&begin).await });
        }
        while let Some(begun) = begins.join_next().await {
            begun??;
        }
        Ok(())
    }

    /// Waits until every command that there is lies at the broker.
    async fn published(&self) -> Result<()> {
        while self.store.lag().await?.waiting > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until all sagas have ended, and ends.
    async fn end(self, settings: &Settings) -> Result<()> {
        let count = settings.number("sagas")?;
        loop {
            let all = self.journal.list(&Filter::default(), count + 1).await?;
            if all.len() == count && all.iter().all(|saga| saga.status.is_end()) {
                break;
            }
            println!("{:?} {:?}", self.coordinator.status(), self.relay.status());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if !self.coordinator.drain().await {
            bail!("the coordinator does not come to its end");
        }
        Ok(())
    }
}

/// Everything in one process. One command a transaction, it comes as it comes; but for batches all commands wait before
/// the consumers begin, so that there are batches however slow the machine is, and none is sent again meanwhile.
async fn run<L, F>(
    settings: &Settings,
    journal: (Arc<dyn Journal>, Arc<dyn Store>),
    (ledger, fences): (L, F),
    broker: Arc<dyn Broker>,
) -> Result<()>
where
    L: Ledger,
    F: Fences<Connection = L::Connection>,
    Bank: Service<L::Connection>,
{
    let options = CoordinatorOptions::default();
    let _running;
    let shop;
    if settings.number("batch")? == 1 {
        _running = consume(settings, ledger, fences, &broker).await?;
        let definition = order("", Duration::from_secs(2))?;
        shop = Shop::start(definition, options, journal, broker).await?;
        shop.begin(settings).await?;
    } else {
        let definition = order("", Duration::from_secs(60))?;
        shop = Shop::start(definition, options, journal, Arc::clone(&broker)).await?;
        shop.begin(settings).await?;
        shop.published().await?;
        _running = consume(settings, ledger, fences, &broker).await?;
    }
    shop.end(settings).await
}

async fn pool(settings: &Settings) -> Result<PgPool> {
    let options: PgConnectOptions = settings.get("postgres")?.parse()?;
    let options = options.options([("search_path", settings.get("schema")?)]);
    let pool = PgPoolOptions::new().max_connections(10);
    Ok(pool.connect_with(options).await?)
}

async fn on_postgres(settings: &Settings, broker: Arc<dyn Broker>) -> Result<()> {
    let pool = pool(settings).await?;
    sqlx::raw_sql(services::TABLES).execute(&pool).await?;
    let outbox = PgOutbox::migrate(pool.clone(), 1).await?;
    let journal = Arc::new(PgJournal::migrate(outbox.clone()).await?);
    let fences = PgFences::migrate(outbox.clone()).await?;
    let inbox = PgInbox::migrate(pool).await?;
    let store = Arc::new(outbox);
    run(settings, (journal, store), (inbox, fences), broker).await
}

async fn on_sqlite(settings: &Settings, broker: Arc<dyn Broker>) -> Result<()> {
    let file = Path::new(settings.get("folder")?).join("data.db");
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(20));
    let pool = SqlitePoolOptions::new().max_connections(8);
    let pool = pool.connect_with(options).await?;
    sqlx::raw_sql(services::TABLES).execute(&pool).await?;
    let outbox = SqliteOutbox::migrate(pool.clone(), 1).await?;
    let journal = Arc::new(SqliteJournal::migrate(outbox.clone()).await?);
    let fences = SqliteFences::migrate(outbox.clone()).await?;
    let inbox = SqliteInbox::migrate(pool).await?;
    let store = Arc::new(outbox);
    run(settings, (journal, store), (inbox, fences), broker).await
}

#[tokio::main]
async fn main() -> Result<()> {
    let pair = |word: String| {
        let (name, value) = word.split_once('=').context("SETTING=VALUE")?;
        Ok((name.to_owned(), value.to_owned()))
    };
    let settings = std::env::args().skip(1).map(pair).collect::<Result<_>>()?;
    let settings = Settings(settings);
    match settings.get("role") {
        Ok("coordinator") => return apart::coordinate(&settings).await,
        Ok("participant") => return apart::participate(&settings).await,
        _ => {}
    }
    let file = Path::new(settings.get("folder")?).join("broker.db");
    let broker = LocalBroker::durable(file, LocalOptions::default()).await?;
    let broker: Arc<dyn Broker> = Arc::new(broker);
    if settings.get("postgres").is_ok() {
        on_postgres(&settings, broker).await
    } else {
        on_sqlite(&settings, broker).await
    }
}

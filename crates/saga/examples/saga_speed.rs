//! How fast sagas are, every step durable: `cargo xtask bench saga`.
//!
//! Everything runs on this machine at once: database, coordinator, participants, in-process broker and load.
//! `QUORATE_POSTGRES` names the server. The only argument is the JSON file for the results.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::inbox::{Failure, Ledger, PgInbox, SqliteInbox};
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::store::Store;
use quorate_outbox::{Consumer, Relay, RelayOptions};
use quorate_saga::journal::{Journal, PgJournal, SqliteJournal};
use quorate_saga::message::Command;
use quorate_saga::participant::{
    Answer, Answers, Fences, PgFences, Service, SqliteFences, options,
};
use quorate_saga::{
    Begin, Coordinator, CoordinatorOptions, Outcome, Participant, Registry, Saga, Step, Tcc,
};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, PgConnection, SqliteConnection};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const EFFECTS: &str = "CREATE TABLE effects (saga TEXT NOT NULL, branch TEXT NOT NULL)";
const COUNT: &str = "SELECT count(*) FROM effects";
/// So many sagas may be under way.
const UNDER_WAY: u64 = 3000;

/// A service whose effect is one row.
struct Rows;

fn done(count: usize) -> Vec<Outcome> {
    vec![Outcome::Done(Value::Null); count]
}

async fn in_postgres(
    tx: &mut PgConnection,
    all: &[Command],
) -> std::result::Result<Vec<Outcome>, Failure> {
    let text = "INSERT INTO effects (saga, branch) SELECT * FROM unnest($1::text[], $2::text[])";
    let (sagas, branches): (Vec<&str>, Vec<&str>) = all
        .iter()
        .map(|c| (c.key.as_str(), c.branch.as_str()))
        .unzip();
    sqlx::query(text)
        .bind(sagas)
        .bind(branches)
        .execute(tx)
        .await?;
    Ok(done(all.len()))
}

async fn in_sqlite(
    tx: &mut SqliteConnection,
    all: &[Command],
) -> std::result::Result<Vec<Outcome>, Failure> {
    for command in all {
        let insert = sqlx::query("INSERT INTO effects (saga, branch) VALUES ($1, $2)");
        insert
            .bind(&command.key)
            .bind(&command.branch)
            .execute(&mut *tx)
            .await?;
    }
    Ok(done(all.len()))
}

macro_rules! rows {
    ($connection:ty, $insert:ident) => {
        impl Service<$connection> for Rows {
            fn act<'a>(&'a self, tx: &'a mut $connection, command: &'a Command) -> Answer<'a> {
                Box::pin(async move {
                    $insert(tx, std::slice::from_ref(command)).await?;
                    Ok(Outcome::Done(Value::Null))
                })
            }

            fn undo<'a>(&'a self, _: &'a mut $connection, _: &'a Command) -> Answer<'a> {
                Box::pin(async { Ok(Outcome::Done(Value::Null)) })
            }

            fn act_all<'a>(
                &'a self,
                tx: &'a mut $connection,
                all: &'a [Command],
            ) -> Option<Answers<'a>> {
                Some(Box::pin($insert(tx, all)))
            }

            fn confirm_all<'a>(
                &'a self,
                tx: &'a mut $connection,
                all: &'a [Command],
            ) -> Option<Answers<'a>> {
                Some(Box::pin($insert(tx, all)))
            }
        }
    };
}

rows!(PgConnection, in_postgres);
rows!(SqliteConnection, in_sqlite);

fn registry() -> Result<Registry> {
    let saga = Saga::named("three").step(Step::new("one", "services"));
    let saga = saga
        .pivot(Step::new("two", "services"))
        .then(Step::new("three", "services"));
    let tcc = Tcc::named("tcc")
        .branch("one", "services")
        .branch("two", "services");
    Ok(Registry::new().with(saga.build()?)?.with(tcc.build()?)?)
}

/// Sagas a second of a definition, over so long.
async fn rate(coordinator: &Coordinator, name: &'static str, seconds: u64) -> Result<Value> {
    let begun = Instant::now();
    let warm = Duration::from_secs(seconds.min(2));
    let end = begun + warm + Duration::from_secs(seconds);
    let before = coordinator.status();
    let load = async {
        let mut begins = tokio::task::JoinSet::new();
        let mut number = 0u64;
        while Instant::now() < end {
            let open = number - (coordinator.status().completed - before.completed);
            for _ in open..UNDER_WAY {
                number += 1;
                let begin = Begin::new(name, format!("{number}"), json!({"amount": 12}));
                let sagas = coordinator.sagas();
                begins.spawn(async move { sagas.begin(&begin).await });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            while let Some(begun) = begins.try_join_next() {
                begun??;
            }
        }
        while let Some(begun) = begins.join_next().await {
            begun??;
        }
        Result::Ok(())
    };
    let watch = async {
        tokio::time::sleep_until((begun + warm).into()).await;
        let (at, from) = (Instant::now(), coordinator.status());
        tokio::time::sleep_until(end.into()).await;
        (coordinator.status(), from, at.elapsed().as_secs_f64())
    };
    let (loaded, (until, from, took)) = tokio::join!(load, watch);
    loaded?;
    let drained = Instant::now();
    while coordinator.status().completed - before.completed
        < coordinator.status().begun - before.begun
    {
        if drained.elapsed() > Duration::from_secs(120) {
            return Err(format!("sagas are left: {:?}", coordinator.status()).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all = coordinator.status();
    let whole = begun.elapsed().as_secs_f64();
    let (completed, appends) = (
        until.completed - from.completed,
        until.appends - from.appends,
    );
    Ok(json!({
        "completed_per_s_while_begun": completed as f64 / took,
        "begun": all.begun - before.begun,
        "whole_seconds": whole,
        "sagas_per_s": (all.completed - before.completed) as f64 / whole,
        "appends_per_s": appends as f64 / took,
    }))
}

async fn measure<L, F>(
    journal: Arc<dyn Journal>,
    store: Arc<dyn Store>,
    ledger: L,
    fences: F,
    seconds: u64,
) -> Result<Value>
where
    L: Ledger,
    F: Fences<Connection = L::Connection>,
    Rows: Service<L::Connection>,
{
    let local = LocalOptions {
        partitions: 2,
        capacity: 1_000_000,
        ..LocalOptions::default()
    };
    let broker = Arc::new(LocalBroker::in_memory(local));
    let handler = Participant::new(fences, Rows).in_batches();
    let settings = options("services", &["services"]);
    let consumer = Consumer::start(ledger, broker.clone(), Arc::new(handler), settings).await?;
    let relay = Relay::start(store, broker.clone(), RelayOptions::default())?;
    let settings = CoordinatorOptions::default();
    let coordinator = Coordinator::start(journal, broker, registry()?, settings).await?;
    let three = rate(&coordinator, "three", seconds).await?;
    let tcc = rate(&coordinator, "tcc", seconds).await?;
    coordinator.drain().await;
    consumer.drain().await;
    relay.drain().await;
    Ok(json!({ "three_steps": three, "tcc_two_branches": tcc }))
}

/// Every saga has all its effects, once: three rows of a saga, four of a TCC.
fn checked(measured: Value, effects: i64) -> Result<Value> {
    let begun = |what: &str| measured[what]["begun"].as_i64().unwrap_or(0);
    let expected = 3 * begun("three_steps") + 4 * begun("tcc_two_branches");
    if effects != expected {
        return Err(format!("there are {effects} effects, and should be {expected}").into());
    }
    Ok(measured)
}

async fn postgres(seconds: u64) -> Result<Value> {
    let url = std::env::var("QUORATE_POSTGRES")?;
    let name = format!("quorate_bench_{}", uuid::Uuid::now_v7().simple());
    let options: PgConnectOptions = url.parse()?;
    let options = options.options([("search_path", name.as_str())]);
    let pool = PgPoolOptions::new()
        .max_connections(16)
        .connect_with(options)
        .await?;
    sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {name}")))
        .execute(&pool)
        .await?;
    sqlx::raw_sql(EFFECTS).execute(&pool).await?;
    let outbox = PgOutbox::migrate(pool.clone(), 1).await?;
    let journal = Arc::new(PgJournal::migrate(outbox.clone()).await?);
    let fences = PgFences::migrate(outbox.clone()).await?;
    let inbox = PgInbox::migrate(pool.clone()).await?;
    let measured = measure(journal, Arc::new(outbox), inbox, fences, seconds).await;
    let effects = sqlx::query_scalar(COUNT).fetch_one(&pool).await?;
    sqlx::query(AssertSqlSafe(format!("DROP SCHEMA {name} CASCADE")))
        .execute(&pool)
        .await?;
    checked(measured?, effects)
}

async fn sqlite(folder: &Path, seconds: u64) -> Result<Value> {
    let options = SqliteConnectOptions::new()
        .filename(folder.join("bench.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(20));
    let pool = SqlitePoolOptions::new()
        .max_connections(8)
        .connect_with(options)
        .await?;
    sqlx::raw_sql(EFFECTS).execute(&pool).await?;
    let outbox = SqliteOutbox::migrate(pool.clone(), 1).await?;
    let journal = Arc::new(SqliteJournal::migrate(outbox.clone()).await?);
    let fences = SqliteFences::migrate(outbox.clone()).await?;
    let inbox = SqliteInbox::migrate(pool.clone()).await?;
    let measured = measure(journal, Arc::new(outbox), inbox, fences, seconds).await?;
    let effects = sqlx::query_scalar(COUNT).fetch_one(&pool).await?;
    checked(measured, effects)
}

#[tokio::main]
async fn main() -> Result<()> {
    let file = std::env::args()
        .nth(1)
        .ok_or("which file for the results?")?;
    let short = std::env::var_os("QUORATE_BENCH_SHORT").is_some();
    let seconds = if short { 1 } else { 8 };
    let folder = tempfile::tempdir()?;
    let results = json!({
        "postgres": postgres(seconds).await?,
        "sqlite": sqlite(folder.path(), seconds).await?,
    });
    std::fs::write(&file, serde_json::to_string_pretty(&results)?)?;
    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}

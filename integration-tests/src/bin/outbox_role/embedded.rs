//! Producer, relay, durable broker and consumer in one process, over SQLite files.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use quorate_outbox::broker::Broker;
use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::inbox::SqliteInbox;
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::{Consumer, Message, Relay, points};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

use crate::picky::{self, Picky};
use crate::{Random, Settings, consumer, relay};

const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY AUTOINCREMENT, k TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS effects (
        id INTEGER PRIMARY KEY AUTOINCREMENT, k TEXT, seq INTEGER, text TEXT NOT NULL)";

async fn open(path: &Path) -> Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(20));
    Ok(SqlitePoolOptions::new()
        .max_connections(6)
        .connect_with(options)
        .await?)
}

/// Writes the orders, then runs on until it is killed.
pub async fn run(settings: &Settings) -> Result<()> {
    let folder = Path::new(settings.get("folder")?);
    let topic = settings.get("topic")?;
    let pool = open(&folder.join("data.db")).await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    let outbox = Arc::new(SqliteOutbox::migrate(pool.clone(), 2).await?);
    let inbox = SqliteInbox::migrate(pool.clone()).await?;
    let broker = LocalBroker::durable(folder.join("broker.db"), LocalOptions::default()).await?;
    let broker: Arc<dyn Broker> = Arc::new(Picky::new(Arc::new(broker)));
    let relay = Relay::start(outbox.clone(), Arc::clone(&broker), relay::options())?;
    let options = consumer::options(topic, 1);
    let effects = Arc::new(consumer::Effects::default());
    let consumer = Consumer::start(inbox.clone(), broker, effects.clone(), options).await?;
    tokio::spawn(picky::resend(outbox.clone()));
    tokio::spawn(consumer::replay(inbox, effects));
    let mut random = Random(settings.number("seed")? ^ u64::from(std::process::id()));
    let wanted = settings.number("orders")? as i64;
    // Some are rolled back: always the same ones, so that a point after a rollback is passed in every run.
    let mut tries = 0;
    loop {
        tries += 1;
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
            .fetch_one(&pool)
            .await?;
        if there >= wanted {
            break;
        }
        let key = format!("k{}", random.below(8));
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
        let order: i64 = sqlx::query_scalar("INSERT INTO orders (k) VALUES ($1) RETURNING id")
            .bind(&key)
            .fetch_one(&mut *tx)
            .await?;
        points::pass("producer.data");
        outbox
            .enqueue(&mut tx, &Message::keyed(topic, &key, order.to_string()))
            .await?;
        points::pass("producer.enqueued");
        outbox
            .enqueue(&mut tx, &Message::unordered(topic, format!("free {order}")))
            .await?;
        if tries % 16 == 7 {
            tx.rollback().await?;
        } else {
            tx.commit().await?;
            points::pass("producer.committed");
        }
    }
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        println!("{:?} {:?}", relay.status(), consumer.status());
    }
}

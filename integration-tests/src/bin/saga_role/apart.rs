//! Coordinator and participants in processes apart, each with a schema of PostgreSQL and an outbox of its own; Kafka is
//! between them. Every process reads in a group of its own, since some brokers never notice that a member died: so
//! every coordinator gets every answer, and several take the same one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use quorate_outbox::broker::Broker;
use quorate_outbox::broker::kafka::{KafkaBroker, KafkaOptions};
use quorate_outbox::inbox::PgInbox;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::{Consumer, ConsumerOptions, Relay, RelayOptions};
use quorate_saga::journal::PgJournal;
use quorate_saga::participant::{ExternalParticipant, PgFences};
use quorate_saga::{CoordinatorOptions, Participant};
use uuid::Uuid;

use crate::services::{self, Bank, Post};
use crate::{Settings, Shop, options, order, pool};

/// How long an answer is waited for: longer than a test, so that nothing depends on commands that are sent again.
const DEADLINE: Duration = Duration::from_secs(600);

fn kafka(settings: &Settings) -> Result<Arc<dyn Broker>> {
    let mut options = KafkaOptions::new(settings.get("kafka")?);
    let refresh = ("topic.metadata.refresh.interval.ms", "300");
    options.consumer.push((refresh.0.into(), refresh.1.into()));
    Ok(Arc::new(KafkaBroker::new(options)?))
}

/// Begins the sagas, or finds them begun, and ends when they have ended.
pub async fn coordinate(settings: &Settings) -> Result<()> {
    let outbox = PgOutbox::migrate(pool(settings).await?, 1).await?;
    let journal = Arc::new(PgJournal::migrate(outbox.clone()).await?);
    let prefix = settings.get("prefix")?;
    let owner = settings.get("owner")?;
    let options = CoordinatorOptions {
        owner: owner.to_owned(),
        replies: format!("{prefix}replies"),
        group: format!("{prefix}{owner}-{}", Uuid::now_v7()),
        ..CoordinatorOptions::default()
    };
    let definition = order(prefix, DEADLINE)?;
    let parts = (journal as _, Arc::new(outbox) as _);
    let shop = Shop::start(definition, options, parts, kafka(settings)?).await?;
    shop.begin(settings).await?;
    shop.end(settings).await
}

/// Runs until it is killed.
pub async fn participate(settings: &Settings) -> Result<()> {
    let pool = pool(settings).await?;
    sqlx::raw_sql(services::TABLES).execute(&pool).await?;
    let outbox = PgOutbox::migrate(pool.clone(), 1).await?;
    let fences = PgFences::migrate(outbox.clone()).await?;
    let inbox = PgInbox::migrate(pool).await?;
    let broker = kafka(settings)?;
    let lease = RelayOptions {
        lease: Duration::from_secs(1),
        // Each round passes the points of saving.
        save_every: Duration::ZERO,
        ..RelayOptions::default()
    };
    let relay = Relay::start(Arc::new(outbox), Arc::clone(&broker), lease)?;
    let at = |name: &str| -> Result<ConsumerOptions> {
        let prefix = settings.get("prefix")?;
        let mut at = options(settings, name, prefix)?;
        at.group = Some(format!("{prefix}{name}-{}", Uuid::now_v7()));
        Ok(at)
    };
    let bank = Arc::new(Participant::new(fences.clone(), Bank));
    let post = Arc::new(ExternalParticipant::new(fences, Post));
    let bank = Consumer::start(inbox.clone(), Arc::clone(&broker), bank, at("bank")?).await?;
    let post = Consumer::start(inbox, broker, post, at("post")?).await?;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (bank, post) = (bank.status(), post.status());
        println!("{:?} {bank:?} {post:?}", relay.status());
    }
}

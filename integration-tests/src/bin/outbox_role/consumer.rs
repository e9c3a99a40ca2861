//! A consumer that runs until it is killed. Its handler fails for some messages until an operator, who has them
//! replayed, allows them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use quorate_outbox::inbox::{Failure, Handler, Ledger, MySqlInbox, PgInbox, State};
use quorate_outbox::store::{BoxFuture, Which, Wish};
use quorate_outbox::{Consumer, ConsumerOptions, Delivery, HEADER_SEQ};
use sqlx::{MySqlConnection, PgConnection, SqliteConnection};

use crate::Settings;

/// Writes every message into the table `effects`.
#[derive(Default)]
pub struct Effects {
    allowed: Mutex<HashSet<String>>,
}

impl Effects {
    fn judge(&self, text: &str) -> Result<(), Failure> {
        if text.ends_with("7") && !self.allowed.lock().contains(text) {
            return Err(Failure::last("not allowed yet"));
        }
        Ok(())
    }
}

const EFFECT: &str = "INSERT INTO effects (k, seq, text) VALUES ($1, $2, $3)";
const EFFECT_MYSQL: &str = "INSERT INTO effects (k, seq, text) VALUES (?, ?, ?)";

macro_rules! effects_of {
    ($connection:ty, $effect:ident) => {
        impl Handler<$connection> for Effects {
            fn handle<'a>(
                &'a self,
                tx: &'a mut $connection,
                message: &'a Delivery,
            ) -> BoxFuture<'a, Result<(), Failure>> {
                Box::pin(async move {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    let seq: Option<i64> = message.header(HEADER_SEQ).and_then(|s| s.parse().ok());
                    sqlx::query($effect)
                        .bind(&message.key)
                        .bind(seq)
                        .bind(&text)
                        .execute(tx)
                        .await?;
                    self.judge(&text)
                })
            }
        }
    };
}
effects_of!(PgConnection, EFFECT);
effects_of!(MySqlConnection, EFFECT_MYSQL);
effects_of!(SqliteConnection, EFFECT);

pub fn options(topic: &str, batch: usize) -> ConsumerOptions {
    ConsumerOptions {
        batch,
        upkeep: Duration::from_millis(50),
        retry_min: Duration::from_millis(10),
        // So long a consumer that is frozen keeps its locks.
        patience: Duration::from_secs(3),
        ..ConsumerOptions::new("effects", &[topic])
    }
}

pub async fn run(settings: &Settings) -> Result<()> {
    if settings.is_mysql() {
        consume(settings, MySqlInbox::open(settings.mysql().await?).await?).await
    } else {
        consume(settings, PgInbox::open(settings.pool().await?).await?).await
    }
}

async fn consume<L: Ledger>(settings: &Settings, inbox: L) -> Result<()>
where
    Effects: Handler<L::Connection>,
{
    let batch = settings.number("batch")? as usize;
    let mut options = options(settings.get("topic")?, batch);
    if settings.get("group").is_err() {
        // Some brokers never notice that a member died; the positions are in the database anyway.
        options.group = Some(format!("effects-{}", uuid::Uuid::now_v7()));
    }
    let broker = Arc::new(settings.kafka()?);
    let effects = Arc::new(Effects::default());
    let consumer = Consumer::start(inbox.clone(), broker, effects.clone(), options).await?;
    tokio::spawn(replay(inbox, effects));
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        println!("consumer {}: {:?}", std::process::id(), consumer.status());
    }
}

/// An operator who allows everything dead and wants it replayed.
pub async fn replay(inbox: impl Ledger, effects: Arc<Effects>) {
    loop {
        for waiting in inbox
            .waiting("effects", None, 100)
            .await
            .unwrap_or_default()
        {
            if waiting.state != State::Waiting && waiting.wish == Wish::None {
                let text = String::from_utf8_lossy(&waiting.message.payload).into_owned();
                effects.allowed.lock().insert(text);
                let _ = inbox
                    .wish("effects", &Which::Message(waiting.id), Wish::Retry)
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

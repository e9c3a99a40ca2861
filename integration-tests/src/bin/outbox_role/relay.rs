//! A relay that runs until it is killed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use quorate_outbox::broker::Broker;
use quorate_outbox::mysql::MySqlOutbox;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::store::Store;
use quorate_outbox::{Relay, RelayOptions};

use crate::Settings;
use crate::picky::{self, Picky};

/// Short leases: the next relay need not wait for long.
pub fn options() -> RelayOptions {
    RelayOptions {
        lease: Duration::from_millis(1_000),
        upkeep: Duration::from_millis(50),
        batch: 25,
        ..RelayOptions::default()
    }
}

pub async fn run(settings: &Settings) -> Result<()> {
    let outbox: Arc<dyn Store> = if settings.is_mysql() {
        Arc::new(MySqlOutbox::open(settings.mysql().await?).await?)
    } else {
        Arc::new(PgOutbox::open(settings.pool().await?).await?)
    };
    let broker: Arc<dyn Broker> = Arc::new(Picky::new(Arc::new(settings.kafka()?)));
    let relay = Relay::start(outbox.clone(), broker, options())?;
    tokio::spawn(picky::resend(outbox));
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        println!("relay {}: {:?}", std::process::id(), relay.status());
    }
}

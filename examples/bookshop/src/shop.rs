//! What joins the services: the broker between them, and each one's relay and consumer.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_outbox::broker::Broker;
use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::inbox::Handler;
use quorate_outbox::{Consumer, ConsumerOptions, Relay, RelayOptions};

use crate::Settings;
use crate::database::Database;

/// How long the work of a process that was killed is left to it. Short, for a shop that is killed often; the default
/// of relays and coordinators, 10 s, is right for most.
pub const LEASE: Duration = Duration::from_secs(1);

/// What all services have in common.
pub struct Shop {
    settings: Settings,
    broker: Arc<dyn Broker>,
}

impl Shop {
    /// Opens the broker, or connects to it.
    pub async fn open(settings: &Settings) -> Result<Shop> {
        let broker = match &settings.kafka {
            Some(servers) => kafka(settings, servers).await?,
            None => local(settings).await?,
        };
        Ok(Shop {
            settings: settings.clone(),
            broker,
        })
    }

    /// The name of a topic, or of a consumer.
    pub fn topic(&self, what: &str) -> String {
        self.settings.topic(what)
    }

    /// What carries messages from service to service.
    pub fn broker(&self) -> Arc<dyn Broker> {
        Arc::clone(&self.broker)
    }

    /// Starts a service: the relay of its outbox, and the consumer of what is sent to it.
    pub async fn serve<D, H>(
        &self,
        service: &'static str,
        database: &D,
        handler: H,
        options: ConsumerOptions,
    ) -> Result<Running<D>>
    where
        D: Database,
        H: Handler<D::Connection>,
    {
        let relay = RelayOptions {
            lease: LEASE,
            ..RelayOptions::default()
        };
        let relay = Relay::start(database.outbox(), self.broker(), relay)?;
        let consumer =
            Consumer::start(database.inbox(), self.broker(), Arc::new(handler), options).await;
        let consumer = consumer.with_context(|| format!("`{service}` does not start"))?;
        Ok(Running {
            service,
            relay,
            consumer,
        })
    }
}

/// The broker in this process, durable in a file: one process at a time may have it.
async fn local(settings: &Settings) -> Result<Arc<dyn Broker>> {
    let file = settings.folder()?.join("broker.db");
    let opened = LocalBroker::durable(&file, LocalOptions::default()).await;
    let opened = opened.with_context(|| {
        let file = file.display();
        format!("the broker's file {file}: is another bookshop at work in this folder?")
    })?;
    Ok(Arc::new(opened))
}

/// Makes the topics, by which it also turns out at once whether the cluster answers.
#[cfg(feature = "kafka")]
async fn kafka(settings: &Settings, servers: &str) -> Result<Arc<dyn Broker>> {
    use quorate_outbox::broker::kafka::{KafkaBroker, KafkaOptions};
    const TOPICS: [&str; 5] = ["orders", "stock", "accounts", "replies", "mails"];
    const PARTITIONS: i32 = 4;
    let mut options = KafkaOptions::new(servers);
    options.timeout = Duration::from_secs(10);
    // How soon the partitions of a member that was killed go to others.
    let soon = [
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "1000"),
    ];
    options.consumer = soon.map(|(name, value)| (name.into(), value.into())).into();
    let made = async {
        let broker = KafkaBroker::new(options)?;
        let topics = TOPICS.map(|topic| settings.topic(topic));
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        broker.make_topics(&names, PARTITIONS).await?;
        Ok::<_, quorate_outbox::Error>(broker)
    };
    let broker = made.await;
    let broker = broker.context("connect to Kafka (--kafka)")?;
    Ok(Arc::new(broker))
}

#[cfg(not(feature = "kafka"))]
async fn kafka(_: &Settings, _: &str) -> Result<Arc<dyn Broker>> {
    anyhow::bail!(
        "this bookshop was built without Kafka: {}",
        crate::WITH_FEATURES
    )
}

/// A service at work.
pub struct Running<D: Database> {
    service: &'static str,
    relay: Relay,
    consumer: Consumer<D::Inbox>,
}

impl<D: Database> Running<D> {
    /// What keeps it from its work, if anything does. It goes on by itself when that is over.
    pub fn trouble(&self) -> Option<String> {
        let (relay, consumer) = (self.relay.status(), self.consumer.status());
        let said = [relay.failure, relay.alarm, consumer.failure, consumer.alarm];
        let said: Vec<String> = said.into_iter().flatten().collect();
        (!said.is_empty()).then(|| format!("{}: {}", self.service, said.join("; ")))
    }

    /// Finishes what is under way, and ends.
    pub async fn drain(self) {
        self.consumer.drain().await;
        self.relay.drain().await;
    }
}

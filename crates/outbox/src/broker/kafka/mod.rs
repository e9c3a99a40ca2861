//! Kafka, by librdkafka.
//!
//! Two ways to publish:
//!
//! - [`KafkaMode::Idempotent`], the default: one producer, `acks=all`, retries without repetition or
//!   reordering as long as the process lives. A relay that dies before it has saved repeats a batch.
//! - [`KafkaMode::Transactional`]: one producer and one `transactional.id` a part. A batch is a transaction, and
//!   its number is committed in it as an offset of a topic of our own; whoever takes the part over shuts the
//!   older producer out and asks for that number. Consumers that read committed see no repetition. It does
//!   not join the two commits of Kafka and the database into one: consumers outside still need the inbox
//!   for an effect that happens once.
//!
//! In both the consumer reads committed, starts where the database says, and never commits by itself.

mod consumer;
mod producer;
mod topics;
mod transactions;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use self::producer::{IdempotentProducer, Ticket};
use self::transactions::Transactions;
use super::{Broker, Outbatch, Outcomes, Outgoing, Positions, Refusal, Subscription};
use crate::store::{BoxFuture, Fence};
use crate::{Error, ErrorKind, Result};

/// How messages are published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KafkaMode {
    /// One idempotent producer.
    #[default]
    Idempotent,
    /// A transaction a batch.
    Transactional {
        /// Begins every `transactional.id` and group that is ours.
        prefix: String,
        /// The topic whose offsets stand for batch numbers; made if it is not there.
        progress_topic: String,
    },
}

/// Settings of the connection.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// `host:port,host:port`.
    pub brokers: String,
    /// How messages are published.
    pub mode: KafkaMode,
    /// How long a call to the cluster may take.
    pub timeout: Duration,
    /// Settings of librdkafka for producers, over ours.
    pub producer: Vec<(String, String)>,
    /// Settings of librdkafka for consumers, over ours.
    pub consumer: Vec<(String, String)>,
}

impl KafkaOptions {
    /// The defaults for a cluster.
    pub fn new(brokers: impl Into<String>) -> KafkaOptions {
        KafkaOptions {
            brokers: brokers.into(),
            mode: KafkaMode::Idempotent,
            timeout: Duration::from_secs(30),
            producer: Vec::new(),
            consumer: Vec::new(),
        }
    }

    fn base(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn for_producer(&self) -> ClientConfig {
        let mut config = self.base();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "2")
            // The default of servers: what an outbox takes by default fits.
            .set("message.max.bytes", "1048576")
            .set("message.timeout.ms", self.timeout.as_millis().to_string())
            .set("topic.metadata.propagation.max.ms", "5000");
        // Without this, of two messages of a key the later could be stored although the earlier timed out.
        if self.mode == KafkaMode::Idempotent {
            config.set("enable.gapless.guarantee", "true");
        }
        for (name, value) in &self.producer {
            config.set(name, value);
        }
        config
    }

    fn for_consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.base();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            // How soon a topic is found that is made after the consumer has started.
            .set("topic.metadata.refresh.interval.ms", "5000")
            .set("session.timeout.ms", "10000");
        for (name, value) in &self.consumer {
            config.set(name, value);
        }
        config
    }
}

/// A producer that is made anew when it can't go on.
type Slot = Arc<Mutex<Option<Arc<IdempotentProducer>>>>;

/// A Kafka cluster. Cheap to clone.
#[derive(Clone)]
pub struct KafkaBroker {
    options: KafkaOptions,
    idempotent: Slot,
    /// Sends each message by itself; made when it is first needed.
    alone: Slot,
    transactions: Arc<Transactions>,
}

impl KafkaBroker {
    /// A cluster; connects when it is first used.
    ///
    /// # Errors
    /// `Invalid` for settings that librdkafka does not take.
    pub fn new(options: KafkaOptions) -> Result<KafkaBroker> {
        let first = match options.mode {
            KafkaMode::Idempotent => Some(Arc::new(IdempotentProducer::new(&options, false)?)),
            KafkaMode::Transactional { .. } => None,
        };
        Ok(KafkaBroker {
            idempotent: Arc::new(Mutex::new(first)),
            alone: Slot::default(),
            transactions: Arc::new(Transactions::new(options.clone())),
            options,
        })
    }

    /// Makes the topics that are not there yet, with so many partitions and the cluster's own number of replicas.
    /// Those that are there stay as they are. A service that calls it when it starts also learns at once whether the
    /// cluster answers.
    ///
    /// # Errors
    /// `Unavailable` when the cluster does not answer, or refuses.
    pub async fn make_topics(&self, names: &[&str], partitions: i32) -> Result<()> {
        topics::make(&self.options, names, partitions).await
    }

    /// The producer; a new one when the last one can't go on. The old one is gone before the new one is
    /// made, so nothing of it is sent late.
    fn producer(&self, alone: bool) -> Result<Arc<IdempotentProducer>> {
        let slot = if alone { &self.alone } else { &self.idempotent };
        let mut producer = slot.lock();
        if let Some(good) = producer.as_ref().filter(|p| !p.is_broken()) {
            return Ok(Arc::clone(good));
        }
        *producer = None;
        let new = Arc::new(IdempotentProducer::new(&self.options, alone)?);
        *producer = Some(Arc::clone(&new));
        Ok(new)
    }
}

impl Broker for KafkaBroker {
    fn publish<'a>(&'a self, batch: Outbatch<'a>) -> BoxFuture<'a, Outcomes> {
        Box::pin(async move {
            if self.is_transactional() {
                return self.transactions.publish(batch).await;
            }
            match self.producer(batch.alone) {
                Ok(producer) => producer.publish(batch.messages).await,
                Err(error) => refuse_all(batch.messages, Refusal::Retry(error.to_string())),
            }
        })
    }

    fn is_transactional(&self) -> bool {
        self.options.mode != KafkaMode::Idempotent
    }

    fn last_batch<'a>(
        &'a self,
        source: &'a str,
        fence: Fence,
    ) -> BoxFuture<'a, Result<Option<i64>>> {
        Box::pin(async move {
            if !self.is_transactional() {
                return Ok(None);
            }
            self.transactions.take_over(source, fence).await
        })
    }

    fn subscribe<'a>(
        &'a self,
        group: &'a str,
        topics: &'a [String],
        positions: Arc<dyn Positions>,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(consumer::subscribe(&self.options, group, topics, positions))
    }
}

fn refuse_all(messages: &[Outgoing], refusal: Refusal) -> Outcomes {
    vec![Err(refusal); messages.len()]
}

/// What a server says of a message that it got together with others: of some errors it is not known which
/// of them is meant.
fn reported(error: &KafkaError, is_alone: bool) -> Refusal {
    use Code::{InvalidRecord, MessageSizeTooLarge, PolicyViolation};
    let code = error.rdkafka_error_code();
    let of_all = matches!(
        code,
        Some(MessageSizeTooLarge | InvalidRecord | PolicyViolation)
    );
    match refusal(error) {
        Refusal::Poison(why) if of_all && !is_alone => Refusal::Together(why),
        refusal => refusal,
    }
}

/// What librdkafka says, as what the relay does about it.
fn refusal(error: &KafkaError) -> Refusal {
    let text = format!("kafka: {error}");
    match error.rdkafka_error_code() {
        Some(
            Code::MessageSizeTooLarge
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::InvalidRecord
            | Code::PolicyViolation
            | Code::TopicAuthorizationFailed,
        ) => Refusal::Poison(text),
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => {
            Refusal::Fenced(text)
        }
        _ => Refusal::Retry(text),
    }
}

fn error(what: &str, error: &KafkaError) -> Error {
    let kind = match error {
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => ErrorKind::Invalid,
        _ => match refusal(error) {
            Refusal::Fenced(_) => ErrorKind::Fenced,
            _ => ErrorKind::Unavailable,
        },
    };
    Error::new(kind, format!("{what}: {error}"))
}

fn record(message: &Outgoing, ticket: Box<Ticket>) -> BaseRecord<'_, str, [u8], Box<Ticket>> {
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
    for (name, value) in &message.headers {
        headers = headers.insert(Header {
            key: name,
            value: Some(value),
        });
    }
    let record = BaseRecord::with_opaque_to(&message.topic, ticket)
        .payload(&message.payload[..])
        .headers(headers);
    match &message.key {
        Some(key) => record.key(key.as_str()),
        None => record,
    }
}

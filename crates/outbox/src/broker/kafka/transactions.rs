//! The transactional mode: a producer a part, a transaction a batch, its number as an offset.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::producer::{Reports, send_all};
use super::{KafkaMode, KafkaOptions, error, refusal, refuse_all, topics};
use crate::broker::{Outbatch, Outcomes, Refusal};
use crate::store::Fence;
use crate::{Error, ErrorKind, Result, points};

type Parts = HashMap<(String, u16), Arc<Part>>;

/// The producers of the parts that this process holds.
pub(super) struct Transactions {
    options: KafkaOptions,
    parts: Mutex<Parts>,
    topic_made: tokio::sync::OnceCell<()>,
}

/// A part's producer. One transaction at a time.
struct Part {
    epoch: i64,
    producer: ThreadedProducer<Reports>,
    /// Never subscribed: it stands for the group whose offset is the batch number.
    group: BaseConsumer,
    one: tokio::sync::Mutex<()>,
}

impl Transactions {
    pub(super) fn new(options: KafkaOptions) -> Transactions {
        Transactions {
            options,
            parts: Mutex::default(),
            topic_made: tokio::sync::OnceCell::new(),
        }
    }

    fn names(&self, source: &str, part: u16) -> (String, String) {
        match &self.options.mode {
            KafkaMode::Transactional {
                prefix,
                progress_topic,
            } => (format!("{prefix}-{source}-{part}"), progress_topic.clone()),
            KafkaMode::Idempotent => (String::new(), String::new()),
        }
    }

    /// Shuts older producers of the part out and reads the number of the last committed batch.
    pub(super) async fn take_over(&self, source: &str, fence: Fence) -> Result<Option<i64>> {
        let (id, topic) = self.names(source, fence.part);
        let progress = [topic.as_str()];
        let made = self
            .topic_made
            .get_or_try_init(|| topics::make(&self.options, &progress, 1));
        made.await?;
        let key = (source.to_owned(), fence.part);
        self.parts.lock().remove(&key);
        let options = self.options.clone();
        let epoch = fence.epoch;
        let opened = blocking(move || open(&options, &id, &topic, epoch)).await?;
        let (part, last) = opened?;
        self.parts.lock().insert(key, Arc::new(part));
        Ok(last)
    }

    pub(super) async fn publish(&self, batch: Outbatch<'_>) -> Outcomes {
        let key = (batch.source.to_owned(), batch.fence.part);
        let part = self.parts.lock().get(&key).cloned();
        let Some(part) = part.filter(|part| part.epoch == batch.fence.epoch) else {
            let text = "the part has no producer in this epoch: ask for its last batch first";
            return refuse_all(batch.messages, Refusal::Retry(text.into()));
        };
        let _one = part.one.lock().await;
        let done = self.transact(&part, batch).await;
        match done {
            Ok(outcomes) => outcomes,
            Err(refusal) => {
                // What became of the transaction is found out by taking the part over anew.
                self.parts.lock().remove(&key);
                refuse_all(batch.messages, refusal)
            }
        }
    }

    async fn transact(
        &self,
        part: &Arc<Part>,
        batch: Outbatch<'_>,
    ) -> std::result::Result<Outcomes, Refusal> {
        let timeout = self.options.timeout;
        part.producer.begin_transaction().map_err(|e| refusal(&e))?;
        // Nobody else sends by this producer.
        let is_alone = batch.messages.len() == 1;
        let outcomes = send_all(&part.producer, batch.messages, is_alone).await;
        points::pass("kafka.sent");
        // The first refusal says why; those behind it only say that they are.
        if let Some(Err(first)) = outcomes.iter().find(|outcome| outcome.is_err()) {
            let ours = Arc::clone(part);
            let aborted = call(move || ours.producer.abort_transaction(timeout)).await;
            aborted.map_err(|e| refusal(&e))?;
            return Ok(aborted_outcomes(&outcomes, first));
        }
        let (_, topic) = self.names(batch.source, batch.fence.part);
        let number = batch.number;
        let ours = Arc::clone(part);
        let committed = call(move || {
            let mut offsets = TopicPartitionList::new();
            offsets.add_partition_offset(&topic, 0, Offset::Offset(number))?;
            let metadata = ours.group.group_metadata();
            let metadata = metadata.ok_or(KafkaError::Canceled)?;
            ours.producer
                .send_offsets_to_transaction(&offsets, &metadata, timeout)?;
            points::pass("kafka.offset-sent");
            ours.producer.commit_transaction(timeout)
        })
        .await;
        committed.map_err(|e| refusal(&e))?;
        points::pass("kafka.committed");
        Ok(outcomes)
    }
}

/// Of an aborted batch: what is poison stays so, everything else is sent again.
fn aborted_outcomes(outcomes: &Outcomes, first: &Refusal) -> Outcomes {
    let why = match first {
        Refusal::Retry(why)
        | Refusal::Poison(why)
        | Refusal::Together(why)
        | Refusal::Fenced(why) => why.clone(),
    };
    outcomes
        .iter()
        .map(|outcome| match outcome {
            Err(Refusal::Poison(why)) => Err(Refusal::Poison(why.clone())),
            Err(Refusal::Together(why)) => Err(Refusal::Together(why.clone())),
            Err(Refusal::Fenced(why)) => Err(Refusal::Fenced(why.clone())),
            _ => Err(Refusal::Retry(format!("the batch was aborted: {why}"))),
        })
        .collect()
}

fn open(options: &KafkaOptions, id: &str, topic: &str, epoch: i64) -> Result<(Part, Option<i64>)> {
    let mut config = options.for_producer();
    config.set("transactional.id", id);
    let producer: ThreadedProducer<Reports> = config
        .create_with_context(Reports)
        .map_err(|e| error("a producer can't be made", &e))?;
    producer
        .init_transactions(options.timeout)
        .map_err(|e| error("transactions can't be begun", &e))?;
    let group: BaseConsumer = options
        .for_consumer(id)
        .create()
        .map_err(|e| error("a consumer can't be made", &e))?;
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, 0);
    let offsets = group
        .committed_offsets(asked, options.timeout)
        .map_err(|e| error("the last batch can't be read", &e))?;
    let last = offsets.find_partition(topic, 0);
    let last = last.and_then(|found| match found.offset() {
        Offset::Offset(number) => Some(number),
        _ => None,
    });
    let part = Part {
        epoch,
        producer,
        group,
        one: tokio::sync::Mutex::new(()),
    };
    Ok((part, last))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Unavailable, format!("kafka: {e}")))
}

async fn call<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, KafkaError> + Send + 'static,
) -> std::result::Result<T, KafkaError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(KafkaError::Canceled),
    }
}

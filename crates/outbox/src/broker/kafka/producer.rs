//! Publishing with delivery reports: one ticket a message, one wait a batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::Notify;

use super::{KafkaOptions, error, record, refusal, reported};
use crate::Result;
use crate::broker::{Closed, Outcomes, Outgoing, Refusal};

/// A batch that waits for its reports.
struct Pending {
    /// Whether no other message can be in one request with its own.
    is_alone: bool,
    outcomes: Mutex<Outcomes>,
    left: AtomicUsize,
    done: Notify,
}

/// A message's claim to a place among the outcomes. Dropped without a report it counts as refused.
pub(super) struct Ticket {
    batch: Arc<Pending>,
    index: usize,
}

impl Pending {
    fn new(messages: usize, is_alone: bool) -> Arc<Pending> {
        let lost = Refusal::Retry("kafka: the producer ended before it reported".into());
        Arc::new(Pending {
            is_alone,
            outcomes: Mutex::new(vec![Err(lost); messages]),
            left: AtomicUsize::new(messages),
            done: Notify::new(),
        })
    }

    fn ticket(self: &Arc<Self>, index: usize) -> Box<Ticket> {
        Box::new(Ticket {
            batch: Arc::clone(self),
            index,
        })
    }

    /// Waits until every ticket is told or gone.
    async fn wait(&self) -> Outcomes {
        loop {
            let done = self.done.notified();
            if self.left.load(Ordering::Acquire) == 0 {
                return std::mem::take(&mut *self.outcomes.lock());
            }
            done.await;
        }
    }
}

impl Ticket {
    fn tell(self, outcome: std::result::Result<(), Refusal>) {
        self.batch.outcomes.lock()[self.index] = outcome;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.batch.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.batch.done.notify_waiters();
        }
    }
}

/// Takes delivery reports, on librdkafka's thread.
pub(super) struct Reports;

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let is_alone = ticket.batch.is_alone;
        ticket.tell(match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(reported(error, is_alone)),
        });
    }
}

/// The producer of the idempotent mode.
pub(super) struct IdempotentProducer {
    producer: ThreadedProducer<Reports>,
    alone: bool,
    broken: AtomicBool,
}

impl IdempotentProducer {
    /// `alone`: each message in a request of its own, so that a refusal means that message.
    pub(super) fn new(options: &KafkaOptions, alone: bool) -> Result<IdempotentProducer> {
        let mut config = options.for_producer();
        if alone {
            config.set("batch.num.messages", "1");
        }
        let made = config.create_with_context(Reports);
        Ok(IdempotentProducer {
            producer: made.map_err(|e| error("a producer can't be made", &e))?,
            alone,
            broken: AtomicBool::new(false),
        })
    }

    /// Whether it has met an error after which librdkafka's producers do not go on.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed) || self.producer.client().fatal_error().is_some()
    }

    pub(super) async fn publish(&self, messages: &[Outgoing]) -> Outcomes {
        let outcomes = send_all(&self.producer, messages, self.alone).await;
        let refused = |r: &std::result::Result<(), Refusal>| matches!(r, Err(Refusal::Fenced(_)));
        if outcomes.iter().any(refused) || self.is_broken() {
            // Not another relay: an epoch of this producer's own. A new producer gets a new one.
            self.broken.store(true, Ordering::Relaxed);
        }
        outcomes
            .into_iter()
            .map(|outcome| match outcome {
                Err(Refusal::Fenced(why)) => Err(Refusal::Retry(why)),
                other => other,
            })
            .collect()
    }
}

/// Hands a batch to librdkafka and waits for all reports.
pub(super) async fn send_all(
    producer: &ThreadedProducer<Reports>,
    messages: &[Outgoing],
    is_alone: bool,
) -> Outcomes {
    let pending = Pending::new(messages.len(), is_alone);
    let mut closed = Closed::default();
    for (index, message) in messages.iter().enumerate() {
        let ticket = pending.ticket(index);
        if let Some(refusal) = closed.refusal(message) {
            ticket.tell(Err(refusal));
        } else if !send(producer, message, ticket).await {
            closed.close(message);
        }
    }
    pending.wait().await
}

/// Hands a message to librdkafka; waits while its queue is full. False when it was refused at once.
async fn send(
    producer: &ThreadedProducer<Reports>,
    message: &Outgoing,
    ticket: Box<Ticket>,
) -> bool {
    let mut ticket = ticket;
    loop {
        match producer.send(record(message, ticket)) {
            Ok(()) => return true,
            Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                ticket = back.delivery_opaque;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err((error, back)) => {
                back.delivery_opaque.tell(Err(refusal(&error)));
                return false;
            }
        }
    }
}

//! A broker before the broker: takes some messages for poison when it sees them first.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_outbox::broker::{
    Broker, Closed, Outbatch, Outcomes, Outgoing, Positions, Refusal, Subscription,
};
use quorate_outbox::store::{BoxFuture, Fence, Store, Which, Wish};
use quorate_outbox::{HEADER_ID, Result};

/// Refuses the messages whose text ends in 3, once in this process.
pub struct Picky {
    pub inner: Arc<dyn Broker>,
    refused: Mutex<HashSet<String>>,
}

impl Picky {
    pub fn new(inner: Arc<dyn Broker>) -> Picky {
        Picky {
            inner,
            refused: Mutex::default(),
        }
    }

    fn refuses(&self, message: &Outgoing) -> bool {
        if !message.payload.ends_with(b"3") {
            return false;
        }
        let id = message.headers.iter().find(|(name, _)| name == HEADER_ID);
        let id = id.map(|(_, id)| id.clone()).unwrap_or_default();
        self.refused.lock().insert(id)
    }
}

impl Broker for Picky {
    fn publish<'a>(&'a self, batch: Outbatch<'a>) -> BoxFuture<'a, Outcomes> {
        Box::pin(async move {
            let mut closed = Closed::default();
            let mut outcomes: Outcomes = Vec::new();
            let mut good = Vec::new();
            for message in batch.messages {
                if let Some(refusal) = closed.refusal(message) {
                    outcomes.push(Err(refusal));
                } else if self.refuses(message) {
                    closed.close(message);
                    outcomes.push(Err(Refusal::Poison("picky".into())));
                } else {
                    outcomes.push(Ok(()));
                    good.push(message.clone());
                }
            }
            if self.is_transactional() && good.len() < batch.messages.len() {
                // All or nothing: what is good is to be sent again without the others.
                let aborted = |outcome: std::result::Result<(), Refusal>| {
                    outcome.and(Err(Refusal::Retry("the batch was aborted".into())))
                };
                return outcomes.into_iter().map(aborted).collect();
            }
            let messages = &good;
            let mut said = self
                .inner
                .publish(Outbatch { messages, ..batch })
                .await
                .into_iter();
            let told = |outcome: std::result::Result<(), Refusal>| match outcome {
                Ok(()) => said.next().unwrap_or(Ok(())),
                refused => refused,
            };
            outcomes.into_iter().map(told).collect()
        })
    }

    fn is_transactional(&self) -> bool {
        self.inner.is_transactional()
    }

    fn last_batch<'a>(
        &'a self,
        source: &'a str,
        fence: Fence,
    ) -> BoxFuture<'a, Result<Option<i64>>> {
        self.inner.last_batch(source, fence)
    }

    fn subscribe<'a>(
        &'a self,
        group: &'a str,
        topics: &'a [String],
        positions: Arc<dyn Positions>,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        self.inner.subscribe(group, topics, positions)
    }
}

/// An operator who wants everything sent that is parked.
pub async fn resend(store: Arc<dyn Store>) {
    loop {
        for parked in store.parked(None, 100).await.unwrap_or_default() {
            let _ = store
                .wish(&Which::Message(parked.row.message_id), Wish::Retry)
                .await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

//! Takes replies from the broker and hands them to the workers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture as Boxed;
use quorate_outbox::broker::{Broker, Positions, Start, Subscription};
use quorate_outbox::store::BoxFuture;
use quorate_outbox::{Delivery, Partition};
use tokio::sync::{mpsc, oneshot};

use super::{Shared, Work};
use crate::Result;
use crate::message::Reply;

/// How long a fetch waits for news.
const WAIT: Duration = Duration::from_millis(100);
/// So many fetches may be under way.
const UNDER_WAY: usize = 4;

/// Where the broker remembers that the group was. A reply that comes again changes nothing.
struct Remembered;

impl Positions for Remembered {
    fn assigned(&self, partitions: Vec<Partition>, _: u64) -> BoxFuture<'_, Vec<Start>> {
        let starts = vec![Start::Committed; partitions.len()];
        Box::pin(async move { starts })
    }

    fn revoked(&self, _: Vec<Partition>) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

pub(super) async fn join(shared: &Shared, broker: &dyn Broker) -> Result<Box<dyn Subscription>> {
    let options = &shared.options;
    let topics = [options.replies.clone()];
    Ok(broker
        .subscribe(&options.group, &topics, Arc::new(Remembered))
        .await?)
}

/// A fetch whose replies are with the workers.
struct UnderWay {
    next: Vec<(Partition, i64)>,
    /// True when all that they did is written.
    written: Boxed<'static, bool>,
}

pub(super) async fn run(
    shared: Arc<Shared>,
    broker: Arc<dyn Broker>,
    subscription: Box<dyn Subscription>,
    queues: Arc<[mpsc::Sender<Work>]>,
) {
    let mut subscription = subscription;
    let mut under_way: VecDeque<UnderWay> = VecDeque::new();
    let mut wait = shared.options.retry_min;
    while !*shared.stopped.borrow() {
        let fetched = subscription
            .next(shared.options.batch * queues.len(), WAIT)
            .await;
        match fetched {
            Ok(messages) if messages.is_empty() => {}
            Ok(messages) => {
                wait = shared.options.retry_min;
                under_way.push_back(hand_out(&shared, messages, &queues).await);
            }
            Err(error) => {
                shared.failed(Some(&error.into()));
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(shared.options.retry_max);
            }
        }
        if !settle(&mut under_way, subscription.as_mut()).await {
            // A worker gave up: what it had comes again.
            break;
        }
    }
    drop(queues);
    for one in under_way {
        if !one.written.await {
            break;
        }
        let _ = subscription.commit(one.next).await;
    }
    subscription.leave().await;
    drop(broker);
}

async fn hand_out(
    shared: &Shared,
    messages: Vec<Delivery>,
    queues: &[mpsc::Sender<Work>],
) -> UnderWay {
    let mut next: HashMap<Partition, i64> = HashMap::new();
    let mut by_worker: Vec<Vec<Reply>> = queues.iter().map(|_| Vec::new()).collect();
    for message in messages {
        next.insert(message.partition.clone(), message.offset + 1);
        if message.is_skip() {
            continue;
        }
        match Reply::read(&message) {
            Ok(reply) => {
                let worker = (reply.saga.as_u128() >> 64) as usize % queues.len();
                by_worker[worker].push(reply);
            }
            Err(error) => {
                shared.counts.bad.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "a reply is passed over");
            }
        }
    }
    let mut waiting = Vec::new();
    for (queue, replies) in queues.iter().zip(by_worker) {
        if !replies.is_empty() {
            let (tell, told) = oneshot::channel();
            // If the worker is gone nobody tells.
            let _ = queue.send(Work::Replies(replies, tell)).await;
            waiting.push(told);
        }
    }
    let written = async move {
        for told in waiting {
            if told.await.is_err() {
                return false;
            }
        }
        true
    };
    UnderWay {
        next: next.into_iter().collect(),
        written: written.boxed(),
    }
}

/// Tells the broker what is taken, in order; waits only when too much is under way. False when something will
/// not be taken.
async fn settle(under_way: &mut VecDeque<UnderWay>, subscription: &mut dyn Subscription) -> bool {
    let mut next: HashMap<Partition, i64> = HashMap::new();
    while let Some(first) = under_way.front_mut() {
        let written = match (&mut first.written).now_or_never() {
            Some(written) => written,
            None => break,
        };
        if !written {
            // Nor is what came behind it told as taken.
            under_way.clear();
            return false;
        }
        next.extend(first.next.drain(..));
        under_way.pop_front();
    }
    if under_way.len() >= UNDER_WAY
        && let Some(first) = under_way.pop_front()
    {
        if !first.written.await {
            under_way.clear();
            return false;
        }
        next.extend(first.next);
    }
    if !next.is_empty() {
        let next = next.into_iter().collect();
        if let Err(error) = subscription.commit(next).await {
            tracing::debug!(%error, "the broker was not told what is taken; it comes again");
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the broker was told.
    #[derive(Default)]
    struct Told(Vec<(Partition, i64)>);

    impl Subscription for Told {
        fn next(
            &mut self,
            _: usize,
            _: Duration,
        ) -> BoxFuture<'_, quorate_outbox::Result<Vec<Delivery>>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn commit(
            &mut self,
            next: Vec<(Partition, i64)>,
        ) -> BoxFuture<'_, quorate_outbox::Result<()>> {
            self.0.extend(next);
            Box::pin(async { Ok(()) })
        }

        fn behind(&mut self) -> BoxFuture<'_, quorate_outbox::Result<i64>> {
            Box::pin(async { Ok(0) })
        }

        fn leave(self: Box<Self>) -> BoxFuture<'static, ()> {
            Box::pin(async {})
        }
    }

    fn fetch(offset: i64, written: bool, at_once: bool) -> UnderWay {
        let partition = Partition {
            topic: "replies".into(),
            number: 0,
        };
        let later = async move {
            if !at_once {
                tokio::task::yield_now().await;
            }
            written
        };
        UnderWay {
            next: vec![(partition, offset)],
            written: later.boxed(),
        }
    }

    #[tokio::test]
    async fn replies_behind_some_that_were_not_written_are_not_told_as_taken() {
        for at_once in [true, false] {
            let written = [false, true, true, true];
            let fetches = (1..).zip(written);
            let fetches = fetches.map(|(offset, written)| fetch(offset, written, at_once));
            let mut under_way: VecDeque<UnderWay> = fetches.collect();
            let mut told = Told::default();
            assert!(!settle(&mut under_way, &mut told).await);
            assert!(under_way.is_empty(), "nothing is left to be told later");
            assert_eq!(told.0, []);
        }
        let mut under_way = VecDeque::from([fetch(7, true, true), fetch(9, true, false)]);
        let mut told = Told::default();
        assert!(settle(&mut under_way, &mut told).await);
        let offsets: Vec<i64> = told.0.iter().map(|(_, offset)| *offset).collect();
        assert_eq!((offsets, under_way.len()), (vec![7], 1));
    }
}

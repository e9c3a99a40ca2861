//! A member of a consumer group: a thread that polls librdkafka, and a queue to the consumer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::{KafkaOptions, error};
use crate::broker::{Positions, Start, Subscription};
use crate::store::BoxFuture;
use crate::{Delivery, Error, ErrorKind, Partition, Result};

/// So many messages may wait between the thread and the consumer.
const QUEUE: usize = 4096;
const POLL: Duration = Duration::from_millis(50);
/// How long leaving a group may take.
const LEAVE: Duration = Duration::from_secs(5);
/// Asking for the ends of partitions is a request each.
const BEHIND_EVERY: Duration = Duration::from_secs(3);

type Item = std::result::Result<Delivery, Error>;

/// Hears of partitions that come and go, on the polling thread.
struct Context {
    positions: Arc<dyn Positions>,
    runtime: Handle,
    /// Raised by every rebalance: the number of the assignment.
    round: Arc<AtomicU64>,
}

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        // A panic must not unwind into C.
        let done = std::panic::catch_unwind(AssertUnwindSafe(|| match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.take(consumer, list),
            _ => self.give_up(consumer, list),
        }));
        if !matches!(done, Ok(true)) {
            tracing::warn!("a rebalance could not be dealt with; nothing is consumed");
            let _ = consumer.unassign();
        }
    }
}

impl Context {
    /// False if the runtime ends.
    fn take(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> bool {
        let round = self.round.fetch_add(1, Ordering::SeqCst) + 1;
        let partitions = partitions(list);
        let (positions, taken) = (Arc::clone(&self.positions), partitions.clone());
        let starts = self.wait_for(async move { positions.assigned(taken, round).await });
        let Some(starts) = starts else {
            return false;
        };
        for (partition, start) in partitions.iter().zip(starts) {
            if let Start::At(offset) = start {
                let offset = Offset::Offset(offset);
                let set = list.set_partition_offset(&partition.topic, partition.number, offset);
                if let Err(error) = set {
                    tracing::warn!(%error, ?partition, "a position could not be set");
                }
            }
        }
        if let Err(error) = consumer.assign(list) {
            tracing::warn!(%error, "partitions could not be taken");
        }
        true
    }

    /// False if the runtime ends.
    fn give_up(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> bool {
        self.round.fetch_add(1, Ordering::SeqCst);
        let (positions, given_up) = (Arc::clone(&self.positions), partitions(list));
        let told = self.wait_for(async move { positions.revoked(given_up).await });
        if let Err(error) = consumer.unassign() {
            tracing::warn!(%error, "partitions could not be given up");
        }
        told.is_some()
    }

    /// Blocks this thread while the runtime does it; `None` if that is shut down meanwhile.
    fn wait_for<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let _ = done.send(work.await);
        });
        result.recv().ok()
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    let elements = list.elements();
    let partition = |e: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| Partition {
        topic: e.topic().to_owned(),
        number: e.partition(),
    };
    elements.iter().map(partition).collect()
}

struct Member {
    /// Closed when the thread has left the group.
    ended: oneshot::Receiver<()>,
    queue: mpsc::Receiver<Item>,
    commits: std::sync::mpsc::Sender<Vec<(Partition, i64)>>,
    behind: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
}

/// Joins a group.
pub(super) async fn subscribe(
    options: &KafkaOptions,
    group: &str,
    topics: &[String],
    positions: Arc<dyn Positions>,
) -> Result<Box<dyn Subscription>> {
    let round = Arc::new(AtomicU64::new(0));
    let context = Context {
        positions,
        runtime: Handle::current(),
        round: Arc::clone(&round),
    };
    let consumer: BaseConsumer<Context> = options
        .for_consumer(group)
        .create_with_context(context)
        .map_err(|e| error("a consumer can't be made", &e))?;
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    consumer
        .subscribe(&names)
        .map_err(|e| error("can't subscribe", &e))?;
    let (items, queue) = mpsc::channel(QUEUE);
    let (commits, wanted) = std::sync::mpsc::channel();
    let behind = Arc::new(AtomicI64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (ending, ended) = oneshot::channel();
    let poller = Poller {
        consumer,
        items,
        wanted,
        round: Arc::clone(&round),
        behind: Arc::clone(&behind),
        stop: Arc::clone(&stop),
        _ended: ending,
    };
    std::thread::Builder::new()
        .name("quorate-kafka".into())
        .spawn(move || poller.run())
        .map_err(|e| Error::new(ErrorKind::Unavailable, format!("a thread: {e}")))?;
    Ok(Box::new(Member {
        ended,
        queue,
        commits,
        behind,
        stop,
    }))
}

struct Poller {
    consumer: BaseConsumer<Context>,
    items: mpsc::Sender<Item>,
    wanted: std::sync::mpsc::Receiver<Vec<(Partition, i64)>>,
    round: Arc<AtomicU64>,
    behind: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
    /// Dropped last: after the consumer has left the group.
    _ended: oneshot::Sender<()>,
}

impl Poller {
    fn run(self) {
        let mut measured = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            while let Ok(next) = self.wanted.try_recv() {
                self.commit(next, CommitMode::Async);
            }
            if measured.elapsed() >= BEHIND_EVERY {
                measured = Instant::now();
                self.measure();
            }
            let item = match self.consumer.poll(POLL) {
                None => continue,
                // A rebalance may have come in this very call; then the message is of it.
                Some(Ok(message)) => Ok(delivery(&message, self.round.load(Ordering::SeqCst))),
                Some(Err(e)) => Err(error("kafka", &e)),
            };
            if !self.hand_over(item) {
                break;
            }
        }
        while let Ok(next) = self.wanted.try_recv() {
            self.commit(next, CommitMode::Sync);
        }
    }

    /// Puts an item into the queue. While that is full, partitions are paused and polling goes on, so that
    /// the group does not take this member for dead. False when nobody listens any more.
    fn hand_over(&self, item: Item) -> bool {
        let mut waiting = match self.items.try_send(item) {
            Ok(()) => return true,
            Err(TrySendError::Closed(_)) => return false,
            Err(TrySendError::Full(item)) => std::collections::VecDeque::from([item]),
        };
        let pause = |on: bool| {
            let held = self.consumer.assignment()?;
            if on {
                self.consumer.pause(&held)
            } else {
                self.consumer.resume(&held)
            }
        };
        if let Err(error) = pause(true) {
            tracing::debug!(%error, "could not pause");
        }
        while let Some(item) = waiting.pop_front() {
            match self.items.try_send(item) {
                Ok(()) => continue,
                Err(TrySendError::Closed(_)) => return false,
                Err(TrySendError::Full(item)) => waiting.push_front(item),
            }
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if let Some(Ok(message)) = self.consumer.poll(Duration::from_millis(5)) {
                let round = self.round.load(Ordering::SeqCst);
                waiting.push_back(Ok(delivery(&message, round)));
                // Of a partition that was assigned meanwhile: it has to wait like the others.
                let _ = pause(true);
            }
        }
        if let Err(error) = pause(false) {
            tracing::debug!(%error, "could not resume");
        }
        true
    }

    fn commit(&self, next: Vec<(Partition, i64)>, mode: CommitMode) {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in next {
            let offset = Offset::Offset(offset);
            let _ = list.add_partition_offset(&partition.topic, partition.number, offset);
        }
        if let Err(error) = self.consumer.commit(&list, mode) {
            tracing::debug!(%error, "positions were not told; they are advisory");
        }
    }

    fn measure(&self) {
        let Ok(positions) = self.consumer.position() else {
            return;
        };
        let mut behind = 0;
        for element in positions.elements() {
            let timeout = Duration::from_secs(1);
            let ends =
                self.consumer
                    .fetch_watermarks(element.topic(), element.partition(), timeout);
            if let (Ok((low, high)), offset) = (ends, element.offset()) {
                let at = match offset {
                    Offset::Offset(at) => at.max(low),
                    _ => low,
                };
                behind += (high - at).max(0);
            }
        }
        self.behind.store(behind, Ordering::Relaxed);
    }
}

fn delivery(message: &BorrowedMessage<'_>, assignment: u64) -> Delivery {
    let headers = message.headers().map_or(Vec::new(), |headers| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        headers
            .iter()
            .map(|h| (h.key.to_owned(), h.value.map_or(String::new(), text)))
            .collect()
    });
    Delivery {
        partition: Partition {
            topic: message.topic().to_owned(),
            number: message.partition(),
        },
        offset: message.offset(),
        assignment,
        key: message
            .key()
            .map(|key| String::from_utf8_lossy(key).into_owned()),
        headers,
        payload: message.payload().unwrap_or_default().to_vec().into(),
    }
}

impl Subscription for Member {
    fn next(&mut self, max: usize, wait: Duration) -> BoxFuture<'_, Result<Vec<Delivery>>> {
        Box::pin(async move {
            let mut found = Vec::new();
            let first = tokio::time::timeout(wait, self.queue.recv()).await;
            let Ok(first) = first else {
                return Ok(found);
            };
            let gone = || Error::new(ErrorKind::Unavailable, "the polling thread has ended");
            let mut item = Some(first.ok_or_else(gone)?);
            while let Some(one) = item {
                match one {
                    Ok(delivery) => found.push(delivery),
                    Err(error) if found.is_empty() => return Err(error),
                    Err(error) => tracing::debug!(%error, "while fetching"),
                }
                item = if found.len() < max {
                    self.queue.try_recv().ok()
                } else {
                    None
                };
            }
            Ok(found)
        })
    }

    fn commit(&mut self, next: Vec<(Partition, i64)>) -> BoxFuture<'_, Result<()>> {
        let sent = self.commits.send(next);
        Box::pin(async move {
            sent.map_err(|_| Error::new(ErrorKind::Unavailable, "the polling thread has ended"))
        })
    }

    fn behind(&mut self) -> BoxFuture<'_, Result<i64>> {
        let behind = self.behind.load(Ordering::Relaxed) + self.queue.len() as i64;
        Box::pin(async move { Ok(behind) })
    }

    fn leave(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.stop.store(true, Ordering::Relaxed);
            // The thread may wait for a place in the queue.
            self.queue.close();
            if tokio::time::timeout(LEAVE, &mut self.ended).await.is_err() {
                tracing::warn!(
                    "the group does not answer; it will notice that this member is gone"
                );
            }
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

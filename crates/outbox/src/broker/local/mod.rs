//! The broker in this process: topics, partitions, groups. In memory, or durable in an SQLite file.
//!
//! In memory it dies with the process, and with it what no consumer has had yet. Durable
//! ([`LocalBroker::durable`], feature `sqlite`), every batch is synced in the file before it is
//! acknowledged. One process at a time may use a file.
//!
//! A partition holds at most [`LocalOptions::capacity`] messages that some group has not committed; past
//! that publishing is refused by `Retry`, and the outbox keeps the messages. What all groups have committed
//! is forgotten. A batch of an older epoch of its part is refused: a relay that was frozen can't even repeat.

#[cfg(feature = "sqlite")]
mod disk;
mod group;
mod log;
mod member;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use self::group::Group;
use self::log::{Log, Record};
use super::{Broker, Closed, Outbatch, Outcomes, Outgoing, Positions, Refusal, Subscription};
use crate::store::BoxFuture;
use crate::{Error, ErrorKind, Partition, Result};

/// Settings of a local broker.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// How many partitions a topic gets when it is made.
    pub partitions: i32,
    /// At most so many uncommitted messages a partition.
    pub capacity: usize,
    /// The largest payload with headers, in bytes; larger ones are poison.
    pub message_bytes: usize,
    /// The topics that there are; `None`: every topic is made when it is first used.
    pub topics: Option<Vec<String>>,
}

impl Default for LocalOptions {
    fn default() -> Self {
        LocalOptions {
            partitions: 4,
            capacity: 100_000,
            message_bytes: 1 << 20,
            topics: None,
        }
    }
}

/// A broker in this process. Cheap to clone.
#[derive(Clone)]
pub struct LocalBroker {
    inner: Arc<Inner>,
}

struct Inner {
    options: LocalOptions,
    state: Mutex<State>,
    /// Something was published, or partitions changed hands.
    news: Notify,
    /// One batch at a time, so that file and memory agree on offsets.
    publishing: tokio::sync::Mutex<()>,
    next_member: AtomicU64,
    next_free: AtomicU64,
    #[cfg(feature = "sqlite")]
    disk: Option<disk::Disk>,
}

#[derive(Default)]
struct State {
    topics: HashMap<String, Vec<Log>>,
    groups: HashMap<String, Group>,
    fences: HashMap<(String, u16), i64>,
    /// The offset at which new partitions begin.
    begin: i64,
}

impl State {
    fn topic(&mut self, name: &str, options: &LocalOptions) -> Option<&mut Vec<Log>> {
        let may = |topics: &Vec<String>| topics.iter().any(|topic| topic == name);
        if !self.topics.contains_key(name) {
            if !options.topics.as_ref().is_none_or(may) {
                return None;
            }
            let logs = (0..options.partitions.max(1)).map(|_| Log::starting_at(self.begin));
            self.topics.insert(name.to_owned(), logs.collect());
        }
        self.topics.get_mut(name)
    }

    /// Forgets what every group that reads the topic has committed.
    fn trim(&mut self, partition: &Partition) -> i64 {
        let groups = self.groups.values();
        let reading = groups.filter(|group| group.reads(&partition.topic));
        let Some(oldest) = reading.map(|g| g.position(partition).unwrap_or(0)).min() else {
            return 0;
        };
        let logs = self.topics.get_mut(&partition.topic);
        if let Some(log) = logs.and_then(|logs| logs.get_mut(partition.number as usize)) {
            log.forget_before(oldest);
        }
        oldest
    }
}

/// A record and where it goes.
struct Placed {
    at: Partition,
    #[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "for the file"))]
    offset: i64,
    record: Record,
}

impl LocalBroker {
    /// A broker that lives in memory.
    pub fn in_memory(options: LocalOptions) -> LocalBroker {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // Offsets go on growing over restarts of the process, so that positions which a consumer's
        // database has kept lie before everything new.
        let begin = now.map_or(0, |now| (now.as_millis() as i64) << 16);
        LocalBroker {
            inner: Arc::new(Inner {
                options,
                state: Mutex::new(State {
                    begin,
                    ..State::default()
                }),
                news: Notify::new(),
                publishing: tokio::sync::Mutex::new(()),
                next_member: AtomicU64::new(1),
                next_free: AtomicU64::new(0),
                #[cfg(feature = "sqlite")]
                disk: None,
            }),
        }
    }

    /// A broker whose messages, positions and fences are in an SQLite file.
    ///
    /// # Errors
    /// `Unavailable` when the file can't be opened; `Schema` when it is another program's or newer.
    #[cfg(feature = "sqlite")]
    pub async fn durable(
        path: impl AsRef<std::path::Path>,
        options: LocalOptions,
    ) -> Result<LocalBroker> {
        let (disk, state) = disk::Disk::open(path.as_ref(), &options).await?;
        let mut broker = LocalBroker::in_memory(options);
        if let Some(inner) = Arc::get_mut(&mut broker.inner) {
            *inner.state.get_mut() = state;
            inner.disk = Some(disk);
        }
        Ok(broker)
    }

    /// Finds a place for each message; refuses those that can't have one.
    fn place(&self, batch: &Outbatch<'_>) -> (Vec<Placed>, Outcomes) {
        let mut state = self.inner.state.lock();
        let mut taken: HashMap<Partition, i64> = HashMap::new();
        let mut placed = Vec::with_capacity(batch.messages.len());
        let mut outcomes = Vec::with_capacity(batch.messages.len());
        let mut closed = Closed::default();
        for message in batch.messages {
            let place = match closed.refusal(message) {
                Some(refusal) => Err(refusal),
                None => self.place_one(&mut state, &mut taken, message),
            };
            outcomes.push(match place {
                Ok(one) => {
                    placed.push(one);
                    Ok(())
                }
                Err(refusal) => {
                    closed.close(message);
                    Err(refusal)
                }
            });
        }
        (placed, outcomes)
    }

    fn place_one(
        &self,
        state: &mut State,
        taken: &mut HashMap<Partition, i64>,
        message: &Outgoing,
    ) -> std::result::Result<Placed, Refusal> {
        let options = &self.inner.options;
        let headers: usize = message.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        let bytes = message.payload.len() + headers;
        if bytes > options.message_bytes {
            let limit = options.message_bytes;
            let text = format!("the message has {bytes} bytes, more than the broker's {limit}");
            return Err(Refusal::Poison(text));
        }
        let Some(logs) = state.topic(&message.topic, options) else {
            let text = format!("there is no topic `{}`", message.topic);
            return Err(Refusal::Poison(text));
        };
        let count = logs.len() as u64;
        let number = match &message.key {
            Some(key) => xxhash_rust::xxh3::xxh3_64(key.as_bytes()) % count,
            None => self.inner.next_free.fetch_add(1, Ordering::Relaxed) % count,
        };
        let log = &logs[number as usize];
        let at = Partition {
            topic: message.topic.clone(),
            number: number as i32,
        };
        let more = taken.entry(at.clone()).or_default();
        // What was refused before keeps the partition closed for the rest of the batch: order.
        if log.len() as i64 + *more >= options.capacity as i64 {
            let text = format!("partition {number} of `{}` is full", message.topic);
            return Err(Refusal::Retry(text));
        }
        let offset = log.end() + *more;
        *more += 1;
        Ok(Placed {
            at,
            offset,
            record: Record {
                key: message.key.clone(),
                headers: message.headers.clone(),
                payload: message.payload.clone(),
            },
        })
    }

    fn fenced(&self, batch: &Outbatch<'_>) -> Option<Refusal> {
        let state = self.inner.state.lock();
        let newest = state
            .fences
            .get(&(batch.source.to_owned(), batch.fence.part));
        let newest = *newest.filter(|epoch| **epoch > batch.fence.epoch)?;
        Some(Refusal::Fenced(format!(
            "part {} has published in epoch {newest}, this is {}",
            batch.fence.part, batch.fence.epoch
        )))
    }

    async fn publish_batch(&self, batch: Outbatch<'_>) -> Outcomes {
        let _one = self.inner.publishing.lock().await;
        if let Some(refusal) = self.fenced(&batch) {
            return vec![Err(refusal); batch.messages.len()];
        }
        let (placed, outcomes) = self.place(&batch);
        #[cfg(feature = "sqlite")]
        if let Some(disk) = &self.inner.disk
            && let Err(error) = disk.append(&batch, &placed).await
        {
            let refusal = Refusal::Retry(format!("the broker's file: {error}"));
            return outcomes
                .into_iter()
                .map(|outcome| outcome.and(Err(refusal.clone())))
                .collect();
        }
        let mut state = self.inner.state.lock();
        let fence = (batch.source.to_owned(), batch.fence.part);
        state.fences.insert(fence, batch.fence.epoch);
        for one in placed {
            if let Some(logs) = state.topics.get_mut(&one.at.topic) {
                logs[one.at.number as usize].push(one.record);
            }
        }
        drop(state);
        self.inner.news.notify_waiters();
        outcomes
    }

    async fn commit(&self, group: &str, next: Vec<(Partition, i64)>) -> Result<()> {
        let mut oldest = Vec::new();
        {
            let mut state = self.inner.state.lock();
            for (partition, offset) in &next {
                if let Some(group) = state.groups.get_mut(group) {
                    group.commit(partition.clone(), *offset);
                }
                oldest.push((partition.clone(), state.trim(partition)));
            }
        }
        #[cfg(feature = "sqlite")]
        if let Some(disk) = &self.inner.disk {
            disk.commit(group, &next, &oldest).await?;
        }
        Ok(())
    }
}

impl Broker for LocalBroker {
    fn publish<'a>(&'a self, batch: Outbatch<'a>) -> BoxFuture<'a, Outcomes> {
        Box::pin(self.publish_batch(batch))
    }

    fn subscribe<'a>(
        &'a self,
        group: &'a str,
        topics: &'a [String],
        positions: Arc<dyn Positions>,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let id = self.inner.next_member.fetch_add(1, Ordering::Relaxed);
            {
                let mut state = self.inner.state.lock();
                let mut sizes = HashMap::new();
                for topic in topics {
                    let Some(logs) = state.topic(topic, &self.inner.options) else {
                        let text = format!("there is no topic `{topic}`");
                        return Err(Error::new(ErrorKind::Invalid, text));
                    };
                    sizes.insert(topic.clone(), logs.len() as i32);
                }
                let joined = state.groups.entry(group.to_owned()).or_default();
                joined.join(id, sizes);
            }
            self.inner.news.notify_waiters();
            let member = member::Member::new(self.clone(), group.to_owned(), id, positions);
            Ok(Box::new(member) as Box<dyn Subscription>)
        })
    }
}

//! Caches as they are usually written: cache-aside on Redis, with moka before it, with a double delete.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use quorate_bench::cache::{Answer, Fate, PROCESSES, Point, Reach, Subject, Truth, Write};
use quorate_kv::BoxFuture;
use redis::AsyncCommands;
use redis::aio::ConnectionManager;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// As tables call it.
    pub name: &'static str,
    has_local: bool,
    deletes_twice: bool,
}

/// All of them.
pub const KINDS: [Kind; 3] = [
    Kind {
        name: "naive: redis",
        has_local: false,
        deletes_twice: false,
    },
    Kind {
        name: "naive: moka+redis",
        has_local: true,
        deletes_twice: false,
    },
    Kind {
        name: "naive: moka+redis, double delete",
        has_local: true,
        deletes_twice: true,
    },
];

/// How long after the first the second deletion comes.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const TTL_SECONDS: u64 = 300;

type Local = moka::future::Cache<usize, Option<Bytes>>;

struct Process {
    local: Option<Local>,
    redis: ConnectionManager,
}

/// One of them, in several processes.
pub struct Naive {
    shared: Arc<Shared>,
}

struct Shared {
    kind: Kind,
    processes: Vec<Process>,
    truth: Arc<Truth>,
    prefix: String,
}

impl Naive {
    /// Over a Redis at a URL, with what others do not use before its keys.
    pub async fn connect(
        kind: Kind,
        truth: &Arc<Truth>,
        url: &str,
        prefix: &str,
        local_ttl: Duration,
    ) -> anyhow::Result<Naive> {
        let mut processes = Vec::new();
        for _ in 0..PROCESSES {
            let local = || {
                Local::builder()
                    .max_capacity(100_000)
                    .time_to_live(local_ttl)
                    .build()
            };
            processes.push(Process {
                local: kind.has_local.then(local),
                redis: ConnectionManager::new(redis::Client::open(url)?).await?,
            });
        }
        let shared = Shared {
            kind,
            processes,
            truth: truth.clone(),
            prefix: prefix.to_owned(),
        };
        Ok(Naive {
            shared: Arc::new(shared),
        })
    }
}

impl Shared {
    fn name(&self, key: usize) -> String {
        format!("{}{key}", self.prefix)
    }

    /// From Redis, else from the source. Where Redis fails, the source answers.
    async fn load(&self, process: usize, key: usize, is_miss: &AtomicBool) -> Option<Bytes> {
        let weather = self.truth.weather();
        let mut redis = self.processes[process].redis.clone();
        if !weather.is_down() {
            let found: Option<Bytes> = redis.get(self.name(key)).await.unwrap_or_default();
            weather.pass(Point::Looked).await;
            if found.is_some() {
                return found;
            }
        }
        is_miss.store(true, Relaxed);
        let (value, _, _) = self.truth.fetch(key, false).await;
        weather.pass(Point::Put).await;
        if let Some(value) = value.as_ref().filter(|_| !weather.is_down()) {
            let set = redis
                .set_ex(self.name(key), value.as_ref(), TTL_SECONDS)
                .await;
            set.unwrap_or_default()
        }
        value
    }

    /// Errors are not looked at, as is usual.
    async fn delete(self: &Arc<Self>, process: usize, key: usize) {
        let weather = self.truth.weather();
        weather.pass(Point::Invalidate).await;
        let fate = weather.fate();
        if !weather.is_down() && fate != Fate::Lost {
            self.delete_remote(process, key).await;
        }
        if let Fate::Twice(later) = fate {
            let shared = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(later).await;
                shared.delete_remote(process, key).await;
            });
        }
        if let Some(local) = &self.processes[process].local {
            local.invalidate(&key).await;
        }
    }

    async fn delete_remote(&self, process: usize, key: usize) {
        let mut redis = self.processes[process].redis.clone();
        redis.del(self.name(key)).await.unwrap_or_default()
    }
}

impl Subject for Naive {
    fn get(&self, process: usize, key: usize) -> BoxFuture<'_, Result<Answer, String>> {
        Box::pin(async move {
            let is_miss = AtomicBool::new(false);
            let load = self.shared.load(process, key, &is_miss);
            let value = match &self.shared.processes[process].local {
                Some(local) => local.get_with(key, load).await,
                None => load.await,
            };
            Ok(Answer {
                value,
                is_miss: is_miss.load(Relaxed),
            })
        })
    }

    fn put<'a>(&'a self, write: &'a Write) -> BoxFuture<'a, Result<Reach, String>> {
        Box::pin(async move {
            let shared = &self.shared;
            if shared.kind.deletes_twice {
                shared.delete(write.process, write.key).await;
            }
            shared.truth.commit(write).await;
            if shared.kind.deletes_twice {
                let (shared, process, key) = (shared.clone(), write.process, write.key);
                tokio::spawn(async move {
                    tokio::time::sleep(AGAIN_AFTER).await;
                    shared.delete(process, key).await;
                });
            } else {
                shared.delete(write.process, write.key).await;
            }
            Ok(Reach::All)
        })
    }
}

//! The remote tier as a cache calls it: in bounded time, and not while it fails.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::breaker::Breaker;
use super::options::micros;
use super::stats::{Counters, count};
use super::{CacheOptions, Tier};
use crate::core::{Cached, Invalidation, Looked, Mark, Put};
use crate::{Error, ErrorKind, Result};

pub(super) struct Remote {
    tier: Arc<dyn Tier>,
    breaker: Mutex<Breaker>,
    timeout: Duration,
    began: Instant,
    counters: Arc<Counters>,
}

impl Remote {
    pub fn new(tier: Arc<dyn Tier>, options: &CacheOptions, counters: Arc<Counters>) -> Self {
        let pause = micros(options.breaker_pause);
        Remote {
            tier,
            breaker: Mutex::new(Breaker::new(options.breaker_failures, pause)),
            timeout: options.remote_timeout,
            began: Instant::now(),
            counters,
        }
    }

    /// What is there; `None` when it does not answer.
    pub async fn look(&self, key: &Bytes) -> Option<Looked<Bytes>> {
        self.if_admitted(|| self.tier.look(key)).await
    }

    /// What became of a fill; `None` when that is not known.
    pub async fn put(&self, key: &Bytes, mark: Mark, cached: Cached<Bytes>) -> Option<Put> {
        self.if_admitted(|| self.tier.put(key, mark, cached)).await
    }

    /// Is tried whatever the breaker says: what is not invalidated is served to others.
    pub async fn invalidate(&self, key: &Bytes, invalidation: Invalidation) -> Result<()> {
        self.call(self.tier.invalidate(key, invalidation)).await
    }

    /// The same for all keys. May take as long as there are many.
    pub async fn clear(&self) -> Result<()> {
        self.tier.clear().await
    }

    async fn if_admitted<T, F>(&self, call: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = Result<T>>,
    {
        if !self.breaker.lock().admits(self.now()) {
            count(&self.counters.remote_skips);
            return None;
        }
        self.call(call()).await.ok()
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let late = || Error::new(ErrorKind::Timeout, "the remote tier did not answer in time");
        let done = match timeout(self.timeout, call).await {
            Ok(done) => done,
            Err(_) => Err(late().outcome_unknown()),
        };
        match &done {
            Ok(_) => self.breaker.lock().succeeded(),
            Err(error) => {
                let failures = self.counters.remote_failures.fetch_add(1, Relaxed);
                if failures.is_power_of_two() {
                    tracing::warn!(failures, %error, "the remote tier fails");
                }
                self.breaker.lock().failed(self.now());
            }
        }
        done
    }

    fn now(&self) -> u64 {
        micros(self.began.elapsed())
    }
}

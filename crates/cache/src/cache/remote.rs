//! The remote tier as a cache calls it: in bounded time, not while it fails, and not about what it was not told.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::breaker::Breaker;
use super::options::micros;
use super::stats::{Counters, count};
use super::untold::{Repeat, Untold};
use super::{CacheOptions, Tier};
use crate::core::{Cached, Invalidation, Looked, Mark, Put};
use crate::tier::Lease;
use crate::{Error, ErrorKind, Result};

/// Between two repetitions.
const PAUSE_MIN: Duration = Duration::from_millis(10);

#[derive(Clone)]
pub(super) struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    tier: Arc<dyn Tier>,
    breaker: Mutex<Breaker>,
    untold: Mutex<Untold>,
    timeout: Duration,
    pause: Duration,
    began: Instant,
    counters: Arc<Counters>,
}

impl Remote {
    pub fn new(tier: Arc<dyn Tier>, options: &CacheOptions, counters: Arc<Counters>) -> Self {
        let pause = micros(options.breaker_pause);
        let inner = Inner {
            tier,
            breaker: Mutex::new(Breaker::new(options.breaker_failures, pause)),
            untold: Mutex::default(),
            timeout: options.remote_timeout,
            pause: options.breaker_pause.max(PAUSE_MIN),
            began: Instant::now(),
            counters,
        };
        Remote {
            inner: Arc::new(inner),
        }
    }

    /// What is there; `None` when it does not answer, or has not been told all.
    pub async fn look(&self, key: &Bytes) -> Option<Looked<Bytes>> {
        let inner = &self.inner;
        inner.if_admitted(key, || inner.tier.look(key)).await
    }

    /// What became of a fill; `None` when that is not known.
    pub async fn put(&self, key: &Bytes, mark: Mark, cached: Cached<Bytes>) -> Option<Put> {
        let inner = &self.inner;
        inner
            .if_admitted(key, || inner.tier.put(key, mark, cached))
            .await
    }

    /// Who loads a key; `None` when that is not known.
    pub async fn lease(&self, key: &Bytes, mark: Mark, ttl: Duration) -> Option<Lease> {
        let inner = &self.inner;
        inner
            .if_admitted(key, || inner.tier.lease(key, mark, ttl))
            .await
    }

    /// Ends a lease; if that fails, it ends by itself.
    pub async fn release(&self, key: &Bytes, mark: Mark, number: u64) {
        let inner = &self.inner;
        inner
            .if_admitted(key, || inner.tier.release(key, mark, number))
            .await;
    }

    /// Is tried whatever the breaker says: what is not invalidated is served to others. If it fails it is noted,
    /// and repeated in the background.
    pub async fn invalidate(&self, key: &Bytes, invalidation: Invalidation) -> Result<()> {
        let inner = &self.inner;
        let done = inner.call(inner.tier.invalidate(key, invalidation)).await;
        if done.is_err() {
            let begins = {
                let mut untold = inner.untold.lock();
                untold.note(key, invalidation);
                !std::mem::replace(&mut untold.is_repeating, true)
            };
            if begins {
                tokio::spawn(inner.clone().repeat());
            }
        }
        done
    }

    /// Drops all. May take as long as there is much.
    pub async fn clear(&self) -> Result<()> {
        let notes = self.inner.untold.lock().notes();
        self.inner.tier.clear().await?;
        self.inner.untold.lock().cleared(notes);
        Ok(())
    }
}

impl Inner {
    /// Tells what could not be told, until all is.
    async fn repeat(self: Arc<Self>) {
        let pause = self.pause.min(Duration::from_secs(60));
        sleep(pause).await;
        loop {
            let next = {
                let mut untold = self.untold.lock();
                let next = untold.next();
                untold.is_repeating = next.is_some();
                next
            };
            let Some((repeat, note)) = next else {
                return;
            };
            let done = match &repeat {
                Repeat::Key(key, invalidation) => {
                    self.call(self.tier.invalidate(key, *invalidation)).await
                }
                Repeat::All => self.tier.clear().await,
            };
            match done {
                Ok(()) => self.untold.lock().told(&repeat, note),
                Err(_) => sleep(pause).await,
            }
        }
    }

    async fn if_admitted<T, F>(&self, key: &Bytes, call: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = Result<T>>,
    {
        let is_trusted = self.untold.lock().is_trusted(key);
        if !is_trusted || !self.breaker.lock().admits(self.now()) {
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

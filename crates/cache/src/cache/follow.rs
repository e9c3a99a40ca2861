//! Following: the tier of this process hears of what others wrote, and is believed only as long as that is proven.

use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::options::micros;
use super::stats::count;
use super::{Cache, Inner};
use crate::core::planted::{self, Bug};
use crate::core::{Feed, Heard, Invalidation, Told, is_believed};
use crate::invalidations::Invalidations;
use crate::tier::Memory;
use crate::{Error, ErrorKind, Result};

/// After a failure nothing is asked for so long.
const PAUSE: Duration = Duration::from_millis(50);
/// After an answer messages are gathered for so long, so that many writes are few questions.
const GATHER: Duration = Duration::from_millis(2);
/// A question is given up when this many times what it may wait has passed.
const PATIENCE: u32 = 3;

/// How a cache follows what others write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowOptions {
    /// For so long after it was last proven that all was heard the tier of this process is believed (1 s); afterwards
    /// reads go on to the next tier until it is proven again. A quarter of it is the longest that a question waits.
    /// `Duration::MAX`: it is believed even if nothing is heard any more, up to `local_ttl`.
    pub staleness_max: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        FollowOptions {
            staleness_max: Duration::from_secs(1),
        }
    }
}

impl Cache {
    /// Hears from now on of what others wrote, for as long as the cache lives.
    ///
    /// A read that begins `staleness_max` after a write of another process was told is answered by the tier of this
    /// process only if it has that write. Until it is first proven what there
    /// is to hear, and whenever it is not, that tier is not read. Messages that were missed empty it. Of several that
    /// are followed, each has to be heard.
    ///
    /// Does nothing but end, if there is no tier in this process.
    ///
    /// # Errors
    /// `Invalid`: `staleness_max` is below a millisecond, or this is called outside of a tokio runtime.
    pub fn follow(&self, of: impl Invalidations, options: FollowOptions) -> Result<()> {
        if options.staleness_max < Duration::from_millis(1) {
            let message = "`staleness_max` is to be at least a millisecond";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let runtime = Handle::try_current().map_err(|error| {
            let message = format!("a cache follows within a tokio runtime: {error}");
            Error::new(ErrorKind::Invalid, message)
        })?;
        if self.inner.local.is_none() {
            return Ok(());
        }
        let place = {
            let mut until = self.inner.followed.lock();
            until.push(0);
            self.inner.believed_until.store(0, Release);
            until.len() - 1
        };
        let follower = Follower {
            inner: Arc::downgrade(&self.inner),
            place,
            feed: Feed::default(),
            staleness_max: options.staleness_max,
        };
        runtime.spawn(follower.run(of));
        Ok(())
    }

    /// Whether the tier of this process is read now: true unless it [follows](Cache::follow) and it is not proven that
    /// all was heard.
    pub fn is_local_believed(&self) -> bool {
        self.inner.believes_local(self.inner.now())
    }
}

impl Inner {
    /// Whether the local tier is read at a time of its clock.
    pub fn believes_local(&self, now: u64) -> bool {
        is_believed(self.believed_until.load(Acquire), now)
    }

    /// Notes what another process did. The remote tier knows.
    fn hear(&self, key: &Bytes, invalidation: Invalidation) {
        if let Invalidation::At(version) = invalidation {
            self.learn_epoch(version);
        }
        if let Some(local) = &self.local {
            local.invalidate_now(key, invalidation);
        }
        // Whoever waits is told that the load was overtaken; who comes later need not wait for that.
        self.detach(key);
        count(&self.counters.heard);
    }

    fn hear_all(&self) {
        self.local.iter().for_each(Memory::clear_now);
        self.flights.detach_all();
    }

    /// Believes the local tier until the earliest time of those that are followed.
    fn believe(&self, place: usize, until: u64) {
        let mut followed = self.followed.lock();
        if let Some(of_this) = followed.get_mut(place) {
            *of_this = until.max(*of_this);
        }
        let earliest = followed.iter().min().copied().unwrap_or(u64::MAX);
        self.believed_until.store(earliest, Release);
    }
}

struct Follower {
    inner: Weak<Inner>,
    place: usize,
    feed: Feed,
    staleness_max: Duration,
}

impl Follower {
    async fn run(mut self, mut of: impl Invalidations) {
        let wait = (self.staleness_max / 4).min(Duration::from_secs(10));
        loop {
            let Some(asked) = self.inner.upgrade().map(|inner| inner.now()) else {
                return;
            };
            let question = of.after(self.feed.position(), wait);
            let patience = wait.saturating_mul(PATIENCE).max(Duration::from_secs(5));
            let answer = timeout(patience, question).await.unwrap_or_else(|_| {
                let message = format!("no answer within {patience:?}");
                Err(Error::new(ErrorKind::Timeout, message))
            });
            let Some(inner) = self.inner.upgrade() else {
                return;
            };
            match answer {
                Ok(batch) => {
                    let is_late = planted::is_on(Bug::FeedProvesTheTimeOfTheAnswer);
                    let asked = if is_late { inner.now() } else { asked };
                    let heard = self.feed.take(batch, asked);
                    // There is more at once, or nothing new, however fast that was answered.
                    let hurries = !heard.told.is_empty() && heard.proven.is_none();
                    self.carry_out(&inner, heard);
                    drop(inner);
                    if !hurries {
                        sleep(GATHER.min(wait)).await;
                    }
                }
                Err(error) => {
                    count(&inner.counters.follow_failures);
                    tracing::debug!(%error, "what others write is not heard for now");
                    drop(inner);
                    sleep(PAUSE.min(wait)).await;
                }
            }
        }
    }

    fn carry_out(&self, inner: &Inner, heard: Heard) {
        let until = heard
            .proven
            .map(|proven| proven.saturating_add(micros(self.staleness_max)));
        if let Some(until) = until.filter(|_| planted::is_on(Bug::FeedProvesBeforeItIsDone)) {
            inner.believe(self.place, until);
        }
        if heard.is_gap {
            count(&inner.counters.gaps);
        }
        for told in heard.told {
            match told {
                Told::Key(key, invalidation) => inner.hear(&key, invalidation),
                Told::All => inner.hear_all(),
                Told::Nothing => {}
            }
        }
        if let Some(until) = until {
            inner.believe(self.place, until);
        }
    }
}

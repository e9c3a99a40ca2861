//! Reading: from the tier of this process, else by a flight; what has expired where that is allowed.

use std::fmt::Display;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout, timeout_at};

use super::fill::Answer;
use super::options::micros;
use super::stats::count;
use super::{Cache, Inner};
use crate::core::planted::{self, Bug};
use crate::core::{Cached, Want};
use crate::{Error, ErrorKind, Level, Origin, Read, Result};

/// What the tier of this process can do for a read.
enum Local {
    Fresh(Read),
    /// It has expired; to be served at once, or only if nothing better comes.
    Stale(Read, When),
    Nothing,
}

#[derive(PartialEq, Eq)]
enum When {
    AtOnce,
    InNeed,
}

impl Cache {
    /// Reads one key.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge`, `WrongDomain`: the key or token can't be. `Behind`: the source has nothing new
    /// enough. `Timeout`, `Unavailable`, `Panicked` and whatever the source says: nothing could be loaded, and
    /// nothing that may be served is there.
    pub async fn get(&self, key: impl AsRef<[u8]>, level: Level) -> Result<Read> {
        let key = key.as_ref();
        match self.inner.meter.as_ref().filter(|meter| meter.is_due()) {
            Some(meter) => Box::pin(self.get_measured(meter, key, level)).await,
            None => self.get_unmeasured(key, level).await,
        }
    }

    pub(super) async fn get_unmeasured(&self, key: &[u8], level: Level) -> Result<Read> {
        let inner = &self.inner;
        inner.check_key_length(key)?;
        let want = inner.want(level)?;
        let is_lax = matches!(level, Level::Any | Level::BoundedStale(_))
            || planted::is_on(Bug::StaleIsServedAtAnyLevel);
        let stale = match inner.read_local(key, &want, is_lax) {
            Local::Fresh(read) => return Ok(read),
            Local::Stale(read, When::AtOnce) => {
                inner.refresh(Bytes::copy_from_slice(key), want);
                return Ok(inner.serve_stale(read));
            }
            Local::Stale(read, When::InNeed) => Some(read),
            Local::Nothing => None,
        };
        let key = Bytes::copy_from_slice(key);
        let falls_back = is_lax && stale.is_none() && inner.falls_back();
        match falls_back {
            true => inner.read_or_fall_back(key, want).await,
            false => inner.read_through(key, want, stale).await,
        }
    }

    /// Reads several keys at once; each has its own answer, in the order of the keys.
    pub async fn get_many<K: AsRef<[u8]>>(&self, keys: &[K], level: Level) -> Vec<Result<Read>> {
        join_all(keys.iter().map(|key| self.get(key, level))).await
    }

    /// Reads one key and decodes its value. What a tier has and can't be decoded, as of an older program, is
    /// counted and loaded anew.
    ///
    /// # Errors
    /// As [`get`](Cache::get); `Undecodable` if what the source has can't be decoded.
    pub async fn get_as<T, E: Display>(
        &self,
        key: impl AsRef<[u8]>,
        level: Level,
        decode: impl Fn(&Bytes) -> std::result::Result<T, E>,
    ) -> Result<Read<T>> {
        let mut read = self.get(&key, level).await?;
        let mut decoded = read.value.as_ref().map(&decode).transpose();
        if decoded.is_err() && read.tier != Origin::Source {
            count(&self.inner.counters.undecodable);
            read = self.get(&key, Level::Linearizable).await?;
            decoded = read.value.as_ref().map(&decode).transpose();
        }
        let value = decoded.map_err(|error| {
            let message = format!("the source's value can't be decoded: {error}");
            Error::new(ErrorKind::Undecodable, message)
        })?;
        Ok(Read {
            value,
            version: read.version,
            seen: read.seen,
            tier: read.tier,
            age: read.age,
            is_stale: read.is_stale,
        })
    }
}

impl Inner {
    fn read_local(self: &Arc<Self>, key: &[u8], want: &Want, is_lax: bool) -> Local {
        let Some(local) = &self.local else {
            return Local::Nothing;
        };
        // First whether it is believed, then what is there: a proof that comes in between is not of what was there.
        if !self.believes_local(self.now()) {
            count(&self.counters.unproven_reads);
            return Local::Nothing;
        }
        let Some(cached) = local.peek_under(key, &self.tags(key)) else {
            return Local::Nothing;
        };
        let now = self.now();
        if !want.is_met(&cached, now) {
            return Local::Nothing;
        }
        let expires = cached.expires;
        let read = read_of(cached, Origin::Local, now);
        if now < expires {
            count(&self.counters.hits_local);
            if expires - now < micros(self.options.refresh_ahead) {
                // From the source, not from a tier that may have the same.
                let latest = Want {
                    latest: true,
                    ..*want
                };
                self.refresh(Bytes::copy_from_slice(key), latest);
            }
            return Local::Fresh(read);
        }
        let within = |window: Duration| is_lax && now - expires < micros(window);
        if within(self.options.stale_while_revalidate) {
            return Local::Stale(read, When::AtOnce);
        }
        if within(self.options.fail_safe) {
            return Local::Stale(read, When::InNeed);
        }
        Local::Nothing
    }

    /// Loads in the background, unless that is under way.
    fn refresh(self: &Arc<Self>, key: Bytes, want: Want) {
        if let Some(takeoff) = self.flights.join(&key, want, false).takeoff {
            let patience = self.options.soft_timeout;
            tokio::spawn(self.clone().fly(takeoff, patience));
        }
    }

    fn serve_stale(&self, read: Read) -> Read {
        count(&self.counters.stale_served);
        Read {
            is_stale: true,
            ..read
        }
    }

    async fn read_through(
        self: &Arc<Self>,
        key: Bytes,
        want: Want,
        stale: Option<Read>,
    ) -> Result<Read> {
        let patience = match stale {
            Some(_) => self.options.soft_timeout.min(self.options.hard_timeout),
            None => self.options.hard_timeout,
        };
        let deadline = Instant::now() + patience.min(Duration::from_secs(86_400));
        let flown = timeout_at(deadline, self.fly_for(key, want)).await;
        match (flown, stale) {
            (Ok(Ok(answer)), _) => Ok(read_of(answer.cached, answer.tier, self.now())),
            (_, Some(stale)) => Ok(self.serve_stale(stale)),
            (Ok(Err(error)), None) => Err(error),
            (Err(_), None) => {
                let message = format!("nothing was there within {patience:?}; the load goes on");
                Err(Error::new(ErrorKind::Timeout, message))
            }
        }
    }

    /// Whether what has expired in the remote tier may be served in need.
    fn falls_back(&self) -> bool {
        self.remote.is_some() && !self.options.fail_safe.is_zero()
    }

    /// Reads through, and serves what has expired in the remote tier if that fails or does not answer soon.
    async fn read_or_fall_back(self: &Arc<Self>, key: Bytes, want: Want) -> Result<Read> {
        let mut reading = pin!(self.read_through(key.clone(), want, None));
        let soon = timeout(self.options.soft_timeout, &mut reading).await;
        if let Ok(Ok(read)) = soon {
            return Ok(read);
        }
        if let Some((cached, tier)) = self.expired_in_remote(&key, want).await {
            let now = self.now();
            let is_expired = cached.expires <= now;
            let read = read_of(cached, tier, now);
            return Ok(if is_expired {
                self.serve_stale(read)
            } else {
                read
            });
        }
        match soon {
            Ok(failed) => failed,
            Err(_) => reading.await,
        }
    }

    /// What a flight finds that will do: one that is under way, else one that has not begun yet.
    async fn fly_for(self: &Arc<Self>, key: Bytes, want: Want) -> Result<Answer> {
        let joins_what_runs = planted::is_on(Bug::LinearizableJoinsWhatRuns);
        // While it is not known what others wrote, who comes later has no part in what was asked for before.
        let is_heard = self.believes_local(self.now()) || planted::is_on(Bug::UnprovenIsJoined);
        let mut as_member = (want.latest && !joins_what_runs) || !is_heard;
        loop {
            let joined = self.flights.join(&key, want, as_member);
            match joined.takeoff {
                Some(takeoff) => {
                    let patience = self.options.soft_timeout;
                    tokio::spawn(self.clone().fly(takeoff, patience));
                }
                None => count(&self.counters.joins),
            }
            let answer = joined.flight.outcome().await?;
            let will_do = || answer.is_shared && want.is_met(&answer.cached, self.now());
            if joined.is_member || will_do() || (want.latest && joins_what_runs) {
                return Ok(answer);
            }
            as_member = true;
        }
    }
}

fn read_of(cached: Cached<Bytes>, tier: Origin, now: u64) -> Read {
    let age = cached.as_of.map(|as_of| now.saturating_sub(as_of));
    Read {
        value: cached.value,
        version: cached.version,
        seen: cached.seen,
        tier,
        age: age.map(Duration::from_micros),
        is_stale: false,
    }
}

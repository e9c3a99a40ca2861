//! A flight's work: what [`Fill`] says to do is done here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use tokio::time::{Instant, sleep, timeout};

use super::Inner;
use super::flights::Takeoff;
use super::options::micros;
use super::remote::Remote;
use super::stats::count;
use crate::core::planted::{self, Bug};
use crate::core::{Cached, Fill, Looked, Mark, Put, Refused, Step, TagMarks, Want};
use crate::source::Stamped;
use crate::tier::Lease;
use crate::{Error, ErrorKind, Need, Origin, Result, Version};

/// What a flight found.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// By the local clock.
    pub cached: Cached<Bytes>,
    pub tier: Origin,
    /// Whether it may be given to those who joined after it was asked for.
    pub is_shared: bool,
}

/// What is on its way into the tiers.
pub(super) struct Found {
    pub value: Option<Bytes>,
    pub version: Version,
    pub seen: Version,
    /// When a tier has it expire, by the local clock; `None` for what was loaded.
    pub expires: Option<u64>,
}

/// How often a process looks whether another one has loaded.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// A fill's lease, or its waiting for another's.
#[derive(Default)]
struct Leased {
    since: Option<Instant>,
    has_waited: bool,
    granted: Option<(Mark, u64)>,
}

impl Inner {
    /// Runs a flight to its end. What ran before it may end first, but need not.
    pub async fn fly(self: Arc<Self>, mut takeoff: Takeoff, patience: Duration) {
        if let Some(before) = takeoff.before.take() {
            let _ = timeout(patience, before.outcome()).await;
        }
        let want = takeoff.run();
        let outcome = self.fill(&takeoff, want).await;
        if let Err(error) = &outcome {
            count(&self.counters.load_failures);
            tracing::debug!(%error, "a load failed");
        }
        takeoff.land(outcome);
    }

    async fn fill(&self, takeoff: &Takeoff, want: Want) -> Result<Answer> {
        let mut fill = self.begin_fill(want);
        let mut lease = Leased::default();
        let done = self.fill_leased(takeoff, want, &mut fill, &mut lease).await;
        if let (Some(remote), Some((mark, number))) = (&self.remote, lease.granted)
            && !fill.is_installed_remotely()
        {
            // Nothing came of it: another process may load.
            remote.release(takeoff.key(), mark, number).await;
        }
        done
    }

    async fn fill_leased(
        &self,
        takeoff: &Takeoff,
        want: Want,
        fill: &mut Fill,
        lease: &mut Leased,
    ) -> Result<Answer> {
        let key = takeoff.key();
        let mut found = None;
        let mut tier = Origin::Source;
        loop {
            match fill.step() {
                Step::LookLocal => {
                    if let Some(answer) = self.look_local(key, want, fill) {
                        return Ok(answer);
                    }
                }
                Step::LookRemote => {
                    if let Some(cached) = self.look_remote(key, fill).await {
                        count(&self.counters.hits_remote);
                        tier = Origin::Remote;
                        found = Some(Found::in_tier(cached));
                    }
                }
                Step::Load(need) => {
                    if self.waits_for_another(key, want, fill, lease).await {
                        fill.look_again();
                        continue;
                    }
                    found = self.load(key, need, fill).await?;
                }
                Step::Done => break,
                step => {
                    if self.local.is_none() && !planted::is_on(Bug::WhatIsPutIsJoined) {
                        // Between the put and its answer the key may be invalidated by another process.
                        takeoff.close();
                    }
                    if let Some(found) = &found {
                        self.put(key, step, fill, found).await;
                    }
                }
            }
        }
        let found = found.ok_or_else(|| Error::new(ErrorKind::Behind, "nothing was found"))?;
        Ok(self.answer(found, fill, tier))
    }

    pub fn begin_fill(&self, want: Want) -> Fill {
        let base = *self.base.lock();
        let (has_local, has_remote) = (self.local.is_some(), self.remote.is_some());
        Fill::new(want, base, self.now(), has_local, has_remote)
    }

    /// Registers, and answers if another flight has filled it meanwhile.
    pub fn look_local(&self, key: &Bytes, want: Want, fill: &mut Fill) -> Option<Answer> {
        let local = self.local.as_ref()?;
        // Before it is looked at, as in `read_local`.
        let is_believed = self.believes_local(self.now());
        let tags = self.tags(key);
        let tags: Vec<_> = tags.iter().map(|tag| local.look_now(tag)).collect();
        let looked = local.look_now(key).under(&tags);
        fill.looked_local(&looked);
        let cached = want.fresh_in(&looked)?;
        is_believed.then_some(Answer {
            cached,
            tier: Origin::Local,
            is_shared: true,
        })
    }

    pub async fn look_remote(&self, key: &Bytes, fill: &mut Fill) -> Option<Cached<Bytes>> {
        let looked = match &self.remote {
            Some(remote) => look_under(remote, key, &self.tags(key)).await,
            None => None,
        };
        fill.looked_remote(looked.as_ref())
    }

    /// What the tiers have by now; of the remote one, what has expired too, within what `fail_safe` allows.
    pub async fn expired_in_remote(
        &self,
        key: &Bytes,
        want: Want,
    ) -> Option<(Cached<Bytes>, Origin)> {
        let remote = self.remote.as_ref()?;
        let mut fill = self.begin_fill(want);
        if let Some(answer) = self.look_local(key, want, &mut fill) {
            return Some((answer.cached, answer.tier));
        }
        let looked = look_under(remote, key, &self.tags(key)).await?;
        let cached = fill.expired_in(&looked, micros(self.options.fail_safe))?;
        Some((cached, Origin::Remote))
    }

    /// Whether another process is loading the key. Then some time has passed, and it is to be looked at again. Who has
    /// to have the newest state does not wait for another's.
    async fn waits_for_another(
        &self,
        key: &Bytes,
        want: Want,
        fill: &Fill,
        lease: &mut Leased,
    ) -> bool {
        let ttl = self.options.load_lease;
        let (Some(remote), Some(mark)) = (&self.remote, fill.remote_mark()) else {
            return false;
        };
        let since = *lease.since.get_or_insert_with(Instant::now);
        if want.latest || lease.granted.is_some() || since.elapsed() >= ttl {
            return false;
        }
        match remote.lease(key, mark, ttl).await {
            Some(Lease::Held(left)) => {
                if !std::mem::replace(&mut lease.has_waited, true) {
                    count(&self.counters.lease_waits);
                }
                sleep(left.min(LOOK_PAUSE)).await;
                true
            }
            Some(Lease::Granted(number)) => {
                lease.granted = Some((mark, number));
                false
            }
            None => false,
        }
    }

    /// Asks the source. `None`: what it gave is too old, and it is to be asked for the newest.
    async fn load(&self, key: &Bytes, need: Need, fill: &mut Fill) -> Result<Option<Found>> {
        count(&self.counters.loads);
        let patience = self.options.load_timeout;
        let stamped = match timeout(patience, self.source.load(key, need)).await {
            Ok(stamped) => stamped?,
            Err(_) => {
                let message = format!("the source did not answer within {patience:?}");
                return Err(Error::new(ErrorKind::Timeout, message));
            }
        };
        let found = Found::loaded(&stamped);
        match fill.loaded(found.seen, stamped.lag.map(micros)) {
            Ok(()) => {
                self.learn_epoch(found.seen);
                Ok(Some(found))
            }
            Err(refused) if fill.step() == Step::Done => Err(behind(refused)),
            Err(_) => Ok(None),
        }
    }

    /// A version of a new epoch tells of a failover.
    pub fn learn_epoch(&self, seen: Version) {
        let known = self.base.lock().epoch;
        if seen.epoch > known {
            tracing::info!(known, epoch = seen.epoch, "the source has a new epoch");
            self.raise(Version::epoch(seen.epoch));
        }
    }

    /// Puts into the tier of a step, unless it is too large or is not to be kept.
    pub async fn put(&self, key: &Bytes, step: Step, fill: &mut Fill, found: &Found) {
        let bytes = found.value.as_ref().map_or(0, Bytes::len);
        let is_small = bytes <= self.options.value_bytes_max;
        if !is_small && matches!(step, Step::PutLocal { .. }) {
            count(&self.counters.values_too_large);
        }
        let put = match step {
            Step::PutRemote {
                mark,
                at,
                as_of,
                tags,
            } => {
                let cached = found.cached(as_of, self.expires(found, at, false), tags);
                let put = match &self.remote {
                    Some(remote) if is_small && cached.expires > at => {
                        remote.put(key, mark, cached).await
                    }
                    _ => None,
                };
                fill.put_remote(put);
                put
            }
            Step::PutLocal {
                mark,
                at,
                as_of,
                tags,
            } => {
                let cached = found.cached(as_of, self.expires(found, at, true), tags);
                let put = match &self.local {
                    Some(local) if is_small && cached.expires > at => {
                        local.put_now(key, mark, cached)
                    }
                    _ => Put::Stored,
                };
                fill.put_local(put);
                Some(put)
            }
            _ => None,
        };
        if put.is_some_and(|put| put != Put::Stored) {
            count(&self.counters.fills_refused);
        }
    }

    /// When something expires that was looked for at a time.
    fn expires(&self, found: &Found, at: u64, is_local: bool) -> u64 {
        let is_there = found.value.is_some();
        let ttl = self.options.ttl_us(is_there, is_local, self.chance());
        let expires = at.saturating_add(ttl);
        found
            .expires
            .map_or(expires, |in_tier| expires.min(in_tier))
    }

    fn answer(&self, found: Found, fill: &Fill, tier: Origin) -> Answer {
        // Without a tier of its own, a process promises that others' invalidations are seen at once: so who came
        // after the question may have only what the remote tier has taken since. Of tags it does not say that.
        let is_sure = match (&self.remote, &self.local) {
            (Some(_), None) => {
                (fill.is_installed_remotely() && !fill.has_remote_tags())
                    || planted::is_on(Bug::UnconfirmedIsShared)
            }
            _ => true,
        };
        Answer {
            cached: found.cached(fill.local_as_of(), 0, None),
            tier,
            is_shared: (is_sure && !fill.is_overtaken()) || planted::is_on(Bug::OvertakenIsShared),
        }
    }
}

impl Found {
    fn loaded(stamped: &Stamped) -> Self {
        Found {
            value: stamped.value.clone(),
            version: stamped.version,
            seen: stamped.seen.max(stamped.version),
            expires: None,
        }
    }

    fn in_tier(cached: Cached<Bytes>) -> Self {
        Found {
            value: cached.value,
            version: cached.version,
            seen: cached.seen,
            expires: Some(cached.expires),
        }
    }

    fn cached(&self, as_of: Option<u64>, expires: u64, tags: Option<TagMarks>) -> Cached<Bytes> {
        Cached {
            value: self.value.clone(),
            version: self.version,
            seen: self.seen,
            as_of,
            expires,
            tags,
        }
    }
}

/// Looks at a key and its tags at once. `None`: one of them was not answered.
async fn look_under(remote: &Remote, key: &Bytes, tags: &[Bytes]) -> Option<Looked<Bytes>> {
    if tags.is_empty() {
        return remote.look(key).await;
    }
    let tags = join_all(tags.iter().map(|tag| remote.look(tag)));
    let (looked, tags) = join(remote.look(key), tags).await;
    let tags: Option<Vec<_>> = tags.into_iter().collect();
    Some(looked?.under(&tags?))
}

fn behind(refused: Refused) -> Error {
    let Refused { seen, at_least } = refused;
    Error::new(
        ErrorKind::Behind,
        format!("the source has {seen:?}, {at_least:?} is needed"),
    )
}

//! [`KvSource`]: a source over a [`Kv`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::{BoxFuture, Domain, Get, Kv, ReadLevel};

use super::{Source, Stamped};
use crate::{Error, ErrorKind, Need, Result, Version};

/// Reads from a [`Kv`]: linearizably, or, if told so, from any replica that has what is needed.
pub struct KvSource {
    kv: Arc<dyn Kv>,
    any_replica: bool,
}

impl KvSource {
    /// Every load is a linearizable read.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        KvSource {
            kv,
            any_replica: false,
        }
    }

    /// Loads that do not need the newest state read from any replica at the version that they need. Saves
    /// rounds to a quorum; what is cached may be as far behind as a replica is, never below a floor.
    pub fn any_replica(mut self) -> Self {
        self.any_replica = true;
        self
    }

    async fn read(&self, key: &Bytes, need: Need) -> Result<Stamped> {
        let domain = self.kv.domain();
        let floor = floor_in(domain, need.at_least)?;
        let is_latest = need.latest || !self.any_replica;
        let level = match (is_latest, floor.n) {
            (true, _) => ReadLevel::Linearizable,
            (false, 0) => ReadLevel::Stale,
            (false, _) => ReadLevel::AtLeast(floor.token(domain)),
        };
        let entry = self.kv.get(Get::new(key.clone()).level(level)).await?;
        // Either way the answer has the floor, which is a version that the store has given out.
        let version = entry.as_ref().map_or(floor, |entry| Version {
            epoch: domain.incarnation,
            n: entry.version,
        });
        Ok(Stamped {
            value: entry.map(|entry| entry.value),
            version,
            seen: version.max(floor),
            lag: is_latest.then_some(Duration::ZERO),
        })
    }
}

/// The floor within the store's incarnation: one of an earlier incarnation is below all that this one has.
fn floor_in(domain: Domain, at_least: Version) -> Result<Version> {
    if at_least.epoch > domain.incarnation {
        return Err(Error::new(
            ErrorKind::Behind,
            format!(
                "the store is of incarnation {}, one of {} is asked for",
                domain.incarnation, at_least.epoch
            ),
        ));
    }
    Ok(at_least.max(Version::epoch(domain.incarnation)))
}

impl Source for KvSource {
    fn domain(&self) -> Domain {
        self.kv.domain()
    }

    fn load<'a>(&'a self, key: &'a Bytes, need: Need) -> BoxFuture<'a, Result<Stamped>> {
        Box::pin(self.read(key, need))
    }
}

//! Writing: the user's commit, and what becomes of the tiers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::fill::Found;
use super::{Cache, Inner};
use crate::core::planted::{self, Bug};
use crate::core::{Fill, Invalidation, Step, Want};
use crate::{Error, Result, Version};

/// What a write does to the tiers, once it is committed. Each row says what holds when the write returns, and what
/// does not.
///
/// | | promise | does not promise |
/// |---|---|---|
/// | all | reads of this process see no less; without [`Written::untold`] so do those of processes that have no tier of their own | other processes' own tiers before their `local_ttl` has passed |
/// | all | a commit whose outcome is unknown, or whose future is dropped, is taken for done | a process that dies between commit and invalidation: what is there stays until its TTL |
/// | `Aside` | no fill that began before is installed | fills from replicas that ignore `Need::latest` |
/// | `AsideTwice` | the same, and once more after the time: what was filled in between from a replica that ignored `Need::latest` goes then | any bound: a replica may lag longer, a process that dies forgets the second time |
/// | `Versioned` | the same, and fills come from any replica that has the write | |
/// | `Through` | the same, and the next read finds the value, unless another write came in between | |
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// Cache-aside: the key is invalidated after the commit, without its version. The next fill reads the
    /// source's newest state, and so do all later ones of the key; once its record is evicted, those of its part of memory.
    Aside,
    /// Delayed double delete: as `Aside`, and once more after this time, in the background. Only of use over sources
    /// that can't give their newest state.
    AsideTwice(Duration),
    /// The key's floor is raised to the version that the commit gave; like `Aside` if it gave none.
    Versioned,
    /// As `Versioned`, and this value, or that there is none, is installed at that version. The value must be
    /// the one that the source would give.
    Through(Option<Bytes>),
}

impl Strategy {
    /// Whether the version of the commit is left out.
    fn is_aside(&self) -> bool {
        matches!(self, Strategy::Aside | Strategy::AsideTwice(_))
    }
}

/// What became of a write that is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a tier may not have been told"]
pub struct Written {
    /// The version that the commit gave.
    pub version: Option<Version>,
    /// Why the remote tier could not be told. This process sees the write all the same; others may be served what
    /// was there, at most until its TTL, or until the background could tell it.
    pub untold: Option<Error>,
}

impl Cache {
    /// Awaits a commit, which gives its version if it knows it, and invalidates the key, or installs its value.
    ///
    /// If this future is dropped on its way, the key is invalidated in the background.
    ///
    /// # Errors
    /// Those of the commit. If its outcome is not known, the key was invalidated.
    pub async fn write(
        &self,
        key: impl AsRef<[u8]>,
        strategy: Strategy,
        commit: impl Future<Output = Result<Option<Version>>>,
    ) -> Result<Written> {
        let key = self.inner.check_key(key.as_ref())?;
        let mut fill = match strategy {
            Strategy::Through(_) => Some(self.inner.register(&key).await),
            _ => None,
        };
        let guard = Doubt {
            inner: Some(self.inner.clone()),
            key: key.clone(),
        };
        let committed = commit.await;
        let version = match &committed {
            Ok(version) => version.filter(|_| !strategy.is_aside()),
            Err(error)
                if error.is_outcome_known() || planted::is_on(Bug::UnknownOutcomeIsIgnored) =>
            {
                guard.settle();
                return Err(error.clone());
            }
            Err(_) => None,
        };
        let invalidation = version.map_or(Invalidation::Unknown, Invalidation::At);
        let told = self.inner.invalidate(&key, invalidation).await;
        guard.settle();
        if let Strategy::AsideTwice(after) = strategy {
            self.inner.invalidate_later(&key, after);
        }
        let committed_at = committed?;
        if let (Strategy::Through(value), Some(version), Some(fill)) =
            (strategy, version, &mut fill)
        {
            self.inner.install(&key, fill, value, version).await;
        }
        Ok(Written {
            version: committed_at,
            untold: told
                .err()
                .filter(|_| !planted::is_on(Bug::UntoldCountsAsTold)),
        })
    }
}

impl Inner {
    /// Invalidates a key after a time, unless the cache is gone by then.
    fn invalidate_later(self: &Arc<Self>, key: &Bytes, after: Duration) {
        let (inner, key) = (Arc::downgrade(self), key.clone());
        tokio::spawn(async move {
            sleep(after).await;
            let Some(inner) = inner.upgrade() else {
                return;
            };
            if let Err(error) = inner.invalidate(&key, Invalidation::Unknown).await {
                tracing::debug!(%error, "the remote tier is told the second time in the background");
            }
        });
    }

    /// Registers a fill in both tiers, whose load will be a commit.
    async fn register(&self, key: &Bytes) -> Fill {
        let want = Want {
            latest: true,
            ..Want::default()
        };
        let mut fill = self.begin_fill(want);
        loop {
            match fill.step() {
                Step::LookLocal => drop(self.look_local(key, want, &mut fill)),
                Step::LookRemote => drop(self.look_remote(key, &mut fill).await),
                _ => return fill,
            }
        }
    }

    async fn install(&self, key: &Bytes, fill: &mut Fill, value: Option<Bytes>, version: Version) {
        if fill.loaded(version, Some(0)).is_err() {
            return;
        }
        let found = Found {
            value,
            version,
            seen: version,
            expires: None,
        };
        loop {
            match fill.step() {
                step @ (Step::PutRemote { .. } | Step::PutLocal { .. }) => {
                    self.put(key, step, fill, &found).await;
                }
                _ => return,
            }
        }
    }
}

/// As long as it is not settled, nobody knows whether the key was written.
struct Doubt {
    inner: Option<Arc<Inner>>,
    key: Bytes,
}

impl Doubt {
    fn settle(mut self) {
        self.inner = None;
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        let key = std::mem::take(&mut self.key);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            if let Err(error) = inner.invalidate(&key, Invalidation::Unknown).await {
                tracing::warn!(%error, "a write was dropped, and the remote tier could not be told");
            }
        });
    }
}

//! The keyspaces of an open engine: which there are, of which kind, and how far down their
//! history goes.

use std::borrow::Cow;
use std::sync::Arc;

use crate::batch::{Batch, MAX_BATCH_BYTES, MAX_KEY_BYTES};
use crate::condition::Condition;
use crate::error::{Error, ErrorKind, Result};
use crate::expiry::{Expiry, Time};
use crate::options::{KeyspaceId, KeyspaceOptions};
use crate::sync::atomic::{AtomicU64, Ordering};

/// All keyspaces, found by number.
#[derive(Debug)]
pub(crate) struct Keyspaces {
    /// Sorted by id.
    all: Vec<Keyspace>,
    /// Whether entries of any expire.
    expire: bool,
    time: Arc<Time>,
}

/// One keyspace.
#[derive(Debug)]
pub(crate) struct Keyspace {
    pub(crate) id: KeyspaceId,
    pub(crate) versioned: bool,
    watermark: AtomicU64,
    /// The highest number if nothing expires.
    ttl_ms: u64,
    time: Arc<Time>,
}

impl Keyspace {
    /// What a read thinks of expiry that is made now.
    pub(crate) fn expiry(&self) -> Expiry {
        let now_ms = match self.ttl_ms {
            u64::MAX => 0,
            _ => self.time.now_ms(),
        };
        self.expiry_at(now_ms)
    }

    /// Whether its values expire.
    pub(crate) fn expires(&self) -> bool {
        self.ttl_ms < u64::MAX
    }

    /// What has expired at a time.
    pub(crate) fn expiry_at(&self, now_ms: u64) -> Expiry {
        Expiry {
            ttl_ms: self.ttl_ms,
            now_ms,
        }
    }

    /// Reads below this version may find too little.
    pub(crate) fn watermark(&self) -> u64 {
        self.watermark.load(Ordering::Acquire)
    }

    /// Raises the watermark; it never goes back.
    pub(crate) fn raise_watermark(&self, to: u64) {
        self.watermark.fetch_max(to, Ordering::AcqRel);
    }
}

impl Keyspaces {
    pub(crate) fn new(options: &[KeyspaceOptions], time: Time) -> Self {
        let time = Arc::new(time);
        let keyspace = |o: &KeyspaceOptions| Keyspace {
            id: o.id,
            versioned: o.versioned,
            watermark: AtomicU64::new(0),
            ttl_ms: o.ttl_ms().unwrap_or(u64::MAX),
            time: Arc::clone(&time),
        };
        let mut all: Vec<Keyspace> = options.iter().map(keyspace).collect();
        all.sort_by_key(|k| k.id);
        let expire = all.iter().any(|k| k.ttl_ms < u64::MAX);
        Keyspaces { all, expire, time }
    }

    /// The time by which entries expire.
    pub(crate) fn time(&self) -> &Time {
        &self.time
    }

    /// Whether entries of any keyspace expire.
    pub(crate) fn expire(&self) -> bool {
        self.expire
    }

    /// The batch as it is stored: values that will expire bear the time of now.
    pub(crate) fn stamped<'a>(&self, batch: &'a Batch) -> Cow<'a, Batch> {
        let expires = |id| self.find(id).is_some_and(Keyspace::expires);
        if !self.expire || !batch.iter().any(|op| expires(op.keyspace)) {
            return Cow::Borrowed(batch);
        }
        Cow::Owned(batch.stamped(expires, self.time.now_ms()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Keyspace> {
        self.all.iter()
    }

    pub(crate) fn find(&self, id: KeyspaceId) -> Option<&Keyspace> {
        match self.all.get(usize::from(id.0)) {
            // Ids are small and dense, mostly.
            Some(there) if there.id == id => Some(there),
            _ => {
                let at = self.all.binary_search_by_key(&id, |k| k.id).ok()?;
                self.all.get(at)
            }
        }
    }

    pub(crate) fn get(&self, id: KeyspaceId) -> Result<&Keyspace> {
        let missing = || Error::invalid(format!("there is no keyspace {}", id.0));
        self.find(id).ok_or_else(missing)
    }

    /// A keyspace, if a read at this version may be answered from it: fails if compaction may have
    /// dropped what it would see. To be called when the read has its state: what is dropped from that
    /// was below the watermark before.
    pub(crate) fn check_version(&self, id: KeyspaceId, version: u64) -> Result<&Keyspace> {
        let keyspace = self.get(id)?;
        let watermark = keyspace.watermark();
        if keyspace.versioned && version < watermark {
            return Err(Error::new(
                ErrorKind::Dropped,
                format!("version {version} is below the watermark {watermark}"),
            ));
        }
        Ok(keyspace)
    }

    /// Fails if the engine can't take this batch.
    pub(crate) fn check(&self, batch: &Batch) -> Result<()> {
        check_key_length(batch.longest_key())?;
        if batch.size_bytes() > MAX_BATCH_BYTES {
            return Err(Error::invalid(format!(
                "a batch of {} bytes: the most is {MAX_BATCH_BYTES}",
                batch.size_bytes()
            )));
        }
        for requirement in batch.requirements() {
            let versioned = self.get(requirement.keyspace)?.versioned;
            if !versioned && matches!(requirement.condition, Condition::VersionIs(_)) {
                return Err(Error::invalid(format!(
                    "keyspace {} keeps no versions, and a condition asks for one",
                    requirement.keyspace.0
                )));
            }
        }
        batch
            .iter()
            .try_for_each(|op| self.check_operation(op.keyspace, op.version))
    }

    /// Fails if no batch can hold such an entry.
    pub(crate) fn check_entry(
        &self,
        id: KeyspaceId,
        version: Option<u64>,
        key: &[u8],
    ) -> Result<()> {
        self.check_operation(id, version)?;
        check_key_length(key.len())
    }

    /// Fails unless an operation has a version exactly if its keyspace keeps them.
    pub(crate) fn check_operation(&self, id: KeyspaceId, version: Option<u64>) -> Result<()> {
        let versioned = self.get(id)?.versioned;
        if versioned == version.is_some() {
            return Ok(());
        }
        let (is, was) = match versioned {
            true => ("keeps versions", "has none"),
            false => ("keeps no versions", "has one"),
        };
        Err(Error::invalid(format!(
            "keyspace {} {is}, the operation {was}",
            id.0
        )))
    }
}

fn check_key_length(length: usize) -> Result<()> {
    match length <= MAX_KEY_BYTES {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "a key of {length} bytes: the most is {MAX_KEY_BYTES}"
        ))),
    }
}

//! What becomes of entries that the rules of garbage let stay: expiry, and the user's filter.

use crate::engine::Sequence;
use crate::error::{Error, ErrorKind, Result};
use crate::expiry::{self, value_at};
use crate::filter::{Candidate, CompactionFilter, Decision};
use crate::key::{KEYSPACE_BYTES, Key, Kind, keyspace_of};
use crate::keyspaces::Keyspaces;
use crate::planted::{self, Bug};
use crate::values::ValueWriter;

/// Decides about entries.
pub(crate) struct Revise<'a> {
    keyspaces: &'a Keyspaces,
    now_ms: u64,
    filter: Option<&'a dyn CompactionFilter>,
    newest_snapshot: Option<Sequence>,
}

/// What is written instead of an entry.
pub(crate) enum Revised {
    /// The entry.
    Same,
    /// Its deletion.
    Deletion,
    /// Another value; of the same kind, or a put if the value before lay apart.
    Value(Vec<u8>),
}

impl<'a> Revise<'a> {
    /// `snapshots` ascend.
    pub(crate) fn new(
        keyspaces: &'a Keyspaces,
        filter: Option<&'a dyn CompactionFilter>,
        snapshots: &[Sequence],
    ) -> Self {
        Revise {
            keyspaces,
            now_ms: keyspaces.time().now_ms(),
            filter,
            newest_snapshot: snapshots.last().copied(),
        }
    }

    /// The kind of an entry: one that has expired is a deletion.
    pub(crate) fn kind(&self, key: &Key<'_>, value: &[u8]) -> Kind {
        if key.kind != Kind::Expiring {
            return key.kind;
        }
        match self.keyspaces.find(keyspace_of(key.place)) {
            Some(keyspace) => keyspace.expiry_at(self.now_ms).kind(key.kind, value),
            None => key.kind,
        }
    }

    /// What the filter makes of an entry that is to be written. It is not asked of what a snapshot sees, nor
    /// of versions that reads may ask for: these see what was written. A value that lies apart is read for
    /// it, from `values`.
    pub(crate) fn filter(
        &self,
        key: &Key<'_>,
        stored: &[u8],
        watermark: u64,
        values: &mut ValueWriter<'_>,
    ) -> Result<Revised> {
        let Some(filter) = self.filter.filter(|_| key.kind.is_value()) else {
            return Ok(Revised::Same);
        };
        let seen = self
            .newest_snapshot
            .is_some_and(|newest| key.sequence <= newest)
            && !planted::is_on(Bug::FilterIgnoresSnapshots);
        let history = key.version > watermark && !planted::is_on(Bug::FilterIgnoresWatermark);
        if seen || history {
            return Ok(Revised::Same);
        }
        let apart;
        let stored = match key.kind {
            Kind::Pointer if !planted::is_on(Bug::FilterSeesPointers) => {
                apart = values.read(stored)?;
                &apart[..]
            }
            _ => stored,
        };
        let (stamp, value) = stored.split_at(value_at(key.kind).min(stored.len()));
        let decision = filter.decide(&Candidate {
            keyspace: keyspace_of(key.place),
            key: key.place.get(KEYSPACE_BYTES..).unwrap_or_default(),
            version: key.version,
            value,
            written_ms: (key.kind == Kind::Expiring).then(|| expiry::written_ms(stored)),
        });
        Ok(match decision {
            Decision::Keep => Revised::Same,
            Decision::Remove => Revised::Deletion,
            Decision::Change(value) if value.len() > u32::MAX as usize => {
                let length = value.len();
                let text = format!("a compaction filter made a value of {length} bytes");
                return Err(Error::new(ErrorKind::InvalidArgument, text));
            }
            Decision::Change(value) => Revised::Value([stamp, &value].concat()),
        })
    }
}

//! Tags: each has a record in the tiers, beside those of keys, under a name of its own. So it is invalidated, heard of,
//! repeated and evicted as a key is; see [`Looked::under`](crate::core::Looked::under) for what that means to keys.

use bytes::Bytes;

use super::Inner;
use crate::core::planted::{self, Bug};

/// Before the names of tags in tiers. A key that begins so harms nobody: the record of a tag has no value to lose.
const PREFIX: &[u8] = b"\0tag\0";

/// Under which key the tiers have a tag.
pub(super) fn record(tag: &[u8]) -> Bytes {
    [PREFIX, tag].concat().into()
}

/// Whether the tiers have a tag under a key.
pub(crate) fn is_tag(key: &[u8]) -> bool {
    key.starts_with(PREFIX)
}

impl Inner {
    /// The records of a key's tags.
    pub fn tags(&self, key: &[u8]) -> Vec<Bytes> {
        let tags = self.source.tags(key);
        tags.iter().map(|tag| record(tag)).collect()
    }

    /// Lets nobody join any more what runs for a key; of a tag, for all keys.
    pub fn detach(&self, key: &Bytes) {
        if is_tag(key) && !planted::is_on(Bug::TagLeavesWhatRuns) {
            return self.flights.detach_all();
        }
        self.flights.detach(key);
    }
}

//! The layout of a node's one engine: two keyspaces, and what their keys are made of.
//!
//! ```text
//! data (versioned)   namespace u32, encoded key                -> stored value
//! meta (plain)       'g', group u64, field u8                  -> see GroupField
//! ```
//!
//! A data key begins with its namespace, never with its shard: splitting a shard moves nothing.

use bytes::Bytes;
use quorate_sharding::{GroupId, NamespaceId, Shard};
use quorate_storage::{KeyspaceId, KeyspaceOptions};

pub(crate) const META: KeyspaceId = KeyspaceId(0);
pub(crate) const DATA: KeyspaceId = KeyspaceId(1);

const GROUP: u8 = b'g';

/// What is stored of a group besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum GroupField {
    /// The last entry applied and the group's newest version.
    Applied = 1,
    /// The membership last applied.
    Membership = 2,
    /// The shard that the group holds.
    Shard = 3,
    /// The coordinator's shard map.
    Map = 4,
    /// The id of the replica whose state this is.
    Replica = 5,
}

/// The keyspaces of a node's engine.
pub(crate) fn keyspaces() -> Vec<KeyspaceOptions> {
    vec![
        KeyspaceOptions::plain(META.0, "meta"),
        KeyspaceOptions::versioned(DATA.0, "data"),
    ]
}

pub(crate) fn group_key(group: GroupId, field: GroupField) -> [u8; 10] {
    let mut key = [0; 10];
    key[0] = GROUP;
    key[1..9].copy_from_slice(&group.to_be_bytes());
    key[9] = field as u8;
    key
}

/// All meta keys of a group.
pub(crate) fn group_range(group: GroupId) -> (Vec<u8>, Vec<u8>) {
    let mut key = vec![GROUP];
    key.extend_from_slice(&group.to_be_bytes());
    let mut end = key.clone();
    end.push(u8::MAX);
    (key, end)
}

/// All meta keys of all groups.
pub(crate) const GROUPS: (&[u8], &[u8]) = (&[GROUP], &[GROUP + 1]);

/// The group and the field of a meta key, if it is one of a group.
pub(crate) fn group_of(key: &[u8]) -> Option<(GroupId, u8)> {
    let (group, field) = key.strip_prefix(&[GROUP])?.split_at_checked(8)?;
    let [field] = field else { return None };
    Some((u64::from_be_bytes(group.try_into().ok()?), *field))
}

/// Bytes before the encoded key.
pub(crate) const NAMESPACE_LEN: usize = 4;

pub(crate) fn data_key(namespace: NamespaceId, encoded: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(NAMESPACE_LEN + encoded.len());
    key.extend_from_slice(&namespace.to_be_bytes());
    key.extend_from_slice(encoded);
    key
}

/// The data keys `start..end` of encoded keys; an empty end is the end of the namespace.
pub(crate) fn data_range(namespace: NamespaceId, start: &[u8], end: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let upper = if end.is_empty() {
        // Namespace ids are given out from 1 upwards; the largest is never reached.
        data_key(namespace.saturating_add(1), &[])
    } else {
        data_key(namespace, end)
    };
    (data_key(namespace, start), upper)
}

/// All data keys of a shard.
pub(crate) fn shard_range(shard: &Shard) -> (Vec<u8>, Vec<u8>) {
    data_range(shard.namespace, &shard.start, &shard.end)
}

/// The encoded key inside a data key.
pub(crate) fn encoded_of(data_key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(data_key.get(NAMESPACE_LEN..).unwrap_or_default())
}

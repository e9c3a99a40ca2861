//! Internal keys: how entries are ordered.
//!
//! An entry is known by its *place* (the keyspace, two bytes big-endian, and then the user key), its
//! version, its sequence and its kind. Entries are ordered by place ascending, then version
//! descending, then sequence descending. So all of a user key stands together, and the first entry
//! at or after `(place, V, MAX)` that a snapshot may see is what a read at version `V` answers.
//!
//! Invariants:
//! - No two entries of an engine have the same place, version and sequence, but after compaction
//!   set sequences to zero; then at most one of each place and version is left at zero.
//! - For one place and version, a newer source (memtable, then level 0 by age, then level 1 and
//!   down) holds the higher sequences.

use std::cmp::Ordering;
use std::fmt;

use crate::options::KeyspaceId;

/// The bytes of the keyspace before the user key in a place.
pub(crate) const KEYSPACE_BYTES: usize = 2;

/// What an entry is. The numbers are on disk and never change; those that are reserved are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Put = 1,
    Delete = 2,
    /// Only in batches: tables keep range deletions apart.
    RangeDelete = 3,
    /// Only in tables: a put whose value lies in a value file. The entry's value is the pointer.
    Pointer = 4,
    /// A value that expires: before it stands when it was written. It never lies apart. See `expiry.rs`.
    Expiring = 5,
}

impl Kind {
    pub(crate) fn from_u8(number: u8) -> Option<Kind> {
        match number {
            1 => Some(Kind::Put),
            2 => Some(Kind::Delete),
            3 => Some(Kind::RangeDelete),
            4 => Some(Kind::Pointer),
            5 => Some(Kind::Expiring),
            _ => None,
        }
    }
}

impl Kind {
    /// Whether it brings a value: from `place` on something may be alive.
    pub(crate) fn is_value(self) -> bool {
        matches!(self, Kind::Put | Kind::Pointer | Kind::Expiring)
    }
}

/// An internal key, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key<'a> {
    pub(crate) place: &'a [u8],
    pub(crate) version: u64,
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
}

impl<'a> Key<'a> {
    /// Before every entry of the place.
    pub(crate) fn first_of(place: &'a [u8]) -> Self {
        Key::seek(place, u64::MAX)
    }

    /// Before every entry of the place with this version or below.
    pub(crate) fn seek(place: &'a [u8], version: u64) -> Self {
        Key {
            place,
            version,
            sequence: u64::MAX,
            kind: Kind::Put,
        }
    }

    /// At or after every entry of the place.
    pub(crate) fn last_of(place: &'a [u8]) -> Self {
        Key {
            place,
            version: 0,
            sequence: 0,
            kind: Kind::Put,
        }
    }

    /// The order of entries; kinds don't take part.
    pub(crate) fn order(&self, other: &Key<'_>) -> Ordering {
        self.place
            .cmp(other.place)
            .then_with(|| other.version.cmp(&self.version))
            .then_with(|| other.sequence.cmp(&self.sequence))
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.place.get(KEYSPACE_BYTES..).unwrap_or_default();
        let key = key.escape_ascii();
        write!(f, "key \"{key}\" of keyspace {}", keyspace_of(self.place).0)?;
        match self.version {
            0 => Ok(()),
            version => write!(f, " at version {version}"),
        }
    }
}

/// The keyspace of a place; 0 if it is too short, which no place of ours is.
pub(crate) fn keyspace_of(place: &[u8]) -> KeyspaceId {
    match place {
        [high, low, ..] => KeyspaceId(u16::from_be_bytes([*high, *low])),
        _ => KeyspaceId(0),
    }
}

/// Puts a place together.
pub(crate) fn place(keyspace: KeyspaceId, user_key: &[u8]) -> Vec<u8> {
    let mut place = Vec::with_capacity(KEYSPACE_BYTES + user_key.len());
    place.extend_from_slice(&keyspace.0.to_be_bytes());
    place.extend_from_slice(user_key);
    place
}

/// The first place behind a keyspace. REQUIRES: it is not [`KeyspaceId::RESERVED`].
pub(crate) fn end_of_keyspace(keyspace: KeyspaceId) -> Vec<u8> {
    debug_assert!(
        keyspace < KeyspaceId::RESERVED,
        "no place is behind the last keyspace"
    );
    place(KeyspaceId(keyspace.0.saturating_add(1)), &[])
}

/// A place on the stack when it is short, for lookups that should not allocate.
pub(crate) struct PlaceBuf {
    short: [u8; Self::SHORT],
    long: Vec<u8>,
    len: usize,
}

impl PlaceBuf {
    const SHORT: usize = 128;

    pub(crate) fn new(keyspace: KeyspaceId, user_key: &[u8]) -> Self {
        let len = KEYSPACE_BYTES + user_key.len();
        let mut buf = PlaceBuf {
            short: [0; Self::SHORT],
            long: Vec::new(),
            len,
        };
        if len <= Self::SHORT {
            buf.short[..KEYSPACE_BYTES].copy_from_slice(&keyspace.0.to_be_bytes());
            buf.short[KEYSPACE_BYTES..len].copy_from_slice(user_key);
        } else {
            buf.long = place(keyspace, user_key);
        }
        buf
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.len <= Self::SHORT {
            &self.short[..self.len]
        } else {
            &self.long
        }
    }
}

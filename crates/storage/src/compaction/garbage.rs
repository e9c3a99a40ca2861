//! Which entries nobody can see any more.
//!
//! Entries of one place come newest version first, and within a version newest sequence first. A
//! read is a version `V` and a sequence `S`; the promise is that no read asks for a `V` below the
//! watermark `W`, and no `S` is asked for but those of live snapshots and ones above everything
//! here. Then:
//!
//! - An entry is *shadowed* by the one before it if every read that sees it sees that one too: the
//!   earlier one has the same version or one at or below `W`, and no snapshot lies between the two
//!   sequences. Shadowing is transitive, so it is enough to look one entry back, dropped or not.
//! - A deletion that shadows all that comes after it, here and below, says only what its absence
//!   says, and goes if its version is at or below `W`; above it stays, as history does. It is held
//!   back until the rest of its place is known.
//! - Where nothing lies below, an entry that every snapshot sees needs no sequence.

use crate::key::{Key, Kind};

/// What the rules depend on.
pub(crate) struct Keep {
    /// The sequences of live snapshots, ascending.
    pub(crate) snapshots: Vec<u64>,
}

impl Keep {
    /// Whether a snapshot sees `older` and not `newer`.
    fn between(&self, older: u64, newer: u64) -> bool {
        let at = self.snapshots.partition_point(|s| *s < older);
        self.snapshots.get(at).is_some_and(|s| *s < newer)
    }

    /// Whether every snapshot sees it.
    fn all_see(&self, sequence: u64) -> bool {
        self.snapshots.first().is_none_or(|s| sequence <= *s)
    }
}

/// What is to be done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write it.
    Write,
    /// Nobody sees it.
    Drop,
    /// Hold it back: write it only if [`Garbage::release`] says so.
    Hold,
}

/// Judges entries in order.
pub(crate) struct Garbage {
    keep: Keep,
    place: Vec<u8>,
    /// Version and sequence of the entry before, if it had the same place.
    before: Option<(u64, u64)>,
    started: bool,
    at_bottom: bool,
    watermark: u64,
}

impl Garbage {
    pub(crate) fn new(keep: Keep) -> Self {
        Garbage {
            keep,
            place: Vec::new(),
            before: None,
            started: false,
            at_bottom: false,
            watermark: 0,
        }
    }

    /// Whether a key begins a new place. If so, [`Garbage::begin`] must follow.
    pub(crate) fn is_new_place(&self, key: &Key<'_>) -> bool {
        !self.started || self.place != key.place
    }

    /// Begins a place: whether nothing lies below it, and the watermark of its keyspace.
    pub(crate) fn begin(&mut self, place: &[u8], at_bottom: bool, watermark: u64) {
        self.started = true;
        self.place.clear();
        self.place.extend_from_slice(place);
        self.before = None;
        self.at_bottom = at_bottom;
        self.watermark = watermark;
    }

    /// Judges the next entry of the place.
    pub(crate) fn judge(&mut self, key: &Key<'_>) -> Verdict {
        let before = self.before.replace((key.version, key.sequence));
        if let Some((version, sequence)) = before
            && (version == key.version || version <= self.watermark)
            && !self.keep.between(key.sequence, sequence)
        {
            return Verdict::Drop;
        }
        if key.kind == Kind::Delete && self.at_bottom && key.version <= self.watermark {
            return Verdict::Hold;
        }
        Verdict::Write
    }

    /// The sequence to write for an entry of the place.
    pub(crate) fn sequence(&self, sequence: u64) -> u64 {
        match self.at_bottom && self.keep.all_see(sequence) {
            true => 0,
            false => sequence,
        }
    }
}

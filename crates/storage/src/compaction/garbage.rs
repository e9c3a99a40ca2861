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
//! - Where nothing lies below, an entry that every snapshot sees needs no sequence. But range
//!   deletions of its place that stay are told from it by sequence: then it keeps its own.
//! - A range deletion shadows, in its range, what is below its mark, under the same conditions as an
//!   entry does: other range deletions too. Where nothing lies below and every snapshot sees it, all
//!   that it hides is dropped with it, if its version is at or below `W`, and it goes itself.

use crate::key::{Key, Kind};
use crate::planted::{self, Bug};
use crate::tombstones::Mark;

/// What the rules depend on.
pub(crate) struct Keep {
    /// The sequences of live snapshots, ascending.
    pub(crate) snapshots: Vec<u64>,
}

impl Keep {
    /// Whether a snapshot sees `older` and not `newer`.
    fn between(&self, older: u64, newer: u64) -> bool {
        if planted::is_on(Bug::SnapshotsAreIgnored) {
            return false;
        }
        let at = self.snapshots.partition_point(|s| *s < older);
        self.snapshots.get(at).is_some_and(|s| *s < newer)
    }

    /// Whether every snapshot sees it.
    fn all_see(&self, sequence: u64) -> bool {
        self.snapshots.first().is_none_or(|s| sequence <= *s)
            || planted::is_on(Bug::SequenceIsLostUnderSnapshot)
    }

    /// Whether everything at this version and sequence, hidden by the mark, is hidden from every
    /// read.
    pub(crate) fn shadows(&self, mark: Mark, version: u64, sequence: u64, watermark: u64) -> bool {
        mark.hides(version, sequence)
            && (version == mark.version || mark.version <= watermark)
            && (planted::is_on(Bug::RangesIgnoreSnapshots)
                || !self.between(sequence, mark.sequence))
    }

    /// Drops those of the marks of a piece, which ascend, that others shadow.
    pub(crate) fn reduce(&self, marks: &mut Vec<Mark>, watermark: u64) {
        let mut kept: Vec<Mark> = Vec::new();
        for mark in marks.drain(..).rev() {
            // Shadowing is transitive: mostly it is enough to ask the last. A mark too many does no
            // harm.
            let shadowed = kept
                .last()
                .is_some_and(|last| self.shadows(*last, mark.version, mark.sequence, watermark));
            if !shadowed {
                kept.push(mark);
            }
        }
        kept.reverse();
        *marks = kept;
    }

    /// Whether a range deletion may go where nothing lies below, with all that it hides.
    pub(crate) fn is_spent(&self, mark: Mark, watermark: u64) -> bool {
        mark.version <= watermark && self.all_see(mark.sequence)
    }
}

/// What is to be done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write it.
    Write,
    /// Nobody sees it.
    Drop,
    /// Hold it back: write it only if an entry that follows is written.
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
    /// Of the range deletions that cover the place.
    marks: Vec<Mark>,
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
            marks: Vec::new(),
        }
    }

    /// Whether a key begins a new place. If so, [`Garbage::begin`] must follow.
    pub(crate) fn is_new_place(&self, key: &Key<'_>) -> bool {
        !self.started || self.place != key.place
    }

    /// Begins a place: whether nothing lies below it, the watermark of its keyspace, and the marks
    /// of the range deletions that cover it.
    pub(crate) fn begin(&mut self, place: &[u8], at_bottom: bool, watermark: u64, marks: &[Mark]) {
        self.marks.clear();
        self.marks.extend_from_slice(marks);
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
        let (version, sequence) = (key.version, key.sequence);
        let shadows = |mark: &Mark| self.keep.shadows(*mark, version, sequence, self.watermark);
        if self.marks.iter().any(shadows) {
            return Verdict::Drop;
        }
        match key.kind {
            Kind::Delete => self.judge_deletion(key),
            _ => Verdict::Write,
        }
    }

    /// Judges a deletion that something may still see.
    pub(crate) fn judge_deletion(&self, key: &Key<'_>) -> Verdict {
        let at_bottom = self.at_bottom || planted::is_on(Bug::DeletionsAreLostAboveTheBottom);
        match at_bottom && key.version <= self.watermark {
            true => Verdict::Hold,
            false => Verdict::Write,
        }
    }

    /// The watermark of the place.
    pub(crate) fn watermark(&self) -> u64 {
        self.watermark
    }

    /// The sequence to write for an entry of the place.
    pub(crate) fn sequence(&self, sequence: u64) -> u64 {
        let alone = self.marks.is_empty() || planted::is_on(Bug::SequenceIsLostUnderRange);
        match self.at_bottom && alone && self.keep.all_see(sequence) {
            true => 0,
            false => sequence,
        }
    }
}

//! Range deletions: what they hide, and how they are kept so that a lookup is one search.
//!
//! A range deletion hides, in its range, every entry that is below its [`Mark`], its version and sequence:
//! entries of lower versions, and those of its own version that were written before. To a read it is as
//! if each key of the range had been deleted at that version then. In a plain keyspace all versions are
//! 0, and the sequence alone decides.
//!
//! Ranges overlap as users please. They are kept *fragmented*: cut at each other's ends into pieces that
//! are disjoint, each with the marks of all ranges that cover it (as in Pebble and `RocksDB`).
//!
//! ```text
//!  deleted as  a ─────── m  mark 5          kept as   a ── f  5
//!                   f ─────── t  mark 9               f ── m  5, 9
//!                                                     m ── t  9
//! ```
//!
//! So one mark of a piece decides for a read: the highest that it may see.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::codec::{Reader, put_bytes, put_varint};
use crate::engine::Sequence;

/// Version and sequence of a range deletion, in the order in which they hide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) version: u64,
    pub(crate) sequence: Sequence,
}

impl Mark {
    /// Whether a read that sees both the mark and an entry in its range does not see the entry.
    pub(crate) fn hides(self, version: u64, sequence: Sequence) -> bool {
        Mark { version, sequence } < self
    }
}

/// Range deletions, fragmented.
///
/// Invariants: pieces are disjoint and not empty; each has marks, ascending, none twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tombstones {
    /// By their first places.
    pieces: BTreeMap<Vec<u8>, Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// The first place behind it.
    end: Vec<u8>,
    marks: Vec<Mark>,
}

/// What is known of the places around one: a piece, or a gap between two.
pub(crate) struct Stretch<'a> {
    /// No place from here on to `end` differs. Empty where nothing lies before.
    pub(crate) start: &'a [u8],
    /// `None` where nothing lies behind.
    pub(crate) end: Option<&'a [u8]>,
    /// Ascending.
    pub(crate) marks: &'a [Mark],
}

/// The highest of some marks, which ascend, that a read at this version and sequence sees.
pub(crate) fn highest_seen(marks: &[Mark], version: u64, sequence: Sequence) -> Option<Mark> {
    let seen = |m: &&Mark| m.version <= version && m.sequence <= sequence;
    marks.iter().rev().find(seen).copied()
}

fn from_to<'a>(start: &'a [u8], end: &'a [u8]) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(start), Bound::Excluded(end))
}

impl Tombstones {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Pieces from first to last: where they begin and end, and their marks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8], &[Mark])> {
        let pieces = self.pieces.iter();
        pieces.map(|(start, piece)| (&start[..], &piece.end[..], &piece.marks[..]))
    }

    /// Adds a range deletion; one whose end is not behind its start is nothing. Returns in how many
    /// pieces it lies.
    pub(crate) fn insert(&mut self, start: &[u8], end: &[u8], mark: Mark) -> usize {
        if start >= end {
            return 0;
        }
        self.split_at(start);
        self.split_at(end);
        let mut gaps = Vec::new();
        let mut at = start.to_vec();
        let mut count = 0;
        for (from, piece) in self.pieces.range_mut::<[u8], _>(from_to(start, end)) {
            if at < *from {
                gaps.push((at.clone(), from.clone()));
            }
            if let Err(place) = piece.marks.binary_search(&mark) {
                piece.marks.insert(place, mark);
            }
            at.clone_from(&piece.end);
            count += 1;
        }
        if at.as_slice() < end {
            gaps.push((at, end.to_vec()));
        }
        count += gaps.len();
        for (from, end) in gaps {
            let marks = vec![mark];
            self.pieces.insert(from, Piece { end, marks });
        }
        count
    }

    /// Cuts the piece that goes on over a place there.
    fn split_at(&mut self, place: &[u8]) {
        let before = (Bound::Unbounded, Bound::Excluded(place));
        let Some((_, piece)) = self.pieces.range_mut::<[u8], _>(before).next_back() else {
            return;
        };
        if piece.end.as_slice() > place {
            let rest = Piece {
                end: std::mem::replace(&mut piece.end, place.to_vec()),
                marks: piece.marks.clone(),
            };
            self.pieces.insert(place.to_vec(), rest);
        }
    }

    /// Adds all of others.
    pub(crate) fn add(&mut self, others: &Tombstones) {
        for (start, end, marks) in others.iter() {
            for mark in marks {
                self.insert(start, end, *mark);
            }
        }
    }

    /// What is known of the places around one.
    pub(crate) fn around(&self, place: &[u8]) -> Stretch<'_> {
        let up_to = (Bound::Unbounded, Bound::Included(place));
        let before = self.pieces.range::<[u8], _>(up_to).next_back();
        if let Some((start, piece)) = before
            && place < piece.end.as_slice()
        {
            return Stretch {
                start,
                end: Some(&piece.end),
                marks: &piece.marks,
            };
        }
        let behind = (Bound::Excluded(place), Bound::Unbounded);
        let after = self.pieces.range::<[u8], _>(behind).next();
        Stretch {
            start: before.map_or(&[], |(_, piece)| piece.end.as_slice()),
            end: after.map(|(start, _)| start.as_slice()),
            marks: &[],
        }
    }

    /// Takes away what lies from one place to below another.
    pub(crate) fn remove(&mut self, start: &[u8], end: Option<&[u8]>) {
        self.split_at(start);
        if let Some(end) = end {
            self.split_at(end);
        }
        self.pieces.retain(|from, _| {
            from.as_slice() < start || end.is_some_and(|end| from.as_slice() >= end)
        });
    }

    /// Takes what lies below a place out of it; all if there is none.
    pub(crate) fn take_before(&mut self, place: Option<&[u8]>) -> Tombstones {
        let Some(place) = place else {
            return std::mem::take(self);
        };
        self.split_at(place);
        let rest = self.pieces.split_off(place);
        Tombstones {
            pieces: std::mem::replace(&mut self.pieces, rest),
        }
    }

    /// Keeps of the marks of each piece what `keep` leaves of them, and puts pieces together that
    /// then say the same.
    pub(crate) fn reduce(&mut self, mut keep: impl FnMut(&[u8], &[u8], &mut Vec<Mark>)) {
        let mut reduced: BTreeMap<Vec<u8>, Piece> = BTreeMap::new();
        for (start, mut piece) in std::mem::take(&mut self.pieces) {
            keep(&start, &piece.end, &mut piece.marks);
            if piece.marks.is_empty() {
                continue;
            }
            let last = reduced.last_entry();
            match last {
                Some(mut last) if last.get().end == start && last.get().marks == piece.marks => {
                    last.get_mut().end = piece.end;
                }
                _ => {
                    reduced.insert(start, piece);
                }
            }
        }
        self.pieces = reduced;
    }

    /// Whether each place from `start` to below `end` has a mark that `suits`.
    pub(crate) fn covers(&self, start: &[u8], end: &[u8], suits: impl Fn(&Mark) -> bool) -> bool {
        let mut at = start;
        while at < end {
            let stretch = self.around(at);
            match stretch.end {
                Some(next) if stretch.marks.iter().any(&suits) => at = next,
                _ => return false,
            }
        }
        true
    }

    /// What they take in memory, about.
    pub(crate) fn size_bytes(&self) -> usize {
        let piece = |(start, _, marks): (&[u8], &[u8], &[Mark])| {
            2 * start.len() + size_of_val(marks) + size_of::<Piece>() + 32
        };
        self.iter().map(piece).sum()
    }

    /// The block of a table: a count, then the pieces.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.pieces.len() as u64);
        for (start, end, marks) in self.iter() {
            put_bytes(&mut out, start);
            put_bytes(&mut out, end);
            put_varint(&mut out, marks.len() as u64);
            for mark in marks {
                put_varint(&mut out, mark.version);
                put_varint(&mut out, mark.sequence);
            }
        }
        out
    }

    /// What [`Tombstones::encode`] wrote; `None` if it is anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Tombstones> {
        let mut reader = Reader::new(bytes);
        let mut all = Tombstones::default();
        let mut last_end: &[u8] = &[];
        for _ in 0..reader.varint()? {
            let (start, end) = (reader.bytes()?, reader.bytes()?);
            let mut marks = Vec::new();
            for _ in 0..reader.varint()? {
                let version = reader.varint()?;
                let sequence = reader.varint()?;
                marks.push(Mark { version, sequence });
            }
            let ascend = marks.is_sorted_by(|a, b| a < b);
            if start < last_end || start >= end || marks.is_empty() || !ascend {
                return None;
            }
            last_end = end;
            let end = end.to_vec();
            all.pieces.insert(start.to_vec(), Piece { end, marks });
        }
        reader.is_empty().then_some(all)
    }
}

#[cfg(test)]
mod tests;

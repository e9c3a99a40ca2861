//! The range deletions that a read sees, over all sources.
//!
//! What is known of one place holds for a stretch of places around it, which is kept: as long as an
//! iterator moves within it, a look costs two comparisons. More range deletions may come into a memtable
//! meanwhile; the read sees none of them, so what is kept stays right.

use std::sync::Arc;

use crate::engine::Sequence;
use crate::error::Result;
use crate::levels::TableFile;
use crate::memtable::Memtable;
use crate::tombstones::{Mark, Stretch};

/// Where range deletions of one source are.
pub(crate) enum Layer {
    Memtable(Arc<Memtable>),
    /// Tables that have some, disjoint and ascending.
    Level(Vec<Arc<TableFile>>),
}

/// Looks at the range deletions of layers, from the newest to the oldest.
pub(crate) struct Shroud {
    /// Each with the number of its source.
    layers: Vec<(usize, Layer)>,
    version: u64,
    sequence: Sequence,
    /// The stretch of the last look: from here to below `end`.
    start: Vec<u8>,
    /// `None` where nothing lies behind.
    end: Option<Vec<u8>>,
    /// Whether there was a look.
    looked: bool,
    /// The marks that the read sees in the stretch, each with its source.
    marks: Vec<(Mark, usize)>,
    /// The highest of them.
    highest: Option<(Mark, usize)>,
}

impl Shroud {
    /// For a read at this version and sequence.
    pub(crate) fn new(version: u64, sequence: Sequence) -> Self {
        Shroud {
            layers: Vec::new(),
            version,
            sequence,
            start: Vec::new(),
            end: None,
            looked: false,
            marks: Vec::new(),
            highest: None,
        }
    }

    pub(crate) fn add(&mut self, source: usize, layer: Layer) {
        self.layers.push((source, layer));
    }

    /// Whether there are no range deletions at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Finds out what holds at a place.
    pub(crate) fn look_at(&mut self, place: &[u8]) -> Result<()> {
        let inside = self.looked
            && self.start.as_slice() <= place
            && self.end.as_deref().is_none_or(|end| place < end);
        if inside {
            return Ok(());
        }
        self.looked = false;
        self.start.clear();
        self.end = None;
        self.marks.clear();
        let layers = std::mem::take(&mut self.layers);
        let done = layers
            .iter()
            .try_for_each(|(source, layer)| self.look_into(*source, layer, place));
        self.layers = layers;
        done?;
        // The first of equals, which there are none of in sound data, is the newest.
        self.highest = self.marks.iter().copied().max_by_key(|(mark, _)| *mark);
        self.looked = true;
        Ok(())
    }

    fn look_into(&mut self, source: usize, layer: &Layer, place: &[u8]) -> Result<()> {
        match layer {
            Layer::Memtable(memtable) => {
                memtable.with_tombstones(|all| self.narrow(source, &all.around(place)));
            }
            Layer::Level(tables) => {
                let at = tables.partition_point(|t| t.meta.properties.end.as_slice() <= place);
                let before = at.checked_sub(1).and_then(|before| tables.get(before));
                let before = before.map_or(&[][..], |t| &t.meta.properties.end);
                let Some(table) = tables.get(at) else {
                    self.narrow(source, &gap(before, None));
                    return Ok(());
                };
                let p = &table.meta.properties;
                if place < p.smallest.as_slice() {
                    self.narrow(source, &gap(before, Some(&p.smallest)));
                } else {
                    self.narrow(source, &gap(&p.smallest, Some(&p.end)));
                    let tombstones = table.table()?.tombstones();
                    self.narrow(source, &tombstones.around(place));
                }
            }
        }
        Ok(())
    }

    /// Takes what one source says: the stretch is where all say the same.
    fn narrow(&mut self, source: usize, stretch: &Stretch<'_>) {
        if stretch.start > self.start.as_slice() {
            self.start.clear();
            self.start.extend_from_slice(stretch.start);
        }
        if let Some(end) = stretch.end
            && self.end.as_deref().is_none_or(|e| end < e)
        {
            self.end = Some(end.to_vec());
        }
        let seen = |m: &&Mark| m.version <= self.version && m.sequence <= self.sequence;
        let seen = stretch.marks.iter().filter(seen);
        self.marks.extend(seen.map(|mark| (*mark, source)));
    }

    /// Whether an entry at the place of the last look is hidden.
    pub(crate) fn hides(&self, version: u64, sequence: Sequence) -> bool {
        self.highest
            .is_some_and(|(mark, _)| mark.hides(version, sequence))
    }

    /// The same, but only by range deletions of the entry's own version.
    pub(crate) fn hides_exactly(&self, version: u64, sequence: Sequence) -> bool {
        let of_version = |mark: &Mark| mark.version == version && mark.hides(version, sequence);
        self.marks.iter().any(|(mark, _)| of_version(mark))
    }

    /// The highest mark of the stretch, and the source that it comes from.
    pub(crate) fn highest(&self) -> Option<(Mark, usize)> {
        self.highest
    }

    /// Where the stretch of the last look begins.
    pub(crate) fn start(&self) -> &[u8] {
        &self.start
    }

    /// The place behind the stretch.
    pub(crate) fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }
}

/// A stretch without range deletions.
fn gap<'a>(start: &'a [u8], end: Option<&'a [u8]>) -> Stretch<'a> {
    Stretch {
        start,
        end,
        marks: &[],
    }
}

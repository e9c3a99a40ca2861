//! One sorted view over many.

use bytes::Bytes;

use crate::cursor::Cursor;
use crate::error::Result;
use crate::key::{Key, Kind};
use crate::planted::{self, Bug};

/// A place in the union of cursors. There are few of them, so the smallest is found by looking at
/// all; and as long as it stays below the second, as it does for runs of keys, by one comparison.
///
/// Invariant: going forward, all but the current cursor stand on their first entry after it; going
/// back, on their last entry before it.
pub(crate) struct MergeCursor {
    /// The newest source first: it wins among equals, which there are none of in sound data.
    sources: Vec<Box<dyn Cursor>>,
    current: Option<usize>,
    /// The one that comes next after the current.
    second: Option<usize>,
    forward: bool,
}

impl MergeCursor {
    pub(crate) fn new(sources: Vec<Box<dyn Cursor>>) -> Self {
        MergeCursor {
            sources,
            current: None,
            second: None,
            forward: true,
        }
    }

    /// Whether source `a` comes before source `b` in the direction of travel.
    fn comes_first(&self, a: usize, b: usize) -> bool {
        let order = self.sources[a].key().order(&self.sources[b].key());
        match self.forward {
            true => order.is_lt(),
            false => order.is_gt(),
        }
    }

    /// Finds the current and the second cursor by looking at all.
    fn pick(&mut self) {
        let (mut first, mut second) = (None, None);
        for n in 0..self.sources.len() {
            if !self.sources[n].valid() {
                continue;
            }
            match first {
                None => first = Some(n),
                Some(best) if self.comes_first(n, best) => {
                    second = first;
                    first = Some(n);
                }
                Some(_) => match second {
                    Some(next) if !self.comes_first(n, next) => {}
                    _ => second = Some(n),
                },
            }
        }
        self.current = first;
        self.second = second;
    }

    /// The current cursor moved in the direction of travel.
    fn settle(&mut self, moved: usize) {
        let still = self.sources[moved].valid()
            && self.second.is_none_or(|second| {
                self.comes_first(moved, second) || planted::is_on(Bug::MergeDoesNotSwitch)
            });
        if !still {
            self.pick();
        }
    }

    /// Which source the current entry comes from. REQUIRES: valid.
    pub(crate) fn source(&self) -> usize {
        self.current.expect("the cursor stands on an entry")
    }

    /// Moves the source of the current entry alone, on to the first entry at or after `target`; or
    /// back to the last before it. REQUIRES: valid; `target` lies in the direction of travel.
    pub(crate) fn skip_to(&mut self, target: &Key<'_>) -> Result<()> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        match self.forward {
            true => self.sources[current].seek(target)?,
            false => self.sources[current].seek_before(target)?,
        }
        self.current = Some(current);
        self.settle(current);
        Ok(())
    }

    /// Runs a seek on all.
    fn all(
        &mut self,
        forward: bool,
        mut seek: impl FnMut(&mut dyn Cursor) -> Result<()>,
    ) -> Result<()> {
        self.current = None;
        self.forward = forward;
        for source in &mut self.sources {
            seek(source.as_mut())?;
        }
        self.pick();
        Ok(())
    }

    /// Brings all but the current cursor to the other side of it.
    fn turn(&mut self, forward: bool) -> Result<()> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        let here = self.sources[current].key();
        let (place, version, sequence) = (here.place.to_vec(), here.version, here.sequence);
        let here = Key {
            place: &place,
            version,
            sequence,
            kind: Kind::Put,
        };
        for (n, source) in self.sources.iter_mut().enumerate() {
            if n == current || planted::is_on(Bug::MergeDoesNotTurn) {
                continue;
            }
            match forward {
                true => source.seek(&here)?,
                false => source.seek_before(&here)?,
            }
        }
        self.forward = forward;
        self.current = Some(current);
        self.second = None;
        Ok(())
    }
}

impl Cursor for MergeCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        self.all(true, |source| source.seek_to_first())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.all(false, |source| source.seek_to_last())
    }

    fn seek(&mut self, target: &Key<'_>) -> Result<()> {
        self.all(true, |source| source.seek(target))
    }

    fn seek_before(&mut self, target: &Key<'_>) -> Result<()> {
        self.all(false, |source| source.seek_before(target))
    }

    fn next(&mut self) -> Result<()> {
        let turned = !self.forward;
        if turned {
            self.turn(true)?;
        }
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        self.sources[current].next()?;
        self.current = Some(current);
        match turned {
            true => self.pick(),
            false => self.settle(current),
        }
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        let turned = self.forward;
        if turned {
            self.turn(false)?;
        }
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        self.sources[current].prev()?;
        self.current = Some(current);
        match turned {
            true => self.pick(),
            false => self.settle(current),
        }
        Ok(())
    }

    fn valid(&self) -> bool {
        self.current.is_some()
    }

    fn key(&self) -> Key<'_> {
        self.sources[self.current.expect("the cursor stands on an entry")].key()
    }

    fn value(&self) -> &[u8] {
        self.sources[self.current.expect("the cursor stands on an entry")].value()
    }

    fn value_bytes(&self) -> Bytes {
        self.sources[self.current.expect("the cursor stands on an entry")].value_bytes()
    }
}

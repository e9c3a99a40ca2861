//! Walking through tables that are disjoint and ascend.

use std::sync::Arc;

use bytes::Bytes;

use super::TableFile;
use super::level::Run;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::key::Key;
use crate::table::TableCursor;

/// A place in tables that are disjoint and ascend.
pub(crate) struct LevelCursor {
    run: Run,
    at: usize,
    cursor: Option<TableCursor>,
    fill_cache: bool,
    /// For compaction: goes around what was given up.
    salvages: bool,
}

impl LevelCursor {
    pub(crate) fn new(run: Run, fill_cache: bool) -> Self {
        LevelCursor {
            run,
            at: 0,
            cursor: None,
            fill_cache,
            salvages: false,
        }
    }

    /// For compaction: goes around what was given up. REQUIRES: of no table all was.
    pub(crate) fn salvaging(run: Run) -> Self {
        LevelCursor {
            salvages: true,
            ..LevelCursor::new(run, false)
        }
    }

    /// Opens the table at a position; behind the last there is none.
    fn open(&mut self, at: usize) -> Result<Option<&mut TableCursor>> {
        if self.cursor.is_none() || self.at != at {
            self.cursor = None;
            let Some(file) = self.run.tables().get(at) else {
                return Ok(None);
            };
            self.cursor = Some(match self.salvages {
                true => file.salvaging_cursor()?,
                false => file.cursor(self.fill_cache)?,
            });
            self.at = at;
        }
        Ok(self.cursor.as_mut())
    }

    fn skip_forward(&mut self) -> Result<()> {
        while self.cursor.as_ref().is_some_and(|c| !c.valid()) {
            if let Some(cursor) = self.open(self.at + 1)? {
                cursor.seek_to_first()?;
            }
        }
        Ok(())
    }

    fn skip_back(&mut self) -> Result<()> {
        while self.cursor.as_ref().is_some_and(|c| !c.valid()) {
            match self.at.checked_sub(1) {
                None => self.cursor = None,
                Some(at) => {
                    if let Some(cursor) = self.open(at)? {
                        cursor.seek_to_last()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn current(&self) -> &TableCursor {
        self.cursor.as_ref().expect("the cursor stands on an entry")
    }
}

impl Cursor for LevelCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        if let Some(cursor) = self.open(0)? {
            cursor.seek_to_first()?;
        }
        self.skip_forward()
    }

    fn seek_to_last(&mut self) -> Result<()> {
        let last = self.run.tables().len().saturating_sub(1);
        if let Some(cursor) = self.open(last)? {
            cursor.seek_to_last()?;
        }
        self.skip_back()
    }

    fn seek(&mut self, target: &Key<'_>) -> Result<()> {
        let place = target.place;
        let before = |t: &Arc<TableFile>| t.meta.is_before(place);
        let at = self.run.tables().partition_point(before);
        if let Some(cursor) = self.open(at)? {
            cursor.seek(target)?;
        }
        self.skip_forward()
    }

    fn seek_before(&mut self, target: &Key<'_>) -> Result<()> {
        let place = target.place;
        let before = |t: &Arc<TableFile>| t.meta.is_before(place);
        let at = self.run.tables().partition_point(before);
        if at == self.run.tables().len() {
            return self.seek_to_last();
        }
        if let Some(cursor) = self.open(at)? {
            cursor.seek_before(target)?;
        }
        self.skip_back()
    }

    fn next(&mut self) -> Result<()> {
        if let Some(cursor) = &mut self.cursor {
            cursor.next()?;
        }
        self.skip_forward()
    }

    fn prev(&mut self) -> Result<()> {
        if let Some(cursor) = &mut self.cursor {
            cursor.prev()?;
        }
        self.skip_back()
    }

    fn valid(&self) -> bool {
        self.cursor.as_ref().is_some_and(Cursor::valid)
    }

    fn key(&self) -> Key<'_> {
        self.current().key()
    }

    fn value(&self) -> &[u8] {
        self.current().value()
    }

    fn value_bytes(&self) -> Bytes {
        self.current().value_bytes()
    }
}

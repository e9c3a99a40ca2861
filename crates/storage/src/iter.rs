//! The iterator that users get: of all entries, those that a read may see.
//!
//! Entries fall into *groups*, of which at most one is yielded: all entries of a user key, or, when
//! every version is asked for, all entries of a user key and version. Going forward the first
//! visible entry of a group is the newest. Going back it is the last one met, so the whole group is
//! walked and the candidate kept aside; the cursor then stands before the group.
//!
//! An entry that a range deletion hides ends its group going forward, for all that comes after it in
//! the group is hidden as well, and is passed over going back. A range that is hidden as a whole is
//! not walked, see [`Covered::leave`]; nor is one where an earlier read found nothing, see
//! [`Voids`](crate::voids::Voids).

use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::cursor::Cursor;
use crate::engine::{Iter, IterOptions, Sequence};
use crate::error::{Error, Result};
use crate::expiry::{self, Expiry};
use crate::key::{self, Key, Kind};
use crate::options::KeyspaceId;
use crate::planted::{self, Bug};
use crate::sources::{Covered, Sources};
use crate::values::ValueReader;
use crate::voids::Passage;

/// After this many entries of one group it is cheaper to seek past it.
const STEPS_BEFORE_SEEK: usize = 8;

/// Where the iterator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// Nowhere.
    None,
    /// The cursor stands on the entry.
    On,
    /// The entry is in `saved`; the cursor stands before its group.
    Before,
}

/// The entry or group last looked at.
struct Saved {
    place: Vec<u8>,
    version: u64,
    kind: Kind,
    value: Bytes,
}

/// An [`Iter`] over the sources of an engine.
pub(crate) struct UserIter {
    entries: Covered,
    lower: Vec<u8>,
    /// Not in the range; `None` only behind the last keyspace.
    upper: Option<Vec<u8>>,
    keyspace: KeyspaceId,
    version: u64,
    sequence: Sequence,
    expiry: Expiry,
    all_versions: bool,
    /// What it passes over without finding anything.
    passage: Passage,
    stand: Stand,
    saved: Saved,
    values: ValueReader,
    lazy_values: bool,
    /// Whether the value of the entry lies apart. It is in `fetched` then, if it was read; otherwise what
    /// is there is of an entry before.
    apart: bool,
    is_fetched: bool,
    fetched: Bytes,
    failed: Option<Error>,
}

impl UserIter {
    /// `passage` knows nothing, or what reads of the newest versions know.
    pub(crate) fn new(sources: Sources, options: &IterOptions, passage: Passage) -> Self {
        let (keyspace, sequence) = (sources.keyspace, sources.sequence);
        let values = ValueReader::new(Arc::clone(&sources.values), true);
        let expiry = sources.expiry;
        let (lower, upper) = bounds(keyspace, &options.lower, options.upper.as_deref());
        UserIter {
            entries: sources.merge(),
            lower,
            upper,
            keyspace,
            version: options.at.version,
            sequence,
            expiry,
            all_versions: options.all_versions,
            passage,
            stand: Stand::None,
            saved: Saved {
                place: Vec::new(),
                version: 0,
                kind: Kind::Put,
                value: Bytes::new(),
            },
            values,
            lazy_values: options.lazy_values,
            apart: false,
            is_fetched: false,
            fetched: Bytes::new(),
            failed: None,
        }
    }

    /// Whether a key belongs to the group in `saved`.
    fn in_saved_group(&self, key: &Key<'_>) -> bool {
        (!self.all_versions || key.version == self.saved.version) && key.place == self.saved.place
    }

    fn sees(&self, key: &Key<'_>) -> bool {
        key.version <= self.version && key.sequence <= self.sequence
    }

    /// From where the cursor is, forward to an entry to yield; first past the group in `saved`, if
    /// `skip`.
    fn forward(&mut self, mut skip: bool) -> Result<()> {
        self.stand = Stand::None;
        self.apart = false;
        self.passage.begin();
        let mut steps = 0;
        while self.entries.cursor.valid() {
            let key = self.entries.cursor.key();
            let upper = self.upper.as_deref();
            if upper.is_some_and(|upper| key.place >= upper) {
                break;
            }
            if skip && self.in_saved_group(&key) {
                steps += 1;
                let version = if self.all_versions { key.version } else { 0 };
                let is_end = key.version == version && key.sequence == 0;
                if steps > STEPS_BEFORE_SEEK && !is_end {
                    steps = 0;
                    let end = Key {
                        version,
                        sequence: 0,
                        ..Key::last_of(&self.saved.place)
                    };
                    self.entries.cursor.seek(&end)?;
                } else {
                    self.entries.cursor.next()?;
                }
                continue;
            }
            if !self.sees(&key) {
                steps += 1;
                if steps > STEPS_BEFORE_SEEK && key.version > self.version {
                    steps = 0;
                    let place = key.place.to_vec();
                    self.entries.cursor.seek(&Key::seek(&place, self.version))?;
                } else {
                    self.entries.cursor.next()?;
                }
                continue;
            }
            self.saved.place.clear();
            self.saved.place.extend_from_slice(key.place);
            self.saved.version = key.version;
            self.saved.kind = match key.kind {
                Kind::Expiring => self.expiry.kind(key.kind, self.entries.cursor.value()),
                kind => kind,
            };
            let deletion = self.saved.kind == Kind::Delete;
            skip = true;
            steps = 0;
            let hidden = self.entries.hides_current(self.all_versions)?;
            if !hidden && (!deletion || self.all_versions) {
                self.stand = Stand::On;
                self.passage.end_at(&self.saved.place);
                return self.fetch_if_apart();
            }
            if let Some((_, end)) = self.passage.over(&self.saved.place) {
                self.entries.cursor.seek(&Key::first_of(&end))?;
            } else if hidden {
                self.entries.leave(true, self.all_versions)?;
            } else {
                self.entries.cursor.next()?;
            }
        }
        if let Some(upper) = &self.upper {
            self.passage.end_at(upper);
        }
        Ok(())
    }

    /// From where the cursor is, back to an entry to yield.
    fn back(&mut self) -> Result<()> {
        self.stand = Stand::None;
        self.apart = false;
        self.passage.begin();
        while self.gather_group()? {
            if self.saved.kind != Kind::Delete || self.all_versions {
                self.stand = Stand::Before;
                self.passage.end_behind(&self.saved.place);
                return match planted::is_on(Bug::PointersAreGivenOut) {
                    true => Ok(()),
                    false => self.fetch_if_apart(),
                };
            }
            if let Some((start, _)) = self.passage.over(&self.saved.place) {
                self.entries.cursor.seek_before(&Key::first_of(&start))?;
            }
        }
        self.passage.end_before(&self.lower);
        Ok(())
    }

    /// Reads the value of the entry if it lies apart.
    fn fetch_if_apart(&mut self) -> Result<()> {
        match self.saved.kind {
            Kind::Pointer => self.stand_apart(),
            _ => Ok(()),
        }
    }

    /// The value of the entry lies apart: reads it, unless that is to wait.
    fn stand_apart(&mut self) -> Result<()> {
        self.apart = true;
        self.is_fetched = false;
        match self.lazy_values {
            true => Ok(()),
            false => self.fetch(),
        }
    }

    /// The value that lies apart. REQUIRES: it does.
    fn fetch(&mut self) -> Result<()> {
        if self.is_fetched {
            return Ok(());
        }
        let pointer = match self.stand {
            Stand::On => self.entries.cursor.value(),
            _ => &self.saved.value,
        };
        self.fetched = self
            .values
            .get(pointer, std::mem::take(&mut self.fetched))?;
        self.is_fetched = true;
        Ok(())
    }

    /// What was read of the value that lies apart.
    fn fetched(&self) -> &Bytes {
        static NOT_YET: Bytes = Bytes::new();
        if self.is_fetched {
            &self.fetched
        } else {
            &NOT_YET
        }
    }

    /// Goes back past the last group of which the read sees something, and saves what it sees of it; false
    /// if there is none.
    fn gather_group(&mut self) -> Result<bool> {
        let mut found = false;
        while self.entries.cursor.valid() {
            let key = self.entries.cursor.key();
            if key.place < self.lower.as_slice() || found && !self.in_saved_group(&key) {
                break;
            }
            if !self.sees(&key) {
                self.entries.cursor.prev()?;
            } else if self.entries.hides_current(self.all_versions)? {
                self.pass_hidden()?;
            } else {
                found = true;
                let key = self.entries.cursor.key();
                self.saved.place.clear();
                self.saved.place.extend_from_slice(key.place);
                self.saved.version = key.version;
                let mut value = self.entries.cursor.value_bytes();
                self.saved.kind = self.expiry.kind(key.kind, &value);
                value.advance(self.value_at(value.len()));
                self.saved.value = value;
                self.entries.cursor.prev()?;
            }
        }
        Ok(found)
    }

    /// Where in the stored bytes of the saved entry the value begins; an expired one has none.
    fn value_at(&self, length: usize) -> usize {
        match self.saved.kind {
            Kind::Delete => length,
            kind => expiry::value_at(kind).min(length),
        }
    }

    /// Goes back from an entry that a range deletion hides.
    fn pass_hidden(&mut self) -> Result<()> {
        match self.passage.over(self.entries.cursor.key().place) {
            Some((start, _)) => self.entries.cursor.seek_before(&Key::first_of(&start)),
            None => self.entries.leave(false, self.all_versions),
        }
    }

    /// The entry after the current one.
    fn step_forward(&mut self) -> Result<()> {
        match self.stand {
            Stand::None => return Ok(()),
            Stand::On => self.entries.cursor.next()?,
            Stand::Before => {
                let first = Key::seek(&self.saved.place, self.group_version());
                self.entries.cursor.seek(&first)?;
            }
        }
        self.forward(true)
    }

    /// The entry before the current one.
    fn step_back(&mut self) -> Result<()> {
        match self.stand {
            Stand::None => return Ok(()),
            Stand::Before => {}
            Stand::On if planted::is_on(Bug::PrevOffByOne) => {}
            Stand::On => {
                let first = Key::seek(&self.saved.place, self.group_version());
                self.entries.cursor.seek_before(&first)?;
            }
        }
        self.back()
    }

    /// The highest version in the group in `saved`.
    fn group_version(&self) -> u64 {
        match self.all_versions {
            true => self.saved.version,
            false => u64::MAX,
        }
    }

    /// Remembers an error; a seek forgets it.
    fn keep(&mut self, result: Result<()>) -> Result<()> {
        if let Err(error) = &result {
            self.stand = Stand::None;
            self.failed = Some(error.clone());
        }
        result
    }

    fn seek_place(&mut self, place: &[u8]) -> Result<()> {
        self.failed = None;
        let sought = self.entries.cursor.seek(&Key::first_of(place));
        let sought = sought.and_then(|()| self.forward(false));
        self.keep(sought)
    }

    /// Goes to the last entry before the first one of `place`; before the end if there is none.
    fn seek_back(&mut self, place: Option<&[u8]>) -> Result<()> {
        self.failed = None;
        let sought = match place {
            Some(place) => self.entries.cursor.seek_before(&Key::first_of(place)),
            None => self.entries.cursor.seek_to_last(),
        };
        let sought = sought.and_then(|()| self.back());
        self.keep(sought)
    }
}

/// A range of user keys as a range of places.
pub(crate) fn bounds(
    keyspace: KeyspaceId,
    lower: &[u8],
    upper: Option<&[u8]>,
) -> (Vec<u8>, Option<Vec<u8>>) {
    let upper = match upper {
        Some(upper) => key::place(keyspace, upper),
        None => key::end_of_keyspace(keyspace),
    };
    (key::place(keyspace, lower), Some(upper))
}

impl Iter for UserIter {
    fn seek_to_first(&mut self) -> Result<()> {
        let lower = self.lower.clone();
        self.seek_place(&lower)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        let upper = self.upper.clone();
        self.seek_back(upper.as_deref())
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        let place = key::place(self.keyspace, key).max(self.lower.clone());
        self.seek_place(&place)
    }

    fn seek_for_prev(&mut self, key: &[u8]) -> Result<()> {
        // The first place behind that of the key.
        let mut place = key::place(self.keyspace, key);
        place.push(0);
        match &self.upper {
            Some(upper) if *upper < place => self.seek_to_last(),
            _ => self.seek_back(Some(&place)),
        }
    }

    fn next(&mut self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let stepped = self.step_forward();
        self.keep(stepped)
    }

    fn prev(&mut self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let stepped = self.step_back();
        self.keep(stepped)
    }

    fn valid(&self) -> bool {
        self.stand != Stand::None
    }

    fn key(&self) -> &[u8] {
        assert!(self.valid(), "the iterator stands on an entry");
        self.saved
            .place
            .get(key::KEYSPACE_BYTES..)
            .unwrap_or_default()
    }

    fn version(&self) -> u64 {
        assert!(self.valid(), "the iterator stands on an entry");
        self.saved.version
    }

    fn value(&self) -> &[u8] {
        if self.apart {
            return self.fetched();
        }
        match self.stand {
            Stand::On => {
                let stored = self.entries.cursor.value();
                &stored[self.value_at(stored.len())..]
            }
            _ => &self.saved.value,
        }
    }

    fn value_bytes(&self) -> Bytes {
        if self.apart {
            return self.fetched().clone();
        }
        match self.stand {
            Stand::On => {
                let mut value = self.entries.cursor.value_bytes();
                value.advance(self.value_at(value.len()));
                value
            }
            _ => self.saved.value.clone(),
        }
    }

    fn read_value(&mut self) -> Result<Bytes> {
        if self.apart {
            self.fetch()?;
        }
        Ok(self.value_bytes())
    }

    fn is_deletion(&self) -> bool {
        self.saved.kind == Kind::Delete
    }
}

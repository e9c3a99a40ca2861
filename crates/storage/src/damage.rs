//! Damaged files: noted when something read of them is not what was written, judged by reading them anew, and
//! given up, so that compaction goes around what is lost.
//!
//! ```text
//! a read fails ─► noted ─► judged: which places may be lost? ─► the owner takes what he needs to do about them
//!                            └─ nothing: forgotten              └─► given up: compaction leaves them out
//! ```
//!
//! Until it is given up, a damaged file stops compactions that need it, and afterwards reads of what is lost
//! fail as before: nothing is ever read as if it had not been there. What compaction leaves out, though, no
//! longer hides what lies below it. So whoever gives a file up must first see to it that nobody reads those
//! places until their ranges are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::error::{Error, ErrorKind};
use crate::iter::bounds;
use crate::options::KeyspaceId;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// A table or value file of which something is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedFile {
    pub(crate) number: u64,
    pub(crate) lost: Lost,
    /// Where it is.
    pub path: PathBuf,
    /// What was found first.
    pub what: String,
    /// Where what is lost may have been: from a place to below another.
    pub(crate) places: Vec<(Vec<u8>, Vec<u8>)>,
}

impl DamagedFile {
    /// Whether something of these keys may be lost; without an upper end, to the end of the keyspace.
    pub fn touches(&self, keyspace: KeyspaceId, lower: &[u8], upper: Option<&[u8]>) -> bool {
        let (lower, upper) = bounds(keyspace, lower, upper);
        let below = |place: &[u8]| upper.as_deref().is_none_or(|upper| place < upper);
        self.places
            .iter()
            .any(|(from, to)| below(from) && lower < *to)
    }
}

/// What of a file can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lost {
    /// All of a table.
    Table,
    /// What lies at these offsets: blocks of a table, records of a value file.
    At(BTreeSet<u64>),
}

impl Lost {
    fn has(&self, offset: Option<u64>) -> bool {
        match (self, offset) {
            (Lost::Table, _) => true,
            (Lost::At(offsets), Some(offset)) => offsets.contains(&offset),
            (Lost::At(_), None) => false,
        }
    }
}

/// The damaged files of an engine.
#[derive(Default)]
pub(crate) struct Damages {
    /// Whether something is noted and not judged: looked at without a lock.
    is_noted: AtomicBool,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// What was said first of files that are to be judged.
    noted: BTreeMap<u64, String>,
    given_up: BTreeMap<u64, Lost>,
}

impl Damages {
    /// Notes an error that something of a file gave, if it speaks of damage that is not known.
    pub(crate) fn note(&self, file: u64, offset: Option<u64>, error: &Error) {
        if error.kind() != ErrorKind::Corruption {
            return;
        }
        let mut book = self.book.lock();
        if book
            .given_up
            .get(&file)
            .is_some_and(|lost| lost.has(offset))
        {
            return;
        }
        let what = error.message().to_owned();
        book.noted.entry(file).or_insert(what);
        self.is_noted.store(true, Ordering::Release);
    }

    /// Whether something is to be judged.
    pub(crate) fn is_noted(&self) -> bool {
        self.is_noted.load(Ordering::Acquire)
    }

    /// Takes what is to be judged: files and what was said of them.
    pub(crate) fn take_noted(&self) -> BTreeMap<u64, String> {
        let mut book = self.book.lock();
        self.is_noted.store(false, Ordering::Release);
        std::mem::take(&mut book.noted)
    }

    /// What was noted of a file is known by now.
    pub(crate) fn forget_noted(&self, file: u64) {
        self.book.lock().noted.remove(&file);
    }

    /// From now on compaction goes without it.
    pub(crate) fn give_up(&self, file: u64, lost: Lost) {
        let mut book = self.book.lock();
        book.noted.remove(&file);
        book.given_up.insert(file, lost);
    }

    /// What of a file was given up.
    pub(crate) fn lost_of(&self, file: u64) -> Option<Lost> {
        self.book.lock().given_up.get(&file).cloned()
    }

    /// Whether all of a table was given up.
    pub(crate) fn is_lost(&self, table: u64) -> bool {
        matches!(self.lost_of(table), Some(Lost::Table))
    }

    /// Whether something of a file was given up.
    pub(crate) fn is_given_up(&self, file: u64) -> bool {
        self.book.lock().given_up.contains_key(&file)
    }

    /// Forgets files that are gone.
    pub(crate) fn retain(&self, is_there: impl Fn(u64) -> bool) {
        self.book.lock().given_up.retain(|file, _| is_there(*file));
    }
}

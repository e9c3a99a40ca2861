//! Which shard has a key: by hash, by range, or by a table. No I/O.

use std::collections::{BTreeMap, HashMap};

use crate::{Error, ErrorKind, Result};

/// A key as bytes. Numbers are in an encoding whose order is theirs, so that ranges of them are ranges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl From<i64> for Key {
    fn from(number: i64) -> Key {
        Key((number.cast_unsigned() ^ (1 << 63)).to_be_bytes().to_vec())
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Key {
        Key(text.as_bytes().to_vec())
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Key {
        Key(bytes.to_vec())
    }
}

impl Key {
    /// Data lies where it says: it is a format.
    pub(super) fn hash(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.0)
    }
}

/// Which shard has a key. Shards are numbered from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router(Rule);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// The shard of each bucket.
    Hash(Vec<usize>),
    /// The shard from each key on, up to the next.
    Range(BTreeMap<Key, usize>),
    /// The shard of each key, and of the others.
    Lookup(HashMap<Key, usize>, Option<usize>),
}

impl Router {
    /// By hash: the key's xxh3-64 modulo the number of buckets gives a bucket, and `buckets` the shard of
    /// each. Have many more buckets than shards: moving a bucket moves only its keys, and the number of
    /// buckets never changes.
    ///
    /// Errors: `Invalid` without buckets.
    pub fn hash(buckets: Vec<usize>) -> Result<Router> {
        if buckets.is_empty() {
            return invalid("a router by hash needs buckets");
        }
        Ok(Router(Rule::Hash(buckets)))
    }

    /// By hash, with so many buckets dealt out evenly.
    pub fn hash_evenly(shards: usize, buckets: usize) -> Result<Router> {
        if shards == 0 || buckets < shards {
            return invalid("each shard needs a bucket");
        }
        Router::hash(
            (0..buckets)
                .map(|bucket| bucket * shards / buckets)
                .collect(),
        )
    }

    /// By range: the shard from each key on, up to the next. Keys before the first have none.
    ///
    /// Errors: `Invalid` without ranges, and for a key that is there twice.
    pub fn range(from: impl IntoIterator<Item = (Key, usize)>) -> Result<Router> {
        let mut ranges = BTreeMap::new();
        for (key, shard) in from {
            if ranges.insert(key, shard).is_some() {
                return invalid("two ranges begin at one key");
            }
        }
        if ranges.is_empty() {
            return invalid("a router by range needs ranges");
        }
        Ok(Router(Rule::Range(ranges)))
    }

    /// By a table; keys that are not in it are in `otherwise`, or have no shard.
    pub fn lookup(
        entries: impl IntoIterator<Item = (Key, usize)>,
        otherwise: Option<usize>,
    ) -> Router {
        Router(Rule::Lookup(entries.into_iter().collect(), otherwise))
    }

    /// The shard that has a key.
    ///
    /// Errors: `Invalid` for a key that has none.
    pub fn for_key(&self, key: &Key) -> Result<usize> {
        let found = match &self.0 {
            Rule::Hash(buckets) => {
                let bucket = key.hash() % buckets.len() as u64;
                Some(buckets[bucket as usize])
            }
            Rule::Range(ranges) => ranges.range(..=key).next_back().map(|(_, shard)| *shard),
            Rule::Lookup(entries, otherwise) => entries.get(key).copied().or(*otherwise),
        };
        match found {
            Some(shard) => Ok(shard),
            None => invalid("no shard has that key: it is before all ranges, or not in the table"),
        }
    }

    /// One more than the highest number of a shard that it names.
    pub fn shards(&self) -> usize {
        let highest = match &self.0 {
            Rule::Hash(buckets) => buckets.iter().max(),
            Rule::Range(ranges) => ranges.values().max(),
            Rule::Lookup(entries, otherwise) => entries.values().chain(otherwise).max(),
        };
        highest.map_or(0, |highest| highest + 1)
    }
}

fn invalid<T>(text: &str) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, text))
}

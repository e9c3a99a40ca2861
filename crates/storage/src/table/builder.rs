//! Writes tables.

use std::path::Path;
use std::sync::Arc;

use quorate_env::Disk;

use super::append::Appender;
use super::block::BlockBuilder;
use super::filter::FilterBuilder;
use super::format::{Footer, Handle, MAGIC, Properties, TRAILER_BYTES, seal_block};
use crate::error::Result;
use crate::header;
use crate::key::{Key, Kind, keyspace_of};
use crate::options::{Compression, KeyspaceId, Options};
use crate::planted::{self, Bug};
use crate::prefix::Prefix;
use crate::tombstones::Tombstones;

/// How many entries lie between restart points.
const RESTART_INTERVAL: usize = 16;

/// How tables are written.
#[derive(Debug, Clone)]
pub(crate) struct TableOptions {
    pub(crate) block_bytes: usize,
    pub(crate) filter_bits_per_key: u32,
    pub(crate) compression: Compression,
    /// Of the keyspaces that have one.
    pub(crate) prefixes: Arc<[(KeyspaceId, Prefix)]>,
    /// When all that comes was written, at the latest; 0 if that is not known.
    pub(crate) written_ms: u64,
}

impl TableOptions {
    /// Those of an engine's settings.
    pub(crate) fn new(options: &Options, compression: Compression, written_ms: u64) -> Self {
        let with_prefix = options
            .keyspaces
            .iter()
            .filter(|k| k.prefix != Prefix::None);
        TableOptions {
            block_bytes: options.block_bytes,
            filter_bits_per_key: options.filter_bits_per_key,
            compression,
            prefixes: match options.filter_bits_per_key {
                0 => Arc::default(),
                _ => with_prefix.map(|k| (k.id, k.prefix)).collect(),
            },
            written_ms,
        }
    }

    fn prefix(&self, id: KeyspaceId) -> Prefix {
        let found = self.prefixes.iter().find(|(of, _)| *of == id);
        found.map_or(Prefix::None, |(_, prefix)| *prefix)
    }
}

/// A table that is being written.
pub(crate) struct TableBuilder {
    file: Appender,
    options: TableOptions,
    block: BlockBuilder,
    index: BlockBuilder,
    filter: FilterBuilder,
    tombstones: Tombstones,
    properties: Properties,
    /// The last place, version and sequence added.
    last: (Vec<u8>, u64, u64),
    /// The block that ended with `last` and is not yet in the index: its separator depends on what
    /// comes next.
    ended: Option<Handle>,
}

impl TableBuilder {
    pub(crate) fn create(disk: &dyn Disk, path: &Path, options: TableOptions) -> Result<Self> {
        Ok(TableBuilder {
            file: Appender::create(disk, path, &header::encode(&MAGIC))?,
            filter: FilterBuilder::new(options.filter_bits_per_key),
            block: BlockBuilder::new(RESTART_INTERVAL),
            index: BlockBuilder::new(1),
            tombstones: Tombstones::default(),
            properties: Properties {
                compression: options.compression,
                ..Properties::default()
            },
            options,
            last: (Vec::new(), 0, 0),
            ended: None,
        })
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.properties.entries == 0
    }

    /// The size so far, about.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.file.offset() + self.block.size_bytes() as u64
    }

    /// The place that was added last.
    pub(crate) fn last_place(&self) -> &[u8] {
        &self.last.0
    }

    /// Adds an entry. A block with its trailer takes no more than the options say, unless for one entry:
    /// so that it fits what an allocator has for that size, mostly a power of two.
    ///
    /// REQUIRES: `key` is after all before it.
    pub(crate) fn add(&mut self, key: &Key<'_>, value: &[u8]) -> Result<()> {
        let size = self.block.size_bytes() + BlockBuilder::bytes_for(key, value) + TRAILER_BYTES;
        if size > self.options.block_bytes && !self.block.is_empty() {
            self.end_block()?;
        }
        if let Some(handle) = self.ended.take() {
            self.index_block(handle, Some(key.place));
        }
        debug_assert!(
            self.is_empty() || self.last_key().order(key).is_lt(),
            "entries ascend"
        );
        if self.is_empty() || self.last.0 != key.place {
            match planted::is_on(Bug::FilterOfWrongKey) {
                true => self.filter.add(&[key.place, &[key.version as u8]].concat()),
                false => self.filter.add(key.place),
            }
            if !self.options.prefixes.is_empty() {
                self.add_prefix(key.place);
            }
        }
        self.block.add(key, value);
        self.properties.count(key, value);
        self.last.0.clear();
        self.last.0.extend_from_slice(key.place);
        self.last.1 = key.version;
        self.last.2 = key.sequence;
        Ok(())
    }

    fn add_prefix(&mut self, place: &[u8]) {
        let prefix = self.options.prefix(keyspace_of(place));
        if let Some(prefix) = prefix.of_place(place)
            && !planted::is_on(Bug::PrefixesAreNotInTheFilter)
        {
            self.filter.add_prefix(prefix);
        }
    }

    fn last_key(&self) -> Key<'_> {
        Key {
            place: &self.last.0,
            version: self.last.1,
            sequence: self.last.2,
            kind: Kind::Put,
        }
    }

    /// Takes the range deletions of the table, all at once. They may reach beyond its entries.
    pub(crate) fn set_tombstones(&mut self, tombstones: Tombstones) {
        self.tombstones = tombstones;
    }

    fn end_block(&mut self) -> Result<()> {
        let compression = self.options.compression;
        let bytes = self.block.finish();
        self.ended = Some(seal_into(&mut self.file, bytes, compression)?);
        self.block.reset();
        Ok(())
    }

    /// Adds a block to the index under a key that is at or after its last entry and before the
    /// first of the next block: the shortest such place when the place changes there.
    fn index_block(&mut self, handle: Handle, next: Option<&[u8]>) {
        let (place, version, sequence) = &self.last;
        let mut key = Key {
            place,
            version: *version,
            sequence: *sequence,
            kind: Kind::Put,
        };
        let short;
        if next.is_none_or(|next| next != place) {
            short = separator(place, next);
            key = Key::last_of(&short);
        }
        self.index.add(&key, &handle.encode());
    }

    /// Writes the rest and syncs the file; its name is durable only after a sync of its directory.
    /// Returns its size and what it holds.
    pub(crate) fn finish(mut self) -> Result<(u64, Properties)> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        if let Some(handle) = self.ended.take() {
            self.index_block(handle, None);
        }
        if self.properties.entries > 0 {
            self.properties.ended_with(&self.last.0);
        }
        self.properties.count_tombstones(&self.tombstones);
        self.properties.written_ms = self.options.written_ms;
        for of in &mut self.properties.keyspaces {
            of.prefix = self.options.prefix(of.id);
        }
        let compression = self.options.compression;
        let file = &mut self.file;
        let index = seal_into(file, self.index.finish(), compression)?;
        let filter = seal_into(file, &self.filter.finish(), Compression::None)?;
        let tombstones = match self.tombstones.is_empty() {
            true => Handle::default(),
            false => seal_into(file, &self.tombstones.encode(), compression)?,
        };
        let mut properties = Vec::new();
        self.properties.encode(&mut properties);
        let properties = seal_into(file, &properties, Compression::None)?;
        let footer = Footer {
            index,
            filter,
            properties,
            tombstones,
        };
        file.append(|out, _| out.extend_from_slice(&footer.encode()))?;
        let size = self.file.finish(!planted::is_on(Bug::TablesUnsynced))?;
        Ok((size, self.properties))
    }
}

/// Adds a block to a file.
fn seal_into(file: &mut Appender, bytes: &[u8], compression: Compression) -> Result<Handle> {
    let (offset, size) = file.append(|out, offset| {
        seal_block(out, offset, bytes, compression);
    })?;
    Ok(Handle { offset, size })
}

/// The shortest place at or after `last` and before `next`, or `last` if there is no shorter one.
fn separator(last: &[u8], next: Option<&[u8]>) -> Vec<u8> {
    let Some(next) = next else {
        return last.to_vec();
    };
    let shared = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    if let (Some(a), Some(b)) = (last.get(shared), next.get(shared)) {
        // `last` < `next`, so a < b; a step up of `a` must stay below `b` or be followed by more.
        if *a + 1 < *b && shared + 1 < last.len() {
            let mut short = last[..=shared].to_vec();
            short[shared] += u8::from(!planted::is_on(Bug::SeparatorTooLow));
            return short;
        }
    }
    last.to_vec()
}

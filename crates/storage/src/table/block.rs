//! Blocks: sorted entries in a few kilobytes, each key written as its difference to the one before.
//!
//! Every sixteenth entry is a restart point with its whole key; the block ends with their offsets,
//! so that a search bisects them and then walks. Invariant of a sound block: entries ascend, and the
//! first one is a restart point. A block passed its checksum before it gets here, yet nothing here
//! trusts a length in it.

use bytes::{Buf, Bytes};

use crate::codec::{Reader, put_varint};
use crate::key::{Key, Kind};
use crate::planted::{self, Bug};

/// In the byte of the kind: a version follows, a sequence follows. Those that are 0 are left out.
const HAS_VERSION: u8 = 0x80;
const HAS_SEQUENCE: u8 = 0x40;

/// Puts a block together.
pub(crate) struct BlockBuilder {
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    last_place: Vec<u8>,
    since_restart: usize,
    restart_interval: usize,
}

impl BlockBuilder {
    pub(crate) fn new(restart_interval: usize) -> Self {
        BlockBuilder {
            bytes: Vec::new(),
            restarts: Vec::new(),
            last_place: Vec::new(),
            since_restart: 0,
            restart_interval,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.restarts.is_empty()
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len() + 4 * self.restarts.len() + 4
    }

    /// What an entry adds, or a little more: nothing is known of what it shares with the one before.
    pub(crate) fn bytes_for(key: &Key<'_>, value: &[u8]) -> usize {
        let numbers = 8 + 5 * usize::from(key.version > 0) + 5 * usize::from(key.sequence > 0);
        key.place.len() + value.len() + numbers
    }

    /// REQUIRES: `key` is after all before it.
    pub(crate) fn add(&mut self, key: &Key<'_>, value: &[u8]) {
        let mut shared = 0;
        if self.restarts.is_empty() || self.since_restart == self.restart_interval {
            self.restarts.push(self.bytes.len() as u32);
            self.since_restart = 0;
        } else {
            shared = common_prefix(&self.last_place, key.place);
        }
        self.since_restart += 1;
        let own = &key.place[shared..];
        let out = &mut self.bytes;
        put_varint(out, shared as u64);
        put_varint(out, own.len() as u64);
        put_varint(out, value.len() as u64);
        let version = if key.version > 0 { HAS_VERSION } else { 0 };
        let sequence = if key.sequence > 0 { HAS_SEQUENCE } else { 0 };
        out.push(key.kind as u8 | version | sequence);
        if key.version > 0 {
            put_varint(out, key.version);
        }
        if key.sequence > 0 {
            put_varint(out, key.sequence);
        }
        out.extend_from_slice(own);
        out.extend_from_slice(value);
        self.last_place.truncate(shared);
        self.last_place.extend_from_slice(own);
    }

    /// The block's bytes, until [`BlockBuilder::reset`].
    pub(crate) fn finish(&mut self) -> &[u8] {
        for restart in &self.restarts {
            self.bytes.extend_from_slice(&restart.to_le_bytes());
        }
        let count = self.restarts.len() as u32;
        self.bytes.extend_from_slice(&count.to_le_bytes());
        &self.bytes
    }

    pub(crate) fn reset(&mut self) {
        self.bytes.clear();
        self.restarts.clear();
        self.last_place.clear();
        self.since_restart = 0;
    }
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let mut at = 0;
    while at + 8 <= most && a[at..at + 8] == b[at..at + 8] {
        at += 8;
    }
    while at < most && a[at] == b[at] {
        at += 1;
    }
    at
}

/// A block in memory. Clones share the bytes.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    bytes: Bytes,
    /// Where the entries end and the restart offsets begin.
    entries_end: u32,
    restarts: u32,
}

/// The parts of an entry.
struct Parts<'a> {
    shared: usize,
    own: &'a [u8],
    version: u64,
    sequence: u64,
    kind: Kind,
    /// The value, in the block.
    value: (u32, u32),
}

/// What is wrong with a block.
pub(crate) type Damage = &'static str;

impl Block {
    pub(crate) fn new(bytes: Bytes) -> Result<Block, Damage> {
        let count = bytes.last_chunk::<4>().copied().map(u32::from_le_bytes);
        let restarts = count.ok_or("a block is too short")?;
        let tail = (restarts as usize)
            .checked_mul(4)
            .and_then(|n| n.checked_add(4));
        let end = tail.and_then(|tail| bytes.len().checked_sub(tail));
        let end = end.ok_or("a block has more restart points than bytes")?;
        if bytes.len() > u32::MAX as usize / 2 || (restarts == 0) != (end == 0) {
            return Err("a block has entries without restart points");
        }
        Ok(Block {
            bytes,
            entries_end: end as u32,
            restarts,
        })
    }

    /// A block without entries.
    pub(crate) fn empty() -> Block {
        Block {
            bytes: Bytes::from_static(&[0; 4]),
            entries_end: 0,
            restarts: 0,
        }
    }

    /// What it takes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// A part of the block, which it keeps alive.
    pub(crate) fn into_value(self, (from, to): (u32, u32)) -> Bytes {
        let mut bytes = self.bytes;
        bytes.truncate(to as usize);
        bytes.advance(from as usize);
        bytes
    }

    /// How many restart points it has.
    pub(crate) fn restarts(&self) -> usize {
        self.restarts as usize
    }

    fn restart(&self, n: u32) -> Option<u32> {
        let at = self.entries_end as usize + 4 * n as usize;
        let bytes = self.bytes.get(at..at + 4)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes)).filter(|at| *at < self.entries_end)
    }

    /// The entry at an offset, and the offset of the one after it.
    #[inline]
    fn entry(&self, at: u32) -> Option<(Parts<'_>, u32)> {
        let rest = self.bytes.get(at as usize..self.entries_end as usize)?;
        let mut reader = Reader::new(rest);
        let shared = reader.length()?;
        let own = reader.length()?;
        let value = reader.length()?;
        let head = reader.u8()?;
        let version = match head & HAS_VERSION {
            0 => 0,
            _ => reader.varint()?,
        };
        let sequence = match head & HAS_SEQUENCE {
            0 => 0,
            _ => reader.varint()?,
        };
        let kind = Kind::from_u8(head & !(HAS_VERSION | HAS_SEQUENCE))
            .filter(|kind| *kind != Kind::RangeDelete)?;
        let own = reader.take(own)?;
        let value_at = self.entries_end - reader.remaining() as u32;
        reader.take(value)?;
        let end = self.entries_end - reader.remaining() as u32;
        let parts = Parts {
            shared,
            own,
            version,
            sequence,
            kind,
            value: (value_at, end),
        };
        Some((parts, end))
    }

    /// The last restart point whose entry is before `target`; 0 if none is.
    fn restart_before(&self, target: &Key<'_>) -> Result<u32, Damage> {
        let (mut low, mut high) = (0, self.restarts);
        // Invariant: entries at restarts below `low` are before the target, from `high` on not.
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.restart(middle).ok_or(NONSENSE)?;
            let (parts, _) = self.entry(at).ok_or(NONSENSE)?;
            let key = Key {
                place: parts.own,
                version: parts.version,
                sequence: parts.sequence,
                kind: parts.kind,
            };
            if key.order(target).is_lt() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if planted::is_on(Bug::RestartOffByOne) {
            return Ok(low.min(self.restarts - 1));
        }
        Ok(low.saturating_sub(1))
    }

    /// The first entry of the target's place at its version or below that `sequence` sees.
    ///
    /// Keys are not put together on the way. As long as entries are before the target, `matched` is how
    /// many bytes of its place the last of them begins with; one that shares more than that with the
    /// last differs from the target where that did, and one that shares less is behind the target.
    pub(crate) fn find(&self, target: &Key<'_>, sequence: u64) -> Result<Lookup, Damage> {
        if self.restarts == 0 {
            return Ok(Lookup::Behind);
        }
        let mut at = self.restart(self.restart_before(target)?).ok_or(NONSENSE)?;
        let mut matched = 0;
        while at < self.entries_end {
            let (parts, after) = self.entry(at).ok_or(NONSENSE)?;
            at = after;
            if parts.shared == 0 {
                // A whole place, as at restart points.
                matched = 0;
            }
            if parts.shared > matched {
                continue;
            }
            if parts.shared < matched {
                return Ok(Lookup::Absent);
            }
            let rest = &target.place[matched..];
            let common = common_prefix(parts.own, rest);
            matched += common;
            let visible = parts.version <= target.version && parts.sequence <= sequence;
            match (parts.own.get(common), rest.get(common)) {
                (None, None) if visible => {
                    return Ok(Lookup::Found(FoundInBlock {
                        version: parts.version,
                        sequence: parts.sequence,
                        kind: parts.kind,
                        value: parts.value,
                    }));
                }
                (Some(own), Some(wanted)) if own > wanted => return Ok(Lookup::Absent),
                (Some(_), None) => return Ok(Lookup::Absent),
                _ => {}
            }
        }
        Ok(Lookup::Behind)
    }
}

/// What a lookup in one block gave.
pub(crate) enum Lookup {
    /// The table does not hold it.
    Absent,
    /// The entry.
    Found(FoundInBlock),
    /// All entries of the block are before it: the next block may hold it.
    Behind,
}

/// An entry found in a block.
pub(crate) struct FoundInBlock {
    pub(crate) version: u64,
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
    /// The value, in the block.
    pub(crate) value: (u32, u32),
}

const NONSENSE: Damage = "an entry of a block is nonsense";

/// A place in a block.
pub(crate) struct BlockCursor {
    block: Block,
    /// Where the entry begins; the end of the entries when invalid.
    at: u32,
    after: u32,
    place: Vec<u8>,
    version: u64,
    sequence: u64,
    kind: Kind,
    value: (u32, u32),
    /// Entries before this one, for going back.
    trail: Trail,
}

/// The entries between a restart point and the cursor, of which going back takes the last.
#[derive(Default)]
struct Trail {
    steps: Vec<Step>,
    /// Their places, one after the other.
    places: Vec<u8>,
}

struct Step {
    at: u32,
    after: u32,
    /// Where its place begins in `places`.
    place: usize,
    version: u64,
    sequence: u64,
    kind: Kind,
    value: (u32, u32),
}

impl Trail {
    fn clear(&mut self) {
        self.steps.clear();
        self.places.clear();
    }
}

impl BlockCursor {
    pub(crate) fn new(block: Block) -> Self {
        BlockCursor {
            at: block.entries_end,
            after: block.entries_end,
            block,
            place: Vec::new(),
            version: 0,
            sequence: 0,
            kind: Kind::Put,
            value: (0, 0),
            trail: Trail::default(),
        }
    }

    /// Takes another block, keeping the memory of this one's key.
    pub(crate) fn set_block(&mut self, block: Block) {
        self.at = block.entries_end;
        self.after = block.entries_end;
        self.block = block;
        self.trail.clear();
    }

    pub(crate) fn valid(&self) -> bool {
        self.at < self.block.entries_end
    }

    pub(crate) fn key(&self) -> Key<'_> {
        Key {
            place: &self.place,
            version: self.version,
            sequence: self.sequence,
            kind: self.kind,
        }
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.block.bytes[self.value.0 as usize..self.value.1 as usize]
    }

    /// The value, sharing the block's memory.
    pub(crate) fn value_bytes(&self) -> Bytes {
        let (from, to) = self.value;
        self.block.bytes.slice(from as usize..to as usize)
    }

    pub(crate) fn go_nowhere(&mut self) -> Result<(), Damage> {
        self.invalidate();
        Ok(())
    }

    pub(crate) fn invalidate(&mut self) {
        self.at = self.block.entries_end;
        self.after = self.at;
    }

    /// Stands on the entry at an offset; the place buffer holds the place before it.
    #[inline]
    fn load(&mut self, at: u32) -> Result<(), Damage> {
        if at >= self.block.entries_end {
            self.invalidate();
            return Ok(());
        }
        let entry = self.block.entry(at);
        let Some((parts, after)) = entry.filter(|(p, _)| p.shared <= self.place.len()) else {
            self.invalidate();
            return Err(NONSENSE);
        };
        self.place.truncate(parts.shared);
        self.place.extend_from_slice(parts.own);
        self.version = parts.version;
        self.sequence = parts.sequence;
        self.kind = parts.kind;
        self.value = parts.value;
        self.at = at;
        self.after = after;
        Ok(())
    }

    fn load_restart(&mut self, n: u32) -> Result<(), Damage> {
        self.place.clear();
        match self.block.restart(n) {
            Some(at) => self.load(at),
            None => {
                self.invalidate();
                Err(NONSENSE)
            }
        }
    }

    /// Goes to a restart point; behind the last one it is not valid.
    pub(crate) fn load_restart_or_end(&mut self, n: usize) -> Result<(), Damage> {
        match n < self.block.restarts() {
            true => self.load_restart(n as u32),
            false => self.go_nowhere(),
        }
    }

    pub(crate) fn seek_to_first(&mut self) -> Result<(), Damage> {
        match self.block.restarts {
            0 => self.go_nowhere(),
            _ => self.load_restart(0),
        }
    }

    pub(crate) fn seek_to_last(&mut self) -> Result<(), Damage> {
        let Some(last) = self.block.restarts.checked_sub(1) else {
            return self.go_nowhere();
        };
        self.trail.clear();
        self.load_restart(last)?;
        while self.after < self.block.entries_end {
            self.leave_a_step();
            self.load(self.after)?;
        }
        Ok(())
    }

    pub(crate) fn seek(&mut self, target: &Key<'_>) -> Result<(), Damage> {
        if self.block.restarts == 0 {
            return self.go_nowhere();
        }
        let restart = self.block.restart_before(target)?;
        self.load_restart(restart)?;
        while self.valid() && self.key().order(target).is_lt() {
            self.load(self.after)?;
        }
        Ok(())
    }

    pub(crate) fn seek_before(&mut self, target: &Key<'_>) -> Result<(), Damage> {
        self.seek(target)?;
        match self.valid() {
            true => self.prev(),
            false => self.seek_to_last(),
        }
    }

    pub(crate) fn next(&mut self) -> Result<(), Damage> {
        self.load(self.after)
    }

    /// Puts the entry it stands on at the end of the trail.
    fn leave_a_step(&mut self) {
        self.trail.steps.push(Step {
            at: self.at,
            after: self.after,
            place: self.trail.places.len(),
            version: self.version,
            sequence: self.sequence,
            kind: self.kind,
            value: self.value,
        });
        self.trail.places.extend_from_slice(&self.place);
    }

    /// Goes to the entry at the end of the trail, if there is one, and takes it off.
    fn step_back(&mut self) {
        let Some(step) = self.trail.steps.pop() else {
            return;
        };
        self.place.clear();
        self.place
            .extend_from_slice(&self.trail.places[step.place..]);
        self.trail.places.truncate(step.place);
        self.version = step.version;
        self.sequence = step.sequence;
        self.kind = step.kind;
        self.value = step.value;
        self.at = step.at;
        self.after = step.after;
    }

    pub(crate) fn prev(&mut self) -> Result<(), Damage> {
        let here = self.at;
        if self
            .trail
            .steps
            .last()
            .is_some_and(|step| step.after == here)
        {
            self.step_back();
            return Ok(());
        }
        if here == 0 {
            return self.go_nowhere();
        }
        // The last restart point before here.
        let (mut low, mut high) = (0, self.block.restarts);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.block.restart(middle).ok_or(NONSENSE)? < here {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        self.trail.clear();
        self.load_restart(low.saturating_sub(1))?;
        while self.after < here {
            self.leave_a_step();
            self.load(self.after)?;
        }
        if self.after != here {
            self.invalidate();
            return Err(NONSENSE);
        }
        Ok(())
    }
}

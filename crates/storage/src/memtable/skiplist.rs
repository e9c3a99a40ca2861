//! A skip list in an arena, into which many threads insert at once.
//!
//! This module and the arena's hold all unsafe code of the crate. Entries live in one block of memory that
//! never moves, and are named by their 32-bit offset in it: half the size of pointers, and the whole list
//! is freed at once. Nothing is ever removed or changed but the links.
//!
//! ```text
//! node = tower (height × AtomicU32, the lowest level last: the next node of each level),
//!        place length u32, value length u32, version u64, sequence << 8 | kind u64, place, value
//! ```
//!
//! A node's offset is that of its place length, a multiple of 8; the tower lies before it. So what a
//! search reads of a node, the lowest links and the beginning of the place, is close together.
//!
//! # Why it is sound
//!
//! - **I1.** `allocate` gives out each byte of the arena at most once (one `fetch_add`), inside the
//!   arena, at a multiple of 8. So until a node is linked, its inserter alone can touch it.
//! - **I2.** A node is linked (its offset stored in a tower) only after all its bytes are written,
//!   by a compare-exchange with `Release`. Offsets of nodes are learned only from towers, by loads
//!   with `Acquire`, or from `tails`, stored there with `Release` after the node was linked at that
//!   level and loaded with `Acquire`, or are those of the head. So whoever has an offset sees the whole node.
//! - **I3.** After linking nothing but the tower changes, and that only by atomic operations.
//!   References to the other fields may be shared freely for as long as the arena lives.
//! - **I4.** The arena is freed with the list; every reference handed out borrows the
//!   list, and a [`ListCursor`] owns a share of it.
//! - **I5.** A cursor's offset came from the list that it owns: the field is private to this module.
#![expect(
    unsafe_code,
    reason = "arena memory shared between threads; see the invariants above"
)]

mod many;

pub(crate) use many::TOGETHER;

use std::cmp::Ordering as Order;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use bytes::Bytes;

use super::arena::Arena;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::key::{Key, Kind};
use crate::memory::HeldMemtable;
use crate::planted::{self, Bug};

const MAX_HEIGHT: usize = 12;
const ALIGN: usize = 8;
/// Where the place begins in a node.
const PLACE: usize = 24;
/// The head node: a tower and numbers that are zeros. 0 means "no node".
const HEAD: u32 = (4 * MAX_HEIGHT).next_multiple_of(ALIGN) as u32;
const HEAD_END: usize = HEAD as usize + PLACE;

/// The list.
pub(crate) struct SkipList {
    arena: Arena,
    used: AtomicUsize,
    /// No node is higher than this.
    height: AtomicUsize,
    /// Where each level may end: a node that was the last of it when it was linked, or the head.
    tails: [AtomicU32; MAX_HEIGHT],
    _held: Option<HeldMemtable>,
}

// SAFETY: the arena is owned by the list, and by I1 to I3 each byte of it is either private to one
// inserter, or unchanging, or atomic.
unsafe impl Send for SkipList {}
// SAFETY: as above.
unsafe impl Sync for SkipList {}

/// Of each level the last node before a key, and the one after that.
type Splice = [(u32, u32); MAX_HEIGHT];

/// The fixed part of a node, as read.
struct Head<'a> {
    version: u64,
    sequence_kind: u64,
    place: &'a [u8],
    value_len: usize,
    value_at: usize,
}

/// The height of the node with this sequence: 1 with a chance of 3/4, 2 with 3/16, and so on. A
/// function of the sequence, so that the memory for a batch is known before it is inserted, and a
/// replay builds the same list.
fn height_of(sequence: u64) -> usize {
    let mut z = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z ^= z >> 32;
    (1 + z.trailing_zeros() as usize / 2).min(MAX_HEIGHT)
}

/// The bytes that an entry takes, at most, beside place and value.
const PER_NODE: usize = PLACE + 2 * (ALIGN - 1);

/// The bytes that entries take whose places and values have `payload` bytes together.
pub(crate) fn bytes_needed(payload: usize, first_sequence: u64, count: usize) -> usize {
    let tower = |n: u64| 4 * height_of(first_sequence + n);
    if count == 1 {
        // Exactly, so that memtables get full where batches are small.
        let tower = tower(0).next_multiple_of(ALIGN);
        return (tower + PLACE + payload).next_multiple_of(ALIGN);
    }
    let towers: usize = (0..count as u64).map(tower).sum();
    payload + count * PER_NODE + towers
}

/// Whether a memtable can hold entries whose places and values have `payload` bytes together.
pub(crate) fn can_hold(payload: usize, count: usize) -> bool {
    let most = count.saturating_mul(PER_NODE + 4 * MAX_HEIGHT);
    let size = payload
        .saturating_add(most)
        .saturating_add(HEAD_END + ALIGN);
    size < u32::MAX as usize
}

impl SkipList {
    #[cfg(test)]
    pub(crate) fn new(capacity: usize) -> Self {
        SkipList::counted(capacity, None)
    }

    /// An empty list with room for `bytes_needed` up to `capacity`, below 4 GiB; counted for as long as it
    /// lives.
    pub(crate) fn counted(capacity: usize, held: Option<HeldMemtable>) -> Self {
        let size = (HEAD_END + capacity).next_multiple_of(ALIGN);
        assert!(size < u32::MAX as usize, "an arena is below 4 GiB");
        let arena = Arena::new(size);
        // SAFETY: the arena is larger than the head, and nobody else knows of it. The head's tower is
        // all zeros: no nodes.
        unsafe { arena.base().write_bytes(0, HEAD_END) };
        SkipList {
            arena,
            used: AtomicUsize::new(HEAD_END),
            height: AtomicUsize::new(1),
            tails: std::array::from_fn(|_| AtomicU32::new(HEAD)),
            _held: held,
        }
    }

    /// The bytes used so far.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed) - HEAD_END
    }

    /// I1: bytes of one's own. The caller reserved them beforehand, so that there are enough.
    fn allocate(&self, size: usize) -> usize {
        let size = size.next_multiple_of(ALIGN);
        let at = self.used.fetch_add(size, Ordering::Relaxed);
        assert!(at + size <= self.arena.size(), "an insert was not reserved");
        at
    }

    /// The link from a node to the next one of a level.
    fn link(&self, node: u32, level: usize) -> &AtomicU32 {
        debug_assert!(level < MAX_HEIGHT, "there is no such level");
        let at = node as usize - 4 * (level + 1);
        // SAFETY: `node` is the head or a linked node (I2, I5) found at `level`, so that its tower
        // has that level and lies in the arena before the node; it is aligned to 4 since nodes are
        // to 8. Links are only accessed as atomics once a node is linked (I3).
        unsafe { &*self.arena.base().add(at).cast::<AtomicU32>() }
    }

    fn next(&self, node: u32, level: usize) -> u32 {
        self.link(node, level).load(Ordering::Acquire)
    }

    /// The fields of a linked node other than the head.
    fn head(&self, node: u32) -> Head<'_> {
        debug_assert!(node > HEAD, "the head has no fields");
        // SAFETY: the node is linked (I2, I5), so all of it is written, lies in the arena, and its
        // fields don't change (I3). The offsets of the numbers are aligned: 0 and 4 to 4, 8 and 16
        // to 8. The place follows them, as `write_node` wrote it.
        unsafe {
            let at = self.arena.base().add(node as usize);
            let place_len = at.cast::<u32>().read() as usize;
            Head {
                version: at.add(8).cast::<u64>().read(),
                sequence_kind: at.add(16).cast::<u64>().read(),
                place: std::slice::from_raw_parts(at.add(PLACE), place_len),
                value_len: at.add(4).cast::<u32>().read() as usize,
                value_at: PLACE + place_len,
            }
        }
    }

    fn key(&self, node: u32) -> Key<'_> {
        let head = self.head(node);
        Key {
            place: head.place,
            version: head.version,
            sequence: head.sequence_kind >> 8,
            kind: Kind::from_u8(head.sequence_kind as u8).unwrap_or(Kind::Delete),
        }
    }

    fn value(&self, node: u32) -> &[u8] {
        let head = self.head(node);
        // SAFETY: as in `head`: the value's bytes are written, unchanging, and in the arena.
        unsafe {
            let at = self.arena.base().add(node as usize + head.value_at);
            std::slice::from_raw_parts(at, head.value_len)
        }
    }

    /// Whether the entry at a linked node comes before `key`.
    #[inline]
    fn is_before(&self, node: u32, key: &Key<'_>) -> bool {
        let head = self.head(node);
        match head.place.cmp(key.place) {
            Order::Equal => {}
            order => return order == Order::Less,
        }
        let order = key.version.cmp(&head.version);
        let order = order.then_with(|| key.sequence.cmp(&(head.sequence_kind >> 8)));
        order == Order::Less
    }

    /// From `from` along a level: the last node before `key`, and the one after that.
    #[inline]
    fn walk(&self, from: u32, level: usize, known: u32, key: &Key<'_>) -> (u32, u32) {
        let mut before = from;
        let mut next = self.next(before, level);
        self.fetch_below(before, level);
        while next != 0 && next != known && self.is_before(next, key) {
            before = next;
            next = self.next(before, level);
            self.fetch_below(before, level);
        }
        (before, next)
    }

    /// Brings the node into the cache that is compared next if the search goes down from `node` at
    /// `level`, while the comparison on this level waits for memory of its own.
    #[inline]
    fn fetch_below(&self, node: u32, level: usize) {
        #[cfg(target_arch = "x86_64")]
        if level > 0 {
            self.fetch(self.link(node, level - 1).load(Ordering::Relaxed));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (node, level);
    }

    /// Brings a node, or the arena's beginning, into the cache.
    #[inline]
    fn fetch(&self, node: u32) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch reads nothing and faults never; the offset lies in the arena.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.arena.base().add(node as usize).cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = node;
    }

    /// The last node before `key` (perhaps the head) and the first at or after it (or 0).
    fn find(&self, key: &Key<'_>) -> (u32, u32) {
        let mut before = HEAD;
        let mut after = 0;
        for level in (0..self.height.load(Ordering::Relaxed)).rev() {
            // A node found not to be before the key need not be compared again a level below.
            (before, after) = self.walk(before, level, after, key);
        }
        (before, after)
    }

    /// Adds an entry. REQUIRES: its bytes were reserved by `bytes_needed`, with the same sequence;
    /// no entry has the same place, version and sequence.
    pub(crate) fn insert(&self, key: &Key<'_>, value: &[u8]) {
        let height = height_of(key.sequence);
        let mut splice = [(HEAD, 0); MAX_HEIGHT];
        let top = self.height.fetch_max(height, Ordering::Relaxed).max(height);
        if !self.is_at_the_end(key, &mut splice[..height]) {
            let (mut before, mut after) = (HEAD, 0);
            for level in (0..top).rev() {
                (before, after) = self.walk(before, level, after, key);
                splice[level] = (before, after);
            }
        }
        self.link_in(key, value, &splice);
    }

    /// Writes a node and links it, from the bottom up. Its splice may be of a while ago.
    fn link_in(&self, key: &Key<'_>, value: &[u8], splice: &Splice) {
        let height = height_of(key.sequence);
        let node = self.write_node(key, value, height, splice);
        for (level, &(mut before, mut after)) in splice.iter().enumerate().take(height) {
            loop {
                let link = self.link(before, level);
                // Release: whoever finds the node sees what `write_node` wrote (I2).
                let known = match planted::is_on(Bug::LinkIsRelaxed) {
                    true => Ordering::Relaxed,
                    false => Ordering::Release,
                };
                let linked = link.compare_exchange(after, node, known, Ordering::Relaxed);
                if linked.is_ok() {
                    if after == 0 {
                        self.tails[level].store(node, Ordering::Release);
                    }
                    break;
                }
                // Somebody linked another node here: look again from where we stood. The node's
                // own link is not yet seen by anybody on this level, but may be on lower ones.
                (before, after) = self.walk(before, level, 0, key);
                self.link(node, level).store(after, Ordering::Relaxed);
            }
        }
    }

    /// Whether a key comes behind all others, as far as can be told at once; then its splice is filled in. So
    /// keys that ascend need no search.
    fn is_at_the_end(&self, key: &Key<'_>, splice: &mut [(u32, u32)]) -> bool {
        let mut known = HEAD;
        for (level, splice) in splice.iter_mut().enumerate() {
            let last = self.tails[level].load(Ordering::Acquire);
            if self.next(last, level) != 0 {
                return false;
            }
            // Another thread may have put a node behind this key's place since the level below was looked at.
            if last != known && last != HEAD && !self.is_before(last, key) {
                return false;
            }
            known = last;
            *splice = (last, 0);
        }
        true
    }

    /// Writes a node that nobody knows of yet.
    fn write_node(&self, key: &Key<'_>, value: &[u8], height: usize, splice: &Splice) -> u32 {
        let tower = (4 * height).next_multiple_of(ALIGN);
        let size = tower + PLACE + key.place.len() + value.len();
        let node = self.allocate(size) + tower;
        // SAFETY: the `size` bytes that end behind the value are ours alone (I1) and in the arena;
        // `node` is a multiple of 8, so that the numbers are aligned; source and target can't
        // overlap, since nobody else has a reference to these bytes.
        unsafe {
            let at = self.arena.base().add(node);
            at.cast::<u32>().write(key.place.len() as u32);
            at.add(4).cast::<u32>().write(value.len() as u32);
            at.add(8).cast::<u64>().write(key.version);
            at.add(16)
                .cast::<u64>()
                .write(key.sequence << 8 | key.kind as u64);
            for (level, (_, after)) in splice.iter().enumerate().take(height) {
                at.sub(4 * (level + 1)).cast::<u32>().write(*after);
            }
            let place = at.add(PLACE);
            std::ptr::copy_nonoverlapping(key.place.as_ptr(), place, key.place.len());
            let to = place.add(key.place.len());
            std::ptr::copy_nonoverlapping(value.as_ptr(), to, value.len());
        }
        node as u32
    }

    /// The newest entry of a place at `version` or below that `sequence` sees.
    pub(crate) fn get(
        &self,
        place: &[u8],
        version: u64,
        sequence: u64,
    ) -> Option<(Key<'_>, &[u8])> {
        let (_, node) = self.find(&Key::seek(place, version));
        self.first_seen(node, place, sequence)
    }

    /// From a node on: the first entry of the place that `sequence` sees.
    fn first_seen(&self, mut node: u32, place: &[u8], sequence: u64) -> Option<(Key<'_>, &[u8])> {
        while node != 0 {
            let key = self.key(node);
            if key.place != place {
                return None;
            }
            if key.sequence <= sequence {
                return Some((key, self.value(node)));
            }
            node = self.next(node, 0);
        }
        None
    }

    fn last(&self) -> u32 {
        let mut node = HEAD;
        for level in (0..self.height.load(Ordering::Relaxed)).rev() {
            loop {
                match self.next(node, level) {
                    0 => break,
                    next => node = next,
                }
            }
        }
        node
    }
}

/// A place in a list, which it keeps alive.
pub(crate) struct ListCursor {
    list: Arc<SkipList>,
    /// The head or 0 when invalid.
    node: u32,
}

impl ListCursor {
    pub(crate) fn new(list: Arc<SkipList>) -> Self {
        ListCursor { list, node: 0 }
    }
}

impl Cursor for ListCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        self.node = self.list.next(HEAD, 0);
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.node = self.list.last();
        Ok(())
    }

    fn seek(&mut self, target: &Key<'_>) -> Result<()> {
        self.node = self.list.find(target).1;
        Ok(())
    }

    fn seek_before(&mut self, target: &Key<'_>) -> Result<()> {
        self.node = self.list.find(target).0;
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        assert!(self.valid(), "the cursor stands on an entry");
        self.node = self.list.next(self.node, 0);
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        assert!(self.valid(), "the cursor stands on an entry");
        self.node = self.list.find(&self.list.key(self.node)).0;
        Ok(())
    }

    fn valid(&self) -> bool {
        self.node > HEAD
    }

    fn key(&self) -> Key<'_> {
        assert!(self.valid(), "the cursor stands on an entry");
        self.list.key(self.node)
    }

    fn value(&self) -> &[u8] {
        assert!(self.valid(), "the cursor stands on an entry");
        self.list.value(self.node)
    }

    fn value_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.value())
    }
}

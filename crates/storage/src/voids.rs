//! Voids: stretches of places where nothing is alive, though many entries may lie there.
//!
//! Deletions stay until compaction gets to them, in memory above all, and a scan has to step over
//! each: a queue that takes from its head makes every look for its first entry longer than the one before.
//! So a scan that stepped over many leaves a note of where it found nothing, and later ones go around.
//!
//! A void says: a read of the newest versions, at sequence `since` or later, sees nothing in it. It is only
//! known in memory, and forgotten at will. What keeps it true is that a write of a value into it cuts it,
//! before that write is visible. Deletions can't make it untrue, nor can flushes and compactions.
//!
//! # Why no write is missed
//!
//! A scan sees all up to a sequence `S` (what was visible before it took its state: of what became visible
//! later the state may lack something), and writes after `S` may be under way, or done, when it ends; those that
//! looked for voids before this one was noted did not cut it. A writer first makes known its
//! sequence and then looks whether there are voids; the scan first shows that there are and then
//! looks which sequence `L` is the last that was given out. All four are sequentially consistent, so a
//! writer that missed the void has a sequence up to `L`. If `S` is `L`, there is none such. If not, the
//! void is *unsure*, and not used before another scan, at `L` or later, has seen those writes and found
//! nothing either.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::batch::Batch;
use crate::engine::Sequence;
use crate::key::PlaceBuf;
use crate::planted::{self, Bug};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// More than this are not worth their keep.
const MOST: usize = 1024;

/// All voids of an engine.
#[derive(Default)]
pub(crate) struct Voids {
    /// The last sequence that was given out.
    last: AtomicU64,
    /// Whether there may be voids. While not, writers look no further.
    any: AtomicBool,
    /// By their first places; disjoint.
    all: Mutex<BTreeMap<Vec<u8>, Void>>,
}

#[derive(Debug, Clone)]
struct Void {
    /// The place behind it.
    end: Vec<u8>,
    since: Sequence,
    sure: bool,
}

impl Voids {
    /// Sequences up to this one were given out. To be called in their order.
    pub(crate) fn set_last(&self, sequence: Sequence) {
        self.last.store(sequence, Ordering::SeqCst);
    }

    /// Cuts the voids that a batch writes values into. To be called after [`Voids::set_last`] and before
    /// the batch is visible.
    pub(crate) fn cut(&self, batch: &Batch) {
        if !self.any.load(Ordering::SeqCst) || planted::is_on(Bug::VoidsAreNotCut) {
            return;
        }
        let mut all = self.all.lock();
        for op in batch.iter().filter(|op| op.kind.is_value()) {
            let place = PlaceBuf::new(op.keyspace, op.key);
            cut_at(&mut all, place.as_slice());
        }
        if all.is_empty() {
            self.any.store(false, Ordering::SeqCst);
        }
    }

    /// Forgets all, for a write that may put values anywhere; to be called like [`Voids::cut`].
    pub(crate) fn clear(&self) {
        self.all.lock().clear();
    }

    /// The void around a place that a read at a sequence may go around: where it begins, and the place
    /// behind it.
    pub(crate) fn around(&self, place: &[u8], sequence: Sequence) -> Option<(Vec<u8>, Vec<u8>)> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let all = self.all.lock();
        let (start, void) = holding(&all, place)?;
        let usable = void.sure && void.since <= sequence;
        usable.then(|| (start.clone(), void.end.clone()))
    }

    /// A read at a sequence saw nothing from `start` to below `end`.
    pub(crate) fn note(&self, start: &[u8], end: &[u8], sequence: Sequence) {
        if start >= end {
            return;
        }
        let mut all = self.all.lock();
        if all.len() >= MOST {
            all.clear();
        }
        // From here on writers look, and wait for the lock.
        self.any.store(true, Ordering::SeqCst);
        let last = self.last.load(Ordering::SeqCst);
        for (_, void) in all.range_mut::<[u8], _>((Bound::Included(start), Bound::Excluded(end))) {
            if !void.sure && void.end.as_slice() <= end && void.since <= sequence {
                void.sure = true;
                void.since = sequence;
            }
        }
        let sure = sequence >= last || planted::is_on(Bug::VoidsAreSureAtOnce);
        if sure {
            all.retain(|at, void| at.as_slice() < start || void.end.as_slice() > end);
        }
        let since = last.max(sequence);
        fill(
            &mut all,
            start,
            end,
            &Void {
                end: Vec::new(),
                since,
                sure,
            },
        );
        join(&mut all, start, end);
    }
}

/// What one read passes over without finding anything alive, step by step.
pub(crate) struct Passage {
    /// `None` for a read that is not of the newest versions.
    voids: Option<Arc<Voids>>,
    sequence: Sequence,
    /// The first place passed over.
    from: Vec<u8>,
    steps: usize,
    /// After so many steps it is worth a look for a void.
    look_at: usize,
}

/// A void saves steps from here on; a look costs about as much. Tests have short ways.
const LOOK_AFTER: usize = if cfg!(test) { 1 } else { 4 };
const LOOK_EVERY: usize = if cfg!(test) { 3 } else { 32 };
/// So many steps are worth a note.
const NOTE_AFTER: usize = if cfg!(test) { 3 } else { 64 };

impl Passage {
    /// For a read that sees all that was written up to this sequence.
    pub(crate) fn new(voids: Option<Arc<Voids>>, sequence: Sequence) -> Self {
        Passage {
            voids,
            sequence,
            from: Vec::new(),
            steps: 0,
            look_at: LOOK_AFTER,
        }
    }

    /// Where it stands now something is alive, or it does not know.
    pub(crate) fn begin(&mut self) {
        self.steps = 0;
        self.look_at = LOOK_AFTER;
    }

    /// Nothing is alive at a place. The void around it, if one is known: where it begins, and the place
    /// behind it.
    pub(crate) fn over(&mut self, place: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let voids = self.voids.as_ref()?;
        if self.steps == 0 {
            self.from.clear();
            self.from.extend_from_slice(place);
        }
        self.steps += 1;
        if self.steps < self.look_at {
            return None;
        }
        let void = voids.around(place, self.sequence);
        let next = if void.is_some() { 1 } else { LOOK_EVERY };
        self.look_at = self.steps + next;
        void
    }

    /// Going forward, it came to a place and found nothing alive before.
    pub(crate) fn end_at(&mut self, place: &[u8]) {
        if let Some(voids) = self.worth_a_note() {
            voids.note(&self.from, place, self.sequence);
        }
        self.begin();
    }

    /// Going back, it came to where `place` is the next one, and found nothing alive from there on.
    pub(crate) fn end_before(&mut self, place: &[u8]) {
        if let Some(voids) = self.worth_a_note() {
            let end = [&self.from[..], &[0]].concat();
            voids.note(place, &end, self.sequence);
        }
        self.begin();
    }

    /// Going back, it came to something alive at a place, and found nothing alive behind.
    pub(crate) fn end_behind(&mut self, place: &[u8]) {
        if self.worth_a_note().is_some() {
            self.end_before(&[place, &[0]].concat());
        }
        self.begin();
    }

    fn worth_a_note(&self) -> Option<&Voids> {
        self.voids.as_deref().filter(|_| self.steps >= NOTE_AFTER)
    }
}

fn holding<'a>(all: &'a BTreeMap<Vec<u8>, Void>, place: &[u8]) -> Option<(&'a Vec<u8>, &'a Void)> {
    let up_to = (Bound::Unbounded, Bound::Included(place));
    let found = all.range::<[u8], _>(up_to).next_back();
    found.filter(|(_, void)| place < void.end.as_slice())
}

/// Takes one place out of the void that holds it.
fn cut_at(all: &mut BTreeMap<Vec<u8>, Void>, place: &[u8]) {
    let Some((start, _)) = holding(all, place) else {
        return;
    };
    let start = start.clone();
    let Some(void) = all.remove(&start) else {
        return;
    };
    let behind = [place, &[0]].concat();
    if behind < void.end {
        all.insert(behind, void.clone());
    }
    if start.as_slice() < place {
        let end = place.to_vec();
        all.insert(start, Void { end, ..void });
    }
}

/// Adds what no void has yet of a stretch.
fn fill(all: &mut BTreeMap<Vec<u8>, Void>, start: &[u8], end: &[u8], like: &Void) {
    let mut at = match holding(all, start) {
        Some((_, void)) => void.end.clone(),
        None => start.to_vec(),
    };
    while at.as_slice() < end {
        let from = (Bound::Included(at.as_slice()), Bound::Excluded(end));
        let next = all.range::<[u8], _>(from).next();
        let next = next.map(|(start, void)| (start.clone(), void.end.clone()));
        let (to, after) = next.unwrap_or_else(|| (end.to_vec(), end.to_vec()));
        if at < to {
            let end = to;
            all.insert(
                at,
                Void {
                    end,
                    ..like.clone()
                },
            );
        }
        at = after;
    }
}

/// Puts sure voids together that touch, from the one that holds or touches `start` to `end`.
fn join(all: &mut BTreeMap<Vec<u8>, Void>, start: &[u8], end: &[u8]) {
    let up_to = (Bound::Unbounded, Bound::Excluded(start));
    let first = all.range::<[u8], _>(up_to).next_back();
    let mut at = first.map_or_else(|| start.to_vec(), |(at, _)| at.clone());
    while at.as_slice() < end {
        let behind = (Bound::Excluded(at.as_slice()), Bound::Unbounded);
        let Some(next) = all
            .range::<[u8], _>(behind)
            .next()
            .map(|(at, _)| at.clone())
        else {
            return;
        };
        let touch = match (all.get(&at), all.get(&next)) {
            (Some(a), Some(b)) => a.sure && b.sure && a.end == next,
            _ => false,
        };
        if !touch {
            at = next;
            continue;
        }
        if let (Some(b), Some(a)) = (all.remove(&next), all.get_mut(&at)) {
            a.end = b.end;
            a.since = a.since.max(b.since);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

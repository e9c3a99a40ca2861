//! Several keys at once.
//!
//! A search waits for memory at nearly every node that it looks at, and does little else. Searches for
//! several keys take turns here: while one's next node is on its way, the others go on.

use std::sync::atomic::Ordering;

use super::{HEAD, MAX_HEIGHT, SkipList, Splice, height_of};
use crate::key::Key;

/// So many searches take turns: about as many as a core has requests to memory under way.
pub(crate) const TOGETHER: usize = 8;

/// A search on its way.
#[derive(Clone, Copy)]
struct Search {
    level: usize,
    before: u32,
    next: u32,
    /// Found on the level above not to be before the key.
    known: u32,
}

impl SkipList {
    /// Goes one node along or one level down; whether that was the end.
    #[inline]
    fn step(&self, search: &mut Search, key: &Key<'_>, splice: &mut Splice) -> bool {
        let next = search.next;
        if next != 0 && next != search.known && self.is_before(next, key) {
            search.before = next;
        } else {
            splice[search.level] = (search.before, next);
            if search.level == 0 {
                return true;
            }
            search.known = next;
            search.level -= 1;
        }
        search.next = self.next(search.before, search.level);
        self.fetch(search.next);
        false
    }

    /// Fills in the splices of keys on all levels below `top`. REQUIRES: at most `TOGETHER` of them.
    fn search_each<'k>(
        &self,
        top: usize,
        key_of: impl Fn(usize) -> Key<'k>,
        splices: &mut [Splice],
    ) {
        let first = Search {
            level: top - 1,
            before: HEAD,
            next: self.next(HEAD, top - 1),
            known: 0,
        };
        let mut searches = [first; TOGETHER];
        let mut open = (1usize << splices.len()) - 1;
        while open != 0 {
            for (n, splice) in splices.iter_mut().enumerate() {
                let is_open = open >> n & 1 == 1;
                if is_open && self.step(&mut searches[n], &key_of(n), splice) {
                    open &= !(1 << n);
                }
            }
        }
    }

    /// [`SkipList::get`] for several places. REQUIRES: at most `TOGETHER` of them.
    pub(crate) fn get_each<'l>(
        &'l self,
        places: &[&[u8]],
        version: u64,
        sequence: u64,
        mut found: impl FnMut(usize, Option<(Key<'l>, &'l [u8])>),
    ) {
        let mut splices = [[(HEAD, 0); MAX_HEIGHT]; TOGETHER];
        let top = self.height.load(Ordering::Relaxed);
        let splices = &mut splices[..places.len()];
        self.search_each(top, |n| Key::seek(places[n], version), splices);
        for (n, splice) in splices.iter().enumerate() {
            found(n, self.first_seen(splice[0].1, places[n], sequence));
        }
    }

    /// [`SkipList::insert`] of several entries. REQUIRES: as there, and at most `TOGETHER` of them.
    pub(crate) fn insert_each<'k>(&self, entries: &[(Key<'k>, &[u8])]) {
        let mut splices = [[(HEAD, 0); MAX_HEIGHT]; TOGETHER];
        let Some((first, _)) = entries.first() else {
            return;
        };
        if self.is_at_the_end(first, &mut splices[0][..1]) {
            // Keys that ascend need no search.
            return entries
                .iter()
                .for_each(|(key, value)| self.insert(key, value));
        }
        let heights = entries.iter().map(|(key, _)| height_of(key.sequence));
        let highest = heights.max().unwrap_or(1);
        let top = self
            .height
            .fetch_max(highest, Ordering::Relaxed)
            .max(highest);
        let splices = &mut splices[..entries.len()];
        self.search_each(top, |n| entries[n].0, splices);
        // What was linked since, by us or by others, shows when a node is linked.
        for ((key, value), splice) in entries.iter().zip(splices) {
            self.link_in(key, value, splice);
        }
    }
}

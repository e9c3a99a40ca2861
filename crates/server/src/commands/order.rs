//! Which records of a load may be written now, and how far it is done without a gap.
//!
//! Records are numbered as they lie in the file. Many are in flight at once, but never two of one
//! key: the later one waits, so that it wins. A load that is taken up again begins behind the last
//! record before which all are done.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// The records of a load that were begun and are not all done. `T` is what is kept of one that
/// waits.
#[derive(Debug)]
pub struct Order<T> {
    /// The keys in flight, and what waits behind each.
    busy: HashMap<Bytes, VecDeque<T>>,
    open: usize,
    /// All records below it are done.
    prefix: u64,
    /// Which of the records from `prefix` on are done.
    done: VecDeque<bool>,
}

impl<T> Order<T> {
    /// A load that begins with the record of this number.
    pub fn new(first: u64) -> Self {
        Order {
            busy: HashMap::new(),
            open: 0,
            prefix: first,
            done: VecDeque::new(),
        }
    }

    /// How many records are in flight or wait.
    pub fn open(&self) -> usize {
        self.open
    }

    /// The number of the first record that is not done.
    pub fn prefix(&self) -> u64 {
        self.prefix
    }

    /// Takes in a record; gives it back if it may be written now, else keeps it.
    pub fn admit(&mut self, key: &Bytes, record: T) -> Option<T> {
        self.open += 1;
        match self.busy.get_mut(key) {
            Some(waiting) => {
                waiting.push_back(record);
                None
            }
            None => {
                self.busy.insert(key.clone(), VecDeque::new());
                Some(record)
            }
        }
    }

    /// Notes that a record was written, or was given up; gives the next of its key, to be written
    /// now.
    pub fn finish(&mut self, number: u64, key: &Bytes) -> Option<T> {
        self.pass(number);
        self.open -= 1;
        let next = self.busy.get_mut(key).and_then(VecDeque::pop_front);
        if next.is_none() {
            self.busy.remove(key);
        }
        next
    }

    /// Notes that a record is not to be written at all.
    pub fn pass(&mut self, number: u64) {
        let Some(at) = number.checked_sub(self.prefix) else {
            return;
        };
        let at = at as usize;
        if at >= self.done.len() {
            self.done.resize(at + 1, false);
        }
        self.done[at] = true;
        while self.done.front() == Some(&true) {
            self.done.pop_front();
            self.prefix += 1;
        }
    }
}

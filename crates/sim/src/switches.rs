//! What stands behind the product's switches while a seed runs.
//!
//! As in FoundationDB, a place is alive under a seed with a chance of a quarter, and one that is alive fires
//! with a chance of a quarter each time it is passed. So each seed has few of them, and those often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use quorate_env::{Random, switch};

/// All places. One that fires and is not listed here is a mistake.
pub const PLACES: &[&str] = &[
    "log.few_records_at_once",
    "log.segment_ends_early",
    "log.segment_made_early",
    "storage.memtable_ends_early",
    "storage.compaction_begins_early",
    "replication.append_of_one_entry",
    "replication.apply_one_by_one",
    "replication.apply_late",
    "replication.cache_is_cold",
    "replication.proposal_refused",
    "replication.reply_lost",
    "replication.read_index_refused",
    "replication.snapshot_in_small_chunks",
    "node.command_of_one_write",
    "node.commit_each_command",
    "node.read_late_after_barrier",
    "node.queue_full",
    "node.log_purged_at_once",
    "node.snapshot_table_ends_early",
];

/// A probe's name and numbers.
pub type Note = (&'static str, Vec<u64>);

/// Shared by the product's switches and the simulator.
#[derive(Clone)]
pub struct Board {
    state: Arc<Mutex<State>>,
    enabled: Arc<AtomicBool>,
}

struct State {
    random: Random,
    alive: BTreeSet<&'static str>,
    fired: BTreeMap<&'static str, u64>,
    bugs: BTreeSet<String>,
    bugs_reached: BTreeMap<&'static str, u64>,
    notes: Vec<Note>,
    /// How often the bug of counted learners may be met before one must be heard again.
    learners_heard: u64,
}

impl Board {
    /// Puts a board behind the switches of this process.
    pub fn install(random: Random, bugs: &[String]) -> Board {
        let alive = PLACES.iter().copied().filter(|_| random.one_in(4));
        let state = State {
            alive: alive.collect(),
            random,
            fired: BTreeMap::new(),
            bugs: bugs.iter().cloned().collect(),
            bugs_reached: BTreeMap::new(),
            notes: Vec::new(),
            learners_heard: 0,
        };
        let board = Board {
            state: Arc::new(Mutex::new(state)),
            enabled: Arc::new(AtomicBool::new(false)),
        };
        switch::install(Box::new(board.clone()));
        board
    }

    /// Lets places fire, or none any more.
    pub fn enable_places(&self, on: bool) {
        self.enabled.store(on, Ordering::Relaxed);
    }

    /// How often each place fired.
    pub fn fired(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().fired.clone()
    }

    /// How often a planted bug that is on was met.
    pub fn bugs_reached(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().bugs_reached.clone()
    }

    /// Whether a planted bug is on, for those of the simulation's own parts.
    pub fn has_bug(&self, name: &'static str) -> bool {
        switch::bug(name)
    }

    /// What the product told since the last call.
    pub fn take_notes(&self) -> Vec<Note> {
        std::mem::take(&mut self.state.lock().notes)
    }
}

impl switch::Switches for Board {
    fn fires(&mut self, place: &'static str) -> bool {
        if !self.enabled.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        let fires = state.alive.contains(place) && state.random.one_in(4);
        if fires {
            *state.fired.entry(place).or_default() += 1;
        }
        debug_assert!(PLACES.contains(&place), "{place} is not listed");
        fires
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state.lock().random.below(bound.max(1))
    }

    fn bug(&mut self, name: &'static str) -> bool {
        let mut state = self.state.lock();
        let mut on = state.bugs.contains(name);
        if on && name == "learner_counted" {
            on = state.learners_heard > 0;
            state.learners_heard = state.learners_heard.saturating_sub(1);
        }
        if on {
            *state.bugs_reached.entry(name).or_default() += 1;
        }
        on
    }

    fn probe(&mut self, name: &'static str, numbers: &[u64]) {
        let mut state = self.state.lock();
        if name == "followed" {
            // Heard of every append: too often to be kept.
            if numbers.get(1) == Some(&1) {
                state.learners_heard = 20;
            }
            return;
        }
        state.notes.push((name, numbers.to_vec()));
    }
}

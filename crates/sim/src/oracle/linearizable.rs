//! Is the history of a key linearizable? By search (Wing and Gong, with Lowe's memory of states seen).
//!
//! The state is the value of the key. A conditional write looks at the version of that value, which is known,
//! since a client can only name a version that somebody saw. A write of unknown outcome may take effect at any
//! time after it began, or never; one that nobody ever saw is left out, for it may as well never have been.
//! Only a delete may have met it without saying which.

use std::collections::{BTreeMap, HashSet};

use crate::history::{Action, Level, Op, Outcome, Value, Violation};

/// So many steps are searched, far more than a sound history of some hundred operations takes.
const STEPS_MAX: u64 = 4_000_000;

/// Judges the operations on one key, stale and token reads left out.
pub fn check(key: u64, ops: &[Op]) -> Result<(), Violation> {
    let versions = versions_of(ops);
    let all = ops;
    let mut ops: Vec<Op> = relevant(all, &versions);
    let left_out = all.iter().filter(|op| !op.is_known() && !ops.contains(op));
    let hidden_us = left_out.map(|op| op.began_us).min();
    ops.sort_unstable_by_key(|op| op.began_us);
    let mut search = Search {
        ops: &ops,
        versions: &versions,
        hidden_us: hidden_us.unwrap_or(u64::MAX),
        seen: HashSet::new(),
        steps: 0,
        furthest: (0, 0),
    };
    match search.run() {
        Some(true) => Ok(()),
        Some(false) => {
            let stuck = ops.get(search.furthest.1);
            let message = format!("key {key}: no order of the operations explains {stuck:?}");
            Err(Violation::new("linearizable", message))
        }
        // Not decided is not passed.
        None => {
            let message = format!(
                "key {key}: {} operations were not decided in time",
                ops.len()
            );
            Err(Violation::new("linearizable", message))
        }
    }
}

/// The versions of values, as far as anybody saw them.
fn versions_of(ops: &[Op]) -> BTreeMap<Value, u64> {
    let mut versions = BTreeMap::new();
    for op in ops {
        if let Outcome::Done {
            applied: true,
            value,
            version,
        } = op.outcome
            && value != 0
        {
            versions.insert(value, version);
        }
    }
    versions
}

fn relevant(ops: &[Op], versions: &BTreeMap<Value, u64>) -> Vec<Op> {
    let found: HashSet<u64> = ops
        .iter()
        .filter_map(|op| match op.outcome {
            Outcome::Done {
                applied: false,
                version,
                ..
            } if version != 0 => Some(version),
            _ => None,
        })
        .collect();
    let is_relevant = |op: &&Op| match (op.action, op.outcome) {
        (Action::Read(level), _) => level == Level::Linearizable && op.is_known(),
        // A refused write may have met the unknown one: then it is kept, whichever it was.
        (_, Outcome::Unknown) => {
            let value = op.written().unwrap_or(0);
            let met = || found.iter().any(|v| !versions.values().any(|k| k == v));
            value == 0 || versions.contains_key(&value) || met()
        }
        _ => true,
    };
    ops.iter().filter(is_relevant).copied().collect()
}

struct Search<'a> {
    ops: &'a [Op],
    versions: &'a BTreeMap<Value, u64>,
    /// When the first write that is left out began.
    hidden_us: u64,
    /// Which operations are placed, and the value then.
    seen: HashSet<(Vec<u64>, Value)>,
    steps: u64,
    /// How many were placed at most, and what could not be.
    furthest: (usize, usize),
}

/// Where the search stands: what is placed, the value, and from which candidate on to try.
struct Frame {
    value: Value,
    placed: Option<usize>,
    next: usize,
}

impl Search<'_> {
    /// `None` if it took too long.
    fn run(&mut self) -> Option<bool> {
        let count = self.ops.len();
        let mut bits = vec![0u64; count.div_ceil(64)];
        let mut open = self.ops.iter().filter(|op| op.is_known()).count();
        let mut stack = vec![Frame {
            value: 0,
            placed: None,
            next: 0,
        }];
        let (mut placed, mut first) = (0, 0);
        loop {
            if open == 0 {
                return Some(true);
            }
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return None;
            }
            while first < count && is_set(&bits, first) {
                first += 1;
            }
            let frame = stack.last_mut()?;
            let value = frame.value;
            let step = self.candidate(&bits, first, frame.next, value);
            match step {
                Some((at, after)) => {
                    frame.next = at + 1;
                    set(&mut bits, at);
                    if self.seen.insert((bits.clone(), after)) {
                        placed += 1;
                        open -= usize::from(self.ops[at].is_known());
                        stack.push(Frame {
                            value: after,
                            placed: Some(at),
                            next: 0,
                        });
                    } else {
                        clear(&mut bits, at);
                    }
                }
                None => {
                    if placed >= self.furthest.0 {
                        self.furthest = (placed, first);
                    }
                    let Some(at) = stack.pop().and_then(|frame| frame.placed) else {
                        return Some(false);
                    };
                    clear(&mut bits, at);
                    placed -= 1;
                    open += usize::from(self.ops[at].is_known());
                    first = first.min(at);
                }
            }
        }
    }

    /// The next operation, from `from` on, that may come now, and the value after it.
    fn candidate(
        &self,
        bits: &[u64],
        first: usize,
        from: usize,
        value: Value,
    ) -> Option<(usize, Value)> {
        // Nothing may come that began after another ended that has not come.
        let mut limit = u64::MAX;
        for at in first..self.ops.len() {
            let op = &self.ops[at];
            if op.began_us > limit {
                break;
            }
            if !is_set(bits, at) {
                limit = limit.min(op.ended_us);
            }
        }
        for at in first.max(from)..self.ops.len() {
            let op = &self.ops[at];
            if op.began_us > limit {
                return None;
            }
            if !is_set(bits, at)
                && let Some(after) = self.apply(op, value)
            {
                return Some((at, after));
            }
        }
        None
    }

    /// The value after an operation, if it may have had its outcome.
    fn apply(&self, op: &Op, value: Value) -> Option<Value> {
        let version = match value {
            0 => Some(0),
            value => self.versions.get(&value).copied(),
        };
        match (op.action, op.outcome) {
            (Action::Read(_), Outcome::Done { value: read, .. }) => {
                (read == value).then_some(value)
            }
            (Action::Read(_), Outcome::Unknown) => Some(value),
            // A delete of what is absent changes nothing.
            (Action::Write(0), Outcome::Done { applied, .. }) => {
                let met_hidden = applied && self.hidden_us < op.ended_us;
                (applied == (value != 0) || met_hidden).then_some(0)
            }
            (Action::Write(written), _) => Some(written),
            (
                Action::WriteIf {
                    expected,
                    value: written,
                },
                Outcome::Unknown,
            ) => (version == Some(expected)).then_some(written),
            (
                Action::WriteIf {
                    expected,
                    value: written,
                },
                Outcome::Done {
                    applied,
                    version: found,
                    ..
                },
            ) => match applied {
                true => (version == Some(expected)).then_some(written),
                false => {
                    let differs = version != Some(expected);
                    let is_found = version.is_none_or(|version| version == found);
                    (differs && is_found).then_some(value)
                }
            },
        }
    }
}

fn is_set(bits: &[u64], at: usize) -> bool {
    bits[at / 64] >> (at % 64) & 1 == 1
}

fn set(bits: &mut [u64], at: usize) {
    bits[at / 64] |= 1 << (at % 64);
}

fn clear(bits: &mut [u64], at: usize) {
    bits[at / 64] &= !(1 << (at % 64));
}

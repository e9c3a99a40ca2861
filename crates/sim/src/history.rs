//! What clients saw: every operation with when it began and ended, key by key. What the oracles judge.

/// The value of a key: each write has another. 0: the key is absent.
pub type Value = u64;

/// What an operation did to one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A write; of 0 it is a delete.
    Write(Value),
    /// A write if the key's version is the expected one (0: if it is absent).
    WriteIf {
        /// The version.
        expected: u64,
        /// What is written.
        value: Value,
    },
    /// A read.
    Read(Level),
}

/// How fresh a read is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing acknowledged before may be missing.
    Linearizable,
    /// Nothing up to this version may be missing.
    AtLeast(u64),
    /// Anything that was once there.
    Stale,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done. Of a write: whether it changed something, and the version that it gave or found.
    Done {
        /// Whether it changed something; of reads true.
        applied: bool,
        /// What was read; of writes what was written.
        value: Value,
        /// The version of that; 0 where the key is absent. Of a delete that applied its own.
        version: u64,
    },
    /// It may have been done, or may be done later, or never.
    Unknown,
}

/// One operation on one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// Who asked.
    pub client: u64,
    /// The key.
    pub key: u64,
    /// What was asked.
    pub action: Action,
    /// When it was asked, in microseconds.
    pub began_us: u64,
    /// When the answer was there; of an unknown outcome `u64::MAX`.
    pub ended_us: u64,
    /// What the answer was.
    pub outcome: Outcome,
}

impl Op {
    /// Whether its outcome is known.
    pub fn is_known(&self) -> bool {
        self.outcome != Outcome::Unknown
    }

    /// Whether it may change the key.
    pub fn is_write(&self) -> bool {
        !matches!(self.action, Action::Read(_))
    }

    /// What it writes if it is a write.
    pub fn written(&self) -> Option<Value> {
        match self.action {
            Action::Write(value) | Action::WriteIf { value, .. } => Some(value),
            Action::Read(_) => None,
        }
    }
}

/// All operations of a run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In the order in which they ended.
    pub ops: Vec<Op>,
}

impl History {
    /// The keys that were used, ascending.
    pub fn keys(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = self.ops.iter().map(|op| op.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The operations on one key.
    pub fn of(&self, key: u64) -> Vec<Op> {
        let of = self.ops.iter().filter(|op| op.key == key);
        of.copied().collect()
    }
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Who noticed.
    pub oracle: &'static str,
    /// What.
    pub message: String,
}

impl Violation {
    /// What an oracle found.
    pub fn new(oracle: &'static str, message: impl Into<String>) -> Violation {
        Violation {
            oracle,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.oracle, self.message)
    }
}

//! What happened to a saga: events, one JSON line each, only ever added.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::definition::Op;
use crate::{Error, ErrorKind, Result};

/// Which way a step goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dir {
    /// Its action.
    Act,
    /// Its compensation.
    Undo,
}

/// How a saga ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Every step is done.
    Completed,
    /// What was done is undone.
    Compensated,
}

/// What an operator may order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Try stuck steps again: one, or all.
    Retry {
        /// The step's name; `None`: all that are stuck.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<String>,
    },
    /// Go on without a stuck step: its action counts as done, or its compensation as made.
    Skip {
        /// The step's name.
        step: String,
    },
    /// Say what became of a step whose outcome the operator knows.
    Force {
        /// The step's name.
        step: String,
        /// What became of it.
        outcome: Outcome,
    },
    /// Undo what was done. Not after the pivot was sent.
    Abort,
}

/// What became of a step, as a participant says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is done.
    Done(Value),
    /// It is not done, and will not be: the same again would say the same.
    Refused(String),
    /// It may be done or not, or could not be tried: the same may be asked again.
    Unknown(String),
}

/// What a saga was begun with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The definition's name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Its shape: a definition that was changed under its version is not taken for the same.
    pub shape: u64,
    /// The caller's key.
    pub key: String,
    /// The caller's input.
    pub input: Value,
    /// When it has to be at its pivot, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<i64>,
    /// The names of its steps, for who reads the log without the definition. Empty in older logs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// The caller's trace context, as W3C `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// One event. Steps are named by number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It began.
    Started(Start),
    /// A command was sent: step, direction, try, and until when its answer is waited for.
    Sent(u16, Dir, u32, i64),
    /// A step's action or compensation is done.
    Done(
        u16,
        Dir,
        #[serde(default, skip_serializing_if = "Value::is_null")] Value,
    ),
    /// A step's action was refused.
    Refused(u16, String),
    /// A try failed, and the next is at this time.
    Failed(u16, Dir, String, i64),
    /// An action's outcome is not known, and it will be undone.
    Unknown(u16, String),
    /// A step can't go on by itself.
    Stuck(u16, Dir, String),
    /// An operator has set a stuck step aside.
    Skipped(u16, Dir),
    /// From here on it is undone, for this reason.
    Turned(String),
    /// An operator ordered something: who, why, what.
    Ordered(String, String, Order),
    /// An answer that the coordinator which got it could not take, since it does not know the definition:
    /// branch, operation, try, outcome. One that does takes it from here.
    Mail(String, Op, u32, Outcome),
    /// All such answers so far were taken.
    Taken,
    /// An operator without the definition orders something: who, why, what. A coordinator that has it carries
    /// it out: then comes `Ordered`, or `Declined`.
    Wished(String, String, Order),
    /// All wishes so far were heard.
    Heard,
    /// A wish that can't be followed: who, what, and why not.
    Declined(String, Order, String),
    /// It ended.
    Ended(End),
}

impl Event {
    /// The step that it is about.
    pub fn step(&self) -> Option<u16> {
        match self {
            Event::Sent(step, ..)
            | Event::Done(step, ..)
            | Event::Refused(step, _)
            | Event::Failed(step, ..)
            | Event::Unknown(step, _)
            | Event::Stuck(step, ..)
            | Event::Skipped(step, _) => Some(*step),
            _ => None,
        }
    }
}

/// An event, and when it happened, in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When.
    pub at_ms: i64,
    /// What.
    pub event: Event,
}

/// Adds events to the text of a log, one line each.
pub fn write_log(log: &mut String, entries: &[Entry]) -> Result<()> {
    for entry in entries {
        let line = serde_json::to_string(&(entry.at_ms, &entry.event));
        let line = line.map_err(|e| Error::new(ErrorKind::Invalid, format!("an event: {e}")))?;
        log.push_str(&line);
        log.push('\n');
    }
    Ok(())
}

/// Reads the text of a log.
///
/// # Errors
/// `Corrupt` when a line is not one of this version's events.
pub fn read_log(log: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (number, line) in log.lines().enumerate() {
        let (at_ms, event) = serde_json::from_str(line).map_err(|e| {
            let text = format!(
                "event {} of the saga's log can't be read: {e}; it is damaged, or a newer program wrote it",
                number + 1
            );
            Error::new(ErrorKind::Corrupt, text)
        })?;
        entries.push(Entry { at_ms, event });
    }
    Ok(entries)
}

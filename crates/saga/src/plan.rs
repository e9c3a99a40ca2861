//! [`Planner`]: how a saga begins, and its commands as messages.

use std::sync::Arc;

use quorate_outbox::{Limits, Message};
use serde_json::Value;

use crate::definition::{Definition, Op, Registry};
use crate::journal::{Append, saga_id};
use crate::machine::{self, Dir, Start, State, Turn};
use crate::message::Command;
use crate::{Error, ErrorKind, Result};

/// The longest key, in bytes.
const KEY_BYTES: usize = 400;
/// The largest input, in bytes of JSON.
const INPUT_BYTES: usize = 256 << 10;

/// A saga to be begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Begin {
    name: String,
    version: Option<u32>,
    key: String,
    input: Value,
    traceparent: Option<String>,
}

impl Begin {
    /// A saga of the newest version of a definition. There is one saga for a name and key: beginning it again
    /// with the same input changes nothing, with another input it is an error.
    pub fn new(name: impl Into<String>, key: impl Into<String>, input: Value) -> Begin {
        Begin {
            name: name.into(),
            version: None,
            key: key.into(),
            input,
            traceparent: None,
        }
    }

    /// The same with a version of the definition.
    pub fn version(mut self, version: u32) -> Begin {
        self.version = Some(version);
        self
    }

    /// The same in the caller's trace, a W3C `traceparent`: it goes with all commands and their replies.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Begin {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// The input.
    pub fn input(&self) -> &Value {
        &self.input
    }

    fn check(&self) -> Result<()> {
        let key = self.key.len();
        if key == 0 || self.key.contains('\0') {
            let text = "a saga's key is not empty, and has no byte 0";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let input = self.input.to_string();
        for (what, is, limit) in [("key", key, KEY_BYTES), ("input", input.len(), INPUT_BYTES)] {
            if is > limit {
                let text =
                    format!("the {what} of the saga: {is} bytes, more than the limit of {limit}");
                return Err(Error::new(ErrorKind::TooLarge, text));
            }
        }
        // It becomes a header of every command.
        let mut probe = Message::unordered("probe", "");
        probe.headers.extend(
            self.traceparent
                .iter()
                .map(|t| ("traceparent".into(), t.clone())),
        );
        Ok(Limits::default().check(&probe)?)
    }
}

/// Knows the definitions and where replies go: makes what a journal writes.
#[derive(Debug, Clone)]
pub struct Planner {
    registry: Registry,
    replies: String,
}

impl Planner {
    /// A planner whose replies come to this topic.
    pub fn new(registry: Registry, replies: impl Into<String>) -> Planner {
        Planner {
            registry,
            replies: replies.into(),
        }
    }

    /// The definitions.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The topic of the replies.
    pub fn replies(&self) -> &str {
        &self.replies
    }

    /// What beginning a saga writes: for the journal, or for `append_in` of a journal in the caller's own
    /// transaction. If that answers that it was not written, there is one of that key already.
    ///
    /// # Errors
    /// `NotFound` for a definition that is not known; `Invalid`, `TooLarge` for key and input.
    pub fn begin(&self, begin: &Begin, now_ms: i64) -> Result<Append> {
        begin.check()?;
        let found = match begin.version {
            Some(version) => self.registry.get(&begin.name, version),
            None => self.registry.newest(&begin.name),
        };
        let definition = found.ok_or_else(|| {
            let version = begin
                .version
                .map_or(String::new(), |v| format!(" in version {v}"));
            let text = format!(
                "there is no definition `{}`{version}: register it",
                begin.name
            );
            Error::new(ErrorKind::NotFound, text)
        })?;
        let id = saga_id(&begin.name, &begin.key);
        let start = Start {
            name: begin.name.clone(),
            version: definition.version(),
            shape: definition.shape(),
            key: begin.key.clone(),
            input: begin.input.clone(),
            deadline_ms: machine::deadline_ms(definition, now_ms),
            steps: definition
                .steps()
                .iter()
                .map(|step| step.name().to_owned())
                .collect(),
            traceparent: begin.traceparent.clone(),
        };
        let turn = machine::start(definition, start, dice(id), now_ms);
        let wake_ms = turn.state.wake_ms(definition);
        self.append(definition, id, 0, turn, wake_ms)
            .map(|(append, _)| append)
    }

    /// What a turn of a saga writes, and its state then.
    pub(crate) fn append(
        &self,
        definition: &Definition,
        id: uuid::Uuid,
        seq: i64,
        turn: Turn<'_>,
        wake_ms: Option<i64>,
    ) -> Result<(Append, State)> {
        let state = turn.state;
        let mut messages = Vec::with_capacity(turn.sends.len());
        for send in turn.sends {
            let step = &definition.steps()[send.step];
            let command = Command {
                saga: id,
                name: state.start.name.clone(),
                key: state.start.key.clone(),
                started_ms: state.started_ms,
                branch: step.branch().to_owned(),
                op: match send.dir {
                    Dir::Act => step.op(),
                    Dir::Undo => Op::Undo,
                },
                attempt: send.attempt,
                input: send.input,
                output: send.output,
                reply_to: self.replies.clone(),
            };
            let trace = state.start.traceparent.as_deref();
            messages.push(command.message(step.topic(), trace)?);
        }
        let append = Append {
            id,
            seq,
            name: state.start.name.clone(),
            version: state.start.version,
            key: state.start.key.clone(),
            started_ms: state.started_ms,
            events: turn.events,
            status: state.status(),
            wake_ms,
            messages,
        };
        Ok((append, state))
    }

    /// The definition of a saga.
    pub(crate) fn definition(&self, name: &str, version: u32) -> Option<Arc<Definition>> {
        self.registry.get(name, version).cloned()
    }
}

/// What the jitter of a saga's waits is made of.
pub(crate) fn dice(id: uuid::Uuid) -> u64 {
    id.as_u64_pair().0
}

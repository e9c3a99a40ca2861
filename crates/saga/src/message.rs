//! What coordinators and participants say to each other: [`Command`] and [`Reply`], JSON in messages.

use quorate_outbox::{Delivery, Message};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::definition::Op;
use crate::machine::Outcome;
use crate::{Error, ErrorKind, Result};

/// Header: the caller's trace context, as W3C `traceparent`. On commands, and on their replies.
pub const HEADER_TRACE: &str = "traceparent";

/// What a participant is asked to do. The same (saga, branch, op) is the same deed, however often it comes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// The saga.
    pub saga: Uuid,
    /// Its definition's name.
    pub name: String,
    /// The key that its caller gave it.
    pub key: String,
    /// When it began, in milliseconds since 1970: what semantic locks go by.
    pub started_ms: i64,
    /// The branch: the step's name, but for TCC.
    pub branch: String,
    /// What to do.
    pub op: Op,
    /// Which try it is, from 1.
    pub attempt: u32,
    /// The step's input.
    pub input: Value,
    /// For `Undo`: what the action answered, if the coordinator knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// Where the reply goes.
    pub reply_to: String,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The saga.
    pub saga: Uuid,
    /// The branch.
    pub branch: String,
    /// What was to be done.
    pub op: Op,
    /// Which try it answers.
    pub attempt: u32,
    /// What became of it.
    pub outcome: Outcome,
}

impl Command {
    /// The message for a topic.
    ///
    /// # Errors
    /// `Invalid` when it can't be written as JSON.
    pub fn message(&self, topic: &str, traceparent: Option<&str>) -> Result<Message> {
        message(topic, self.saga, self, traceparent)
    }

    /// Reads a delivery.
    ///
    /// # Errors
    /// `Corrupt` when it is no command.
    pub fn read(delivery: &Delivery) -> Result<Command> {
        read(delivery, "command")
    }

    /// The reply to it.
    pub fn reply(&self, outcome: Outcome) -> Reply {
        Reply {
            saga: self.saga,
            branch: self.branch.clone(),
            op: self.op,
            attempt: self.attempt,
            outcome,
        }
    }
}

impl Reply {
    /// The message for a topic.
    ///
    /// # Errors
    /// `Invalid` when it can't be written as JSON.
    pub fn message(&self, topic: &str, traceparent: Option<&str>) -> Result<Message> {
        message(topic, self.saga, self, traceparent)
    }

    /// Reads a delivery.
    ///
    /// # Errors
    /// `Corrupt` when it is no reply.
    pub fn read(delivery: &Delivery) -> Result<Reply> {
        read(delivery, "reply")
    }
}

/// A message without order, routed by the saga: a saga's commands may overtake each other, and participants
/// know how to bear that.
fn message(
    topic: &str,
    saga: Uuid,
    body: &impl Serialize,
    traceparent: Option<&str>,
) -> Result<Message> {
    let payload = serde_json::to_vec(body);
    let payload = payload.map_err(|e| Error::new(ErrorKind::Invalid, format!("a message: {e}")))?;
    let mut message = Message::unordered(topic, payload);
    message.key = Some(saga.simple().to_string());
    Ok(match traceparent {
        Some(trace) => message.header(HEADER_TRACE, trace),
        None => message,
    })
}

fn read<T: for<'a> Deserialize<'a>>(delivery: &Delivery, what: &str) -> Result<T> {
    serde_json::from_slice(&delivery.payload).map_err(|e| {
        let at = &delivery.partition;
        let text = format!(
            "the message at {} of `{}` {} is no {what} of a saga: {e}",
            delivery.offset, at.topic, at.number
        );
        Error::new(ErrorKind::Corrupt, text)
    })
}

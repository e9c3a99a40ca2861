//! [`RedisInvalidations`]: what processes tell each other, as a stream in Redis.
//!
//! The script that invalidates a record adds a message to the stream, so neither is there without the other. A
//! message's id is `epoch-number`: the epoch is a random number of the stream's beginning, the numbers follow each
//! other. A stream that was evicted or flushed begins with another epoch; one of another server counts as another,
//! though it was replicated, since it may lack the last messages and give their numbers out again. Old messages are
//! trimmed; who asks for them finds that the first one does not follow.
//!
//! One question is three commands on a connection of its own: `XREAD BLOCK` past the position, the last message's id,
//! and `INFO`, by which the server that answered is known to have been the master all the while.

use std::time::Duration;

use bytes::Bytes;
use quorate_kv::BoxFuture;
use redis::{Pipeline, Value};

use super::connection::Server;
use super::scripts::{Scripts, version};
use super::{Marks, RedisOptions, damaged, millis};
use crate::core::{Batch, Invalidation, Message, Position, Told};
use crate::invalidations::Invalidations;
use crate::{Error, ErrorKind, Result};

/// The name of a field: all is to be dropped.
pub(super) const ALL: &str = "all";
/// The name of a field: a stream begins.
const BEGINS: &str = "begins";
/// How many messages one answer has at most.
const MESSAGES_MAX: u32 = 1000;

/// The key of the stream: that of a record whose key is empty, which no record has.
pub(super) fn name(options: &RedisOptions) -> &[u8] {
    options.prefix.as_bytes()
}

/// What all processes invalidate under a prefix of a server.
pub struct RedisInvalidations {
    server: Server,
    name: Vec<u8>,
    backlog: u32,
    patience: Duration,
    scripts: Scripts,
    marks: Marks,
}

impl RedisInvalidations {
    pub(super) fn new(server: Server, options: &RedisOptions) -> Self {
        RedisInvalidations {
            server,
            name: name(options).to_vec(),
            backlog: options.backlog,
            patience: options.response_timeout,
            scripts: Scripts::new(),
            marks: Marks::new(),
        }
    }

    async fn ask(&self, after: Option<&Position>, wait: Duration) -> Result<Batch> {
        let generation = self.server.generation().await?;
        let epoch = after.and_then(|at| at.stream.strip_prefix(&*generation)?.strip_prefix('/'));
        if let (Some(after), Some(epoch)) = (after, epoch)
            && let Some(batch) = self.read(&generation, epoch, after, wait).await?
        {
            return Ok(batch);
        }
        self.begin(&generation).await
    }

    /// Where the stream ends. Makes one, if there is none: what begins later begins with another epoch.
    async fn begin(&self, generation: &str) -> Result<Batch> {
        let mut call = self.scripts.tell.prepare_invoke();
        call.key(&self.name).arg(self.marks.next().0);
        call.arg(self.backlog).arg(BEGINS);
        let mut commands = Pipeline::new();
        commands.load_script(&self.scripts.tell).ignore();
        commands.invoke_script(&call);
        let answers = self.server.run(generation, commands, self.patience).await?;
        let answers = answers.ok_or_else(|| {
            let message = "Redis is another server now, or no master any more";
            Error::new(ErrorKind::Unavailable, message)
        })?;
        let id = answers.first().and_then(parse);
        let (epoch, number) = id.ok_or_else(|| damaged("number"))?;
        Ok(Batch {
            stream: format!("{generation}/{epoch}").into(),
            messages: Vec::new(),
            end: Some(number),
        })
    }

    /// What is past a position in an epoch of the stream; `None` if it is not there any more.
    async fn read(
        &self,
        generation: &str,
        epoch: &str,
        after: &Position,
        wait: Duration,
    ) -> Result<Option<Batch>> {
        let mut commands = Pipeline::new();
        let read = commands.cmd("XREAD").arg("COUNT").arg(MESSAGES_MAX);
        read.arg("BLOCK").arg(millis(wait)).arg("STREAMS");
        read.arg(&self.name)
            .arg(format!("{epoch}-{}", after.number));
        let last = commands.cmd("XREVRANGE").arg(&self.name);
        last.arg("+").arg("-").arg("COUNT").arg(1);
        let patience = wait + self.patience;
        let answers = self.server.run(generation, commands, patience).await?;
        let Some([read, last]) = answers.as_deref() else {
            return Ok(None);
        };
        let last = entries(last).next().and_then(|(id, _)| parse(id));
        let Some((_, end)) = last.filter(|(of, _)| *of == epoch) else {
            return Ok(None);
        };
        let messages = streams(read).flat_map(entries);
        let of_epoch = messages.filter_map(|(id, fields)| {
            let (of, number) = parse(id)?;
            let told = told(fields);
            (of == epoch).then_some(Message { number, told })
        });
        Ok(Some(Batch {
            stream: after.stream.clone(),
            messages: of_epoch.collect(),
            end: Some(end),
        }))
    }
}

impl Invalidations for RedisInvalidations {
    fn after<'a>(
        &'a mut self,
        position: Option<&'a Position>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(self.ask(position, wait))
    }
}

/// The epoch and number of an id.
fn parse(id: &Value) -> Option<(&str, u64)> {
    let Value::BulkString(id) = id else {
        return None;
    };
    let (epoch, number) = std::str::from_utf8(id).ok()?.split_once('-')?;
    Some((epoch, number.parse().ok()?))
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        _ => &[],
    }
}

/// The lists of messages in the answer to `XREAD`, each behind its stream's name.
fn streams(value: &Value) -> impl Iterator<Item = &Value> {
    items(value)
        .iter()
        .filter_map(|stream| items(stream).get(1))
}

/// Ids, and fields with their values by turns.
fn entries(value: &Value) -> impl Iterator<Item = (&Value, &[Value])> {
    let entry = |entry| match items(entry) {
        [id, fields] => Some((id, items(fields))),
        _ => None,
    };
    items(value).iter().filter_map(entry)
}

/// What a message says. What can't be read may have been anything.
fn told(fields: &[Value]) -> Told {
    let bytes = |at: usize| match fields.get(at) {
        Some(Value::BulkString(bytes)) => Some(bytes.as_slice()),
        _ => None,
    };
    let names = (bytes(0), bytes(2));
    if names.0 == Some(BEGINS.as_bytes()) {
        return Told::Nothing;
    }
    let (Some(b"k"), Some(key), Some(b"f"), Some(floor)) = (names.0, bytes(1), names.1, bytes(3))
    else {
        return Told::All;
    };
    let invalidation = match floor {
        b"" => Some(Invalidation::Unknown),
        floor => version(floor).map(Invalidation::At),
    };
    invalidation.map_or(Told::All, |invalidation| {
        Told::Key(Bytes::copy_from_slice(key), invalidation)
    })
}

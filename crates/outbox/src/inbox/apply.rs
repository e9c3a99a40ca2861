//! One message inside a transaction: is it its turn, and what does its handler say?

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use uuid::Uuid;

use super::ledger::{LedgerTx, State, Stream, Waiting, identity};
use super::{Baseline, ConsumerOptions, Failure, Handler, OnGap};
use crate::store::Wish;
use crate::{Delivery, Error, Level, Partition, Result, points};

/// What became of a message in a transaction that is to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Applied,
    Duplicate,
    Parked,
}

/// Why a transaction has to be rolled back.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The handler failed.
    Handler(Failure),
    /// The database failed: nobody's fault.
    Database(Error),
    /// The partition has to stop.
    Halt(String),
    /// The position is not where it was left: the partition has to be claimed anew.
    Moved(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Database(error)
    }
}

/// A message's turn.
enum Turn {
    Now,
    Over,
    Early { next: i64 },
}

/// A partition under the generation that this process claimed.
#[derive(Debug, Clone)]
pub(super) struct Claimed {
    pub(super) partition: Partition,
    pub(super) generation: i64,
    /// The position that this process found, or left, in the database.
    pub(super) next: i64,
    /// Whether the answer to a commit was lost: then the position may be further.
    pub(super) unsure: bool,
}

impl Claimed {
    /// A transaction up to this message was committed.
    pub(super) fn left(&mut self, last: &Delivery) {
        self.next = last.offset + 1;
        self.unsure = false;
    }
}

/// Moves the position past messages. False when they were consumed by a commit whose answer was lost.
pub(super) async fn advance<T: LedgerTx>(
    tx: &mut T,
    options: &ConsumerOptions,
    at: &mut Claimed,
    messages: &[Delivery],
) -> std::result::Result<bool, Trouble> {
    let (Some(first), Some(last)) = (messages.first(), messages.last()) else {
        return Ok(true);
    };
    let name = &options.name;
    let next = last.offset + 1;
    let before = tx.advance(name, &at.partition, at.generation, next).await?;
    if before < at.next || (before > at.next && !at.unsure) {
        return Err(Trouble::Moved(format!(
            "the position was left at {} and is {before}: the database went back",
            at.next
        )));
    }
    if at.unsure && before > first.offset {
        // Unsure until a message beyond it is committed: all of a batch may have been.
        at.next = before;
        return Ok(false);
    }
    // The numbers and ids of an outbox tell repetitions; without them only the position does.
    let consumed = |m: &&Delivery| m.id().is_none() && m.offset < before;
    match messages.iter().find(consumed) {
        None => Ok(true),
        Some(message) => Err(Trouble::Halt(format!(
            "offset {} came after {before} was reached: the topic was made anew, or its records moved",
            message.offset
        ))),
    }
}

/// Messages in one transaction, whose position is past them already. What the database knows of their keys is read
/// before the first and written after the last.
pub(super) struct Together {
    /// The number of the last message of each key.
    seqs: HashMap<Stream, i64>,
    /// The keys whose number has changed.
    changed: HashSet<Stream>,
    /// Messages without an order that were not consumed before.
    fresh: HashSet<Uuid>,
}

impl Together {
    /// Reads what is known.
    pub(super) async fn new<T: LedgerTx>(
        tx: &mut T,
        options: &ConsumerOptions,
        messages: &[Delivery],
    ) -> Result<Together> {
        let mut together = Together {
            seqs: HashMap::new(),
            changed: HashSet::new(),
            fresh: HashSet::new(),
        };
        if options.level != Level::EffectivelyOnce {
            return Ok(together);
        }
        let (mut streams, mut ids) = (HashSet::new(), HashSet::new());
        for message in messages {
            match Stream::of(message) {
                Some((stream, _)) => {
                    streams.insert(stream);
                }
                None => ids.extend(message.id()),
            }
        }
        if !streams.is_empty() {
            let streams: Vec<Stream> = streams.into_iter().collect();
            together.seqs = tx.last_seqs(&options.name, &streams).await?;
        }
        if !ids.is_empty() {
            let ids: Vec<Uuid> = ids.into_iter().collect();
            together.fresh = tx.note(&options.name, &ids).await?;
        }
        points::pass("inbox.noted");
        Ok(together)
    }

    /// Applies one.
    pub(super) async fn apply<T: LedgerTx>(
        &mut self,
        tx: &mut T,
        options: &ConsumerOptions,
        handler: &dyn Handler<T::Connection>,
        message: &Delivery,
    ) -> std::result::Result<Done, Trouble> {
        let ordered = Stream::of(message).filter(|_| options.level == Level::EffectivelyOnce);
        let Some((stream, seq)) = ordered else {
            let id = message.id();
            let id = id.filter(|_| options.level == Level::EffectivelyOnce);
            if id.is_some_and(|id| !self.fresh.remove(&id)) {
                return Ok(Done::Duplicate);
            }
            if !message.is_skip() {
                handle(tx, options, handler, message).await?;
            }
            return Ok(Done::Applied);
        };
        match turn(self.seqs.get(&stream).copied(), seq, options) {
            Turn::Over => return Ok(Done::Duplicate),
            Turn::Early { next } if options.on_gap == OnGap::Halt => {
                return Err(Trouble::Halt(format!(
                    "key `{}` of `{}`: number {seq} came, {next} is missing",
                    stream.key, stream.topic
                )));
            }
            Turn::Early { next } => {
                let waiting = Waiting {
                    id: identity(message),
                    message: message.clone(),
                    state: State::Waiting,
                    reason: format!("number {next} of its key is not applied yet"),
                    attempts: 0,
                    wish: Wish::None,
                };
                tx.park(&options.name, &waiting).await?;
                return Ok(Done::Parked);
            }
            Turn::Now => {}
        }
        if !message.is_skip() {
            handle(tx, options, handler, message).await?;
        }
        points::pass("inbox.handled");
        self.seqs.insert(stream.clone(), seq);
        self.changed.insert(stream);
        Ok(Done::Applied)
    }

    /// Writes what has changed, and makes sure that the transaction can commit.
    pub(super) async fn save<T: LedgerTx>(
        self,
        tx: &mut T,
        options: &ConsumerOptions,
    ) -> std::result::Result<(), Trouble> {
        let seqs = self.seqs.into_iter();
        let seqs: Vec<_> = seqs
            .filter(|(stream, _)| self.changed.contains(stream))
            .collect();
        let saved = if seqs.is_empty() {
            tx.check().await
        } else {
            tx.set_seqs(&options.name, &seqs).await
        };
        saved.map_err(broken)
    }
}

/// Applies one message by itself.
pub(super) async fn apply<T: LedgerTx>(
    tx: &mut T,
    options: &ConsumerOptions,
    handler: &dyn Handler<T::Connection>,
    message: &Delivery,
) -> std::result::Result<Done, Trouble> {
    let mut alone = Together::new(tx, options, std::slice::from_ref(message)).await?;
    let done = alone.apply(tx, options, handler, message).await?;
    alone.save(tx, options).await?;
    Ok(done)
}

fn turn(last: Option<i64>, seq: i64, options: &ConsumerOptions) -> Turn {
    let next = match (last, options.baseline) {
        (Some(last), _) => last + 1,
        (None, Baseline::One) => 1,
        (None, Baseline::FirstSeen) => seq,
    };
    if seq < next {
        Turn::Over
    } else if seq == next || options.on_gap == OnGap::Accept {
        Turn::Now
    } else {
        Turn::Early { next }
    }
}

/// A transaction that a handler has left such that nothing can be done in it: a statement of its own has
/// failed, and it said that all went well. If the database is the cause, its next transaction tells.
pub(super) fn broken(error: Error) -> Trouble {
    Trouble::Handler(Failure::retry(format!(
        "the handler left a transaction that can't go on: {error}"
    )))
}

/// Commits. What the database refuses is the handler's failure: a constraint that is checked at the end.
pub(super) async fn commit<T: LedgerTx>(
    tx: T,
    at: &mut Claimed,
    last: &Delivery,
) -> std::result::Result<(), Trouble> {
    match tx.commit().await {
        Ok(()) => {
            at.left(last);
            Ok(())
        }
        Err(error) if error.is_outcome_known() => Err(Trouble::Handler(Failure::retry(format!(
            "the commit was refused: {error}"
        )))),
        Err(error) => {
            at.unsure = true;
            Err(Trouble::Database(error))
        }
    }
}

/// Calls the handler; a panic is a failure, and so is taking too long.
pub(super) async fn handle<T: LedgerTx>(
    tx: &mut T,
    options: &ConsumerOptions,
    handler: &dyn Handler<T::Connection>,
    message: &Delivery,
) -> std::result::Result<(), Trouble> {
    let connection = tx.connection();
    guard(
        options,
        async move { handler.handle(connection, message).await },
    )
    .await
}

/// Calls the handler for all messages at once; false when it does not do that.
pub(super) async fn handle_all<T: LedgerTx>(
    tx: &mut T,
    options: &ConsumerOptions,
    handler: &dyn Handler<T::Connection>,
    messages: &[Delivery],
) -> std::result::Result<bool, Trouble> {
    if options.level != Level::AtLeastOnce || messages.iter().any(Delivery::is_skip) {
        return Ok(false);
    }
    let Some(called) = handler.handle_all(tx.connection(), messages) else {
        return Ok(false);
    };
    guard(options, called).await?;
    tx.check().await.map_err(broken)?;
    Ok(true)
}

async fn guard(
    options: &ConsumerOptions,
    called: impl Future<Output = std::result::Result<(), Failure>>,
) -> std::result::Result<(), Trouble> {
    let guarded = AssertUnwindSafe(called).catch_unwind();
    let Ok(ended) = tokio::time::timeout(options.patience, guarded).await else {
        let text = format!("the handler took longer than {:?}", options.patience);
        return Err(Trouble::Handler(Failure::retry(text)));
    };
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => Err(Trouble::Handler(failure)),
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            let said = said.unwrap_or_else(|| "no text".into());
            Err(Trouble::Handler(Failure::retry(format!(
                "the handler panicked: {said}"
            ))))
        }
    }
}

/// Gives a message up: sets it aside as dead, and moves its key on if it is only passed.
pub(super) async fn bury<T: LedgerTx>(
    tx: &mut T,
    options: &ConsumerOptions,
    message: &Delivery,
    state: State,
    reason: String,
    attempts: i64,
) -> Result<()> {
    let id = identity(message);
    let ordered = Stream::of(message).filter(|_| options.level == Level::EffectivelyOnce);
    let state = match &ordered {
        Some((stream, seq)) if state == State::Passed => {
            let seq = (stream.clone(), *seq);
            tx.set_seqs(&options.name, &[seq]).await?;
            State::Passed
        }
        Some((stream, seq)) => {
            // A key that begins with a dead message begins there all the same: the next one waits.
            let stream = std::slice::from_ref(stream);
            if tx.last_seqs(&options.name, stream).await?.is_empty() {
                let before = (stream[0].clone(), seq - 1);
                tx.set_seqs(&options.name, &[before]).await?;
            }
            State::Dead
        }
        None => {
            tx.note(&options.name, &[id]).await?;
            State::Passed
        }
    };
    let waiting = Waiting {
        id,
        message: message.clone(),
        state,
        reason,
        attempts,
        wish: Wish::None,
    };
    tx.park(&options.name, &waiting).await
}

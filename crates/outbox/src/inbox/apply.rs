//! One message inside a transaction: is it its turn, and what does its handler say?

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

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
}

/// Moves the position past a message. A message without an id or number that lies before the position
/// was consumed already; then the answer is false.
pub(super) async fn advance<T: LedgerTx>(
    tx: &mut T,
    options: &ConsumerOptions,
    at: &Claimed,
    message: &Delivery,
) -> std::result::Result<(), Trouble> {
    let next = message.offset + 1;
    let before = tx
        .advance(&options.name, &at.partition, at.generation, next)
        .await?;
    if message.id().is_none() && before > message.offset {
        return Err(Trouble::Halt(format!(
            "offset {} came after {before} was reached: the topic was made anew, or its records moved",
            message.offset
        )));
    }
    Ok(())
}

/// Applies one message in a transaction whose position is past it already.
pub(super) async fn apply<T: LedgerTx>(
    tx: &mut T,
    options: &ConsumerOptions,
    handler: &dyn Handler<T::Connection>,
    message: &Delivery,
) -> std::result::Result<Done, Trouble> {
    if options.level != Level::EffectivelyOnce {
        if !message.is_skip() {
            handle(tx, handler, message).await?;
        }
        tx.check().await?;
        return Ok(Done::Applied);
    }
    let stream = Stream::of(message);
    let Some((stream, seq)) = stream else {
        if message.id().is_some() && !tx.note(&options.name, identity(message)).await? {
            return Ok(Done::Duplicate);
        }
        points::pass("inbox.noted");
        handle(tx, handler, message).await?;
        tx.check().await?;
        return Ok(Done::Applied);
    };
    let last = tx.last_seq(&options.name, &stream).await?;
    match turn(last, seq, options) {
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
        handle(tx, handler, message).await?;
    }
    points::pass("inbox.handled");
    tx.set_seq(&options.name, &stream, seq).await?;
    Ok(Done::Applied)
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

/// Calls the handler; a panic is a failure.
pub(super) async fn handle<T: LedgerTx>(
    tx: &mut T,
    handler: &dyn Handler<T::Connection>,
    message: &Delivery,
) -> std::result::Result<(), Trouble> {
    let connection = tx.connection();
    let called = async move { handler.handle(connection, message).await };
    let ended = AssertUnwindSafe(called).catch_unwind().await;
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
            tx.set_seq(&options.name, stream, *seq).await?;
            State::Passed
        }
        Some(_) => State::Dead,
        None => {
            tx.note(&options.name, id).await?;
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

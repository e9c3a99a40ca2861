//! What was set aside, once its turn has come: waiting messages whose gap is filled, and those that an
//! operator wants replayed or skipped: dead ones, and waiting ones whose gap will never be filled.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::apply::{self, Trouble};
use super::consumer::Shared;
use super::ledger::{Ledger, LedgerTx, State, Stream, Waiting};
use crate::store::Wish;
use crate::{Result, points};

/// At most so many at a look.
const MOST: usize = 200;

/// Applies what is ready; answers how many were dealt with.
pub(super) async fn run<L: Ledger>(shared: &Arc<Shared<L>>) -> Result<usize> {
    let ready = shared.ledger.ready(&shared.options.name, MOST).await?;
    let mut dealt = 0;
    for waiting in ready {
        match one(shared, &waiting).await {
            Ok(()) => dealt += 1,
            Err(Trouble::Database(error)) => return Err(error),
            Err(Trouble::Handler(failure)) => {
                let mut again = waiting.clone();
                again.attempts += 1;
                again.reason = failure.reason;
                again.state = match again.state {
                    State::Waiting => State::Dead,
                    other => other,
                };
                let mut tx = shared.begin().await?;
                // Another consumer may have applied it meanwhile: then it must not come back.
                if tx.unpark(&shared.options.name, again.id).await? {
                    tx.park(&shared.options.name, &again).await?;
                    tx.commit().await?;
                }
                shared.counts.dead.fetch_add(1, Ordering::Relaxed);
            }
            Err(Trouble::Halt(why) | Trouble::Moved(why)) => {
                tracing::warn!("not replayed: {why}");
            }
        }
    }
    Ok(dealt)
}

/// Takes one out and applies it, unless it is to be left out or its effect is there already. Whoever
/// takes it out first holds its row: it is applied once.
async fn one<L: Ledger>(
    shared: &Arc<Shared<L>>,
    waiting: &Waiting,
) -> std::result::Result<(), Trouble> {
    let name = &shared.options.name;
    let mut tx = shared.begin().await?;
    if !tx.unpark(name, waiting.id).await? {
        return Ok(());
    }
    points::pass("replay.taken");
    let stream = Stream::of(&waiting.message).filter(|_| waiting.state != State::Passed);
    let leaves_out = matches!(waiting.wish, Wish::Skip | Wish::Drop);
    let mut applies = !leaves_out && !waiting.message.is_skip();
    if let Some((stream, seq)) = stream {
        let known = tx.last_seqs(name, std::slice::from_ref(&stream)).await?;
        let last = known.get(&stream).copied().unwrap_or(0);
        let over_gap = waiting.state == State::Waiting && waiting.wish != Wish::None;
        if seq > last + 1 && !over_gap {
            // Its turn was lost again; the rollback puts it back.
            return Ok(());
        }
        applies &= seq > last;
        tx.set_seqs(name, &[(stream, seq.max(last))]).await?;
    }
    if applies {
        let handler = shared.handler.as_ref();
        apply::handle(&mut tx, &shared.options, handler, &waiting.message).await?;
        tx.check().await.map_err(apply::broken)?;
        points::pass("replay.handled");
    }
    match tx.commit().await {
        Err(error) if error.is_outcome_known() => return Err(apply::broken(error)),
        ended => ended?,
    }
    points::pass("replay.committed");
    if applies {
        shared.counts.applied.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

//! Rows of a batch, before and after they are published: what is not to be sent, what became of the rest, and
//! what a broker gets.

use std::collections::HashSet;

use bytes::Bytes;

use super::worker::Round;
use crate::broker::{Outcomes, Outgoing, Refusal};
use crate::message::{HEADER_CREATED, HEADER_ID, HEADER_SEQ, HEADER_SKIP, HEADER_SOURCE};
use crate::store::{Park, Parked, Row, Unpark, Wish};
use crate::{Error, ErrorKind, Result};

/// Topic and key.
pub(super) type Stream = (String, String);

/// Why a message is parked that nothing is wrong with.
const BEHIND: &str = "behind a parked message of its key";

/// Splits off what is not to be sent: rows that can't be read, and rows behind one of those or behind a parked
/// message of their stream. They are parked too: their order is kept.
pub(super) fn hold_back(rows: Vec<Row>, parked: &HashSet<Stream>) -> (Vec<Row>, Vec<Park>) {
    if parked.is_empty() && rows.iter().all(|row| row.damage.is_none()) {
        return (rows, Vec::new());
    }
    let mut closed: HashSet<Stream> = HashSet::new();
    let (mut free, mut held) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let stream = row.stream();
        let is_behind = |s: &Stream| parked.contains(s) || closed.contains(s);
        let reason = match &row.damage {
            Some(why) => why.clone(),
            None if stream.as_ref().is_some_and(is_behind) => BEHIND.to_owned(),
            None => {
                free.push(row);
                continue;
            }
        };
        closed.extend(stream);
        held.push(Park { row, reason });
    }
    (free, held)
}

fn back(id: i64, wish: Wish, reason: &str) -> Unpark {
    let reason = reason.to_owned();
    Unpark::Back { id, wish, reason }
}

/// What operators asked for, as what is sent and what is settled without.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) send: Vec<Parked>,
    pub(super) unparks: Vec<Unpark>,
}

impl Wanted {
    /// What can't be read goes back, and so does what stands behind it. What is to be dropped goes at once.
    pub(super) fn of(all: Vec<Parked>) -> Wanted {
        let mut wanted = Wanted::default();
        let mut closed: HashSet<Stream> = HashSet::new();
        for parked in all {
            let (id, stream) = (parked.row.id, parked.row.stream());
            let is_behind = stream.as_ref().is_some_and(|s| closed.contains(s));
            let unpark = match (&parked.row.damage, parked.wish) {
                (_, Wish::Drop) => Unpark::Gone(id),
                (_, wish) if is_behind => back(id, wish, BEHIND),
                (Some(why), wish) if wish != Wish::Skip => {
                    closed.extend(stream);
                    back(id, wish, why)
                }
                _ => {
                    wanted.send.push(parked);
                    continue;
                }
            };
            wanted.unparks.push(unpark);
        }
        wanted
    }
}

/// What became of the rows of a batch.
#[derive(Default)]
pub(super) struct Sorted {
    pub(super) published: Vec<i64>,
    pub(super) poison: Vec<Park>,
    /// The lowest id that has to be sent again.
    pub(super) open: Option<i64>,
    pub(super) why: Option<String>,
    /// Some were refused since they were together.
    pub(super) together: bool,
    /// The streams of what has to be sent again.
    pub(super) put_off: HashSet<Stream>,
}

impl Sorted {
    /// What it comes to. What was refused together is sent again at once, in smaller batches.
    pub(super) fn round(self) -> Round {
        match self.why {
            Some(why) if !self.together => Round::Refused(why),
            _ => Round::Busy,
        }
    }
}

/// A row whose stream had a refusal earlier in the batch counts as refused too: it is sent again, or
/// parked behind it, so that order is kept. What is refused although it was `alone` is poison.
pub(super) fn sort_out(rows: Vec<Row>, outcomes: Outcomes, alone: bool) -> Result<Sorted> {
    let mut sorted = Sorted::default();
    let mut poisoned: HashSet<Stream> = HashSet::new();
    if rows.len() != outcomes.len() {
        let text = format!("{} outcomes for {} messages", outcomes.len(), rows.len());
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    for (row, outcome) in rows.into_iter().zip(outcomes) {
        let stream = row.stream();
        let is_in = |set: &HashSet<Stream>| stream.as_ref().is_some_and(|s| set.contains(s));
        let refusal = match outcome {
            _ if is_in(&sorted.put_off) => Refusal::Retry(sorted.why.clone().unwrap_or_default()),
            _ if is_in(&poisoned) => Refusal::Poison(BEHIND.into()),
            Ok(()) => {
                sorted.published.push(row.id);
                continue;
            }
            Err(refusal) => refusal,
        };
        let refusal = match refusal {
            Refusal::Together(why) if alone => Refusal::Poison(why),
            other => other,
        };
        sorted.together |= matches!(refusal, Refusal::Together(_));
        match refusal {
            Refusal::Fenced(why) => return Err(Error::new(ErrorKind::Fenced, why)),
            Refusal::Retry(why) | Refusal::Together(why) => {
                sorted.open = Some(sorted.open.map_or(row.id, |open| open.min(row.id)));
                sorted.why = Some(why);
                sorted.put_off.extend(stream);
            }
            Refusal::Poison(reason) => {
                poisoned.extend(stream);
                sorted.poison.push(Park { row, reason });
            }
        }
    }
    Ok(sorted)
}

/// A row as the broker gets it. A skip record has the place of the message and nothing of its content.
pub(super) fn outgoing(row: &Row, source: &str, skip: bool) -> Outgoing {
    let mut headers = Vec::with_capacity(row.headers.len() + 4);
    headers.push((HEADER_ID.to_owned(), row.message_id.to_string()));
    headers.push((HEADER_CREATED.to_owned(), row.created_ms.to_string()));
    if let Some(seq) = row.seq {
        headers.push((HEADER_SEQ.to_owned(), seq.to_string()));
        headers.push((HEADER_SOURCE.to_owned(), source.to_owned()));
    }
    let payload = if skip {
        headers.push((HEADER_SKIP.to_owned(), "1".to_owned()));
        Bytes::new()
    } else {
        headers.extend(row.headers.iter().cloned());
        row.payload.clone()
    };
    Outgoing {
        topic: row.topic.clone(),
        key: row.key.clone(),
        headers,
        payload,
    }
}

//! [`Feed`]: what one process has heard of what others wrote, and since when that is all.
//!
//! Invalidations come as a stream of messages, numbered without gaps. A process asks for what is past its place,
//! and is answered by a [`Batch`]. From two things it sees what it has:
//!
//! ```text
//! a place that does not follow, or another stream     messages are lost: drop all that is here
//! the end of the stream, with nothing left before it  all that was said before the question was heard
//! ```
//!
//! The second is a *proof*, of the time of the question. The local tier is believed for a time after the last
//! proof, and no longer: so a process that is cut off falls silent by itself, though nobody can tell it. If the
//! stream goes on where it was left, so does the tier; if not, it begins empty.
//!
//! Batches may be lost, come twice or in another order: places tell. A stream that begins anew, or loses what it
//! had, must have another name; then it tells nothing of what the one before had.

use std::sync::Arc;

use bytes::Bytes;

use super::Invalidation;
use super::planted::{self, Bug};

/// A place in a stream: that of the last message that was heard, or of none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The stream's name. Numbers of two streams have nothing to do with each other.
    pub stream: Arc<str>,
    /// The number. The next message has the next one.
    pub number: u64,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A key was written.
    Key(Bytes, Invalidation),
    /// Any key may have been written, or what was written can't be read: all is to be dropped.
    All,
    /// Nothing: it only takes up a number.
    Nothing,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its place in the stream.
    pub number: u64,
    /// What it says.
    pub told: Told,
}

/// An answer to the question what is past a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The name of the stream that there is now.
    pub stream: Arc<str>,
    /// The first messages past the place, if it was in this stream; else none.
    pub messages: Vec<Message>,
    /// The number of the last message that there was at some time after the question was asked; `None` where that is not
    /// known.
    pub end: Option<u64>,
}

/// What a process makes of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// To be done to the local tier, in this order...
    pub told: Vec<Told>,
    /// ...and only then this holds: all that was said before this time was heard.
    pub proven: Option<u64>,
    /// Whether messages were missed, or may have been.
    pub is_gap: bool,
}

/// Where a process is in the stream.
#[derive(Debug, Default)]
pub struct Feed {
    position: Option<Position>,
}

/// Whether the local tier may be believed at a time, where all was proven to be heard so that it is until another one.
pub fn is_believed(until: u64, now: u64) -> bool {
    now < until || planted::is_on(Bug::UnprovenIsServed)
}

impl Feed {
    /// The place past which to ask; `None`: there is none yet.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Takes an answer in. `asked` is when the question was asked, in microseconds of the local clock.
    pub fn take(&mut self, batch: Batch, asked: u64) -> Heard {
        let mut heard = Heard::default();
        let number = match &self.position {
            Some(at) if at.stream == batch.stream => Some(at.number),
            Some(at) if planted::is_on(Bug::FeedIgnoresTheStream) => Some(at.number),
            _ => None,
        };
        let Some(mut number) = number else {
            return self.begin(batch, asked);
        };
        for message in batch.messages {
            if message.number <= number {
                continue;
            }
            let follows = message.number == number + 1;
            if !follows && !planted::is_on(Bug::FeedIgnoresGaps) {
                heard.is_gap = true;
            }
            number = message.number;
            heard.told.push(message.told);
        }
        if heard.is_gap {
            heard.told = vec![Told::All];
        }
        let is_whole = batch.end.is_some_and(|end| number >= end)
            || planted::is_on(Bug::FeedProvesWhatIsBehind);
        heard.proven = is_whole.then_some(asked);
        self.position = Some(Position {
            stream: batch.stream,
            number,
        });
        heard
    }

    /// Begins at the end of a stream: what was said before is not known, and all that is here is dropped.
    fn begin(&mut self, batch: Batch, asked: u64) -> Heard {
        let last = batch.messages.iter().map(|message| message.number).max();
        let number = last.max(batch.end);
        self.position = number.map(|number| Position {
            stream: batch.stream,
            number,
        });
        let keeps = planted::is_on(Bug::FeedBeginsWithWhatIsThere);
        Heard {
            told: if keeps { Vec::new() } else { vec![Told::All] },
            proven: batch.end.map(|_| asked),
            is_gap: true,
        }
    }
}

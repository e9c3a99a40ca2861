//! What applying a command answers, as bytes: one [`Outcome`] for each write in it.
//!
//! ```text
//! outcomes = count u32, outcome*
//! outcome  = tag u8, fields        1 written, 2 batch, 3 compare, 4 wrong epoch, 5 out of range,
//!                                  6 answer too large
//! ```
//!
//! These bytes never leave the process that applied, so they have no format number.

use bytes::Bytes;
use quorate_kv::{Entry, OpResult, Version};
use quorate_sharding::Answer;

use crate::codec::{Damaged, Reader, Result, put_bytes, put_list, put_u64};

/// What became of one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done(Answer),
    /// The shard's range has another version now.
    WrongEpoch,
    /// A key is not in the shard's range.
    OutOfRange,
    /// The gets of a compare would answer at least so many bytes; nothing was done.
    AnswerTooLarge {
        bytes: u64,
    },
}

const WRITTEN: u8 = 1;
const BATCH: u8 = 2;
const COMPARE: u8 = 3;
const WRONG_EPOCH: u8 = 4;
const OUT_OF_RANGE: u8 = 5;
const ANSWER_TOO_LARGE: u8 = 6;

/// Collects outcomes as they come.
pub(crate) struct Outcomes {
    bytes: Vec<u8>,
    count: u32,
}

impl Outcomes {
    pub(crate) fn new() -> Outcomes {
        Outcomes {
            bytes: vec![0; 4],
            count: 0,
        }
    }

    pub(crate) fn push(&mut self, outcome: &Outcome) {
        self.count += 1;
        let out = &mut self.bytes;
        match outcome {
            Outcome::Done(Answer::Written {
                applied,
                version,
                group_version,
            }) => {
                out.extend_from_slice(&[WRITTEN, u8::from(*applied)]);
                put_u64(out, *version);
                put_u64(out, *group_version);
            }
            Outcome::Done(Answer::Batch { version }) => {
                out.push(BATCH);
                put_u64(out, *version);
            }
            Outcome::Done(Answer::Compare {
                succeeded,
                results,
                version,
            }) => {
                out.extend_from_slice(&[COMPARE, u8::from(*succeeded)]);
                put_u64(out, *version);
                put_list(out, results, put_result);
            }
            Outcome::Done(_) => debug_assert!(false, "a read's answer in a command's outcomes"),
            Outcome::WrongEpoch => out.push(WRONG_EPOCH),
            Outcome::OutOfRange => out.push(OUT_OF_RANGE),
            Outcome::AnswerTooLarge { bytes } => {
                out.push(ANSWER_TOO_LARGE);
                put_u64(out, *bytes);
            }
        }
    }

    pub(crate) fn finish(mut self) -> Bytes {
        self.bytes[..4].copy_from_slice(&self.count.to_be_bytes());
        self.bytes.into()
    }
}

/// Reads what [`Outcomes`] collected.
pub(crate) fn decode(bytes: Bytes) -> Result<Vec<Outcome>> {
    Reader::new(bytes).list(outcome)
}

fn outcome(reader: &mut Reader) -> Result<Outcome> {
    Ok(Outcome::Done(match reader.u8()? {
        WRITTEN => Answer::Written {
            applied: reader.bool()?,
            version: reader.u64()?,
            group_version: reader.u64()?,
        },
        BATCH => Answer::Batch {
            version: reader.u64()?,
        },
        COMPARE => Answer::Compare {
            succeeded: reader.bool()?,
            version: reader.u64()?,
            results: reader.list(result)?,
        },
        WRONG_EPOCH => return Ok(Outcome::WrongEpoch),
        OUT_OF_RANGE => return Ok(Outcome::OutOfRange),
        ANSWER_TOO_LARGE => {
            return Ok(Outcome::AnswerTooLarge {
                bytes: reader.u64()?,
            });
        }
        _ => return Err(Damaged("an outcome has an unknown tag")),
    }))
}

fn put_result(out: &mut Vec<u8>, result: &OpResult) {
    match result {
        OpResult::Entry(Some(entry)) => {
            out.push(2);
            put_u64(out, entry.version);
            put_u64(out, entry.create_version);
            put_u64(out, entry.write_count);
            put_bytes(out, &entry.key);
            put_bytes(out, &entry.value);
        }
        OpResult::Entry(None) => out.push(1),
        _ => out.push(0),
    }
}

fn result(reader: &mut Reader) -> Result<OpResult> {
    Ok(match reader.u8()? {
        0 => OpResult::Done,
        1 => OpResult::Entry(None),
        2 => {
            let version: Version = reader.u64()?;
            let create_version = reader.u64()?;
            let write_count = reader.u64()?;
            let (key, value) = (reader.bytes()?, reader.bytes()?);
            OpResult::Entry(Some(Entry {
                key,
                value,
                version,
                create_version,
                write_count,
            }))
        }
        _ => return Err(Damaged("a result has an unknown tag")),
    })
}

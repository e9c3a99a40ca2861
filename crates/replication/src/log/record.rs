//! The records of the shared log, byte by byte. Numbers are little-endian; `id`, `vote`, `entry` and
//! `optional` are as in [`codec`](crate::codec).
//!
//! ```text
//! record  = version u8 (2), kind u8, body
//!
//! of      = group u64, replica u64, crc32c u32 of the bytes before it      in version 1 without the crc32c
//!
//! kind 1  entries   of, optional id (committed), count u32, entry * count
//! kind 2  vote      of, vote
//! kind 3  truncate  of, after: optional id                        entries past `after` are void
//! kind 4  purge     of, upto: id                                  entries up to `upto` are gone
//! kind 5  state     count u32, { group u64, replica u64, optional vote, optional id (purged) } * count
//! kind 6  removed   of                                            nothing of the replica counts
//! ```
//!
//! The crc32c tells whose a damaged record was, though the rest of it can't be read.
//!
//! A `state` record is complete: a replica it does not name does not exist at that point of the
//! stream. It takes the place of all votes, purges and removals before it, so that segments which
//! hold nothing else that is needed can go. It may be older than votes and purges shortly before it
//! in the stream; both only grow, so the greater one counts.

use bytes::{BufMut, Bytes};
use quorate_log::Position;

use crate::codec::{
    ENTRY_HEADER, Malformed, Reader, payload_size, put_entry, put_log_id, put_opt_log_id, put_vote,
};
use crate::raft::{Entry, LogId, Vote};
use crate::types::{GroupId, ReplicaId};

const VERSION: u8 = 2;
const ENTRIES: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const STATE: u8 = 5;
const REMOVED: u8 = 6;

/// A record, decoded.
#[derive(Debug)]
pub(crate) enum Record {
    Entries {
        of: Of,
        committed: Option<LogId>,
        entries: Vec<Placed>,
    },
    Vote {
        of: Of,
        vote: Vote,
    },
    Truncate {
        of: Of,
        after: Option<LogId>,
    },
    Purge {
        of: Of,
        upto: LogId,
    },
    State(Vec<ReplicaState>),
    Removed {
        of: Of,
    },
}

/// Whose record it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Of {
    pub group: GroupId,
    pub replica: ReplicaId,
}

/// What a state record says of a replica.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReplicaState {
    pub of: Of,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
}

/// Where an entry's payload lies in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub record: Position,
    pub at: u32,
    pub length: u32,
}

/// An entry and where in its record its payload lies.
#[derive(Debug)]
pub(crate) struct Placed {
    pub entry: Entry,
    pub at: u32,
    pub length: u32,
}

fn begin(kind: u8, of: Option<Of>, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity);
    out.put_u8(VERSION);
    out.put_u8(kind);
    if let Some(of) = of {
        out.put_u64_le(of.group);
        out.put_u64_le(of.replica);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
    }
    out
}

/// An entries record; `places` receives where each payload lies.
pub(crate) fn entries(
    of: Of,
    committed: Option<&LogId>,
    entries: &[Entry],
    places: &mut Vec<(u32, u32)>,
) -> Vec<u8> {
    let payloads: usize = entries.iter().map(payload_size).sum();
    let mut out = begin(
        ENTRIES,
        Some(of),
        64 + entries.len() * ENTRY_HEADER + payloads,
    );
    put_opt_log_id(&mut out, committed);
    out.put_u32_le(entries.len() as u32);
    for entry in entries {
        let (at, length) = put_entry(&mut out, entry);
        places.push((at as u32, length as u32));
    }
    out
}

pub(crate) fn vote(of: Of, vote: &Vote) -> Vec<u8> {
    let mut out = begin(VOTE, Some(of), 64);
    put_vote(&mut out, vote);
    out
}

pub(crate) fn truncate(of: Of, after: Option<&LogId>) -> Vec<u8> {
    let mut out = begin(TRUNCATE, Some(of), 64);
    put_opt_log_id(&mut out, after);
    out
}

pub(crate) fn purge(of: Of, upto: &LogId) -> Vec<u8> {
    let mut out = begin(PURGE, Some(of), 64);
    put_log_id(&mut out, upto);
    out
}

pub(crate) fn removed(of: Of) -> Vec<u8> {
    begin(REMOVED, Some(of), 32)
}

pub(crate) fn state(replicas: &[ReplicaState]) -> Vec<u8> {
    let mut out = begin(STATE, None, 16 + replicas.len() * 64);
    out.put_u32_le(replicas.len() as u32);
    for replica in replicas {
        out.put_u64_le(replica.of.group);
        out.put_u64_le(replica.of.replica);
        out.put_u8(u8::from(replica.vote.is_some()));
        if let Some(vote) = &replica.vote {
            put_vote(&mut out, vote);
        }
        put_opt_log_id(&mut out, replica.purged.as_ref());
    }
    out
}

/// Reads a record back.
pub(crate) fn decode(bytes: Bytes) -> Result<Record, Malformed> {
    let checked = bytes.first() == Some(&VERSION);
    let mut reader = Reader::new(bytes);
    if !(1..=VERSION).contains(&reader.u8()?) {
        return Err(Malformed(
            "a record of a version that this program does not know",
        ));
    }
    let of = |reader: &mut Reader| of(reader, checked);
    let record = match reader.u8()? {
        ENTRIES => decode_entries(of(&mut reader)?, &mut reader)?,
        VOTE => Record::Vote {
            of: of(&mut reader)?,
            vote: reader.vote()?,
        },
        TRUNCATE => Record::Truncate {
            of: of(&mut reader)?,
            after: reader.opt_log_id()?,
        },
        PURGE => Record::Purge {
            of: of(&mut reader)?,
            upto: reader.log_id()?,
        },
        STATE => decode_state(&mut reader)?,
        REMOVED => Record::Removed {
            of: of(&mut reader)?,
        },
        _ => {
            return Err(Malformed(
                "a record of a kind that this program does not know",
            ));
        }
    };
    reader.end()?;
    Ok(record)
}

fn of(reader: &mut Reader, checked: bool) -> Result<Of, Malformed> {
    let of = Of {
        group: reader.u64()?,
        replica: reader.u64()?,
    };
    if checked {
        // The whole record has been checked.
        reader.u32()?;
    }
    Ok(of)
}

/// Whose a record is of which something is damaged, if that can be told; a state record is all replicas'.
pub(crate) fn owner(damaged: &[u8]) -> Option<Of> {
    const HEAD: usize = 18;
    let (head, crc) = damaged.split_at_checked(HEAD)?;
    let crc = crc.first_chunk::<4>()?;
    let is_sound = head[0] == VERSION && u32::from_le_bytes(*crc) == crc32c::crc32c(head);
    if !is_sound || head[1] == STATE {
        return None;
    }
    let mut reader = Reader::new(Bytes::copy_from_slice(&head[2..]));
    of(&mut reader, false).ok()
}

fn decode_entries(of: Of, reader: &mut Reader) -> Result<Record, Malformed> {
    let committed = reader.opt_log_id()?;
    let count = reader.count(ENTRY_HEADER)?;
    let mut entries: Vec<Placed> = Vec::with_capacity(count);
    for _ in 0..count {
        let (entry, at, length) = reader.entry()?;
        let next = entries.last().map(|last| last.entry.log_id.index + 1);
        if next.is_some_and(|next| entry.log_id.index != next) {
            return Err(Malformed("entries that do not follow each other"));
        }
        entries.push(Placed {
            entry,
            at: at as u32,
            length: length as u32,
        });
    }
    Ok(Record::Entries {
        of,
        committed,
        entries,
    })
}

fn decode_state(reader: &mut Reader) -> Result<Record, Malformed> {
    let count = reader.count(18)?;
    let mut replicas = Vec::with_capacity(count);
    for _ in 0..count {
        let of = of(reader, false)?;
        let vote = if reader.bool()? {
            Some(reader.vote()?)
        } else {
            None
        };
        replicas.push(ReplicaState {
            of,
            vote,
            purged: reader.opt_log_id()?,
        });
    }
    Ok(Record::State(replicas))
}

//! Peer messages, byte by byte. Numbers are little-endian; `id`, `vote`, `entry`, `optional` and
//! `stored membership` are as in [`codec`](crate::codec). The group travels beside the bytes.
//!
//! ```text
//! message = version u8 (1), kind u8, to replica u64, from replica u64, body
//!
//! 1 append     vote, optional id (before), optional id (committed), count u32, entry * count
//! 2 vote       vote, optional id (last), transfer u8
//! 3 pre-vote   as vote
//! 4 transfer   vote (of the leader), to u64, optional id (last)
//! 5 read       -
//! 6 begin      session u64                                  of a snapshot
//! 7 chunk      session u64, number u64, bytes
//! 8 install    session u64, chunks u64, vote, optional id (last), stored membership
//! 10 quiet     incarnation u64, vote (of the leader), optional id (the last entry)
//! 11 wake      -
//! 12 pulse     incarnation u64, count u32, group u64 * count    from node to node: group 0, replicas 0
//! 9 append that asks for a promise    lease u32 ms (1 to 100), then as append
//!
//! reply   = version u8 (1), status u8, body
//!
//! status 0, done:  to append    outcome u8 (0 all, 1 up to, 2 conflict, 3 higher vote),
//!                               then optional id | - | vote
//!                  to vote      vote, granted u8, optional id (last)
//!                  to transfer  accepted u8
//!                  to read      index u64
//!                  to begin, chunk, wake, pulse    -
//!                  to quiet     agreed u8
//!                  to install   vote
//! status 1, not the leader:     known u8, [replica u64, node u64]
//! status 2, no such replica; 3, failed; 4, no quorum:    text
//! ```

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::{BufMut, Bytes};

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};

use crate::codec::{
    ENTRY_HEADER, Malformed, Reader, payload_size, put_entry, put_opt_log_id,
    put_stored_membership, put_vote,
};
use crate::error::Error;
use crate::lease::LEASE_MAX;
use crate::machine::SnapshotMeta;
use crate::raft::{LogId, TypeConfig, Vote};
use crate::types::{GroupId, Leader, ReplicaId};

const VERSION: u8 = 1;

const APPEND: u8 = 1;
const VOTE: u8 = 2;
const PRE_VOTE: u8 = 3;
const TRANSFER: u8 = 4;
const READ: u8 = 5;
const BEGIN: u8 = 6;
const CHUNK: u8 = 7;
const INSTALL: u8 = 8;
const APPEND_LEASED: u8 = 9;
const QUIET: u8 = 10;
const WAKE: u8 = 11;
const PULSE: u8 = 12;

const DONE: u8 = 0;
const NOT_LEADER: u8 = 1;
const NO_REPLICA: u8 = 2;
const FAILED: u8 = 3;
const NO_QUORUM: u8 = 4;

/// Between which replicas a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub to: ReplicaId,
    pub from: ReplicaId,
}

/// A message, decoded.
#[derive(Debug)]
pub(crate) enum Message {
    /// With the lease that it asks a promise for, or zero.
    Append(AppendEntriesRequest<TypeConfig>, Duration),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Transfer(TransferLeaderRequest<TypeConfig>),
    Read,
    /// The leader asks to be quiet.
    Quiet {
        incarnation: u64,
        vote: Vote,
        last: Option<LogId>,
    },
    /// The leader is to show itself.
    Wake,
    /// The node lives.
    Pulse {
        incarnation: u64,
        woken: Vec<GroupId>,
    },
    Begin {
        session: u64,
    },
    Chunk {
        session: u64,
        number: u64,
        bytes: Bytes,
    },
    Install {
        session: u64,
        chunks: u64,
        vote: Vote,
        meta: SnapshotMeta,
    },
}

fn begin(kind: u8, route: Route, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity);
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_u64_le(route.to);
    out.put_u64_le(route.from);
    out
}

pub(crate) fn append(
    route: Route,
    request: &AppendEntriesRequest<TypeConfig>,
    lease: Duration,
) -> Bytes {
    let payloads: usize = request.entries.iter().map(payload_size).sum();
    let capacity = 128 + request.entries.len() * ENTRY_HEADER + payloads;
    let mut out = match lease.as_millis() {
        0 => begin(APPEND, route, capacity),
        ms => {
            let mut out = begin(APPEND_LEASED, route, capacity);
            out.put_u32_le(ms as u32);
            out
        }
    };
    put_vote(&mut out, &request.vote);
    put_opt_log_id(&mut out, request.prev_log_id.as_ref());
    put_opt_log_id(&mut out, request.leader_commit.as_ref());
    out.put_u32_le(request.entries.len() as u32);
    for entry in &request.entries {
        put_entry(&mut out, entry);
    }
    out.into()
}

pub(crate) fn vote(route: Route, pre: bool, request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = begin(if pre { PRE_VOTE } else { VOTE }, route, 96);
    put_vote(&mut out, &request.vote);
    put_opt_log_id(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out.into()
}

pub(crate) fn transfer(route: Route, request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = begin(TRANSFER, route, 96);
    put_vote(&mut out, request.from_leader());
    out.put_u64_le(*request.to_node_id());
    put_opt_log_id(&mut out, request.last_log_id());
    out.into()
}

pub(crate) fn read(route: Route) -> Bytes {
    begin(READ, route, 32).into()
}

pub(crate) fn quiet(route: Route, incarnation: u64, vote: &Vote, last: &LogId) -> Bytes {
    let mut out = begin(QUIET, route, 96);
    out.put_u64_le(incarnation);
    put_vote(&mut out, vote);
    put_opt_log_id(&mut out, Some(last));
    out.into()
}

pub(crate) fn wake(route: Route) -> Bytes {
    begin(WAKE, route, 32).into()
}

pub(crate) fn pulse(incarnation: u64, woken: &[GroupId]) -> Bytes {
    let mut out = begin(PULSE, Route { to: 0, from: 0 }, 32 + 8 * woken.len());
    out.put_u64_le(incarnation);
    out.put_u32_le(woken.len() as u32);
    for group in woken {
        out.put_u64_le(*group);
    }
    out.into()
}

pub(crate) fn snapshot_begin(route: Route, session: u64) -> Bytes {
    let mut out = begin(BEGIN, route, 32);
    out.put_u64_le(session);
    out.into()
}

pub(crate) fn snapshot_chunk(route: Route, session: u64, number: u64, bytes: &[u8]) -> Bytes {
    let mut out = begin(CHUNK, route, 48 + bytes.len());
    out.put_u64_le(session);
    out.put_u64_le(number);
    out.extend_from_slice(bytes);
    out.into()
}

pub(crate) fn snapshot_install(
    route: Route,
    session: u64,
    chunks: u64,
    vote: &Vote,
    meta: &SnapshotMeta,
) -> Bytes {
    let mut out = begin(INSTALL, route, 256);
    out.put_u64_le(session);
    out.put_u64_le(chunks);
    put_vote(&mut out, vote);
    put_opt_log_id(&mut out, meta.last_log_id.as_ref());
    put_stored_membership(&mut out, &meta.last_membership);
    out.into()
}

/// Reads a message.
pub(crate) fn decode(bytes: Bytes) -> Result<(Route, Message), Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != VERSION {
        return Err(Malformed(
            "a message of a version that this program does not know",
        ));
    }
    let kind = reader.u8()?;
    let route = Route {
        to: reader.u64()?,
        from: reader.u64()?,
    };
    let message = decode_body(kind, &mut reader)?;
    reader.end()?;
    Ok((route, message))
}

fn decode_body(kind: u8, reader: &mut Reader) -> Result<Message, Malformed> {
    Ok(match kind {
        APPEND => Message::Append(decode_append(reader)?, Duration::ZERO),
        APPEND_LEASED => {
            let lease = Duration::from_millis(u64::from(reader.u32()?));
            if lease.is_zero() || lease > LEASE_MAX {
                return Err(Malformed("a lease that is none, or longer than any"));
            }
            Message::Append(decode_append(reader)?, lease)
        }
        VOTE => Message::Vote(decode_vote(reader)?),
        PRE_VOTE => Message::PreVote(decode_vote(reader)?),
        TRANSFER => {
            let (vote, to) = (reader.vote()?, reader.u64()?);
            Message::Transfer(TransferLeaderRequest::new(vote, to, reader.opt_log_id()?))
        }
        READ => Message::Read,
        QUIET => Message::Quiet {
            incarnation: reader.u64()?,
            vote: reader.vote()?,
            last: reader.opt_log_id()?,
        },
        WAKE => Message::Wake,
        PULSE => Message::Pulse {
            incarnation: reader.u64()?,
            woken: {
                let count = reader.count(8)?;
                (0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?
            },
        },
        BEGIN => Message::Begin {
            session: reader.u64()?,
        },
        CHUNK => {
            let (session, number) = (reader.u64()?, reader.u64()?);
            Message::Chunk {
                session,
                number,
                bytes: reader.rest(),
            }
        }
        INSTALL => {
            let (session, chunks, vote) = (reader.u64()?, reader.u64()?, reader.vote()?);
            let last_log_id = reader.opt_log_id()?;
            let meta = SnapshotMeta {
                last_log_id,
                last_membership: reader.stored_membership()?,
            };
            Message::Install {
                session,
                chunks,
                vote,
                meta,
            }
        }
        _ => {
            return Err(Malformed(
                "a message of a kind that this program does not know",
            ));
        }
    })
}

fn decode_append(reader: &mut Reader) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let vote = reader.vote()?;
    let prev_log_id = reader.opt_log_id()?;
    let leader_commit = reader.opt_log_id()?;
    let count = reader.count(ENTRY_HEADER)?;
    let mut entries = Vec::with_capacity(count);
    let mut next = prev_log_id.map(|id| id.index + 1);
    for _ in 0..count {
        let (entry, _, _) = reader.entry()?;
        if next.is_some_and(|next| entry.log_id.index != next) {
            return Err(Malformed("entries that do not follow each other"));
        }
        next = Some(entry.log_id.index + 1);
        entries.push(entry);
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

fn decode_vote(reader: &mut Reader) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let mut request = VoteRequest::new(reader.vote()?, reader.opt_log_id()?);
    request.leadership_transfer = reader.bool()?;
    Ok(request)
}

fn reply(status: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.put_u8(VERSION);
    out.put_u8(status);
    out
}

pub(crate) fn append_reply(response: &AppendEntriesResponse<TypeConfig>) -> Bytes {
    let mut out = reply(DONE);
    match response {
        AppendEntriesResponse::Success => out.put_u8(0),
        AppendEntriesResponse::PartialSuccess(upto) => {
            out.put_u8(1);
            put_opt_log_id(&mut out, upto.as_ref());
        }
        AppendEntriesResponse::Conflict => out.put_u8(2),
        AppendEntriesResponse::HigherVote(vote) => {
            out.put_u8(3);
            put_vote(&mut out, vote);
        }
    }
    out.into()
}

pub(crate) fn vote_reply(response: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = reply(DONE);
    put_vote(&mut out, &response.vote);
    out.put_u8(u8::from(response.vote_granted));
    put_opt_log_id(&mut out, response.last_log_id.as_ref());
    out.into()
}

pub(crate) fn transfer_reply(response: &TransferLeaderResponse<TypeConfig>) -> Bytes {
    let mut out = reply(DONE);
    out.put_u8(u8::from(response.is_ok()));
    out.into()
}

pub(crate) fn quiet_reply(agreed: bool) -> Bytes {
    let mut out = reply(DONE);
    out.put_u8(u8::from(agreed));
    out.into()
}

pub(crate) fn read_reply(index: u64) -> Bytes {
    let mut out = reply(DONE);
    out.put_u64_le(index);
    out.into()
}

pub(crate) fn done_reply() -> Bytes {
    reply(DONE).into()
}

pub(crate) fn install_reply(vote: &Vote) -> Bytes {
    let mut out = reply(DONE);
    put_vote(&mut out, vote);
    out.into()
}

pub(crate) fn error_reply(error: &Error) -> Bytes {
    let (status, text) = match error {
        Error::NotLeader { leader } => {
            let mut out = reply(NOT_LEADER);
            out.put_u8(u8::from(leader.is_some()));
            if let Some(leader) = leader {
                out.put_u64_le(leader.replica);
                out.put_u64_le(leader.node);
            }
            return out.into();
        }
        Error::NoSuchGroup(group) => (NO_REPLICA, format!("no such replica of group {group}")),
        Error::NoQuorum => (NO_QUORUM, error.to_string()),
        _ => (FAILED, error.to_string()),
    };
    let mut out = reply(status);
    out.extend_from_slice(text.as_bytes());
    out.into()
}

/// Takes the status off a reply: what is left is the body.
pub(crate) fn decode_reply(group: GroupId, bytes: Bytes) -> Result<Reader, Error> {
    let mut reader = Reader::new(bytes);
    let malformed = |e: Malformed| Error::Corrupt(format!("a peer's reply is {e}"));
    if reader.u8().map_err(malformed)? != VERSION {
        return Err(malformed(Malformed(
            "of a version that this program does not know",
        )));
    }
    match reader.u8().map_err(malformed)? {
        DONE => Ok(reader),
        NOT_LEADER => {
            let mut leader = || -> Result<Option<Leader>, Malformed> {
                if !reader.bool()? {
                    return Ok(None);
                }
                Ok(Some(Leader {
                    replica: reader.u64()?,
                    node: reader.u64()?,
                }))
            };
            Err(Error::NotLeader {
                leader: leader().map_err(malformed)?,
            })
        }
        NO_REPLICA => Err(Error::NoSuchGroup(group)),
        NO_QUORUM => Err(Error::NoQuorum),
        _ => Err(Error::Stopped(
            String::from_utf8_lossy(&reader.rest()).into_owned(),
        )),
    }
}

/// The body of a reply to an append.
pub(crate) fn decode_append_reply(
    mut reader: Reader,
) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    Ok(match reader.u8()? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(reader.opt_log_id()?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(reader.vote()?),
        _ => return Err(Malformed("an outcome that this program does not know")),
    })
}

/// The body of a reply to a vote or pre-vote.
pub(crate) fn decode_vote_reply(mut reader: Reader) -> Result<VoteResponse<TypeConfig>, Malformed> {
    let (vote, granted) = (reader.vote()?, reader.bool()?);
    Ok(VoteResponse::new(vote, reader.opt_log_id()?, granted))
}

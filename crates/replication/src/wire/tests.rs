//! Messages come back as they went, and bytes that are no message are refused, not a panic.

use std::collections::BTreeMap;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};

use super::*;
use crate::raft::{Entry, EntryPayload, LeaderId, LogId, Membership, Payload, StoredMembership};

const ROUTE: Route = Route { to: 11, from: 22 };

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 3 }, index)
}

fn a_vote() -> Vote {
    Vote {
        leader_id: LeaderId {
            term: 9,
            node_id: 3,
        },
        committed: true,
    }
}

fn membership() -> Membership {
    let voters = vec![[1, 2, 3].into(), [2, 3, 4].into()];
    let nodes: BTreeMap<u64, u64> = (1..=5).map(|replica| (replica, replica * 100)).collect();
    Membership::new(voters, nodes).expect("can be")
}

fn request() -> AppendEntriesRequest<TypeConfig> {
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Payload(Bytes::from_static(b"a command"))),
        EntryPayload::Membership(membership()),
        EntryPayload::Normal(Payload(Bytes::new())),
    ];
    let entries = payloads.into_iter().zip(8..);
    AppendEntriesRequest {
        vote: a_vote(),
        prev_log_id: Some(id(4, 7)),
        entries: entries
            .map(|(payload, n)| Entry {
                log_id: id(9, n),
                payload,
            })
            .collect(),
        leader_commit: Some(id(4, 6)),
    }
}

fn meta() -> SnapshotMeta {
    let last_membership = StoredMembership::new(Some(id(2, 2)), membership());
    SnapshotMeta {
        last_log_id: Some(id(9, 11)),
        last_membership,
    }
}

fn messages() -> Vec<Bytes> {
    let vote_request = VoteRequest::new(a_vote(), Some(id(4, 7)));
    let transfer_request = TransferLeaderRequest::new(a_vote(), 5, Some(id(4, 7)));
    vec![
        append(ROUTE, &request(), Duration::ZERO),
        append(ROUTE, &request(), LEASE_MAX),
        vote(ROUTE, false, &vote_request),
        vote(ROUTE, true, &vote_request),
        transfer(ROUTE, &transfer_request),
        read(ROUTE),
        quiet(ROUTE, 5, &a_vote(), &id(4, 7)),
        wake(ROUTE),
        pulse(5, &[]),
        pulse(5, &[7, 8]),
        snapshot_begin(ROUTE, 77),
        snapshot_chunk(ROUTE, 77, 3, b"some bytes"),
        snapshot_install(ROUTE, 77, 4, &a_vote(), &meta()),
    ]
}

#[test]
fn append_comes_back_as_it_went() {
    let (route, message) = decode(append(ROUTE, &request(), Duration::ZERO)).expect("is a message");
    assert_eq!(route, ROUTE);
    let Message::Append(found, lease) = message else {
        panic!("{message:?}")
    };
    let sent = request();
    assert_eq!(found.vote, sent.vote);
    assert_eq!(lease, Duration::ZERO);
    assert_eq!(found.prev_log_id, sent.prev_log_id);
    assert_eq!(found.leader_commit, sent.leader_commit);
    assert_eq!(found.entries, sent.entries);
}

#[test]
fn append_that_asks_for_a_promise_says_for_how_long() {
    let asked = Duration::from_millis(20);
    let bytes = append(ROUTE, &request(), asked);
    let Ok((_, Message::Append(found, lease))) = decode(bytes.clone()) else {
        panic!("is no append");
    };
    assert_eq!((lease, found.entries), (asked, request().entries));
    for ms in [0_u32, 101, u32::MAX] {
        let mut wrong = bytes.to_vec();
        wrong[18..22].copy_from_slice(&ms.to_le_bytes());
        assert!(decode(wrong.into()).is_err(), "{ms}");
    }
}

#[test]
fn install_and_votes_come_back_as_they_went() {
    let bytes = snapshot_install(ROUTE, 77, 4, &a_vote(), &meta());
    let Ok((
        _,
        Message::Install {
            session,
            chunks,
            vote,
            meta: found,
        },
    )) = decode(bytes)
    else {
        panic!("is no install");
    };
    assert_eq!((session, chunks, vote, found), (77, 4, a_vote(), meta()));
    let reply = VoteResponse::new(a_vote(), Some(id(1, 2)), true);
    let reader = decode_reply(1, vote_reply(&reply)).expect("is a reply");
    assert_eq!(decode_vote_reply(reader), Ok(reply));
    let hint = Leader {
        replica: 5,
        node: 6,
    };
    let refused = error_reply(&Error::NotLeader { leader: Some(hint) });
    let Err(Error::NotLeader { leader }) = decode_reply(1, refused) else {
        panic!("no hint")
    };
    assert_eq!(leader, Some(hint));
}

#[test]
fn cut_or_damaged_messages_are_refused_without_a_panic() {
    for bytes in messages() {
        assert!(decode(bytes.clone()).is_ok());
        for length in 0..bytes.len() {
            let cut = decode(bytes.slice(..length));
            // A chunk's bytes go to the end, so one that is cut in them is a shorter chunk.
            assert!(cut.is_err() || matches!(cut, Ok((_, Message::Chunk { .. }))));
        }
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= flip;
                let _ = decode(damaged.into());
            }
        }
    }
}

/// What is written today must be read for ever: these bytes are of version 1.
#[test]
fn vote_message_is_these_bytes() {
    let request = VoteRequest::new(a_vote(), Some(id(4, 7)));
    let mut expected = vec![1, 2];
    for number in [11_u64, 22, 9, 3] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend([1, 1]);
    for number in [4_u64, 3, 7] {
        expected.extend(number.to_le_bytes());
    }
    expected.push(0);
    assert_eq!(vote(ROUTE, false, &request), expected);
}

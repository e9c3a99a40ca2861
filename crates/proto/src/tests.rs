//! Round trips through encoded bytes, and junk.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use quorate_kv::{
    Condition, Domain, Entry, Error, ErrorKind, Mutation, Op, OpResult, Outcome, ReadLevel, Token,
};
use quorate_sharding::{
    Answer, Encoding, Failure, GroupStatus, Health, NamespaceKind, NamespaceSpec, NodeStatus,
    Operation, Redirect, Replica, ReplicaHash, Request, Response, Role, RoutingPrefix, Shard,
    ShardEpoch, ShardMap, WriteId,
};

use crate::{error_of_status, status_of_error, v1};

fn blobs() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..12).prop_map(Bytes::from)
}

fn levels() -> impl Strategy<Value = ReadLevel> {
    prop_oneof![
        Just(ReadLevel::Linearizable),
        Just(ReadLevel::Stale),
        any::<(u128, u32, u32, u64)>().prop_map(|(cluster, namespace, incarnation, version)| {
            let domain = Domain {
                cluster,
                namespace,
                incarnation,
            };
            ReadLevel::AtLeast(Token { domain, version })
        }),
    ]
}

fn conditions() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::None),
        Just(Condition::Absent),
        Just(Condition::Present),
        any::<u64>().prop_map(Condition::Version),
    ]
}

fn mutations() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (blobs(), blobs()).prop_map(|(k, v)| Mutation::put(k, v)),
        blobs().prop_map(Mutation::delete),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        blobs().prop_map(|key| Op::Get { key }),
        mutations().prop_map(Op::Mutate),
    ];
    prop::collection::vec(op, 0..4)
}

fn operations() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (blobs(), levels()).prop_map(|(key, level)| Operation::Get { key, level }),
        (blobs(), blobs(), conditions()).prop_map(|(key, value, condition)| Operation::Put {
            key,
            value,
            condition
        }),
        (blobs(), conditions()).prop_map(|(key, condition)| Operation::Delete { key, condition }),
        prop::collection::vec(mutations(), 0..4)
            .prop_map(|mutations| Operation::Batch { mutations }),
        (
            prop::collection::vec((blobs(), conditions()), 0..3),
            ops(),
            ops()
        )
            .prop_map(|(conditions, then_ops, else_ops)| Operation::Compare {
                conditions,
                then_ops,
                else_ops
            }),
        (
            blobs(),
            blobs(),
            1u32..,
            any::<u32>(),
            any::<bool>(),
            levels()
        )
            .prop_map(
                |(start, end, limit, limit_bytes, reverse, level)| Operation::Scan {
                    start,
                    end,
                    limit,
                    limit_bytes,
                    reverse,
                    level
                }
            ),
    ]
}

fn entries() -> impl Strategy<Value = Entry> {
    (blobs(), blobs(), any::<(u64, u64, u64)>()).prop_map(
        |(key, value, (version, create_version, write_count))| Entry {
            key,
            value,
            version,
            create_version,
            write_count,
        },
    )
}

fn shards() -> impl Strategy<Value = Shard> {
    (
        any::<(u64, u32, u64, u64)>(),
        blobs(),
        blobs(),
        any::<Vec<(u64, u64)>>(),
    )
        .prop_map(
            |((id, namespace, range, members), start, end, mut replicas)| Shard {
                id,
                namespace,
                end: if end > start { end } else { Bytes::new() },
                start,
                epoch: ShardEpoch { range, members },
                leaving: replicas.drain(..replicas.len() / 2).map(replica).collect(),
                replicas: replicas.into_iter().map(replica).collect(),
                settled: members / 2,
            },
        )
}

fn replica((id, node): (u64, u64)) -> Replica {
    Replica { id, node }
}

fn failures() -> impl Strategy<Value = Failure> {
    let redirect = (
        prop::collection::vec(shards(), 0..3),
        prop::option::of(1u64..),
    )
        .prop_map(|(shards, leader)| Box::new(Redirect { shards, leader }));
    (
        1u32..=16,
        0u32..3,
        prop::option::of(1u32..),
        ".*",
        prop::option::of(redirect),
    )
        .prop_map(|(kind, outcome, after, message, redirect)| {
            let mut error = Error::new(ErrorKind::from_code(kind), message)
                .with_outcome(Outcome::from_code(outcome));
            if let Some(ms) = after {
                error = error.with_retry_after(Duration::from_millis(ms.into()));
            }
            Failure { error, redirect }
        })
}

fn responses() -> impl Strategy<Value = Response> {
    let results = prop_oneof![
        prop::option::of(entries()).prop_map(OpResult::Entry),
        Just(OpResult::Done)
    ];
    let last = prop::collection::vec(any::<u8>(), 1..5).prop_map(Bytes::from);
    prop_oneof![
        prop::option::of(entries()).prop_map(|e| Ok(Answer::Entry(e))),
        any::<(bool, u64, u64)>().prop_map(|(applied, version, group_version)| Ok(
            Answer::Written {
                applied,
                version,
                group_version
            }
        )),
        any::<u64>().prop_map(|version| Ok(Answer::Batch { version })),
        (any::<(bool, u64)>(), prop::collection::vec(results, 0..4)).prop_map(
            |((succeeded, version), results)| Ok(Answer::Compare {
                succeeded,
                results,
                version
            })
        ),
        (prop::collection::vec(entries(), 0..4), any::<bool>(), last).prop_map(
            |(entries, more, last)| Ok(Answer::Scan {
                entries,
                more,
                last: Some(last)
            })
        ),
        failures().prop_map(Err),
    ]
}

fn kinds() -> impl Strategy<Value = NamespaceKind> {
    let wide = |encoding| NamespaceKind::Wide { encoding };
    prop_oneof![
        Just(NamespaceKind::Compact),
        Just(wide(Encoding::Ordered)),
        Just(wide(Encoding::Hashed {
            prefix: RoutingPrefix::WholeKey
        })),
        any::<u8>().prop_map(move |d| wide(Encoding::Hashed {
            prefix: RoutingPrefix::Until(d)
        })),
    ]
}

proptest! {
    #[test]
    fn request_round_trips(
        ids in any::<(u64, u32, u64, u64, u64, u64, u64)>(),
        timeout_ms in any::<u32>(),
        trace in prop::option::of("[a-z0-9-]{1,20}"),
        operation in operations()
    ) {
        let request = Request {
            request_id: ids.0,
            namespace: ids.1,
            shard: ids.2,
            epoch: ShardEpoch { range: ids.3, members: ids.4 },
            write_id: WriteId { client: ids.5, sequence: ids.6 },
            timeout: Duration::from_millis(timeout_ms.into()),
            trace: trace.map(String::into_boxed_str),
            operation,
        };
        let bytes = v1::Request::from(request.clone()).encode_to_vec();
        let back = v1::Request::decode(&bytes[..]).unwrap();
        prop_assert_eq!(Request::try_from(back), Ok(request));
    }

    #[test]
    fn response_round_trips(id in any::<u64>(), response in responses()) {
        let bytes = v1::Response::new(id, response.clone()).encode_to_vec();
        let back = v1::Response::decode(&bytes[..]).unwrap();
        prop_assert_eq!(back.request_id, id);
        prop_assert_eq!(back.into_response(), response);
    }

    #[test]
    fn error_round_trips_through_a_status(failure in failures()) {
        let status = status_of_error(&failure.error);
        prop_assert_eq!(error_of_status(&status, Outcome::Unknown), failure.error);
    }

    #[test]
    fn map_round_trips(made in prop::collection::vec((kinds(), 1u32..5), 0..4)) {
        let mut map = ShardMap::new(1 << 100);
        map.register_node("a:1", BTreeMap::from([("zone".into(), "z".into())]));
        map.register_node("b:1", BTreeMap::new());
        map.set_coordinator(vec![Replica { id: 1, node: 1 }]);
        for (i, (kind, shards)) in made.into_iter().enumerate() {
            let shards = if kind == NamespaceKind::Compact { 1 } else { shards };
            let spec = NamespaceSpec {
                name: format!("n{i}"), kind, shards, replicas: 2, splits: Vec::new(),
            };
            let wire = v1::CreateNamespaceRequest::from(spec.clone());
            prop_assert_eq!(NamespaceSpec::try_from(wire), Ok(spec.clone()));
            map.create_namespace(&spec).unwrap();
        }
        let bytes = v1::ShardMap::from(&map).encode_to_vec();
        let back = v1::ShardMap::decode(&bytes[..]).unwrap();
        prop_assert_eq!(ShardMap::try_from(back), Ok(map));
    }

    #[test]
    fn junk_bytes_never_panic(junk in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(frame) = v1::RequestFrame::decode(&junk[..]) {
            frame.requests.into_iter().for_each(|r| drop(Request::try_from(r)));
        }
        if let Ok(frame) = v1::ResponseFrame::decode(&junk[..]) {
            frame.responses.into_iter().for_each(|r| drop(r.into_response()));
        }
        if let Ok(map) = v1::ShardMap::decode(&junk[..]) {
            drop(ShardMap::try_from(map));
        }
        if let Ok(request) = v1::CreateNamespaceRequest::decode(&junk[..]) {
            drop(NamespaceSpec::try_from(request));
        }
    }

    #[test]
    fn junk_fields_are_refused_or_taken_never_a_panic(
        level in any::<i32>(), token in blobs(), kind in any::<i32>(), limit in any::<u32>()
    ) {
        use v1::request::Operation as Wire;
        let condition = Some(v1::Condition { kind, version: 1 });
        for operation in [
            Wire::Get(v1::Get { key: Bytes::new(), level, token: token.clone() }),
            Wire::Put(v1::Put { condition, ..Default::default() }),
            Wire::Scan(v1::Scan { limit, level, token, ..Default::default() }),
        ] {
            if let Err(error) = Operation::try_from(operation) {
                prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            }
        }
    }
}

#[test]
fn request_without_operation_is_refused() {
    let error = Request::try_from(v1::Request::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn response_without_result_is_a_failure_of_unknown_outcome() {
    let failure = v1::Response::default().into_response().unwrap_err();
    assert_eq!(failure.error.outcome(), Outcome::Unknown);
}

#[test]
fn status_without_details_takes_the_callers_outcome() {
    let status = tonic::Status::unavailable("gone");
    let error = error_of_status(&status, Outcome::Unknown);
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Unavailable, Outcome::Unknown)
    );
}

#[test]
fn map_with_a_gap_is_refused() {
    let mut map = ShardMap::new(1);
    map.register_node("a:1", BTreeMap::new());
    let spec = NamespaceSpec {
        name: "n".into(),
        kind: NamespaceKind::Wide {
            encoding: Encoding::Ordered,
        },
        shards: 3,
        replicas: 1,
        splits: Vec::new(),
    };
    map.create_namespace(&spec).unwrap();
    let mut wire = v1::ShardMap::from(&map);
    wire.shards.remove(1);
    assert!(ShardMap::try_from(wire).is_err());
    let mut wire = v1::ShardMap::from(&map);
    wire.cluster = Bytes::from_static(b"short");
    assert!(ShardMap::try_from(wire).is_err());
}

#[test]
fn node_status_and_hash_round_trip() {
    let status = NodeStatus {
        cluster: 5,
        node: 1,
        address: "a:1".into(),
        binary_version: "0.1.0".into(),
        uptime_ms: 9,
        map_version: 3,
        engine_bytes: 1,
        log_bytes: 2,
        free_bytes: 3,
        groups: vec![GroupStatus {
            group: 2,
            role: Role::Leader,
            health: Health::Stopped,
            leader: Some(1),
            fault: Some("damaged".into()),
            ..GroupStatus::default()
        }],
    };
    let wire = v1::StatusResponse::from(status.clone());
    assert_eq!(NodeStatus::try_from(wire), Ok(status));
    let hash = ReplicaHash {
        shard: 1,
        replica: 2,
        node: 3,
        index: 4,
        hash: 5,
        keys: 6,
    };
    assert_eq!(ReplicaHash::from(v1::ReplicaHash::from(hash)), hash);
}

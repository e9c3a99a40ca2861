//! The bytes of the node: what is written is read back, what is damaged is an error, and the layouts
//! are those that older files have.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_env::sim::Sim;
use quorate_kv::{Condition, Entry, ErrorKind, Mutation, Op, OpResult};
use quorate_replication::EntryId;
use quorate_sharding::{
    Answer, Encoding, NamespaceKind, NamespaceSpec, Operation, RoutingPrefix, ShardMap, WriteId,
};

use crate::apply::Position;
use crate::command::{Command, Write, WritesBuilder, hash_command, size_bytes};
use crate::coordinator::{self, ClusterCommand, State};
use crate::outcome::{self, Outcome, Outcomes};
use crate::value::{self, Header};
use crate::{DataDir, Error, Identity, identity};

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::None),
        Just(Condition::Absent),
        Just(Condition::Present),
        any::<u64>().prop_map(Condition::Version),
    ]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (bytes(), bytes()).prop_map(|(key, value)| Mutation::put(key, value)),
        bytes().prop_map(Mutation::delete),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        mutation().prop_map(Op::Mutate),
        bytes().prop_map(|key| Op::Get { key }),
    ];
    vec(op, 0..4)
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (bytes(), bytes(), condition()).prop_map(|(key, value, condition)| Operation::Put {
            key,
            value,
            condition
        }),
        (bytes(), condition()).prop_map(|(key, condition)| Operation::Delete { key, condition }),
        vec(mutation(), 0..4).prop_map(|mutations| Operation::Batch { mutations }),
        (vec((bytes(), condition()), 0..4), ops(), ops()).prop_map(
            |(conditions, then_ops, else_ops)| Operation::Compare {
                conditions,
                then_ops,
                else_ops
            }
        ),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let id =
        (any::<u64>(), any::<u64>()).prop_map(|(client, sequence)| WriteId { client, sequence });
    (id, any::<u64>(), operation()).prop_map(|(id, range_epoch, operation)| Write {
        id,
        range_epoch,
        operation,
    })
}

const ANSWER_BYTES_MAX: u32 = 0x1234;

fn encode(stamp: u64, writes: &[Write]) -> Bytes {
    let mut builder = WritesBuilder::new(stamp, ANSWER_BYTES_MAX);
    for write in writes {
        builder.push(write.id, write.range_epoch, &write.operation);
    }
    builder.finish()
}

fn entry() -> impl Strategy<Value = Entry> {
    (bytes(), bytes(), any::<[u64; 3]>()).prop_map(|(key, value, [version, create, count])| Entry {
        key,
        value,
        version,
        create_version: create,
        write_count: count,
    })
}

fn an_outcome() -> impl Strategy<Value = Outcome> {
    let result = prop_oneof![
        Just(OpResult::Done),
        Just(OpResult::Entry(None)),
        entry().prop_map(|entry| OpResult::Entry(Some(entry))),
    ];
    prop_oneof![
        Just(Outcome::WrongEpoch),
        Just(Outcome::OutOfRange),
        any::<u64>().prop_map(|bytes| Outcome::AnswerTooLarge { bytes }),
        any::<(bool, u64, u64)>().prop_map(|(applied, version, group_version)| Outcome::Done(
            Answer::Written {
                applied,
                version,
                group_version
            }
        )),
        any::<u64>().prop_map(|version| Outcome::Done(Answer::Batch { version })),
        (any::<bool>(), any::<u64>(), vec(result, 0..4)).prop_map(
            |(succeeded, version, results)| Outcome::Done(Answer::Compare {
                succeeded,
                version,
                results
            })
        ),
    ]
}

fn kind() -> impl Strategy<Value = NamespaceKind> {
    let encoding = prop_oneof![
        Just(Encoding::Ordered),
        Just(Encoding::Hashed {
            prefix: RoutingPrefix::WholeKey
        }),
        any::<u8>().prop_map(|delimiter| Encoding::Hashed {
            prefix: RoutingPrefix::Until(delimiter)
        }),
    ];
    prop_oneof![
        Just(NamespaceKind::Compact),
        encoding.prop_map(|encoding| NamespaceKind::Wide { encoding }),
    ]
}

fn cluster_command() -> impl Strategy<Value = ClusterCommand> {
    prop_oneof![
        (any::<u128>(), ".{0,20}", any::<u64>()).prop_map(|(cluster, address, data_id)| {
            ClusterCommand::Found {
                cluster,
                address,
                data_id,
            }
        }),
        (".{0,20}", any::<u64>())
            .prop_map(|(address, data_id)| ClusterCommand::Join { address, data_id }),
        (
            ".{0,20}",
            kind(),
            any::<u32>(),
            any::<u32>(),
            vec(bytes(), 0..4)
        )
            .prop_map(|(name, kind, shards, replicas, splits)| {
                ClusterCommand::CreateNamespace(NamespaceSpec {
                    name,
                    kind,
                    shards,
                    replicas,
                    splits,
                })
            }),
        any::<u64>().prop_map(|node| ClusterCommand::GrowCoordinator { node }),
        any::<(u64, u64, u64)>().prop_map(|(shard, from, to)| ClusterCommand::MoveReplica {
            shard,
            from,
            to
        }),
        any::<(u64, u64)>()
            .prop_map(|(shard, members)| ClusterCommand::SettleMembers { shard, members }),
        any::<(u64, u64, bool)>().prop_map(|(shard, replica, beside)| {
            ClusterCommand::WithdrawReplica {
                shard,
                replica,
                beside,
            }
        }),
        any::<u64>().prop_map(|node| ClusterCommand::RemoveNode { node }),
    ]
}

/// Reads bytes in every way there is; what comes of it does not matter here.
fn read_as_anything(bytes: &Bytes) {
    let _ = Command::decode(bytes.clone());
    let _ = outcome::decode(bytes.clone());
    let _ = Position::decode(bytes.clone());
    let _ = ClusterCommand::decode(bytes.clone());
    let _ = State::decode(bytes.clone());
    let _ = coordinator::decode_answer(bytes.clone());
    let _ = value::to_entry(Bytes::new(), 1, bytes);
    let _ = identity::decode(std::path::Path::new("IDENTITY"), bytes.to_vec());
}

fn each_prefix(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..bytes.len()).map(|n| bytes.slice(..n))
}

proptest! {
    #[test]
    fn command_written_is_read_back_and_cut_is_an_error(
        stamp in any::<u64>(), writes in vec(write(), 0..5),
    ) {
        let encoded = encode(stamp, &writes);
        let command = Command::Writes { stamp, answer_bytes_max: ANSWER_BYTES_MAX, writes };
        prop_assert_eq!(Command::decode(encoded.clone()), Ok(command));
        for cut in each_prefix(&encoded) {
            prop_assert!(Command::decode(cut.clone()).is_err());
            read_as_anything(&cut);
        }
    }

    #[test]
    fn command_size_is_never_below_what_is_encoded(writes in vec(write(), 0..5)) {
        let sizes = writes.iter().map(|write| size_bytes(&write.operation));
        let most = encode(0, &[]).len() + sizes.sum::<usize>();
        let encoded = encode(1, &writes).len();
        prop_assert!(encoded <= most && most <= encoded + 64 * writes.len());
    }

    #[test]
    fn outcomes_written_are_read_back_and_cut_are_an_error(all in vec(an_outcome(), 0..5)) {
        let mut outcomes = Outcomes::new();
        all.iter().for_each(|outcome| outcomes.push(outcome));
        let encoded = outcomes.finish();
        prop_assert_eq!(outcome::decode(encoded.clone()), Ok(all));
        for cut in each_prefix(&encoded) {
            prop_assert!(outcome::decode(cut.clone()).is_err());
            read_as_anything(&cut);
        }
    }

    #[test]
    fn cluster_command_written_is_read_back_and_cut_is_an_error(command in cluster_command()) {
        let encoded = command.encode();
        prop_assert_eq!(ClusterCommand::decode(encoded.clone()), Ok(command));
        for cut in each_prefix(&encoded) {
            prop_assert!(ClusterCommand::decode(cut.clone()).is_err());
            read_as_anything(&cut);
        }
    }

    #[test]
    fn position_written_is_read_back(version in any::<u64>(), ids in any::<Option<[u64; 3]>>()) {
        let entry = ids.map(|[term, leader, index]| EntryId { term, leader, index });
        let position = Position { entry, version };
        let encoded = Bytes::from(position.encode());
        prop_assert_eq!(Position::decode(encoded.clone()), Ok(position));
        // The version alone is a position too: that of a group without entries.
        for cut in each_prefix(&encoded).filter(|cut| cut.len() != 8) {
            prop_assert!(Position::decode(cut).is_err());
        }
    }

    #[test]
    fn value_written_is_read_back(entry in entry()) {
        let header = Header {
            create_version: entry.create_version,
            write_count: entry.write_count,
        };
        let stored = Bytes::from(value::encode(header, &entry.value));
        let read = value::to_entry(entry.key.clone(), entry.version, &stored);
        prop_assert_eq!(read, Ok(entry));
        prop_assert!(value::decode_header(&stored[..17]).is_err());
    }

    #[test]
    fn answer_of_the_coordinator_written_is_read_back(
        id in any::<u64>(), code in 1u32..17, message in ".{0,30}",
    ) {
        let error = quorate_kv::Error::new(ErrorKind::from_code(code), message);
        for answer in [Ok(id), Err(error)] {
            let encoded = coordinator::encode_answer(&answer);
            prop_assert_eq!(coordinator::decode_answer(encoded), Ok(answer));
        }
    }

    #[test]
    fn identity_written_is_read_back_and_any_damage_is_an_error(
        cluster in any::<u128>(), node in any::<u64>(), data_id in any::<u64>(),
        founder in any::<bool>(), bit in 0usize..47 * 8,
    ) {
        let path = std::path::Path::new("IDENTITY");
        let identity = Identity { cluster, node, data_id, founder };
        let encoded = identity::encode(&identity);
        prop_assert_eq!(identity::decode(path, encoded.clone()).ok(), Some(identity));
        for n in 0..encoded.len() {
            prop_assert!(identity::decode(path, encoded[..n].to_vec()).is_err());
        }
        let mut flipped = encoded;
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = identity::decode(path, flipped).err();
        prop_assert!(error.is_some_and(|e| e.to_string().contains("IDENTITY")));
    }

    #[test]
    fn bytes_of_any_kind_never_panic(bytes in vec(any::<u8>(), 0..200), format in 0u8..3) {
        read_as_anything(&bytes.clone().into());
        // The first byte is mostly the format: without it nothing further is looked at.
        for kind in 0..6 {
            let mut bytes = bytes.clone();
            bytes.splice(..bytes.len().min(2), [format, kind]);
            read_as_anything(&bytes.into());
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn command_bytes_are_those_of_format_1() {
    let put = Operation::Put {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v1"),
        condition: Condition::Version(9),
    };
    let delete = Operation::Delete {
        key: Bytes::from_static(b"k"),
        condition: Condition::Absent,
    };
    let batch = Operation::Batch {
        mutations: vec![Mutation::put("a", "b"), Mutation::delete("c")],
    };
    let compare = Operation::Compare {
        conditions: vec![(Bytes::from_static(b"x"), Condition::Present)],
        then_ops: vec![Op::Get {
            key: Bytes::from_static(b"x"),
        }],
        else_ops: vec![Op::Mutate(Mutation::put("x", ""))],
    };
    let id = WriteId {
        client: 1,
        sequence: 2,
    };
    let writes = [put, delete, batch, compare].map(|operation| Write {
        id,
        range_epoch: 3,
        operation,
    });
    let head = "0000000000000001 0000000000000002 0000000000000003";
    let operations = format!(
        "{head} 01 03 0000000000000009 00000001 6b 00000002 7631
         {head} 02 01 00000001 6b
         {head} 03 00000002 01 00000001 61 00000001 62 02 00000001 63
         {head} 04 00000001 02 00000001 78 00000001 05 00000001 78 00000001 01 00000001 78 00000000"
    );
    let expected = format!("01 03 00000000000000ff 00001234 00000004 {operations}");
    assert_eq!(hex(&encode(255, &writes)), without_spaces(&expected));
    // As it was written before compares had a limit.
    let unbounded = format!("01 01 00000000000000ff 00000004 {operations}");
    let command = Command::Writes {
        stamp: 255,
        answer_bytes_max: u32::MAX,
        writes: writes.into(),
    };
    assert_eq!(
        Command::decode(unhex(&without_spaces(&unbounded))),
        Ok(command)
    );
    assert_eq!(hex(&hash_command()), "0102");
}

fn unhex(text: &str) -> Bytes {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("two digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn without_spaces(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn outcome_bytes_are_the_documented_ones() {
    let entry = Entry {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        version: 7,
        create_version: 6,
        write_count: 2,
    };
    let mut outcomes = Outcomes::new();
    outcomes.push(&Outcome::Done(Answer::Written {
        applied: true,
        version: 7,
        group_version: 8,
    }));
    outcomes.push(&Outcome::Done(Answer::Batch { version: 9 }));
    outcomes.push(&Outcome::Done(Answer::Compare {
        succeeded: false,
        version: 9,
        results: vec![
            OpResult::Done,
            OpResult::Entry(None),
            OpResult::Entry(Some(entry)),
        ],
    }));
    outcomes.push(&Outcome::WrongEpoch);
    outcomes.push(&Outcome::OutOfRange);
    outcomes.push(&Outcome::AnswerTooLarge { bytes: 10 });
    let expected = "00000006
        01 01 0000000000000007 0000000000000008
        02 0000000000000009
        03 00 0000000000000009 00000003 00 01
           02 0000000000000007 0000000000000006 0000000000000002 00000001 6b 00000001 76
        04 05 06 000000000000000a";
    assert_eq!(hex(&outcomes.finish()), without_spaces(expected));
}

#[test]
fn position_and_value_bytes_are_those_of_format_1() {
    let entry = Some(EntryId {
        term: 2,
        leader: 3,
        index: 4,
    });
    let position = Position { entry, version: 1 };
    let expected = "0000000000000001 0000000000000002 0000000000000003 0000000000000004";
    assert_eq!(hex(&position.encode()), without_spaces(expected));
    let header = Header {
        create_version: 5,
        write_count: 6,
    };
    let expected = "01 00 0000000000000005 0000000000000006 7631";
    assert_eq!(hex(&value::encode(header, b"v1")), without_spaces(expected));
}

#[test]
fn identity_bytes_are_those_of_format_1() {
    let identity = Identity {
        cluster: 0x0102,
        node: 3,
        data_id: 4,
        founder: true,
    };
    let body = "51554f5249440000 0001 00000000000000000000000000000102
        0000000000000003 0000000000000004 01";
    let encoded = hex(&identity::encode(&identity));
    assert_eq!(encoded[..encoded.len() - 8], without_spaces(body));
}

#[test]
fn cluster_command_bytes_are_those_of_format_1() {
    let found = ClusterCommand::Found {
        cluster: 1,
        address: "a:1".into(),
        data_id: 2,
    };
    let expected = "01 01 00000000000000000000000000000001 00000003 613a31 0000000000000002";
    assert_eq!(hex(&found.encode()), without_spaces(expected));
    let join = ClusterCommand::Join {
        address: "b".into(),
        data_id: 3,
    };
    let expected = "01 02 00000001 62 0000000000000003";
    assert_eq!(hex(&join.encode()), without_spaces(expected));
    let create = ClusterCommand::CreateNamespace(NamespaceSpec {
        name: "n".into(),
        kind: NamespaceKind::Compact,
        shards: 1,
        replicas: 3,
        splits: vec![Bytes::from_static(b"m")],
    });
    let expected = "01 03 00000014 01 00000000 00000001 6e 0000 00000003 00000000
        00000001 00000001 00000001 6d";
    assert_eq!(hex(&create.encode()), without_spaces(expected));
    let grow = ClusterCommand::GrowCoordinator { node: 5 };
    assert_eq!(hex(&grow.encode()), "01040000000000000005");
    let (shard, from, to) = (7, 8, 9);
    let moved = ClusterCommand::MoveReplica { shard, from, to };
    let expected = "01 05 0000000000000007 0000000000000008 0000000000000009";
    assert_eq!(hex(&moved.encode()), without_spaces(expected));
    let settled = ClusterCommand::SettleMembers { shard, members: 2 };
    let expected = "01 06 0000000000000007 0000000000000002";
    assert_eq!(hex(&settled.encode()), without_spaces(expected));
    let removed = ClusterCommand::RemoveNode { node: 5 };
    assert_eq!(hex(&removed.encode()), "01070000000000000005");
    let withdrawn = ClusterCommand::WithdrawReplica {
        shard,
        replica: 8,
        beside: true,
    };
    let expected = "01 08 0000000000000007 0000000000000008 01";
    assert_eq!(hex(&withdrawn.encode()), without_spaces(expected));
}

#[test]
fn identity_of_a_newer_format_says_so() {
    let sim = Sim::new(1);
    let path = std::path::Path::new("/data");
    let mut dir = DataDir::open(path, sim.env()).expect("opens");
    dir.become_node(1, 2, false).expect("becomes a node");
    drop(dir);
    let file = path.join("IDENTITY");
    let disk = sim.env().disk;
    let mut bytes = disk.read(&file).expect("reads");
    bytes[9] = 2;
    let body = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..body]);
    bytes[body..].copy_from_slice(&crc.to_be_bytes());
    disk.write_atomic(&file, &bytes).expect("writes");
    let error = DataDir::open(path, sim.env()).expect_err("is newer");
    assert!(matches!(error, Error::NewerFormat(_)), "{error}");
}

#[test]
fn data_dir_keeps_its_draft_and_refuses_a_second_owner_or_identity() {
    let sim = Sim::new(1);
    let path = std::path::Path::new("/data");
    let dir = DataDir::open(path, sim.env()).expect("opens");
    let drawn = dir.data_id();
    let error = DataDir::open(path, sim.env()).expect_err("is held");
    assert!(matches!(error, Error::AlreadyOpen(_)), "{error}");
    drop(dir);
    let mut dir = DataDir::open(path, sim.env()).expect("opens");
    assert_eq!((dir.identity(), dir.data_id()), (None, drawn));
    let identity = dir.become_node(7, 2, false).expect("becomes a node");
    assert_eq!(dir.become_node(7, 2, false).ok(), Some(identity));
    assert!(dir.become_node(7, 3, false).is_err());
    drop(dir);
    let up = sim.crash();
    let dir = DataDir::open(path, up.env()).expect("opens");
    assert_eq!(dir.identity(), Some(identity));
    drop(dir);
    let disk = up.env().disk;
    disk.create_dir_all(&path.join("log")).expect("makes");
    disk.remove(&path.join("IDENTITY")).expect("removes");
    let error = DataDir::open(path, up.env()).expect_err("lost its identity");
    assert!(error.to_string().contains("IDENTITY"), "{error}");
}

#[test]
fn map_file_is_read_back_also_without_checksum_and_refused_with_any_bit_flipped() {
    let mut map = ShardMap::new(5);
    map.register_node("a:1", BTreeMap::new());
    let bytes = identity::encode_map(&map);
    assert_eq!(identity::decode_map(&bytes).as_ref(), Ok(&map));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(identity::decode_map(&flipped).is_err(), "bit {bit}");
    }
    for cut in 0..bytes.len() {
        assert!(identity::decode_map(&bytes[..cut]).is_err(), "{cut} bytes");
    }
    // Of an older program: no members on their way, and nothing around it.
    let mut older = map.to_bytes();
    older[0] = 1;
    assert_eq!(identity::decode_map(&older), Ok(map));
}

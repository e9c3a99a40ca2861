//! The coordinator's state machine.

use std::sync::Arc;

use bytes::Bytes;
use quorate_env::sim::{Crash, Sim};
use quorate_kv::ErrorKind;
use quorate_replication::{Command as Committed, CommandBody, EntryId, StateMachine};
use quorate_sharding::{
    COORDINATOR_GROUP, Encoding, NamespaceKind, NamespaceSpec, Replica, RoutingPrefix, ShardMap,
};
use quorate_storage::Lsm;
use tokio::sync::watch;

use super::harness::{crash, open_engine};
use crate::coordinator::{ClusterCommand, Coordinator, CoordinatorMachine, State, decode_answer};

struct Rig {
    sim: Sim,
    engine: Arc<Lsm>,
    machine: Coordinator,
    map: watch::Receiver<Arc<ShardMap>>,
}

type Answer = Result<u64, ErrorKind>;

impl Rig {
    fn open(sim: &Sim) -> Rig {
        let engine = open_engine(&sim.env()).expect("the engine opens");
        let (sender, map) = watch::channel(Arc::new(ShardMap::new(0)));
        let machine = CoordinatorMachine::open(Arc::clone(&engine), sender, 1).expect("opens");
        Rig {
            sim: sim.clone(),
            engine,
            machine: Coordinator(Arc::new(machine)),
            map,
        }
    }

    fn new(seed: u64) -> Rig {
        Rig::open(&Sim::new(seed))
    }

    fn map(&self) -> Arc<ShardMap> {
        Arc::clone(&self.map.borrow())
    }

    fn apply(&self, body: CommandBody) -> Bytes {
        let applied = self.machine.applied().expect("a position");
        let id = EntryId {
            term: 1,
            leader: 1,
            index: applied.entry.map_or(0, |entry| entry.index + 1),
        };
        let results = self.machine.apply(&[Committed { id, body }]);
        results.expect("applies").remove(0)
    }

    fn run(&self, command: ClusterCommand) -> Answer {
        let answer = self.apply(CommandBody::Write(command.encode()));
        let answer = decode_answer(answer).expect("an answer");
        let version = self.map().version;
        self.map().validate().expect("the map is whole");
        assert!(answer.is_ok() || version == self.map().version);
        answer.map_err(|e| e.kind())
    }

    /// Founded, with nodes 1 to 3.
    fn of_three(seed: u64) -> Rig {
        let rig = Rig::new(seed);
        assert_eq!(rig.run(found(5, 1)), Ok(1));
        assert_eq!(rig.run(join("n2", 2)), Ok(2));
        assert_eq!(rig.run(join("n3", 3)), Ok(3));
        rig
    }
}

fn found(cluster: u128, data_id: u64) -> ClusterCommand {
    ClusterCommand::Found {
        cluster,
        address: "n1".into(),
        data_id,
    }
}

fn join(address: &str, data_id: u64) -> ClusterCommand {
    ClusterCommand::Join {
        address: address.into(),
        data_id,
    }
}

fn create(name: &str, shards: u32, replicas: u32) -> ClusterCommand {
    ClusterCommand::CreateNamespace(NamespaceSpec {
        name: name.into(),
        kind: NamespaceKind::Wide {
            encoding: Encoding::Hashed {
                prefix: RoutingPrefix::WholeKey,
            },
        },
        shards,
        replicas,
        splits: Vec::new(),
    })
}

#[test]
fn coordinator_before_it_is_founded_refuses_everything_else() {
    let rig = Rig::new(1);
    let refused = Err(ErrorKind::Unavailable);
    assert_eq!(rig.run(join("n2", 2)), refused);
    assert_eq!(rig.run(create("a", 1, 1)), refused);
    assert_eq!(
        rig.run(ClusterCommand::GrowCoordinator { node: 1 }),
        refused
    );
    assert_eq!(rig.map().version, 0);
}

#[test]
fn coordinator_is_founded_once() {
    let rig = Rig::new(1);
    assert_eq!(rig.run(found(5, 1)), Ok(1));
    assert_eq!(rig.run(found(5, 1)), Err(ErrorKind::AlreadyExists));
    assert_eq!(rig.run(found(6, 2)), Err(ErrorKind::AlreadyExists));
    let map = rig.map();
    assert_eq!(map.cluster, 5);
    let shard = map.shard(COORDINATOR_GROUP).expect("its own shard");
    assert_eq!(shard.replicas, [Replica { id: 1, node: 1 }]);
}

#[test]
fn coordinator_join_again_keeps_the_node_and_another_directory_is_refused() {
    let rig = Rig::of_three(1);
    let version = rig.map().version;
    assert_eq!(rig.run(join("n2", 2)), Ok(2));
    assert_eq!(rig.map().version, version, "nothing changed");
    assert_eq!(rig.run(join("n2", 9)), Err(ErrorKind::AlreadyExists));
    assert_eq!(rig.run(join("n3", 2)), Err(ErrorKind::AlreadyExists));
    assert_eq!(rig.run(join("moved", 2)), Ok(2));
    assert_eq!(rig.map().node(2).expect("node 2").address, "moved");
    assert_eq!(rig.run(join("n2", 9)), Ok(4), "the old address is free");
    assert_eq!(rig.run(join("n1", 4)), Err(ErrorKind::AlreadyExists));
}

#[test]
fn coordinator_creates_namespaces_and_refuses_what_makes_no_sense() {
    let rig = Rig::of_three(1);
    assert_eq!(rig.run(create("a", 4, 3)), Ok(1));
    assert_eq!(rig.run(create("a", 4, 3)), Err(ErrorKind::AlreadyExists));
    for bad in [
        create("_b", 1, 1),
        create("b", 0, 1),
        create("b", 1, 4),
        create("b", 1, 0),
    ] {
        assert_eq!(rig.run(bad), Err(ErrorKind::InvalidArgument));
    }
    assert_eq!(
        rig.run(create("b", u32::MAX, 1)),
        Err(ErrorKind::InvalidArgument)
    );
    assert_eq!(rig.run(create("b", 2, 2)), Ok(2));
    assert_eq!(rig.map().shards_of(1).len(), 4);
    assert_eq!(rig.map().shards_of(2).len(), 2);
}

#[test]
fn coordinator_grows_to_known_nodes_once_each() {
    let rig = Rig::of_three(1);
    let grow = |node| rig.run(ClusterCommand::GrowCoordinator { node });
    assert_eq!(grow(1), Ok(1), "it is there already");
    assert_eq!(grow(9), Err(ErrorKind::InvalidArgument));
    let second = grow(2).expect("grows");
    assert_eq!(grow(2), Ok(second));
    let third = grow(3).expect("grows");
    assert!(third > second && second > 1);
    let map = rig.map();
    let shard = map.shard(COORDINATOR_GROUP).expect("its own shard");
    assert_eq!(shard.replicas.len(), 3);
    assert_eq!(shard.epoch.members, 3);
}

#[test]
fn coordinator_moves_a_replica_and_removes_a_node_that_is_empty() {
    let rig = Rig::of_three(1);
    rig.run(create("a", 1, 1)).expect("creates");
    let map = rig.map();
    let shard = &map.shards_of(1)[0];
    let from = shard.replicas[0].node;
    let to = from % 3 + 1;
    let shard = shard.id;
    let command = ClusterCommand::MoveReplica { shard, from, to };
    let made = rig.run(command.clone()).expect("moves");
    assert_eq!(
        rig.run(command),
        Err(ErrorKind::Unavailable),
        "one at a time"
    );
    let remove = ClusterCommand::RemoveNode { node: from };
    assert_eq!(rig.run(remove.clone()), Err(ErrorKind::InvalidArgument));
    let settle = |members| rig.run(ClusterCommand::SettleMembers { shard, members });
    assert_eq!(settle(1), Ok(0));
    assert_eq!(settle(2), Ok(1));
    assert_eq!(
        rig.map().shard(shard).expect("there").replicas,
        [Replica { id: made, node: to }]
    );
    if from != 1 {
        assert_eq!(rig.run(remove), Ok(from));
        let again = join(&format!("n{from}"), from);
        assert_eq!(
            rig.run(again),
            Err(ErrorKind::InvalidArgument),
            "its data is of a removed node"
        );
        assert_eq!(rig.run(join(&format!("n{from}"), 9)), Ok(4));
    }
}

#[test]
fn coordinator_on_two_machines_makes_the_same_map() {
    let (one, two) = (Rig::of_three(1), Rig::of_three(2));
    for rig in [&one, &two] {
        for n in 0..5 {
            rig.run(create(&format!("space-{n}"), 1 + n * 7, 1 + n % 3))
                .expect("creates");
            let _ = rig.run(ClusterCommand::GrowCoordinator { node: u64::from(n) });
        }
    }
    assert_eq!(one.map(), two.map());
    assert_eq!(one.map().to_bytes(), two.map().to_bytes());
}

#[test]
fn coordinator_snapshot_installed_is_the_same_state_and_durable() {
    let one = Rig::of_three(1);
    one.apply(CommandBody::Membership(Bytes::from_static(b"members")));
    one.run(create("a", 4, 3)).expect("creates");
    let mut source = one.machine.snapshot().expect("a snapshot");
    let two = Rig::new(2);
    two.run(found(9, 9)).expect("another history");
    let mut sink = two.machine.receive().expect("a sink");
    while let Some(chunk) = source.next_chunk(10).expect("a chunk") {
        sink.write(chunk).expect("is taken");
    }
    sink.install(source.applied()).expect("installs");
    assert_eq!(two.map(), one.map());
    assert_eq!(two.machine.applied().ok(), one.machine.applied().ok());
    let index = source.applied().entry.map(|entry| entry.index);
    assert_eq!(two.machine.flushed(), index);

    let again = Rig::open(&crash(&two.sim, Crash::LoseAll));
    assert_eq!(again.map(), one.map());
    assert_eq!(again.machine.applied().ok(), one.machine.applied().ok());
    assert_eq!(again.run(join("n2", 2)), Ok(2), "data ids came along");
}

#[test]
fn coordinator_after_a_crash_stands_where_it_was_flushed() {
    let rig = Rig::of_three(1);
    rig.engine.flush().expect("flushes");
    let (map, applied) = (rig.map(), rig.machine.applied().ok());
    assert_eq!(rig.machine.flushed(), Some(2));
    rig.run(create("a", 4, 3)).expect("creates");
    let again = Rig::open(&crash(&rig.sim, Crash::LoseAll));
    assert_eq!(again.map(), map);
    assert_eq!(again.machine.applied().ok(), applied);
    assert_eq!(again.machine.flushed(), Some(2));
    assert_eq!(again.run(create("a", 4, 3)), Ok(1));
    assert_eq!(again.map(), rig.map());
}

#[test]
fn coordinator_state_bytes_are_those_of_format_1() {
    let rig = Rig::new(1);
    rig.run(found(5, 9)).expect("founds");
    let mut source = rig.machine.snapshot().expect("a snapshot");
    let chunk = source.next_chunk(1).expect("a chunk").expect("one chunk");
    let found: String = chunk.iter().map(|b| format!("{b:02x}")).collect();
    let of_state = chunk;
    let state = "01 00000001 0000000000000001 0000000000000009";
    let map = "02 00000000000000000000000000000005 0000000000000002
        0000000000000002 0000000000000002 0000000000000002 00000001";
    let node = "00000001 0000000000000001 00000002 6e31 00000000";
    let namespace = "00000001 00000000 00000007 5f73797374656d 0000 00000001 00000000";
    let shard = "00000001 0000000000000001 00000000 00000000 00000000
        0000000000000001 0000000000000001 00000001 0000000000000001 0000000000000001";
    let settled = "00000000 0000000000000001";
    let expected: String = [state, map, node, namespace, shard, settled]
        .iter()
        .flat_map(|part| part.split_whitespace())
        .collect();
    assert_eq!(found, expected);
    // The map as an older program wrote it, whose shards have no members on their way.
    let mut older = of_state.to_vec();
    older.truncate(of_state.len() - settled.replace(' ', "").len() / 2);
    older[state.replace(' ', "").len() / 2] = 1;
    let read = State::decode(older.into()).expect("is read");
    assert_eq!(read.encode(), of_state);
}

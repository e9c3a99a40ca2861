//! Tests of encodings, bounds, placement, the map and its bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const HASHED: Encoding = Encoding::Hashed {
    prefix: RoutingPrefix::WholeKey,
};
const HASHED_UNTIL_SLASH: Encoding = Encoding::Hashed {
    prefix: RoutingPrefix::Until(b'/'),
};

fn cluster(nodes: usize) -> ShardMap {
    let mut map = ShardMap::new(7);
    for i in 0..nodes {
        map.register_node(&format!("127.0.0.1:{}", 7001 + i), BTreeMap::new());
    }
    map
}

fn spec(name: &str, encoding: Encoding, shards: u32, replicas: u32) -> NamespaceSpec {
    NamespaceSpec {
        name: name.into(),
        kind: NamespaceKind::Wide { encoding },
        shards,
        replicas,
        splits: Vec::new(),
    }
}

fn shard(id: GroupId, start: &'static str, end: &'static str, range: u64) -> Shard {
    Shard {
        id,
        namespace: 1,
        start: Bytes::from_static(start.as_bytes()),
        end: Bytes::from_static(end.as_bytes()),
        epoch: ShardEpoch { range, members: 1 },
        replicas: vec![Replica { id, node: 1 }],
        leaving: Vec::new(),
        settled: 1,
    }
}

#[test]
fn encoding_hashed_has_the_documented_bytes() {
    let encoded = HASHED.encode(b"key");
    let hash = xxhash_rust::xxh3::xxh3_64(b"key").to_be_bytes();
    assert_eq!(&encoded[..], &[hash[0], hash[1], b'k', b'e', b'y']);
}

#[test]
fn encoding_until_delimiter_keeps_one_prefix_together_and_in_order() {
    let a = HASHED_UNTIL_SLASH.encode(b"user1/a");
    let b = HASHED_UNTIL_SLASH.encode(b"user1/b");
    assert_eq!(a[..2], b[..2]);
    assert!(a < b);
    let range = HASHED_UNTIL_SLASH.encode_range(b"user1/", b"user10");
    let (start, end) = range.expect("`0` follows `/`, so all keys of the range share the prefix");
    assert!(start <= a && b < end);
    assert_eq!(HASHED_UNTIL_SLASH.encode_range(b"user1/", b"user2/"), None);
    assert_eq!(HASHED_UNTIL_SLASH.encode_range(b"user1/", b""), None);
    assert_eq!(HASHED_UNTIL_SLASH.encode_range(b"user1", b"user10"), None);
}

#[test]
fn encoding_range_of_a_single_hashed_key_is_in_order() {
    let (start, end) = HASHED.encode_range(b"k", b"k\0").expect("one key");
    let key = HASHED.encode(b"k");
    assert!(start <= key && key < end);
    assert_eq!(HASHED.encode_range(b"", b""), None);
    assert_eq!(HASHED.encode_range(b"a", b"b"), None);
}

#[test]
fn decoding_a_short_hashed_key_is_an_error() {
    assert!(HASHED.decode(&Bytes::from_static(b"x")).is_err());
}

#[test]
fn bounds_refuse_nonsense() {
    assert!(initial_bounds(HASHED, 0).is_err());
    assert!(initial_bounds(HASHED, 65_537).is_err());
    assert!(bounds_from_splits(&[Bytes::new()]).is_err());
    let twice = [Bytes::from_static(b"m"), Bytes::from_static(b"m")];
    assert!(bounds_from_splits(&twice).is_err());
}

#[test]
fn placement_needs_enough_nodes() {
    assert!(place(&[1, 2], 4, 3).is_err());
    assert!(place(&[1, 2], 4, 0).is_err());
}

#[test]
fn catalog_creates_refuses_and_drops_namespaces() {
    let mut map = cluster(3);
    map.set_coordinator(vec![Replica { id: 1, node: 1 }]);
    let id = map
        .create_namespace(&spec("a", HASHED, 8, 3))
        .expect("fits");
    map.validate().expect("valid");
    assert_eq!(map.shards_of(id).len(), 8);
    let version = map.version;
    for wrong in [
        spec("a", HASHED, 8, 3),
        spec("", HASHED, 8, 3),
        spec("_b", HASHED, 8, 3),
        spec("b b", HASHED, 8, 3),
        spec("b", HASHED, 0, 3),
        spec("b", HASHED, 8, 4),
        NamespaceSpec {
            kind: NamespaceKind::Compact,
            ..spec("b", HASHED, 2, 3)
        },
    ] {
        assert!(map.create_namespace(&wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(map.version, version, "a refused command changes nothing");
    assert!(map.drop_namespace(SYSTEM_NAMESPACE).is_empty());
    assert_eq!(map.drop_namespace(id).len(), 8);
    let again = map
        .create_namespace(&spec("a", HASHED, 1, 1))
        .expect("free");
    assert_ne!(again, id, "ids are not used again");
    map.validate().expect("valid");
}

#[test]
fn catalog_registers_an_address_once() {
    let mut map = cluster(2);
    let version = map.version;
    assert_eq!(map.register_node("127.0.0.1:7002", BTreeMap::new()), 2);
    assert_eq!(map.version, version);
    assert!(map.set_node_address(2, "127.0.0.1:9000"));
    assert!(!map.set_node_address(9, "x"));
    assert_eq!(
        map.node(2).map(|n| n.address.as_str()),
        Some("127.0.0.1:9000")
    );
}

#[test]
fn catalog_changes_replicas_and_raises_the_members_version() {
    let mut map = cluster(3);
    let id = map
        .create_namespace(&spec("a", HASHED, 2, 2))
        .expect("fits");
    let before = map.shards_of(id)[1].clone();
    let (stays, goes) = (before.replicas[0], before.replicas[1]);
    let free = (1..=3).find(|node| before.replica_on(*node).is_none());
    let made = map
        .move_replica(before.id, Some(goes.node), free)
        .expect("moves");
    let after = map.shard(before.id).expect("there").clone();
    let new = Replica {
        id: made,
        node: free.expect("one of three is free"),
    };
    assert_eq!(after.replicas, [stays, new]);
    assert_eq!(after.leaving, [goes]);
    assert_eq!(after.epoch.members, before.epoch.members + 1);
    assert_eq!(after.epoch.range, before.epoch.range);
    assert_eq!(map.validate(), Ok(()));
    assert_eq!(ShardMap::from_bytes(&map.to_bytes()).as_ref(), Ok(&map));
    // One change at a time.
    let again = map.move_replica(before.id, Some(stays.node), None);
    assert_eq!(again, Err(Error::Unsettled(before.id)));
    assert!(
        map.remove_node(goes.node).is_err(),
        "its replica may still count"
    );
    assert!(
        !map.settle_members(before.id, before.epoch.members),
        "of an earlier version"
    );
    assert!(map.settle_members(before.id, after.epoch.members));
    assert!(
        !map.settle_members(before.id, after.epoch.members),
        "no news"
    );
    assert!(map.shard(before.id).expect("there").is_settled());
}

#[test]
fn map_replica_moves_that_make_no_sense_are_refused() {
    let mut map = cluster(3);
    let id = map
        .create_namespace(&spec("a", HASHED, 1, 2))
        .expect("fits");
    let shard = map.shards_of(id)[0].clone();
    let (held, free) = (
        shard.replicas[0].node,
        (1..=3).find(|n| shard.replica_on(*n).is_none()),
    );
    let before = map.clone();
    for (of, from, to) in [
        (999, Some(held), free),
        (shard.id, free, None),
        (shard.id, None, Some(held)),
        (shard.id, None, Some(9)),
        (shard.id, Some(9), free),
        (shard.id, None, None),
        (shard.id, Some(held), Some(held)),
    ] {
        let refused = map.move_replica(of, from, to);
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{of} {from:?} {to:?}"
        );
    }
    assert_eq!(map, before);
    // One less, but not none.
    map.move_replica(shard.id, Some(held), None)
        .expect("one is left");
    assert!(map.settle_members(shard.id, shard.epoch.members + 1));
    let last = map.shard(shard.id).expect("there").replicas[0].node;
    assert!(map.move_replica(shard.id, Some(last), None).is_err());
    assert!(map.remove_node(last).is_err());
    map.remove_node(held).expect("holds nothing");
    assert!(map.remove_node(held).is_err());
    assert_eq!(map.validate(), Ok(()));
}

#[test]
fn map_evacuation_of_a_node_names_a_place_for_every_replica_or_says_what_is_missing() {
    let mut map = cluster(4);
    map.create_namespace(&spec("a", HASHED, 12, 3))
        .expect("fits");
    let moves = map.evacuation(2).expect("there is room");
    let held = map.shards().filter(|s| s.replica_on(2).is_some()).count();
    assert_eq!(moves.len(), held);
    for (shard, to) in &moves {
        map.move_replica(*shard, Some(2), Some(*to)).expect("fits");
        let members = map.shard(*shard).expect("there").epoch.members;
        assert!(map.settle_members(*shard, members));
    }
    assert_eq!(map.evacuation(2), Ok(Vec::new()));
    map.remove_node(2).expect("is empty");
    assert!(map.evacuation(2).is_err(), "there is no such node");
    let full = map
        .evacuation(3)
        .expect_err("three nodes are needed for three replicas");
    assert!(full.to_string().contains("add a node"), "{full}");
    assert_eq!(map.validate(), Ok(()));
}

#[test]
fn map_apply_takes_a_split_and_ignores_what_is_older() {
    let mut map = ShardMap::new(1);
    map.apply_shards(&[shard(2, "", "m", 1), shard(3, "m", "", 1)]);
    map.apply_shards(&[shard(2, "", "f", 2), shard(4, "f", "m", 2)]);
    let ids: Vec<_> = map.shards_of(1).iter().map(|s| s.id).collect();
    assert_eq!(ids, [2, 4, 3]);
    map.apply_shards(&[shard(2, "", "m", 1)]);
    assert_eq!(map.lookup(1, b"g").map(|s| s.id), Some(4));
}

#[test]
fn map_apply_of_half_a_split_leaves_a_gap_that_is_looked_up_as_none() {
    let mut map = ShardMap::new(1);
    map.apply_shards(&[shard(2, "", "", 1)]);
    map.apply_shards(&[shard(2, "", "f", 2)]);
    assert!(map.lookup(1, b"a").is_some());
    assert!(map.lookup(1, b"g").is_none());
}

#[test]
fn map_merge_takes_newer_versions_and_keeps_newer_epochs() {
    let mut ours = cluster(1);
    let id = ours
        .create_namespace(&spec("a", Encoding::Ordered, 2, 1))
        .expect("fits");
    let mut newer = ours.clone();
    newer
        .create_namespace(&spec("b", Encoding::Ordered, 1, 1))
        .expect("fits");
    let mut moved = Shard::clone(&ours.shards_of(id)[0]);
    moved.epoch.members += 1;
    ours.apply_shards(std::slice::from_ref(&moved));
    let older = ours.clone();
    assert!(ours.merge(newer));
    assert!(ours.namespace_by_name("b").is_some());
    assert_eq!(ours.shard(moved.id).map(|s| s.epoch), Some(moved.epoch));
    assert!(!ours.merge(older));
    let mut foreign = ShardMap::new(8);
    foreign.version = 99;
    assert!(!ours.merge(foreign));
}

#[test]
fn map_validate_finds_gaps_overlaps_and_shared_nodes() {
    let mut map = cluster(1);
    map.create_namespace(&spec("a", Encoding::Ordered, 1, 1))
        .expect("fits");
    let with = |shards: Vec<Shard>| {
        ShardMap::from_parts(
            7,
            1,
            NextIds {
                shard: 100,
                replica: 100,
                ..map.next
            },
            map.nodes.values().cloned(),
            map.namespaces().cloned(),
            shards,
        )
        .validate()
    };
    assert!(with(vec![shard(2, "", "m", 1), shard(3, "m", "", 1)]).is_ok());
    assert!(with(vec![]).is_err());
    assert!(with(vec![shard(2, "", "m", 1)]).is_err());
    assert!(with(vec![shard(2, "", "m", 1), shard(3, "n", "", 1)]).is_err());
    assert!(with(vec![shard(2, "", "m", 1), shard(3, "l", "", 1)]).is_err());
    assert!(with(vec![shard(2, "", "m", 1), shard(2, "m", "", 1)]).is_err());
    let mut doubled = shard(2, "", "", 1);
    doubled.replicas.push(Replica { id: 50, node: 1 });
    assert!(with(vec![doubled]).is_err());
    let mut lost = shard(2, "", "", 1);
    lost.replicas[0].node = 9;
    assert!(with(vec![lost]).is_err());
}

#[test]
fn bytes_of_another_format_are_refused_by_name() {
    let mut bytes = cluster(1).to_bytes();
    bytes[0] = 3;
    assert_eq!(ShardMap::from_bytes(&bytes), Err(Error::NewerFormat(3)));
    bytes[0] = 2;
    bytes.push(0);
    assert!(matches!(
        ShardMap::from_bytes(&bytes),
        Err(Error::Damaged(_))
    ));
    assert!(ShardMap::from_bytes(&[]).is_err());
}

#[test]
fn bytes_of_a_namespace_and_shard_are_golden() {
    let namespace = Namespace {
        id: 3,
        name: "n".into(),
        kind: NamespaceKind::Wide {
            encoding: HASHED_UNTIL_SLASH,
        },
        replicas: 2,
        incarnation: 1,
    };
    let golden = [
        1, 0, 0, 0, 3, 0, 0, 0, 1, b'n', 3, b'/', 0, 0, 0, 2, 0, 0, 0, 1,
    ];
    assert_eq!(namespace.to_bytes(), golden);
    assert_eq!(Namespace::from_bytes(&golden), Ok(namespace));
    let mut one = shard(2, "a", "", 5);
    one.epoch.members = 4;
    one.settled = 3;
    one.leaving = vec![Replica { id: 8, node: 9 }];
    let mut golden = vec![2];
    golden.extend([0, 0, 0, 0, 0, 0, 0, 2]); // id
    golden.extend([0, 0, 0, 1]); // namespace
    golden.extend([0, 0, 0, 1, b'a', 0, 0, 0, 0]); // start and end
    golden.extend([0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 4]); // epoch
    golden.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1]); // replicas
    let of_format_1 = golden.len();
    golden.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9]); // leaving
    golden.extend([0, 0, 0, 0, 0, 0, 0, 3]); // settled
    assert_eq!(one.to_bytes(), golden);
    assert_eq!(Shard::from_bytes(&golden).as_ref(), Ok(&one));
    golden.truncate(of_format_1);
    golden[0] = 1;
    (one.leaving, one.settled) = (Vec::new(), 4);
    assert_eq!(Shard::from_bytes(&golden), Ok(one));
}

fn encodings() -> impl Strategy<Value = Encoding> {
    prop_oneof![
        Just(Encoding::Ordered),
        Just(HASHED),
        any::<u8>().prop_map(|d| Encoding::Hashed {
            prefix: RoutingPrefix::Until(d)
        }),
    ]
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![any::<u8>(), Just(b'/'), Just(0xff)], 0..6)
}

proptest! {
    #[test]
    fn encoding_decodes_to_the_key(encoding in encodings(), key in keys()) {
        let encoded = encoding.encode(&key);
        prop_assert_eq!(&encoded, &encoding.encode_bytes(&Bytes::from(key.clone())));
        prop_assert_eq!(&encoding.decode(&encoded).unwrap()[..], &key[..]);
    }

    #[test]
    fn encoding_range_holds_exactly_the_keys_of_the_range(
        encoding in encodings(), start in keys(), end in keys(), key in keys()
    ) {
        prop_assume!(!key.is_empty());
        if let Some((from, to)) = encoding.encode_range(&start, &end) {
            let inside = key >= start && (end.is_empty() || key < end);
            let encoded = encoding.encode(&key);
            let found = encoded >= from && (to.is_empty() || encoded < to);
            prop_assert_eq!(inside, found);
        }
    }

    #[test]
    fn bounds_cover_every_key_once(encoding in encodings(), n in 1usize..300, key in keys()) {
        let bounds = initial_bounds(encoding, n).unwrap();
        prop_assert_eq!(bounds.len(), n);
        let encoded = encoding.encode(&key);
        let hits = bounds
            .iter()
            .filter(|(s, e)| *s <= encoded && (e.is_empty() || encoded < *e))
            .count();
        prop_assert_eq!(hits, 1);
    }

    #[test]
    fn placement_is_balanced(nodes in 1u64..9, shards in 0usize..70, replicas in 1usize..6) {
        prop_assume!(replicas as u64 <= nodes);
        let ids: Vec<NodeId> = (1..=nodes).collect();
        let placed = place(&ids, shards, replicas).unwrap();
        prop_assert_eq!(&placed, &place(&ids, shards, replicas).unwrap());
        let count = |f: &dyn Fn(&Vec<NodeId>, NodeId) -> bool| {
            let counts: Vec<usize> = ids
                .iter()
                .map(|n| placed.iter().filter(|p| f(p, *n)).count())
                .collect();
            counts.iter().max().unwrap() - counts.iter().min().unwrap()
        };
        prop_assert!(count(&|p, n| p.contains(&n)) <= 1);
        let apart = if replicas == nodes as usize { 1 } else { 2 };
        prop_assert!(count(&|p, n| p[0] == n) <= apart);
        for p in &placed {
            let mut distinct = p.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), replicas);
        }
    }

    #[test]
    fn map_lookup_agrees_with_overlapping(
        encoding in encodings(), n in 1u32..20, key in keys(), end in keys()
    ) {
        let mut map = cluster(3);
        let id = map.create_namespace(&spec("a", encoding, n, 3)).unwrap();
        map.validate().unwrap();
        let encoded = encoding.encode(&key);
        let found = map.lookup(id, &encoded).unwrap();
        prop_assert!(found.contains(&encoded));
        let slow: Vec<_> = map.shards_of(id).iter().filter(|s| s.overlaps(&encoded, &end)).collect();
        if end.is_empty() || encoded[..] < end[..] {
            prop_assert_eq!(map.overlapping(id, &encoded, &end).iter().collect::<Vec<_>>(), slow);
        } else {
            let _ = map.overlapping(id, &encoded, &end);
        }
    }

    #[test]
    fn map_bytes_round_trip(
        nodes in 1usize..5, made in prop::collection::vec((encodings(), 1u32..9), 0..4)
    ) {
        let mut map = cluster(nodes);
        map.set_coordinator(vec![Replica { id: 1, node: 1 }]);
        for (i, (encoding, shards)) in made.into_iter().enumerate() {
            map.create_namespace(&spec(&format!("n{i}"), encoding, shards, 1)).unwrap();
        }
        map.validate().unwrap();
        prop_assert_eq!(ShardMap::from_bytes(&map.to_bytes()), Ok(map));
    }

    #[test]
    fn map_bytes_cut_or_changed_never_panic(cut in 0usize..200, at in 0usize..200, bit in 0u8..8) {
        let mut map = cluster(2);
        map.create_namespace(&spec("a", HASHED, 2, 2)).unwrap();
        let bytes = map.to_bytes();
        if cut < bytes.len() {
            prop_assert!(ShardMap::from_bytes(&bytes[..cut]).is_err());
        }
        let mut changed = bytes.clone();
        let at = at % changed.len();
        changed[at] ^= 1 << bit;
        if let Ok(map) = ShardMap::from_bytes(&changed) {
            let _ = map.validate();
        }
    }

    #[test]
    fn bytes_of_junk_never_panic(junk in prop::collection::vec(any::<u8>(), 0..120)) {
        let _ = ShardMap::from_bytes(&junk);
        let _ = Shard::from_bytes(&junk);
        let _ = Namespace::from_bytes(&junk);
    }
}

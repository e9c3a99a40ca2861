//! The client against a cluster without network, and over gRPC against the same one behind a port.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::conformance::{Suite, run};
use quorate_kv::{
    Batch, Compare, Condition, Error, ErrorKind, Get, Kv, Mutation, Outcome, Put, ReadLevel, Scan,
    ScanOrder,
};
use quorate_sharding::{Encoding, NamespaceKind, NamespaceSpec, RoutingPrefix, Shard, ShardEpoch};

use crate::{Client, ClientOptions, NamespaceKv};

mod fake;
#[cfg(feature = "grpc")]
mod over_grpc;

use fake::{Fake, FakeTransport, Fault, doubt, refusal};

const HASHED: Encoding = Encoding::Hashed {
    prefix: RoutingPrefix::WholeKey,
};
const HASHED_BY_SLASH: Encoding = Encoding::Hashed {
    prefix: RoutingPrefix::Until(b'/'),
};

async fn client(fake: &Arc<Fake>) -> Client {
    let transport = Arc::new(FakeTransport(fake.clone()));
    let seeds = ["n1:1".to_owned(), "n2:1".to_owned()];
    Client::with_transport(transport, &seeds, ClientOptions::default())
        .await
        .unwrap()
}

async fn namespace(fake: &Arc<Fake>) -> NamespaceKv {
    client(fake).await.namespace("ns").await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn conformance_over_ordered_shards() {
    let kv = namespace(&Fake::new(3, Encoding::Ordered, 8)).await;
    run(&kv, &Suite::new("suite")).await;
}

#[tokio::test(start_paused = true)]
async fn conformance_over_hashed_prefixes() {
    let kv = namespace(&Fake::new(3, HASHED_BY_SLASH, 8)).await;
    run(&kv, &Suite::new("suite")).await;
}

#[tokio::test(start_paused = true)]
async fn conformance_over_hashed_keys() {
    let kv = namespace(&Fake::new(3, HASHED, 8)).await;
    let suite = Suite {
        one_shard: false,
        ordered: false,
        ..Suite::new("suite")
    };
    run(&kv, &suite).await;
}

#[tokio::test(start_paused = true)]
async fn namespace_that_is_unknown_is_named() {
    let error = client(&Fake::new(1, HASHED, 1))
        .await
        .namespace("other")
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::UnknownNamespace);
    assert!(error.message().contains("other"));
}

#[tokio::test(start_paused = true)]
async fn namespace_created_by_another_client_is_found() {
    let fake = Fake::new(3, HASHED, 1);
    let (one, two) = (client(&fake).await, client(&fake).await);
    let spec = NamespaceSpec {
        name: "later".into(),
        kind: NamespaceKind::Compact,
        shards: 1,
        replicas: 3,
        splits: Vec::new(),
    };
    fake.state.lock().down.insert(1);
    one.create_namespace(&spec).await.unwrap();
    let again = one.create_namespace(&spec).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    tokio::time::advance(Duration::from_secs(1)).await;
    let kv = two.namespace("later").await.unwrap();
    kv.put(Put::new("k", "v")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leader_change_is_followed_and_remembered() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    kv.put(Put::new("k", "1")).await.unwrap();
    let shard = {
        let mut state = fake.state.lock();
        let shard = state.map.shards().next().unwrap().clone();
        state.leaders.insert(shard.id, shard.replicas[2].node);
        state.seen.clear();
        shard
    };
    kv.put(Put::new("k", "2")).await.unwrap();
    kv.put(Put::new("k", "3")).await.unwrap();
    let nodes: Vec<_> = fake.state.lock().seen.iter().map(|s| s.0).collect();
    let leader = shard.replicas[2].node;
    assert_eq!(nodes, [shard.replicas[0].node, leader, leader]);
}

#[tokio::test(start_paused = true)]
async fn leader_unknown_for_a_while_is_waited_for() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    let shard = fake.state.lock().map.shards().next().unwrap().id;
    let leader = fake.state.lock().leaders.remove(&shard).unwrap();
    let put = tokio::spawn(async move { kv.put(Put::new("k", "1")).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    fake.state.lock().leaders.insert(shard, leader);
    assert!(put.await.unwrap().unwrap().applied);
}

#[tokio::test(start_paused = true)]
async fn leaderless_shard_fails_at_the_deadline_with_nothing_applied() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    fake.state.lock().leaders.clear();
    let begun = tokio::time::Instant::now();
    let put = Put::new("k", "1").timeout(Duration::from_millis(300));
    let error = kv.put(put).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(error.outcome(), Outcome::NotApplied);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_millis(320));
}

#[tokio::test(start_paused = true)]
async fn epoch_change_is_taken_from_the_redirect() {
    let fake = Fake::new(3, Encoding::Ordered, 1);
    let kv = namespace(&fake).await;
    kv.put(Put::new("z", "1")).await.unwrap();
    split(&fake, "m");
    kv.put(Put::new("a", "2")).await.unwrap();
    kv.put(Put::new("z", "3")).await.unwrap();
    let entries = kv.scan(Scan::range("", "")).await.unwrap().entries;
    let keys: Vec<_> = entries.iter().map(|e| &e.key[..]).collect();
    assert_eq!(keys, [b"a", b"z"]);
    // What fitted one shard no longer does.
    let batch = Batch::new(vec![Mutation::put("a", "x"), Mutation::put("z", "x")]);
    let error = kv.batch(batch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CrossShard);
    assert_eq!(error.outcome(), Outcome::NotApplied);
}

#[tokio::test(start_paused = true)]
async fn epoch_change_in_the_middle_of_a_scan_loses_nothing() {
    for order in [ScanOrder::Key, ScanOrder::KeyReverse, ScanOrder::Unordered] {
        let fake = Fake::new(3, Encoding::Ordered, 1);
        let kv = namespace(&fake).await;
        for key in ["a", "b", "c", "d", "e"] {
            kv.put(Put::new(key, "v")).await.unwrap();
        }
        let scan = Scan::range("", "").limit(2).order(order);
        let first = kv.scan(scan.clone()).await.unwrap();
        split(&fake, "c");
        let second = kv.scan(scan.clone().page(first.next)).await.unwrap();
        let third = kv.scan(scan.page(second.next)).await.unwrap();
        let pages = [first.entries, second.entries, third.entries].concat();
        let mut keys: Vec<_> = pages.iter().map(|e| e.key.clone()).collect();
        keys.sort();
        assert_eq!(keys, ["a", "b", "c", "d", "e"]);
    }
}

/// Splits the only shard at a key.
fn split(fake: &Fake, at: &'static str) {
    let mut state = fake.state.lock();
    let whole = Shard::clone(state.map.shards().next().unwrap());
    let epoch = ShardEpoch {
        range: whole.epoch.range + 1,
        ..whole.epoch
    };
    let left = Shard {
        end: Bytes::from(at),
        epoch,
        ..whole.clone()
    };
    let right = Shard {
        id: whole.id + 100,
        start: Bytes::from(at),
        epoch,
        ..whole
    };
    let leader = state.leaders[&left.id];
    state.leaders.insert(right.id, leader);
    state.map.apply_shards(&[left, right]);
    state.map.version += 1;
}

#[tokio::test(start_paused = true)]
async fn broken_connection_makes_a_writes_outcome_unknown_and_is_not_retried() {
    for (fault, written) in [(Fault::LoseReply, true), (Fault::LoseRequest, false)] {
        let fake = Fake::new(3, HASHED, 1);
        let kv = namespace(&fake).await;
        fake.fault(fault);
        let error = kv.put(Put::new("k", "1")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert_eq!(fake.state.lock().seen.len(), 1, "it was sent once");
        let found = kv.get(Get::new("k")).await.unwrap();
        assert_eq!(found.is_some(), written);
    }
}

#[tokio::test(start_paused = true)]
async fn broken_connection_is_no_matter_for_a_read() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    kv.put(Put::new("k", "1")).await.unwrap();
    fake.fault(Fault::LoseReply);
    fake.fault(doubt(ErrorKind::Unavailable));
    assert!(kv.get(Get::new("k")).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn refused_write_is_repeated_and_doubtful_one_is_not() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::Overloaded,
        ErrorKind::NoQuorum,
    ] {
        fake.fault(refusal(kind));
        assert!(
            kv.put(Put::new("k", "1")).await.unwrap().applied,
            "{kind:?}"
        );
        fake.fault(doubt(kind));
        let error = kv.put(Put::new("k", "2")).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (kind, Outcome::Unknown));
    }
    for kind in [
        ErrorKind::DiskFull,
        ErrorKind::Corruption,
        ErrorKind::Internal,
    ] {
        fake.fault(refusal(kind));
        let error = kv.put(Put::new("k", "2")).await.unwrap_err();
        assert_eq!(error.kind(), kind);
    }
}

#[tokio::test(start_paused = true)]
async fn silent_node_costs_a_write_its_deadline_and_a_read_one_attempt() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    kv.put(Put::new("k", "1")).await.unwrap();
    fake.fault(Fault::Silence);
    let begun = tokio::time::Instant::now();
    assert!(kv.get(Get::new("k")).await.unwrap().is_some());
    assert!(begun.elapsed() < Duration::from_millis(1100));
    fake.fault(Fault::Silence);
    let error = kv.put(Put::new("k", "2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(error.outcome(), Outcome::Unknown);
}

#[tokio::test(start_paused = true)]
async fn leader_that_fell_silent_is_left_as_soon_as_another_says_that_it_leads() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    kv.put(Put::new("k", "1")).await.unwrap();
    let [old, new] = {
        let mut state = fake.state.lock();
        let shard = state.map.shards().next().unwrap().clone();
        let [old, new] = [shard.replicas[0].node, shard.replicas[1].node];
        state.leaders.insert(shard.id, new);
        state.believed.insert(shard.id, new);
        state.seen.clear();
        [old, new]
    };
    let begun = tokio::time::Instant::now();
    fake.fault(Fault::Silence);
    let error = kv.put(Put::new("k", "2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(kv.put(Put::new("k", "3")).await.unwrap().applied);
    assert!(begun.elapsed() < Duration::from_millis(200));
    let nodes: Vec<_> = fake.state.lock().seen.iter().map(|s| s.0).collect();
    assert_eq!(nodes, [old, new]);
    // A read goes on by itself.
    fake.state
        .lock()
        .leaders
        .values_mut()
        .for_each(|leader| *leader = old);
    fake.state
        .lock()
        .believed
        .values_mut()
        .for_each(|leader| *leader = old);
    fake.fault(Fault::Silence);
    assert!(kv.get(Get::new("k")).await.unwrap().is_some());
    assert!(begun.elapsed() < Duration::from_millis(400));
}

#[tokio::test(start_paused = true)]
async fn leader_that_fell_silent_is_not_left_because_another_node_tells_of_a_third() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    {
        let mut state = fake.state.lock();
        let shard = state.map.shards().next().unwrap().clone();
        state.believed.insert(shard.id, shard.replicas[1].node);
        state.down.insert(shard.replicas[1].node);
    }
    fake.fault(Fault::Silence);
    let error = kv.put(Put::new("k", "2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn leader_that_holds_the_shard_no_more_does_not_keep_requests_from_resting() {
    let fake = Fake::new(4, HASHED, 1);
    let kv = namespace(&fake).await;
    {
        let mut state = fake.state.lock();
        let shard = state.map.shards().next().unwrap().clone();
        let elsewhere = (1..=4).find(|node| shard.replica_on(*node).is_none());
        state.leaders.insert(shard.id, elsewhere.unwrap());
    }
    // The first answer names a leader that has no replica in the map; then nobody is there.
    fake.fault(refusal(ErrorKind::Unavailable));
    kv.put(Put::new("k", "1")).await.unwrap_err();
    let down = fake.state.lock().map.nodes.keys().copied().collect();
    fake.state.lock().down = down;
    let error = kv.put(Put::new("k", "2")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied);
}

#[tokio::test(start_paused = true)]
async fn leader_on_a_node_that_the_map_does_not_name_is_found_by_a_newer_map() {
    let fake = Fake::new(4, HASHED, 1);
    let kv = namespace(&fake).await;
    kv.put(Put::new("k", "1")).await.unwrap();
    {
        let mut state = fake.state.lock();
        let shard = state.map.shards().next().unwrap().clone();
        let new = (1..=4).find(|node| shard.replica_on(*node).is_none());
        let old = shard.replicas[0].node;
        state.map.move_replica(shard.id, Some(old), new).unwrap();
        state.leaders.insert(shard.id, new.unwrap());
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let begun = tokio::time::Instant::now();
    assert!(kv.put(Put::new("k", "2")).await.unwrap().applied);
    assert!(begun.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn dead_node_leaves_reads_and_writes_to_the_others() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    {
        let mut state = fake.state.lock();
        let shard = state.map.shards().next().unwrap().clone();
        state.down.insert(shard.replicas[0].node);
        state.leaders.insert(shard.id, shard.replicas[1].node);
    }
    let begun = tokio::time::Instant::now();
    assert!(kv.put(Put::new("k", "1")).await.unwrap().applied);
    assert!(kv.get(Get::new("k")).await.unwrap().is_some());
    assert!(begun.elapsed() < Duration::from_millis(20));
}

#[tokio::test(start_paused = true)]
async fn stale_reads_go_to_all_replicas_and_need_no_leader() {
    let fake = Fake::new(3, HASHED, 1);
    let kv = namespace(&fake).await;
    let token = kv.put(Put::new("k", "1")).await.unwrap().token;
    fake.state.lock().leaders.clear();
    fake.state.lock().seen.clear();
    for _ in 0..6 {
        for level in [ReadLevel::Stale, ReadLevel::AtLeast(token)] {
            kv.get(Get::new("k").level(level)).await.unwrap();
        }
    }
    let nodes: std::collections::HashSet<_> = fake.state.lock().seen.iter().map(|s| s.0).collect();
    assert_eq!(nodes.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn linearizable_reads_go_to_the_leader_or_where_asked_to_all_replicas() {
    for (read_any_replica, nodes_asked) in [(false, 1), (true, 3)] {
        let fake = Fake::new(3, HASHED, 1);
        let options = ClientOptions {
            read_any_replica,
            ..ClientOptions::default()
        };
        let (_client, kv) = namespace_with(&fake, options).await;
        kv.put(Put::new("k", "1")).await.unwrap();
        fake.state.lock().seen.clear();
        for _ in 0..6 {
            assert!(kv.get(Get::new("k")).await.unwrap().is_some());
        }
        let seen: Vec<_> = fake.state.lock().seen.iter().map(|s| s.0).collect();
        let nodes: std::collections::HashSet<_> = seen.into_iter().collect();
        assert_eq!(nodes.len(), nodes_asked);
        // Writes know one place only.
        fake.state.lock().seen.clear();
        for _ in 0..6 {
            kv.put(Put::new("k", "2")).await.unwrap();
        }
        let nodes: std::collections::HashSet<_> =
            fake.state.lock().seen.iter().map(|s| s.0).collect();
        assert_eq!(nodes.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn compare_across_shards_is_refused() {
    let kv = namespace(&Fake::new(3, Encoding::Ordered, 8)).await;
    let compare = Compare::new()
        .when("a", Condition::Absent)
        .when(vec![0xf0], Condition::Absent);
    let error = kv.compare(compare).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CrossShard);
}

#[tokio::test(start_paused = true)]
async fn scan_crosses_shards_in_order_both_ways() {
    let kv = namespace(&Fake::new(3, Encoding::Ordered, 8)).await;
    let mut keys: Vec<Bytes> = (0..64u8).map(|i| Bytes::from(vec![i * 4, i])).collect();
    for key in &keys {
        kv.put(Put::new(key.clone(), "v")).await.unwrap();
    }
    for order in [ScanOrder::Key, ScanOrder::KeyReverse] {
        for limit in [1, 5, 8, 64, 1000] {
            let mut found = Vec::new();
            let mut page = None;
            loop {
                let scan = Scan::range("", "").limit(limit).order(order).page(page);
                let part = kv.scan(scan).await.unwrap();
                found.extend(part.entries.into_iter().map(|e| e.key));
                page = part.next;
                if page.is_none() {
                    break;
                }
            }
            assert_eq!(found, keys, "{order:?} {limit}");
        }
        keys.reverse();
    }
}

#[tokio::test(start_paused = true)]
async fn scan_of_hashed_keys_is_unordered_or_unsupported() {
    let kv = namespace(&Fake::new(3, HASHED, 8)).await;
    for i in 0..50 {
        kv.put(Put::new(format!("k{i:02}"), "v")).await.unwrap();
    }
    let error = kv.scan(Scan::range("", "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let scan = Scan::range("k10", "k20").order(ScanOrder::Unordered);
    assert_eq!(kv.scan(scan).await.unwrap().entries.len(), 10);
    let one = Scan::range("k10", "k10\0");
    assert_eq!(kv.scan(one).await.unwrap().entries.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn scan_refuses_a_foreign_page_token() {
    let kv = namespace(&Fake::new(3, Encoding::Ordered, 1)).await;
    for token in ["", "x", "\u{1}\u{1}abc"] {
        let scan = Scan::range("", "").page(Some(Bytes::from(token)));
        let error = kv.scan(scan).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[tokio::test(start_paused = true)]
async fn connect_without_any_node_says_where_it_tried() {
    let fake = Fake::new(1, HASHED, 1);
    fake.state.lock().down.insert(1);
    let transport = Arc::new(FakeTransport(fake));
    let seeds = ["n1:1".to_owned()];
    let made = Client::with_transport(transport, &seeds, ClientOptions::default()).await;
    let error = made.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("n1:1"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn replica_hashes_and_status_name_every_node() {
    let fake = Fake::new(3, HASHED, 1);
    let client = client(&fake).await;
    let shard = fake.state.lock().map.shards().next().unwrap().id;
    let hashes = client.replica_hashes(shard).await.unwrap();
    assert_eq!(hashes.iter().filter(|h| h.is_ok()).count(), 3);
    fake.state.lock().down.insert(3);
    let status = client.status().await;
    assert_eq!(status.len(), 3);
    assert!(status[2].1.is_err());
    assert!(client.replica_hashes(999).await.is_err());
}

fn overloaded(after_ms: u64) -> Fault {
    let error = Error::new(ErrorKind::Overloaded, "too much to do");
    let error = error.with_retry_after(Duration::from_millis(after_ms));
    Fault::Fail(error.into())
}

async fn namespace_with(fake: &Arc<Fake>, options: ClientOptions) -> (Client, NamespaceKv) {
    let transport = Arc::new(FakeTransport(fake.clone()));
    let seeds = ["n1:1".to_owned()];
    let client = Client::with_transport(transport, &seeds, options).await;
    let client = client.unwrap();
    let kv = client.namespace("ns").await.unwrap();
    (client, kv)
}

#[tokio::test(start_paused = true)]
async fn overloaded_node_is_asked_again_when_its_hint_says() {
    let fake = Fake::new(3, HASHED, 1);
    let (client, kv) = namespace_with(&fake, ClientOptions::default()).await;
    let begun = tokio::time::Instant::now();
    fake.fault(overloaded(200));
    assert!(kv.put(Put::new("k", "1")).await.unwrap().applied);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(200) && took <= Duration::from_millis(301));
    let counters = client.counters();
    assert_eq!((counters.refused_by_nodes, counters.retries), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn overloaded_node_is_not_asked_again_when_the_budget_is_used_up() {
    let fake = Fake::new(3, HASHED, 1);
    let options = ClientOptions {
        retry_percent: 10,
        retry_burst: 2,
        ..ClientOptions::default()
    };
    let (client, kv) = namespace_with(&fake, options).await;
    (0..3).for_each(|_| fake.fault(overloaded(20)));
    let begun = tokio::time::Instant::now();
    let error = kv.put(Put::new("k", "1")).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(100), "at once");
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(error.retry_after(), Some(Duration::from_millis(20)));
    assert!(error.message().contains("too much to do; not tried again"));
    assert!(error.message().contains("budget"), "{error}");
    let counters = client.counters();
    assert_eq!((counters.retries, counters.budget_exhausted), (2, 1));
    // Ten operations later one more may be repeated.
    for _ in 0..10 {
        kv.put(Put::new("k", "2")).await.unwrap();
    }
    fake.fault(overloaded(20));
    kv.put(Put::new("k", "3")).await.unwrap();
    fake.fault(overloaded(20));
    kv.put(Put::new("k", "4")).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn overloaded_node_is_not_waited_for_beyond_the_deadline() {
    let fake = Fake::new(3, HASHED, 1);
    let (client, kv) = namespace_with(&fake, ClientOptions::default()).await;
    fake.fault(overloaded(900));
    let begun = tokio::time::Instant::now();
    let put = Put::new("k", "1").timeout(Duration::from_millis(500));
    let error = kv.put(put).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(client.counters().retries, 0);
}

#[tokio::test(start_paused = true)]
async fn elections_do_not_cost_the_budget() {
    let fake = Fake::new(3, HASHED, 1);
    let options = ClientOptions {
        retry_percent: 0,
        retry_burst: 0,
        ..ClientOptions::default()
    };
    let (client, kv) = namespace_with(&fake, options).await;
    for kind in [
        ErrorKind::NotLeader,
        ErrorKind::Unavailable,
        ErrorKind::NoQuorum,
    ] {
        fake.fault(refusal(kind));
        let put = kv.put(Put::new("k", "1")).await;
        assert!(put.unwrap().applied, "{kind:?}");
    }
    assert_eq!(client.counters().retries, 0);
}

#[tokio::test(start_paused = true)]
async fn operations_beyond_the_window_are_refused_here() {
    let fake = Fake::new(3, HASHED, 1);
    let options = ClientOptions {
        in_flight_max: 2,
        retry_burst: 0,
        retry_percent: 0,
        ..ClientOptions::default()
    };
    let (client, kv) = namespace_with(&fake, options).await;
    (0..2).for_each(|_| fake.fault(Fault::Silence));
    let put = || {
        let kv = kv.clone();
        async move {
            let put = Put::new("k", "1").timeout(Duration::from_millis(500));
            kv.put(put).await
        }
    };
    let silent = [tokio::spawn(put()), tokio::spawn(put())];
    tokio::time::sleep(Duration::from_millis(10)).await;
    let seen = fake.state.lock().seen.len();
    let error = put().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(error.retry_after().is_some());
    assert_eq!(fake.state.lock().seen.len(), seen, "nothing was sent");
    assert_eq!(client.counters().refused_here, 1);
    for put in silent {
        assert_eq!(put.await.unwrap().unwrap_err().outcome(), Outcome::Unknown);
    }
    put().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn slow_node_that_answers_others_still_leads() {
    let fake = Fake::new(3, HASHED, 1);
    {
        // Not the first one, which is asked when nobody is known to lead.
        let mut state = fake.state.lock();
        let shard = state.map.shards().next().unwrap().clone();
        state.leaders.insert(shard.id, shard.replicas[2].node);
    }
    let kv = namespace(&fake).await;
    kv.put(Put::new("k", "0")).await.unwrap();
    fake.fault(Fault::Silence);
    let slow = {
        let kv = kv.clone();
        tokio::spawn(async move {
            let put = Put::new("k", "1").timeout(Duration::from_millis(500));
            kv.put(put).await
        })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    while !slow.is_finished() {
        kv.put(Put::new("other", "1")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    slow.await.unwrap().unwrap_err();
    fake.state.lock().seen.clear();
    kv.put(Put::new("k", "2")).await.unwrap();
    let state = fake.state.lock();
    let leader = state.leaders[&state.seen[0].1];
    let nodes: Vec<_> = state.seen.iter().map(|seen| seen.0).collect();
    assert_eq!(nodes, [leader], "sent astray");
}

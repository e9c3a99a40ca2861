//! A concurrent history over a few keys, recorded while nodes are killed and frozen, is linearizable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_client::{ClientOptions, NamespaceKv};
use quorate_kv::{Condition, Delete, Get, Kv, Outcome, Put, Written};
use quorate_sharding::NamespaceSpec;

use crate::checker::{Demand, Event, Op, Seen, Value, Version, check};
use crate::support::{Cluster, Random, SOON, compact, eventually, hashed};

const KEYS: u64 = 6;
const CLIENTS: u64 = 8;
/// The most time one operation takes, so that those that hang show as unknown.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Clients rest between two operations for less than this: histories stay small.
const REST_MS: u64 = 12;

/// What the clients share.
struct Recorder {
    begun: Instant,
    stop: AtomicBool,
    values: AtomicU64,
    answered: AtomicU64,
}

impl Recorder {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).expect("not 500 years")
    }

    /// Waits until so many more operations were answered.
    async fn progress(&self, more: u64) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        eventually("operations are answered", SOON, || {
            let now = self.answered.load(Ordering::Relaxed);
            let done = (now >= wanted).then_some(());
            std::future::ready(done.ok_or_else(|| format!("{now} of {wanted}")))
        })
        .await;
    }
}

fn name(key: u64) -> String {
    format!("register-{key}")
}

fn value_of(bytes: &Bytes) -> Value {
    let text = std::str::from_utf8(bytes).expect("a number");
    text.parse().expect("a number")
}

/// One client: random operations on random keys, and what it saw of them.
async fn client(kv: NamespaceKv, recorder: Arc<Recorder>, mut random: Random) -> Vec<Event> {
    let mut seen = [0; KEYS as usize];
    let mut events = Vec::new();
    while !recorder.stop.load(Ordering::Relaxed) {
        let key = random.below(KEYS);
        let version = seen[key as usize];
        let op = draw(&mut random, &recorder, version);
        let start = recorder.now();
        let result = perform(&kv, key, op).await;
        let end = recorder.now();
        if let Some(what) = result {
            if what != Seen::Unknown {
                recorder.answered.fetch_add(1, Ordering::Relaxed);
            }
            match what {
                Seen::Found(Some((_, version))) | Seen::Written(_, version) => {
                    seen[key as usize] = version;
                }
                _ => {}
            }
            events.push(Event {
                key,
                op,
                seen: what,
                start,
                end,
            });
        }
        let rest = random.below(REST_MS * 1000);
        tokio::time::sleep(Duration::from_micros(rest)).await;
    }
    events
}

fn draw(random: &mut Random, recorder: &Recorder, version: Version) -> Op {
    let value = || recorder.values.fetch_add(1, Ordering::Relaxed) + 1;
    match random.below(10) {
        0..=3 => Op::Get,
        4..=5 => Op::Put(value(), Demand::None),
        6..=7 if version > 0 => Op::Put(value(), Demand::Version(version)),
        8 if version > 0 => Op::Delete(Demand::Version(version)),
        8 => Op::Delete(Demand::None),
        _ => Op::Put(value(), Demand::Absent),
    }
}

fn condition(demand: Demand) -> Condition {
    match demand {
        Demand::None => Condition::None,
        Demand::Absent => Condition::Absent,
        Demand::Version(version) => Condition::Version(version),
    }
}

/// Does it; `None` if it surely had no effect and no answer.
async fn perform(kv: &NamespaceKv, key: u64, op: Op) -> Option<Seen> {
    let done = match op {
        Op::Get => {
            let found = kv.get(Get::new(name(key))).await.ok()?;
            return Some(Seen::Found(found.map(|e| (value_of(&e.value), e.version))));
        }
        Op::Put(value, demand) => {
            let put = Put::new(name(key), value.to_string());
            kv.put(put.when(condition(demand))).await
        }
        Op::Delete(demand) => {
            let mut delete = Delete::new(name(key));
            delete.condition = condition(demand);
            kv.delete(delete).await
        }
    };
    match done {
        Ok(Written {
            applied, version, ..
        }) => Some(Seen::Written(applied, version)),
        Err(error) if error.outcome() == Outcome::NotApplied => None,
        Err(_) => Some(Seen::Unknown),
    }
}

/// Kills and freezes the nodes that lead, in turn.
async fn faults(cluster: &mut Cluster, recorder: &Recorder, rounds: usize) {
    let client = cluster.client().await;
    for round in 0..rounds {
        recorder.progress(200).await;
        let leader = cluster.leader(&client, None).await;
        if round % 2 == 0 {
            cluster.nodes[leader].kill();
            recorder.progress(200).await;
            cluster.nodes[leader].start();
        } else {
            // A leader that wakes up after others took over still thinks that it leads.
            cluster.nodes[leader].pause();
            recorder.progress(200).await;
            cluster.nodes[leader].resume();
        }
        cluster.nodes[leader].healthy().await;
    }
    recorder.progress(200).await;
    cluster.kill_all();
    cluster.start_all();
    cluster.healthy().await;
    recorder.progress(200).await;
}

async fn record(spec: NamespaceSpec, rounds: usize) {
    let mut random = Random::seeded();
    let mut cluster = Cluster::three().await;
    let maker = cluster.client().await;
    cluster.namespace(&maker, &spec).await;
    let recorder = Arc::new(Recorder {
        begun: Instant::now(),
        stop: AtomicBool::new(false),
        values: AtomicU64::new(0),
        answered: AtomicU64::new(0),
    });
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let options = ClientOptions {
            timeout: TIMEOUT,
            ..ClientOptions::default()
        };
        let own = cluster.client_with(options).await;
        let kv = own.namespace(&spec.name).await.expect("made");
        clients.push(tokio::spawn(client(kv, recorder.clone(), random.fork())));
    }
    faults(&mut cluster, &recorder, rounds).await;
    recorder.stop.store(true, Ordering::Relaxed);
    let mut history = Vec::new();
    for client in clients {
        history.extend(client.await.expect("no client fails"));
    }
    let unknown = history.iter().filter(|e| e.seen == Seen::Unknown).count();
    println!("{} operations, {unknown} of unknown outcome", history.len());
    assert_eq!(check(&history), Ok(()));
    cluster.assert_replicas_agree(&maker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_a_wide_namespace_with_kills_is_linearizable() {
    record(hashed("registers", 4, 3), 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_a_compact_namespace_with_kills_is_linearizable() {
    record(compact("registers", 3), 4).await;
}

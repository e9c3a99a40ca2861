//! [`Recorder`]: clients that work on a few registers, and what each saw, for the checker.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_client::{ClientOptions, NamespaceKv};
use quorate_kv::{Condition, Delete, Get, Kv, Outcome, Put, Written};
use tokio::task::JoinHandle;

use crate::checker::{Demand, Event, Op, Seen, Value, Version};
use crate::support::{Cluster, Random, SOON, eventually};

/// Keys of a generation.
const KEYS: u64 = 6;
const CLIENTS: u64 = 8;
/// The most time one operation takes, so that those that hang show as unknown.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Clients rest between two operations for less than this: histories stay small.
const REST_MS: u64 = 12;

/// What the clients share.
struct Shared {
    begun: Instant,
    stop: AtomicBool,
    values: AtomicU64,
    answered: AtomicU64,
    generation: AtomicU64,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).expect("not 500 years")
    }
}

/// Clients at work, whose history is recorded.
pub struct Recorder {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Vec<Event>>>,
}

impl Recorder {
    /// Starts clients of their own on a namespace of registers.
    pub async fn start(cluster: &Cluster, namespace: &str, random: &mut Random) -> Recorder {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            values: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        });
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let options = ClientOptions {
                timeout: TIMEOUT,
                ..ClientOptions::default()
            };
            let own = cluster.client_with(options).await;
            let kv = own.namespace(namespace).await.expect("made");
            clients.push(tokio::spawn(client(kv, shared.clone(), random.fork())));
        }
        Recorder { shared, clients }
    }

    /// Waits until so many more operations were answered.
    pub async fn progress(&self, more: u64) {
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let wanted = answered() + more;
        eventually("operations are answered", SOON, || {
            let now = answered();
            let done = (now >= wanted).then_some(());
            std::future::ready(done.ok_or_else(|| format!("{now} of {wanted}")))
        })
        .await;
    }

    /// Goes on with other keys: what is judged together stays small.
    #[cfg(feature = "chaos")]
    pub fn next_generation(&self) {
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the clients, and gives what they saw.
    pub async fn stop(self) -> Vec<Event> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut history = Vec::new();
        for client in self.clients {
            history.extend(client.await.expect("no client fails"));
        }
        let unknown = history.iter().filter(|e| e.seen == Seen::Unknown).count();
        println!("{} operations, {unknown} of unknown outcome", history.len());
        history
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
async fn client(kv: NamespaceKv, shared: Arc<Shared>, mut random: Random) -> Vec<Event> {
    let mut seen: HashMap<u64, Version> = HashMap::new();
    let mut events = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let key = shared.generation.load(Ordering::Relaxed) * KEYS + random.below(KEYS);
        let version = seen.get(&key).copied().unwrap_or(0);
        let op = draw(&mut random, &shared, version);
        let start = shared.now();
        let result = perform(&kv, key, op).await;
        let end = shared.now();
        if let Some(what) = result {
            if what != Seen::Unknown {
                shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            match what {
                Seen::Found(Some((_, version))) | Seen::Written(_, version) => {
                    seen.insert(key, version);
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

fn draw(random: &mut Random, shared: &Shared, version: Version) -> Op {
    let value = || shared.values.fetch_add(1, Ordering::Relaxed) + 1;
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

//! One seed, from an empty cluster to the verdict.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::{Client, ClientOptions};
use quorate_env::Random;
use quorate_env::sim::Crash;
use quorate_kv::{Kv, ReadLevel};
use quorate_sharding::Encoding;

use crate::client::ClientTransport;
use crate::cluster::Cluster;
use crate::faults::Faults;
use crate::history::Violation;
use crate::host::Host;
use crate::network::CLIENTS;
use crate::oracle;
use crate::report::Report;
use crate::switches::Board;
use crate::trace::Trace;
use crate::workload::{KEYS, Shared, WIDE_KEYS, Worker};

/// How long the cluster may take to serve again after the last fault.
const SERVES_WITHIN: Duration = Duration::from_secs(40);

/// How long it may take until what was damaged is whole again: one shard after the other.
const REPAIRED_WITHIN: Duration = Duration::from_secs(120);

/// What to play.
pub struct Wish {
    /// The seed.
    pub seed: u64,
    /// Bugs to plant.
    pub bugs: Vec<String>,
    /// Where the trace goes.
    pub trace: Option<File>,
}

/// The first panic of any task or job.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Notes panics: tasks and jobs swallow them.
pub fn watch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let why = format!(
            "{} at {}",
            text.unwrap_or("a panic"),
            place.unwrap_or_default()
        );
        if std::env::var_os("QUORATE_SIM_PANICS").is_some() {
            eprintln!("{why}\n{}", std::backtrace::Backtrace::force_capture());
        }
        PANIC.lock().get_or_insert(why);
    }));
}

/// Plays a seed. Once for each process: what is static in it, and counters of libraries, are part of it.
pub fn play(wish: Wish) -> Report {
    let trace = match wish.trace {
        Some(file) => Trace::to_file(file),
        None => Trace::default(),
    };
    let random = Random::from_seed(wish.seed);
    let board = Board::install(Random::from_seed(random.next_u64()), &wish.bugs);
    let nodes = [3, 3, 3, 4, 5][random.below(5) as usize];
    let late = u64::from(nodes > 3 && random.one_in(2));
    let shared = Shared::new(trace.clone());
    let mut cluster = Cluster::new(nodes, random.clone(), board.clone(), trace.clone());
    let clock = shared.clone();
    cluster.on_step = Box::new(move |now_us| clock.set_now(now_us));
    let mut faults = Faults::new(
        &random,
        nodes,
        late,
        cluster.sizes.lease_ms > 0,
        shared.odd_errors.clone(),
    );
    let verdict = play_phases(&mut cluster, &mut faults, &shared, late);
    let mut report = Report::new(wish.seed);
    report.verdict = match PANIC.lock().take() {
        Some(panic) => Some(Violation::new("no_panic", panic)),
        None => verdict.err(),
    };
    report.simulated_ms = cluster.now_us / 1000;
    report.operations = shared.history.lock().ops.len() as u64;
    report.faults = faults.counts(&cluster);
    report.fired = board.fired();
    report.bugs_reached = board.bugs_reached();
    let (hash, lines) = trace.hash();
    report.trace = (hash, lines);
    let (appended, applied, compared) = cluster.oracles.counts();
    report.seen = [appended, applied, compared];
    report
}

fn play_phases(
    cluster: &mut Cluster,
    faults: &mut Faults,
    shared: &Shared,
    late: u64,
) -> Result<(), Violation> {
    cluster.set_up(late)?;
    let count = 3 + cluster.random.below(4);
    let workers = start_clients(cluster, shared, count)?;
    cluster.board.enable_places(true);
    let end_us = cluster.now_us + 6_000_000 + cluster.random.below(9_000_000);
    while cluster.now_us < end_us {
        faults.step(cluster)?;
        cluster.step()?;
        check_panic()?;
    }
    cluster.board.enable_places(false);
    faults.heal(cluster)?;
    let healed_us = cluster.now_us;
    serves_again(cluster, faults, shared, &workers)?;
    cluster
        .trace
        .note("healed_in", &[cluster.now_us - healed_us]);
    let history = shared.history.lock().clone();
    let shards = shard_map(cluster);
    oracle::judge(&history, &|key| {
        shards.get(key as usize).copied().unwrap_or(0)
    })?;
    faults.judge_errors()
}

fn check_panic() -> Result<(), Violation> {
    match &*PANIC.lock() {
        Some(panic) => Err(Violation::new("no_panic", panic.clone())),
        None => Ok(()),
    }
}

/// The shard of each key.
fn shard_map(cluster: &Cluster) -> Vec<u64> {
    let life = cluster.hosts.values().find_map(|host| host.life.as_ref());
    let Some(map) = life.map(|life| life.node.map()) else {
        return Vec::new();
    };
    let shard_of = |key: u64| {
        let name = if key < WIDE_KEYS { "wide" } else { "compact" };
        let namespace = map.namespace_by_name(name)?;
        let encoding: Encoding = namespace.kind.encoding();
        let encoded = encoding.encode(format!("key-{key:02}").as_bytes());
        map.lookup(namespace.id, &encoded).map(|shard| shard.id)
    };
    (0..KEYS).map(|key| shard_of(key).unwrap_or(0)).collect()
}

/// Connects the clients and sets them to work; the last is kept for the end.
fn start_clients(
    cluster: &mut Cluster,
    shared: &Shared,
    count: u64,
) -> Result<Arc<Mutex<Vec<Worker>>>, Violation> {
    let spare: Arc<Mutex<Vec<Worker>>> = Arc::default();
    let started = Arc::new(Mutex::new(0));
    let seeds: Vec<String> = cluster.hosts.keys().map(|id| Host::address(*id)).collect();
    for n in 0..=count {
        let client = CLIENTS + n;
        let transport = ClientTransport {
            client,
            network: cluster.network.clone(),
            board: cluster.board.clone(),
        };
        let options = ClientOptions {
            attempt_timeout: Duration::from_millis(300),
            connect_timeout: Duration::from_millis(500),
            client_id: Some(client),
            ..ClientOptions::default()
        };
        let (random, shared, seeds) = (
            Random::from_seed(cluster.random.next_u64()),
            shared.clone(),
            seeds.clone(),
        );
        let (spare, started) = (Arc::clone(&spare), Arc::clone(&started));
        let task = async move {
            let connected = Client::with_transport(Arc::new(transport), &seeds, options).await;
            let Ok(connected) = connected else { return };
            let (wide, compact) = (
                connected.namespace("wide").await,
                connected.namespace("compact").await,
            );
            let (Ok(wide), Ok(compact)) = (wide, compact) else {
                return;
            };
            debug_assert_eq!(wide.domain().cluster, compact.domain().cluster);
            let worker = Worker {
                client,
                wide,
                compact,
                think_ms: 5 + random.below(60),
                random,
                shared,
                tokens: [None; 2],
                seen: vec![0; KEYS as usize],
            };
            *started.lock() += 1;
            match n == count {
                true => spare.lock().push(worker),
                false => worker.run().await,
            }
        };
        if let Some(clients) = &cluster.clients {
            clients.spawn(task);
        }
    }
    cluster.step_until("clients are connected", Duration::from_secs(10), |_| {
        *started.lock() == count + 1
    })?;
    Ok(spare)
}

/// No faults any more: every key takes a write and answers a read, and the replicas become the same.
fn serves_again(
    cluster: &mut Cluster,
    faults: &mut Faults,
    shared: &Shared,
    spare: &Mutex<Vec<Worker>>,
) -> Result<(), Violation> {
    let done = Arc::new(AtomicBool::new(false));
    let worker = spare.lock().pop();
    let Some(mut worker) = worker else {
        return Err(Violation::new("setup", "there is no client left"));
    };
    let (told, end) = (Arc::clone(&done), shared.clone());
    let task = async move {
        for key in 0..KEYS {
            while !worker.put_once(key).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        end.end();
        // What others have under way is over by then.
        tokio::time::sleep(Duration::from_secs(4)).await;
        for key in 0..KEYS {
            while !worker.get(key, ReadLevel::Linearizable).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        told.store(true, Ordering::Relaxed);
    };
    if let Some(clients) = &cluster.clients {
        clients.spawn(task);
    }
    cluster.step_until("every key is served again", SERVES_WITHIN, |cluster| {
        faults.keep_members(cluster);
        done.load(Ordering::Relaxed)
    })?;
    check_panic()?;
    let shards: Vec<u64> = {
        let life = cluster.hosts.values().find_map(|host| host.life.as_ref());
        let map = life.map(|life| life.node.map());
        let map = map.ok_or_else(|| Violation::new("liveness", "no node runs"))?;
        map.shards().map(|shard| shard.id).collect()
    };
    let meet = |cluster: &mut Cluster, faults: &mut Faults| {
        let mut data = shards.iter().filter(|shard| **shard != 1);
        data.try_for_each(|shard| replicas_meet(cluster, faults, *shard))
    };
    if !faults.is_damaged() {
        return meet(cluster, faults);
    }
    // Hashing reads everything: what is damaged then is found, and repaired too.
    repaired(cluster, faults)?;
    meet(cluster, faults)?;
    repaired(cluster, faults)?;
    meet(cluster, faults)
}

/// Damaged replicas are made anew, unasked.
fn repaired(cluster: &mut Cluster, faults: &mut Faults) -> Result<(), Violation> {
    let what = "damaged replicas are made anew";
    cluster
        .step_until(what, REPAIRED_WITHIN, |cluster| {
            faults.keep_members(cluster);
            let nodes = cluster.hosts.values().filter_map(|host| host.life.as_ref());
            nodes
                .map(|life| life.node.status())
                .all(|status| status.damaged.is_empty())
        })
        .map_err(|error| {
            let nodes = cluster.hosts.values().filter_map(|host| host.life.as_ref());
            let newest = nodes
                .map(|life| life.node.map())
                .max_by_key(|map| map.version);
            let shards: Vec<String> = newest
                .iter()
                .flat_map(|map| map.shards())
                .map(|s| {
                    let ids = |all: &[quorate_sharding::Replica]| {
                        all.iter().map(|r| (r.id, r.node)).collect::<Vec<_>>()
                    };
                    let (has, goes) = (ids(&s.replicas), ids(&s.leaving));
                    format!(
                        "{} has {has:?}, {goes:?} go, settled {}",
                        s.id,
                        s.is_settled()
                    )
                })
                .collect();
            Violation::new(error.oracle, format!("{shards:?}; {}", error.message))
        })
}

/// All replicas of a shard that can must come to one state; the oracle compares their hashes.
fn replicas_meet(cluster: &mut Cluster, faults: &mut Faults, shard: u64) -> Result<(), Violation> {
    let asked = Arc::new(Mutex::new(None));
    let mut ask_at_us = 0;
    let answer = Arc::clone(&asked);
    cluster.step_until("a shard has a leader", SERVES_WITHIN, move |cluster| {
        if let Some(index) = answer.lock().as_ref().and_then(|a: &Arc<Mutex<_>>| {
            let found: &Option<Result<u64, quorate_sharding::Failure>> = &a.lock();
            found
                .as_ref()
                .and_then(|found| found.as_ref().ok().copied())
        }) {
            let _ = index;
            return true;
        }
        if cluster.now_us >= ask_at_us
            && let Some(leader) = cluster.leads(shard)
        {
            ask_at_us = cluster.now_us + 1_000_000;
            let hash = cluster.ask(leader, move |node| async move {
                node.start_hash(shard, Duration::from_millis(900)).await
            });
            *answer.lock() = Some(hash);
        }
        false
    })?;
    let index = {
        let asked = asked.lock();
        let found = asked.as_ref().and_then(|answer| answer.lock().clone());
        found.and_then(Result::ok).unwrap_or(0)
    };
    let holders: Vec<u64> = cluster
        .alive()
        .into_iter()
        .filter(|id| !faults.is_excused(*id))
        .collect();
    let holds = move |cluster: &Cluster, id: u64| {
        let life = cluster.hosts.get(&id).and_then(|host| host.life.as_ref());
        let map = life.map(|life| life.node.map());
        map.and_then(|map| map.shard(shard).map(|shard| shard.replica_on(id).is_some()))
            .unwrap_or(false)
    };
    let what = "the replicas of a shard meet";
    let met = cluster.step_until(what, SERVES_WITHIN, |cluster| {
        faults.keep_members(cluster);
        holders.iter().filter(|id| holds(cluster, **id)).all(|id| {
            let life = cluster.hosts.get(id).and_then(|host| host.life.as_ref());
            let group = life.and_then(|life| life.node.group(shard));
            group.is_some_and(|group| group.applied_index() >= Some(index))
        })
    });
    met.map_err(|error| {
        let states: Vec<String> = holders
            .iter()
            .filter_map(|id| {
                let life = cluster.hosts.get(id).and_then(|host| host.life.as_ref())?;
                let status = life.node.status();
                let replica = status.replicas.iter().find(|r| r.shard == shard);
                Some(format!(
                    "node {id}: {:?} {:?}",
                    replica.map(|r| (r.group.role, r.group.applied, &r.group.health)),
                    status.broken
                ))
            })
            .collect();
        let message = format!("{}: shard {shard} at {index}: {states:?}", error.message);
        Violation::new(error.oracle, message)
    })?;
    // The hashing is a job.
    (0..300).try_for_each(|_| cluster.step())
}

/// What the power leaves of unsynced data, as a seed picks it.
pub fn any_crash(random: &Random) -> Crash {
    [Crash::Random, Crash::LoseAll, Crash::KeepAll][random.below(3) as usize]
}

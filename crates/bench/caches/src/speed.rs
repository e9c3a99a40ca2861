//! How fast: hits, misses, stampedes and batches of our cache, beside moka, foyer and plain Redis, in turn.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use quorate_bench::Report;
use quorate_cache::source::{Source, Stamped};
use quorate_cache::tier::redis::{Redis, RedisOptions};
use quorate_cache::tier::{Memory, Tier};
use quorate_cache::{Cache, CacheOptions, Level, Need, Tiers, Version};
use quorate_kv::{BoxFuture, Domain};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::host;
use crate::servers::{Servers, connect};

const KEYS: usize = 10_000;
const VALUE: Bytes = Bytes::from_static(&[b'v'; 100]);
const BATCH: usize = 100;
const CALLERS: usize = 1_000;
const LOCAL_BYTES: u64 = 64 << 20;

/// How much is measured.
#[derive(Debug, clap::Args)]
pub struct SpeedArgs {
    /// Where the report goes
    #[arg(long)]
    out: PathBuf,
    /// The commit that is measured
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// How often each side runs; medians are reported
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// So many times fewer operations
    #[arg(long, default_value_t = 1)]
    divide: usize,
}

/// A source that answers at once, or after a while.
struct Ready {
    loads: AtomicU64,
    pause: Duration,
}

impl Ready {
    fn new(pause: Duration) -> Arc<Ready> {
        Arc::new(Ready {
            loads: AtomicU64::new(0),
            pause,
        })
    }

    async fn fetch(&self) -> Bytes {
        self.loads.fetch_add(1, Relaxed);
        if !self.pause.is_zero() {
            sleep(self.pause).await;
        }
        VALUE
    }
}

impl Source for Ready {
    fn domain(&self) -> Domain {
        Domain {
            cluster: 1,
            namespace: 1,
            incarnation: 0,
        }
    }

    fn load<'a>(&'a self, _: &'a Bytes, _: Need) -> BoxFuture<'a, quorate_cache::Result<Stamped>> {
        Box::pin(async { Ok(Stamped::newest(Some(self.fetch().await), Version::new(1))) })
    }
}

type Moka = moka::future::Cache<Bytes, Bytes>;
type Foyer = foyer_memory::Cache<Bytes, Bytes>;

/// All sides, each filled with the same.
struct Sides {
    local: Cache,
    remote: Cache,
    both: Cache,
    moka: Moka,
    foyer: Foyer,
    redis: MultiplexedConnection,
    keys: Vec<Bytes>,
}

fn moka() -> Moka {
    let weigh = |key: &Bytes, value: &Bytes| (key.len() + value.len()) as u32;
    let ttl = Duration::from_secs(300);
    Moka::builder()
        .weigher(weigh)
        .max_capacity(LOCAL_BYTES)
        .time_to_live(ttl)
        .build()
}

fn foyer() -> Foyer {
    let weigh = |key: &Bytes, value: &Bytes| key.len() + value.len();
    foyer_memory::CacheBuilder::new(LOCAL_BYTES as usize)
        .with_weighter(weigh)
        .build()
}

fn ours(source: &Arc<Ready>, has_local: bool, remote: Option<Arc<dyn Tier>>) -> Cache {
    let tiers = Tiers {
        local: has_local.then(|| Memory::new(LOCAL_BYTES)),
        remote,
    };
    Cache::new(source.clone(), tiers, CacheOptions::default())
}

impl Sides {
    async fn new(url: &str) -> Result<Sides> {
        let source = Ready::new(Duration::ZERO);
        let tier = |prefix: &str| -> Result<Arc<dyn Tier>> {
            let options = RedisOptions {
                prefix: prefix.to_owned(),
                ..RedisOptions::default()
            };
            Ok(Arc::new(Redis::new(url, options)?))
        };
        let mut sides = Sides {
            local: ours(&source, true, None),
            remote: ours(&source, false, Some(tier("speed/remote/")?)),
            both: ours(&source, true, Some(tier("speed/both/")?)),
            moka: moka(),
            foyer: foyer(),
            redis: connect(url).await?,
            keys: (0..KEYS)
                .map(|key| format!("customer/{key:08}").into())
                .collect(),
        };
        for key in &sides.keys {
            sides.local.get(key, Level::Any).await?;
            sides.remote.get(key, Level::Any).await?;
            sides.both.get(key, Level::Any).await?;
            sides.moka.insert(key.clone(), VALUE).await;
            sides.foyer.insert(key.clone(), VALUE);
            let _: () = sides
                .redis
                .set_ex(key.as_ref(), VALUE.as_ref(), 300)
                .await?;
        }
        Ok(sides)
    }

    fn key(&self, n: usize) -> &Bytes {
        // A prime: all keys, in an order that no table has.
        &self.keys[n.wrapping_mul(7_919) % KEYS]
    }
}

/// Times of one metric: by workload, by side.
#[derive(Default)]
struct Samples(BTreeMap<(String, &'static str), BTreeMap<&'static str, Vec<f64>>>);

impl Samples {
    fn add(&mut self, workload: &str, metric: &'static str, side: &'static str, value: f64) {
        let of = self.0.entry((workload.to_owned(), metric)).or_default();
        of.entry(side).or_default().push(value);
    }
}

/// Nanoseconds of each of `times` repetitions of something.
async fn each_ns(times: usize, mut step: impl AsyncFnMut(usize)) -> f64 {
    let began = Instant::now();
    for n in 0..times {
        step(n).await;
    }
    began.elapsed().as_nanos() as f64 / times.max(1) as f64
}

/// Measures, and writes the report.
pub async fn measure(args: &SpeedArgs) -> Result<()> {
    let servers = Servers::from_environment()?;
    servers.restore().await?;
    let sides = Arc::new(Sides::new(&servers.master).await?);
    let mut samples = Samples::default();
    for round in 0..args.rounds.max(1) {
        println!("round {} of {}", round + 1, args.rounds.max(1));
        let divide = args.divide.max(1);
        hits(&sides, &mut samples, 1_000_000 / divide).await;
        remote_hits(&sides, &mut samples, 10_000 / divide).await?;
        remote_hits_at_once(&sides, &mut samples, 40_000 / divide).await?;
        misses(&mut samples, 100_000 / divide).await?;
        batches(&sides, &mut samples, 2_000 / divide).await?;
        stampede(&mut samples).await?;
    }
    let report = report(args, &samples);
    print!("{}", report.table());
    if let Some(folder) = args.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&args.out, report.json()?)?;
    println!("written to {}", args.out.display());
    missed_bars(&report)
}

fn report(args: &SpeedArgs, samples: &Samples) -> Report {
    let mut report = Report {
        suite: "cache".into(),
        host: format!(
            "{}, moka 0.12, foyer-memory 0.22, Redis by redis 1.8",
            host::line()
        ),
        commit: args.commit.clone(),
        rows: Vec::new(),
        series: Vec::new(),
    };
    for ((workload, metric), sides) in &samples.0 {
        let mut medians: BTreeMap<&str, f64> = BTreeMap::new();
        for (side, values) in sides {
            let mut values = values.clone();
            values.sort_by(f64::total_cmp);
            medians.insert(side, values[values.len() / 2]);
        }
        let ours = medians.remove("quorate").unwrap_or(f64::NAN);
        let peers: Vec<(&str, f64)> = medians.into_iter().collect();
        report.beside(workload, metric, ours, &peers);
    }
    report
}

/// Looks at each bar, and names all that were missed.
fn missed_bars(report: &Report) -> Result<()> {
    let ours = |workload: &str| {
        report
            .rows
            .iter()
            .find(|row| row.workload == workload)
            .context(workload.to_owned())
    };
    let mut missed = Vec::new();
    let hit = ours("l1-hit")?;
    if hit.ours >= 250.0 {
        missed.push(format!(
            "an L1 hit takes {:.0} ns, 250 are allowed",
            hit.ours
        ));
    }
    for (workload, peer, times) in [("l1-hit", "moka", 1.3), ("l2-hit", "redis-get", 1.2)] {
        let row = ours(workload)?;
        let ratio = row.ours / row.peers.get(peer).context(peer)?;
        if ratio > times {
            missed.push(format!(
                "{workload} takes {ratio:.2} times what {peer} does, {times} are allowed"
            ));
        }
    }
    let stampede = report
        .rows
        .iter()
        .find(|row| row.metric == "loads")
        .context("loads")?;
    if stampede.ours > 1.0 {
        missed.push(format!("a stampede loads {} times", stampede.ours));
    }
    ensure!(
        missed.is_empty(),
        "bars that were missed:\n  {}",
        missed.join("\n  ")
    );
    Ok(())
}

async fn hits(sides: &Sides, samples: &mut Samples, times: usize) {
    let ours = async |n| {
        black_box(sides.local.get(sides.key(n), Level::Any).await.is_ok());
    };
    let both = async |n| {
        black_box(sides.both.get(sides.key(n), Level::Any).await.is_ok());
    };
    let moka = async |n| {
        black_box(sides.moka.get(sides.key(n)).await.is_some());
    };
    let foyer = async |n| {
        black_box(
            sides
                .foyer
                .get(sides.key(n))
                .map(|entry| entry.value().clone())
                .is_some(),
        );
    };
    samples.add(
        "l1-hit",
        "latency_ns",
        "quorate",
        each_ns(times, ours).await,
    );
    samples.add("l1-hit", "latency_ns", "moka", each_ns(times, moka).await);
    samples.add("l1-hit", "latency_ns", "foyer", each_ns(times, foyer).await);
    samples.add(
        "l1-hit/l1+l2",
        "latency_ns",
        "quorate",
        each_ns(times, both).await,
    );
}

/// One caller, in a task, as services read: what it spawns runs on its own thread first.
async fn remote_hits(sides: &Arc<Sides>, samples: &mut Samples, times: usize) -> Result<()> {
    for side in ["quorate", "redis-get"] {
        let sides = sides.clone();
        let caller = tokio::spawn(async move {
            let mut redis = sides.redis.clone();
            let began = Instant::now();
            for n in 0..times {
                let key = sides.key(n);
                if side == "quorate" {
                    black_box(sides.remote.get(key, Level::Any).await?);
                } else {
                    let value: Option<Bytes> = redis.get(key.as_ref()).await?;
                    black_box(value);
                }
            }
            anyhow::Ok(began.elapsed())
        });
        let micros = caller.await??.as_nanos() as f64 / 1_000.0 / times.max(1) as f64;
        samples.add("l2-hit", "latency_us", side, micros);
    }
    Ok(())
}

/// 64 callers, each with a read at a time.
async fn remote_hits_at_once(
    sides: &Arc<Sides>,
    samples: &mut Samples,
    times: usize,
) -> Result<()> {
    const TASKS: usize = 64;
    for is_ours in [true, false] {
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        let began = Instant::now();
        for task in 0..TASKS {
            let sides = sides.clone();
            tasks.spawn(async move {
                let mut redis = sides.redis.clone();
                for n in 0..times / TASKS {
                    let key = sides.key(task * 157 + n);
                    if is_ours {
                        black_box(sides.remote.get(key, Level::Any).await?);
                    } else {
                        let value: Option<Bytes> = redis.get(key.as_ref()).await?;
                        black_box(value);
                    }
                }
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let side = if is_ours { "quorate" } else { "redis-get" };
        let rate = (times / TASKS * TASKS) as f64 / began.elapsed().as_secs_f64();
        samples.add("l2-hit/callers=64", "throughput_ops", side, rate);
    }
    Ok(())
}

/// Keys that nobody has, from a source that answers at once; one caller, in a task too.
async fn misses(samples: &mut Samples, times: usize) -> Result<()> {
    for side in ["quorate", "moka", "foyer"] {
        let caller = tokio::spawn(async move {
            let source = Ready::new(Duration::ZERO);
            let (ours, moka, foyer) = (ours(&source, true, None), moka(), foyer());
            let keys: Vec<Bytes> = (0..times).map(|n| format!("miss/{n}").into()).collect();
            let began = Instant::now();
            for key in &keys {
                black_box(ask(side, &ours, &moka, &foyer, &source, key).await?);
            }
            anyhow::Ok(began.elapsed())
        });
        let nanos = caller.await??.as_nanos() as f64 / times.max(1) as f64;
        samples.add("miss", "latency_ns", side, nanos);
    }
    Ok(())
}

/// One read through one of the caches, which loads if it has to.
async fn ask(
    side: &str,
    ours: &Cache,
    moka: &Moka,
    foyer: &Foyer,
    source: &Arc<Ready>,
    key: &Bytes,
) -> Result<Bytes> {
    let source = source.clone();
    Ok(match side {
        "quorate" => {
            let read = ours.get(key, Level::Any).await?;
            read.value.context("a value")?
        }
        "moka" => moka.get_with(key.clone(), source.fetch()).await,
        _ => {
            let fetch = || async move { anyhow::Ok(source.fetch().await) };
            foyer.get_or_fetch(key, fetch).await?.value().clone()
        }
    })
}

/// A hundred keys at once.
async fn batches(sides: &Sides, samples: &mut Samples, times: usize) -> Result<()> {
    let batch = |n: usize| -> Vec<Bytes> {
        (0..BATCH)
            .map(|at| sides.key(n * BATCH + at).clone())
            .collect()
    };
    let local = async |n| {
        black_box(sides.local.get_many(&batch(n), Level::Any).await.len());
    };
    let moka = async |n: usize| {
        for key in batch(n) {
            black_box(sides.moka.get(&key).await.is_some());
        }
    };
    samples.add(
        "l1-batch/keys=100",
        "latency_ns",
        "quorate",
        each_ns(times, local).await,
    );
    samples.add(
        "l1-batch/keys=100",
        "latency_ns",
        "moka",
        each_ns(times, moka).await,
    );
    let times = times / 4;
    let mut redis = sides.redis.clone();
    let remote = async |n| {
        black_box(sides.remote.get_many(&batch(n), Level::Any).await.len());
    };
    samples.add(
        "l2-batch/keys=100",
        "latency_ns",
        "quorate",
        each_ns(times, remote).await,
    );
    let began = Instant::now();
    for n in 0..times {
        let keys = batch(n);
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_ref()).collect();
        let values: Vec<Option<Bytes>> = redis.mget(keys).await?;
        black_box(values);
    }
    let each = began.elapsed().as_nanos() as f64 / times.max(1) as f64;
    samples.add("l2-batch/keys=100", "latency_ns", "redis-mget", each);
    Ok(())
}

/// A thousand callers want one key that nobody has; a load takes 5 ms.
async fn stampede(samples: &mut Samples) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(5);
    let key = Bytes::from_static(b"wanted");
    for side in ["quorate", "moka", "foyer"] {
        let source = Ready::new(PAUSE);
        let (ours, moka, foyer) = (ours(&source, true, None), moka(), foyer());
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        let began = Instant::now();
        for _ in 0..CALLERS {
            let (ours, moka, foyer) = (ours.clone(), moka.clone(), foyer.clone());
            let (source, key) = (source.clone(), key.clone());
            tasks.spawn(async move {
                let value = ask(side, &ours, &moka, &foyer, &source, &key).await?;
                ensure!(value == VALUE, "another value");
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let millis = began.elapsed().as_secs_f64() * 1_000.0;
        samples.add("stampede/callers=1000", "latency_ms", side, millis);
        samples.add(
            "stampede/callers=1000",
            "loads",
            side,
            source.loads.load(Relaxed) as f64,
        );
    }
    Ok(())
}

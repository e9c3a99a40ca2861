//! What is left of a cluster's work when far more is asked of it than it can do.
//!
//! First closed loops find the peak. Then operations arrive at multiples of it, whatever is answered, each with a
//! deadline; *goodput* is what is answered well within it. At last half of the peak is offered, and the time is
//! taken until all is well again. Everything runs on one machine, so the generator's threads have a low priority:
//! what it can't begin in time, or what would wait beyond its own bound, it counts as offered and not served.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use quorate_bench::Series;
use quorate_client::{Client, ClientOptions};
use quorate_env::Random;
use quorate_kv::{ErrorKind, Get, Kv, Put};
use tokio::time::{Instant, MissedTickBehavior};

use crate::processes::{Processes, Usage, own_cpu_seconds};

/// What an operation may take.
const DEADLINE: Duration = Duration::from_secs(1);
/// Clients, each with connections of its own to every node.
const CLIENTS: usize = 8;
const CONNECTIONS: usize = 2;
/// Operations in flight in the closed loops that find the peak, of all clients.
const CLOSED: usize = 1000;
/// Times the peak.
const LEVELS: [u64; 4] = [1, 2, 5, 10];
/// So many seconds of the peak's operations at most wait for an answer, of all clients. More than enough to be late.
const WAITING_SECONDS: f64 = 2.0;
/// Arrivals that are so late are not made up for.
const LAG: Duration = Duration::from_millis(50);
/// Arrivals at most at a time, so that answers are looked at between them.
const BURST: u64 = 2048;
/// The outcome of what began in so long is looked at together.
const WINDOW: Duration = Duration::from_millis(100);
/// Normal service after the overload: so many of a window's operations are answered well.
const NORMAL: f64 = 0.99;
/// How far the generator stands back behind the servers.
pub const NICE: i32 = 10;
const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 100;

/// So many of a hundred operations are writes.
const MIXES: [(&str, u64); 3] = [("put", 100), ("get", 0), ("get90-put10", 10)];

/// What was measured: workload, metric, value.
#[derive(Default)]
pub struct Found {
    /// Figures.
    pub rows: Vec<(String, &'static str, f64)>,
    /// Memory over time.
    pub series: Vec<Series>,
}

/// What became of the operations that began in one window.
#[derive(Default)]
struct Window {
    offered: AtomicU64,
    good: AtomicU64,
}

/// What became of all.
struct Tally {
    begun: Instant,
    windows: Vec<Window>,
    waiting: AtomicU64,
    /// Never begun: the generator was late, or full.
    unsent: AtomicU64,
    good: AtomicU64,
    /// Refused with `Overloaded`, and of those with a hint.
    refused: AtomicU64,
    hinted: AtomicU64,
    late: AtomicU64,
    failed: AtomicU64,
    first_error: Mutex<Option<String>>,
    latencies: Mutex<Histogram<u64>>,
}

impl Tally {
    fn new(duration: Duration) -> Result<Arc<Tally>> {
        let windows = duration.as_millis() / WINDOW.as_millis() + 1;
        Ok(Arc::new(Tally {
            begun: Instant::now(),
            windows: (0..windows).map(|_| Window::default()).collect(),
            waiting: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            good: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            hinted: AtomicU64::new(0),
            late: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            first_error: Mutex::default(),
            latencies: Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3)?),
        }))
    }

    fn window(&self, at: Instant) -> &Window {
        let place = ((at - self.begun).as_millis() / WINDOW.as_millis()) as usize;
        &self.windows[place.min(self.windows.len() - 1)]
    }

    fn note(&self, begun: Instant, outcome: Result<(), quorate_kv::Error>) {
        let took = begun.elapsed();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let count = match &outcome {
            Ok(()) if took <= DEADLINE => {
                self.window(begun).good.fetch_add(1, Ordering::Relaxed);
                let micros = (took.as_micros() as u64).max(1);
                self.latencies.lock().saturating_record(micros);
                &self.good
            }
            Ok(()) => &self.late,
            Err(error) if error.kind() == ErrorKind::Overloaded => {
                let hinted = u64::from(error.retry_after().is_some());
                self.hinted.fetch_add(hinted, Ordering::Relaxed);
                &self.refused
            }
            Err(error) if error.kind() == ErrorKind::DeadlineExceeded => &self.late,
            Err(error) => {
                let mut first = self.first_error.lock();
                first.get_or_insert_with(|| error.to_string());
                &self.failed
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// When the last window began that was not served as usual, and its end, since the beginning.
    fn normal_after(&self) -> f64 {
        let worst = self.windows.iter().rposition(|window| {
            let offered = window.offered.load(Ordering::Relaxed) as f64;
            (window.good.load(Ordering::Relaxed) as f64) < offered * NORMAL
        });
        worst.map_or(0.0, |place| (place + 1) as f64 * WINDOW.as_secs_f64())
    }
}

/// The most that closed loops reached.
#[derive(Default, Clone, Copy)]
struct Peak {
    a_second: f64,
    /// CPU of the servers for one operation.
    cpu_micros: f64,
}

/// What the servers have counted so far, or since then.
struct Counted {
    refused: f64,
    /// Seconds that requests spent inside, and how many they were.
    inside: (f64, f64),
    terms: f64,
}

impl Counted {
    fn since(self, before: &Counted) -> Counted {
        let (seconds, requests) = before.inside;
        Counted {
            refused: self.refused - before.refused,
            inside: (self.inside.0 - seconds, self.inside.1 - requests),
            terms: self.terms - before.terms,
        }
    }
}

/// One cluster, its clients, and what came out so far.
struct Suite<'a> {
    processes: &'a Processes,
    clients: Vec<Arc<dyn Kv>>,
    seconds: u64,
    found: Found,
}

/// Runs it all on one cluster.
pub async fn measure(
    binary: &Path,
    shards: u32,
    settings: &str,
    seconds: u64,
    only: Option<&str>,
) -> Result<Found> {
    let dir = tempfile::tempdir()?;
    let processes = Processes::quorate(binary, dir.path(), shards, settings)?;
    let mut clients: Vec<Arc<dyn Kv>> = Vec::new();
    for _ in 0..CLIENTS {
        let options = ClientOptions {
            connections: CONNECTIONS,
            ..ClientOptions::default()
        };
        let client = Client::connect(&processes.endpoints, options).await?;
        clients.push(Arc::new(client.namespace("bench").await?));
    }
    let mut suite = Suite {
        processes: &processes,
        clients,
        seconds,
        found: Found::default(),
    };
    for (name, writes) in MIXES {
        if only.is_none_or(|only| only == name) {
            suite.measure(name, writes).await?;
        }
    }
    Ok(suite.found)
}

impl Suite<'_> {
    async fn measure(&mut self, mix: &'static str, writes: u64) -> Result<()> {
        let duration = Duration::from_secs(self.seconds);
        let mut peak = Peak::default();
        // The first one also warms up. What else the machine does counts against the peak, so the best one is it.
        for _ in 0..3 {
            let before = self.processes.usage()?;
            let done = closed(&self.clients, writes, duration).await?;
            let used = self.processes.usage()?.cpu_seconds - before.cpu_seconds;
            let a_second = done / duration.as_secs_f64();
            if a_second > peak.a_second {
                peak = Peak {
                    a_second,
                    cpu_micros: used / done * 1e6,
                };
            }
        }
        let (a_second, cpu) = (peak.a_second, peak.cpu_micros);
        let name = format!("overload/{mix}/peak");
        println!("  {name:<28} {a_second:>9.0} ops/s, {cpu:.1} µs of the servers' CPU each");
        self.add(&name, "throughput_ops", a_second);
        self.add(&name, "cpu_per_op_micros", cpu);
        for level in LEVELS {
            self.level(mix, writes, level, peak).await?;
        }
        let half = self
            .offer(writes, a_second / 2.0, a_second, duration)
            .await?;
        let normal = half.tally.normal_after();
        println!("  overload/{mix}/after: normal service after {normal:.1} s");
        self.add(&format!("overload/{mix}/after"), "recovery_s", normal);
        Ok(())
    }

    async fn level(
        &mut self,
        mix: &'static str,
        writes: u64,
        level: u64,
        peak: Peak,
    ) -> Result<()> {
        let duration = Duration::from_secs(self.seconds);
        let before = self.counted().await?;
        let offered = self
            .offer(
                writes,
                peak.a_second * level as f64,
                peak.a_second,
                duration,
            )
            .await?;
        let counted = self.counted().await?.since(&before);
        let name = format!("overload/{mix}/{level}x");
        let figures = self.figures(&offered, &counted, peak);
        let Offered { tally, memory, .. } = offered;
        let text: Vec<String> = figures.iter().map(|(m, v)| format!("{m} {v:.2}")).collect();
        println!("  {name}: {}", text.join(", "));
        if let Some(error) = tally.first_error.lock().as_deref() {
            println!("    the first failure: {error}");
        }
        for (metric, value) in figures {
            self.add(&name, metric, value);
        }
        self.found
            .series
            .extend(memory.into_iter().enumerate().map(|(node, values)| Series {
                workload: name.clone(),
                metric: format!("node{}_memory_mb", node + 1),
                every_ms: SAMPLE.as_millis() as u64,
                values,
            }));
        Ok(())
    }

    /// What the servers count by themselves.
    async fn counted(&self) -> Result<Counted> {
        Ok(Counted {
            refused: self.refused_by_servers().await?,
            inside: self.inside().await?,
            terms: self.terms().await?,
        })
    }

    fn figures(
        &self,
        offered: &Offered,
        counted: &Counted,
        peak: Peak,
    ) -> Vec<(&'static str, f64)> {
        let (tally, seconds) = (&offered.tally, self.seconds as f64);
        let a_second = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / seconds;
        let goodput = a_second(&tally.good);
        let quantile = |share| tally.latencies.lock().value_at_quantile(share) as f64 / 1e3;
        let spare = offered.servers_cpu * 1e6 - goodput * seconds * peak.cpu_micros;
        let (sum, count) = counted.inside;
        let refusal_micros = match counted.refused < 10_000.0 {
            true => 0.0,
            false => (spare / counted.refused).max(0.0),
        };
        let refused = a_second(&tally.refused);
        let hinted = a_second(&tally.hinted) / refused.max(1e-9);
        let memory_max = offered.memory.iter().flatten().copied().fold(0.0, f64::max);
        vec![
            ("throughput_ops", goodput),
            ("goodput_ratio", goodput / peak.a_second),
            ("p50_ms", quantile(0.5)),
            ("p99_ms", quantile(0.99)),
            ("inside_servers_mean_ms", sum * 1e3 / count.max(1.0)),
            ("refused_ops", refused),
            ("refused_hinted_share", hinted),
            ("refused_by_servers_ops", counted.refused / seconds),
            ("refusal_cpu_micros", refusal_micros),
            ("late_ops", a_second(&tally.late)),
            ("failed_ops", a_second(&tally.failed)),
            ("unsent_ops", a_second(&tally.unsent)),
            ("servers_cpu_cores", offered.servers_cpu / seconds),
            ("generator_cpu_cores", offered.own_cpu / seconds),
            ("node_memory_max_mb", memory_max),
            ("metrics_page_max_ms", offered.page_ms),
            ("leader_changes", counted.terms),
        ]
    }

    fn add(&mut self, workload: &str, metric: &'static str, value: f64) {
        self.found.rows.push((workload.to_owned(), metric, value));
    }

    /// Offers so many operations a second for a while, and waits for the last answers.
    async fn offer(
        &self,
        writes: u64,
        rate: f64,
        peak: f64,
        duration: Duration,
    ) -> Result<Offered> {
        let tally = Tally::new(duration)?;
        let (before, own) = (self.processes.usage()?, own_cpu_seconds()?);
        let share = self.clients.len() as f64;
        let waiting_max = (peak * WAITING_SECONDS) as u64;
        let loops: Vec<_> = self
            .clients
            .iter()
            .enumerate()
            .map(|(n, kv)| {
                let arrivals = Arrivals {
                    kv: Arc::clone(kv),
                    tally: Arc::clone(&tally),
                    writes,
                    rate: rate / share,
                    waiting_max,
                    random: Random::from_seed(n as u64 + 1),
                };
                tokio::spawn(arrivals.run(duration))
            })
            .collect();
        let (memory, page_ms) = self.watch(&tally, duration).await?;
        for arrivals in loops {
            arrivals.await?;
        }
        let (after, own_after) = (self.processes.usage()?, own_cpu_seconds()?);
        // The answers of the last operations.
        let patience = Instant::now() + DEADLINE * 10;
        while tally.waiting.load(Ordering::Relaxed) > 0 {
            ensure!(
                Instant::now() < patience,
                "operations do not end at their deadline"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let cpu = |usage: Usage| usage.cpu_seconds;
        Ok(Offered {
            tally,
            servers_cpu: cpu(after) - cpu(before),
            own_cpu: own_after - own,
            memory,
            page_ms,
        })
    }

    /// The memory of each node over time, in MB, and the longest that a page of metrics took.
    async fn watch(&self, tally: &Tally, duration: Duration) -> Result<(Vec<Vec<f64>>, f64)> {
        let mut memory = vec![Vec::new(); self.processes.endpoints.len()];
        let mut page_ms = 0.0_f64;
        while tally.begun.elapsed() < duration {
            tokio::time::sleep(SAMPLE.min(duration)).await;
            for (place, values) in memory.iter_mut().enumerate() {
                values.push(self.processes.memory_bytes(place)? as f64 / 1e6);
            }
            let asked = Instant::now();
            self.metric("quorate_up").await?;
            page_ms = page_ms.max(asked.elapsed().as_secs_f64() * 1e3 / memory.len() as f64);
        }
        Ok((memory, page_ms))
    }

    async fn refused_by_servers(&self) -> Result<f64> {
        self.metric("quorate_failures_total{kind=\"Overloaded\"}")
            .await
    }

    async fn terms(&self) -> Result<f64> {
        self.metric("quorate_raft_term").await
    }

    /// The time that requests spent inside the servers, in seconds, and how many they were.
    async fn inside(&self) -> Result<(f64, f64)> {
        let seconds = self.metric("quorate_request_seconds_sum").await?;
        Ok((seconds, self.metric("quorate_request_seconds_count").await?))
    }

    /// The sum of a metric over its labels and all nodes.
    async fn metric(&self, name: &str) -> Result<f64> {
        let mut sum = 0.0;
        for endpoint in &self.processes.endpoints {
            let page = metrics_page(endpoint).await?;
            let lines = page.lines().filter(|line| line.starts_with(name));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            sum += values.sum::<f64>();
        }
        Ok(sum)
    }
}

/// Memory is looked at so often.
const SAMPLE: Duration = Duration::from_millis(500);

/// What came of one level.
struct Offered {
    tally: Arc<Tally>,
    servers_cpu: f64,
    own_cpu: f64,
    memory: Vec<Vec<f64>>,
    page_ms: f64,
}

async fn metrics_page(endpoint: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(endpoint).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    let read = stream.read_to_string(&mut page);
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    read.with_context(|| format!("{endpoint} gives no metrics within 10 s"))??;
    Ok(page)
}

/// Operations that arrive at one client.
struct Arrivals {
    kv: Arc<dyn Kv>,
    tally: Arc<Tally>,
    writes: u64,
    rate: f64,
    waiting_max: u64,
    random: Random,
}

impl Arrivals {
    async fn run(self, duration: Duration) {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut made = 0_u64;
        let lag = (self.rate * LAG.as_secs_f64()) as u64;
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let elapsed = now - self.tally.begun;
            if elapsed >= duration {
                return;
            }
            let due = ((self.rate * elapsed.as_secs_f64()) as u64).saturating_sub(made);
            let waiting = self.tally.waiting.load(Ordering::Relaxed);
            let begun = due.min(BURST).min(self.waiting_max.saturating_sub(waiting));
            let unsent = (due - begun).saturating_sub(lag);
            self.tally
                .window(now)
                .offered
                .fetch_add(begun + unsent, Ordering::Relaxed);
            self.tally.unsent.fetch_add(unsent, Ordering::Relaxed);
            self.tally.waiting.fetch_add(begun, Ordering::Relaxed);
            made += begun + unsent;
            for _ in 0..begun {
                let operation = one(&self.kv, &self.random, self.writes);
                let tally = Arc::clone(&self.tally);
                tokio::spawn(async move { tally.note(now, operation.await) });
            }
        }
    }
}

/// One operation, a write with `writes` in a hundred.
fn one(
    kv: &Arc<dyn Kv>,
    random: &Random,
    writes: u64,
) -> impl Future<Output = Result<(), quorate_kv::Error>> + Send + 'static {
    let key = Bytes::from(format!("k{:015}", random.below(KEYS)));
    let is_write = random.below(100) < writes;
    let fill = random.next_u64().to_le_bytes();
    let kv = Arc::clone(kv);
    async move {
        if is_write {
            let mut value = [0; VALUE_BYTES];
            value
                .chunks_mut(8)
                .for_each(|chunk| chunk.copy_from_slice(&fill[..chunk.len()]));
            let put = Put::new(key, Bytes::copy_from_slice(&value)).timeout(DEADLINE);
            kv.put(put).await.map(|_| ())
        } else {
            kv.get(Get::new(key).timeout(DEADLINE)).await.map(|_| ())
        }
    }
}

/// How many operations a closed loop does in this time.
async fn closed(clients: &[Arc<dyn Kv>], writes: u64, duration: Duration) -> Result<f64> {
    let end = Instant::now() + duration;
    let tasks: Vec<_> = (0..CLOSED)
        .map(|n| {
            let kv = Arc::clone(&clients[n % clients.len()]);
            let random = Random::from_seed(1000 + n as u64);
            tokio::spawn(async move {
                let mut done = 0_u64;
                while Instant::now() < end {
                    if one(&kv, &random, writes).await.is_ok() && Instant::now() < end {
                        done += 1;
                    }
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await?;
    }
    ensure!(done > 0, "the cluster does nothing");
    Ok(done as f64)
}

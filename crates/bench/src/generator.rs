//! The load: clients with one operation in flight each.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use quorate_env::Random;
use quorate_kv::{Batch, Get, Kv, Mutation, Put, ReadLevel};

/// What is asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Write a random key.
    Put,
    /// Read a random key, linearizable.
    Get,
    /// Read a random key from any replica, however old.
    StaleGet,
    /// Of ten operations nine linearizable reads and a write.
    Mix,
    /// Write [`BATCH`] random keys, all or none.
    Batch,
}

/// Keys of an [`Operation::Batch`].
pub const BATCH: usize = 16;

impl Operation {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::StaleGet => "stale-get",
            Operation::Mix => "get90-put10",
            Operation::Batch => "put-batch-of-16",
        }
    }
}

/// What is driven. The error text ends up in [`Measured::first_error`].
pub trait Target: Send + Sync + 'static {
    /// Writes a key.
    fn put(
        &self,
        client: usize,
        key: Bytes,
        value: Bytes,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Reads a key, linearizable.
    fn get(&self, client: usize, key: Bytes) -> impl Future<Output = Result<(), String>> + Send;

    /// Reads a key from any replica.
    fn stale_get(
        &self,
        client: usize,
        key: Bytes,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Writes keys, all or none.
    fn put_all(
        &self,
        client: usize,
        pairs: Vec<(Bytes, Bytes)>,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

impl Target for Arc<dyn Kv> {
    async fn put(&self, _client: usize, key: Bytes, value: Bytes) -> Result<(), String> {
        Kv::put(&**self, Put::new(key, value))
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    async fn get(&self, _client: usize, key: Bytes) -> Result<(), String> {
        Kv::get(&**self, Get::new(key))
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    async fn stale_get(&self, _client: usize, key: Bytes) -> Result<(), String> {
        let get = Get::new(key).level(ReadLevel::Stale);
        Kv::get(&**self, get)
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    async fn put_all(&self, _client: usize, pairs: Vec<(Bytes, Bytes)>) -> Result<(), String> {
        let puts = pairs
            .into_iter()
            .map(|(key, value)| Mutation::put(key, value));
        Kv::batch(&**self, Batch::new(puts.collect()))
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    }
}

/// A load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// What each client does.
    pub operation: Operation,
    /// How many clients.
    pub clients: usize,
    /// For how long, after the warm-up.
    pub duration: Duration,
    /// What is not measured before.
    pub warmup: Duration,
    /// How many distinct keys, of 16 bytes.
    pub keys: u64,
    /// The size of a value.
    pub value_bytes: usize,
    /// The seed of keys and values.
    pub seed: u64,
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Operations that succeeded in the measured time.
    pub operations: u64,
    /// Operations that failed in it.
    pub failures: u64,
    /// The first failure.
    pub first_error: Option<String>,
    /// The measured time.
    pub seconds: f64,
    /// Latencies in microseconds: P50, P99, P99.9.
    pub p50_micros: u64,
    /// See `p50_micros`.
    pub p99_micros: u64,
    /// See `p50_micros`.
    pub p999_micros: u64,
}

impl Measured {
    /// Operations a second.
    pub fn throughput(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }
}

/// The key of this number: 16 bytes.
fn key(number: u64) -> Bytes {
    Bytes::from(format!("k{number:015}"))
}

struct Client {
    latencies: Histogram<u64>,
    failures: u64,
    first_error: Option<String>,
}

/// Runs a workload to its end.
pub async fn run<T: Target>(target: Arc<T>, workload: &Workload) -> Measured {
    let begin = Instant::now() + workload.warmup;
    let end = begin + workload.duration;
    let tasks: Vec<_> = (0..workload.clients)
        .map(|client| {
            let (target, workload) = (Arc::clone(&target), workload.clone());
            tokio::spawn(async move { run_client(&*target, client, &workload, begin, end).await })
        })
        .collect();
    let mut all = new_histogram();
    let mut measured = Measured {
        seconds: workload.duration.as_secs_f64(),
        ..Measured::default()
    };
    for task in tasks {
        let Ok(client) = task.await else {
            measured.failures += 1;
            continue;
        };
        // Histograms of one shape add up.
        let _ = all.add(&client.latencies);
        measured.failures += client.failures;
        measured.first_error = measured.first_error.or(client.first_error);
    }
    measured.operations = all.len();
    measured.p50_micros = all.value_at_quantile(0.5);
    measured.p99_micros = all.value_at_quantile(0.99);
    measured.p999_micros = all.value_at_quantile(0.999);
    measured
}

fn new_histogram() -> Histogram<u64> {
    // From a microsecond to a minute, three digits.
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap_or_else(|_| unreachable!("sound bounds"))
}

async fn run_client<T: Target>(
    target: &T,
    client: usize,
    workload: &Workload,
    begin: Instant,
    end: Instant,
) -> Client {
    let random = Random::from_seed(workload.seed.wrapping_add(client as u64 * 7919));
    let mut state = Client {
        latencies: new_histogram(),
        failures: 0,
        first_error: None,
    };
    let mut value = vec![0; workload.value_bytes];
    loop {
        let started = Instant::now();
        if started >= end {
            return state;
        }
        let mut pair = || {
            value.chunks_mut(8).for_each(|chunk| {
                let bytes = random.next_u64().to_le_bytes();
                chunk.copy_from_slice(&bytes[..chunk.len()]);
            });
            let key = key(random.below(workload.keys));
            (key, Bytes::copy_from_slice(&value))
        };
        let operation = match workload.operation {
            Operation::Mix if random.below(10) == 0 => Operation::Put,
            Operation::Mix => Operation::Get,
            other => other,
        };
        let outcome = match operation {
            Operation::Batch => {
                let pairs = (0..BATCH).map(|_| pair()).collect();
                target.put_all(client, pairs).await
            }
            Operation::Put => {
                let (key, value) = pair();
                target.put(client, key, value).await
            }
            Operation::StaleGet => {
                let key = key(random.below(workload.keys));
                target.stale_get(client, key).await
            }
            Operation::Get | Operation::Mix => {
                let key = key(random.below(workload.keys));
                target.get(client, key).await
            }
        };
        let now = Instant::now();
        if now < begin || now > end {
            continue;
        }
        match outcome {
            Ok(()) => {
                let micros = (now - started).as_micros() as u64;
                state.latencies.saturating_record(micros.max(1));
            }
            Err(error) => {
                state.failures += 1;
                state.first_error.get_or_insert(error);
                // A target that fails at once must not be hammered.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

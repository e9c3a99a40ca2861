//! [`Probes`]: writes at a steady rate, whatever becomes of them: how long nobody could write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_client::NamespaceKv;
use quorate_kv::{Kv, Put};
use tokio::task::JoinHandle;

/// Keys written, so many that each shard has some.
const KEYS: usize = 16;
/// Between two writes of a key.
const EVERY: Duration = Duration::from_millis(20);

/// Tasks that write one key each, open loop.
pub struct Probes {
    /// When each key's writes were acknowledged, in no order.
    acknowledged: Vec<Arc<Mutex<Vec<Instant>>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Probes {
    /// Starts them.
    pub fn start(kv: &NamespaceKv) -> Probes {
        let acknowledged: Vec<Arc<Mutex<Vec<Instant>>>> =
            (0..KEYS).map(|_| Arc::default()).collect();
        let tasks = acknowledged.iter().enumerate();
        let tasks = tasks.map(|(n, times)| tokio::spawn(probe(kv.clone(), n, times.clone())));
        Probes {
            tasks: tasks.collect(),
            acknowledged,
        }
    }

    /// The longest time between two moments in which no write of some key was acknowledged.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let gap = |times: &Arc<Mutex<Vec<Instant>>>| {
            let mut times = times.lock();
            times.retain(|time| *time >= from);
            times.sort_unstable();
            let within = times.iter().copied().filter(|time| *time < to);
            let mut before = from;
            let mut longest = Duration::ZERO;
            for time in within.chain([to]) {
                longest = longest.max(time - before);
                before = time;
            }
            longest
        };
        self.acknowledged.iter().map(gap).max().unwrap_or_default()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn probe(kv: NamespaceKv, n: usize, acknowledged: Arc<Mutex<Vec<Instant>>>) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        let (kv, acknowledged) = (kv.clone(), acknowledged.clone());
        tokio::spawn(async move {
            let put = Put::new(format!("probe-{n}"), "value");
            if kv.put(put).await.is_ok() {
                acknowledged.lock().push(Instant::now());
            }
        });
    }
}

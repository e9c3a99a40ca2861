//! What a leader's death costs clients: from the fault to the first write that was begun after it and is
//! acknowledged, under an open loop of writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_bench::Target;
use tokio::time::{Instant, MissedTickBehavior};

use crate::processes::Processes;

/// What is done to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; the process is started again afterwards.
    Kill,
    /// SIGSTOP, and SIGCONT once writes are acknowledged again.
    Freeze,
}

impl Fault {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Freeze => "freeze",
        }
    }
}

/// Writes a second.
pub const RATE: u64 = 1000;
/// So many writes at most wait for an answer: the loop is open, memory is not without end.
const WAITING: u64 = 50_000;
/// How long a cluster may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long a cluster works between two faults.
const CALM: Duration = Duration::from_millis(1500);

/// Finds the leader: its place among the processes.
pub trait Leader {
    /// `None` while nobody leads, or not all nodes answer.
    fn leader(&self) -> impl Future<Output = Option<usize>> + Send;
}

/// Writes at a fixed rate, whatever is answered.
struct Load {
    stop: Arc<AtomicBool>,
    /// When the newest acknowledged write was begun, and when it was acknowledged.
    acknowledged: Arc<Mutex<Vec<(Instant, Instant)>>>,
}

impl Load {
    fn start<T: Target>(target: Arc<T>) -> Load {
        let load = Load {
            stop: Arc::default(),
            acknowledged: Arc::default(),
        };
        let (stop, acknowledged) = (Arc::clone(&load.stop), Arc::clone(&load.acknowledged));
        tokio::spawn(async move {
            let waiting = Arc::new(AtomicU64::new(0));
            let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for n in 0.. {
                ticks.tick().await;
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
                    waiting.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (target, waiting) = (Arc::clone(&target), Arc::clone(&waiting));
                let acknowledged = Arc::clone(&acknowledged);
                tokio::spawn(async move {
                    let begun = Instant::now();
                    let key = Bytes::from(format!("k{:015}", n % 100_000));
                    let put = target.put(n, key, Bytes::from_static(&[7; 100])).await;
                    if put.is_ok() {
                        acknowledged.lock().push((begun, Instant::now()));
                    }
                    waiting.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        load
    }

    /// When the first write was acknowledged that was begun after this moment.
    async fn first_after(&self, moment: Instant) -> Result<Instant> {
        self.acknowledged.lock().clear();
        loop {
            let found = {
                let all = self.acknowledged.lock();
                let after = all.iter().filter(|(begun, _)| *begun > moment);
                after.map(|(_, ended)| *ended).min()
            };
            if let Some(ended) = found {
                return Ok(ended);
            }
            ensure!(moment.elapsed() < PATIENCE, "no write is acknowledged");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The gaps of so many faults, in milliseconds.
pub async fn gaps<T: Target + Leader>(
    processes: &mut Processes,
    target: &Arc<T>,
    fault: Fault,
    count: usize,
) -> Result<Vec<f64>> {
    let load = Load::start(Arc::clone(target));
    let mut gaps = Vec::with_capacity(count);
    for _ in 0..count {
        settled(target.as_ref()).await?;
        load.first_after(Instant::now()).await?;
        let leader = target.leader().await.context("nobody leads")?;
        let begun = Instant::now();
        match fault {
            Fault::Kill => processes.kill(leader)?,
            Fault::Freeze => processes.freeze(leader)?,
        }
        let ended = load.first_after(begun).await?;
        gaps.push((ended - begun).as_secs_f64() * 1e3);
        match fault {
            Fault::Kill => processes.start_again(leader)?,
            Fault::Freeze => processes.thaw(leader)?,
        }
    }
    Ok(gaps)
}

/// Waits until a leader is known to all nodes, and has been for a while.
async fn settled<L: Leader>(target: &L) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut since: Option<(usize, Instant)> = None;
    loop {
        since = match (target.leader().await, since) {
            (Some(now), Some((before, at))) if now == before => Some((before, at)),
            (Some(now), _) => Some((now, Instant::now())),
            (None, _) => None,
        };
        if since.is_some_and(|(_, at)| at.elapsed() >= CALM) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the cluster does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

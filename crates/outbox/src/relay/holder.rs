//! Holds leases and starts and stops the workers of parts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::Shared;
use super::worker::{self, Worker};
use crate::store::{Claim, Fence, Held};

/// A worker as its holder sees it.
struct Hand {
    fence: Fence,
    stop: watch::Sender<bool>,
    /// Until when the lease surely holds, by this process's monotonic clock.
    until: Arc<Mutex<Instant>>,
    task: JoinHandle<()>,
}

/// The parts that are held, and the workers that are still finishing what they gave up.
#[derive(Default)]
struct Hands {
    held: HashMap<u16, Hand>,
    leaving: JoinSet<()>,
}

/// Runs until told to stop; then drains.
pub(super) async fn run(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut hands = Hands::default();
    let beat = shared.options.lease / 3;
    let mut upkeep = Instant::now();
    let mut next_beat = Instant::now();
    while !*stopped.borrow() {
        let now = Instant::now();
        if now >= next_beat {
            next_beat = now + beat;
            heartbeat(&shared, &mut hands).await;
        }
        if now >= upkeep {
            upkeep = now + shared.options.upkeep;
            look_after(&shared).await;
        }
        let wait = next_beat
            .min(upkeep)
            .saturating_duration_since(Instant::now());
        tokio::select! {
            _ = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
            _ = shared.ended.notified() => {
                next_beat = next_beat.min(Instant::now() + shared.options.retry_min);
            }
            changed = stopped.changed() => if changed.is_err() { break },
        }
    }
    let all: Vec<u16> = hands.held.keys().copied().collect();
    hands.let_go(&shared, &all, true);
    while hands.leaving.join_next().await.is_some() {}
    if let Err(error) = shared.store.leave(&shared.options.owner).await {
        tracing::debug!(%error, "the relay counts as a member until its lease ends");
    }
}

/// One heartbeat. The lease is counted from before the question was asked.
async fn heartbeat(shared: &Arc<Shared>, hands: &mut Hands) {
    while hands.leaving.try_join_next().is_some() {}
    // A worker that ended by itself was fenced, or could not go on.
    let held = hands.held.iter();
    let ended = held.filter(|(_, hand)| hand.task.is_finished());
    let ended: Vec<u16> = ended.map(|(part, _)| *part).collect();
    hands.let_go(shared, &ended, true);
    let held: Vec<Fence> = hands.held.values().map(|hand| hand.fence).collect();
    let asked = Instant::now();
    let lease = shared.options.lease;
    let answer = shared.store.hold(&shared.options.owner, &held, lease);
    let answer: Held = match answer.await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(%error, "the relay's leases were not renewed");
            *shared.counts.failure.lock() = Some(error.to_string());
            return;
        }
    };
    let parts = hands.held.keys().copied();
    let lost: Vec<u16> = parts.filter(|part| !answer.kept.contains(part)).collect();
    let fenced = &shared.counts.fenced;
    fenced.fetch_add(lost.len() as u64, std::sync::atomic::Ordering::Relaxed);
    hands.let_go(shared, &lost, false);
    for hand in hands.held.values() {
        *hand.until.lock() = asked + lease;
    }
    let surplus = hands.held.keys().copied().take(answer.surplus);
    let surplus: Vec<u16> = surplus.collect();
    hands.let_go(shared, &surplus, true);
    for claim in answer.claimed {
        let part = claim.fence.part;
        hands.held.insert(part, start(shared, claim, asked + lease));
    }
    let mut parts: Vec<u16> = hands.held.keys().copied().collect();
    parts.sort_unstable();
    *shared.counts.parts.lock() = parts;
}

fn start(shared: &Arc<Shared>, claim: Claim, until: Instant) -> Hand {
    let (stop, stopped) = watch::channel(false);
    let until = Arc::new(Mutex::new(until));
    let fence = claim.fence;
    tracing::debug!(part = fence.part, epoch = fence.epoch, "holds a part");
    let worker = Worker::new(Arc::clone(shared), claim, Arc::clone(&until), stopped);
    let ended = Ended(Arc::clone(shared));
    let task = tokio::spawn(async move {
        let _ended = ended;
        worker::run(worker).await;
    });
    Hand {
        fence,
        stop,
        until,
        task,
    }
}

/// Tells the holder that a worker has ended, by itself or by a panic.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.notify_one();
    }
}

impl Hands {
    /// Stops the workers of these parts; each finishes what it is at, and only then its part is given
    /// back. Nobody waits for that: a broker that does not answer must not cost the other parts' leases.
    fn let_go(&mut self, shared: &Arc<Shared>, parts: &[u16], release: bool) {
        for hand in parts.iter().filter_map(|part| self.held.remove(part)) {
            let _ = hand.stop.send(true);
            let shared = Arc::clone(shared);
            self.leaving.spawn(async move {
                let _ = hand.task.await;
                if release && let Err(error) = shared.store.release(&[hand.fence]).await {
                    tracing::warn!(%error, "a part was not given back; its lease ends by itself");
                }
            });
        }
    }
}

/// Lag, alarm, space.
async fn look_after(shared: &Arc<Shared>) {
    match shared.store.lag().await {
        Ok(lag) => {
            shared.counts.set_lag(lag);
            let alarm = lag.alarm(&shared.options.threshold);
            if let Some(text) = &alarm {
                tracing::warn!(source = shared.store.source(), "outbox: {text}");
            }
            *shared.counts.alarm.lock() = alarm;
        }
        Err(error) => *shared.counts.failure.lock() = Some(error.to_string()),
    }
    let parts = shared.counts.parts.lock().clone();
    if shared.options.trim
        && let Err(error) = shared.store.trim(&parts).await
    {
        tracing::warn!(%error, "published rows could not be removed; tried again later");
    }
}

//! Holds leases and starts and stops the workers of parts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

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

/// Runs until told to stop; then drains.
pub(super) async fn run(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut hands: HashMap<u16, Hand> = HashMap::new();
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
            changed = stopped.changed() => if changed.is_err() { break },
        }
    }
    let all: Vec<u16> = hands.keys().copied().collect();
    give_back(&shared, &mut hands, &all).await;
}

/// One heartbeat. The lease is counted from before the question was asked.
async fn heartbeat(shared: &Arc<Shared>, hands: &mut HashMap<u16, Hand>) {
    // A worker that ended by itself was fenced, or could not go on.
    let ended: Vec<u16> = hands
        .iter()
        .filter(|(_, hand)| hand.task.is_finished())
        .map(|(part, _)| *part)
        .collect();
    give_back(shared, hands, &ended).await;
    let held: Vec<Fence> = hands.values().map(|hand| hand.fence).collect();
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
    let lost: Vec<u16> = hands
        .keys()
        .filter(|part| !answer.kept.contains(part))
        .copied()
        .collect();
    for part in lost {
        shared
            .counts
            .fenced
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        stop_hand(hands, part).await;
    }
    for hand in hands.values() {
        *hand.until.lock() = asked + lease;
    }
    let surplus: Vec<u16> = hands.keys().copied().take(answer.surplus).collect();
    give_back(shared, hands, &surplus).await;
    for claim in answer.claimed {
        let part = claim.fence.part;
        hands.insert(part, start(shared, claim, asked + lease));
    }
    let mut parts: Vec<u16> = hands.keys().copied().collect();
    parts.sort_unstable();
    *shared.counts.parts.lock() = parts;
}

fn start(shared: &Arc<Shared>, claim: Claim, until: Instant) -> Hand {
    let (stop, stopped) = watch::channel(false);
    let until = Arc::new(Mutex::new(until));
    let fence = claim.fence;
    tracing::debug!(part = fence.part, epoch = fence.epoch, "holds a part");
    let worker = Worker::new(Arc::clone(shared), claim, Arc::clone(&until), stopped);
    Hand {
        fence,
        stop,
        until,
        task: tokio::spawn(worker::run(worker)),
    }
}

async fn stop_hand(hands: &mut HashMap<u16, Hand>, part: u16) {
    if let Some(hand) = hands.remove(&part) {
        let _ = hand.stop.send(true);
        let _ = hand.task.await;
    }
}

/// Stops the workers of these parts, then gives the parts back.
async fn give_back(shared: &Arc<Shared>, hands: &mut HashMap<u16, Hand>, parts: &[u16]) {
    let fences: Vec<Fence> = parts
        .iter()
        .filter_map(|part| hands.get(part))
        .map(|hand| hand.fence)
        .collect();
    for part in parts {
        if let Some(hand) = hands.get(part) {
            let _ = hand.stop.send(true);
        }
    }
    for part in parts {
        stop_hand(hands, *part).await;
    }
    if !fences.is_empty()
        && let Err(error) = shared.store.release(&fences).await
    {
        tracing::warn!(%error, "parts could not be given back; their leases end by themselves");
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
    if shared.options.trim
        && let Err(error) = shared.store.trim().await
    {
        tracing::warn!(%error, "published rows could not be removed; tried again later");
    }
}

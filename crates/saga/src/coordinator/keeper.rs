//! The keeper: the lease, sagas whose time has come, what is forgotten, how many are open.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Shared, Work};
use crate::journal::Share;
use crate::{ErrorKind, Result};

/// At most so many sagas whose time has come at once.
const DUE: usize = 1000;
/// At most so many sagas are forgotten at once.
const FORGET: usize = 1000;
/// Between two looks at how many sagas are open.
const COUNT: Duration = Duration::from_secs(1);
/// Between two looks at what may be forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(10);

pub(super) async fn run(shared: Arc<Shared>, queues: Arc<[mpsc::Sender<Work>]>) {
    let mut stopped = shared.stopped.clone();
    let mut keeper = Keeper {
        shared,
        queues,
        share: None,
        beat: None,
        counted: None,
        forgotten: Instant::now(),
    };
    loop {
        let wait = keeper.look().await;
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => return,
            _ = keeper.shared.look.notified() => {}
            _ = tokio::time::sleep(wait) => {}
        }
    }
}

struct Keeper {
    shared: Arc<Shared>,
    queues: Arc<[mpsc::Sender<Work>]>,
    share: Option<Share>,
    beat: Option<Instant>,
    counted: Option<Instant>,
    forgotten: Instant,
}

impl Keeper {
    /// One look at everything; answers how long to wait for the next.
    async fn look(&mut self) -> Duration {
        let options = self.shared.options.clone();
        let lease = options.lease / 3;
        if self.beat.is_none_or(|beat| beat.elapsed() >= lease) {
            match self.renew().await {
                Ok(()) => self.beat = Some(Instant::now()),
                Err(error) => {
                    self.shared.failed(Some(&error));
                    return options.retry_min.min(lease);
                }
            }
        }
        if self
            .counted
            .is_none_or(|counted| counted.elapsed() >= COUNT)
        {
            self.counted = Some(Instant::now());
            if let Ok(open) = self.shared.journal.open().await {
                *self.shared.counts.open.lock() = open;
            }
        }
        self.forget().await;
        let most = options.tick.min(lease);
        match self.wake_due().await {
            Ok(wait) => wait.min(most),
            Err(error) => {
                self.shared.failed(Some(&error));
                options.retry_min.min(most)
            }
        }
    }

    async fn renew(&mut self) -> Result<()> {
        let fence = self.shared.fence();
        let lease = self.shared.options.lease;
        let share = match self.shared.journal.beat(&fence, lease).await {
            Err(error) if error.kind() == ErrorKind::Fenced => {
                self.shared.rejoin(&fence).await?;
                self.shared
                    .journal
                    .beat(&self.shared.fence(), lease)
                    .await?
            }
            other => other?,
        };
        self.share = Some(share);
        *self.shared.counts.share.lock() = self.share;
        Ok(())
    }

    async fn forget(&mut self) {
        let Some(remember) = self.shared.options.remember else {
            return;
        };
        if self.forgotten.elapsed() < FORGET_EVERY {
            return;
        }
        let before = self.shared.now_ms() - crate::definition::millis(remember);
        match self.shared.journal.forget(before, FORGET).await {
            // There may be more.
            Ok(gone) if gone == FORGET as u64 => {}
            Ok(_) => self.forgotten = Instant::now(),
            Err(error) => {
                self.forgotten = Instant::now();
                tracing::debug!(%error, "old sagas are forgotten later");
            }
        }
    }

    /// Gives sagas whose time has come to their workers, and waits until they are dealt with.
    async fn wake_due(&mut self) -> Result<Duration> {
        let Some(share) = self.share else {
            return Ok(Duration::ZERO);
        };
        let tick = self.shared.options.tick;
        // Times that are written from here on are compared with this.
        let now_ms = self.shared.now_ms();
        let until = now_ms + crate::definition::millis(tick);
        self.shared.next_look_ms.store(until, Ordering::SeqCst);
        let known = self.shared.planner.registry().known();
        let journal = &self.shared.journal;
        let mut due = journal.due(share, &known, now_ms, DUE).await?;
        if due.ids.is_empty() && share.of > 1 {
            // What nobody has looked at: whose share it is may not know its definition.
            let everything = Share { rank: 0, of: 1 };
            let late = now_ms - 2 * crate::definition::millis(tick);
            due.ids = journal.due(everything, &known, late, DUE).await?.ids;
        }
        if due.ids.is_empty() {
            let next = due.next_ms.unwrap_or(until).clamp(now_ms, until);
            self.shared.next_look_ms.fetch_min(next, Ordering::SeqCst);
            return Ok(Duration::from_millis((next - now_ms).max(1) as u64));
        }
        let count = self.queues.len();
        let mut by_worker: Vec<Vec<Uuid>> = vec![Vec::new(); count];
        for id in due.ids {
            by_worker[(id.as_u128() >> 64) as usize % count].push(id);
        }
        let mut waiting = Vec::new();
        for (queue, ids) in self.queues.iter().zip(by_worker) {
            if !ids.is_empty() {
                let (tell, told) = oneshot::channel();
                if queue.send(Work::Due(ids, tell)).await.is_ok() {
                    waiting.push(told);
                }
            }
        }
        for told in waiting {
            let _ = told.await;
        }
        Ok(Duration::from_millis(1))
    }
}

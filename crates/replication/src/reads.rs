//! One question for many askers: whoever joins while a round is under way is answered by the next
//! round, which begins after they joined. That is what makes a batched ReadIndex linearizable.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_env::switch;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::{Error, Result};

type Waiter = oneshot::Sender<Result<u64>>;

#[derive(Default)]
pub(crate) struct Rounds {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: bool,
    waiting: Vec<Waiter>,
}

impl Rounds {
    /// Joins the next round. `round` asks once; it is run by a task as long as anybody waits.
    pub async fn join<F, R>(self: &Arc<Self>, runtime: &Handle, round: F) -> Result<u64>
    where
        F: Fn() -> R + Send + 'static,
        R: Future<Output = Result<u64>> + Send,
    {
        let (tx, rx) = oneshot::channel();
        let start = {
            let mut state = self.state.lock();
            state.waiting.push(tx);
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let rounds = Arc::clone(self);
            runtime.spawn(async move {
                let running = Running(&rounds);
                while let Some(waiters) = running.0.next() {
                    let answer = round().await;
                    let waiters = running.0.with_latecomers(waiters);
                    for waiter in waiters {
                        let _ = waiter.send(answer.clone());
                    }
                }
                std::mem::forget(running);
            });
        }
        rx.await
            .unwrap_or_else(|_| Err(Error::Stopped("the node is stopping".into())))
    }

    /// With those who came while the round was under way, if a simulation plants that bug.
    fn with_latecomers(&self, mut waiters: Vec<Waiter>) -> Vec<Waiter> {
        if switch::bug("late_reads_join_a_round") {
            waiters.append(&mut self.state.lock().waiting);
        }
        waiters
    }

    fn next(&self) -> Option<Vec<Waiter>> {
        let mut state = self.state.lock();
        state.waiting.retain(|waiter| !waiter.is_closed());
        if state.waiting.is_empty() {
            state.running = false;
            return None;
        }
        Some(std::mem::take(&mut state.waiting))
    }
}

/// Lets the next one start a task if this one is dropped half way. One that ends forgets it.
struct Running<'a>(&'a Rounds);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.waiting.clear();
        state.running = false;
    }
}

//! The requests that wait for their connection.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use quorate_kv::{Error, ErrorKind};
use quorate_sharding::Request;
use tokio::time::Instant;

use crate::Reply;

/// Most requests in a frame.
const FRAME_REQUESTS_MAX: usize = 512;
/// A frame with so many bytes of keys and values takes no more requests.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// With so many requests those that nobody waits for any more are looked for the first time.
const SWEEP_MIN: usize = 1024;

/// A request and where its response goes.
pub struct Item {
    /// The request.
    pub request: Request,
    /// Where its response goes.
    pub reply: Reply,
    /// When it was queued.
    since: Instant,
}

impl Item {
    /// An item that is about to be queued.
    pub fn new(request: Request, reply: Reply) -> Item {
        Item {
            request,
            reply,
            since: Instant::now(),
        }
    }

    /// Takes the time that it waited off the time that it has. Gives it back if that is not over and somebody waits.
    fn in_time(mut self, now: Instant) -> Option<Item> {
        if self.reply.is_closed() {
            return None;
        }
        let left = self.request.timeout.checked_sub(now - self.since);
        match left.filter(|left| !left.is_zero()) {
            Some(left) => {
                self.request.timeout = left;
                Some(self)
            }
            None => {
                let message = "no time was left to send it";
                let error = Error::new(ErrorKind::DeadlineExceeded, message);
                let _ = self.reply.send(Err(error.into()));
                None
            }
        }
    }
}

/// A queue of one consumer, which takes all there is at once. What is in it was surely not sent.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// With so many items the next look for forgotten ones.
    sweep_at: usize,
    waker: Option<Waker>,
    closed: bool,
    /// Until then nothing is taken in, because the node cannot be reached, and why.
    down: Option<(Instant, String)>,
}

impl Queue {
    /// Puts a request in, or answers it at once if the node cannot be reached at the moment.
    pub fn push(&self, item: Item) {
        let mut state = self.state.lock();
        if let Some((until, why)) = &state.down {
            if Instant::now() < *until {
                let error = unreachable(why);
                drop(state);
                let _ = item.reply.send(Err(error.into()));
                return;
            }
            state.down = None;
        }
        if state.items.len() >= state.sweep_at.max(SWEEP_MIN) {
            state.items.retain(|item| !item.reply.is_closed());
            state.sweep_at = state.items.len() * 2;
        }
        state.items.push_back(item);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes what one frame holds; waits while there is nothing. What nobody waits for, or whose time is over, is
    /// left out. `None`: closed.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Vec<Item>>> {
        loop {
            let Some(items) = ready!(self.poll_first(cx)) else {
                return Poll::Ready(None);
            };
            let now = Instant::now();
            let items: Vec<Item> = items
                .into_iter()
                .filter_map(|item| item.in_time(now))
                .collect();
            if !items.is_empty() {
                return Poll::Ready(Some(items));
            }
        }
    }

    /// The first requests, as many as a frame holds.
    fn poll_first(&self, cx: &mut Context<'_>) -> Poll<Option<Vec<Item>>> {
        let mut state = self.state.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        if state.items.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut bytes = 0;
        let mut fits = |item: &Item| {
            let full = bytes >= FRAME_BYTES_MAX;
            bytes += item.request.operation.size_bytes();
            !full
        };
        let n = state
            .items
            .iter()
            .take(FRAME_REQUESTS_MAX)
            .map_while(|item| fits(item).then_some(()))
            .count();
        Poll::Ready(Some(state.items.drain(..n).collect()))
    }

    /// Waits until there is a request; false: closed.
    pub async fn wait(&self) -> bool {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.closed || !state.items.is_empty() {
                return Poll::Ready(!state.closed);
            }
            state.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Answers all that wait, and until `until` all that come, that the node cannot be reached.
    pub fn fail_until(&self, until: Instant, why: String) {
        let items = {
            let mut state = self.state.lock();
            state.down = Some((until, why.clone()));
            std::mem::take(&mut state.items)
        };
        for item in items {
            let _ = item.reply.send(Err(unreachable(&why).into()));
        }
    }

    /// Ends the queue: its consumer stops.
    pub fn close(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.closed = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn unreachable(why: &str) -> Error {
    Error::new(ErrorKind::Unavailable, why)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use bytes::Bytes;
    use quorate_kv::Outcome;
    use quorate_sharding::{Operation, ShardEpoch, WriteId};
    use tokio::sync::oneshot;

    use super::*;

    fn item(timeout_ms: u64) -> (Item, oneshot::Receiver<quorate_sharding::Response>) {
        let (reply, response) = oneshot::channel();
        let request = Request {
            request_id: 0,
            namespace: 1,
            shard: 2,
            epoch: ShardEpoch::default(),
            write_id: WriteId::default(),
            timeout: Duration::from_millis(timeout_ms),
            trace: None,
            operation: Operation::Get {
                key: Bytes::from_static(b"k"),
                level: quorate_kv::ReadLevel::Stale,
            },
        };
        (Item::new(request, reply), response)
    }

    #[tokio::test(start_paused = true)]
    async fn queue_takes_the_wait_off_the_time_and_sends_nothing_late() {
        let queue = Queue::default();
        let (short, late) = item(50);
        let (long, _waits) = item(200);
        queue.push(short);
        queue.push(long);
        tokio::time::advance(Duration::from_millis(60)).await;
        let taken = poll_fn(|cx| queue.poll_take(cx)).await.expect("open");
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].request.timeout, Duration::from_millis(140));
        let error = late.await.expect("answered").expect_err("late").error;
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(error.outcome(), Outcome::NotApplied);
    }

    #[tokio::test(start_paused = true)]
    async fn queue_forgets_what_nobody_waits_for() {
        let queue = Queue::default();
        for _ in 0..100_000 {
            let (forgotten, response) = item(5000);
            queue.push(forgotten);
            drop(response);
        }
        let kept = queue.state.lock().items.len();
        assert!(kept <= 2 * SWEEP_MIN, "{kept} are kept");
        let (wanted, _response) = item(5000);
        queue.push(wanted);
        let mut taken = 0;
        while taken == 0 {
            taken += poll_fn(|cx| queue.poll_take(cx)).await.expect("open").len();
        }
        assert_eq!(taken, 1);
    }
}

//! The requests that wait for their connection.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use quorate_kv::{Error, ErrorKind};
use quorate_sharding::Request;
use tokio::time::Instant;

use crate::Reply;

/// Most requests in a frame.
const FRAME_REQUESTS_MAX: usize = 512;
/// A frame with so many bytes of keys and values takes no more requests.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// A request and where its response goes.
pub struct Item {
    /// The request.
    pub request: Request,
    /// Where its response goes.
    pub reply: Reply,
}

/// A queue of one consumer, which takes all there is at once. What is in it was surely not sent.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    items: Vec<Item>,
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
        state.items.push(item);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes what one frame holds; waits while there is nothing. `None`: closed.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Vec<Item>>> {
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
        let rest = state.items.split_off(n);
        Poll::Ready(Some(std::mem::replace(&mut state.items, rest)))
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

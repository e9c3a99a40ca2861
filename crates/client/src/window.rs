//! [`Window`]: how much a client has in flight to one node.
//!
//! It is wide open as long as the node takes what comes. Refusals narrow it by a share, at most once in
//! [`PAUSE`]; answers widen it again little by little: the additive increase and multiplicative decrease of TCP
//! (Chiu and Jain, 1989); after a calm it opens faster. So under overload most of what is too much is refused where it comes from, where that
//! costs next to nothing, and the node sees little more than it can do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// It does not get narrower.
const OPERATIONS_MIN: usize = 64;
/// A node that answers nothing for so long is silent.
pub const SILENCE: Duration = Duration::from_millis(100);
/// Refusals within so long are one.
const PAUSE: Duration = Duration::from_millis(100);
/// Without a refusal for so long a window that is full is twice as wide: what it was made for may be over.
const CALM: Duration = Duration::from_millis(500);
/// So many answers widen it by one operation.
const ANSWERS: usize = 8;
/// The memory of an operation in flight beside its keys and values.
const OPERATION_BYTES: usize = 512;

/// What is in flight to one node, and the most of it.
#[derive(Debug)]
pub struct Window {
    operations: AtomicUsize,
    bytes: AtomicUsize,
    /// Operations that are let through, times [`ANSWERS`].
    size: AtomicUsize,
    operations_max: usize,
    bytes_max: usize,
    /// When it was made narrower or twice as wide.
    changed: Mutex<Option<Instant>>,
    made: Instant,
    /// When the node last answered anything, in milliseconds since `made`.
    heard_ms: AtomicU64,
}

impl Window {
    /// A window that is wide open.
    pub fn new(operations_max: usize, bytes_max: usize) -> Arc<Window> {
        let operations_max = operations_max.max(1);
        Arc::new(Window {
            operations: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            size: AtomicUsize::new(operations_max.saturating_mul(ANSWERS)),
            operations_max,
            bytes_max,
            changed: Mutex::default(),
            made: Instant::now(),
            heard_ms: AtomicU64::new(0),
        })
    }

    /// Lets an operation through, if there is room; one that is alone always.
    pub fn enter(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let bytes = bytes + OPERATION_BYTES;
        let before = self.operations.fetch_add(1, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = Permit {
            window: Arc::clone(self),
            bytes,
        };
        let room = (before < self.size() || self.widen()) && bytes_before + bytes <= self.bytes_max;
        (room || before == 0).then_some(permit)
    }

    /// Makes it twice as wide if it is narrow and nothing was refused for a while.
    fn widen(&self) -> bool {
        let (size, most) = (
            self.size.load(Ordering::Relaxed),
            self.operations_max * ANSWERS,
        );
        if size >= most {
            return false;
        }
        let now = Instant::now();
        let mut changed = self.changed.lock();
        if changed.is_some_and(|at| at + CALM > now) {
            return false;
        }
        *changed = Some(now);
        self.size.store((size * 2).min(most), Ordering::Relaxed);
        true
    }

    /// Operations that are let through at a time.
    pub fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed) / ANSWERS
    }

    /// Whether the node has not answered anything for a while.
    pub fn is_silent(&self) -> bool {
        let heard = Duration::from_millis(self.heard_ms.load(Ordering::Relaxed));
        self.made.elapsed() >= heard + SILENCE
    }

    /// The node answered, whatever it said.
    pub fn heard(&self) {
        let now_ms = self.made.elapsed().as_millis() as u64;
        // Read first: most answers come within the same millisecond, and a write would take the line from others.
        if self.heard_ms.load(Ordering::Relaxed) != now_ms {
            self.heard_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    /// The node refused an operation because it has too much to do, or was late, or nearly so, for one.
    pub fn refused(&self) {
        let now = Instant::now();
        let mut changed = self.changed.lock();
        if changed.is_some_and(|at| at + PAUSE > now) {
            return;
        }
        *changed = Some(now);
        // What is in flight, not what could have been, was too much.
        let now = self.operations.load(Ordering::Relaxed).min(self.size());
        let least = OPERATIONS_MIN.min(self.operations_max);
        let size = (now * 7 / 10).max(least);
        self.size.store(size * ANSWERS, Ordering::Relaxed);
    }

    /// The node did an operation.
    pub fn answered(&self) {
        let size = self.size.load(Ordering::Relaxed);
        // Whoever uses little of it learns nothing of what more would do.
        let used = self.operations.load(Ordering::Relaxed) * 2 >= size / ANSWERS;
        if size < self.operations_max * ANSWERS && used {
            self.size.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An operation that is in flight, as long as this lives.
#[derive(Debug)]
pub struct Permit {
    window: Arc<Window>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.window.operations.fetch_sub(1, Ordering::Relaxed);
        self.window.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(window: &Arc<Window>, count: usize) -> Vec<Permit> {
        (0..count).map_while(|_| window.enter(100)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn window_narrows_once_for_refusals_that_come_together() {
        let window = Window::new(10_000, usize::MAX);
        let _in_flight = enter(&window, 1000);
        (0..50).for_each(|_| window.refused());
        assert_eq!(window.size(), 700);
        assert!(window.enter(100).is_none());
        tokio::time::advance(PAUSE).await;
        window.refused();
        assert_eq!(window.size(), 490);
    }

    #[tokio::test(start_paused = true)]
    async fn window_is_never_shut_and_answers_open_it_again() {
        let window = Window::new(10_000, usize::MAX);
        for _ in 0..100 {
            window.refused();
            tokio::time::advance(PAUSE).await;
        }
        assert_eq!(window.size(), OPERATIONS_MIN);
        let in_flight = enter(&window, 10_000);
        assert_eq!(in_flight.len(), OPERATIONS_MIN);
        (0..ANSWERS * 50).for_each(|_| window.answered());
        assert_eq!(window.size(), OPERATIONS_MIN + 50);
    }

    #[tokio::test(start_paused = true)]
    async fn window_that_is_full_doubles_when_nothing_is_refused_any_more() {
        let window = Window::new(10_000, usize::MAX);
        let _few = enter(&window, 100);
        window.refused();
        assert_eq!(window.size(), 70);
        assert!(window.enter(1).is_none());
        tokio::time::advance(CALM).await;
        let _more = enter(&window, 10_000);
        assert_eq!(window.size(), 140);
        window.refused();
        assert_eq!(window.size(), 140, "it was just changed");
    }

    #[test]
    fn window_that_is_little_used_stays_as_it_is() {
        let window = Window::new(10_000, usize::MAX);
        let _in_flight = enter(&window, 1000);
        window.refused();
        drop(_in_flight);
        (0..ANSWERS * 100).for_each(|_| window.answered());
        assert_eq!(window.size(), 700);
    }

    #[test]
    fn window_bounds_bytes_and_takes_one_of_any_size() {
        let window = Window::new(10_000, 1 << 20);
        let large = window.enter(2 << 20).expect("alone");
        assert!(window.enter(1).is_none());
        drop(large);
        assert!(enter(&window, 10_000).len() < (1 << 20) / OPERATION_BYTES);
        assert_eq!(window.operations.load(Ordering::Relaxed), 0);
        assert_eq!(window.bytes.load(Ordering::Relaxed), 0);
    }
}

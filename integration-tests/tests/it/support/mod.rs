//! What the tests share: the binary, its commands, clusters of its processes, and waiting.

mod cluster;
mod command;
mod node;
mod writers;

use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quorate_client::NamespaceKv;
use quorate_kv::{Kv, Outcome, Put};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use cluster::{Cluster, Settings, compact, hashed, ordered};
pub use command::{Ended, quorate, quorate_with_input};
pub use node::Node;
pub use writers::Writers;
#[cfg(feature = "chaos")]
pub use writers::is_passing;

/// How long a cluster may take to become what it should be. Generous: machines are busy.
pub const SOON: Duration = Duration::from_secs(40);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(25);

/// Writes it; again, when a node that died or fell silent took the answer with it: it is the same write.
pub async fn put(kv: &NamespaceKv, put: Put) -> quorate_kv::Result<bool> {
    loop {
        match kv.put(put.clone()).await {
            Err(error) if error.outcome() == Outcome::Unknown => {}
            done => return done.map(|written| written.applied),
        }
    }
}

/// The program under test.
///
/// # Panics
/// When it is not built, with the line that builds it.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("QUORATE_BIN").map_or_else(beside_the_tests, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is not there; build it:\n  cargo build --package quorate-server --profile test",
        path.display()
    );
    path
}

/// The test executable is `<target>/<profile>/deps/it-<hash>`, the program `<target>/<profile>/quorate`.
fn beside_the_tests() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test has a path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("quorate")
}

/// Processes that may run at once, counted in nodes: one cluster of three, or a few single nodes.
static NODES: Semaphore = Semaphore::const_new(3);

/// A test's share of the machine, until it is dropped.
pub struct Share(#[expect(dead_code, reason = "held")] SemaphorePermit<'static>);

impl Share {
    /// Waits until so many nodes may be started.
    pub async fn of(nodes: usize) -> Share {
        let wanted = u32::try_from(nodes.clamp(1, 3)).expect("few");
        Share(NODES.acquire_many(wanted).await.expect("never closed"))
    }
}

/// The ports tried: below those that the kernel gives to outgoing connections, so that a port stays
/// free while its node is down.
const PORTS: std::ops::Range<u32> = 12_000..32_000;
static NEXT_PORT: AtomicU32 = AtomicU32::new(0);

/// So many consecutive ports that nothing listens on. Each is given out once by this process; other
/// test processes begin elsewhere.
pub fn free_ports(count: u32) -> u16 {
    let span = PORTS.end - PORTS.start;
    let begin = std::process::id().wrapping_mul(97) % span;
    for _ in 0..span {
        let at = NEXT_PORT.fetch_add(count, Ordering::Relaxed);
        let first = PORTS.start + (begin + at) % (span - count);
        let free = (first..first + count).all(|port| {
            u16::try_from(port).is_ok_and(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        });
        if free {
            return u16::try_from(first).expect("in the range");
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Looks until the condition holds, and gives what it gives.
///
/// # Panics
/// When it does not hold in time, with what it said last.
pub async fn eventually<T, F>(what: &str, within: Duration, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + within;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) => assert!(
                Instant::now() < end,
                "{what}: not within {within:?}; last: {why}"
            ),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A generator of numbers for a test, from a seed that it prints: `QUORATE_TEST_SEED` repeats a run.
pub struct Random(u64);

impl Random {
    /// Draws a seed, or takes the one that is given, and prints it.
    pub fn seeded() -> Random {
        use std::hash::{BuildHasher, RandomState};
        let drawn = || RandomState::new().hash_one(std::process::id());
        let given = std::env::var("QUORATE_TEST_SEED").ok();
        let seed = given
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(drawn);
        println!("QUORATE_TEST_SEED={seed}");
        Random(seed)
    }

    /// Another generator that goes its own way.
    pub fn fork(&mut self) -> Random {
        Random(self.next())
    }

    /// The next number (splitmix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

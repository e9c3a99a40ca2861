//! [`Writers`]: tasks that write without pause, and remember what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use quorate_client::NamespaceKv;
use quorate_kv::{Error, ErrorKind, Get, Kv, Put};
use tokio::task::JoinHandle;

use super::{SOON, eventually};

/// Before a refused write is sent again: as a caller would back off, not to wait for something.
const BACK_OFF: Duration = Duration::from_millis(20);
const READS_AT_ONCE: usize = 128;

/// Tasks that write generated records, each its own keys, until they are told to stop.
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<u64>>,
    kv: NamespaceKv,
}

impl Writers {
    /// Starts so many tasks.
    pub fn start(kv: &NamespaceKv, tasks: u64) -> Writers {
        Writers::start_amid(kv, tasks, is_passing)
    }

    /// The same amid faults that may cause these errors.
    pub fn start_amid(kv: &NamespaceKv, tasks: u64, passing: fn(&Error) -> bool) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let run = |task| {
            let (kv, stop, acknowledged) = (kv.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(write_all(kv, task, passing, stop, acknowledged))
        };
        Writers {
            tasks: (0..tasks).map(run).collect(),
            kv: kv.clone(),
            stop,
            acknowledged,
        }
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes are acknowledged.
    pub async fn progress(&self, more: u64) {
        let wanted = self.acknowledged() + more;
        eventually("writes are acknowledged", SOON, || {
            let now = self.acknowledged();
            std::future::ready(
                (now >= wanted)
                    .then_some(())
                    .ok_or_else(|| format!("{now} of {wanted}")),
            )
        })
        .await;
    }

    /// Stops, and reads back every record that was acknowledged. Gives their number.
    ///
    /// # Panics
    /// If one is missing or has another value, or a task failed.
    pub async fn stop_and_verify(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = Vec::new();
        for (task, handle) in (0_u64..).zip(self.tasks) {
            let count = handle.await.expect("no writer fails");
            written.extend((0..count).map(|n| (task, n)));
        }
        let total = written.len();
        let kv = &self.kv;
        let reads = written.into_iter().map(|(task, n)| async move {
            let found = kv.get(Get::new(key(task, n))).await;
            let found = found.unwrap_or_else(|error| panic!("{}: {error}", key(task, n)));
            let value = found.map(|entry| entry.value);
            let good = value.as_ref().is_some_and(|v| *v == value_of(task, n));
            assert!(good, "{} was acknowledged; found: {value:?}", key(task, n));
        });
        let read = futures_util::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
        assert_eq!(read.count().await, total);
        total as u64
    }
}

fn key(task: u64, n: u64) -> String {
    format!("generated/{task:03}/{n:08}")
}

fn value_of(task: u64, n: u64) -> String {
    format!("value of {task}/{n} {}", "x".repeat((n % 200) as usize))
}

/// Writes records in turn; gives how many were acknowledged, each before the next was sent.
async fn write_all(
    kv: NamespaceKv,
    task: u64,
    passing: fn(&Error) -> bool,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> u64 {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        match kv.put(Put::new(key(task, n), value_of(task, n))).await {
            Ok(written) => {
                assert!(written.applied);
                n += 1;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if passing(&error) => tokio::time::sleep(BACK_OFF).await,
            Err(error) => panic!("{}: {:?} {error}", key(task, n), error.kind()),
        }
    }
    n
}

/// Errors that a fault of a node may cause; any other one is a finding.
pub fn is_passing(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unavailable
            | ErrorKind::NoQuorum
            | ErrorKind::NotLeader
            | ErrorKind::DeadlineExceeded
            | ErrorKind::Overloaded
    )
}

//! [`Coordinator`]: takes answers, time and new sagas, steps the machine for each, and writes once for all.
//!
//! ```text
//! broker ─► fetch ─┐
//! begin ───────────┼─► worker: all that waits ─► load what is not known ─► machine ─► one append ─► told
//! keeper: due ─────┘
//! ```
//!
//! A saga always goes to the same worker, so that no two of a process act on it at once. What a worker knows of
//! a saga it remembers; if it is not so any more, the append says so, and it looks again. Answers are given
//! back to the broker as taken only once what they did is written: they may come again, and change nothing then.
//!
//! The keeper renews the lease. A coordinator that finds it lost forgets all that it knows, takes a new one, and
//! begins anew from the journal.

mod fetch;
mod keeper;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use quorate_outbox::broker::Broker;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::definition::Registry;
use crate::journal::{Append, Fence, Journal, Open, Share};
use crate::machine::Status;
use crate::message::Reply;
use crate::plan::{Begin, Planner};
use crate::{Error, ErrorKind, Result};

/// Gives milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Settings of a coordinator.
#[derive(Clone)]
pub struct CoordinatorOptions {
    /// Names this coordinator among those that share the journal; unique. Default: drawn.
    pub owner: String,
    /// The topic of the replies, the same for all coordinators of a journal.
    pub replies: String,
    /// Their group at the broker.
    pub group: String,
    /// How long a coordinator that is not heard of keeps its share.
    pub lease: Duration,
    /// So many workers.
    pub workers: usize,
    /// At most so many answers and new sagas in one append, about.
    pub batch: usize,
    /// The longest wait between two looks at sagas whose time has come.
    pub tick: Duration,
    /// The first wait when journal or broker refuses; doubles up to `retry_max`.
    pub retry_min: Duration,
    /// The longest such wait.
    pub retry_max: Duration,
    /// How long [`Coordinator::drain`] waits for what is under way.
    pub drain: Duration,
    /// How long sagas that have ended are kept; `None`: for ever. Their keys are free after that.
    pub remember: Option<Duration>,
    /// At most so many sagas are remembered by a worker.
    pub cache: usize,
    /// What tells the time.
    pub clock: Clock,
}

impl Default for CoordinatorOptions {
    fn default() -> Self {
        CoordinatorOptions {
            owner: format!("coordinator-{}", Uuid::now_v7()),
            replies: "saga-replies".into(),
            group: "saga-coordinators".into(),
            lease: Duration::from_secs(10),
            workers: 2,
            batch: 500,
            tick: Duration::from_secs(1),
            retry_min: Duration::from_millis(20),
            retry_max: Duration::from_secs(5),
            drain: Duration::from_secs(10),
            remember: Some(Duration::from_secs(30 * 24 * 3600)),
            cache: 20_000,
            clock: Arc::new(|| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                now.map_or(0, |now| now.as_millis() as i64)
            }),
        }
    }
}

/// What a coordinator has done since it started, and how the journal stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoordinatorStatus {
    /// Its lease's epoch.
    pub epoch: i64,
    /// Its share of the sagas whose time has come.
    pub share: Option<Share>,
    /// Sagas begun.
    pub begun: u64,
    /// Answers taken.
    pub replies: u64,
    /// Answers that changed nothing: late, or double.
    pub late: u64,
    /// Answers that can't be read, or are of no saga or step that there is.
    pub bad: u64,
    /// Answers kept for a coordinator that knows the definition.
    pub mailed: u64,
    /// Sagas that completed.
    pub completed: u64,
    /// Sagas that were compensated.
    pub compensated: u64,
    /// How often a saga got stuck.
    pub stuck: u64,
    /// Looks at a saga that another coordinator had changed.
    pub conflicts: u64,
    /// Appends.
    pub appends: u64,
    /// How often the lease was found to be lost.
    pub fenced: u64,
    /// Sagas in the journal that have not ended, as of the last look.
    pub open: Open,
    /// The last failure of journal or broker, until something succeeds.
    pub failure: Option<String>,
    /// The last saga that can't be read or whose definition has changed, and why.
    pub unreadable: Option<String>,
}

impl CoordinatorStatus {
    /// What an operator has to look at; `None` when all is well. `oldest` is how long a saga may take.
    pub fn alarm(&self, oldest: Duration, now_ms: i64) -> Option<String> {
        let mut said = Vec::new();
        if self.open.stuck > 0 {
            said.push(format!("{} sagas are stuck", self.open.stuck));
        }
        let age_ms = self.open.oldest_ms.map_or(0, |ms| now_ms - ms).max(0);
        if u128::from(age_ms.unsigned_abs()) >= oldest.as_millis() && self.open.oldest_ms.is_some()
        {
            said.push(format!("the oldest open saga began {age_ms} ms ago"));
        }
        said.extend(self.unreadable.clone());
        said.extend(self.failure.clone());
        (!said.is_empty()).then(|| said.join(", "))
    }
}

/// What a saga answers to being begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Its id.
    pub id: Uuid,
    /// Whether it was begun by this call. False: it was there, with the same input.
    pub is_new: bool,
}

/// What workers do.
enum Work {
    Begin(Box<Append>, oneshot::Sender<Result<Begun>>),
    /// Answers of one fetch; told when what they did is written.
    Replies(Vec<Reply>, oneshot::Sender<()>),
    /// Sagas whose time has come.
    Due(Vec<Uuid>, oneshot::Sender<()>),
}

struct Shared {
    journal: Arc<dyn Journal>,
    planner: Planner,
    options: CoordinatorOptions,
    fence: Mutex<Fence>,
    joining: tokio::sync::Mutex<()>,
    counts: Counts,
    /// When the keeper looks next, and how it is woken earlier.
    next_look_ms: AtomicI64,
    look: Notify,
    stopped: watch::Receiver<bool>,
}

#[derive(Default)]
struct Counts {
    begun: AtomicU64,
    replies: AtomicU64,
    late: AtomicU64,
    bad: AtomicU64,
    mailed: AtomicU64,
    completed: AtomicU64,
    compensated: AtomicU64,
    stuck: AtomicU64,
    conflicts: AtomicU64,
    appends: AtomicU64,
    fenced: AtomicU64,
    share: Mutex<Option<Share>>,
    open: Mutex<Open>,
    failure: Mutex<Option<String>>,
    unreadable: Mutex<Option<String>>,
}

impl Shared {
    fn now_ms(&self) -> i64 {
        (self.options.clock)()
    }

    fn fence(&self) -> Fence {
        self.fence.lock().clone()
    }

    /// A new lease, unless somebody has taken one since `lost`.
    async fn rejoin(&self, lost: &Fence) -> Result<()> {
        let _one = self.joining.lock().await;
        if self.fence() != *lost {
            return Ok(());
        }
        self.counts.fenced.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            owner = lost.owner,
            epoch = lost.epoch,
            "the lease was lost: a new one is taken"
        );
        let options = &self.options;
        let fence = self.journal.join(&options.owner, options.lease).await?;
        *self.fence.lock() = fence;
        Ok(())
    }

    fn failed(&self, error: Option<&Error>) {
        *self.counts.failure.lock() = error.map(Error::to_string);
    }

    fn ended(&self, status: Status) {
        let counter = match status {
            Status::Completed => &self.counts.completed,
            Status::Compensated => &self.counts.compensated,
            Status::Stuck => &self.counts.stuck,
            Status::Running | Status::Compensating => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Begins sagas. Cheap to clone.
#[derive(Clone)]
pub struct Sagas {
    shared: Arc<Shared>,
    queues: Arc<[mpsc::Sender<Work>]>,
}

impl Sagas {
    /// Begins a saga; returns when it is written, so that it will end whatever happens.
    ///
    /// # Errors
    /// `Conflict` when there is one of that name and key with another input; `NotFound` for a definition that is
    /// not known; `Invalid`, `TooLarge`; `Unavailable`, also when the coordinator is being drained: beginning
    /// it again is harmless.
    pub async fn begin(&self, begin: &Begin) -> Result<Begun> {
        let append = self.shared.planner.begin(begin, self.shared.now_ms())?;
        let (tell, told) = oneshot::channel();
        let queue = queue(&self.queues, append.id);
        let work = Work::Begin(Box::new(append), tell);
        queue.send(work).await.map_err(|_| drained())?;
        told.await.map_err(|_| drained())?
    }
}

fn drained() -> Error {
    let text = "the coordinator has stopped: begin the saga again at another";
    Error::new(ErrorKind::Unavailable, text).outcome_unknown()
}

fn queue(queues: &[mpsc::Sender<Work>], id: Uuid) -> &mpsc::Sender<Work> {
    &queues[(id.as_u128() >> 64) as usize % queues.len()]
}

/// A running coordinator. Dropping it stops it without waiting.
pub struct Coordinator {
    shared: Arc<Shared>,
    queues: Arc<[mpsc::Sender<Work>]>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Coordinator {
    /// Takes a lease, joins the group of the replies, and starts, on the current tokio runtime.
    ///
    /// # Errors
    /// `Invalid` for settings that can't be; what journal and broker say.
    pub async fn start(
        journal: Arc<dyn Journal>,
        broker: Arc<dyn Broker>,
        registry: Registry,
        options: CoordinatorOptions,
    ) -> Result<Coordinator> {
        if options.owner.is_empty() || options.workers == 0 || options.batch == 0 {
            let text = "a coordinator has a name, workers, and batches that are not empty";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let fence = journal.join(&options.owner, options.lease).await?;
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            journal,
            planner: Planner::new(registry, &options.replies),
            options,
            fence: Mutex::new(fence),
            joining: tokio::sync::Mutex::default(),
            counts: Counts::default(),
            next_look_ms: AtomicI64::new(i64::MAX),
            look: Notify::new(),
            stopped,
        });
        let mut tasks = Vec::new();
        let mut queues = Vec::new();
        for _ in 0..shared.options.workers {
            let (send, work) = mpsc::channel(shared.options.batch.max(1024));
            queues.push(send);
            tasks.push(tokio::spawn(worker::run(Arc::clone(&shared), work)));
        }
        let queues: Arc<[mpsc::Sender<Work>]> = queues.into();
        let subscription = fetch::join(&shared, broker.as_ref()).await?;
        let fetching = fetch::run(
            Arc::clone(&shared),
            broker,
            subscription,
            Arc::clone(&queues),
        );
        tasks.push(tokio::spawn(fetching));
        tasks.push(tokio::spawn(keeper::run(
            Arc::clone(&shared),
            Arc::clone(&queues),
        )));
        Ok(Coordinator {
            shared,
            queues,
            stop,
            tasks,
        })
    }

    /// What begins sagas.
    pub fn sagas(&self) -> Sagas {
        Sagas {
            shared: Arc::clone(&self.shared),
            queues: Arc::clone(&self.queues),
        }
    }

    /// How it stands.
    pub fn status(&self) -> CoordinatorStatus {
        let counts = &self.shared.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CoordinatorStatus {
            epoch: self.shared.fence.lock().epoch,
            share: *counts.share.lock(),
            begun: read(&counts.begun),
            replies: read(&counts.replies),
            late: read(&counts.late),
            bad: read(&counts.bad),
            mailed: read(&counts.mailed),
            completed: read(&counts.completed),
            compensated: read(&counts.compensated),
            stuck: read(&counts.stuck),
            conflicts: read(&counts.conflicts),
            appends: read(&counts.appends),
            fenced: read(&counts.fenced),
            open: *counts.open.lock(),
            failure: counts.failure.lock().clone(),
            unreadable: counts.unreadable.lock().clone(),
        }
    }

    /// Finishes what is under way, gives the lease back, and ends. False when that took longer than
    /// [`CoordinatorOptions::drain`]: then it ended in the middle, which is harmless.
    pub async fn drain(mut self) -> bool {
        let _ = self.stop.send(true);
        let tasks = std::mem::take(&mut self.tasks);
        let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        let ended = async {
            for task in tasks {
                let _ = task.await;
            }
            self.shared
                .journal
                .leave(&self.shared.fence())
                .await
                .is_ok()
        };
        let ended = tokio::time::timeout(self.shared.options.drain, ended).await;
        for task in aborts {
            task.abort();
        }
        ended.unwrap_or(false)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

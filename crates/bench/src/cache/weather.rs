//! [`Weather`]: one fault, and what passes the named points of the adversarial schedule.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use quorate_cache::core::{Cached, Invalidation, Looked, Mark, Put};
use quorate_cache::invalidations::{Batch, Invalidations, Message, Position};
use quorate_cache::tier::Tier;
use quorate_cache::{Error, ErrorKind, Result};
use quorate_kv::BoxFuture;
use tokio::time::sleep;

use super::dice::mixed;

/// What goes wrong in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every tenth load takes 20 to 50 ms.
    SlowLoader,
    /// Every tenth writer dies between its commit and the invalidation.
    WriterKilled,
    /// The remote tier does not answer for half of the time, 40 ms each.
    RemoteDown,
    /// The remote tier's replica takes over, without the last writes.
    RemoteFailedOver,
    /// Every fifth invalidation does not reach the remote tier, and is answered by an error.
    InvalidationsLost,
    /// Each invalidation comes a second time, up to 20 ms later.
    InvalidationsDoubled,
    /// Invalidations take from 0 to 10 ms, so that they overtake each other.
    InvalidationsReordered,
    /// Loads that need not be the newest come from a replica that is 30 ms behind.
    ReplicaLag,
    /// The clock of the remote tier goes 30 ms forward and back again, each 40 ms.
    ClockStepped,
    /// Who follows hears nothing for half of the time, 40 ms each.
    SubscriberCut,
    /// Every third answer to who follows lacks a message.
    MessagesLost,
    /// All messages of an answer to who follows come twice.
    MessagesDoubled,
    /// Two messages of every answer to who follows have changed places.
    MessagesReordered,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 14] = [
        Fault::None,
        Fault::SlowLoader,
        Fault::WriterKilled,
        Fault::RemoteDown,
        Fault::RemoteFailedOver,
        Fault::InvalidationsLost,
        Fault::InvalidationsDoubled,
        Fault::InvalidationsReordered,
        Fault::ReplicaLag,
        Fault::ClockStepped,
        Fault::SubscriberCut,
        Fault::MessagesLost,
        Fault::MessagesDoubled,
        Fault::MessagesReordered,
    ];

    /// Whether only who has a remote tier notices it.
    pub fn is_of_remote(self) -> bool {
        use Fault::{ClockStepped, RemoteDown, RemoteFailedOver};
        matches!(self, ClockStepped | RemoteDown | RemoteFailedOver)
    }

    /// Whether only who follows notices it.
    pub fn is_of_messages(self) -> bool {
        use Fault::{MessagesDoubled, MessagesLost, MessagesReordered, SubscriberCut};
        matches!(
            self,
            SubscriberCut | MessagesLost | MessagesDoubled | MessagesReordered
        )
    }

    /// Whether somebody may not be told of a write: then what was there stays until its TTL.
    pub fn leaves_untold(self) -> bool {
        use Fault::{InvalidationsLost, RemoteDown, RemoteFailedOver, WriterKilled};
        matches!(
            self,
            WriterKilled | RemoteDown | RemoteFailedOver | InvalidationsLost
        )
    }

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::SlowLoader => "slow loader",
            Fault::WriterKilled => "writer killed",
            Fault::RemoteDown => "L2 down",
            Fault::RemoteFailedOver => "L2 failed over",
            Fault::InvalidationsLost => "invalidations lost",
            Fault::InvalidationsDoubled => "invalidations doubled",
            Fault::InvalidationsReordered => "invalidations reordered",
            Fault::ReplicaLag => "replica lag",
            Fault::ClockStepped => "L2 clock stepped",
            Fault::SubscriberCut => "subscriber cut",
            Fault::MessagesLost => "messages lost",
            Fault::MessagesDoubled => "messages doubled",
            Fault::MessagesReordered => "messages reordered",
        }
    }
}

/// Where the adversarial schedule stops a task for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A load has read, and has not answered.
    Loaded,
    /// A write is committed, and no cache knows.
    Committed,
    /// The remote tier has answered a look.
    Looked,
    /// A fill is about to be put into the remote tier.
    Put,
    /// An invalidation is about to be sent to the remote tier.
    Invalidate,
    /// Messages have come to who follows, who has not looked at them.
    Heard,
}

/// What becomes of an invalidation on its way to the remote tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Arrives,
    /// It does not, and the sender gets an error.
    Lost,
    /// It arrives, and once more after this time.
    Twice(Duration),
}

/// The conditions of one cell.
#[derive(Debug)]
pub struct Weather {
    fault: Fault,
    is_adversarial: bool,
    /// Over, once the load is: what is left behind is looked at in calm.
    is_calm: AtomicBool,
    is_down: AtomicBool,
    is_cut: AtomicBool,
    /// By how much the remote tier's clock is ahead, in microseconds.
    ahead: AtomicU64,
    chance: AtomicU64,
}

impl Weather {
    /// How far a lagging replica is behind.
    pub const LAG: Duration = Duration::from_millis(30);
    /// How far the remote tier's clock is stepped.
    pub const STEP: Duration = Duration::from_millis(30);
    /// How long what comes and goes stays.
    const SPELL: Duration = Duration::from_millis(40);
    const MILLI: u64 = 1_000_000;

    /// A fault, in one of the two schedules.
    pub fn new(fault: Fault, is_adversarial: bool, seed: u64) -> Self {
        Weather {
            fault,
            is_adversarial,
            is_calm: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            ahead: AtomicU64::new(0),
            chance: AtomicU64::new(seed),
        }
    }

    /// What goes wrong.
    pub fn fault(&self) -> Fault {
        match self.is_calm.load(Relaxed) {
            true => Fault::None,
            false => self.fault,
        }
    }

    /// Ends fault and schedule.
    pub fn calm(&self) {
        self.is_calm.store(true, Relaxed);
        self.is_down.store(false, Relaxed);
        self.is_cut.store(false, Relaxed);
        self.ahead.store(0, Relaxed);
    }

    /// Whether the remote tier is out of reach.
    pub fn is_down(&self) -> bool {
        self.is_down.load(Relaxed)
    }

    /// Lets what comes and goes do so, so long after the beginning.
    pub(super) fn turn(&self, elapsed: Duration) {
        let is_bad = elapsed.as_millis() / Self::SPELL.as_millis() % 2 == 1;
        match self.fault() {
            Fault::RemoteDown => self.is_down.store(is_bad, Relaxed),
            Fault::SubscriberCut => self.is_cut.store(is_bad, Relaxed),
            Fault::ClockStepped => {
                let step = Self::STEP.as_micros() as u64;
                self.ahead.store(step * u64::from(is_bad), Relaxed);
            }
            _ => {}
        }
    }

    fn below(&self, end: u64) -> u64 {
        let n = self.chance.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        mixed(n) % end
    }

    /// Whether it happens this time, as it does one in so many times.
    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    async fn wait(&self, low_ms: u64, high_ms: u64) {
        let nanos = self.below((high_ms - low_ms) * Self::MILLI);
        sleep(Duration::from_nanos(low_ms * Self::MILLI + nanos)).await;
    }

    /// Passes a named point.
    pub async fn pass(&self, point: Point) {
        let fault = self.fault();
        if fault == Fault::SlowLoader && point == Point::Loaded && self.one_in(10) {
            self.wait(20, 50).await;
        }
        if fault == Fault::InvalidationsReordered && point == Point::Invalidate {
            self.wait(0, 10).await;
        }
        if self.is_adversarial && !self.is_calm.load(Relaxed) && self.one_in(4) {
            self.wait(0, 20).await;
        }
    }

    /// Does to messages what the fault does.
    fn garble(&self, messages: &mut Vec<Message>) {
        let one = |len: usize| self.below(len as u64) as usize;
        match (self.fault(), messages.len()) {
            (_, 0) => {}
            (Fault::MessagesLost, len) if self.one_in(3) => drop(messages.remove(one(len))),
            (Fault::MessagesDoubled, _) => messages.extend_from_within(..),
            (Fault::MessagesReordered, len) => messages.swap(one(len), one(len)),
            _ => {}
        }
    }

    /// Decides about an invalidation.
    pub fn fate(&self) -> Fate {
        match self.fault() {
            Fault::InvalidationsLost if self.one_in(5) => Fate::Lost,
            Fault::InvalidationsDoubled => {
                Fate::Twice(Duration::from_nanos(self.below(20 * Self::MILLI)))
            }
            _ => Fate::Arrives,
        }
    }
}

/// The way to a remote tier, through the weather.
pub struct Wire {
    tier: Arc<dyn Tier>,
    weather: Arc<Weather>,
}

impl Wire {
    /// The way to `tier`.
    pub fn new(tier: Arc<dyn Tier>, weather: Arc<Weather>) -> Self {
        Wire { tier, weather }
    }

    fn reach(&self) -> Result<()> {
        match self.weather.is_down() {
            true => Err(lost("the remote tier is down")),
            false => Ok(()),
        }
    }

    async fn send(&self, key: &Bytes, invalidation: Invalidation) -> Result<()> {
        self.weather.pass(Point::Invalidate).await;
        self.reach()?;
        match self.weather.fate() {
            Fate::Lost => return Err(lost("the invalidation was lost")),
            Fate::Twice(later) => {
                let (tier, key) = (self.tier.clone(), key.clone());
                tokio::spawn(async move {
                    sleep(later).await;
                    // Whether the repetition arrives does not matter.
                    let _ = tier.invalidate(&key, invalidation).await;
                });
            }
            Fate::Arrives => {}
        }
        self.tier.invalidate(key, invalidation).await
    }
}

fn lost(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, what).outcome_unknown()
}

impl Tier for Wire {
    fn look<'a>(&'a self, key: &'a Bytes) -> BoxFuture<'a, Result<Looked<Bytes>>> {
        Box::pin(async move {
            self.reach()?;
            let mut looked = self.tier.look(key).await;
            if let Ok(looked) = &mut looked {
                looked.at += self.weather.ahead.load(Relaxed);
            }
            self.weather.pass(Point::Looked).await;
            looked
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        cached: Cached<Bytes>,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move {
            self.weather.pass(Point::Put).await;
            self.reach()?;
            self.tier.put(key, mark, cached).await
        })
    }

    fn invalidate<'a>(
        &'a self,
        key: &'a Bytes,
        invalidation: Invalidation,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.send(key, invalidation))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        self.tier.clear()
    }
}

/// The way from what others write to who follows, through the weather.
pub struct Ears {
    told: Box<dyn Invalidations>,
    weather: Arc<Weather>,
}

impl Ears {
    /// The way from `told`.
    pub fn new(told: Box<dyn Invalidations>, weather: Arc<Weather>) -> Self {
        Ears { told, weather }
    }

    fn reach(&self) -> Result<()> {
        match self.weather.is_down() || self.weather.is_cut.load(Relaxed) {
            true => Err(Error::new(ErrorKind::Unavailable, "nothing is heard")),
            false => Ok(()),
        }
    }
}

impl Invalidations for Ears {
    fn after<'a>(
        &'a mut self,
        position: Option<&'a Position>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            self.reach()?;
            let mut batch = self.told.after(position, wait).await?;
            self.weather.pass(Point::Heard).await;
            self.reach()?;
            self.weather.garble(&mut batch.messages);
            Ok(batch)
        })
    }
}

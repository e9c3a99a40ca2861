//! What is known of a replica, and the watch that finds it out.
//!
//! Invariants:
//! - what is published was seen of one run of the server, and every connection that is let in leads to that
//!   run. Within a run what is visible only grows, so what was proved of it holds for all of them;
//! - a replica that went back (its crash takes back what was visible) is in another run: nothing is proved
//!   of it, and the connections of the former run are broken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::{Backend, Observation};
use crate::pool::Lane;
use crate::route::{View, Watermarks};
use crate::token::Position;
use crate::{Error, ErrorKind, Result};

/// What is known.
#[derive(Debug, Default)]
struct Known {
    /// Why it does not serve; `None` while it does.
    trouble: Option<String>,
    observed: bool,
    run: Option<i64>,
    position: Option<Position>,
    fresh: Option<Instant>,
    since: Option<Instant>,
    /// The nearest position that someone waits for.
    wanted: Option<Position>,
    waiting: usize,
}

/// One replica's state, shared by its pool's checks, its watch and the readers.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    known: Mutex<Known>,
    hurry: Notify,
}

impl Replica {
    /// What a reader may rely on.
    pub fn view(&self, in_use: usize) -> View {
        let known = self.known.lock();
        View {
            serving: known.observed && known.trouble.is_none(),
            position: known.position,
            fresh: known.fresh,
            since: known.since,
            in_use,
        }
    }

    /// Why it does not serve.
    pub fn trouble(&self) -> Option<String> {
        let known = self.known.lock();
        match &known.trouble {
            None if !known.observed => Some("it has not been reached yet".to_owned()),
            trouble => trouble.clone(),
        }
    }

    /// Whether a new connection may be used: whether it leads to the run that is watched.
    pub fn admit(&self, seen: &Observation, system: Option<u64>) -> Result<()> {
        check(seen, system)?;
        let known = self.known.lock();
        if known.observed && known.run != seen.run {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the connection leads to another server than the one that is watched, or it has restarted",
            ));
        }
        Ok(())
    }

    /// Publishes what was seen.
    fn publish(&self, seen: &Observation, marks: &Watermarks) {
        let mut known = self.known.lock();
        if known.run != seen.run {
            // Another run: nothing that was proved of the former counts.
            known.run = seen.run;
            known.position = None;
            known.fresh = None;
            known.since = Some(Instant::now());
        }
        known.observed = true;
        known.trouble = None;
        let Some(position) = seen.position else {
            return;
        };
        match known.position {
            Some(shown) if shown.reaches(&position) => {}
            _ => known.position = Some(position),
        }
        let fresh = marks.fresh_as_of(&position);
        if fresh > known.fresh {
            known.fresh = fresh;
        }
    }

    fn fail(&self, error: &Error) {
        let mut known = self.known.lock();
        if known.trouble.is_none() {
            tracing::warn!(%error, "a replica leaves the rotation");
        }
        known.trouble = Some(error.message().to_owned());
    }

    /// Someone waits for a position: look more often. Ends when the guard is dropped.
    pub fn want(self: &Arc<Self>, position: Position) -> Wanted {
        let mut known = self.known.lock();
        known.waiting += 1;
        let nearer = known.wanted.is_none_or(|wanted| wanted.reaches(&position));
        if nearer {
            known.wanted = Some(position);
        }
        drop(known);
        self.hurry.notify_one();
        Wanted(Arc::clone(self))
    }

    fn has(&self, position: &Position) -> bool {
        let known = self.known.lock();
        known.position.is_some_and(|own| own.reaches(position))
    }

    fn wanted(&self) -> Option<Position> {
        let known = self.known.lock();
        known.wanted.filter(|_| known.waiting > 0)
    }
}

/// Someone waits.
pub(crate) struct Wanted(Arc<Replica>);

impl Drop for Wanted {
    fn drop(&mut self) {
        let mut known = self.0.known.lock();
        known.waiting -= 1;
        if known.waiting == 0 {
            known.wanted = None;
        }
    }
}

fn check(seen: &Observation, system: Option<u64>) -> Result<()> {
    let trouble = |text: &str| Err(Error::new(ErrorKind::Unavailable, text));
    if !seen.replica {
        return trouble("it is no replica, or was promoted");
    }
    match (seen.system, system) {
        (Some(own), Some(primary)) if own != primary => {
            trouble("it is a replica of another system than the primary")
        }
        _ => Ok(()),
    }
}

/// Looks at one replica until the task is ended.
pub(crate) struct Watch<DB: Backend> {
    pub replica: Arc<Replica>,
    pub lane: Arc<Lane<DB>>,
    pub marks: Arc<Mutex<Watermarks>>,
    pub changed: Arc<tokio::sync::watch::Sender<()>>,
    /// How often to look while nobody waits.
    pub every: Duration,
}

/// How often to look while someone waits.
const HURRY: Duration = Duration::from_millis(2);

impl<DB: Backend> Watch<DB> {
    pub async fn run(self) {
        let mut connection = None;
        loop {
            if let Err(error) = self.look(&mut connection).await {
                connection = None;
                self.replica.fail(&error);
            }
            self.changed.send_replace(());
            self.pause(&mut connection).await;
        }
    }

    async fn look(&self, connection: &mut Option<DB::Connection>) -> Result<()> {
        let mut own = match connection.take() {
            Some(own) => own,
            None => self.lane.connect().await?,
        };
        let observing = DB::observe(&mut own);
        let patience = self.lane.options().patience;
        let seen = match tokio::time::timeout(patience, observing).await {
            Ok(seen) => seen?,
            Err(_) => return Err(Error::new(ErrorKind::Unavailable, "it does not answer")),
        };
        let marks = self.marks.lock();
        check(&seen, marks.last().map(|(_, position)| position.system))?;
        self.replica.publish(&seen, &marks);
        *connection = Some(own);
        Ok(())
    }

    async fn pause(&self, connection: &mut Option<DB::Connection>) {
        let wanted = self.replica.wanted();
        let (Some(wanted), Some(own)) = (wanted, connection.as_mut()) else {
            let woken = self.replica.hurry.notified();
            let _ = tokio::time::timeout(self.every, woken).await;
            return;
        };
        // What is reached already is no reason to look again at once: those who wait for more still do.
        let wanted = Some(wanted).filter(|wanted| !self.replica.has(wanted));
        // Failures show at the next look.
        if DB::pause(own, wanted, HURRY).await.is_err() {
            *connection = None;
        }
    }
}

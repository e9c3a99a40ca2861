//! Waiting for records: who writes next, and who is woken when.
//!
//! A thread that waits writes itself if nobody does (a leader, in the words of the field), for all that
//! is queued by then. Otherwise it sleeps on a bell of its own, so that whoever writes wakes those whose
//! records are done, in their order, and no others; before them it wakes the next writer, so that the
//! disk does not wait for the threads.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use quorate_env::Event;

use crate::error::{Error, ErrorKind, Result};
use crate::log::{Durability, Inner, Position, State, Then, Wait};

/// How often a thread looks whether a write that is under way is done, before it sleeps: a write to the
/// page cache takes less than waking up does.
const LOOKS: usize = 12;
/// Pauses of the processor between looks, about a microsecond.
const PAUSES: usize = 24;

/// What a thread is woken for.
enum Call {
    /// Its record is done, or will never be.
    Done(Result<()>),
    /// It is the writer now, and has its follow-up back.
    Write(Option<Then>),
}

/// Where a thread sleeps.
#[derive(Default)]
pub(crate) struct Bed {
    call: Mutex<Option<Call>>,
    bell: Event,
}

impl Bed {
    fn wake(&self, call: Call) {
        *self.call.lock() = Some(call);
        self.bell.notify();
    }
}

/// A thread that sleeps, and what for.
pub(crate) struct Sleeper {
    wait: Wait,
    then: Option<Then>,
    bed: Arc<Bed>,
}

/// Those whose records are done, who don't know yet.
#[must_use = "they sleep until they are woken"]
pub(crate) struct Called(Vec<(Sleeper, Result<()>)>);

impl Called {
    pub(crate) fn wake(mut self) {
        for (sleeper, outcome) in &mut self.0 {
            let then = sleeper.then.take().filter(|_| outcome.is_ok());
            then.into_iter().for_each(|then| then());
        }
        for (sleeper, outcome) in self.0 {
            sleeper.bed.wake(Call::Done(outcome));
        }
    }
}

impl Inner {
    /// Waits until all before `end` is as durable as asked, writing itself when nobody does.
    pub(crate) fn wait_for(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        end: Position,
        durability: Durability,
    ) -> Result<()> {
        let wait = state.begin_wait(end, durability);
        drop(state);
        self.finish_wait(wait, None)
    }

    /// The rest of a wait that began under the lock.
    pub(crate) fn finish_wait(self: &Arc<Self>, wait: Wait, mut then: Option<Then>) -> Result<()> {
        let mut looks = match wait.durability {
            Durability::Buffered => LOOKS,
            Durability::Synced => 0,
        };
        loop {
            let mut state = self.state.lock();
            if let Some(outcome) = state.outcome(&wait) {
                state.end_waits(1);
                self.see_to_the_queue(state);
                let then = then.filter(|_| outcome.is_ok());
                then.into_iter().for_each(|then| then());
                return outcome;
            }
            if !state.writing && !state.queue.is_empty() {
                state.writing = true;
                drop(state);
                self.write_once(&wait, &mut then);
                continue;
            }
            if looks > 0 {
                drop(state);
                looks -= 1;
                (0..PAUSES).for_each(|_| std::hint::spin_loop());
                continue;
            }
            let bed = Arc::new(Bed::default());
            state.sleepers.push_back(Sleeper {
                wait,
                then: then.take(),
                bed: Arc::clone(&bed),
            });
            drop(state);
            match self.sleep(&bed) {
                Call::Done(outcome) => return outcome,
                Call::Write(back) => {
                    then = back;
                    self.write_once(&wait, &mut then);
                }
            }
        }
    }

    fn sleep(&self, bed: &Bed) -> Call {
        loop {
            let mut call = None;
            let mut called = || {
                call = bed.call.lock().take();
                call.is_some()
            };
            self.env.jobs.wait(&bed.bell, &mut called, None);
            if let Some(call) = call {
                return call;
            }
        }
    }

    /// Writes what is queued, as the writer, and lets the next one go on before it wakes the others.
    fn write_once(self: &Arc<Self>, own: &Wait, then: &mut Option<Then>) {
        let called = self.write_queued();
        self.hand_over();
        // Its own record lies before those of the others, mostly.
        if then.is_some() && matches!(self.state.lock().outcome(own), Some(Ok(()))) {
            then.take().into_iter().for_each(|then| then());
        }
        if let Some(called) = called {
            called.wake();
        }
    }

    /// The writer stops: gives its place to a thread that waits, or to a job, or leaves it free.
    pub(crate) fn hand_over(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.writing = false;
        self.see_to_the_queue(state);
    }

    /// Finds a writer if there is something to write and none: a thread that sleeps, or a job where no
    /// thread will come by itself.
    fn see_to_the_queue(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.writing || state.queue.is_empty() {
            return;
        }
        if let Some(sleeper) = state.sleepers.pop_front() {
            state.writing = true;
            drop(state);
            sleeper.bed.wake(Call::Write(sleeper.then));
        } else if state.waiting == 0 {
            state.writing = true;
            drop(state);
            self.spawn_writer();
        }
    }
}

impl State {
    /// Counts one more thread as waiting; [`Inner::finish_wait`] counts it off.
    pub(crate) fn begin_wait(&mut self, end: Position, durability: Durability) -> Wait {
        self.waiting += 1;
        Wait {
            end,
            durability,
            cuts_before: self.cuts.len(),
        }
    }

    fn end_waits(&mut self, count: usize) {
        self.waiting -= count;
        if self.waiting == 0 {
            self.cuts.clear();
        }
    }

    /// Whether all before `end` has got as far as `durability` says.
    fn reached(&self, end: Position, durability: Durability) -> bool {
        match durability {
            Durability::Buffered => self.written >= end,
            Durability::Synced => self.synced >= end,
        }
    }

    fn outcome(&self, wait: &Wait) -> Option<Result<()>> {
        let mut cuts = self.cuts.iter().skip(wait.cuts_before);
        if cuts.any(|cut| *cut < wait.end) {
            return Some(Err(Error::new(
                ErrorKind::DiskFull,
                "the disk of the log is full",
            )));
        }
        if self.reached(wait.end, wait.durability) {
            return Some(Ok(()));
        }
        self.poison.clone().map(Err)
    }

    /// Takes those out of the sleepers who wait no longer.
    pub(crate) fn call_those_who_are_done(&mut self) -> Called {
        let mut called = Vec::new();
        let mut rest = VecDeque::new();
        for sleeper in std::mem::take(&mut self.sleepers) {
            match self.outcome(&sleeper.wait) {
                Some(outcome) => called.push((sleeper, outcome)),
                None => rest.push_back(sleeper),
            }
        }
        self.sleepers = rest;
        self.end_waits(called.len());
        Called(called)
    }
}

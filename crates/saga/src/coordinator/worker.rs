//! A worker: gathers what waits, steps the machine for each saga, and appends for all at once.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{Begun, Shared, Work};
use crate::definition::Definition;
use crate::journal::{Append, Record};
use crate::machine::{self, Entry, Event, Input, State, Status};
use crate::message::Reply;
use crate::plan::dice;
use crate::points;
use crate::{Error, ErrorKind, Result};

/// How long a saga that can't be read is left alone, in milliseconds.
const PUT_OFF_MS: i64 = 60_000;

/// What is remembered of a saga.
struct Known {
    definition: Arc<Definition>,
    seq: i64,
    wake_ms: Option<i64>,
    state: State,
}

/// What inputs to a saga come to.
enum Step {
    /// This is to be written, and then this is known.
    Write(Box<Append>, Option<Box<Known>>),
    /// They change nothing.
    Nothing,
    /// They change nothing of what is remembered, which may be old: look it up.
    Again,
}

type Waiting = (Box<Append>, oneshot::Sender<Result<Begun>>);

/// What is dealt with together.
#[derive(Default)]
struct Batch {
    begins: Vec<Waiting>,
    inputs: BTreeMap<Uuid, Vec<Input>>,
    tell: Vec<oneshot::Sender<()>>,
    /// Why it can't be written.
    why: Option<Error>,
}

impl Batch {
    /// Each saga by itself; none when there is nothing.
    fn into_singles(self) -> Vec<Batch> {
        let begins = self.begins.into_iter().map(|one| Batch {
            begins: vec![one],
            ..Batch::default()
        });
        let inputs = self.inputs.into_iter().map(|(id, inputs)| Batch {
            inputs: BTreeMap::from([(id, inputs)]),
            ..Batch::default()
        });
        begins.chain(inputs).collect()
    }

    /// Takes a work in; gives it back when it has to wait for what is in it.
    fn add(&mut self, work: Work) -> Option<Work> {
        match work {
            Work::Begin(append, tell) => {
                let is_there = self.begins.iter().any(|(other, _)| other.id == append.id);
                if is_there || self.inputs.contains_key(&append.id) {
                    return Some(Work::Begin(append, tell));
                }
                self.begins.push((append, tell));
            }
            Work::Replies(replies, tell) => {
                for reply in replies {
                    let Reply {
                        saga,
                        branch,
                        op,
                        attempt,
                        outcome,
                    } = reply;
                    let input = Input::Reply {
                        branch,
                        op,
                        attempt,
                        outcome,
                    };
                    self.inputs.entry(saga).or_default().push(input);
                }
                self.tell.push(tell);
            }
            Work::Due(ids, tell) => {
                for id in ids {
                    self.inputs.entry(id).or_default().push(Input::Tick);
                }
                self.tell.push(tell);
            }
        }
        None
    }

    fn size(&self) -> usize {
        self.begins.len() + self.inputs.len()
    }
}

struct Worker {
    shared: Arc<Shared>,
    known: HashMap<Uuid, Known>,
}

pub(super) async fn run(shared: Arc<Shared>, mut queue: mpsc::Receiver<Work>) {
    let mut stopped = shared.stopped.clone();
    let mut worker = Worker {
        shared,
        known: HashMap::new(),
    };
    let mut later: VecDeque<Work> = VecDeque::new();
    loop {
        let first = match later.pop_front() {
            Some(work) => Some(work),
            None => tokio::select! {
                work = queue.recv() => work,
                _ = stopped.wait_for(|stopped| *stopped), if !queue.is_closed() => {
                    // What is in the queue is still done.
                    queue.close();
                    continue;
                }
            },
        };
        let Some(first) = first else {
            return;
        };
        let mut batch = Batch::default();
        later.extend(batch.add(first));
        while batch.size() < worker.shared.options.batch {
            match queue.try_recv() {
                Ok(work) => later.extend(batch.add(work)),
                Err(_) => break,
            }
        }
        worker.work(batch).await;
    }
}

impl Worker {
    async fn work(&mut self, mut batch: Batch) {
        let tell = std::mem::take(&mut batch.tell);
        let Some(left) = self.settle(batch).await else {
            return;
        };
        // One of them can't be written as it is: the others don't wait for it.
        for one in left.into_singles() {
            match self.settle(one).await {
                None => return,
                Some(left) if left.size() == 0 => {}
                Some(mut left) => {
                    if self.decline(&mut left).await {
                        left = match self.settle(left).await {
                            Some(left) => left,
                            None => return,
                        };
                    }
                    self.give_up(left).await;
                }
            }
        }
        self.shared.failed(None);
        for tell in tell {
            let _ = tell.send(());
        }
    }

    /// Does all of it, and answers what can't be written however often it is tried; `None` when it has to stop
    /// before its end.
    async fn settle(&mut self, mut batch: Batch) -> Option<Batch> {
        let mut wait = self.shared.options.retry_min;
        loop {
            match self.attempt(&mut batch).await {
                Ok(()) if batch.size() == 0 => return Some(batch),
                Ok(()) => {}
                Err(error) if is_final(&error) => {
                    self.known.clear();
                    batch.why = Some(error);
                    return Some(batch);
                }
                Err(error) => {
                    // Whether it was written is looked up in the journal.
                    self.known.clear();
                    self.shared.failed(Some(&error));
                    if error.kind() == ErrorKind::Fenced {
                        let lost = self.shared.fence();
                        if self.shared.rejoin(&lost).await.is_ok() {
                            continue;
                        }
                    }
                    if *self.shared.stopped.borrow() {
                        // Nobody is told, so answers come again, to this coordinator or another.
                        return None;
                    }
                    tracing::warn!(%error, "sagas wait for the journal");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(self.shared.options.retry_max);
                }
            }
        }
    }

    /// Declines the orders that wait at a saga which can't be written: perhaps it can without them.
    async fn decline(&mut self, one: &mut Batch) -> bool {
        let Some(error) = &one.why else {
            return false;
        };
        let ids: Vec<Uuid> = one.inputs.keys().copied().collect();
        let mut declined = false;
        for record in self.shared.journal.load(&ids).await.unwrap_or_default() {
            let definition = self.shared.planner.definition(&record.name, record.version);
            let folded = definition.as_ref().and_then(|definition| {
                let state = State::fold(definition, &record.entries().ok()?).ok()?;
                (!state.wishes.is_empty()).then_some((definition, state))
            });
            let Some((definition, state)) = folded else {
                continue;
            };
            let now_ms = self.shared.now_ms();
            let mut turn = machine::resume(definition, state, dice(record.id), now_ms);
            turn.decline(&error.to_string());
            let append = Append::beside(&record, turn.events, now_ms);
            let written = self
                .shared
                .journal
                .append(None, std::slice::from_ref(&append))
                .await;
            declined |= written.is_ok_and(|written| written == [true]);
        }
        if declined {
            one.why = None;
        }
        declined
    }

    /// A saga whose next events or messages can't be written is shown, and looked at again later.
    async fn give_up(&mut self, one: Batch) {
        let Some(error) = one.why else {
            return;
        };
        for (_, tell) in one.begins {
            let _ = tell.send(Err(error.clone()));
        }
        let ids: Vec<Uuid> = one.inputs.into_keys().collect();
        let records = self.shared.journal.load(&ids).await.unwrap_or_default();
        for record in records {
            if let Step::Write(append, _) = self.put_off(&record, &error) {
                let put_off = std::slice::from_ref(append.as_ref());
                if let Err(error) = self.shared.journal.append(None, put_off).await {
                    tracing::debug!(%error, "it is put off at the next look");
                }
            }
        }
    }

    /// Does what can be done; what another coordinator came between is left in the batch.
    async fn attempt(&mut self, batch: &mut Batch) -> Result<()> {
        let fence = self.shared.fence();
        let mut loaded = self.load(batch).await?;
        let mut appends: Vec<Append> = batch
            .begins
            .iter()
            .map(|(one, _)| (**one).clone())
            .collect();
        let mut after: HashMap<Uuid, Known> = HashMap::new();
        let mut settled = HashSet::new();
        for (id, inputs) in &batch.inputs {
            match self.step(*id, inputs, &mut loaded)? {
                Step::Write(append, known) => {
                    appends.push(*append);
                    after.extend(known.map(|known| (*id, *known)));
                }
                Step::Nothing => {
                    settled.insert(*id);
                }
                Step::Again => {}
            }
        }
        batch.inputs.retain(|id, _| !settled.contains(id));
        if appends.is_empty() {
            return Ok(());
        }
        points::pass("coordinator.stepped");
        let written = self.shared.journal.append(Some(&fence), &appends).await?;
        points::pass("coordinator.appended");
        self.shared.counts.appends.fetch_add(1, Ordering::Relaxed);
        let begun = batch.begins.len();
        self.begun(std::mem::take(&mut batch.begins), &written[..begun])
            .await?;
        for (append, written) in appends.iter().zip(&written).skip(begun) {
            if *written {
                batch.inputs.remove(&append.id);
                self.wrote(append, after.remove(&append.id));
            } else {
                self.shared.counts.conflicts.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// What is not known of the sagas that something came for.
    async fn load(&self, batch: &Batch) -> Result<HashMap<Uuid, Record>> {
        let ids = batch.inputs.keys().copied();
        let ids: Vec<Uuid> = ids.filter(|id| !self.known.contains_key(id)).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let records = self.shared.journal.load(&ids).await?;
        Ok(records
            .into_iter()
            .map(|record| (record.id, record))
            .collect())
    }

    /// What a saga's inputs come to.
    fn step(
        &mut self,
        id: Uuid,
        inputs: &[Input],
        loaded: &mut HashMap<Uuid, Record>,
    ) -> Result<Step> {
        let counts = &self.shared.counts;
        let is_reply = |input: &&Input| matches!(input, Input::Reply { .. });
        let replies = inputs.iter().filter(is_reply).count() as u64;
        if let Some(known) = self.known.remove(&id) {
            return self.turn(id, inputs, known, replies, false);
        }
        let Some(record) = loaded.remove(&id) else {
            counts.bad.fetch_add(replies, Ordering::Relaxed);
            return Ok(Step::Nothing);
        };
        if record.status.is_end() {
            counts.late.fetch_add(replies, Ordering::Relaxed);
            return Ok(Step::Nothing);
        }
        let planner = &self.shared.planner;
        let Some(definition) = planner.definition(&record.name, record.version) else {
            return Ok(self.mail(&record, inputs));
        };
        let folded = record
            .entries()
            .and_then(|entries| State::fold(&definition, &entries));
        let state = match folded {
            Ok(state) => state,
            Err(error) => return Ok(self.put_off(&record, &error)),
        };
        let known = Known {
            definition,
            seq: record.seq,
            wake_ms: record.wake_ms,
            state,
        };
        self.turn(id, inputs, known, replies, true)
    }

    /// What inputs come to in a state; `is_fresh` if it was just looked up.
    fn turn(
        &mut self,
        id: Uuid,
        inputs: &[Input],
        known: Known,
        replies: u64,
        is_fresh: bool,
    ) -> Result<Step> {
        let now_ms = self.shared.now_ms();
        let counts = &self.shared.counts;
        let definition = Arc::clone(&known.definition);
        let mut turn = machine::resume(&definition, known.state, dice(id), now_ms);
        let mut bad = 0;
        for input in inputs {
            // Of replies: to a step that there is not.
            if let Err(error) = turn.take(input.clone()) {
                bad += 1;
                tracing::warn!(saga = %id, %error, "a reply is passed over");
            }
        }
        // What came in time counts, although it is looked at late.
        turn.take(Input::Tick)?;
        let wake_ms = wake(known.wake_ms, turn.state.wake_ms(&definition), now_ms);
        let is_same = turn.events.is_empty() && wake_ms == known.wake_ms;
        if is_same && !is_fresh {
            return Ok(Step::Again);
        }
        counts.bad.fetch_add(bad, Ordering::Relaxed);
        counts.replies.fetch_add(replies - bad, Ordering::Relaxed);
        if turn.events.is_empty() {
            counts.late.fetch_add(replies - bad, Ordering::Relaxed);
        }
        let seq = known.seq + turn.events.len() as i64;
        let planner = &self.shared.planner;
        let (append, state) = planner.append(&definition, id, known.seq, turn, wake_ms)?;
        let after = Known {
            definition,
            seq,
            wake_ms,
            state,
        };
        if is_same {
            self.known.insert(id, after);
            return Ok(Step::Nothing);
        }
        Ok(Step::Write(Box::new(append), Some(Box::new(after))))
    }

    /// Replies for a saga whose definition is not known here are kept in its log for who knows it.
    fn mail(&self, record: &Record, inputs: &[Input]) -> Step {
        let now_ms = self.shared.now_ms();
        let mail = inputs.iter().filter_map(|input| match input {
            Input::Reply {
                branch,
                op,
                attempt,
                outcome,
            } => Some(Entry {
                at_ms: now_ms,
                event: Event::Mail(branch.clone(), *op, *attempt, outcome.clone()),
            }),
            _ => None,
        });
        let events: Vec<Entry> = mail.collect();
        let count = events.len() as u64;
        self.shared
            .counts
            .mailed
            .fetch_add(count, Ordering::Relaxed);
        if count == 0 {
            return Step::Nothing;
        }
        Step::Write(Box::new(Append::beside(record, events, now_ms)), None)
    }

    /// A saga that can't be read is looked at again later; what is kept of it is not touched.
    fn put_off(&self, record: &Record, error: &Error) -> Step {
        let text = format!(
            "saga {} (`{}` of `{}`): {error}",
            record.id, record.key, record.name
        );
        tracing::error!("{text}");
        *self.shared.counts.unreadable.lock() = Some(text);
        let now_ms = self.shared.now_ms();
        let is_due = record.wake_ms.is_some_and(|at| at <= now_ms);
        if !is_due {
            return Step::Nothing;
        }
        Step::Write(
            Box::new(Append::beside(record, Vec::new(), now_ms + PUT_OFF_MS)),
            None,
        )
    }

    fn wrote(&mut self, append: &Append, known: Option<Known>) {
        let was_stuck = append
            .events
            .iter()
            .any(|entry| matches!(entry.event, Event::Stuck(..)));
        if append.status.is_end() || (was_stuck && append.status == Status::Stuck) {
            self.shared.ended(append.status);
        }
        self.watch(append.wake_ms);
        if let Some(known) = known.filter(|_| !append.status.is_end()) {
            if self.known.len() >= self.shared.options.cache {
                self.known.clear();
            }
            self.known.insert(append.id, known);
        }
    }

    /// Wakes the keeper if it would come too late.
    fn watch(&self, wake_ms: Option<i64>) {
        let Some(at) = wake_ms else {
            return;
        };
        if self.shared.next_look_ms.fetch_min(at, Ordering::SeqCst) > at {
            self.shared.look.notify_one();
        }
    }

    /// Answers those who began sagas.
    async fn begun(&mut self, begins: Vec<Waiting>, written: &[bool]) -> Result<()> {
        let mut there = Vec::new();
        for ((append, tell), written) in begins.into_iter().zip(written) {
            if *written {
                self.shared.counts.begun.fetch_add(1, Ordering::Relaxed);
                self.watch(append.wake_ms);
                self.remember(&append);
                let _ = tell.send(Ok(Begun {
                    id: append.id,
                    is_new: true,
                }));
            } else {
                there.push((append, tell));
            }
        }
        if there.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = there.iter().map(|(append, _)| append.id).collect();
        let records = self.shared.journal.load(&ids).await;
        for (append, tell) in there {
            let answer = match &records {
                Ok(records) => {
                    let record = records.iter().find(|record| record.id == append.id);
                    is_the_same(&append, record)
                }
                Err(error) => Err(error.clone()),
            };
            let _ = tell.send(answer);
        }
        Ok(())
    }

    /// A saga that was begun here is known.
    fn remember(&mut self, append: &Append) {
        let definition = self.shared.planner.definition(&append.name, append.version);
        let folded = definition.and_then(|definition| {
            let state = State::fold(&definition, &append.events).ok()?;
            Some((definition, state))
        });
        let Some((definition, state)) = folded else {
            return;
        };
        let known = Known {
            definition,
            seq: append.events.len() as i64,
            wake_ms: append.wake_ms,
            state,
        };
        if self.known.len() < self.shared.options.cache {
            self.known.insert(append.id, known);
        }
    }
}

/// Whether the same can never be written.
fn is_final(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Invalid | ErrorKind::TooLarge | ErrorKind::Corrupt | ErrorKind::NotFound
    )
}

/// The time to write: the written one stays while it is to come and not too late.
fn wake(written: Option<i64>, wanted: Option<i64>, now_ms: i64) -> Option<i64> {
    match (written, wanted) {
        (Some(written), Some(wanted)) if written > now_ms && written <= wanted => Some(written),
        (_, wanted) => wanted,
    }
}

/// Whether the saga that is there was begun with the same.
fn is_the_same(append: &Append, record: Option<&Record>) -> Result<Begun> {
    let record = record.ok_or_else(|| {
        let text = format!(
            "the saga `{}` was there and is gone: begin it again",
            append.key
        );
        Error::new(ErrorKind::Unavailable, text)
    })?;
    let started = |entries: &[Entry]| match entries.first().map(|entry| entry.event.clone()) {
        Some(Event::Started(start)) => Some((start.name, start.key, start.input)),
        _ => None,
    };
    if started(&record.entries()?) == started(&append.events) {
        return Ok(Begun {
            id: append.id,
            is_new: false,
        });
    }
    let text = format!(
        "there is a saga `{}` of `{}` with another input: give this one another key",
        append.key, append.name
    );
    Err(Error::new(ErrorKind::Conflict, text))
}

//! The machine: from a saga's state and what came in to events and commands. No clock, no I/O, no chance.
//!
//! ```text
//! reply, time passed, order ─► (state) ─► events ─► state'        and commands to be sent
//! ```
//!
//! Forward, a step is sent when all that it comes after are done. A try that is not answered in time, or whose
//! outcome is unknown, is made again, under the same idempotency key, until its [`Retry`](crate::Retry) is used
//! up. Then, before the pivot, the saga *turns*: what may have an effect is undone, latest first, the unknown
//! too. A compensation may overtake its action: participants refuse an action that was undone already. A
//! pivot, a retriable step or a compensation whose tries are used up is *stuck*, and so is the saga, until an
//! answer comes after all or an operator acts.
//!
//! # Invariants
//!
//! - The state is the fold of the events: nothing is known that is not in them.
//! - Once a pivot or retriable step is sent, a saga turns only if the pivot is refused.
//! - Of the answers to a step's action, the first that settles it counts; so for its compensation.
//! - A saga that has not ended waits for a time, or is stuck.
//! - A wish is followed by `Ordered` or `Declined`, once, by the first who takes anything after it.

mod event;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::definition::{Context, Definition, Kind, Op, millis};
use crate::{Error, ErrorKind, Result};

pub use event::{Dir, End, Entry, Event, Order, Outcome, Start, read_log, write_log};
pub use state::{Phase, State, Status, StepState, Wish};

/// What comes in.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A participant answered.
    Reply {
        /// The branch that it was asked for.
        branch: String,
        /// What it was asked to do.
        op: Op,
        /// Which try it answers.
        attempt: u32,
        /// What became of it.
        outcome: Outcome,
    },
    /// Time has passed.
    Tick,
    /// An operator orders.
    Order {
        /// Who.
        who: String,
        /// Why.
        why: String,
        /// What.
        order: Order,
    },
}

/// A command to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Send {
    /// The step, by number.
    pub step: usize,
    /// Action or compensation.
    pub dir: Dir,
    /// Which try it is, from 1.
    pub attempt: u32,
    /// The step's input.
    pub input: Value,
    /// For a compensation: what the action answered, if it is known.
    pub output: Option<Value>,
}

/// A saga's next state, and how it comes to it.
#[derive(Debug)]
pub struct Turn<'d> {
    definition: &'d Definition,
    dice: u64,
    now_ms: i64,
    /// The state after the events.
    pub state: State,
    /// What happened.
    pub events: Vec<Entry>,
    /// What is to be sent once the events are kept.
    pub sends: Vec<Send>,
}

/// Begins a saga. `dice` is what the jitter of its waits is made of: its id.
pub fn start(definition: &Definition, start: Start, dice: u64, now_ms: i64) -> Turn<'_> {
    let mut turn = Turn {
        definition,
        dice,
        now_ms,
        state: State::new(definition.steps().len(), start.clone(), now_ms),
        events: vec![Entry {
            at_ms: now_ms,
            event: Event::Started(start),
        }],
        sends: Vec::new(),
    };
    turn.go_on();
    turn
}

/// The moment until which a saga of this definition may go back.
pub fn deadline_ms(definition: &Definition, now_ms: i64) -> Option<i64> {
    definition
        .deadline()
        .map(|deadline| now_ms + millis(deadline))
}

/// Takes what came in. Without events nothing has changed: the input was late, or double.
///
/// # Errors
/// `Invalid` for an order that can't be followed, `NotFound` for a step that is not there. The state is lost
/// then; it is what the events give.
pub fn step(
    definition: &Definition,
    state: State,
    input: Input,
    dice: u64,
    now_ms: i64,
) -> Result<Turn<'_>> {
    let mut turn = resume(definition, state, dice, now_ms);
    turn.take(input)?;
    Ok(turn)
}

/// A saga in whose state nothing happened yet: what came in is given to [`Turn::take`].
pub fn resume(definition: &Definition, state: State, dice: u64, now_ms: i64) -> Turn<'_> {
    Turn {
        definition,
        dice,
        now_ms,
        state,
        events: Vec::new(),
        sends: Vec::new(),
    }
}

impl Turn<'_> {
    /// Takes one more input.
    ///
    /// # Errors
    /// As [`step`].
    pub fn take(&mut self, input: Input) -> Result<()> {
        if !self.state.mail.is_empty() {
            let mail = self.state.mail.clone();
            self.emit(Event::Taken);
            for (branch, op, attempt, outcome) in mail {
                // What is of no step that there is changes nothing.
                let _ = self.reply(&branch, op, attempt, outcome);
            }
            self.go_on();
        }
        if !self.state.wishes.is_empty() {
            let wishes = self.state.wishes.clone();
            self.emit(Event::Heard);
            for wish in wishes {
                self.grant(wish);
                self.go_on();
            }
        }
        match input {
            Input::Reply {
                branch,
                op,
                attempt,
                outcome,
            } => self.reply(&branch, op, attempt, outcome)?,
            Input::Tick => self.tick(),
            Input::Order { who, why, order } => self.order(who, why, order)?,
        }
        self.go_on();
        Ok(())
    }

    fn emit(&mut self, event: Event) {
        let applied = self.state.apply(&event);
        debug_assert!(applied.is_ok(), "the machine makes events that apply");
        self.events.push(Entry {
            at_ms: self.now_ms,
            event,
        });
    }

    fn reply(&mut self, branch: &str, op: Op, attempt: u32, outcome: Outcome) -> Result<()> {
        let found = self.definition.find(branch, op);
        let number = found.ok_or_else(|| {
            let text = format!(
                "`{}` has no step for {op:?} of `{branch}`",
                self.definition.name()
            );
            Error::new(ErrorKind::NotFound, text)
        })?;
        let is_undo = self.definition.steps()[number].op() != op;
        let dir = if is_undo { Dir::Undo } else { Dir::Act };
        if self.is_expected(number, dir, attempt, &outcome) {
            self.settle(number, dir, outcome);
        }
        Ok(())
    }

    /// Whether an answer changes anything: not if the step is settled, or goes the other way by now. That a try
    /// failed is only news while that try is waited for.
    fn is_expected(&self, number: usize, dir: Dir, attempt: u32, outcome: &Outcome) -> bool {
        let step = &self.state.steps[number];
        if self.state.end.is_some() {
            return false;
        }
        match &step.phase {
            Phase::Sent(now, _) if *now == dir => {
                attempt == step.tries || !matches!(outcome, Outcome::Unknown(_))
            }
            Phase::Paused(now, _) | Phase::Stuck(now, _) if *now == dir => {
                !matches!(outcome, Outcome::Unknown(_))
            }
            Phase::Unknown => dir == Dir::Act && !matches!(outcome, Outcome::Unknown(_)),
            _ => false,
        }
    }

    fn settle(&mut self, number: usize, dir: Dir, outcome: Outcome) {
        let kind = self.definition.steps()[number].kind();
        let at = number as u16;
        match (outcome, dir) {
            (Outcome::Done(output), _) => self.emit(Event::Done(at, dir, output)),
            (Outcome::Refused(why), Dir::Act) if kind != Kind::Retriable => {
                self.emit(Event::Refused(at, why.clone()));
                if self.state.turned.is_none() {
                    let name = self.definition.steps()[number].name();
                    self.emit(Event::Turned(format!("`{name}` was refused: {why}")));
                }
            }
            // What has to be done can't be refused.
            (Outcome::Refused(why) | Outcome::Unknown(why), _) => self.fail(number, dir, why),
        }
    }

    /// A try came to nothing: again later, or never.
    fn fail(&mut self, number: usize, dir: Dir, why: String) {
        let step = &self.definition.steps()[number];
        let tries = self.state.steps[number].tries;
        let retry = match dir {
            Dir::Act => step.act_retry(),
            Dir::Undo => step.compensation_retry(),
        };
        let at = number as u16;
        let is_turned = self.state.turned.is_some();
        let (name, kind) = (step.name(), step.kind());
        if dir == Dir::Act && kind == Kind::Compensatable && is_turned {
            self.emit(Event::Unknown(at, why));
        } else if tries < retry.attempts {
            let place = u64::from(at) << 33 | u64::from(tries) << 1 | u64::from(dir == Dir::Undo);
            let mut mixed = self.dice.to_le_bytes().to_vec();
            mixed.extend(place.to_le_bytes());
            let wait = retry.wait_ms(tries, xxhash_rust::xxh3::xxh3_64(&mixed));
            self.emit(Event::Failed(at, dir, why, self.now_ms + wait));
        } else if dir == Dir::Act && kind == Kind::Compensatable {
            let text = format!("the outcome of `{name}` is not known: {why}");
            self.emit(Event::Unknown(at, why));
            self.emit(Event::Turned(text));
        } else {
            let text = format!("{tries} tries came to nothing; the last: {why}");
            self.emit(Event::Stuck(at, dir, text));
        }
    }

    fn tick(&mut self) {
        if self.state.end.is_some() {
            return;
        }
        let late = self.state.start.deadline_ms;
        if late.is_some_and(|at| at <= self.now_ms) && self.state.can_turn(self.definition) {
            self.emit(Event::Turned("it did not come to its pivot in time".into()));
        }
        for number in 0..self.state.steps.len() {
            if let Phase::Sent(dir, until) = self.state.steps[number].phase
                && until <= self.now_ms
            {
                self.fail(number, dir, "no answer came in time".into());
            }
        }
        // What has failed for good may have turned it: then no action is sent any more.
        for number in 0..self.state.steps.len() {
            if let Phase::Paused(dir, until) = self.state.steps[number].phase
                && until <= self.now_ms
                && (dir == Dir::Undo || self.state.turned.is_none())
            {
                self.send(number, dir);
            }
        }
    }

    /// Sends a step's command once more.
    fn send(&mut self, number: usize, dir: Dir) {
        let step = &self.definition.steps()[number];
        let state = &self.state.steps[number];
        let is_same = match state.phase {
            Phase::Sent(was, _) | Phase::Paused(was, _) => was == dir,
            _ => false,
        };
        let attempt = if is_same { state.tries + 1 } else { 1 };
        let output = state.output.clone().filter(|_| dir == Dir::Undo);
        let until = self.now_ms + step.deadline_ms();
        let send = Send {
            step: number,
            dir,
            attempt,
            input: step.make_input(&self.context()),
            output,
        };
        self.sends.push(send);
        self.emit(Event::Sent(number as u16, dir, attempt, until));
    }

    fn context(&self) -> Context<'_> {
        let all = self.definition.steps().iter().zip(&self.state.steps);
        let outputs = all.filter_map(|(step, state)| Some((step.name(), state.output.as_ref()?)));
        Context {
            input: &self.state.start.input,
            outputs: outputs.collect::<BTreeMap<_, _>>(),
        }
    }

    /// Sends what can be sent now, and ends what is at its end.
    fn go_on(&mut self) {
        if self.state.end.is_some() {
            return;
        }
        if self.state.turned.is_none() {
            for number in self.state.ready(self.definition) {
                self.send(number, Dir::Act);
            }
            if self
                .state
                .steps
                .iter()
                .all(|step| step.phase == Phase::Done)
            {
                self.emit(Event::Ended(End::Completed));
            }
            return;
        }
        for number in self.state.to_undo(self.definition) {
            self.send(number, Dir::Undo);
        }
        if self.state.is_undone(self.definition) {
            self.emit(Event::Ended(End::Compensated));
        }
    }

    /// Carries out what was wished for, or says why not: the saga goes on either way.
    fn grant(&mut self, wish: Wish) {
        let Wish { who, why, order } = wish;
        if let Err(error) = self.order(who.clone(), why, order.clone()) {
            self.emit(Event::Declined(who, order, error.to_string()));
        }
    }

    /// Declines all wishes that wait: what they come to can't be written.
    pub fn decline(&mut self, why: &str) {
        if self.state.wishes.is_empty() {
            return;
        }
        let wishes = self.state.wishes.clone();
        self.emit(Event::Heard);
        for Wish { who, order, .. } in wishes {
            self.emit(Event::Declined(who, order, why.to_owned()));
        }
    }

    /// An order that can't be followed changes nothing.
    fn order(&mut self, who: String, why: String, order: Order) -> Result<()> {
        let steps = self.ordered(&order)?;
        self.emit(Event::Ordered(who.clone(), why.clone(), order.clone()));
        for (number, dir) in &steps {
            match &order {
                Order::Retry { .. } => self.send(*number, *dir),
                Order::Skip { .. } => self.emit(Event::Skipped(*number as u16, *dir)),
                Order::Force { outcome, .. } => self.settle(*number, *dir, outcome.clone()),
                Order::Abort => {}
            }
        }
        if order == Order::Abort {
            self.emit(Event::Turned(format!("{who} aborted it: {why}")));
        }
        Ok(())
    }

    /// The steps that an order is about, if it can be followed.
    fn ordered(&self, order: &Order) -> Result<Vec<(usize, Dir)>> {
        if self.state.end.is_some() {
            return refuse("the saga has ended");
        }
        match order {
            Order::Abort if self.state.can_turn(self.definition) => Ok(Vec::new()),
            Order::Abort => {
                refuse("it is being undone already, or its pivot was sent: there is no way back")
            }
            Order::Retry { step: None } => match self.stuck() {
                stuck if stuck.is_empty() => refuse("no step is stuck"),
                stuck => Ok(stuck),
            },
            Order::Retry { step: Some(name) } | Order::Skip { step: name } => {
                Ok(vec![self.stuck_step(name)?])
            }
            Order::Force { step, outcome } => Ok(vec![self.forced_step(step, outcome)?]),
        }
    }

    fn forced_step(&self, name: &str, outcome: &Outcome) -> Result<(usize, Dir)> {
        let number = self.number(name)?;
        let dir = match &self.state.steps[number].phase {
            Phase::Sent(dir, _) | Phase::Paused(dir, _) | Phase::Stuck(dir, _) => *dir,
            _ => return refuse(&format!("`{name}` is settled, or was not sent")),
        };
        let kind = self.definition.steps()[number].kind();
        let may = match outcome {
            Outcome::Done(_) => true,
            Outcome::Refused(_) => dir == Dir::Act && kind != Kind::Retriable,
            Outcome::Unknown(_) => false,
        };
        if !may {
            return refuse(&format!(
                "`{name}` can be forced to be done; refused only as an action up to the pivot"
            ));
        }
        Ok((number, dir))
    }

    fn stuck(&self) -> Vec<(usize, Dir)> {
        let all = self.state.steps.iter().enumerate();
        let stuck = all.filter_map(|(number, step)| match step.phase {
            Phase::Stuck(dir, _) => Some((number, dir)),
            _ => None,
        });
        stuck.collect()
    }

    fn stuck_step(&self, name: &str) -> Result<(usize, Dir)> {
        let number = self.number(name)?;
        let found = self.stuck().into_iter().find(|(stuck, _)| *stuck == number);
        found.map_or_else(|| refuse(&format!("`{name}` is not stuck")), Ok)
    }

    fn number(&self, name: &str) -> Result<usize> {
        let all = self.definition.steps();
        let found = all.iter().position(|step| step.name() == name);
        // Where the names are not known, steps are named by number.
        let numbered = || name.strip_prefix('#')?.parse::<usize>().ok();
        let found = found.or_else(|| numbered().filter(|number| *number < all.len()));
        found.ok_or_else(|| {
            let text = format!("`{}` has no step `{name}`", self.definition.name());
            Error::new(ErrorKind::NotFound, text)
        })
    }
}

fn refuse<T>(text: &str) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, text))
}

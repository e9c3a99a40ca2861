//! [`State`]: where a saga stands; the fold of its events.

use std::fmt;

use serde_json::Value;

use super::event::{Dir, End, Entry, Event, Order, Outcome, Start};
use crate::definition::{Definition, Kind, Op};
use crate::{Error, ErrorKind, Result};

/// Where a saga stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// It goes forward.
    Running,
    /// It is being undone.
    Compensating,
    /// A step can't go on by itself: an operator has to act.
    Stuck,
    /// Every step is done.
    Completed,
    /// What was done is undone.
    Compensated,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 5] = [
        Status::Running,
        Status::Compensating,
        Status::Stuck,
        Status::Completed,
        Status::Compensated,
    ];

    /// As it is stored.
    pub fn number(self) -> i16 {
        match self {
            Status::Running => 0,
            Status::Compensating => 1,
            Status::Stuck => 2,
            Status::Completed => 3,
            Status::Compensated => 4,
        }
    }

    /// Reads what [`Status::number`] gave.
    pub fn of(number: i64) -> Option<Status> {
        let is = |status: &Status| i64::from(status.number()) == number;
        Status::ALL.into_iter().find(is)
    }

    /// Whether nothing will happen any more.
    pub fn is_end(self) -> bool {
        matches!(self, Status::Completed | Status::Compensated)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Running => "running",
            Status::Compensating => "compensating",
            Status::Stuck => "stuck",
            Status::Completed => "completed",
            Status::Compensated => "compensated",
        })
    }
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It was not sent.
    Waiting,
    /// An answer is waited for, until this time.
    Sent(Dir, i64),
    /// A try failed, the next is at this time.
    Paused(Dir, i64),
    /// It can't go on by itself.
    Stuck(Dir, String),
    /// Its action is done.
    Done,
    /// Its action was refused.
    Refused,
    /// Whether its action is done is not known.
    Unknown,
    /// It is undone.
    Undone,
}

/// A step of a running saga.
#[derive(Debug, Clone, PartialEq)]
pub struct StepState {
    /// Where it stands.
    pub phase: Phase,
    /// How often it was tried in its present direction.
    pub tries: u32,
    /// What its action answered.
    pub output: Option<Value>,
}

impl StepState {
    /// Whether its action may have an effect that is not undone.
    pub(super) fn may_have_effect(&self, undo_refused: bool) -> bool {
        match self.phase {
            Phase::Waiting | Phase::Undone => false,
            Phase::Refused => undo_refused,
            _ => true,
        }
    }

    /// Whether it is on its way back: its compensation is asked for, and not made.
    fn is_going_back(&self) -> bool {
        use Phase::{Paused, Sent, Stuck};
        let (Sent(dir, _) | Paused(dir, _) | Stuck(dir, _)) = &self.phase else {
            return false;
        };
        *dir == Dir::Undo
    }
}

/// Where a saga stands.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// What it was begun with.
    pub start: Start,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// Its steps, by number.
    pub steps: Vec<StepState>,
    /// Why it is being undone, if it is.
    pub turned: Option<String>,
    /// Answers that wait to be taken: branch, operation, try, outcome.
    pub mail: Vec<(String, Op, u32, Outcome)>,
    /// Orders that wait to be carried out.
    pub wishes: Vec<Wish>,
    /// How it ended.
    pub end: Option<End>,
}

/// An order that waits for a coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Who gave it.
    pub who: String,
    /// Why.
    pub why: String,
    /// What.
    pub order: Order,
}

impl State {
    /// The state after these events.
    ///
    /// # Errors
    /// `Corrupt` when they can't be of a saga of this definition.
    pub fn fold(definition: &Definition, entries: &[Entry]) -> Result<State> {
        let Some((first, rest)) = entries.split_first() else {
            return Err(corrupt("the log is empty"));
        };
        let Event::Started(start) = &first.event else {
            return Err(corrupt("the log does not begin with a start"));
        };
        if start.shape != definition.shape() {
            let text = format!(
                "version {} of `{}` has other steps than when this saga began: bring that definition \
                 back, and give the new one a new version",
                start.version, start.name
            );
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        let mut state = State::new(definition.steps().len(), start.clone(), first.at_ms);
        for entry in rest {
            state.apply(&entry.event)?;
        }
        Ok(state)
    }

    /// The same without the definition: the steps are those that the log names, or in older logs those that
    /// something happened to. `None` when it can't be told.
    pub fn glean(entries: &[Entry]) -> Option<State> {
        let (first, rest) = entries.split_first()?;
        let Event::Started(start) = &first.event else {
            return None;
        };
        let touched = rest.iter().filter_map(|entry| entry.event.step());
        let touched = touched.max().map_or(0, |number| usize::from(number) + 1);
        let steps = start.steps.len().max(touched);
        let mut state = State::new(steps, start.clone(), first.at_ms);
        for entry in rest {
            state.apply(&entry.event).ok()?;
        }
        Some(state)
    }

    pub(super) fn new(steps: usize, start: Start, at_ms: i64) -> State {
        let waiting = StepState {
            phase: Phase::Waiting,
            tries: 0,
            output: None,
        };
        State {
            start,
            started_ms: at_ms,
            steps: vec![waiting; steps],
            turned: None,
            mail: Vec::new(),
            wishes: Vec::new(),
            end: None,
        }
    }

    /// Applies an event.
    ///
    /// # Errors
    /// `Corrupt` when it can't follow.
    pub fn apply(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Started(_) => return Err(corrupt("it began twice")),
            Event::Sent(step, dir, tries, until) => {
                let step = self.step(*step)?;
                (step.phase, step.tries) = (Phase::Sent(*dir, *until), *tries);
            }
            Event::Done(step, Dir::Act, output) => {
                let step = self.step(*step)?;
                (step.phase, step.output) = (Phase::Done, Some(output.clone()));
            }
            Event::Done(step, Dir::Undo, _) => self.step(*step)?.phase = Phase::Undone,
            Event::Refused(step, _) => self.step(*step)?.phase = Phase::Refused,
            Event::Failed(step, dir, _, at) => self.step(*step)?.phase = Phase::Paused(*dir, *at),
            Event::Unknown(step, _) => self.step(*step)?.phase = Phase::Unknown,
            Event::Stuck(step, dir, why) => {
                self.step(*step)?.phase = Phase::Stuck(*dir, why.clone());
            }
            Event::Skipped(step, Dir::Act) => self.step(*step)?.phase = Phase::Done,
            Event::Skipped(step, Dir::Undo) => self.step(*step)?.phase = Phase::Undone,
            Event::Turned(why) => self.turned = Some(why.clone()),
            Event::Ordered(..) | Event::Declined(..) => {}
            Event::Mail(branch, op, attempt, outcome) => {
                self.mail
                    .push((branch.clone(), *op, *attempt, outcome.clone()));
            }
            Event::Taken => self.mail.clear(),
            Event::Wished(who, why, order) => self.wishes.push(Wish {
                who: who.clone(),
                why: why.clone(),
                order: order.clone(),
            }),
            Event::Heard => self.wishes.clear(),
            Event::Ended(end) => self.end = Some(*end),
        }
        Ok(())
    }

    fn step(&mut self, number: u16) -> Result<&mut StepState> {
        let found = self.steps.get_mut(usize::from(number));
        found.ok_or_else(|| corrupt(&format!("there is no step {number}")))
    }

    /// Where it stands, in one word.
    pub fn status(&self) -> Status {
        let is_stuck = |step: &StepState| matches!(step.phase, Phase::Stuck(..));
        match (self.end, &self.turned) {
            (Some(End::Completed), _) => Status::Completed,
            (Some(End::Compensated), _) => Status::Compensated,
            _ if self.steps.iter().any(is_stuck) => Status::Stuck,
            (None, Some(_)) => Status::Compensating,
            (None, None) => Status::Running,
        }
    }

    /// When to look at it again if nothing comes, in milliseconds since 1970; `None`: not at all.
    pub fn wake_ms(&self, definition: &Definition) -> Option<i64> {
        if self.end.is_some() {
            return None;
        }
        if !self.mail.is_empty() || !self.wishes.is_empty() {
            return Some(self.started_ms);
        }
        let steps = self.steps.iter().filter_map(|step| match step.phase {
            Phase::Sent(_, at) | Phase::Paused(_, at) => Some(at),
            _ => None,
        });
        let deadline = self.start.deadline_ms.filter(|_| self.can_turn(definition));
        steps.chain(deadline).min()
    }

    /// Whether it may still be undone: nothing was sent that can't be, and it is not undone already.
    pub(super) fn can_turn(&self, definition: &Definition) -> bool {
        let may = |(step, state): (&crate::Step, &StepState)| {
            step.kind() == Kind::Compensatable
                || matches!(state.phase, Phase::Waiting | Phase::Refused)
        };
        let mut all = definition.steps().iter().zip(&self.steps);
        self.turned.is_none() && self.end.is_none() && all.all(may)
    }

    /// Steps whose action may begin.
    pub(super) fn ready(&self, definition: &Definition) -> Vec<usize> {
        let is_done = |number: &usize| self.steps[*number].phase == Phase::Done;
        let all = definition.steps().iter().enumerate();
        let waiting = all.filter(|(number, _)| self.steps[*number].phase == Phase::Waiting);
        let ready = waiting.filter(|(_, step)| step.after().iter().all(is_done));
        ready.map(|(number, _)| number).collect()
    }

    /// Steps whose compensation may begin: nothing that came after them is left.
    pub(super) fn to_undo(&self, definition: &Definition) -> Vec<usize> {
        let is_left = |number: usize| {
            let step = &definition.steps()[number];
            step.kind() == Kind::Compensatable
                && self.steps[number].may_have_effect(step.is_undone_when_refused())
        };
        let is_free = |number: usize| {
            let later = definition.steps().iter().enumerate();
            let mut later = later.filter(|(_, step)| step.after().contains(&number));
            later.all(|(other, _)| !is_left(other))
        };
        let all = 0..self.steps.len();
        all.filter(|number| is_left(*number) && is_free(*number))
            .filter(|number| !self.steps[*number].is_going_back())
            .collect()
    }

    /// Whether nothing is left that has to be undone.
    pub(super) fn is_undone(&self, definition: &Definition) -> bool {
        let all = definition.steps().iter().zip(&self.steps);
        let mut left = all.filter(|(step, state)| {
            step.kind() == Kind::Compensatable
                && state.may_have_effect(step.is_undone_when_refused())
        });
        left.next().is_none()
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the saga's events: {what}"))
}

//! [`Definition`]: which steps a saga has, in what order, and how they are undone.
//!
//! ```text
//! compensatable, compensatable ... ─► at most one pivot ─► retriable, retriable ...
//! ```
//!
//! A *compensatable* step can be undone. The *pivot* decides: once it is done the saga goes forward only. A
//! *retriable* step can't be refused for good. The builder has types for the three, so that a wrong order does
//! not compile:
//!
//! ```
//! use quorate_saga::{Saga, Step};
//! let order = Saga::named("order")
//!     .version(1)
//!     .step(Step::new("reserve", "stock"))
//!     .pivot(Step::new("pay", "accounts"))
//!     .then(Step::new("ship", "orders"))
//!     .build()?;
//! assert_eq!(order.steps().len(), 3);
//! # Ok::<(), quorate_saga::Error>(())
//! ```
//!
//! Nothing that can be refused comes after the pivot:
//!
//! ```compile_fail,E0599
//! use quorate_saga::{Saga, Step};
//! Saga::named("order").pivot(Step::new("pay", "accounts")).step(Step::new("reserve", "stock"));
//! ```
//!
//! There is one pivot:
//!
//! ```compile_fail,E0599
//! use quorate_saga::{Saga, Step};
//! Saga::named("order").pivot(Step::new("a", "t")).pivot(Step::new("b", "t"));
//! ```
//!
//! After a retriable step there is no pivot:
//!
//! ```compile_fail,E0599
//! use quorate_saga::{Saga, Step};
//! Saga::named("order").then(Step::new("a", "t")).pivot(Step::new("b", "t"));
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use quorate_outbox::{Limits, Message};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// At most so many steps.
const STEPS_MAX: usize = 256;
/// The longest name of a saga or step, in bytes.
const NAME_BYTES: usize = 128;

/// What may become of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It can be undone.
    Compensatable,
    /// When it is done nothing is undone any more.
    Pivot,
    /// It is tried until it is done.
    Retriable,
}

/// What a participant is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// A step's action; a TCC branch's try.
    Act,
    /// A step's compensation; a TCC branch's cancel.
    Undo,
    /// A TCC branch's confirm.
    Confirm,
}

/// How often and when a step is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// So many tries in all.
    pub attempts: u32,
    /// The wait after the first try that failed; doubles, with jitter.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Retry {
    /// So many tries with the usual waits: from 200 ms to 30 s.
    pub const fn attempts(attempts: u32) -> Retry {
        Retry {
            attempts,
            first: Duration::from_millis(200),
            max: Duration::from_secs(30),
        }
    }

    /// The wait after this many tries, in milliseconds. `dice` is what the jitter is made of: a wait is
    /// between half and the whole of its nominal length.
    pub(crate) fn wait_ms(&self, tries: u32, dice: u64) -> i64 {
        let doubled = self
            .first
            .saturating_mul(1 << tries.saturating_sub(1).min(20));
        let nominal = doubled.min(self.max).as_millis().min(1 << 40) as u64;
        (nominal / 2 + dice % (nominal / 2 + 1)) as i64
    }
}

/// What the input of a step is made from.
#[derive(Debug)]
pub struct Context<'a> {
    /// The input of the saga.
    pub input: &'a Value,
    /// What steps that are done have answered, by name.
    pub outputs: BTreeMap<&'a str, &'a Value>,
}

type InputOf = Arc<dyn Fn(&Context<'_>) -> Value + Send + Sync>;

/// One step, with the topic of the service that does it.
#[derive(Clone)]
pub struct Step {
    name: String,
    branch: String,
    topic: String,
    kind: Kind,
    op: Op,
    deadline: Duration,
    retry: Option<Retry>,
    undo_retry: Retry,
    undo_refused: bool,
    input: Option<InputOf>,
    after: Vec<usize>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Step");
        shown.field("name", &self.name).field("topic", &self.topic);
        shown.field("kind", &self.kind).field("after", &self.after);
        shown.finish_non_exhaustive()
    }
}

impl Step {
    /// A step that the consumers of `topic` do. Its input is the saga's, and a try waits 10 s for its answer.
    pub fn new(name: impl Into<String>, topic: impl Into<String>) -> Step {
        let name = name.into();
        Step {
            branch: name.clone(),
            name,
            topic: topic.into(),
            kind: Kind::Compensatable,
            op: Op::Act,
            deadline: Duration::from_secs(10),
            retry: None,
            undo_retry: Retry::attempts(10),
            undo_refused: false,
            input: None,
            after: Vec::new(),
        }
    }

    /// How long one try waits for its answer.
    pub fn deadline(mut self, deadline: Duration) -> Step {
        self.deadline = deadline;
        self
    }

    /// How its action is tried again. Default: 3 tries where it can be undone, else 20.
    pub fn retry(mut self, retry: Retry) -> Step {
        self.retry = Some(retry);
        self
    }

    /// How its compensation is tried again. Default: 10 tries.
    pub fn undo_retry(mut self, retry: Retry) -> Step {
        self.undo_retry = retry;
        self
    }

    /// Undoes it also when it was refused: for participants that may have left something all the same.
    pub fn undo_refused(mut self) -> Step {
        self.undo_refused = true;
        self
    }

    /// Makes its input from the saga's and from earlier outputs. Must give the same for the same.
    pub fn input(mut self, of: impl Fn(&Context<'_>) -> Value + Send + Sync + 'static) -> Step {
        self.input = Some(Arc::new(of));
        self
    }

    /// The confirm of what an earlier step tried, for a TCC branch within a saga: that step's service holds what is
    /// needed (`act`), gives it back if the saga is compensated (`undo`), and uses it here (`confirm`). It comes after
    /// the pivot, goes to the same topic, and is named `<branch>.confirm`.
    pub fn confirm(branch: &str, topic: impl Into<String>) -> Step {
        Step::new(format!("{branch}.confirm"), topic).on_branch(branch, Op::Confirm)
    }

    /// The same as another operation on a branch: steps of one branch share a fence.
    pub(crate) fn on_branch(mut self, branch: &str, op: Op) -> Step {
        branch.clone_into(&mut self.branch);
        self.op = op;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its fence belongs to; the name, but for TCC.
    pub fn branch(&self) -> &str {
        &self.branch
    }

    /// Where its commands go.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What may become of it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The steps that have to be done before it, by number.
    pub fn after(&self) -> &[usize] {
        &self.after
    }

    pub(crate) fn op(&self) -> Op {
        self.op
    }

    pub(crate) fn deadline_ms(&self) -> i64 {
        millis(self.deadline)
    }

    pub(crate) fn is_undone_when_refused(&self) -> bool {
        self.undo_refused
    }

    pub(crate) fn act_retry(&self) -> Retry {
        let usual = match self.kind {
            Kind::Compensatable => Retry::attempts(3),
            _ => Retry::attempts(20),
        };
        self.retry.unwrap_or(usual)
    }

    pub(crate) fn compensation_retry(&self) -> Retry {
        self.undo_retry
    }

    pub(crate) fn make_input(&self, context: &Context<'_>) -> Value {
        match &self.input {
            Some(of) => of(context),
            None => context.input.clone(),
        }
    }
}

pub(crate) fn millis(duration: Duration) -> i64 {
    duration.as_millis().min(i64::MAX as u128 / 4) as i64
}

/// State of the builder: steps that can be undone may follow.
#[derive(Debug)]
pub struct Open;
/// State of the builder: only retriable steps may follow.
#[derive(Debug)]
pub struct Decided;

/// Builds a [`Definition`].
#[derive(Debug)]
pub struct Saga<S> {
    name: String,
    version: u32,
    deadline: Option<Duration>,
    steps: Vec<Step>,
    /// The last steps of what is built so far: those the next one waits for.
    ends: Vec<usize>,
    state: PhantomData<S>,
}

impl Saga<Open> {
    /// Begins a definition.
    pub fn named(name: impl Into<String>) -> Saga<Open> {
        Saga {
            name: name.into(),
            version: 1,
            deadline: None,
            steps: Vec::new(),
            ends: Vec::new(),
            state: PhantomData,
        }
    }

    /// Its version. A saga ends with the version with which it began.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// How long it may take to the pivot; it is compensated then. After the pivot there is no way back.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Adds a step that can be undone.
    pub fn step(self, step: Step) -> Self {
        self.branches(Kind::Compensatable, vec![vec![step]])
    }

    /// Adds branches that run at the same time; each is a line of steps that can be undone.
    pub fn parallel(self, branches: impl IntoIterator<Item = Vec<Step>>) -> Self {
        self.branches(Kind::Compensatable, branches)
    }

    /// Adds the step that decides.
    pub fn pivot(self, step: Step) -> Saga<Decided> {
        self.branches(Kind::Pivot, vec![vec![step]]).decided()
    }

    /// Adds a step that is tried until it is done. When the first such step is sent, there is no way back.
    pub fn then(self, step: Step) -> Saga<Decided> {
        self.decided().then(step)
    }

    /// Adds branches that run at the same time, of steps that are tried until they are done.
    pub fn then_parallel(self, branches: impl IntoIterator<Item = Vec<Step>>) -> Saga<Decided> {
        self.decided().then_parallel(branches)
    }

    fn decided(self) -> Saga<Decided> {
        Saga {
            name: self.name,
            version: self.version,
            deadline: self.deadline,
            steps: self.steps,
            ends: self.ends,
            state: PhantomData,
        }
    }
}

impl Saga<Decided> {
    /// Adds a step that is tried until it is done.
    pub fn then(self, step: Step) -> Self {
        self.branches(Kind::Retriable, vec![vec![step]])
    }

    /// Adds branches that run at the same time, of steps that are tried until they are done.
    pub fn then_parallel(self, branches: impl IntoIterator<Item = Vec<Step>>) -> Self {
        self.branches(Kind::Retriable, branches)
    }
}

impl<S> Saga<S> {
    fn branches(mut self, kind: Kind, branches: impl IntoIterator<Item = Vec<Step>>) -> Self {
        let mut ends = Vec::new();
        for branch in branches {
            let mut after = self.ends.clone();
            for mut step in branch {
                step.kind = kind;
                step.after = std::mem::replace(&mut after, vec![self.steps.len()]);
                self.steps.push(step);
            }
            if after != self.ends {
                ends.extend(after);
            }
        }
        if !ends.is_empty() {
            self.ends = ends;
        }
        self
    }

    /// Checks and ends the definition.
    ///
    /// # Errors
    /// `Invalid` without steps, with more than 256, with two of one name, with a confirm of what no earlier step of
    /// the same topic tries, and for names, topics and retries that can't be.
    pub fn build(self) -> Result<Definition> {
        check_name("saga", &self.name)?;
        if self.steps.is_empty() || self.steps.len() > STEPS_MAX {
            return invalid(format!(
                "`{}`: a saga has 1 to {STEPS_MAX} steps",
                self.name
            ));
        }
        let mut names = HashSet::new();
        let mut fences = HashSet::new();
        for step in &self.steps {
            check_step(&self.name, step)?;
            if !names.insert(&step.name) || !fences.insert((&step.branch, step.op)) {
                let name = &step.name;
                return invalid(format!("`{}` has two steps `{name}`", self.name));
            }
            check_confirm(&self.name, step, &self.steps)?;
        }
        let shape = shape(&self.steps);
        Ok(Definition {
            name: self.name,
            version: self.version,
            deadline: self.deadline,
            steps: self.steps,
            shape,
        })
    }
}

fn check_name(what: &str, name: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES || !name.chars().all(legal) {
        let text = format!("the {what}'s name `{name}` is not 1 to 128 of a-z A-Z 0-9 . _ -");
        return invalid(text);
    }
    Ok(())
}

fn check_step(saga: &str, step: &Step) -> Result<()> {
    check_name("step", &step.name)?;
    let topic = Limits::default().check(&Message::unordered(step.topic.as_str(), ""));
    topic.map_err(|e| {
        Error::new(
            ErrorKind::Invalid,
            format!("`{saga}`, `{}`: {e}", step.name),
        )
    })?;
    if step.act_retry().attempts == 0 || step.undo_retry.attempts == 0 || step.deadline.is_zero() {
        let text = "at least one try, and some time for its answer";
        return invalid(format!("`{saga}`: the step `{}` needs {text}", step.name));
    }
    Ok(())
}

/// What is confirmed was tried before, by the same service, and could be undone until then.
fn check_confirm(saga: &str, step: &Step, all: &[Step]) -> Result<()> {
    if step.op != Op::Confirm {
        return Ok(());
    }
    let (name, branch) = (&step.name, &step.branch);
    if step.kind != Kind::Retriable {
        return invalid(format!(
            "`{saga}`: the confirm `{name}` comes after the pivot"
        ));
    }
    let tries = |tried: &Step| {
        let is_act = tried.branch == *branch && tried.op == Op::Act;
        is_act && tried.kind == Kind::Compensatable && tried.topic == step.topic
    };
    if !all.iter().any(tries) {
        let topic = &step.topic;
        let text = format!("no step `{branch}` of the topic `{topic}` that can be undone");
        return invalid(format!(
            "`{saga}`: there is {text}, for `{name}` to confirm"
        ));
    }
    Ok(())
}

fn invalid<T>(text: String) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, text))
}

/// What may not change while sagas of this version run.
fn shape(steps: &[Step]) -> u64 {
    let mut text = String::new();
    for step in steps {
        let (kind, op) = (step.kind, step.op);
        text += &format!(
            "{} {} {kind:?} {op:?} {:?}\n",
            step.name, step.branch, step.after
        );
    }
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

/// Which steps a saga has, in what order. Made by [`Saga`].
#[derive(Debug, Clone)]
pub struct Definition {
    name: String,
    version: u32,
    deadline: Option<Duration>,
    steps: Vec<Step>,
    shape: u64,
}

impl Definition {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Its steps, each after those that it waits for.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Tells definitions of one name and version apart whose steps are not the same.
    pub fn shape(&self) -> u64 {
        self.shape
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// The step that does this operation on a branch, by number.
    pub(crate) fn find(&self, branch: &str, op: Op) -> Option<usize> {
        let acts = |step: &Step| step.branch == branch && step.op == op;
        let undoes = |step: &Step| {
            step.branch == branch && op == Op::Undo && step.kind == Kind::Compensatable
        };
        self.steps
            .iter()
            .position(|step| acts(step) || undoes(step))
    }
}

/// All definitions that a process knows, in all versions whose sagas may still run.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    all: BTreeMap<(String, u32), Arc<Definition>>,
}

impl Registry {
    /// None yet.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Adds a definition.
    ///
    /// # Errors
    /// `Invalid` when that version is there already.
    pub fn with(mut self, definition: Definition) -> Result<Registry> {
        let of = (definition.name.clone(), definition.version);
        if self.all.contains_key(&of) {
            return invalid(format!("version {} of `{}` is there twice", of.1, of.0));
        }
        self.all.insert(of, Arc::new(definition));
        Ok(self)
    }

    /// A version of a definition.
    pub fn get(&self, name: &str, version: u32) -> Option<&Arc<Definition>> {
        self.all.get(&(name.to_owned(), version))
    }

    /// The newest version of a definition.
    pub fn newest(&self, name: &str) -> Option<&Arc<Definition>> {
        let range = (name.to_owned(), 0)..=(name.to_owned(), u32::MAX);
        self.all.range(range).next_back().map(|(_, found)| found)
    }

    /// Name and version of all.
    pub fn known(&self) -> Vec<(String, u32)> {
        self.all.keys().cloned().collect()
    }
}

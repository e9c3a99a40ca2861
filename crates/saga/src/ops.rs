//! [`Operations`]: what an operator sees and does, over the journal, whether a coordinator runs or not.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::definition::Definition;
use crate::journal::{Append, Count, Filter, Journal, Record, saga_id};
use crate::machine::{self, Entry, Event, Input, Order, Outcome, Phase, State, Status, Wish};
use crate::plan::{Planner, dice};
use crate::{Error, ErrorKind, Result};

/// So often an order that a coordinator comes between is tried.
const TRIES: usize = 16;
/// The longest reason or name of an operator, in bytes.
const REASON_BYTES: usize = 1000;
/// The largest value that a step is said to have answered, in bytes of JSON.
const VALUE_BYTES: usize = 256 << 10;
/// So many orders may wait at one saga.
const WISHES: usize = 100;

/// A saga as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// What is kept of it.
    pub record: Record,
    /// Its history; empty if it can't be read.
    pub history: Vec<Entry>,
    /// Its steps: name and where it stands. Without the definition as the log names them, in older logs by number.
    pub steps: Vec<(String, Phase)>,
    /// Orders that wait for a coordinator.
    pub wishes: Vec<Wish>,
    /// Why it can't be read whole: damage, or a definition that is not known here.
    pub trouble: Option<String>,
}

/// A stuck step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckStep {
    /// The saga.
    pub id: Uuid,
    /// Its definition's name.
    pub name: String,
    /// Its key.
    pub key: String,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// The step: by name if the definition is known, else by number.
    pub step: String,
    /// Action or compensation.
    pub dir: machine::Dir,
    /// Why, as it was said last.
    pub why: String,
}

/// An operator's view of a journal. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    journal: Arc<dyn Journal>,
    planner: Option<Planner>,
}

impl Operations {
    /// Over a journal. For sagas whose definition is not in the planner's registry there is no [`Operations::order`].
    pub fn new(journal: Arc<dyn Journal>, planner: Planner) -> Operations {
        let planner = Some(planner);
        Operations { journal, planner }
    }

    /// Over a journal, without any definition: for looking, and for [`Operations::wish`].
    pub fn without_definitions(journal: Arc<dyn Journal>) -> Operations {
        let planner = None;
        Operations { journal, planner }
    }

    /// How many sagas there are, by definition and standing.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn count(&self) -> Result<Vec<Count>> {
        self.journal.count().await
    }

    /// Sagas, oldest first.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn list(&self, filter: &Filter, limit: usize) -> Result<Vec<Record>> {
        self.journal.list(filter, limit).await
    }

    /// Steps that can't go on by themselves, oldest saga first.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn stuck(&self, limit: usize) -> Result<Vec<StuckStep>> {
        let filter = Filter {
            status: Some(Status::Stuck),
            name: None,
        };
        let mut stuck = Vec::new();
        for record in self.journal.list(&filter, limit).await? {
            stuck.extend(self.stuck_steps(&record));
        }
        Ok(stuck)
    }

    fn stuck_steps(&self, record: &Record) -> Vec<StuckStep> {
        let of = |step: String, dir, why| StuckStep {
            id: record.id,
            name: record.name.clone(),
            key: record.key.clone(),
            started_ms: record.started_ms,
            step,
            dir,
            why,
        };
        let shown = self.shown(record.clone());
        let phases = shown.steps.iter().filter_map(|(step, phase)| match phase {
            Phase::Stuck(dir, why) => Some(of(step.clone(), *dir, why.clone())),
            _ => None,
        });
        let known: Vec<StuckStep> = phases.collect();
        if !known.is_empty() {
            return known;
        }
        // Its log can't be read: that it is stuck is known all the same.
        let trouble = shown.trouble.unwrap_or_default();
        vec![of("?".into(), machine::Dir::Act, trouble)]
    }

    /// A saga with its history.
    ///
    /// # Errors
    /// `NotFound`; what the journal says.
    pub async fn show(&self, id: Uuid) -> Result<Shown> {
        Ok(self.shown(self.record(id).await?))
    }

    /// The same by definition and key.
    ///
    /// # Errors
    /// As [`Operations::show`].
    pub async fn show_key(&self, name: &str, key: &str) -> Result<Shown> {
        self.show(saga_id(name, key)).await
    }

    fn shown(&self, record: Record) -> Shown {
        let mut shown = Shown {
            history: Vec::new(),
            steps: Vec::new(),
            wishes: Vec::new(),
            trouble: None,
            record,
        };
        match shown.record.entries() {
            Ok(history) => shown.history = history,
            Err(error) => {
                shown.trouble = Some(error.to_string());
                return shown;
            }
        }
        let (name, version) = (&shown.record.name, shown.record.version);
        let planner = self.planner.as_ref();
        let definition = planner.and_then(|planner| planner.definition(name, version));
        let state = match &definition {
            Some(known) => State::fold(known, &shown.history).map_err(|error| error.to_string()),
            None => Err(format!("version {version} of `{name}` is not known here")),
        };
        let gleaned = state.or_else(|trouble| {
            shown.trouble = planner.map(|_| trouble);
            State::glean(&shown.history).ok_or(())
        });
        if let Ok(state) = gleaned {
            shown.wishes = state.wishes.clone();
            shown.steps = named(definition.as_deref(), state);
        }
        shown
    }

    /// Follows an order, and notes who gave it and why in the saga's history. Answers where it stands then.
    ///
    /// # Errors
    /// `Invalid` for an order that can't be followed, and without a name or a reason; `NotFound` for a saga,
    /// definition or step that is not there; `Conflict` for a definition that was changed; `Unavailable`.
    pub async fn order(&self, id: Uuid, who: &str, why: &str, order: Order) -> Result<Status> {
        check(who, why, &order)?;
        for _ in 0..TRIES {
            let record = self.record(id).await?;
            let (name, version) = (&record.name, record.version);
            let planner = self.planner.as_ref();
            let known = planner.and_then(|all| Some((all, all.definition(name, version)?)));
            let (planner, definition) = known.ok_or_else(|| {
                let text =
                    format!("version {version} of `{name}` is not known here: order where it is");
                Error::new(ErrorKind::NotFound, text)
            })?;
            let state = State::fold(&definition, &record.entries()?)?;
            let input = Input::Order {
                who: who.to_owned(),
                why: why.to_owned(),
                order: order.clone(),
            };
            let turn = machine::step(&definition, state, input, dice(id), now_ms())?;
            let wake_ms = turn.state.wake_ms(&definition);
            let (append, state) = planner.append(&definition, id, record.seq, turn, wake_ms)?;
            if self.written(&append).await? {
                tracing::info!(saga = %id, who, why, ?order, "an order was followed");
                return Ok(state.status());
            }
        }
        Err(busy())
    }

    /// Notes an order in the saga's log for a coordinator, which carries it out, or declines it and says why. What
    /// became of it is in the history: [`Event::Ordered`] or [`Event::Declined`]. Needs no definition.
    ///
    /// # Errors
    /// `Invalid` without a name or a reason, for a saga that has ended, and when too many orders wait; `NotFound` for
    /// a saga or step that is not there; `TooLarge`; `Corrupt` for a log that can't be read; `Unavailable`.
    pub async fn wish(&self, id: Uuid, who: &str, why: &str, order: Order) -> Result<()> {
        check(who, why, &order)?;
        for _ in 0..TRIES {
            let record = self.record(id).await?;
            if record.status.is_end() {
                let text = format!(
                    "the saga has ended, {}: there is nothing to order",
                    record.status
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            let entries = record.entries()?;
            if let Some(state) = State::glean(&entries) {
                may_wish(&state, &order)?;
            }
            let now_ms = now_ms();
            let wished = Entry {
                at_ms: now_ms,
                event: Event::Wished(who.to_owned(), why.to_owned(), order.clone()),
            };
            // Its time has come by the clock of whoever began it, too.
            let wake_ms = now_ms.min(record.started_ms);
            let append = Append::beside(&record, vec![wished], wake_ms);
            if self.written(&append).await? {
                tracing::info!(saga = %id, who, why, ?order, "an order was noted");
                return Ok(());
            }
        }
        Err(busy())
    }

    async fn written(&self, append: &Append) -> Result<bool> {
        let one = std::slice::from_ref(append);
        let written = self.journal.append(None, one).await?;
        Ok(written.first() == Some(&true))
    }

    async fn record(&self, id: Uuid) -> Result<Record> {
        let found = self.journal.load(&[id]).await?.pop();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no saga {id}")))
    }
}

/// The steps, by the names that are known: of the definition, of the log, or numbers.
fn named(definition: Option<&Definition>, state: State) -> Vec<(String, Phase)> {
    let names = match definition {
        Some(known) => known
            .steps()
            .iter()
            .map(|step| step.name().to_owned())
            .collect(),
        None => state.start.steps,
    };
    let all = state.steps.into_iter().enumerate();
    let all = all.map(|(number, at)| {
        let name = names.get(number).cloned();
        (name.unwrap_or_else(|| format!("#{number}")), at.phase)
    });
    all.collect()
}

/// What every order has to be.
fn check(who: &str, why: &str, order: &Order) -> Result<()> {
    let mut texts = vec![("name of who gives it", who), ("reason", why)];
    if let Order::Force { outcome, .. } = order
        && let Outcome::Refused(said) | Outcome::Unknown(said) = outcome
    {
        texts.push(("reason of the step", said));
    }
    if let Order::Retry { step: Some(step) } | Order::Skip { step } | Order::Force { step, .. } =
        order
    {
        texts.push(("name of a step", step));
    }
    for (what, text) in texts {
        if text.trim().is_empty() || text.len() > REASON_BYTES || text.contains('\0') {
            let text = format!("an order has a {what}, of 1 to {REASON_BYTES} bytes");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
    }
    if let Order::Force { outcome, .. } = order
        && let Outcome::Done(value) = outcome
    {
        let size = value.to_string().len();
        if size > VALUE_BYTES {
            let text = format!(
                "the value of the step: {size} bytes, more than the limit of {VALUE_BYTES}"
            );
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
    }
    Ok(())
}

/// What can be told of a wish without the definition.
fn may_wish(state: &State, order: &Order) -> Result<()> {
    if state.wishes.len() >= WISHES {
        let text = format!(
            "{WISHES} orders wait at this saga already: no coordinator that knows its definition runs"
        );
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let (Order::Retry { step: Some(step) } | Order::Skip { step } | Order::Force { step, .. }) =
        order
    else {
        return Ok(());
    };
    let names = &state.start.steps;
    if names.is_empty() || names.contains(step) || step.starts_with('#') {
        return Ok(());
    }
    let text = format!(
        "`{}` has no step `{step}`; it has: {}",
        state.start.name,
        names.join(", ")
    );
    Err(Error::new(ErrorKind::NotFound, text))
}

fn busy() -> Error {
    let text = "the saga is changed by others all the time: order again";
    Error::new(ErrorKind::Unavailable, text)
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as i64)
}

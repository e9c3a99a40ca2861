//! [`Operations`]: what an operator sees and does, over the journal, whether a coordinator runs or not.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::journal::{Count, Filter, Journal, Record, saga_id};
use crate::machine::{self, Entry, Event, Input, Order, Phase, State, Status};
use crate::plan::{Planner, dice};
use crate::{Error, ErrorKind, Result};

/// So often an order that a coordinator comes between is tried.
const TRIES: usize = 16;
/// The longest reason or name of an operator, in bytes.
const REASON_BYTES: usize = 1000;

/// A saga as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// What is kept of it.
    pub record: Record,
    /// Its history; empty if it can't be read.
    pub history: Vec<Entry>,
    /// Its steps: name and where it stands. Empty without the definition.
    pub steps: Vec<(String, Phase)>,
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
    planner: Planner,
}

impl Operations {
    /// Over a journal. Without the definitions in the planner's registry there is only looking, no ordering.
    pub fn new(journal: Arc<dyn Journal>, planner: Planner) -> Operations {
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
        if !shown.steps.is_empty() {
            return known;
        }
        // Without the definition: what was said last.
        let said = shown
            .history
            .iter()
            .rev()
            .find_map(|entry| match &entry.event {
                Event::Stuck(step, dir, why) => Some(of(format!("#{step}"), *dir, why.clone())),
                _ => None,
            });
        let trouble = shown.trouble.unwrap_or_default();
        vec![said.unwrap_or_else(|| of("?".into(), machine::Dir::Act, trouble))]
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
        let Some(definition) = self.planner.definition(name, version) else {
            let text = format!("version {version} of `{name}` is not known here");
            shown.trouble = Some(text);
            return shown;
        };
        match State::fold(&definition, &shown.history) {
            Ok(state) => {
                let steps = definition.steps().iter().zip(state.steps);
                shown.steps = steps
                    .map(|(step, at)| (step.name().to_owned(), at.phase))
                    .collect();
            }
            Err(error) => shown.trouble = Some(error.to_string()),
        }
        shown
    }

    /// Follows an order, and notes who gave it and why in the saga's history. Answers where it stands then.
    ///
    /// # Errors
    /// `Invalid` for an order that can't be followed, and without a name or a reason; `NotFound` for a saga,
    /// definition or step that is not there; `Conflict` for a definition that was changed; `Unavailable`.
    pub async fn order(&self, id: Uuid, who: &str, why: &str, order: Order) -> Result<Status> {
        for (what, text) in [("name", who), ("reason", why)] {
            if text.trim().is_empty() || text.len() > REASON_BYTES || text.contains('\0') {
                let text = format!(
                    "an order has the {what} of who gives it, of 1 to {REASON_BYTES} bytes"
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
        }
        for _ in 0..TRIES {
            let record = self.record(id).await?;
            let (name, version) = (&record.name, record.version);
            let definition = self.planner.definition(name, version).ok_or_else(|| {
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
            let (append, state) =
                self.planner
                    .append(&definition, id, record.seq, turn, wake_ms)?;
            let written = self
                .journal
                .append(None, std::slice::from_ref(&append))
                .await?;
            if written.first() == Some(&true) {
                tracing::info!(saga = %id, who, why, ?order, "an order was followed");
                return Ok(state.status());
            }
        }
        let text = "the saga is changed by others all the time: order again";
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    async fn record(&self, id: Uuid) -> Result<Record> {
        let found = self.journal.load(&[id]).await?.pop();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no saga {id}")))
    }
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as i64)
}

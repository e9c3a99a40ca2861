//! Images of rows, and what has to be written to undo a branch. Pure: no database here.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// A row: every column by its exact text, `None` for a null. In PostgreSQL the text is what the type's output
/// function writes; in SQLite it is a literal, so that `5`, `5.0`, `'5'` and `X'35'` differ.
pub type Image = BTreeMap<String, Option<String>>;

/// The name of a row: its table, and its primary key as canonical text.
pub(crate) type RowName = (String, String);

/// One change of one row. Both images are missing where a row was only read and locked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) table: String,
    pub(crate) key: String,
    pub(crate) before: Option<Image>,
    pub(crate) after: Option<Image>,
}

impl Change {
    fn name(&self) -> RowName {
        (self.table.clone(), self.key.clone())
    }

    fn is_read(&self) -> bool {
        self.before.is_none() && self.after.is_none()
    }
}

/// A row that is not as its transaction left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Its table.
    pub table: String,
    /// Its primary key, as a JSON array.
    pub key: String,
    /// What undoing would write: `None` is no row.
    pub before: Option<Image>,
    /// What the transaction left.
    pub expected: Option<Image>,
    /// What is there.
    pub found: Option<Image>,
    /// What the database said, where it refused to undo.
    pub reason: Option<String>,
}

/// Reads differences as they are stored.
pub(crate) fn differences_of(text: &str) -> Result<Vec<Difference>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).map_err(|error| {
        let text = format!("the differences of a row of quorate_at_work can't be read: {error}");
        Error::new(ErrorKind::Corrupt, text)
    })
}

/// A row that the database did not let be undone.
pub(crate) fn refusal(change: &Change, error: &Error) -> Difference {
    Difference {
        table: change.table.clone(),
        key: change.key.clone(),
        before: change.before.clone(),
        expected: change.after.clone(),
        found: None,
        reason: Some(error.to_string()),
    }
}

/// The same for a row that was to be written.
pub(crate) fn refused_step(step: &Step, error: &Error) -> Difference {
    Difference {
        table: step.name.0.clone(),
        key: step.name.1.clone(),
        before: step.to.clone(),
        expected: step.from.clone(),
        found: step.from.clone(),
        reason: Some(error.to_string()),
    }
}

/// How rows are treated that are not as their transaction left them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// Nothing is written; an operator decides.
    Ask,
    /// They get their image of before.
    Force,
    /// They stay as they are.
    Accept,
}

/// A row to be written: from what it is to what it was.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) name: RowName,
    pub(crate) from: Option<Image>,
    pub(crate) to: Option<Image>,
}

/// What undoing takes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) differences: Vec<Difference>,
}

/// Plans to undo `changes`, the newest first, on rows that are now as `current` says.
pub(crate) fn plan(
    changes: &[Change],
    current: &HashMap<RowName, Option<Image>>,
    treatment: Treatment,
) -> Plan {
    let mut plan = Plan::default();
    let mut now = current.clone();
    // What somebody has put back by hand is undone already.
    let mut left_alone: HashSet<RowName> = HashSet::new();
    let mut oldest: HashMap<RowName, &Option<Image>> = HashMap::new();
    for change in changes.iter().filter(|change| !change.is_read()) {
        oldest.insert(change.name(), &change.before);
    }
    for (name, before) in oldest {
        if now.get(&name) == Some(before) {
            left_alone.insert(name);
        }
    }
    for change in changes.iter().filter(|change| !change.is_read()) {
        let name = change.name();
        if left_alone.contains(&name) {
            continue;
        }
        let found = now.get(&name).cloned().flatten();
        if found != change.after {
            plan.differences.push(Difference {
                table: change.table.clone(),
                key: change.key.clone(),
                before: change.before.clone(),
                expected: change.after.clone(),
                found: found.clone(),
                reason: None,
            });
            if treatment != Treatment::Force {
                left_alone.insert(name);
                continue;
            }
        }
        if found != change.before {
            let (from, to) = (found, change.before.clone());
            plan.steps.push(Step {
                name: name.clone(),
                from,
                to,
            });
        }
        now.insert(name, change.before.clone());
    }
    plan
}

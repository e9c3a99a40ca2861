//! Aggregates over all shards: each adds up its own rows, and the sums are added up here.
//!
//! A shard answers its groups in the order of their keys; groups of equal keys are merged as they come, with one
//! of each shard in hand. So memory does not grow with the number of rows, nor with that of groups. Of an average each shard
//! gives sum and count.

use std::cmp::Ordering;
use std::sync::Arc;

use futures_util::stream::{Stream, StreamExt, TryStreamExt};

use super::value::{Kind, Value};
use super::{Rows, Sender, Shards, merge};
use crate::backend::Backend;
use crate::bulk::Cell;
use crate::pool::Lease;
use crate::route::Read;
use crate::{Error, ErrorKind, Result};

/// How many groups of each shard are read ahead.
pub(super) const AHEAD: usize = 64;

/// What to add up, by what. The table is the same on every shard.
///
/// Whole numbers are added up exactly, past 64 bits too. Sums of floating numbers depend in their last bits
/// on the order of the rows. No rows: counts are 0, the others [`Value::Null`]. Columns without a value are
/// left out by all but [`Aggregate::count`].
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    pub(super) table: String,
    pub(super) groups: Vec<(String, Kind)>,
    pub(super) measures: Vec<Measure>,
    pub(super) filter: Option<(String, Vec<Cell>)>,
}

/// One thing that is added up.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Measure {
    Count(Option<String>),
    Sum(String, Kind),
    Min(String, Kind),
    Max(String, Kind),
    Average(String, Kind),
}

/// One group's sums.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// What it is grouped by, in the order of the calls.
    pub keys: Vec<Value>,
    /// What was asked, in the order of the calls.
    pub values: Vec<Value>,
}

impl Aggregate {
    /// Over a table, with its schema before a dot if it needs one.
    pub fn over(table: impl Into<String>) -> Aggregate {
        Aggregate {
            table: table.into(),
            groups: Vec::new(),
            measures: Vec::new(),
            filter: None,
        }
    }

    /// By the values of a column, besides those that were named before. Groups come in this order; all rows
    /// without a value are one group.
    pub fn group_by(mut self, column: impl Into<String>, kind: Kind) -> Aggregate {
        self.groups.push((column.into(), kind));
        self
    }

    /// How many rows.
    pub fn count(self) -> Aggregate {
        self.with(Measure::Count(None))
    }

    /// How many rows have a value there.
    pub fn count_of(self, column: impl Into<String>) -> Aggregate {
        self.with(Measure::Count(Some(column.into())))
    }

    /// The sum of a column of numbers.
    pub fn sum(self, column: impl Into<String>, kind: Kind) -> Aggregate {
        self.with(Measure::Sum(column.into(), kind))
    }

    /// The least value. Of floating numbers NaN is the greatest.
    pub fn min(self, column: impl Into<String>, kind: Kind) -> Aggregate {
        self.with(Measure::Min(column.into(), kind))
    }

    /// The greatest value.
    pub fn max(self, column: impl Into<String>, kind: Kind) -> Aggregate {
        self.with(Measure::Max(column.into(), kind))
    }

    /// The mean of a column of numbers, as a [`Value::Float`].
    pub fn average(self, column: impl Into<String>, kind: Kind) -> Aggregate {
        self.with(Measure::Average(column.into(), kind))
    }

    /// Only rows that meet a condition in the database's own words, with its parameters.
    /// REQUIRES: the condition is not made of what users gave: that goes into the parameters.
    pub fn filter(mut self, condition: impl Into<String>, parameters: Vec<Cell>) -> Aggregate {
        self.filter = Some((condition.into(), parameters));
        self
    }

    fn with(mut self, measure: Measure) -> Aggregate {
        self.measures.push(measure);
        self
    }

    fn check(&self) -> Result<()> {
        let invalid = |text: &str| Err(Error::new(ErrorKind::Invalid, text));
        if self.measures.is_empty() {
            return invalid("an aggregate needs something to add up: count, sum, ...");
        }
        if self.groups.iter().any(|(_, kind)| *kind == Kind::Float) {
            return invalid("floating numbers are no keys of groups: read them as text");
        }
        let text = |measure: &Measure| {
            let (Measure::Sum(_, kind) | Measure::Average(_, kind)) = measure else {
                return false;
            };
            *kind == Kind::Text
        };
        if self.measures.iter().any(text) {
            return invalid("text has no sum");
        }
        check_parameters(self.filter.as_ref())
    }

    /// The statement for each shard. `owned` narrows it to rows that the shard has to answer for.
    pub(super) fn plan<DB: Backend>(&self, owned: Option<&str>) -> Result<Plan> {
        self.check()?;
        let mut columns = Vec::new();
        for measure in &self.measures {
            measure.columns::<DB>(&mut columns);
        }
        let keys: Vec<String> = self
            .groups
            .iter()
            .map(|(column, kind)| DB::reading(&DB::quote(column), *kind))
            .collect();
        let all: Vec<&str> = keys
            .iter()
            .map(String::as_str)
            .chain(columns.iter().map(|column| column.text.as_str()))
            .collect();
        let filter = self
            .filter
            .as_ref()
            .map(|(condition, _)| condition.as_str());
        let mut text = format!("SELECT {} FROM {}", all.join(", "), DB::quote(&self.table));
        text.push_str(&conditions([filter, owned]));
        if !keys.is_empty() {
            let numbers: Vec<String> = (1..=keys.len()).map(|n| n.to_string()).collect();
            let numbers = numbers.join(", ");
            text.push_str(&format!(" GROUP BY {numbers} ORDER BY {numbers}"));
        }
        Ok(Plan {
            text,
            parameters: self
                .filter
                .clone()
                .map(|(_, cells)| cells)
                .unwrap_or_default(),
            keys: self.groups.iter().map(|(_, kind)| *kind).collect(),
            columns,
            measures: self.measures.clone(),
        })
    }
}

/// Parameters of no value have no type, and compare to nothing.
pub(super) fn check_parameters(filter: Option<&(String, Vec<Cell>)>) -> Result<()> {
    match filter {
        Some((_, cells)) if cells.contains(&Cell::Null) => Err(Error::new(
            ErrorKind::Invalid,
            "a condition compares to no value: say IS NULL instead",
        )),
        _ => Ok(()),
    }
}

/// ` WHERE (a) AND (b)`, or nothing.
pub(super) fn conditions<'a>(all: impl IntoIterator<Item = Option<&'a str>>) -> String {
    let all: Vec<String> = all
        .into_iter()
        .flatten()
        .map(|c| format!("({c})"))
        .collect();
    if all.is_empty() {
        return String::new();
    }
    format!(" WHERE {}", all.join(" AND "))
}

/// How the columns of two shards become one.
#[derive(Debug, Clone, Copy)]
enum Combine {
    Add,
    Pick(Ordering),
}

/// A column of a shard's answer.
#[derive(Debug, Clone)]
struct Column {
    text: String,
    wire: Wire,
    combine: Combine,
}

/// How a value comes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// As it is read.
    Plain(Kind),
    /// A sum of whole numbers, as text.
    Sum,
}

impl Measure {
    fn columns<DB: Backend>(&self, columns: &mut Vec<Column>) {
        let mut add = |text, wire, combine| {
            columns.push(Column {
                text,
                wire,
                combine,
            });
        };
        let int = Wire::Plain(Kind::Int);
        let sum = |column: &str, kind| match kind {
            Kind::Int => (DB::sum_text(&DB::quote(column)), Wire::Sum),
            kind => {
                let read = DB::reading(&DB::quote(column), kind);
                (format!("SUM({read})"), Wire::Plain(kind))
            }
        };
        match self {
            Measure::Count(None) => add("COUNT(*)".to_owned(), int, Combine::Add),
            Measure::Count(Some(column)) => {
                add(format!("COUNT({})", DB::quote(column)), int, Combine::Add);
            }
            Measure::Sum(column, kind) => {
                let (text, wire) = sum(column, *kind);
                add(text, wire, Combine::Add);
            }
            Measure::Average(column, kind) => {
                let (text, wire) = sum(column, *kind);
                add(text, wire, Combine::Add);
                add(format!("COUNT({})", DB::quote(column)), int, Combine::Add);
            }
            Measure::Min(column, kind) => {
                let read = DB::reading(&DB::quote(column), *kind);
                let least = Combine::Pick(Ordering::Less);
                add(format!("MIN({read})"), Wire::Plain(*kind), least);
            }
            Measure::Max(column, kind) => {
                let read = DB::reading(&DB::quote(column), *kind);
                let greatest = Combine::Pick(Ordering::Greater);
                add(format!("MAX({read})"), Wire::Plain(*kind), greatest);
            }
        }
    }

    /// What was asked, of the columns that were answered.
    fn finish(&self, columns: &mut impl Iterator<Item = Value>) -> Value {
        let first = columns.next().unwrap_or(Value::Null);
        if !matches!(self, Measure::Average(..)) {
            return first;
        }
        match (first, columns.next()) {
            (Value::Int(sum), Some(Value::Int(count))) if count > 0 => {
                let (whole, rest) = (sum.div_euclid(count), sum.rem_euclid(count));
                Value::Float(whole as f64 + rest as f64 / count as f64)
            }
            (Value::Float(sum), Some(Value::Int(count))) if count > 0 => {
                Value::Float(sum / count as f64)
            }
            _ => Value::Null,
        }
    }
}

/// The statement, and how its answers are read and merged.
#[derive(Debug)]
pub(super) struct Plan {
    text: String,
    parameters: Vec<Cell>,
    keys: Vec<Kind>,
    columns: Vec<Column>,
    measures: Vec<Measure>,
}

impl Plan {
    /// Asks one shard.
    pub async fn ask<DB: Backend>(
        &self,
        connection: &mut DB::Connection,
        rows: &Sender<Group>,
    ) -> Result<()> {
        let mut found = DB::fetch(connection, self.text.clone(), self.parameters.clone());
        while let Some(row) = found.try_next().await? {
            let plain = self.keys.iter().map(|kind| Wire::Plain(*kind));
            let wires = plain.chain(self.columns.iter().map(|column| column.wire));
            let values = wires
                .enumerate()
                .map(|(at, wire)| DB::value(&row, at, wire));
            let mut keys = values.collect::<Result<Vec<Value>>>()?;
            let values = keys.split_off(self.keys.len());
            if !rows.send(Group { keys, values }).await {
                break;
            }
        }
        Ok(())
    }

    fn order(a: &Group, b: &Group, nulls_first: bool) -> Ordering {
        let pairs = a.keys.iter().zip(&b.keys);
        let orders = pairs.map(|(a, b)| a.order(b, nulls_first));
        orders.fold(Ordering::Equal, Ordering::then)
    }

    /// Adds a group of equal keys.
    fn add(&self, group: &mut Group, more: Group) -> Result<()> {
        let pairs = group.values.iter_mut().zip(more.values);
        for ((value, more), column) in pairs.zip(&self.columns) {
            let own = std::mem::replace(value, Value::Null);
            *value = match column.combine {
                Combine::Add => own.plus(more)?,
                Combine::Pick(wanted) => own.pick(more, wanted),
            };
        }
        Ok(())
    }

    fn finish(&self, group: Group) -> Group {
        let mut columns = group.values.into_iter();
        let values = self.measures.iter().map(|m| m.finish(&mut columns));
        Group {
            values: values.collect(),
            keys: group.keys,
        }
    }

    /// Merges what the shards answer. It holds one group of each, and the one that is being added up.
    pub fn merge(
        self: Arc<Plan>,
        shards: Vec<Rows<Group>>,
        nulls_first: bool,
    ) -> impl Stream<Item = Result<Group>> + Send {
        let order = move |a: &Group, b: &Group| Plan::order(a, b, nulls_first);
        let merged = Box::pin(merge(shards, order));
        let state = (merged, None::<Group>, self, false);
        let groups = futures_util::stream::try_unfold(state, move |state| async move {
            let (mut merged, mut open, plan, ended) = state;
            if ended {
                return Ok(None);
            }
            loop {
                let next = merged.try_next().await?;
                match (open.take(), next) {
                    (None, None) => return Ok(None),
                    (None, Some(first)) => open = Some(first),
                    (Some(group), None) => {
                        let whole = plan.finish(group);
                        return Ok(Some((whole, (merged, None, plan, true))));
                    }
                    (Some(mut group), Some(more)) => {
                        if order(&group, &more) == Ordering::Equal {
                            plan.add(&mut group, more)?;
                            open = Some(group);
                        } else {
                            let whole = plan.finish(group);
                            return Ok(Some((whole, (merged, Some(more), plan, false))));
                        }
                    }
                }
            }
        });
        groups.boxed()
    }
}

impl<DB: Backend> Shards<DB> {
    /// Adds up over all shards, at once; see [`Aggregate`]. The groups come in the order of their keys, numbers
    /// by size and text by its bytes; without keys there is one. What a shard answers is of one instant; two shards' answers are of
    /// two.
    ///
    /// Memory: 64 groups of each shard. Limit it by `take`, and choose groups by their sums by `try_filter`.
    ///
    /// Errors: `Invalid` for what can't be added up; those of a shard, which name it, end the groups.
    #[track_caller]
    pub fn aggregate(
        &self,
        rule: Read,
        aggregate: &Aggregate,
    ) -> Result<impl Stream<Item = Result<Group>> + Send + use<DB>> {
        let plan = Arc::new(aggregate.plan::<DB>(None)?);
        let asked = Arc::clone(&plan);
        let rows = self.scatter(rule, AHEAD, move |_, mut lease: Lease<DB>, rows| {
            let plan = Arc::clone(&asked);
            Box::pin(async move { plan.ask::<DB>(&mut lease, &rows).await })
        });
        Ok(plan.merge(rows, DB::NULLS_FIRST))
    }
}

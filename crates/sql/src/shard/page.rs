//! Pages over all shards, by key: a page begins after the last row of the one before, never at an offset.
//!
//! An offset would have every shard read all rows before it, and skip or repeat rows when others come or
//! go. The token of a page holds the keys of its last row, so it needs no state anywhere, outlives the process,
//! and a page costs the same wherever it is.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::stream::TryStreamExt;
use sqlx::Row;

use super::aggregate::{Wire, check_parameters, conditions};
use super::value::{Kind, Value};
use super::{Rows, Sender, Shards, merge};
use crate::backend::Backend;
use crate::bulk::Cell;
use crate::pool::Lease;
use crate::route::Read;
use crate::{Error, ErrorKind, Result};

/// Which way rows are ordered by a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The least first.
    Ascending,
    /// The greatest first.
    Descending,
}

/// Rows of a table that is on all shards, in an order, to be read in pages.
///
/// REQUIRES: the columns of the order have values in every row, and are unique together over all shards; a
/// page that finds otherwise is `Invalid`.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    table: String,
    columns: Vec<String>,
    order: Vec<(String, Kind, Direction)>,
    filter: Option<(String, Vec<Cell>)>,
}

/// Some rows, and how to get those that follow.
#[derive(Debug)]
pub struct Page<R> {
    /// The rows, of sqlx. After the columns that were named they have those of the order.
    pub rows: Vec<R>,
    /// Gives the next page; `None` if no row follows.
    pub next: Option<PageToken>,
}

/// Where a page ends. Its string form outlives the process: `page1.<listing>.<key>.<key>`; it shows the keys of the
/// last row, and is not signed.
#[derive(Debug, Clone, PartialEq)]
pub struct PageToken {
    listing: u64,
    keys: Vec<Value>,
}

const FORMAT: &str = "page1";

impl Listing {
    /// Columns of a table, with its schema before a dot if it needs one; without columns all of them.
    pub fn of(
        table: impl Into<String>,
        columns: impl IntoIterator<Item = impl Into<String>>,
    ) -> Listing {
        Listing {
            table: table.into(),
            columns: columns.into_iter().map(Into::into).collect(),
            order: Vec::new(),
            filter: None,
        }
    }

    /// In the order of a column, after those that were named before. An index in this order makes a page cost
    /// no more than its rows; of text on PostgreSQL an index with `COLLATE "C"`.
    pub fn order_by(mut self, column: impl Into<String>, kind: Kind, way: Direction) -> Listing {
        self.order.push((column.into(), kind, way));
        self
    }

    /// Only rows that meet a condition in the database's own words, with its parameters.
    /// REQUIRES: the condition is not made of what users gave: that goes into the parameters.
    pub fn filter(mut self, condition: impl Into<String>, parameters: Vec<Cell>) -> Listing {
        self.filter = Some((condition.into(), parameters));
        self
    }

    fn check(&self, after: Option<&PageToken>) -> Result<()> {
        let invalid = |text: &str| Err(Error::new(ErrorKind::Invalid, text));
        if self.order.is_empty() {
            return invalid("pages need an order: columns that are unique together");
        }
        if self.order.iter().any(|(_, kind, _)| *kind == Kind::Float) {
            return invalid("floating numbers are no keys of pages");
        }
        let fits = |value: &Value, kind: &Kind| match kind {
            Kind::Int => value.as_i64().is_some(),
            Kind::Text => matches!(value, Value::Text(_)),
            Kind::Float => false,
        };
        if let Some(token) = after {
            let kinds = self.order.iter().map(|(_, kind, _)| kind);
            let same = token.keys.len() == self.order.len()
                && token.keys.iter().zip(kinds).all(|(v, k)| fits(v, k));
            if token.listing != self.fingerprint() || !same {
                return invalid("the page token is of another listing: begin at the first page");
            }
        }
        check_parameters(self.filter.as_ref())
    }

    /// Tells listings apart: a token of one says nothing in another.
    fn fingerprint(&self) -> u64 {
        let parts = (&self.table, &self.order, &self.filter);
        xxhash_rust::xxh3::xxh3_64(format!("{parts:?}").as_bytes())
    }

    pub(super) fn plan<DB: Backend>(
        &self,
        rows: usize,
        after: Option<&PageToken>,
        owned: Option<&str>,
    ) -> Result<PagePlan> {
        self.check(after)?;
        let (condition, mut parameters) = self.filter.clone().unzip();
        let mut parameters: Vec<Cell> = parameters.take().unwrap_or_default();
        let keys: Vec<String> = self
            .order
            .iter()
            .map(|(column, kind, _)| DB::comparing(&DB::quote(column), *kind))
            .collect();
        let after = after.map(|token| self.after::<DB>(&keys, token, &mut parameters));
        let columns: Vec<String> = self.columns.iter().map(|name| DB::quote(name)).collect();
        let mut selected = columns.join(", ");
        if columns.is_empty() {
            selected = format!("{}.*", DB::quote(&self.table));
        }
        let read = self
            .order
            .iter()
            .map(|(c, k, _)| DB::reading(&DB::quote(c), *k));
        let read: Vec<String> = read.collect();
        let order = keys
            .iter()
            .zip(&self.order)
            .map(|(key, (_, _, way))| match way {
                Direction::Ascending => key.clone(),
                Direction::Descending => format!("{key} DESC"),
            });
        let order: Vec<String> = order.collect();
        let text = format!(
            "SELECT {selected}, {} FROM {}{} ORDER BY {} LIMIT {}",
            read.join(", "),
            DB::quote(&self.table),
            conditions([condition.as_deref(), after.as_deref(), owned]),
            order.join(", "),
            rows + 1
        );
        Ok(PagePlan {
            text,
            parameters,
            order: self
                .order
                .iter()
                .map(|(_, kind, way)| (*kind, *way))
                .collect(),
        })
    }

    /// `a >= 1 AND (a > 1 OR (a = 1 AND b > 2))`: the first part lets an index be used.
    fn after<DB: Backend>(
        &self,
        keys: &[String],
        token: &PageToken,
        parameters: &mut Vec<Cell>,
    ) -> String {
        let mut compare = |at: usize, sign: &str| {
            parameters.push(match &token.keys[at] {
                Value::Text(text) => Cell::Text(text.clone()),
                value => Cell::Int(value.as_i64().unwrap_or_default()),
            });
            let text = matches!(token.keys[at], Value::Text(_));
            let parameter = DB::compared(DB::parameter(parameters.len()), text);
            format!("{} {sign} {parameter}", keys[at])
        };
        let sign = |at: usize| match self.order[at].2 {
            Direction::Ascending => ">",
            Direction::Descending => "<",
        };
        let first = compare(0, &format!("{}=", sign(0)));
        let mut ways = Vec::new();
        for last in 0..keys.len() {
            let mut all: Vec<String> = (0..last).map(|at| compare(at, "=")).collect();
            all.push(compare(last, sign(last)));
            ways.push(format!("({})", all.join(" AND ")));
        }
        format!("{first} AND ({})", ways.join(" OR "))
    }
}

#[derive(Debug)]
pub(super) struct PagePlan {
    text: String,
    parameters: Vec<Cell>,
    order: Vec<(Kind, Direction)>,
}

/// A row and its keys.
pub(super) struct Keyed<R> {
    keys: Vec<Value>,
    row: R,
}

impl PagePlan {
    /// Asks one shard.
    pub async fn ask<DB: Backend>(
        &self,
        connection: &mut DB::Connection,
        rows: &Sender<Keyed<DB::Row>>,
    ) -> Result<()> {
        let mut found = DB::fetch(connection, self.text.clone(), self.parameters.clone());
        while let Some(row) = found.try_next().await? {
            let first = row.len().saturating_sub(self.order.len());
            let kinds = self.order.iter().enumerate();
            let keys = kinds.map(|(at, (kind, _))| DB::value(&row, first + at, Wire::Plain(*kind)));
            let keys = keys.collect::<Result<Vec<Value>>>()?;
            if keys.contains(&Value::Null) {
                let text = "a column of the order has no value: pages need one in every row";
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            if !rows.send(Keyed { keys, row }).await {
                break;
            }
        }
        Ok(())
    }

    fn order<R>(&self, a: &Keyed<R>, b: &Keyed<R>) -> Ordering {
        let pairs = a.keys.iter().zip(&b.keys).zip(&self.order);
        let orders = pairs.map(|((a, b), (_, way))| match way {
            Direction::Ascending => a.order(b, false),
            Direction::Descending => b.order(a, false),
        });
        orders.fold(Ordering::Equal, Ordering::then)
    }

    /// Merges what the shards answer into one page.
    pub async fn merge<R: Send>(
        &self,
        listing: &Listing,
        size: usize,
        shards: Vec<Rows<Keyed<R>>>,
    ) -> Result<Page<R>> {
        let mut merged = std::pin::pin!(merge(shards, |a, b| self.order(a, b)));
        let mut page = Page {
            rows: Vec::new(),
            next: None,
        };
        let mut last: Option<Vec<Value>> = None;
        while let Some(Keyed { keys, row }) = merged.try_next().await? {
            if last.as_ref() == Some(&keys) {
                let text = format!("two rows have the keys {keys:?}: order by more columns");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            if page.rows.len() == size {
                page.next = last.map(|keys| PageToken {
                    listing: listing.fingerprint(),
                    keys,
                });
                break;
            }
            page.rows.push(row);
            last = Some(keys);
        }
        Ok(page)
    }
}

impl<DB: Backend> Shards<DB> {
    /// A page of at most `size` rows of all shards, in the order of the listing, from its beginning or after another page.
    /// Each page is a read of its own: rows that come and go between two pages are in them or not, and none is
    /// twice unless its keys changed.
    ///
    /// Memory: the page, and `size + 1` rows of each shard at most.
    ///
    /// Errors: `Invalid` for a token of another listing, and for an order that is not unique; those of a shard,
    /// which name it.
    #[track_caller]
    pub fn page<'a>(
        &'a self,
        rule: Read,
        listing: &'a Listing,
        size: usize,
        after: Option<&PageToken>,
    ) -> impl Future<Output = Result<Page<DB::Row>>> + Send + 'a {
        let asked = check_size(size).and_then(|()| listing.plan::<DB>(size, after, None));
        let asked = asked.map(|plan| {
            let plan = Arc::new(plan);
            let asking = Arc::clone(&plan);
            let rows = self.scatter(rule, size.min(64), move |_, mut lease: Lease<DB>, rows| {
                let plan = Arc::clone(&asking);
                Box::pin(async move { plan.ask::<DB>(&mut lease, &rows).await })
            });
            (plan, rows)
        });
        async move {
            let (plan, rows) = asked?;
            plan.merge(listing, size, rows).await
        }
    }
}

pub(super) fn check_size(size: usize) -> Result<()> {
    match size {
        1..=100_000 => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Invalid,
            "a page has from 1 to 100,000 rows",
        )),
    }
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FORMAT}.{:x}", self.listing)?;
        for key in &self.keys {
            match key {
                Value::Text(text) => {
                    f.write_str(".t")?;
                    text.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                }
                key => write!(f, ".i{}", key.as_i64().unwrap_or_default())?,
            }
        }
        Ok(())
    }
}

impl FromStr for PageToken {
    type Err = Error;

    /// Reads the string form; anything else is [`ErrorKind::Invalid`].
    fn from_str(text: &str) -> Result<PageToken> {
        let invalid = || Error::new(ErrorKind::Invalid, "that is no page token");
        let mut parts = text.split('.');
        if parts.next() != Some(FORMAT) {
            return Err(invalid());
        }
        let listing = parts.next().ok_or_else(invalid)?;
        let listing = u64::from_str_radix(listing, 16).map_err(|_| invalid())?;
        let key = |part: &str| match part.split_at_checked(1)? {
            ("i", number) => Some(Value::Int(number.parse::<i64>().ok()?.into())),
            ("t", hex) => Some(Value::Text(String::from_utf8(bytes(hex)?).ok()?)),
            _ => None,
        };
        let keys = parts.map(|part| key(part).ok_or_else(invalid));
        Ok(PageToken {
            listing,
            keys: keys.collect::<Result<_>>()?,
        })
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = (0..hex.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect()
}

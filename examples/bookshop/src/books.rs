//! The books of all services together, and whether they balance.

mod check;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_saga::Status;
use quorate_saga::journal::{Filter, Journal, Record};
use quorate_saga::machine::Event;

use crate::catalogue::{CUSTOMERS, OPENING_CENTS, TILL};
use crate::database::{Connection, Database};
use crate::{Settings, accounts, notify, orders, stock};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// At most so many sagas are read.
const SAGAS_MAX: usize = 1_000_000;
/// So many faults are named.
const FAULTS_SHOWN: usize = 20;

/// The databases of the services, and the sagas.
pub struct Databases<D> {
    pub accounts: D,
    pub stock: D,
    pub orders: D,
    pub notify: D,
    pub journal: Arc<dyn Journal>,
}

impl<D: Database> Databases<D> {
    /// Opens all.
    pub async fn open(settings: &Settings) -> Result<Databases<D>> {
        let orders = D::open(settings, "orders", orders::TABLES).await?;
        Ok(Databases {
            accounts: D::open(settings, "accounts", accounts::TABLES).await?,
            stock: D::open(settings, "stock", stock::TABLES).await?,
            notify: D::open(settings, "notify", notify::TABLES).await?,
            journal: orders.journal().await?,
            orders,
        })
    }
}

/// An order as its service has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    pub customer: String,
    pub title: String,
    pub copies: i64,
    pub cents: i64,
    pub state: String,
}

/// Everything that is written anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Books {
    /// Cents by account.
    pub accounts: BTreeMap<String, i64>,
    /// Cents held, by order.
    pub holds: Vec<(String, i64)>,
    /// Copies by title.
    pub shelves: BTreeMap<String, i64>,
    /// Copies set aside, by order.
    pub reserved: Vec<(String, i64)>,
    /// What was sent: order, title, copies.
    pub parcels: Vec<(String, String, i64)>,
    /// Orders by id.
    pub orders: BTreeMap<String, Ordered>,
    /// Sagas by key: how each stands, and why it turned round.
    pub sagas: BTreeMap<String, (Status, Option<String>)>,
    /// Mails written: order, news.
    pub mails: Vec<(String, String)>,
}

impl Books {
    /// Reads all databases.
    pub async fn read<D: Database>(databases: &Databases<D>) -> Result<Books> {
        let mut books = Books::default();
        let mut accounts = databases.accounts.connection().await?;
        let found = accounts.rows("SELECT name, cents FROM account", &[]);
        books.accounts = found.await?.into_iter().collect();
        let holds = "SELECT order_id, cents FROM hold";
        books.holds = accounts.rows(holds, &[]).await?;
        let mut stock = databases.stock.connection().await?;
        let found = stock.rows("SELECT title, copies FROM shelf", &[]);
        books.shelves = found.await?.into_iter().collect();
        let reserved = "SELECT order_id, copies FROM reserved";
        books.reserved = stock.rows(reserved, &[]).await?;
        let parcels = "SELECT order_id, title, copies FROM parcel";
        books.parcels = stock.rows(parcels, &[]).await?;
        let mut orders = databases.orders.connection().await?;
        let rows: Vec<(String, String, String, i64, i64, String)> = orders
            .rows(
                "SELECT id, customer, title, copies, cents, state FROM orders",
                &[],
            )
            .await?;
        for (id, customer, title, copies, cents, state) in rows {
            let ordered = Ordered {
                customer,
                title,
                copies,
                cents,
                state,
            };
            books.orders.insert(id, ordered);
        }
        let mut notify = databases.notify.connection().await?;
        books.mails = notify.rows("SELECT order_id, news FROM mail", &[]).await?;
        for saga in databases
            .journal
            .list(&Filter::default(), SAGAS_MAX)
            .await?
        {
            let why = why_turned(&saga)?;
            books.sagas.insert(saga.key, (saga.status, why));
        }
        Ok(books)
    }
}

/// Why a saga was undone, by its history.
fn why_turned(saga: &Record) -> Result<Option<String>> {
    let history = saga.entries().with_context(|| saga.key.clone())?;
    Ok(history.into_iter().find_map(|entry| match entry.event {
        Event::Turned(why) => Some(why),
        _ => None,
    }))
}

/// Waits until the books balance.
pub async fn settled<D: Database>(databases: &Databases<D>, settings: &Settings) -> Result<()> {
    let end = Instant::now() + settings.within();
    loop {
        let faults = Books::read(databases).await?.faults(settings.orders);
        if faults.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            let within = settings.within;
            bail!(
                "the books do not balance within {within} s:\n{}",
                listed(&faults)
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Shows the books; an error if they do not balance.
pub fn balanced(books: &Books, orders: usize) -> Result<()> {
    show(books);
    let faults = books.faults(orders);
    if !faults.is_empty() {
        bail!("the books do not balance:\n{}", listed(&faults));
    }
    println!("the books balance");
    Ok(())
}

fn listed(faults: &[String]) -> String {
    let mut lines: Vec<String> = faults.iter().map(|fault| format!("  {fault}")).collect();
    if lines.len() > FAULTS_SHOWN {
        let more = lines.len() - FAULTS_SHOWN;
        lines.truncate(FAULTS_SHOWN);
        lines.push(format!("  and {more} more"));
    }
    lines.join("\n")
}

fn show(books: &Books) {
    let of = |status| books.sagas.values().filter(|(s, _)| *s == status).count();
    let (shipped, failed) = (of(Status::Completed), of(Status::Compensated));
    let all = books.sagas.len();
    println!("orders  {all}: {shipped} shipped, {failed} failed");
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for why in books.sagas.values().filter_map(|(_, why)| why.as_deref()) {
        *reasons.entry(why).or_default() += 1;
    }
    for (why, count) in reasons {
        println!("        {count:3}  {why}");
    }
    let till = books.accounts.get(TILL).copied().unwrap_or(0);
    let all: i64 = books.accounts.values().sum();
    let opening = CUSTOMERS.len() as i64 * OPENING_CENTS;
    let (left, till, opening) = (money(all - till), money(till), money(opening));
    println!("money   {left} with customers, {till} in the till; {opening} at the opening");
    let shelves: i64 = books.shelves.values().sum();
    let sent: i64 = books.parcels.iter().map(|(_, _, copies)| copies).sum();
    println!("books   {shelves} on shelves, {sent} sent");
    println!("mails   {}", books.mails.len());
}

/// Cents as people write them.
fn money(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    format!("{sign}{}.{:02}", cents / 100, cents % 100)
}

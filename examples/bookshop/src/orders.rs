//! The service `orders`: it takes orders, and leads each to its end by a saga.
//!
//! ```text
//! place ─► reserve (stock)   ─► accept ─► take the money (accounts) ─► ship (stock) ─► close
//!       └► pay: hold (accounts) ┘ pivot
//! ```
//!
//! Whatever is refused before `accept` is done undoes what was done: the books go back to the shelf, the money to the
//! customer, and the order has failed. After it nothing is undone, and everything is tried until it is done.
//!
//! In the transaction that places, closes or fails an order a mail about it is put into the outbox.

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_outbox::Message;
use quorate_outbox::inbox::Failure;
use quorate_saga::message::Command;
use quorate_saga::participant::{Answer, Fences, Service};
use quorate_saga::{
    Begin, Begun, Coordinator, CoordinatorOptions, Definition, Outcome, Participant, Registry,
    Retry, Saga, Sagas, Step, participant,
};
use serde_json::Value;

use crate::catalogue::Order;
use crate::database::{Connection, Database};
use crate::notify::Mail;
use crate::shop::{LEASE, Running, Shop};

/// For both kinds of database; each may be there already.
pub const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS orders (
        id TEXT PRIMARY KEY, customer TEXT NOT NULL, title TEXT NOT NULL, copies BIGINT NOT NULL,
        cents BIGINT NOT NULL, state TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS withdrawn (id TEXT PRIMARY KEY)";

const PLACE: &str = "\
    INSERT INTO orders (id, customer, title, copies, cents, state) VALUES ($1, $2, $3, $4, $5, 'placed')";
const ACCEPT: &str = "\
    UPDATE orders SET state = 'accepted'
    WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM withdrawn WHERE id = $1)";
const MOVE: &str = "UPDATE orders SET state = $2 WHERE id = $1";
const WITHDRAW: &str = "INSERT INTO withdrawn (id) VALUES ($1) ON CONFLICT DO NOTHING";

/// Tries without an answer are made again for as long as a service may be down.
const PATIENT: Retry = Retry {
    attempts: 200,
    first: Duration::from_millis(200),
    max: Duration::from_secs(5),
};
/// Between two customers.
const BETWEEN: Duration = Duration::from_millis(5);

/// The saga of an order.
pub fn saga(shop: &Shop) -> Result<Definition> {
    let step = |name, service| {
        let step = Step::new(name, shop.topic(service)).deadline(Duration::from_secs(5));
        step.retry(PATIENT).undo_retry(PATIENT)
    };
    let take = Step::confirm("pay", shop.topic("accounts")).deadline(Duration::from_secs(5));
    let saga = Saga::named("order")
        .version(1)
        .deadline(Duration::from_secs(60))
        .step(step("place", "orders"))
        .parallel([
            vec![step("reserve", "stock")],
            vec![step("pay", "accounts")],
        ])
        .pivot(step("accept", "orders"))
        .then(take.retry(PATIENT))
        .then(step("ship", "stock"))
        .then(step("close", "orders"));
    Ok(saga.build()?)
}

/// Starts the service: the coordinator of the sagas, and its own part in them.
pub async fn start<D: Database>(shop: &Shop, database: &D) -> Result<(Running<D>, Coordinator)> {
    let orders = Orders {
        outbox: database.fences(),
        mails: shop.topic("mails"),
    };
    let handler = Participant::new(database.fences(), orders);
    let topic = shop.topic("orders");
    let options = participant::options(&topic, &[&topic]);
    let running = shop.serve("orders", database, handler, options).await?;
    let options = CoordinatorOptions {
        replies: shop.topic("replies"),
        group: shop.topic("coordinators"),
        lease: LEASE,
        ..CoordinatorOptions::default()
    };
    let registry = Registry::new().with(saga(shop)?)?;
    let journal = database.journal().await?;
    let started = Coordinator::start(journal, shop.broker(), registry, options).await;
    Ok((running, started.context("the coordinator does not start")?))
}

/// The customers order, one after the other. After a crash they order everything once more: what is there already
/// stays as it is.
pub async fn take_orders<D: Database>(sagas: Sagas, database: D, count: usize) -> Result<()> {
    for number in 0..count {
        let id = Order::id(number);
        let input = serde_json::to_value(Order::number(number))?;
        let begun = begin(&sagas, &Begin::new("order", &id, input)).await?;
        if Order::is_withdrawn(number) {
            // It counts if the saga has not decided yet.
            let mut connection = database.connection().await?;
            connection.run(WITHDRAW, &[(&id).into()]).await?;
        }
        if begun.is_new {
            tokio::time::sleep(BETWEEN).await;
        }
    }
    Ok(())
}

/// Begins a saga, as soon as the database answers.
async fn begin(sagas: &Sagas, order: &Begin) -> Result<Begun> {
    loop {
        match sagas.begin(order).await {
            Err(error) if error.is_retryable() => tokio::time::sleep(PATIENT.first).await,
            other => return Ok(other?),
        }
    }
}

struct Orders<F> {
    outbox: F,
    mails: String,
}

impl<F> Service<F::Connection> for Orders<F>
where
    F: Fences,
    F::Connection: Connection,
{
    fn act<'a>(&'a self, tx: &'a mut F::Connection, command: &'a Command) -> Answer<'a> {
        Box::pin(async move {
            match command.branch.as_str() {
                "place" => self.place(tx, command).await,
                "accept" => accept(tx, command).await,
                "close" => self.end(tx, command, "shipped").await,
                other => Ok(Outcome::Refused(format!("nobody here does `{other}`"))),
            }
        })
    }

    /// Only `place` is ever undone.
    fn undo<'a>(&'a self, tx: &'a mut F::Connection, command: &'a Command) -> Answer<'a> {
        Box::pin(self.end(tx, command, "failed"))
    }
}

impl<F> Orders<F>
where
    F: Fences,
    F::Connection: Connection,
{
    async fn place(&self, tx: &mut F::Connection, command: &Command) -> Result<Outcome, Failure> {
        let order = Order::of(command)?;
        let (customer, title) = (&order.customer, &order.title);
        let (id, copies, cents) = (&command.key, order.copies, order.cents);
        let values = [
            id.into(),
            customer.into(),
            title.into(),
            copies.into(),
            cents.into(),
        ];
        tx.run(PLACE, &values).await?;
        self.tell(tx, command, "placed").await
    }

    async fn end(
        &self,
        tx: &mut F::Connection,
        command: &Command,
        state: &'static str,
    ) -> Result<Outcome, Failure> {
        tx.run(MOVE, &[(&command.key).into(), state.into()]).await?;
        self.tell(tx, command, state).await
    }

    /// Puts a mail into the outbox, in the same transaction.
    async fn tell(
        &self,
        tx: &mut F::Connection,
        command: &Command,
        news: &str,
    ) -> Result<Outcome, Failure> {
        let mail = Mail {
            customer: Order::of(command)?.customer,
            order: command.key.clone(),
            news: news.to_owned(),
        };
        let body = serde_json::to_vec(&mail).map_err(|e| Failure::last(e.to_string()))?;
        // By customer: what they get is in the order in which it happened.
        let message = Message::keyed(&self.mails, &mail.customer, body);
        self.outbox.send(tx, &[message]).await?;
        Ok(Outcome::Done(Value::Null))
    }
}

/// The decision: the customer may have withdrawn meanwhile.
async fn accept<C: Connection>(tx: &mut C, command: &Command) -> Result<Outcome, Failure> {
    Ok(match tx.run(ACCEPT, &[(&command.key).into()]).await? {
        0 => Outcome::Refused("the customer has withdrawn".into()),
        _ => Outcome::Done(Value::Null),
    })
}

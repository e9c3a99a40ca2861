//! The service `stock`: books on shelves, books set aside, and parcels.
//!
//! Its steps in the order saga: `reserve` sets copies aside and can be undone; `ship` packs them, after the decision,
//! and is tried until it is done.

use anyhow::Result;
use quorate_outbox::inbox::Failure;
use quorate_saga::message::Command;
use quorate_saga::participant::{Answer, Service};
use quorate_saga::{Outcome, Participant, participant};
use serde_json::Value;

use crate::catalogue::{BOOKS, Order};
use crate::database::{Connection, Database};
use crate::shop::{Running, Shop};

/// Parcels have no key: a second one for an order would be seen.
pub const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS shelf (title TEXT PRIMARY KEY, copies BIGINT NOT NULL CHECK (copies >= 0));
    CREATE TABLE IF NOT EXISTS reserved (order_id TEXT PRIMARY KEY, title TEXT NOT NULL, copies BIGINT NOT NULL);
    CREATE TABLE IF NOT EXISTS parcel (order_id TEXT NOT NULL, title TEXT NOT NULL, copies BIGINT NOT NULL)";

const FILL: &str = "INSERT INTO shelf (title, copies) VALUES ($1, $2) ON CONFLICT DO NOTHING";
const TAKE: &str = "UPDATE shelf SET copies = copies - $2 WHERE title = $1 AND copies >= $2";
const PUT_BACK: &str = "UPDATE shelf SET copies = copies + $2 WHERE title = $1";
const RESERVE: &str = "INSERT INTO reserved (order_id, title, copies) VALUES ($1, $2, $3)";
const LET_GO: &str = "DELETE FROM reserved WHERE order_id = $1 RETURNING title, copies";
const PACK: &str = "INSERT INTO parcel (order_id, title, copies) VALUES ($1, $2, $3)";

/// Fills the shelves, and starts the service.
pub async fn start<D: Database>(shop: &Shop, database: &D) -> Result<Running<D>> {
    let mut connection = database.connection().await?;
    for (title, _, copies) in BOOKS {
        connection.run(FILL, &[title.into(), copies.into()]).await?;
    }
    drop(connection);
    let handler = Participant::new(database.fences(), Stock);
    let topic = shop.topic("stock");
    let options = participant::options(&topic, &[&topic]);
    shop.serve("stock", database, handler, options).await
}

struct Stock;

impl<C: Connection> Service<C> for Stock {
    fn act<'a>(&'a self, tx: &'a mut C, command: &'a Command) -> Answer<'a> {
        Box::pin(async move {
            match command.branch.as_str() {
                "reserve" => reserve(tx, command).await,
                "ship" => ship(tx, command).await,
                other => Ok(Outcome::Refused(format!("the stock does not do `{other}`"))),
            }
        })
    }

    /// Only `reserve` is ever undone.
    fn undo<'a>(&'a self, tx: &'a mut C, command: &'a Command) -> Answer<'a> {
        Box::pin(async move {
            let (title, copies) = let_go(tx, command).await?;
            tx.run(PUT_BACK, &[(&title).into(), copies.into()]).await?;
            Ok(Outcome::Done(Value::Null))
        })
    }
}

async fn reserve<C: Connection>(tx: &mut C, command: &Command) -> Result<Outcome, Failure> {
    let order = Order::of(command)?;
    let (title, copies) = (&order.title, order.copies);
    if tx.run(TAKE, &[title.into(), copies.into()]).await? == 0 {
        return Ok(Outcome::Refused("sold out".into()));
    }
    let values = [(&command.key).into(), title.into(), copies.into()];
    tx.run(RESERVE, &values).await?;
    Ok(Outcome::Done(Value::Null))
}

async fn ship<C: Connection>(tx: &mut C, command: &Command) -> Result<Outcome, Failure> {
    let (title, copies) = let_go(tx, command).await?;
    let values = [(&command.key).into(), (&title).into(), copies.into()];
    tx.run(PACK, &values).await?;
    Ok(Outcome::Done(Value::Null))
}

/// What is reserved for an order, whose reservation ends. The saga lets nobody come here without one.
async fn let_go<C: Connection>(tx: &mut C, command: &Command) -> Result<(String, i64), Failure> {
    let reserved = tx.row(LET_GO, &[(&command.key).into()]).await?;
    reserved.ok_or_else(|| Failure::last(format!("nothing is reserved for {}", command.key)))
}

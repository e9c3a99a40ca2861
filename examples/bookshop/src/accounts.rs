//! The service `accounts`: customers' money, and the shop's.
//!
//! It takes part in the order saga by TCC, with the branch `pay`: *try* holds the money, *confirm* gives it to the shop,
//! *cancel* gives it back. The fence that keeps each of them from happening twice, or in the wrong order, is the
//! participant's; here is only what is done with the money.

use anyhow::Result;
use quorate_outbox::inbox::Failure;
use quorate_saga::message::Command;
use quorate_saga::participant::{Answer, Service};
use quorate_saga::{Outcome, Participant, participant};
use serde_json::Value;

use crate::catalogue::{CUSTOMERS, OPENING_CENTS, Order, TILL};
use crate::database::{Connection, Database};
use crate::shop::{Running, Shop};

/// No account is ever below nothing: the database itself sees to it.
pub const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, cents BIGINT NOT NULL CHECK (cents >= 0));
    CREATE TABLE IF NOT EXISTS hold (order_id TEXT PRIMARY KEY, account TEXT NOT NULL, cents BIGINT NOT NULL)";

const OPEN: &str = "INSERT INTO account (name, cents) VALUES ($1, $2) ON CONFLICT DO NOTHING";
const TAKE: &str = "UPDATE account SET cents = cents - $2 WHERE name = $1 AND cents >= $2";
const GIVE: &str = "UPDATE account SET cents = cents + $2 WHERE name = $1";
const HOLD: &str = "INSERT INTO hold (order_id, account, cents) VALUES ($1, $2, $3)";
const LET_GO: &str = "DELETE FROM hold WHERE order_id = $1 RETURNING account, cents";

/// Opens the accounts, and starts the service.
pub async fn start<D: Database>(shop: &Shop, database: &D) -> Result<Running<D>> {
    let mut connection = database.connection().await?;
    for customer in CUSTOMERS {
        let values = [customer.into(), OPENING_CENTS.into()];
        connection.run(OPEN, &values).await?;
    }
    connection.run(OPEN, &[TILL.into(), 0.into()]).await?;
    drop(connection);
    let handler = Participant::new(database.fences(), Accounts);
    let topic = shop.topic("accounts");
    let options = participant::options(&topic, &[&topic]);
    shop.serve("accounts", database, handler, options).await
}

struct Accounts;

impl<C: Connection> Service<C> for Accounts {
    /// Try.
    fn act<'a>(&'a self, tx: &'a mut C, command: &'a Command) -> Answer<'a> {
        Box::pin(async move {
            let order = Order::of(command)?;
            let (customer, cents) = (&order.customer, order.cents);
            if tx.run(TAKE, &[customer.into(), cents.into()]).await? == 0 {
                return Ok(Outcome::Refused("not enough money".into()));
            }
            let values = [(&command.key).into(), customer.into(), cents.into()];
            tx.run(HOLD, &values).await?;
            Ok(Outcome::Done(Value::Null))
        })
    }

    /// Cancel.
    fn undo<'a>(&'a self, tx: &'a mut C, command: &'a Command) -> Answer<'a> {
        Box::pin(async move {
            let (customer, cents) = let_go(tx, command).await?;
            tx.run(GIVE, &[(&customer).into(), cents.into()]).await?;
            Ok(Outcome::Done(Value::Null))
        })
    }

    /// Confirm.
    fn confirm<'a>(&'a self, tx: &'a mut C, command: &'a Command) -> Answer<'a> {
        Box::pin(async move {
            let (_, cents) = let_go(tx, command).await?;
            tx.run(GIVE, &[TILL.into(), cents.into()]).await?;
            Ok(Outcome::Done(Value::Null))
        })
    }
}

/// The money held for an order, whose hold ends. The fence lets nobody come here without one.
async fn let_go<C: Connection>(tx: &mut C, command: &Command) -> Result<(String, i64), Failure> {
    let held = tx.row(LET_GO, &[(&command.key).into()]).await?;
    held.ok_or_else(|| Failure::last(format!("nothing is held for {}", command.key)))
}

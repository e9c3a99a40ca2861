//! The services: a bank with its books in the database, and a post that is elsewhere.

use quorate_outbox::inbox::Failure;
use quorate_outbox::store::BoxFuture;
use quorate_saga::Outcome;
use quorate_saga::message::Command;
use quorate_saga::participant::{Answer, Answers, External, Service};
use serde_json::{Value, json};

/// For both kinds of database; each may be there already.
pub const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS money (
        saga TEXT NOT NULL, branch TEXT NOT NULL, account TEXT NOT NULL, amount BIGINT NOT NULL)";

/// Moves money: two rows of the book each time, whose sum is nothing.
pub struct Bank;

fn transfer(command: &Command, is_undo: bool) -> Option<(&'static str, &'static str)> {
    match (command.branch.as_str(), is_undo) {
        ("reserve", false) => Some(("customer", "escrow")),
        ("reserve", true) => Some(("escrow", "customer")),
        ("pay", false) => Some(("escrow", "shop")),
        _ => None,
    }
}

fn is_refused(command: &Command) -> bool {
    command.branch == "pay" && command.input["refuse"] == json!(true)
}

macro_rules! bank {
    ($name:ident, $connection:ty) => {
        mod $name {
            use super::*;

            async fn book(
                tx: &mut $connection,
                command: &Command,
                is_undo: bool,
            ) -> Result<Outcome, Failure> {
                let Some((from, to)) = transfer(command, is_undo) else {
                    return Ok(Outcome::Refused("the bank does not do that".into()));
                };
                let amount = command.input["amount"].as_i64().unwrap_or(0);
                for (account, amount) in [(from, -amount), (to, amount)] {
                    sqlx::query(
                        "INSERT INTO money (saga, branch, account, amount) VALUES ($1, $2, $3, $4)",
                    )
                    .bind(command.key.clone())
                    .bind(command.branch.clone())
                    .bind(account)
                    .bind(amount)
                    .execute(&mut *tx)
                    .await?;
                    quorate_outbox::points::pass("bank.booked");
                }
                Ok(Outcome::Done(Value::Null))
            }

            impl Service<$connection> for Bank {
                fn act<'a>(&'a self, tx: &'a mut $connection, command: &'a Command) -> Answer<'a> {
                    Box::pin(async move {
                        let booked = book(tx, command, false).await?;
                        if is_refused(command) {
                            // What was booked is taken back by the participant.
                            return Ok(Outcome::Refused("the bank says no".into()));
                        }
                        Ok(booked)
                    })
                }

                fn undo<'a>(&'a self, tx: &'a mut $connection, command: &'a Command) -> Answer<'a> {
                    Box::pin(book(tx, command, true))
                }

                fn act_all<'a>(
                    &'a self,
                    tx: &'a mut $connection,
                    commands: &'a [Command],
                ) -> Option<Answers<'a>> {
                    Some(Box::pin(async move {
                        let mut outcomes = Vec::new();
                        for command in commands {
                            outcomes.push(if is_refused(command) {
                                Outcome::Refused("the bank says no".into())
                            } else {
                                book(tx, command, false).await?
                            });
                        }
                        Ok(outcomes)
                    }))
                }
            }
        }
    };
}

bank!(postgres, sqlx::PgConnection);
bank!(sqlite, sqlx::SqliteConnection);

/// Prints labels and sends parcels. To do so twice under one key changes nothing there.
pub struct Post;

impl External for Post {
    fn act<'a>(&'a self, _: &'a Command) -> BoxFuture<'a, Outcome> {
        quorate_outbox::points::pass("post.acted");
        Box::pin(async { Outcome::Done(json!("a receipt")) })
    }

    fn undo<'a>(&'a self, _: &'a Command) -> BoxFuture<'a, Outcome> {
        Box::pin(async { Outcome::Done(Value::Null) })
    }
}

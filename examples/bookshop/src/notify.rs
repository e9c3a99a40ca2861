//! The notifier: writes each mail once.
//!
//! A consumer with an inbox: the mail, and the record that its message was seen, are one transaction. So a message that
//! comes twice, or a process that dies in the middle, does not write to a customer twice.

use anyhow::Result;
use quorate_outbox::inbox::{Failure, Handler};
use quorate_outbox::store::BoxFuture;
use quorate_outbox::{ConsumerOptions, Delivery};
use serde::{Deserialize, Serialize};

use crate::database::{Connection, Database};
use crate::shop::{Running, Shop};

/// What leaves the house. Without a key: a mail that is written twice would be seen.
pub const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS mail (customer TEXT NOT NULL, order_id TEXT NOT NULL, news TEXT NOT NULL)";

const WRITE: &str = "INSERT INTO mail (customer, order_id, news) VALUES ($1, $2, $3)";

/// What a message says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mail {
    /// To whom.
    pub customer: String,
    /// About which order.
    pub order: String,
    /// What became of it: `placed`, `shipped`, `failed`.
    pub news: String,
}

/// Starts the notifier.
pub async fn start<D: Database>(shop: &Shop, database: &D) -> Result<Running<D>> {
    let options = ConsumerOptions::new(shop.topic("notify"), &[&shop.topic("mails")]);
    shop.serve("notify", database, Notifier, options).await
}

struct Notifier;

impl<C: Connection> Handler<C> for Notifier {
    fn handle<'a>(
        &'a self,
        tx: &'a mut C,
        message: &'a Delivery,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let mail: Mail = serde_json::from_slice(&message.payload)
                .map_err(|e| Failure::last(format!("this is no mail: {e}")))?;
            let values = [
                (&mail.customer).into(),
                (&mail.order).into(),
                (&mail.news).into(),
            ];
            tx.run(WRITE, &values).await?;
            Ok(())
        })
    }
}

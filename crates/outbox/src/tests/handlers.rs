//! Handlers that misbehave cost their own key, never the partition.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use super::consumers::{Base, EFFECT, OnPg, memory, on_pg, options, publish, sent, until_texts};
use super::support::eventually;
use crate::broker::local::LocalBroker;
use crate::inbox::{Failure, Handler, Ledger, State, Waiting};
use crate::store::BoxFuture;
use crate::{Consumer, ConsumerOptions, Delivery};

/// Does what the payload says.
struct Does;

impl Handler<PgConnection> for Does {
    fn handle<'a>(
        &'a self,
        tx: &'a mut PgConnection,
        message: &'a Delivery,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            let effect = sqlx::query(EFFECT).bind(&message.key).bind(&text);
            effect.execute(&mut *tx).await?;
            match text.as_str() {
                // A statement fails, and nobody is told.
                "swallow" => {
                    let _ = sqlx::query("SELECT * FROM no_such_table").execute(tx).await;
                }
                // The constraint is looked at when the transaction commits.
                "twice" => {
                    let again = sqlx::query(EFFECT).bind(&message.key).bind(&text);
                    again.execute(tx).await?;
                }
                "never" => std::future::pending().await,
                _ => {}
            }
            Ok(())
        })
    }
}

async fn begin(
    base: &OnPg,
    broker: &LocalBroker,
    options: ConsumerOptions,
) -> Consumer<crate::inbox::PgInbox> {
    let once = "ALTER TABLE effects ADD UNIQUE (k, text) DEFERRABLE INITIALLY DEFERRED";
    sqlx::query(once)
        .execute(&base.0.pool)
        .await
        .expect("alters");
    let started = Consumer::start(
        base.inbox(),
        Arc::new(broker.clone()),
        Arc::new(Does),
        options,
    );
    started.await.expect("starts")
}

async fn until_dead(base: &OnPg, count: usize) -> Vec<Waiting> {
    eventually("they are dead", || async {
        let waiting = base.inbox().waiting("test", None, 10).await;
        let waiting = waiting.map_err(|e| e.to_string())?;
        let dead = waiting.iter().filter(|w| w.state == State::Dead).count();
        if dead == count {
            Ok(waiting)
        } else {
            Err(format!("{waiting:?}"))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_handler_that_spoils_its_transaction_parks_its_key_only() {
    let base = on_pg().await;
    let broker = memory();
    let consumer = begin(&base, &broker, options()).await;
    let mut messages = Vec::new();
    for bad in ["swallow", "twice"] {
        messages.extend([sent(bad, 1, "1"), sent(bad, 2, bad), sent(bad, 3, "3")]);
    }
    messages.extend((1..=12).map(|i| sent(&format!("good{i}"), 1, "good")));
    publish(&broker, &messages).await;
    let waiting = until_dead(&base, 2).await;
    assert!(
        waiting.iter().all(|w| w.message.seq() != Some(1)),
        "{waiting:?}"
    );
    for i in 1..=12 {
        until_texts(&base, &format!("good{i}"), &["good"]).await;
    }
    for bad in ["swallow", "twice"] {
        assert_eq!(base.texts(bad).await, ["1"], "nothing is half done");
    }
    consumer.drain().await;
    base.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_handler_that_never_returns_parks_its_key_only() {
    let base = on_pg().await;
    let broker = memory();
    let options = ConsumerOptions {
        patience: Duration::from_millis(300),
        attempts: 2,
        ..options()
    };
    let consumer = begin(&base, &broker, options).await;
    let mut messages = vec![sent("bad", 1, "never"), sent("bad", 2, "2")];
    messages.extend((1..=12).map(|i| sent(&format!("good{i}"), 1, "good")));
    publish(&broker, &messages).await;
    let waiting = until_dead(&base, 1).await;
    let dead = waiting.iter().find(|w| w.state == State::Dead);
    let reason = &dead.expect("is there").reason;
    assert!(reason.contains("took longer"), "{reason}");
    for i in 1..=12 {
        until_texts(&base, &format!("good{i}"), &["good"]).await;
    }
    consumer.drain().await;
    base.end().await;
}

/// While a handler hangs, the status says how old its message is and how much waits.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_handler_that_hangs_is_seen_in_the_lag() {
    let base = on_pg().await;
    let broker = memory();
    let mut options = options();
    options.threshold.oldest = Duration::from_secs(60);
    options.patience = Duration::from_secs(3);
    let consumer = begin(&base, &broker, options).await;
    let mut old = sent("bad", 1, "never");
    let hour_ago = crate::inbox::now_ms() - 3_600_000;
    let created = (crate::HEADER_CREATED.to_owned(), hour_ago.to_string());
    old.headers.push(created);
    publish(&broker, &[old, sent("bad", 2, "2")]).await;
    eventually("it is said", || async {
        let status = consumer.status();
        let said = status.lag.waiting >= 1 && status.lag.oldest_ms >= 3_600_000;
        if said && status.alarm.is_some() {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    consumer.drain().await;
    base.end().await;
}

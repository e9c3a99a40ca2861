//! Writes orders, each with a keyed message and one without order, in one transaction; rolls some back.

use anyhow::Result;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::{Message, points};

use crate::{Random, Settings};

/// Writes until there are as many orders as asked for.
pub async fn run(settings: &Settings) -> Result<()> {
    let pool = settings.pool().await?;
    let outbox = PgOutbox::open(pool.clone()).await?;
    let topic = settings.get("topic")?;
    let wanted = settings.number("orders")? as i64;
    let pause = settings.number("pause_ms").unwrap_or(0);
    let mut random = Random(settings.number("seed")? ^ u64::from(std::process::id()));
    // Some are rolled back: always the same ones, so that a point after a rollback is passed in every run.
    let mut tries = 0;
    loop {
        tries += 1;
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
            .fetch_one(&pool)
            .await?;
        if there >= wanted {
            return Ok(());
        }
        let key = format!("k{}", random.below(8));
        let mut tx = pool.begin().await?;
        points::pass("producer.begun");
        let order: i64 = sqlx::query_scalar("INSERT INTO orders (k) VALUES ($1) RETURNING id")
            .bind(&key)
            .fetch_one(&mut *tx)
            .await?;
        points::pass("producer.data");
        let keyed = Message::keyed(topic, &key, order.to_string());
        outbox.enqueue(&mut tx, &keyed).await?;
        points::pass("producer.enqueued");
        let free = Message::unordered(topic, format!("free {order}"));
        outbox.enqueue(&mut tx, &free).await?;
        tokio::time::sleep(std::time::Duration::from_micros(random.below(3_000))).await;
        if tries % 16 == 7 {
            tx.rollback().await?;
            points::pass("producer.rolled-back");
        } else {
            points::pass("producer.before-commit");
            tx.commit().await?;
            points::pass("producer.committed");
        }
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
    }
}

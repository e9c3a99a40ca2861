//! Writes orders, each with a keyed message and one without order, in one transaction; rolls some back.

use anyhow::Result;
use quorate_outbox::mysql::MySqlOutbox;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::{Message, points};
use sqlx::{MySql, MySqlPool, PgPool, Postgres, Transaction};

use crate::{Random, Settings};

/// Where orders are written.
enum Shop {
    Pg(PgPool, PgOutbox),
    MySql(MySqlPool, MySqlOutbox),
}

enum Tx {
    Pg(Transaction<'static, Postgres>, PgOutbox),
    MySql(Transaction<'static, MySql>, MySqlOutbox),
}

impl Shop {
    async fn open(settings: &Settings) -> Result<Shop> {
        if settings.is_mysql() {
            let pool = settings.mysql().await?;
            return Ok(Shop::MySql(pool.clone(), MySqlOutbox::open(pool).await?));
        }
        let pool = settings.pool().await?;
        Ok(Shop::Pg(pool.clone(), PgOutbox::open(pool).await?))
    }

    async fn orders(&self) -> Result<i64> {
        let text = "SELECT count(*) FROM orders";
        Ok(match self {
            Shop::Pg(pool, _) => sqlx::query_scalar(text).fetch_one(pool).await?,
            Shop::MySql(pool, _) => sqlx::query_scalar(text).fetch_one(pool).await?,
        })
    }

    async fn begin(&self) -> Result<Tx> {
        Ok(match self {
            Shop::Pg(pool, outbox) => Tx::Pg(pool.begin().await?, outbox.clone()),
            Shop::MySql(pool, outbox) => Tx::MySql(pool.begin().await?, outbox.clone()),
        })
    }
}

impl Tx {
    /// Writes an order; answers its id.
    async fn order(&mut self, key: &str) -> Result<i64> {
        Ok(match self {
            Tx::Pg(tx, _) => {
                sqlx::query_scalar("INSERT INTO orders (k) VALUES ($1) RETURNING id")
                    .bind(key)
                    .fetch_one(&mut **tx)
                    .await?
            }
            Tx::MySql(tx, _) => {
                let done = sqlx::query("INSERT INTO orders (k) VALUES (?)")
                    .bind(key)
                    .execute(&mut **tx)
                    .await?;
                done.last_insert_id() as i64
            }
        })
    }

    async fn enqueue(&mut self, message: &Message) -> Result<()> {
        match self {
            Tx::Pg(tx, outbox) => outbox.enqueue(tx, message).await?,
            Tx::MySql(tx, outbox) => outbox.enqueue(tx, message).await?,
        };
        Ok(())
    }

    async fn end(self, commits: bool) -> Result<()> {
        match (self, commits) {
            (Tx::Pg(tx, _), true) => tx.commit().await?,
            (Tx::Pg(tx, _), false) => tx.rollback().await?,
            (Tx::MySql(tx, _), true) => tx.commit().await?,
            (Tx::MySql(tx, _), false) => tx.rollback().await?,
        }
        Ok(())
    }
}

/// Writes until there are as many orders as asked for.
pub async fn run(settings: &Settings) -> Result<()> {
    let shop = Shop::open(settings).await?;
    let topic = settings.get("topic")?;
    let wanted = settings.number("orders")? as i64;
    let pause = settings.number("pause_ms").unwrap_or(0);
    let mut random = Random(settings.number("seed")? ^ u64::from(std::process::id()));
    // Some are rolled back: always the same ones, so that a point after a rollback is passed in every run.
    let mut tries = 0;
    loop {
        tries += 1;
        if shop.orders().await? >= wanted {
            return Ok(());
        }
        let key = format!("k{}", random.below(8));
        let mut tx = shop.begin().await?;
        points::pass("producer.begun");
        let order = tx.order(&key).await?;
        points::pass("producer.data");
        let keyed = Message::keyed(topic, &key, order.to_string());
        tx.enqueue(&keyed).await?;
        points::pass("producer.enqueued");
        let free = Message::unordered(topic, format!("free {order}"));
        tx.enqueue(&free).await?;
        tokio::time::sleep(std::time::Duration::from_micros(random.below(3_000))).await;
        if tries % 16 == 7 {
            tx.end(false).await?;
            points::pass("producer.rolled-back");
        } else {
            points::pass("producer.before-commit");
            tx.end(true).await?;
            points::pass("producer.committed");
        }
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
    }
}

//! Enqueuing against a plain insert of the same row: eight clients, a message a transaction, synced.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_outbox::Message;
use serde_json::{Value, json};

use crate::Outcome;
use crate::base::{Base, payload};

const CLIENTS: u64 = 8;
const KEYS: u64 = 10_000;
/// The same columns and the same index, without partitions.
const PLAIN: &str = "\
    CREATE TABLE plain (
        part smallint NOT NULL, id bigserial PRIMARY KEY, slot smallint NOT NULL,
        message_id uuid NOT NULL, topic text NOT NULL, key text, seq bigint, headers text NOT NULL,
        payload bytea NOT NULL, created timestamptz NOT NULL DEFAULT clock_timestamp())";
const INSERT: &str = "\
    INSERT INTO plain (part, slot, message_id, topic, key, seq, headers, payload)
    VALUES (0, 0, $1, $2, $3, 1, $4, $5) RETURNING id";

#[derive(Clone, Copy, PartialEq)]
enum How {
    Plain,
    Ordered,
    Unordered,
}

pub async fn run(seconds: u64) -> Outcome<Value> {
    let base = Arc::new(Base::new(8).await?);
    sqlx::query(PLAIN).execute(&base.pool).await?;
    let mut best = [0.0f64; 3];
    let mut all = Vec::new();
    for _ in 0..3 {
        for (at, how) in [How::Plain, How::Ordered, How::Unordered]
            .into_iter()
            .enumerate()
        {
            let rate = measure(&base, how, seconds).await?;
            best[at] = best[at].max(rate);
            all.push(rate.round());
        }
    }
    let base = Arc::into_inner(base).ok_or("a client still runs")?;
    base.end().await?;
    Ok(json!({
        "clients": CLIENTS, "payload_bytes": 200, "keys": KEYS, "unit": "transactions/s, best of 3",
        "plain_insert": best[0].round(), "ordered": best[1].round(), "unordered": best[2].round(),
        "ordered_ratio": best[1] / best[0], "unordered_ratio": best[2] / best[0], "raw": all,
    }))
}

async fn measure(base: &Arc<Base>, how: How, seconds: u64) -> Outcome<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let end = started + Duration::from_secs(seconds);
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let (base, done) = (Arc::clone(base), Arc::clone(&done));
        clients.push(tokio::spawn(async move {
            let mut number = client;
            while Instant::now() < end {
                number = number
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                one(&base, how, (number >> 33) % KEYS).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Ok(())
        }));
    }
    for client in clients {
        client.await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

async fn one(base: &Base, how: How, key: u64) -> Outcome<()> {
    let mut message = Message::keyed("bench", format!("key-{key}"), payload());
    message.ordered = how == How::Ordered;
    let mut tx = base.pool.begin().await?;
    if how == How::Plain {
        sqlx::query(INSERT)
            .bind(message.id)
            .bind(&message.topic)
            .bind(&message.key)
            .bind("[]")
            .bind(&message.payload[..])
            .execute(&mut *tx)
            .await?;
    } else {
        base.outbox.enqueue(&mut tx, &message).await?;
    }
    tx.commit().await?;
    Ok(())
}

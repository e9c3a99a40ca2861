//! Draining a backlog of 200-byte messages to the broker: ours with one and four relays, with and without a
//! pinned snapshot, and the two loops over SKIP LOCKED, all with the same producer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_outbox::broker::{Broker, Outbatch, Outgoing};
use quorate_outbox::store::{Fence, Store};
use quorate_outbox::{Relay, RelayOptions};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

use crate::Outcome;
use crate::base::{Base, kafka};

const PARTS: i64 = 8;

/// Fills the parts evenly, as committed transactions would have.
async fn fill(base: &Base, topic: &str, rows: i64) -> Outcome<()> {
    for part in 0..PARTS {
        let text = format!(
            "INSERT INTO quorate_outbox (part, id, slot, message_id, topic, key, seq, headers, payload)
             SELECT {part}, id, {part} * 4 + ((id >> 17) & 3), gen_random_uuid(), '{topic}',
                    'key-' || (id % 1000) || '-{part}', (id - 1) / 1000 + 1, '[]',
                    decode(repeat(md5(id::text), 6) || 'deadbeef', 'hex') || decode(repeat('ab', 100), 'hex')
             FROM (SELECT nextval('quorate_outbox_id_{part}') AS id
                   FROM generate_series(1, {})) AS ids",
            rows / PARTS
        );
        sqlx::query(AssertSqlSafe(text)).execute(&base.pool).await?;
    }
    sqlx::query("VACUUM ANALYZE quorate_outbox")
        .execute(&base.pool)
        .await?;
    sqlx::query("CHECKPOINT").execute(&base.pool).await?;
    Ok(())
}

/// Drains with relays of ours; messages a second, and for each tenth.
async fn ours(rows: i64, relays: usize, pinned: bool) -> Outcome<Value> {
    let base = Base::new(PARTS as u16).await?;
    let topic = base.topic("drain");
    fill(&base, &topic, rows).await?;
    let mut pin = base.pool.begin().await?;
    if pinned {
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut *pin)
            .await?;
        sqlx::query("SELECT count(*) FROM quorate_outbox_relay")
            .execute(&mut *pin)
            .await?;
    }
    let mut running = Vec::new();
    let broker: Arc<dyn Broker> = Arc::new(kafka()?);
    let started = Instant::now();
    for _ in 0..relays {
        let store: Arc<dyn Store> = Arc::new(base.outbox.clone());
        running.push(Relay::start(
            store,
            Arc::clone(&broker),
            RelayOptions::default(),
        )?);
    }
    let mut tenths = Vec::new();
    let mut begun: Option<Instant> = None;
    loop {
        let published: u64 = running.iter().map(|relay| relay.status().published).sum();
        if published > 0 && begun.is_none() {
            begun = Some(Instant::now());
        }
        if published as i64 >= rows * (tenths.len() as i64 + 1) / 10 {
            tenths.push(Instant::now());
        }
        if published as i64 >= rows {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    drop(pin);
    for relay in running {
        relay.drain().await;
    }
    base.end().await?;
    let mut before = begun.unwrap_or(started);
    let each: Vec<f64> = tenths
        .iter()
        .map(|at| {
            let took = at.duration_since(before).as_secs_f64().max(0.001);
            before = *at;
            (rows as f64 / 10.0 / took).round()
        })
        .collect();
    Ok(json!({
        "rows": rows, "relays": relays, "pinned_snapshot": pinned,
        "messages_per_s": (rows as f64 / seconds).round(), "each_tenth": each,
    }))
}

/// The same messages in the table that most have.
async fn queue(base: &Base) -> Outcome<()> {
    let copy = "CREATE TABLE queue AS SELECT row_number() OVER () AS id, topic, key, payload,
                false AS done FROM quorate_outbox";
    sqlx::query(copy).execute(&base.pool).await?;
    sqlx::query("CREATE INDEX ON queue (id) WHERE NOT done")
        .execute(&base.pool)
        .await?;
    sqlx::query("CREATE UNIQUE INDEX ON queue (id)")
        .execute(&base.pool)
        .await?;
    sqlx::query("VACUUM ANALYZE queue")
        .execute(&base.pool)
        .await?;
    Ok(())
}

/// The loop that most do: lock, publish, mark or delete.
async fn skip_locked(rows: i64, delete: bool, pinned: bool) -> Outcome<Value> {
    let base = Base::new(PARTS as u16).await?;
    let topic = base.topic("skip");
    fill(&base, &topic, rows).await?;
    queue(&base).await?;
    let mut pin = base.pool.begin().await?;
    if pinned {
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut *pin)
            .await?;
        sqlx::query("SELECT count(*) FROM quorate_outbox_relay")
            .execute(&mut *pin)
            .await?;
    }
    let broker = kafka()?;
    let started = Instant::now();
    let mut published = 0;
    loop {
        let mut tx = base.pool.begin().await?;
        let text = "SELECT id, topic, key, payload FROM queue WHERE NOT done ORDER BY id LIMIT 2000
                    FOR UPDATE SKIP LOCKED";
        let found = sqlx::query(text).fetch_all(&mut *tx).await?;
        if found.is_empty() {
            break;
        }
        let mut ids: Vec<i64> = Vec::with_capacity(found.len());
        let mut messages = Vec::with_capacity(found.len());
        for row in &found {
            ids.push(row.try_get(0)?);
            messages.push(Outgoing {
                topic: row.try_get(1)?,
                key: row.try_get(2)?,
                headers: vec![("id".into(), row.try_get::<i64, _>(0)?.to_string())],
                payload: row.try_get::<Vec<u8>, _>(3)?.into(),
            });
        }
        let fence = Fence { part: 0, epoch: 1 };
        let messages = messages.as_slice();
        let batch = Outbatch {
            source: "skip",
            fence,
            number: 0,
            messages,
            alone: false,
        };
        if broker.publish(batch).await.iter().any(Result::is_err) {
            return Err("the broker refused".into());
        }
        let text = if delete {
            "DELETE FROM queue WHERE id = ANY($1)"
        } else {
            "UPDATE queue SET done = true WHERE id = ANY($1)"
        };
        sqlx::query(text).bind(&ids).execute(&mut *tx).await?;
        tx.commit().await?;
        published += ids.len();
    }
    let seconds = started.elapsed().as_secs_f64();
    drop(pin);
    base.end().await?;
    Ok(json!({
        "rows": published, "relays": 1, "pinned_snapshot": pinned,
        "how": if delete { "SKIP LOCKED, DELETE" } else { "SKIP LOCKED, UPDATE" },
        "messages_per_s": (published as f64 / seconds).round(),
    }))
}

pub async fn run(rows: i64) -> Outcome<Value> {
    let small = rows / 10;
    Ok(json!({
        "one_relay": ours(rows, 1, false).await?,
        "four_relays": ours(rows, 4, false).await?,
        "one_relay_pinned": ours(small, 1, true).await?,
        "one_relay_small": ours(small, 1, false).await?,
        "skip_locked_update": skip_locked(small, false, false).await?,
        "skip_locked_delete": skip_locked(small, true, false).await?,
        "skip_locked_update_pinned": skip_locked(small, false, true).await?,
        "skip_locked_delete_pinned": skip_locked(small, true, true).await?,
    }))
}

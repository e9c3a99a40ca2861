//! From the producer's commit until the consumer's effect is committed, at 1,000 messages a second.
//!
//! The effect is seen by looking at its table every two milliseconds, so the figures include that.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_outbox::broker::Broker;
use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::inbox::{Failure, Handler, PgInbox};
use quorate_outbox::store::BoxFuture;
use quorate_outbox::{Consumer, ConsumerOptions, Delivery, Message, Relay, RelayOptions};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::Outcome;
use crate::base::{Base, kafka, payload, percentile};

const RATE: u64 = 1_000;
const PRODUCERS: u64 = 8;
/// For so many seconds nothing is measured: connections are made, and their statements prepared.
const WARM: u64 = 3;

struct Effect;

impl Handler<PgConnection> for Effect {
    fn handle<'a>(
        &'a self,
        tx: &'a mut PgConnection,
        message: &'a Delivery,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            sqlx::query("INSERT INTO effects (number) VALUES ($1)")
                .bind(message.header("number").and_then(|n| n.parse::<i64>().ok()))
                .execute(tx)
                .await?;
            Ok(())
        })
    }
}

/// Over the Kafka-compatible broker, and over the broker in this process.
pub async fn run(seconds: u64) -> Outcome<Value> {
    let in_process = Arc::new(LocalBroker::in_memory(LocalOptions::default()));
    Ok(json!({
        "kafka": over(Arc::new(kafka()?), seconds).await?,
        "in_process": over(in_process, seconds).await?,
    }))
}

async fn over(broker: Arc<dyn Broker>, seconds: u64) -> Outcome<Value> {
    let base = Base::new(8).await?;
    let table = "CREATE TABLE effects (id bigserial PRIMARY KEY, number bigint)";
    sqlx::query(table).execute(&base.pool).await?;
    // What was measured before must not be written out meanwhile.
    sqlx::query("CHECKPOINT").execute(&base.pool).await?;
    let topic = base.topic("latency");
    let inbox = PgInbox::migrate(base.pool.clone()).await?;
    let relay = Relay::start(
        Arc::new(base.outbox.clone()),
        broker.clone(),
        RelayOptions::default(),
    )?;
    let options = ConsumerOptions::new(topic.clone(), &[topic.as_str()]);
    let consumer = Consumer::start(inbox, broker, Arc::new(Effect), options).await?;
    let committed: Arc<Mutex<HashMap<i64, Instant>>> = Arc::default();
    // Until the first messages come through, nothing is measured.
    let warm = produce(&base, &topic, -1, 1, &committed).await;
    warm?;
    let mut seen = Seen::default();
    while seen.look(&base, &committed).await? == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    seen.millis.clear();
    let total = RATE * (WARM + seconds);
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|p| {
            let (pool, outbox) = (base.pool.clone(), base.outbox.clone());
            let (topic, committed) = (topic.clone(), Arc::clone(&committed));
            tokio::spawn(async move {
                let mut tick =
                    tokio::time::interval(Duration::from_micros(1_000_000 * PRODUCERS / RATE));
                for i in 0..total / PRODUCERS {
                    tick.tick().await;
                    let number = (i * PRODUCERS + p) as i64;
                    let message = Message::keyed(&topic, format!("k{}", number % 997), payload())
                        .header("number", number.to_string());
                    let mut tx = pool.begin().await?;
                    outbox.enqueue(&mut tx, &message).await?;
                    tx.commit().await?;
                    committed.lock().insert(number, Instant::now());
                }
                Outcome::Ok(())
            })
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(WARM + seconds + 60);
    while (seen.millis.len() as u64) < total && Instant::now() < end {
        seen.look(&base, &committed).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for producer in producers {
        producer.await??;
    }
    relay.drain().await;
    consumer.drain().await;
    base.end().await?;
    let warm = (RATE * WARM) as usize;
    let mut millis = seen.millis.split_off(warm.min(seen.millis.len()));
    millis.sort_by(f64::total_cmp);
    Ok(json!({
        "rate_per_s": RATE, "messages": millis.len(), "unit": "ms, commit to committed effect",
        "p50": percentile(&millis, 0.50), "p99": percentile(&millis, 0.99),
        "p999": percentile(&millis, 0.999), "max": millis.last(),
    }))
}

async fn produce(
    base: &Base,
    topic: &str,
    number: i64,
    count: i64,
    committed: &Mutex<HashMap<i64, Instant>>,
) -> Outcome<()> {
    for number in number..number + count {
        let message = Message::keyed(topic, "warm", payload()).header("number", number.to_string());
        let mut tx = base.pool.begin().await?;
        base.outbox.enqueue(&mut tx, &message).await?;
        tx.commit().await?;
        committed.lock().insert(number, Instant::now());
    }
    Ok(())
}

/// Effects that were seen, and how long each took.
#[derive(Default)]
struct Seen {
    last: i64,
    /// Ids below the last that were not there yet: partitions commit out of order of their ids.
    gaps: BTreeSet<i64>,
    /// Number of an effect, and when it was seen.
    open: Vec<(i64, Instant)>,
    millis: Vec<f64>,
}

/// An id that is so far behind is that of an effect that was rolled back.
const ROLLED_BACK: i64 = 5_000;

impl Seen {
    async fn look(
        &mut self,
        base: &Base,
        committed: &Mutex<HashMap<i64, Instant>>,
    ) -> Outcome<usize> {
        let text = "SELECT id, number FROM effects WHERE id > $1 OR id = ANY($2) ORDER BY id";
        let gaps: Vec<i64> = self.gaps.iter().copied().collect();
        let rows: Vec<(i64, i64)> = sqlx::query_as(text)
            .bind(self.last)
            .bind(gaps)
            .fetch_all(&base.pool)
            .await?;
        let now = Instant::now();
        for (id, number) in rows {
            self.gaps.remove(&id);
            self.gaps.extend(self.last + 1..id);
            self.last = self.last.max(id);
            self.open.push((number, now));
        }
        // An effect may be seen before its producer has heard of the commit.
        let mut committed = committed.lock();
        let before = self.millis.len();
        self.open.retain(|(number, at)| {
            let from = committed.remove(number);
            let took = from.map(|from| at.saturating_duration_since(from).as_secs_f64() * 1000.0);
            self.millis.extend(took);
            took.is_none()
        });
        self.gaps = self.gaps.split_off(&(self.last - ROLLED_BACK));
        Ok(self.millis.len() - before)
    }
}

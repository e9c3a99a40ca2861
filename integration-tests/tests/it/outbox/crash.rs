//! The crash matrix: each role is killed by SIGKILL at each named point between two writes, with several seeds.
//!
//! `QUORATE_TEST_SEEDS` is how many seeds a point gets; `QUORATE_TEST_POINT` runs one point alone, and with
//! `QUORATE_TEST_OUTPUT` set the processes say how they stand.

use std::time::Duration;

use futures_util::StreamExt;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::support::{Share, eventually};

use super::check::{EFFECTS, Effect, ORDERS, judge};
use super::process::{Base, Bench, MYSQL, Process, SOON};

const PRODUCER: [&str; 6] = [
    "producer.begun",
    "producer.data",
    "producer.enqueued",
    "producer.before-commit",
    "producer.committed",
    "producer.rolled-back",
];
const RELAY: [&str; 10] = [
    "store.claimed",
    "store.claim-committed",
    "relay.read",
    "relay.published",
    "relay.saved",
    "store.saved-row",
    "store.parked",
    "relay.replayed",
    "trim.truncated",
    "trim.committed",
];
const RELAY_MYSQL: [&str; 10] = [
    "store.claimed",
    "store.claim-committed",
    "relay.read",
    "relay.published",
    "relay.saved",
    "store.saved-row",
    "store.parked",
    "relay.replayed",
    "trim.deleted",
    "trim.committed",
];
const TRANSACTIONS: [&str; 7] = [
    "relay.planned",
    "kafka.sent",
    "kafka.offset-sent",
    "kafka.committed",
    "relay.published",
    "store.parked",
    "relay.saved",
];
/// One message a transaction.
const CONSUMER: [&str; 9] = [
    "inbox.advanced",
    "inbox.noted",
    "inbox.handled",
    "inbox.applied",
    "inbox.committed",
    "inbox.buried",
    "replay.taken",
    "replay.handled",
    "replay.committed",
];
/// Many messages a transaction.
const CONSUMER_BATCHES: [&str; 4] = [
    "inbox.handled",
    "inbox.batch-applied",
    "inbox.batch-committed",
    "inbox.buried",
];
const EMBEDDED: [&str; 16] = [
    "producer.data",
    "producer.enqueued",
    "producer.committed",
    "store.claimed",
    "relay.read",
    "broker.appended",
    "broker.append-committed",
    "broker.positions",
    "relay.published",
    "store.saved-row",
    "store.parked",
    "relay.saved",
    "inbox.advanced",
    "inbox.applied",
    "inbox.committed",
    "replay.handled",
];

/// noida-db names aborted transactions to readers that are past them, and librdkafka then drops what follows. So
/// here the running consumer reads everything, and its inbox drops repetitions; a reader from the beginning
/// shows what is committed.
pub const TRANSACTIONAL: [&str; 3] = [
    "batch=50",
    "mode=transactional",
    "isolation=read_uncommitted",
];

const ORDERS_A_CASE: usize = 60;
/// So many cases at once: they mostly wait for leases to end.
const AT_ONCE: usize = 3;

/// Some points come once in a while, some with every message.
fn count(point: &str, seed: u64) -> u64 {
    let rare = [
        "claim",
        "trim",
        "saved-row",
        "parked",
        "replay",
        "buried",
        "positions",
        "batch",
    ];
    if rare.iter().any(|word| point.contains(word)) {
        1
    } else {
        [2, 4, 3, 1][seed as usize % 4]
    }
}

fn seeds() -> u64 {
    let given = std::env::var("QUORATE_TEST_SEEDS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// Every point with every seed.
fn cases(points: &[&'static str]) -> Vec<(&'static str, u64)> {
    let only = std::env::var("QUORATE_TEST_POINT").ok();
    let wanted = points
        .iter()
        .filter(|p| only.as_ref().is_none_or(|only| only == *p));
    wanted
        .flat_map(|point| (0..seeds()).map(move |seed| (*point, seed)))
        .collect()
}

async fn all_points(role: &'static str, points: &[&'static str], settings: &[&str]) {
    let cases = cases(points);
    let cases = futures_util::stream::iter(cases);
    let run = |(point, seed): (&'static str, u64)| one(role, point, seed, settings);
    cases
        .map(run)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
}

/// Kills one role at one point, starts it again, and waits for what has to be.
async fn one(role: &'static str, point: &'static str, seed: u64, settings: &[&str]) {
    let at = format!("{point}:{}", count(point, seed));
    let what = format!("{role} killed at {at}, seed {seed}, {settings:?}");
    let (orders, seed) = (format!("orders={ORDERS_A_CASE}"), format!("seed={seed}"));
    let mut all = vec![orders.as_str(), seed.as_str()];
    all.extend(settings);
    // Groups that lose a member are for the broker that gets over that.
    let broker = match role {
        "consumer" => "QUORATE_KAFKA_GROUPS",
        _ => "QUORATE_KAFKA",
    };
    let bench = Bench::new(broker, &all).await;
    let crash = |of: &str| (of == role).then_some(at.as_str());
    let mut producer = bench.start("producer", crash("producer"));
    let mut relay = bench.start("relay", crash("relay"));
    if role == "consumer" && settings.contains(&"batch=50") {
        // There are batches for sure only if all messages wait.
        bench.published(&what, &mut producer).await;
    }
    let mut consumer = bench.start("consumer", crash("consumer"));
    let victim = match role {
        "producer" => &mut producer,
        "relay" => &mut relay,
        _ => &mut consumer,
    };
    eventually(&what, SOON, || {
        let running = victim.is_running();
        let bench = &bench;
        async move {
            if point.starts_with("trim") {
                // Small tables are trimmed once they have been idle.
                let age = "UPDATE quorate_outbox SET created = created - interval '1 minute'";
                if let Base::Pg(pool, _) = &bench.base {
                    let _ = sqlx::query(age).execute(pool).await;
                }
            }
            if running {
                Err("it was not killed".into())
            } else {
                Ok(())
            }
        }
    })
    .await;
    let status = victim.ended().await;
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9),
        "{what}"
    );
    *victim = bench.start(role, None);
    bench.settle(&what, ORDERS_A_CASE).await;
    let ended = producer.ended().await;
    assert!(ended.success(), "{what}: the producer ended with {ended}");
    drop((relay, consumer));
    if settings.contains(&"mode=transactional") {
        bench
            .assert_topic_has_each_once(&what, 2 * ORDERS_A_CASE)
            .await;
    }
    let (orders, effects) = bench.look().await.expect("looks");
    assert_eq!(judge(&orders, &effects), (Vec::new(), 0), "{what}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_producer_killed_at_every_point_leaves_all_or_nothing() {
    let _share = Share::of(1).await;
    all_points("producer", &PRODUCER, &["batch=50"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_relay_killed_at_every_point_loses_and_doubles_nothing() {
    let _share = Share::of(1).await;
    all_points("relay", &RELAY, &["batch=50"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_on_mysql_killed_at_every_point_loses_and_doubles_nothing() {
    let _share = Share::of(1).await;
    all_points("producer", &PRODUCER, &["batch=50", MYSQL]).await;
    all_points("relay", &RELAY_MYSQL, &["batch=50", MYSQL]).await;
    all_points("consumer", &CONSUMER, &["batch=1", MYSQL]).await;
    all_points("consumer", &CONSUMER_BATCHES, &["batch=50", MYSQL]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_transactional_relay_killed_at_every_point_loses_and_doubles_nothing() {
    let _share = Share::of(1).await;
    all_points("relay", &TRANSACTIONS, &TRANSACTIONAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_consumer_killed_at_every_point_has_every_effect_once() {
    let _share = Share::of(1).await;
    all_points("consumer", &CONSUMER, &["batch=1"]).await;
    all_points("consumer", &CONSUMER_BATCHES, &["batch=50"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_embedded_killed_at_every_point_has_every_effect_once() {
    let _share = Share::of(1).await;
    let cases = futures_util::stream::iter(cases(&EMBEDDED));
    cases
        .map(embedded)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
}

async fn embedded((point, seed): (&'static str, u64)) {
    let at = format!("{point}:{}", count(point, seed));
    let what = format!("embedded killed at {at}, seed {seed}");
    let folder = tempfile::tempdir().expect("a folder");
    let settings = [
        format!("folder={}", folder.path().display()),
        "topic=orders".to_owned(),
        format!("orders={ORDERS_A_CASE}"),
        format!("seed={seed}"),
    ];
    let mut process = Process::start("embedded", &settings, Some(&at));
    let status = process.ended().await;
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9),
        "{what}"
    );
    let process = Process::start("embedded", &settings, None);
    let file = folder.path().join("data.db");
    let options = SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(20));
    let text = |e: sqlx::Error| e.to_string();
    eventually(&what, SOON, || async {
        let mut connection = options.connect().await.map_err(text)?;
        let rows: Vec<(Option<String>, Option<i64>, String)> = sqlx::query_as(EFFECTS)
            .fetch_all(&mut connection)
            .await
            .map_err(text)?;
        let orders: Vec<i64> = sqlx::query_scalar(ORDERS)
            .fetch_all(&mut connection)
            .await
            .map_err(text)?;
        connection.close().await.map_err(text)?;
        let effect = |(key, seq, text)| Effect { key, seq, text };
        let effects: Vec<Effect> = rows.into_iter().map(effect).collect();
        let (wrong, missing) = judge(&orders, &effects);
        assert!(wrong.is_empty(), "{what}: {wrong:?}");
        if orders.len() >= ORDERS_A_CASE && missing == 0 {
            return Ok(());
        }
        Err(format!(
            "{} orders, {missing} effects are missing",
            orders.len()
        ))
    })
    .await;
    drop(process);
}

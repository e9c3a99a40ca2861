//! Processes that are frozen, taken for dead, and wake up; and groups whose members die.

use rustix::process::Signal;

use crate::support::{Share, eventually};

use super::crash::TRANSACTIONAL;
use super::process::{Bench, MYSQL, Process, SOON};

const ORDERS: usize = 400;

async fn applied(bench: &Bench, count: usize) {
    eventually("effects", SOON, || async {
        let (_, effects) = bench.look().await?;
        if effects.len() >= count {
            Ok(())
        } else {
            Err(format!("{} effects", effects.len()))
        }
    })
    .await;
}

/// Freezes one of two relays for longer than its lease, again and again: the other takes its parts, and what
/// the sleeper does when it wakes harms nothing.
async fn frozen_relays(settings: &[&str]) {
    let _share = Share::of(1).await;
    let orders = format!("orders={ORDERS}");
    let mut all = vec![orders.as_str(), "seed=1", "batch=50", "pause_ms=5"];
    all.extend(settings);
    let bench = Bench::new("QUORATE_KAFKA", &all).await;
    let mut producer = bench.start("producer", None);
    let relays = [bench.start("relay", None), bench.start("relay", None)];
    let consumer = bench.start("consumer", None);
    applied(&bench, 20).await;
    for round in 0..4usize {
        let sleeper = &relays[round % 2];
        let owners =
            "SELECT CAST(owner AS char(64)), epoch FROM quorate_outbox_relay ORDER BY part";
        let before: Vec<(String, i64)> = bench.read(owners).await.expect("reads");
        sleeper.signal(Signal::STOP);
        eventually("another relay has all parts", SOON, || async {
            let now: Vec<(String, i64)> = bench.read(owners).await?;
            let one = now.iter().all(|(owner, _)| *owner == now[0].0);
            let moved = now.iter().zip(&before).any(|(n, b)| n.1 > b.1);
            if one && moved {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
        sleeper.signal(Signal::CONT);
        eventually("the sleeper takes part again", SOON, || async {
            let now: Vec<(String, i64)> = bench.read(owners).await?;
            if now[0].0 != now[1].0 {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
    }
    bench.settle("frozen relays", ORDERS).await;
    assert!(producer.ended().await.success());
    // What is published last is noted a moment later.
    eventually("nothing waits", SOON, || async {
        let lag = bench.store().lag().await.map_err(|e| e.to_string())?;
        match (lag.waiting, lag.parked) {
            (0, 0) => Ok(()),
            _ => Err(format!("{lag:?}")),
        }
    })
    .await;
    drop((relays, consumer));
    if settings.contains(&"mode=transactional") {
        bench
            .assert_topic_has_each_once("frozen relays", 2 * ORDERS)
            .await;
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_relay_frozen_past_its_lease_does_no_harm() {
    frozen_relays(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_on_mysql_relay_frozen_past_its_lease_does_no_harm() {
    frozen_relays(&[MYSQL]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_transactional_relay_frozen_past_its_lease_does_no_harm() {
    frozen_relays(&TRANSACTIONAL[1..]).await;
}

/// A consumer that is frozen, while another claims its partitions, can't write when it wakes.
#[tokio::test(flavor = "multi_thread")]
async fn outbox_consumer_frozen_and_replaced_has_every_effect_once() {
    frozen_consumers(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_on_mysql_consumer_frozen_and_replaced_has_every_effect_once() {
    frozen_consumers(&[MYSQL]).await;
}

async fn frozen_consumers(settings: &[&str]) {
    let _share = Share::of(1).await;
    let orders = format!("orders={ORDERS}");
    let mut all = vec![orders.as_str(), "seed=3", "batch=20", "pause_ms=8"];
    all.extend(settings);
    let bench = Bench::new("QUORATE_KAFKA", &all).await;
    let mut producer = bench.start("producer", None);
    let relay = bench.start("relay", None);
    let mut sleeper = bench.start("consumer", None);
    for (generation, round) in (0i64..).zip(1..=4usize) {
        applied(&bench, 100 * round).await;
        sleeper.signal(Signal::STOP);
        let next = bench.start("consumer", None);
        eventually("the other claims the partitions", SOON, || async {
            let text = "SELECT max(generation) FROM quorate_inbox_position";
            let now: Vec<(i64,)> = bench.read(text).await?;
            let now = now.first().map_or(0, |(now,)| *now);
            if now > generation {
                Ok(())
            } else {
                Err(format!("still {now}"))
            }
        })
        .await;
        sleeper.signal(Signal::CONT);
        applied(&bench, 100 * round + 50).await;
        sleeper = next;
    }
    bench.settle("a frozen consumer", ORDERS).await;
    assert!(producer.ended().await.success());
    drop((relay, sleeper));
    bench.end().await;
}

/// Two consumers of one group, on a broker that notices a death: one is killed, and the other takes over.
#[tokio::test(flavor = "multi_thread")]
async fn outbox_consumer_of_a_group_killed_hands_its_partitions_over() {
    let _share = Share::of(1).await;
    let orders = format!("orders={ORDERS}");
    let group = "group=one";
    let all = [orders.as_str(), "seed=2", "batch=20", "pause_ms=20", group];
    let bench = Bench::new("QUORATE_KAFKA_GROUPS", &all).await;
    let mut producer = bench.start("producer", None);
    let relay = bench.start("relay", None);
    let first = bench.start("consumer", None);
    applied(&bench, 20).await;
    let second: Process = bench.start("consumer", None);
    applied(&bench, 60).await;
    drop(first);
    bench.settle("consumers of a group", ORDERS).await;
    assert!(producer.ended().await.success());
    drop((relay, second));
    bench.end().await;
}

/// A service that ends without draining its consumer ends well.
#[tokio::test(flavor = "multi_thread")]
async fn outbox_consumer_whose_runtime_ends_does_not_abort_the_process() {
    let _share = Share::of(1).await;
    let bench = Bench::new("QUORATE_KAFKA_GROUPS", &["orders=1", "seed=4", "batch=1"]).await;
    let mut producer = bench.start("producer", None);
    let relay = bench.start("relay", None);
    assert!(producer.ended().await.success());
    let ended = bench.start("abandon", None).ended().await;
    assert!(ended.success(), "{ended}");
    drop(relay);
    bench.end().await;
}

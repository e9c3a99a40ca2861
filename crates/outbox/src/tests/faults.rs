//! Broker errors on demand, by librdkafka's mock cluster: refused, unknown, late, gone.
//!
//! The mock stores no offsets of transactions and fences nobody, so the transactional mode is not tested here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Code};

use super::consumers::{Base, Effects, on_lite};
use super::relays::{keyed, quick};
use super::support::{AnyOutbox, FromStart, eventually, kafka};
use crate::broker::kafka::{KafkaBroker, KafkaOptions};
use crate::broker::{Broker, Subscription};
use crate::store::{Store, Which, Wish};
use crate::{Consumer, ConsumerOptions, Delivery, Message, Relay};

type Mock = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Mock {
    let mock = MockCluster::new(1).expect("a mock cluster");
    mock.create_topic("t", 4, 1).expect("a topic");
    mock
}

fn options(mock: &Mock) -> KafkaOptions {
    let mut options = KafkaOptions::new(mock.bootstrap_servers());
    options.timeout = Duration::from_secs(2);
    for (name, value) in [
        ("retry.backoff.ms", "20"),
        ("retry.backoff.max.ms", "100"),
        ("reconnect.backoff.ms", "20"),
        ("reconnect.backoff.max.ms", "100"),
    ] {
        options.producer.push((name.into(), value.into()));
    }
    options
}

fn broker(options: KafkaOptions) -> Arc<KafkaBroker> {
    Arc::new(KafkaBroker::new(options).expect("a broker"))
}

fn relay(outbox: &AnyOutbox, broker: &Arc<KafkaBroker>) -> Relay {
    let broker: Arc<dyn Broker> = broker.clone();
    Relay::start(outbox.store(), broker, quick()).expect("starts")
}

async fn until_nothing_waits(store: &Arc<dyn Store>, relay: &Relay) {
    eventually("nothing waits", || async {
        let lag = store.lag().await.map_err(|e| e.to_string())?;
        if lag.waiting == 0 {
            Ok(())
        } else {
            Err(format!("{lag:?} {:?}", relay.status()))
        }
    })
    .await;
}

/// Reads the topics from their beginnings until each key of `wanted` has had that number.
async fn read(broker: &KafkaBroker, topics: &[&str], wanted: &[(&str, i64)]) -> Vec<Delivery> {
    let topics: Vec<String> = topics.iter().map(|t| (*t).to_owned()).collect();
    let group = format!("check-{}", uuid::Uuid::now_v7());
    let reader = broker.subscribe(&group, &topics, Arc::new(FromStart)).await;
    let mut reader: Box<dyn Subscription> = reader.expect("subscribes");
    let mut found: Vec<Delivery> = Vec::new();
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let next = reader.next(1000, Duration::from_millis(100)).await;
        found.extend(next.unwrap_or_default());
        let last = |key: &str| {
            let of_key = found.iter().filter(|d| d.key.as_deref() == Some(key));
            of_key.filter_map(Delivery::seq).max().unwrap_or(0)
        };
        if wanted.iter().all(|(key, seq)| last(key) >= *seq) {
            reader.leave().await;
            return found;
        }
        assert!(
            std::time::Instant::now() < end,
            "{} messages came",
            found.len()
        );
    }
}

/// Each key's numbers, first occurrences only: whole and in order. Answers how many were repetitions.
fn check_order(found: &[Delivery]) -> usize {
    let mut last: BTreeMap<(String, String), i64> = BTreeMap::new();
    let mut repeated = 0;
    for delivery in found {
        let key = delivery.key.clone().unwrap_or_default();
        let last = last
            .entry((delivery.partition.topic.clone(), key))
            .or_default();
        let seq = delivery.seq().expect("a number");
        assert!(seq <= *last + 1, "{seq} came after {last}");
        repeated += usize::from(seq <= *last);
        *last = (*last).max(seq);
    }
    repeated
}

async fn enqueue(outbox: &AnyOutbox, rounds: i64) {
    for i in 0..rounds {
        outbox
            .enqueue(&[keyed("a", i), keyed("b", i), keyed("c", i)], true)
            .await;
    }
}

/// What a server says that may pass is tried again inside librdkafka: nothing is lost or doubled.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_errors_that_pass_lose_and_double_nothing() {
    let mock = cluster();
    let broker = broker(options(&mock));
    let outbox = AnyOutbox::lite(2).await;
    let codes = [
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Code::RD_KAFKA_RESP_ERR__TRANSPORT,
        Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
    ];
    mock.request_errors(Api::Produce, &codes);
    mock.request_errors(Api::Metadata, &codes[1..4]);
    let relay = relay(&outbox, &broker);
    for round in 0..5 {
        mock.request_errors(Api::Produce, &codes[round..]);
        enqueue(&outbox, 10).await;
    }
    until_nothing_waits(&outbox.store(), &relay).await;
    let found = read(&broker, &["t"], &[("a", 50), ("b", 50), ("c", 50)]).await;
    assert_eq!(check_order(&found), 0, "no repetition");
    assert_nothing_parked(&outbox).await;
    relay.drain().await;
}

async fn assert_nothing_parked(outbox: &AnyOutbox) {
    let parked = outbox.store().parked(None, 10).await.expect("lists");
    assert!(parked.is_empty(), "{parked:?}");
}

/// A server that refuses a whole request as too large: nobody's innocent message is parked.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_request_refused_as_too_large_parks_nothing_innocent() {
    let mock = cluster();
    let broker = broker(options(&mock));
    let outbox = AnyOutbox::lite(1).await;
    enqueue(&outbox, 40).await;
    mock.request_errors(
        Api::Produce,
        &[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 3],
    );
    let relay = relay(&outbox, &broker);
    until_nothing_waits(&outbox.store(), &relay).await;
    let found = read(&broker, &["t"], &[("a", 40), ("b", 40), ("c", 40)]).await;
    check_order(&found);
    assert_nothing_parked(&outbox).await;
    relay.drain().await;
}

/// A topic that is not there parks its keys; others go on, and it is sent when the topic is there.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_unknown_topic_parks_its_keys_only() {
    let mock = cluster();
    let mut options = options(&mock);
    let quick = "topic.metadata.propagation.max.ms";
    options.producer.push((quick.into(), "200".into()));
    let broker = broker(options);
    mock.create_topic("later", 1, 1).expect("a topic");
    let unknown = Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    mock.topic_error("later", unknown).expect("an error");
    let outbox = AnyOutbox::lite(1).await;
    let relay = relay(&outbox, &broker);
    for i in 0..5 {
        let later = Message::keyed("later", "x", i.to_string());
        outbox.enqueue(&[later, keyed("a", i)], true).await;
    }
    let found = read(&broker, &["t"], &[("a", 5)]).await;
    assert_eq!(check_order(&found), 0);
    let store = outbox.store();
    eventually("the five are parked", || async {
        let parked = store.parked(None, 10).await.map_err(|e| e.to_string())?;
        if parked.len() == 5 && parked.iter().all(|p| p.row.topic == "later") {
            Ok(())
        } else {
            Err(format!("{parked:?}"))
        }
    })
    .await;
    let none = Code::RD_KAFKA_RESP_ERR_NO_ERROR;
    mock.topic_error("later", none).expect("no error");
    let stream = Which::Stream {
        topic: "later".into(),
        key: "x".into(),
    };
    eventually("the five are sent", || async {
        store
            .wish(&stream, Wish::Retry)
            .await
            .map_err(|e| e.to_string())?;
        let parked = store.parked(None, 10).await.map_err(|e| e.to_string())?;
        if parked.is_empty() {
            Ok(())
        } else {
            Err(format!("{parked:?}"))
        }
    })
    .await;
    let found = read(&broker, &["later"], &[("x", 5)]).await;
    check_order(&found);
    relay.drain().await;
}

/// A broker that is gone for longer than a message may take: it is said, nothing is lost, order holds.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_broker_gone_and_back_loses_nothing_and_keeps_order() {
    let mock = cluster();
    let broker = broker(options(&mock));
    let outbox = AnyOutbox::lite(2).await;
    let relay = relay(&outbox, &broker);
    enqueue(&outbox, 5).await;
    until_nothing_waits(&outbox.store(), &relay).await;
    mock.broker_down(1).expect("goes down");
    enqueue(&outbox, 20).await;
    eventually("it is said", || async {
        let status = relay.status();
        if status.failure.is_some() && status.retries >= 2 {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    mock.broker_up(1).expect("comes back");
    until_nothing_waits(&outbox.store(), &relay).await;
    let found = read(&broker, &["t"], &[("a", 25), ("b", 25), ("c", 25)]).await;
    check_order(&found);
    relay.drain().await;
}

/// A broker that answers later than anybody waits: what it stored comes again, in order.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_late_answers_repeat_in_order_and_lose_nothing() {
    let mock = cluster();
    let mut options = options(&mock);
    options.timeout = Duration::from_millis(700);
    options
        .producer
        .push(("request.timeout.ms".into(), "300".into()));
    let broker = broker(options);
    let outbox = AnyOutbox::lite(1).await;
    let relay = relay(&outbox, &broker);
    enqueue(&outbox, 3).await;
    until_nothing_waits(&outbox.store(), &relay).await;
    let late = Duration::from_millis(1500);
    mock.broker_round_trip_time(1, late).expect("slows down");
    enqueue(&outbox, 10).await;
    eventually("answers come too late", || async {
        let status = relay.status();
        if status.retries >= 2 {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    mock.broker_round_trip_time(1, Duration::ZERO)
        .expect("is quick again");
    until_nothing_waits(&outbox.store(), &relay).await;
    let found = read(&broker, &["t"], &[("a", 13), ("b", 13), ("c", 13)]).await;
    check_order(&found);
    relay.drain().await;
}

async fn consume(
    base: &super::consumers::OnLite,
    broker: &Arc<KafkaBroker>,
    effects: &Arc<Effects>,
    topic: &str,
) -> Consumer<crate::inbox::SqliteInbox> {
    let options = ConsumerOptions {
        upkeep: Duration::from_millis(50),
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(100),
        group: Some(format!("group-{topic}")),
        ..ConsumerOptions::new("test", &[topic])
    };
    let started = Consumer::start(base.inbox(), broker.clone(), effects.clone(), options).await;
    started.expect("starts")
}

async fn until_applied(base: &super::consumers::OnLite, key: &str, count: i64) {
    let expected: Vec<String> = (0..count).map(|i| i.to_string()).collect();
    eventually("effects", || async {
        let texts = base.texts(key).await;
        if texts == expected {
            Ok(())
        } else {
            Err(format!("{texts:?}"))
        }
    })
    .await;
}

/// Errors of the group and of fetching, while messages flow: every effect is there once.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_group_errors_leave_every_effect_once() {
    let mock = cluster();
    let broker = broker(options(&mock));
    let outbox = AnyOutbox::lite(1).await;
    let relay = relay(&outbox, &broker);
    let base = on_lite().await;
    let effects = Arc::new(Effects::default());
    let consumer = consume(&base, &broker, &effects, "t").await;
    let mut sent = 0;
    for codes in [
        [Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS; 1],
        [Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID; 1],
        [Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR; 1],
        [Code::RD_KAFKA_RESP_ERR__TRANSPORT; 1],
    ] {
        for i in sent..sent + 10 {
            outbox.enqueue(&[keyed("a", i), keyed("b", i)], true).await;
        }
        sent += 10;
        mock.request_errors(Api::Heartbeat, &codes);
        mock.request_errors(Api::OffsetCommit, &codes);
        let fetch = Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
        mock.request_errors(Api::Fetch, &[fetch]);
        until_applied(&base, "a", sent).await;
        until_applied(&base, "b", sent).await;
    }
    assert!(consumer.status().halted.is_empty());
    relay.drain().await;
    consumer.drain().await;
}

/// A consumer that drains leaves its group. Not on the mock, whose groups wait for a session's length when a
/// member leaves; this broker never takes a silent member for dead, so that leaving is all that helps.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_drained_consumer_leaves_its_group() {
    let options = KafkaOptions::new(kafka());
    let broker = broker(options);
    let topic = format!("drained-{}", uuid::Uuid::now_v7());
    let outbox = AnyOutbox::lite(1).await;
    let relay = relay(&outbox, &broker);
    let base = on_lite().await;
    let effects = Arc::new(Effects::default());
    outbox
        .enqueue(&[Message::keyed(&topic, "a", "0")], true)
        .await;
    until_nothing_waits(&outbox.store(), &relay).await;
    let first = consume(&base, &broker, &effects, &topic).await;
    until_applied(&base, "a", 1).await;
    first.drain().await;
    let second = consume(&base, &broker, &effects, &topic).await;
    outbox
        .enqueue(&[Message::keyed(&topic, "a", "1")], true)
        .await;
    until_applied(&base, "a", 2).await;
    second.drain().await;
    relay.drain().await;
}

//! Both brokers pass the suite.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::consumers::{self, Base, Effects};
use super::support;
use crate::broker::conformance::{self, Suite};
use crate::broker::kafka::{KafkaBroker, KafkaMode, KafkaOptions};
use crate::broker::local::{LocalBroker, LocalOptions};
use crate::broker::{Broker, Outbatch, Outgoing, Refusal};
use crate::store::Fence;
use crate::{Consumer, ConsumerOptions};

fn local_suite() -> Suite {
    Suite {
        message_bytes: Some(1 << 20),
        fences: true,
        patience: Duration::from_secs(20),
        rebalance: true,
    }
}

fn kafka_suite() -> Suite {
    Suite {
        message_bytes: Some(2_000_000),
        fences: false,
        patience: Duration::from_secs(60),
        rebalance: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_in_memory_passes_the_suite() {
    let broker = LocalBroker::in_memory(LocalOptions::default());
    conformance::run(&broker, &local_suite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_durable_passes_the_suite() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("broker.db");
    let broker = LocalBroker::durable(&file, LocalOptions::default()).await;
    conformance::run(&broker.expect("opens"), &local_suite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_kafka_passes_the_suite() {
    let broker = KafkaBroker::new(KafkaOptions::new(support::kafka())).expect("a broker");
    conformance::run(&broker, &kafka_suite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_kafka_transactional_passes_the_suite() {
    let mut options = KafkaOptions::new(support::kafka());
    options.mode = KafkaMode::Transactional {
        prefix: "suite".into(),
        progress_topic: "quorate-outbox-progress".into(),
    };
    let broker = KafkaBroker::new(options).expect("a broker");
    let suite = Suite {
        fences: true,
        ..kafka_suite()
    };
    conformance::run(&broker, &suite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_kafka_with_groups_passes_the_suite() {
    let broker = KafkaBroker::new(KafkaOptions::new(support::kafka_groups())).expect("a broker");
    let suite = Suite {
        rebalance: true,
        message_bytes: None,
        ..kafka_suite()
    };
    conformance::run(&broker, &suite).await;
}

/// A consumer that subscribes before its topic is there finds it once it is.
async fn topic_made_later_is_found(servers: String) {
    let broker = KafkaBroker::new(KafkaOptions::new(servers)).expect("a broker");
    let topic = format!("late-{}", uuid::Uuid::now_v7().simple());
    let topics = [topic.clone()];
    let positions = std::sync::Arc::new(support::FromStart);
    let reader = broker.subscribe(&topic, &topics, positions).await;
    let mut reader = reader.expect("subscribes");
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let wait = Duration::from_millis(200);
    while reader.next(1, wait).await.is_ok() {
        assert!(std::time::Instant::now() < end, "no word of the topic");
    }
    let message = Outgoing {
        topic,
        ..message("k", "late")
    };
    let fence = Fence { part: 0, epoch: 1 };
    let batch = Outbatch {
        source: "s",
        fence,
        number: 1,
        messages: std::slice::from_ref(&message),
        alone: false,
    };
    assert_eq!(broker.publish(batch).await, [Ok(())]);
    let found = loop {
        let found = reader.next(1, wait).await.unwrap_or_default();
        if let Some(found) = found.into_iter().next() {
            break found;
        }
        assert!(std::time::Instant::now() < end, "it is never found");
    };
    assert_eq!(found.payload, "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topic_made_later_is_found() {
    topic_made_later_is_found(support::kafka()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topic_made_later_is_found_by_a_group() {
    topic_made_later_is_found(support::kafka_groups()).await;
}

/// Topics are there, with their partitions, once they were made; made again, they stay as they are.
async fn topics_are_made_once(servers: String) {
    let broker = KafkaBroker::new(KafkaOptions::new(servers.clone())).expect("a broker");
    let names = ["a", "b"].map(|name| format!("{name}-{}", uuid::Uuid::now_v7().simple()));
    let (a, b) = (names[0].as_str(), names[1].as_str());
    broker.make_topics(&[a], 3).await.expect("makes");
    broker
        .make_topics(&[a, b], 2)
        .await
        .expect("makes the other");
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .create()
        .expect("a client");
    for (name, wanted) in [(a, 3), (b, 2)] {
        support::eventually("the topic is there", || async {
            let found = client.fetch_metadata(Some(name), Duration::from_secs(10));
            let found = found.map_err(|e| e.to_string())?;
            let is = found.topics().first().map_or(0, |t| t.partitions().len());
            (is == wanted)
                .then_some(())
                .ok_or(format!("{name}: {is} partitions"))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_are_made_once() {
    topics_are_made_once(support::kafka()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topic_with_a_name_that_can_not_be_is_refused() {
    let broker = KafkaBroker::new(KafkaOptions::new(support::kafka())).expect("a broker");
    let refused = broker.make_topics(&["no topic"], 1).await;
    let refused = refused.expect_err("a name that can't be");
    assert!(refused.message().contains("no topic"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_are_made_once_where_there_are_groups() {
    topics_are_made_once(support::kafka_groups()).await;
}

/// The same with all that a service has: its consumer, and a relay's broker that is not the consumer's.
async fn topic_made_later_reaches_a_consumer(servers: String) {
    let base = consumers::on_lite().await;
    let topic = format!("later-{}", uuid::Uuid::now_v7().simple());
    let broker = || KafkaBroker::new(KafkaOptions::new(servers.clone())).expect("a broker");
    let options = ConsumerOptions::new("test", &[&topic]);
    let effects = std::sync::Arc::new(Effects::default());
    let consumer = Consumer::start(
        base.inbox(),
        std::sync::Arc::new(broker()),
        effects,
        options,
    );
    let consumer = consumer.await.expect("starts");
    support::eventually("the consumer has missed it", || async {
        let status = consumer.status();
        status.failure.map(drop).ok_or("no word of it".to_owned())
    })
    .await;
    let message = Outgoing {
        topic,
        ..message("k", "late")
    };
    let batch = Outbatch {
        source: "s",
        fence: Fence { part: 0, epoch: 1 },
        number: 1,
        messages: std::slice::from_ref(&message),
        alone: false,
    };
    assert_eq!(broker().publish(batch).await, [Ok(())]);
    consumers::until_texts(&base, "k", &["late"]).await;
    consumer.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topic_made_later_reaches_a_consumer() {
    topic_made_later_reaches_a_consumer(support::kafka()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topic_made_later_reaches_a_consumer_of_a_group() {
    topic_made_later_reaches_a_consumer(support::kafka_groups()).await;
}

fn message(key: &str, text: &str) -> Outgoing {
    Outgoing {
        topic: "t".into(),
        key: Some(key.into()),
        headers: Vec::new(),
        payload: text.as_bytes().to_vec().into(),
    }
}

async fn publish(broker: &LocalBroker, messages: &[Outgoing]) -> crate::broker::Outcomes {
    let fence = Fence { part: 0, epoch: 1 };
    let batch = Outbatch {
        source: "s",
        fence,
        number: 1,
        messages,
        alone: false,
    };
    broker.publish(batch).await
}

#[tokio::test]
async fn broker_full_partition_refuses_for_now_and_keeps_order() {
    let options = LocalOptions {
        capacity: 3,
        partitions: 1,
        ..LocalOptions::default()
    };
    let broker = LocalBroker::in_memory(options);
    let five: Vec<Outgoing> = (0..5).map(|i| message("k", &i.to_string())).collect();
    let outcomes = publish(&broker, &five).await;
    assert_eq!(outcomes[..3], [Ok(()), Ok(()), Ok(())]);
    for refused in &outcomes[3..] {
        assert!(matches!(refused, Err(Refusal::Retry(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn broker_unknown_topic_is_poison_when_topics_are_fixed() {
    let options = LocalOptions {
        topics: Some(vec!["other".into()]),
        ..LocalOptions::default()
    };
    let broker = LocalBroker::in_memory(options);
    let outcomes = publish(&broker, &[message("k", "x")]).await;
    assert!(
        matches!(outcomes[0], Err(Refusal::Poison(_))),
        "{outcomes:?}"
    );
}

#[tokio::test]
async fn broker_durable_reopened_has_messages_positions_and_fences() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("broker.db");
    let open = || LocalBroker::durable(&file, LocalOptions::default());
    let broker = open().await.expect("opens");
    let messages: Vec<Outgoing> = (0..10).map(|i| message("k", &i.to_string())).collect();
    assert!(publish(&broker, &messages).await.iter().all(Result::is_ok));
    let second = open().await;
    assert!(second.is_err(), "a second process may not use the file");
    drop(broker);
    let broker = support::eventually("the file is free", || async {
        open().await.map_err(|e| e.to_string())
    })
    .await;
    let positions = std::sync::Arc::new(support::FromStart);
    let subscribed = broker.subscribe("g", &["t".to_owned()], positions).await;
    let mut reader = subscribed.expect("subscribes");
    let found = reader
        .next(100, Duration::from_secs(5))
        .await
        .expect("reads");
    let texts: Vec<String> = found
        .iter()
        .map(|d| String::from_utf8_lossy(&d.payload).into_owned())
        .collect();
    assert_eq!(texts, (0..10).map(|i| i.to_string()).collect::<Vec<_>>());
    let fence = Fence { part: 0, epoch: 0 };
    let old = Outbatch {
        source: "s",
        fence,
        number: 2,
        messages: &messages[..1],
        alone: false,
    };
    let refused = broker.publish(old).await;
    assert!(matches!(refused[0], Err(Refusal::Fenced(_))), "{refused:?}");
}

/// The largest message that an outbox takes by default is not poison to Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn broker_kafka_takes_the_largest_message_that_an_outbox_takes() {
    let limits = crate::Limits::default();
    let broker = KafkaBroker::new(KafkaOptions::new(support::kafka())).expect("a broker");
    let value = "v".repeat(limits.headers_bytes - 1);
    let largest = crate::Message::keyed(
        format!("largest-{}", uuid::Uuid::now_v7()),
        "k".repeat(limits.key_bytes),
        vec![b'x'; limits.payload_bytes],
    )
    .header("h", value);
    limits.check(&largest).expect("is within the limits");
    let mut headers = largest.headers.clone();
    for name in [crate::HEADER_ID, crate::HEADER_SEQ, crate::HEADER_SOURCE] {
        headers.push((name.into(), uuid::Uuid::now_v7().to_string()));
    }
    let message = Outgoing {
        topic: largest.topic,
        key: largest.key,
        headers,
        payload: largest.payload,
    };
    let fence = Fence { part: 0, epoch: 1 };
    let batch = Outbatch {
        source: "s",
        fence,
        number: 1,
        messages: &[message],
        alone: false,
    };
    assert_eq!(broker.publish(batch).await, [Ok(())]);
}

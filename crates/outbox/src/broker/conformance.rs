//! The suite that every broker passes. It panics where a broker breaks the contract, so it is run from
//! tests. Topics and groups get names of their own, so that it may run beside other work.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use super::{Broker, Outbatch, Outcomes, Outgoing, Positions, Refusal, Start, Subscription};
use crate::store::{BoxFuture, Fence};
use crate::{Delivery, Partition};

/// What the broker under test has beyond the least.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The largest message it takes; `None`: not tried.
    pub message_bytes: Option<usize>,
    /// Whether it refuses batches of older epochs.
    pub fences: bool,
    /// How long anything may take.
    pub patience: Duration,
    /// How long a member may take to join or leave.
    pub rebalance: bool,
}

/// Runs everything.
///
/// # Panics
/// Where the broker breaks the contract.
pub async fn run(broker: &dyn Broker, suite: &Suite) {
    messages_arrive_whole_and_in_order(broker, suite).await;
    positions_decide_where_a_member_begins(broker, suite).await;
    one_message_too_large_is_poison_alone(broker, suite).await;
    if suite.rebalance {
        members_share_and_take_over(broker, suite).await;
    }
    if suite.fences {
        an_older_epoch_is_refused(broker).await;
    }
    if broker.is_transactional() {
        the_last_batch_is_known(broker, suite).await;
    }
}

/// Begins partitions where a map says, else at the beginning; notes what comes and goes.
#[derive(Default)]
struct Fixed {
    starts: HashMap<Partition, i64>,
    held: Mutex<Vec<Partition>>,
}

impl Positions for Fixed {
    fn assigned(&self, partitions: Vec<Partition>, _: u64) -> BoxFuture<'_, Vec<Start>> {
        self.held.lock().extend(partitions.iter().cloned());
        let start = |p: &Partition| Start::At(self.starts.get(p).copied().unwrap_or(0));
        let starts = partitions.iter().map(start).collect();
        Box::pin(async move { starts })
    }

    fn revoked(&self, partitions: Vec<Partition>) -> BoxFuture<'_, ()> {
        self.held.lock().retain(|p| !partitions.contains(p));
        Box::pin(async {})
    }
}

fn name(what: &str) -> String {
    format!("suite-{what}-{}", Uuid::now_v7().simple())
}

fn message(topic: &str, key: &str, text: &str) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        key: Some(key.to_owned()),
        headers: vec![("kind".into(), "test".into()), ("text".into(), text.into())],
        payload: text.as_bytes().to_vec().into(),
    }
}

/// One outbox of the suite's: its part 0, with batches numbered.
struct Sender<'a> {
    broker: &'a dyn Broker,
    source: String,
    epoch: i64,
    number: i64,
}

impl<'a> Sender<'a> {
    async fn new(broker: &'a dyn Broker, source: &str, epoch: i64) -> Sender<'a> {
        let fence = Fence { part: 0, epoch };
        let last = broker.last_batch(source, fence).await;
        let last = last.expect("the last batch can be asked for");
        Sender {
            broker,
            source: source.to_owned(),
            epoch,
            number: last.unwrap_or(0),
        }
    }

    async fn send(&mut self, messages: &[Outgoing]) -> Outcomes {
        self.number += 1;
        let batch = Outbatch {
            source: &self.source,
            fence: Fence {
                part: 0,
                epoch: self.epoch,
            },
            number: self.number,
            messages,
            alone: false,
        };
        self.broker.publish(batch).await
    }
}

/// Reads until there are so many messages.
async fn read(from: &mut dyn Subscription, count: usize, suite: &Suite) -> Vec<Delivery> {
    let end = Instant::now() + suite.patience;
    let mut found = Vec::new();
    while found.len() < count {
        let next = from.next(100, Duration::from_millis(100)).await;
        match next {
            Ok(next) => found.extend(next),
            Err(error) => assert!(Instant::now() < end, "reading fails: {error}"),
        }
        assert!(
            Instant::now() < end,
            "only {} of {count} messages came",
            found.len()
        );
    }
    found
}

async fn messages_arrive_whole_and_in_order(broker: &dyn Broker, suite: &Suite) {
    let topic = name("order");
    let mut sender = Sender::new(broker, &name("source"), 1).await;
    for round in 0..4 {
        let messages: Vec<Outgoing> = (0..50)
            .map(|i| {
                message(
                    &topic,
                    &format!("k{}", i % 7),
                    &format!("{}", round * 50 + i),
                )
            })
            .collect();
        let outcomes = sender.send(&messages).await;
        assert_eq!(outcomes, vec![Ok(()); 50], "every message is published");
    }
    let group = name("group");
    let topics = [topic.clone()];
    let subscribed = broker.subscribe(&group, &topics, Arc::new(Fixed::default()));
    let mut reader = subscribed.await.expect("subscribes");
    let found = read(reader.as_mut(), 200, suite).await;
    assert_eq!(found.len(), 200, "every message once");
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let mut offsets: HashMap<Partition, i64> = HashMap::new();
    for delivery in &found {
        let text = String::from_utf8_lossy(&delivery.payload).into_owned();
        assert_eq!(delivery.header("kind"), Some("test"), "headers arrive");
        assert_eq!(delivery.header("text"), Some(text.as_str()));
        assert_eq!(delivery.partition.topic, topic);
        let number: i64 = text.parse().expect("a number");
        let key = delivery.key.clone().expect("the key arrives");
        assert_eq!(key, format!("k{}", (number % 50) % 7));
        let before = last.insert(key, number);
        assert!(
            before < Some(number),
            "order of a key: {before:?} before {number}"
        );
        let before = offsets.insert(delivery.partition.clone(), delivery.offset);
        assert!(before.is_none_or(|b| b < delivery.offset), "offsets grow");
    }
}

async fn positions_decide_where_a_member_begins(broker: &dyn Broker, suite: &Suite) {
    let topic = name("start");
    let mut sender = Sender::new(broker, &name("source"), 1).await;
    let messages: Vec<Outgoing> = (0..20)
        .map(|i| message(&topic, "one", &i.to_string()))
        .collect();
    assert!(sender.send(&messages).await.iter().all(Result::is_ok));
    let group = name("group");
    let topics = [topic.clone()];
    let all = broker.subscribe(&group, &topics, Arc::new(Fixed::default()));
    let mut all = all.await.expect("subscribes");
    let found = read(all.as_mut(), 20, suite).await;
    drop(all);
    let middle = &found[12];
    let fixed = Fixed {
        starts: HashMap::from([(middle.partition.clone(), middle.offset)]),
        held: Mutex::default(),
    };
    let group = name("group");
    let rest = broker.subscribe(&group, &topics, Arc::new(fixed));
    let mut rest = rest.await.expect("subscribes");
    let found = read(rest.as_mut(), 8, suite).await;
    assert_eq!(found.len(), 8, "nothing before the position");
    assert_eq!(
        found[0].payload, "12",
        "the position's message is the first"
    );
}

async fn one_message_too_large_is_poison_alone(broker: &dyn Broker, suite: &Suite) {
    let Some(limit) = suite.message_bytes else {
        return;
    };
    let topic = name("large");
    let mut sender = Sender::new(broker, &name("source"), 1).await;
    let good = message(&topic, "a", "good");
    assert_eq!(sender.send(std::slice::from_ref(&good)).await, [Ok(())]);
    let mut large = message(&topic, "b", "large");
    large.payload = vec![b'x'; limit + 1].into();
    let behind = message(&topic, "b", "behind");
    let outcomes = sender
        .send(&[good.clone(), large, good.clone(), behind])
        .await;
    assert!(
        matches!(outcomes[1], Err(Refusal::Poison(_))),
        "too large is poison: {:?}",
        outcomes[1]
    );
    assert!(
        matches!(outcomes[3], Err(Refusal::Retry(_))),
        "what is behind it does not overtake it: {:?}",
        outcomes[3]
    );
    for other in [&outcomes[0], &outcomes[2]] {
        let aborted = broker.is_transactional() && matches!(other, Err(Refusal::Retry(_)));
        assert!(*other == Ok(()) || aborted, "others are not: {other:?}");
    }
}

async fn members_share_and_take_over(broker: &dyn Broker, suite: &Suite) {
    let topic = name("share");
    let mut sender = Sender::new(broker, &name("source"), 1).await;
    let first = [message(&topic, "0", "first")];
    assert!(sender.send(&first).await.iter().all(Result::is_ok));
    let (group, topics) = (name("group"), [topic.clone()]);
    let (left, right) = (Arc::new(Fixed::default()), Arc::new(Fixed::default()));
    let one = broker.subscribe(&group, &topics, left.clone());
    let mut one = one.await.expect("subscribes");
    let two = broker.subscribe(&group, &topics, right.clone());
    let mut two = two.await.expect("subscribes");
    let end = Instant::now() + suite.patience;
    loop {
        // Both have to be asked: members take part in a rebalance when they fetch.
        let short = Duration::from_millis(50);
        let _ = (one.next(100, short).await, two.next(100, short).await);
        let (a, b) = (left.held.lock().clone(), right.held.lock().clone());
        assert!(
            !a.iter().any(|p| b.contains(p)),
            "no partition twice: {a:?} {b:?}"
        );
        if !a.is_empty() && !b.is_empty() {
            break;
        }
        assert!(
            Instant::now() < end,
            "partitions are not shared: {a:?} {b:?}"
        );
    }
    let before = left.held.lock().len() + right.held.lock().len();
    drop(one);
    while right.held.lock().len() < before {
        let _ = two.next(100, Duration::from_millis(50)).await;
        assert!(
            Instant::now() < end,
            "the partitions of a member that left are not taken over"
        );
    }
}

async fn an_older_epoch_is_refused(broker: &dyn Broker) {
    let (topic, source) = (name("fence"), name("source"));
    let mut old = Sender::new(broker, &source, 1).await;
    let one = [message(&topic, "k", "one")];
    assert_eq!(old.send(&one).await, [Ok(())]);
    let mut new = Sender::new(broker, &source, 2).await;
    assert_eq!(new.send(&one).await, [Ok(())]);
    let refused = old.send(&one).await;
    let is_refused = match &refused[0] {
        Err(Refusal::Fenced(_)) => true,
        // A transactional producer of this very process is replaced, not only shut out.
        Err(Refusal::Retry(_)) => broker.is_transactional(),
        _ => false,
    };
    assert!(is_refused, "an older epoch is shut out: {refused:?}");
}

async fn the_last_batch_is_known(broker: &dyn Broker, suite: &Suite) {
    let (topic, source) = (name("last"), name("source"));
    let mut sender = Sender::new(broker, &source, 1).await;
    assert_eq!(sender.number, 0, "a new part has no batch");
    for i in 0..3 {
        let one = [message(&topic, "k", &i.to_string())];
        assert_eq!(sender.send(&one).await, [Ok(())]);
    }
    let next = Sender::new(broker, &source, 2).await;
    assert_eq!(next.number, 3, "the last batch that was committed");
    let group = name("group");
    let topics = [topic];
    let reader = broker.subscribe(&group, &topics, Arc::new(Fixed::default()));
    let mut reader = reader.await.expect("subscribes");
    assert_eq!(read(reader.as_mut(), 3, suite).await.len(), 3);
}

//! The checker: orders against effects.

use std::collections::{HashMap, HashSet};

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_outbox::broker::kafka::{KafkaBroker, KafkaOptions};
use quorate_outbox::broker::{Broker, Positions, Start};
use quorate_outbox::store::BoxFuture;
use quorate_outbox::{HEADER_ID, Partition};

use crate::support::eventually;

use super::process::{Bench, Process, SOON, variable};

/// Begins every partition at its beginning.
pub struct FromStart;

impl Positions for FromStart {
    fn assigned(&self, partitions: Vec<Partition>, _: u64) -> BoxFuture<'_, Vec<Start>> {
        let starts = vec![Start::At(0); partitions.len()];
        Box::pin(async move { starts })
    }

    fn revoked(&self, _: Vec<Partition>) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// An effect, in the order in which effects happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    pub key: Option<String>,
    pub seq: Option<i64>,
    pub text: String,
}

/// What is wrong and can never become right; then what is still missing.
pub fn judge(orders: &[i64], effects: &[Effect]) -> (Vec<String>, usize) {
    let mut wrong = Vec::new();
    let wanted: HashSet<String> = orders
        .iter()
        .flat_map(|id| [id.to_string(), format!("free {id}")])
        .collect();
    let mut seen: HashSet<&str> = HashSet::new();
    let mut last: HashMap<&str, i64> = HashMap::new();
    for effect in effects {
        if !wanted.contains(&effect.text) {
            wrong.push(format!("`{}` was never committed", effect.text));
        }
        if !seen.insert(&effect.text) {
            wrong.push(format!("`{}` has two effects", effect.text));
        }
        if let (Some(key), Some(seq)) = (&effect.key, effect.seq) {
            let before = last.insert(key, seq).unwrap_or(0);
            if seq != before + 1 {
                wrong.push(format!("key {key}: number {seq} after {before}"));
            }
        }
    }
    let missing = wanted.iter().filter(|text| !seen.contains(text.as_str()));
    (wrong, missing.count())
}

pub const ORDERS: &str = "SELECT id FROM orders";
pub const EFFECTS: &str = "SELECT k, seq, text FROM effects ORDER BY id";

impl Bench {
    /// Reads orders and effects.
    pub async fn look(&self) -> Result<(Vec<i64>, Vec<Effect>), String> {
        // Effects first: an order that comes between has no effect yet, which is no fault.
        let rows: Vec<(Option<String>, Option<i64>, String)> = self.read(EFFECTS).await?;
        let orders: Vec<(i64,)> = self.read(ORDERS).await?;
        let orders = orders.into_iter().map(|(id,)| id).collect();
        let effect = |(key, seq, text)| Effect { key, seq, text };
        Ok((orders, rows.into_iter().map(effect).collect()))
    }

    /// Reads what is committed in the topic, from the beginning: every message once.
    ///
    /// # Panics
    /// When one is there twice, or some do not come.
    pub async fn assert_topic_has_each_once(&self, what: &str, at_least: usize) {
        let broker = KafkaBroker::new(KafkaOptions::new(variable("QUORATE_KAFKA")));
        let broker = broker.expect("a broker");
        let group = format!("{}-check", self.topic());
        let topics = [self.topic().to_owned()];
        let reader = broker.subscribe(&group, &topics, Arc::new(FromStart)).await;
        let mut reader = reader.expect("subscribes");
        let end = Instant::now() + SOON;
        let mut ids: HashSet<String> = HashSet::new();
        loop {
            let found = reader
                .next(1000, Duration::from_millis(300))
                .await
                .unwrap_or_default();
            if found.is_empty() && ids.len() >= at_least {
                return;
            }
            for delivery in found {
                let id = delivery.header(HEADER_ID).expect("an id").to_owned();
                assert!(
                    ids.insert(id),
                    "{what}: a committed message is there twice: {delivery:?}"
                );
            }
            assert!(
                Instant::now() < end,
                "{what}: {} of {at_least} came",
                ids.len()
            );
        }
    }

    /// Waits until the producer has ended, and all that it wrote is published.
    pub async fn published(&self, what: &str, producer: &mut Process) {
        let ended = producer.ended().await;
        assert!(ended.success(), "{what}: the producer ended with {ended}");
        eventually(what, SOON, || async {
            let lag = self.store().lag().await.map_err(|e| e.to_string())?;
            if lag.waiting == 0 && lag.parked == 0 {
                return Ok(());
            }
            Err(format!("not published: {lag:?}"))
        })
        .await;
    }

    /// Waits until every one of so many orders has its effects.
    ///
    /// # Panics
    /// On anything that is wrong, and when it takes too long.
    pub async fn settle(&self, what: &str, wanted: usize) {
        eventually(what, SOON, || async {
            let (orders, effects) = self.look().await?;
            let (wrong, missing) = judge(&orders, &effects);
            assert!(wrong.is_empty(), "{what}: {wrong:?}");
            if orders.len() >= wanted && missing == 0 {
                return Ok(());
            }
            Err(format!(
                "{} orders, {missing} effects are missing",
                orders.len()
            ))
        })
        .await;
    }
}

#[test]
fn outbox_check_notices_what_is_lost_doubled_invented_and_turned_round() {
    let effect = |seq: i64, text: &str| Effect {
        key: Some("k".into()),
        seq: Some(seq),
        text: text.into(),
    };
    let free = |text: &str| Effect {
        key: None,
        seq: None,
        text: text.into(),
    };
    let good = [
        effect(1, "1"),
        free("free 1"),
        effect(2, "2"),
        free("free 2"),
    ];
    assert_eq!(judge(&[1, 2], &good), (vec![], 0));
    assert_eq!(judge(&[1, 2], &good[..3]).1, 1, "lost");
    assert_eq!(judge(&[1], &good).0.len(), 2, "invented");
    let mut doubled = good.to_vec();
    doubled.push(free("free 1"));
    assert_eq!(judge(&[1, 2], &doubled).0.len(), 1, "doubled");
    let turned = [effect(2, "2"), effect(1, "1")];
    assert_eq!(judge(&[1, 2], &turned).0.len(), 2, "turned round");
}

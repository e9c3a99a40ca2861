//! The checker: orders against effects.

use std::collections::{HashMap, HashSet};

use crate::support::eventually;

use super::process::{Bench, SOON};

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
        let text = |e: sqlx::Error| e.to_string();
        // Effects first: an order that comes between has no effect yet, which is no fault.
        let rows: Vec<(Option<String>, Option<i64>, String)> =
            sqlx::query_as(EFFECTS).fetch_all(&self.pool).await.map_err(text)?;
        let orders = sqlx::query_scalar(ORDERS).fetch_all(&self.pool).await.map_err(text)?;
        let effect = |(key, seq, text)| Effect { key, seq, text };
        Ok((orders, rows.into_iter().map(effect).collect()))
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
            Err(format!("{} orders, {missing} effects are missing", orders.len()))
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
    let good = [effect(1, "1"), free("free 1"), effect(2, "2"), free("free 2")];
    assert_eq!(judge(&[1, 2], &good), (vec![], 0));
    assert_eq!(judge(&[1, 2], &good[..3]).1, 1, "lost");
    assert_eq!(judge(&[1], &good).0.len(), 2, "invented");
    let mut doubled = good.to_vec();
    doubled.push(free("free 1"));
    assert_eq!(judge(&[1, 2], &doubled).0.len(), 1, "doubled");
    let turned = [effect(2, "2"), effect(1, "1")];
    assert_eq!(judge(&[1, 2], &turned).0.len(), 2, "turned round");
}

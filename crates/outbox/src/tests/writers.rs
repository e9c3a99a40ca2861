//! Eight writers whose transactions last 0 to 12 ms, a twentieth of them rolled back, while a relay reads.
//!
//! Our relay loses nothing and turns no key's order round. The same harness with the two ways that are
//! common shows that it would notice: a cursor that only moves forward loses rows, SKIP LOCKED turns
//! orders round.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::support::{AnyOutbox, Keeps, eventually};
use crate::{Message, Relay, RelayOptions};

const WRITERS: u64 = 8;
const ROUNDS: u64 = 250;
const KEYS: u64 = 20;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// Writes; answers key and number of all that was committed.
async fn write(outbox: &AnyOutbox, seed: u64, ordered: bool) -> Vec<(String, i64)> {
    let mut random = Random(seed);
    let mut committed = Vec::new();
    for round in 0..ROUNDS {
        let key = format!("k{}", random.below(KEYS));
        let mut message = Message::keyed("t", &key, format!("{seed}-{round}"));
        message.ordered = ordered;
        let mut tx = outbox.begin().await;
        let early = random.below(2) == 0;
        let pause = Duration::from_micros(random.below(12_000));
        if !early {
            tokio::time::sleep(pause).await;
        }
        let gave = tx.enqueue(&message).await.expect("enqueues");
        if early {
            tokio::time::sleep(pause).await;
        }
        if random.below(20) == 0 {
            tx.rollback().await;
        } else {
            tx.commit().await;
            committed.push((key, gave.seq.unwrap_or(gave.id)));
        }
    }
    committed
}

async fn write_all(outbox: &AnyOutbox, ordered: bool) -> Vec<(String, i64)> {
    let writers = (0..WRITERS).map(|seed| write(outbox, seed, ordered));
    let all = futures_util::future::join_all(writers).await;
    all.into_iter().flatten().collect()
}

/// How many of what was committed did not come, and how often a key's later number came before an
/// earlier one.
fn judge(committed: &[(String, i64)], got: &[(String, i64)]) -> (usize, usize) {
    let came: HashSet<_> = got.iter().collect();
    let lost = committed.iter().filter(|one| !came.contains(one)).count();
    let mut last: HashMap<&str, i64> = HashMap::new();
    let mut inversions = 0;
    for (key, number) in got {
        let before = last.entry(key).or_default();
        inversions += usize::from(*number < *before);
        *before = (*before).max(*number);
    }
    (lost, inversions)
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_relay_loses_nothing_and_keeps_order() {
    for ordered in [true, false] {
        nothing_is_lost_and_order_is_kept(AnyOutbox::pg(4).await, ordered).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_mysql_relay_loses_nothing_and_keeps_order() {
    for ordered in [true, false] {
        nothing_is_lost_and_order_is_kept(AnyOutbox::my(4).await, ordered).await;
    }
}

async fn nothing_is_lost_and_order_is_kept(outbox: AnyOutbox, ordered: bool) {
    {
        let broker = Arc::new(Keeps::default());
        let options = RelayOptions {
            lease: Duration::from_secs(2),
            ..RelayOptions::default()
        };
        let relay = Relay::start(outbox.store(), broker.clone(), options).expect("starts");
        let committed = write_all(&outbox, ordered).await;
        eventually("everything came", || async {
            let got = broker.got.lock().len();
            let all = committed.len();
            if got >= all {
                Ok(())
            } else {
                Err(format!("{got} of {all}"))
            }
        })
        .await;
        relay.drain().await;
        let texts: HashSet<String> = broker.texts().into_iter().collect();
        assert_eq!(
            texts.len(),
            committed.len(),
            "all that was committed and nothing else"
        );
        assert_eq!(broker.got.lock().len(), committed.len(), "and each once");
        if ordered {
            let seq = |m: &crate::broker::Outgoing| {
                let found = m.headers.iter().find(|(n, _)| n == crate::HEADER_SEQ);
                let number = found.expect("a number").1.parse().expect("a number");
                (m.key.clone().expect("a key"), number)
            };
            let got: Vec<_> = broker.got.lock().iter().map(seq).collect();
            assert_eq!(judge(&committed, &got), (0, 0), "lost, inversions");
            for key in (0..KEYS).map(|k| format!("k{k}")) {
                let numbers: Vec<i64> = got.iter().filter(|g| g.0 == key).map(|g| g.1).collect();
                assert_eq!(
                    numbers,
                    (1..=numbers.len() as i64).collect::<Vec<_>>(),
                    "no gap"
                );
            }
        }
        outbox.end().await;
    }
}

/// The relay that remembers the largest id it has seen.
#[tokio::test(flavor = "multi_thread")]
async fn writers_check_notices_that_a_cursor_by_id_loses_rows() {
    let outbox = AnyOutbox::pg(1).await;
    let AnyOutbox::Pg(pg, _) = &outbox else {
        unreachable!()
    };
    let ended = Arc::new(AtomicBool::new(false));
    let (pool, stop) = (pg.pool.clone(), Arc::clone(&ended));
    let relay = tokio::spawn(async move {
        let (mut cursor, mut got) = (0i64, Vec::new());
        loop {
            let last = stop.load(Ordering::SeqCst);
            let text =
                "SELECT id, key, seq FROM quorate_outbox WHERE id > $1 ORDER BY id LIMIT 1000";
            let rows: Vec<(i64, String, i64)> = sqlx::query_as(text)
                .bind(cursor)
                .fetch_all(&pool)
                .await
                .expect("reads");
            if let Some(row) = rows.last() {
                cursor = row.0;
            } else if last {
                return got;
            }
            got.extend(rows.into_iter().map(|(_, key, seq)| (key, seq)));
        }
    });
    let committed = write_all(&outbox, true).await;
    ended.store(true, Ordering::SeqCst);
    let got = relay.await.expect("ends");
    let (lost, _) = judge(&committed, &got);
    println!("cursor by id: {lost} of {} lost", committed.len());
    assert!(
        lost * 100 > committed.len(),
        "more than 1 % is lost: {lost} of {}",
        committed.len()
    );
    outbox.end().await;
}

/// Four relays that take batches by SKIP LOCKED and delete them.
#[tokio::test(flavor = "multi_thread")]
async fn writers_check_notices_that_skip_locked_turns_orders_round() {
    let outbox = AnyOutbox::pg(1).await;
    let AnyOutbox::Pg(pg, _) = &outbox else {
        unreachable!()
    };
    let committed = write_all(&outbox, true).await;
    let got = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let relays = (0..4).map(|_| {
        let (pool, got) = (pg.pool.clone(), Arc::clone(&got));
        async move {
            loop {
                let mut tx = pool.begin().await.expect("begins");
                let text = "SELECT id, key, seq FROM quorate_outbox ORDER BY id LIMIT 10
                            FOR UPDATE SKIP LOCKED";
                let rows: Vec<(i64, String, i64)> = sqlx::query_as(text)
                    .fetch_all(&mut *tx)
                    .await
                    .expect("reads");
                if rows.is_empty() {
                    return;
                }
                // A broker answers after a while, and not always after the same.
                let wait = Duration::from_micros(rows[0].0.unsigned_abs() % 7 * 500);
                tokio::time::sleep(wait).await;
                let ids: Vec<String> = rows.iter().map(|row| row.0.to_string()).collect();
                got.lock()
                    .extend(rows.into_iter().map(|(_, key, seq)| (key, seq)));
                let text = format!("DELETE FROM quorate_outbox WHERE id IN ({})", ids.join(","));
                sqlx::query(AssertSqlSafe(text))
                    .execute(&mut *tx)
                    .await
                    .expect("deletes");
                tx.commit().await.expect("commits");
            }
        }
    });
    futures_util::future::join_all(relays).await;
    let (lost, inversions) = judge(&committed, &got.lock());
    println!(
        "SKIP LOCKED: {lost} lost, {inversions} inversions of {}",
        committed.len()
    );
    assert!(inversions > 0, "orders are turned round");
    outbox.end().await;
}

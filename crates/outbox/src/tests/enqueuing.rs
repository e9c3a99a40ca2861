//! Enqueuing: sequences, limits, bad input.

use super::support::AnyOutbox;
use crate::{ErrorKind, Limits, Message};

async fn sequences_are_gapless_over_rollbacks(outbox: AnyOutbox) {
    let message = |key: &str| Message::keyed("orders", key, "x");
    let one = outbox
        .enqueue(&[message("a"), message("b"), message("a")], true)
        .await;
    assert_eq!(
        one.iter().map(|e| e.seq).collect::<Vec<_>>(),
        [Some(1), Some(1), Some(2)]
    );
    outbox.enqueue(&[message("a"), message("c")], false).await;
    let two = outbox.enqueue(&[message("a"), message("c")], true).await;
    assert_eq!(
        two.iter().map(|e| e.seq).collect::<Vec<_>>(),
        [Some(3), Some(1)]
    );
    let other = outbox
        .enqueue(&[Message::keyed("bills", "a", "x")], true)
        .await;
    assert_eq!(other[0].seq, Some(1), "another topic counts for itself");
    assert_eq!(
        other[0].part, one[0].part,
        "a key has one part, whatever the topic"
    );
    let free = outbox
        .enqueue(&[Message::unordered("orders", "x")], true)
        .await;
    assert_eq!(free[0].seq, None);
    outbox.end().await;
}

#[tokio::test]
async fn enqueue_postgres_sequences_are_gapless_over_rollbacks() {
    sequences_are_gapless_over_rollbacks(AnyOutbox::pg(4).await).await;
}

#[tokio::test]
async fn enqueue_mysql_sequences_are_gapless_over_rollbacks() {
    sequences_are_gapless_over_rollbacks(AnyOutbox::my(4).await).await;
}

#[tokio::test]
async fn enqueue_sqlite_sequences_are_gapless_over_rollbacks() {
    sequences_are_gapless_over_rollbacks(AnyOutbox::lite(4).await).await;
}

#[test]
fn enqueue_bad_messages_are_refused_before_anything_is_written() {
    let limits = Limits::default();
    let good = Message::keyed("orders", "k", "x");
    limits.check(&good).expect("good");
    let check = |message: Message, kind: ErrorKind| {
        let error = limits.check(&message).expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.is_outcome_known());
    };
    let invalid = ErrorKind::Invalid;
    check(Message::keyed("", "k", "x"), invalid);
    check(Message::keyed("no spaces", "k", "x"), invalid);
    check(Message::keyed("t".repeat(250), "k", "x"), invalid);
    check(Message::keyed("t", "", "x"), invalid);
    check(Message::keyed("t", "a\0b", "x"), invalid);
    check(good.clone().header("quorate-seq", "7"), invalid);
    check(good.clone().header("", "7"), invalid);
    check(good.clone().header("a", "b\0"), invalid);
    check(good.clone().header("a\0", "b"), invalid);
    check(
        Message::keyed("t", "k", vec![0; limits.payload_bytes + 1]),
        ErrorKind::TooLarge,
    );
    check(
        Message::keyed("t", "k".repeat(513), "x"),
        ErrorKind::TooLarge,
    );
    check(good.header("a", "b".repeat(16 << 10)), ErrorKind::TooLarge);
}

async fn opposite_key_orders_do_not_deadlock(outbox: AnyOutbox) {
    let writer = async |reverse: bool| {
        for _ in 0..50 {
            let mut keys: Vec<Message> = (0..6)
                .map(|k| Message::keyed("t", format!("k{k}"), "x"))
                .collect();
            if reverse {
                keys.reverse();
            }
            let mut tx = outbox.begin().await;
            tx.enqueue_all(&keys).await.expect("no deadlock");
            tx.commit().await;
        }
    };
    tokio::join!(writer(false), writer(true), writer(false), writer(true));
    let last = outbox
        .enqueue(&[Message::keyed("t", "k0", "x")], true)
        .await;
    assert_eq!(last[0].seq, Some(201), "every number once");
    outbox.end().await;
}

#[tokio::test]
async fn enqueue_postgres_opposite_key_orders_do_not_deadlock() {
    opposite_key_orders_do_not_deadlock(AnyOutbox::pg(4).await).await;
}

#[tokio::test]
async fn enqueue_mysql_opposite_key_orders_do_not_deadlock() {
    opposite_key_orders_do_not_deadlock(AnyOutbox::my(4).await).await;
}

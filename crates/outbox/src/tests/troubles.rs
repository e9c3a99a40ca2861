//! What may befall a relay: databases that go back, batches refused as a whole, brokers that do not answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::relays::{keyed, quick, start, until_got};
use super::support::{AnyOutbox, Keeps, eventually};
use crate::store::{Most, Progress, Store};
use crate::{HEADER_SOURCE, Message, RelayOptions};

/// A failover: the database has lost its last moments, and gives ids out again that the relay takes for
/// settled.
async fn database_that_went_back_loses_nothing(outbox: AnyOutbox, last: &'static str, back: &str) {
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    for i in 0..5 {
        outbox.enqueue(&[keyed("a", i)], true).await;
    }
    until_got(&broker, 5).await;
    outbox
        .run("CREATE TABLE kept AS SELECT * FROM quorate_outbox_relay")
        .await;
    let last = outbox.number(last).await;
    // Ids that only rolled-back transactions have had, and messages that will be lost with their rows.
    for i in 0..20 {
        outbox.enqueue(&[keyed("b", i)], false).await;
    }
    outbox
        .enqueue(&[Message::unordered("t", "gone")], true)
        .await;
    until_got(&broker, 6).await;
    eventually("the floor is past all that", || async {
        let floor = outbox
            .number("SELECT floor FROM quorate_outbox_relay")
            .await;
        if floor > last + 20 {
            Ok(())
        } else {
            outbox
                .enqueue(&[Message::unordered("t", "tick")], true)
                .await;
            Err(format!("{floor}, the last id was {last}"))
        }
    })
    .await;
    let forget = format!("DELETE FROM quorate_outbox WHERE id > {last}");
    outbox.run(&forget).await;
    outbox.run(&back.replace("{last}", &last.to_string())).await;
    for i in 5..10 {
        outbox.enqueue(&[keyed("a", i)], true).await;
    }
    eventually("what has the old ids arrives", || async {
        let texts = broker.texts();
        let missing: Vec<String> = (0..10)
            .map(|i| i.to_string())
            .filter(|i| !texts.contains(i))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            // Something has to be published for the relay to notice.
            outbox
                .enqueue(&[Message::unordered("t", "tick")], true)
                .await;
            Err(format!("{missing:?} are missing; {:?}", relay.status()))
        }
    })
    .await;
    assert!(relay.status().fenced >= 1, "{:?}", relay.status());
    relay.drain().await;
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_database_that_went_back_loses_nothing() {
    let last = "SELECT last_value FROM quorate_outbox_id_0";
    let back = "UPDATE quorate_outbox_relay r SET floor = k.floor, done = k.done, saves = k.saves
                FROM kept k WHERE k.part = r.part;
                SELECT setval('quorate_outbox_id_0', {last})";
    database_that_went_back_loses_nothing(AnyOutbox::pg(1).await, last, back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_database_that_went_back_loses_nothing() {
    let last = "SELECT last_id FROM quorate_outbox_counter";
    let back = "UPDATE quorate_outbox_relay r JOIN kept k ON k.part = r.part
                SET r.floor = k.floor, r.done = k.done, r.saves = k.saves;
                UPDATE quorate_outbox_counter SET last_id = {last}";
    database_that_went_back_loses_nothing(AnyOutbox::my(1).await, last, back).await;
}

/// The broker knows of a batch that the database has lost: its number is not taken for that of a new one.
#[tokio::test(flavor = "multi_thread")]
async fn relay_transactional_batch_numbers_that_went_back_lose_nothing() {
    let outbox = AnyOutbox::lite(1).await;
    let broker = Arc::new(Keeps::default());
    *broker.last.lock() = Some(5);
    // Lost in the broker, though the relay can't know.
    broker.refuse.store(1, Ordering::SeqCst);
    outbox.enqueue(&[keyed("a", 1), keyed("a", 2)], true).await;
    let relay = start(&outbox, &broker, quick());
    until_got(&broker, 2).await;
    relay.drain().await;
    assert_eq!(broker.texts(), ["1", "2"]);
    assert_eq!(
        *broker.last.lock(),
        Some(7),
        "numbers go on from the broker's"
    );
    outbox.end().await;
}

/// A server refuses a request for one of its messages: only that one is parked.
async fn only_what_spoils_is_parked(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    broker.spoils.lock().insert("bad".into());
    let mut messages: Vec<Message> = (0..50).map(|i| keyed(&format!("k{}", i % 7), i)).collect();
    messages.insert(23, keyed("b", "bad"));
    messages.push(keyed("b", "behind"));
    outbox.enqueue(&messages, true).await;
    let relay = start(&outbox, &broker, quick());
    until_got(&broker, 50).await;
    let store = outbox.store();
    let parked = eventually("two are parked", || async {
        let parked = store.parked(None, 10).await.map_err(|e| e.to_string())?;
        if parked.len() == 2 {
            Ok(parked)
        } else {
            Err(format!("{parked:?}"))
        }
    })
    .await;
    assert!(parked.iter().all(|p| p.row.key.as_deref() == Some("b")));
    // Batches grow again.
    outbox.enqueue(&messages[..23], true).await;
    until_got(&broker, 73).await;
    relay.drain().await;
    let texts = broker.texts();
    for key in 0..7 {
        let of_key = texts.iter().take(50).filter_map(|t| t.parse::<i64>().ok());
        let of_key: Vec<i64> = of_key.filter(|i| i % 7 == key).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_only_what_spoils_a_batch_is_parked() {
    only_what_spoils_is_parked(AnyOutbox::pg(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_only_what_spoils_a_batch_is_parked() {
    only_what_spoils_is_parked(AnyOutbox::my(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_only_what_spoils_a_batch_is_parked() {
    only_what_spoils_is_parked(AnyOutbox::kv(1)).await;
}

/// Large messages are read a few at a time; one above the limit goes alone.
async fn batches_are_limited_in_bytes(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    let large = |bytes: usize| Message::keyed("t", "a", vec![b'x'; bytes]);
    let mut messages = vec![large(50_000); 20];
    for message in &mut messages {
        message.id = uuid::Uuid::now_v7();
    }
    messages.insert(3, large(300_000));
    outbox.enqueue(&messages, true).await;
    let options = RelayOptions {
        batch_bytes: 120_000,
        ..quick()
    };
    let relay = start(&outbox, &broker, options);
    until_got(&broker, 21).await;
    relay.drain().await;
    let sizes = broker.sizes.lock().clone();
    let (over, within): (Vec<usize>, Vec<usize>) = sizes.iter().partition(|s| **s > 120_000);
    assert_eq!(over, [300_000], "alone: {sizes:?}");
    assert!(within.len() >= 10, "two at a time: {sizes:?}");
    assert_eq!(broker.got.lock().len(), 21, "each once");
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_batches_are_limited_in_bytes() {
    batches_are_limited_in_bytes(AnyOutbox::pg(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_batches_are_limited_in_bytes() {
    batches_are_limited_in_bytes(AnyOutbox::my(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_batches_are_limited_in_bytes() {
    batches_are_limited_in_bytes(AnyOutbox::lite(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_batches_are_limited_in_bytes() {
    batches_are_limited_in_bytes(AnyOutbox::kv(1)).await;
}

/// With gaps in what is published, a read gives the lowest rows, and says when it was cut.
async fn read_is_cut_from_above(outbox: AnyOutbox) {
    let messages: Vec<Message> = (0..10).map(|i| keyed("a", i)).collect();
    outbox.enqueue(&messages, true).await;
    let store = outbox.store();
    let held = store.hold("one", &[], Duration::from_secs(60)).await;
    let fence = held.expect("holds").claimed[0].fence;
    let progress = Progress {
        done: [3, 4, 7].into_iter().collect(),
        ..Progress::default()
    };
    let read = |rows, bytes| store.read(fence, &progress, Most { rows, bytes });
    let ids = |read: &crate::store::Read| read.rows.iter().map(|r| r.id).collect::<Vec<_>>();
    let all = read(100, 1000).await.expect("reads");
    assert_eq!((ids(&all), all.cut), (vec![1, 2, 5, 6, 8, 9, 10], false));
    let few = read(4, 1000).await.expect("reads");
    assert_eq!((ids(&few), few.cut), (vec![1, 2, 5, 6], true));
    // Payloads of one byte, and two for the empty list of headers.
    let small = read(100, 7).await.expect("reads");
    assert_eq!((ids(&small), small.cut), (vec![1, 2], true));
    let one = read(100, 0).await.expect("reads");
    assert_eq!((ids(&one), one.cut), (vec![1], true));
    outbox.end().await;
}

#[tokio::test]
async fn store_postgres_read_is_cut_from_above() {
    read_is_cut_from_above(AnyOutbox::pg(1).await).await;
}

#[tokio::test]
async fn store_mysql_read_is_cut_from_above() {
    read_is_cut_from_above(AnyOutbox::my(1).await).await;
}

/// Who leaves is not counted any more: the others get its parts at once.
async fn who_leaves_is_not_counted(outbox: AnyOutbox) {
    let store = outbox.store();
    let long = Duration::from_secs(600);
    let one = store.hold("one", &[], long).await.expect("holds");
    assert_eq!(one.claimed.len(), 4, "alone it has all");
    let fences: Vec<_> = one.claimed.iter().map(|c| c.fence).collect();
    let two = store.hold("two", &[], long).await.expect("holds");
    assert!(two.claimed.is_empty(), "nothing is free");
    let again = store.hold("one", &fences, long).await.expect("holds");
    assert_eq!((again.kept.len(), again.surplus), (4, 2));
    store.release(&fences).await.expect("releases");
    store.leave("one").await.expect("leaves");
    let two = store.hold("two", &[], long).await.expect("holds");
    assert_eq!(two.claimed.len(), 4, "all are the other's");
    outbox.end().await;
}

#[tokio::test]
async fn store_postgres_who_leaves_is_not_counted() {
    who_leaves_is_not_counted(AnyOutbox::pg(4).await).await;
}

#[tokio::test]
async fn store_mysql_who_leaves_is_not_counted() {
    who_leaves_is_not_counted(AnyOutbox::my(4).await).await;
}

#[tokio::test]
async fn store_sqlite_who_leaves_is_not_counted() {
    who_leaves_is_not_counted(AnyOutbox::lite(4).await).await;
}

/// A batch that is not answered, of a part that is lost meanwhile, costs no other part its lease.
async fn broker_that_does_not_answer_costs_no_other_lease(
    outbox: AnyOutbox,
    for_ever: &str,
    lease: [&'static str; 2],
) {
    let broker = Arc::new(Keeps::default());
    broker.stuck.lock().insert("stuck".into());
    let options = RelayOptions {
        lease: Duration::from_millis(600),
        ..quick()
    };
    let relay = start(&outbox, &broker, options);
    let stuck = outbox.enqueue(&[keyed("a", "stuck")], true).await[0].part;
    eventually("it is stuck", || async {
        let tried = !broker.sizes.lock().is_empty();
        tried.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    let steal = format!(
        "UPDATE quorate_outbox_relay SET epoch = epoch + 1, owner = 'thief', lease_until = '{for_ever}'
         WHERE part = {stuck}"
    );
    assert_eq!(outbox.run(&steal).await, 1, "steals");
    eventually("it knows", || async {
        let status = relay.status();
        let lost = status.fenced == 1 && status.parts == [1 - stuck];
        lost.then_some(()).ok_or_else(|| format!("{status:?}"))
    })
    .await;
    let lease = || outbox.number(lease[usize::from(1 - stuck)]);
    for _ in 0..4 {
        let before = lease().await;
        eventually("the other part's lease is renewed", || async {
            let now = lease().await;
            (now != before).then_some(()).ok_or(now.to_string())
        })
        .await;
    }
    let other = (0..100).map(|i| keyed(&format!("k{i}"), "through"));
    let other = other.into_iter().find(|m| m.part(2) != stuck);
    outbox.enqueue(&[other.expect("a key of it")], true).await;
    until_got(&broker, 1).await;
    broker.stuck.lock().clear();
    relay.drain().await;
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_broker_that_does_not_answer_costs_no_other_lease() {
    let lease = [
        "SELECT (extract(epoch FROM lease_until) * 1000000)::bigint FROM quorate_outbox_relay WHERE part = 0",
        "SELECT (extract(epoch FROM lease_until) * 1000000)::bigint FROM quorate_outbox_relay WHERE part = 1",
    ];
    let outbox = AnyOutbox::pg(2).await;
    broker_that_does_not_answer_costs_no_other_lease(outbox, "infinity", lease).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_broker_that_does_not_answer_costs_no_other_lease() {
    let lease = [
        "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', lease_until) FROM quorate_outbox_relay WHERE part = 0",
        "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', lease_until) FROM quorate_outbox_relay WHERE part = 1",
    ];
    let outbox = AnyOutbox::my(2).await;
    broker_that_does_not_answer_costs_no_other_lease(outbox, "9999-12-31", lease).await;
}

/// One key under two prefixes of a store is two sequences, each from a source of its own.
#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_one_key_in_two_parts_is_two_sequences() {
    let outbox = AnyOutbox::kv(2);
    let AnyOutbox::Kv(inner) = &outbox else {
        unreachable!()
    };
    for prefix in ["p0", "p1"] {
        let data = quorate_kv::Mutation::put(format!("{prefix}/data"), "x");
        let message = keyed("same", prefix);
        let done = inner.enqueue(prefix, vec![data], &message).await;
        assert_eq!(done.expect("enqueues").0.seq, Some(1));
    }
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    until_got(&broker, 2).await;
    relay.drain().await;
    let source = |m: &crate::broker::Outgoing| {
        let found = m.headers.iter().find(|(name, _)| name == HEADER_SOURCE);
        found.expect("a source").1.clone()
    };
    let mut sources: Vec<String> = broker.got.lock().iter().map(source).collect();
    sources.sort();
    assert_eq!(sources, ["kv-test/0", "kv-test/1"]);
    assert_eq!(inner.source(), "kv-test");
}

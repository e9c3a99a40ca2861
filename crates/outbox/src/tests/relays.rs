//! The relay over both databases, with a broker that does what the test says.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::{AnyOutbox, Keeps, eventually};
use crate::broker::Broker;
use crate::store::{Change, Most, Progress, Which, Wish};
use crate::{ErrorKind, Level, Message, Relay, RelayOptions};

pub fn quick() -> RelayOptions {
    RelayOptions {
        lease: Duration::from_secs(2),
        upkeep: Duration::from_millis(50),
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(50),
        ..RelayOptions::default()
    }
}

pub fn start(outbox: &AnyOutbox, broker: &Arc<Keeps>, options: RelayOptions) -> Relay {
    let broker: Arc<dyn Broker> = broker.clone();
    Relay::start(outbox.store(), broker, options).expect("starts")
}

pub fn keyed(key: &str, text: impl ToString) -> Message {
    Message::keyed("t", key, text.to_string())
}

pub async fn until_got(broker: &Keeps, count: usize) {
    eventually("messages arrive", || async {
        let got = broker.got.lock().len();
        if got >= count {
            Ok(())
        } else {
            Err(format!("{got} of {count}"))
        }
    })
    .await;
}

/// Everything committed once, nothing rolled back, and nothing waits in the end.
async fn publishes_what_is_committed(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    for i in 0..40 {
        let messages = [
            keyed("a", i),
            keyed("b", i),
            Message::unordered("t", "free"),
        ];
        outbox.enqueue(&messages, i % 4 != 3).await;
    }
    until_got(&broker, 90).await;
    let store = outbox.store();
    eventually("nothing waits", || async {
        let lag = store.lag().await.map_err(|e| e.to_string())?;
        if lag.waiting == 0 {
            Ok(())
        } else {
            Err(format!("{lag:?}"))
        }
    })
    .await;
    relay.drain().await;
    let got = broker.got.lock().clone();
    assert_eq!(got.len(), 90, "each once");
    for key in ["a", "b"] {
        let of_key = got.iter().filter(|m| m.key.as_deref() == Some(key));
        let texts: Vec<String> = of_key
            .clone()
            .map(|m| String::from_utf8_lossy(&m.payload).into_owned())
            .collect();
        let expected: Vec<String> = (0..40)
            .filter(|i| i % 4 != 3)
            .map(|i| i.to_string())
            .collect();
        assert_eq!(texts, expected, "in order, only what was committed");
        let header = |m: &crate::broker::Outgoing| {
            let found = m.headers.iter().find(|(n, _)| n == crate::HEADER_SEQ);
            found.expect("a number").1.parse::<i64>().expect("a number")
        };
        assert_eq!(
            of_key.map(header).collect::<Vec<_>>(),
            (1..=30).collect::<Vec<_>>()
        );
    }
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_publishes_what_is_committed() {
    publishes_what_is_committed(AnyOutbox::pg(4).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_publishes_what_is_committed() {
    publishes_what_is_committed(AnyOutbox::my(4).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_publishes_what_is_committed() {
    publishes_what_is_committed(AnyOutbox::lite(3).await).await;
}

/// Not every round is saved, but what is published is when the relay is drained.
#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_saves_later_than_it_publishes_and_when_it_drains() {
    let outbox = AnyOutbox::lite(1).await;
    let options = RelayOptions {
        save_every: std::time::Duration::from_secs(3600),
        upkeep: std::time::Duration::from_secs(3600),
        ..quick()
    };
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, options);
    // Two rounds, and neither is saved.
    outbox.enqueue(&[keyed("a", 0)], true).await;
    until_got(&broker, 1).await;
    outbox.enqueue(&[keyed("a", 1), keyed("a", 2)], true).await;
    until_got(&broker, 3).await;
    let waiting = outbox.store().lag().await.expect("the lag").waiting;
    assert!(waiting >= 2, "{waiting} wait in the store's eyes");
    relay.drain().await;
    assert_eq!(outbox.store().lag().await.expect("the lag").waiting, 0);
    outbox.end().await;
}

/// A row whose transaction commits after a later one was published.
#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_finds_a_row_that_commits_late() {
    let outbox = AnyOutbox::pg(1).await;
    let AnyOutbox::Pg(pg, inner) = &outbox else {
        unreachable!()
    };
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    for ordered in [true, false] {
        let before = broker.got.lock().len();
        let mut late = keyed(&format!("late-{ordered}"), "late");
        late.ordered = ordered;
        let mut tx = pg.pool.begin().await.expect("begins");
        inner.enqueue(&mut tx, &late).await.expect("enqueues");
        for i in 0..20 {
            outbox.enqueue(&[keyed("other", i)], true).await;
        }
        until_got(&broker, before + 20).await;
        // A save each: often enough for the floor to pass, if it could.
        for i in 1..=20 {
            outbox
                .enqueue(&[Message::unordered("t", "tick")], true)
                .await;
            until_got(&broker, before + 20 + i).await;
        }
        assert!(!broker.texts()[before..].contains(&"late".to_owned()));
        tx.commit().await.expect("commits");
        until_got(&broker, before + 41).await;
        assert_eq!(broker.texts().last().map(String::as_str), Some("late"));
    }
    relay.drain().await;
    outbox.end().await;
}

/// A transaction that is prepared and never decided holds up the floor, not delivery.
#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_delivers_beside_an_orphaned_prepared_transaction() {
    let outbox = AnyOutbox::pg(2).await;
    let AnyOutbox::Pg(pg, inner) = &outbox else {
        unreachable!()
    };
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    let name = format!("orphan-{}", uuid::Uuid::now_v7());
    let mut tx = pg.pool.acquire().await.expect("connects");
    sqlx::query("BEGIN")
        .execute(&mut *tx)
        .await
        .expect("begins");
    inner
        .enqueue(&mut tx, &keyed("orphan", "orphan"))
        .await
        .expect("enqueues");
    let prepare = format!("PREPARE TRANSACTION '{name}'");
    sqlx::query(sqlx::AssertSqlSafe(prepare))
        .execute(&mut *tx)
        .await
        .expect("prepares");
    for i in 0..300 {
        outbox.enqueue(&[keyed("other", i)], i % 7 != 0).await;
    }
    until_got(&broker, 257).await;
    let commit = format!("COMMIT PREPARED '{name}'");
    sqlx::query(sqlx::AssertSqlSafe(commit))
        .execute(&mut *tx)
        .await
        .expect("commits");
    drop(tx);
    until_got(&broker, 258).await;
    relay.drain().await;
    assert_eq!(broker.got.lock().len(), 258, "each once, the orphan too");
    outbox.end().await;
}

async fn retries_keep_order(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    broker.refuse.store(6, Ordering::SeqCst);
    for i in 0..30 {
        outbox.enqueue(&[keyed("a", i)], true).await;
    }
    let relay = start(&outbox, &broker, quick());
    let store = outbox.store();
    eventually("everything is published", || async {
        let lag = store.lag().await.map_err(|e| e.to_string())?;
        let said = relay.status();
        if lag.waiting == 0 {
            Ok(())
        } else {
            Err(format!("{lag:?} {said:?}"))
        }
    })
    .await;
    assert!(relay.status().retries >= 6);
    relay.drain().await;
    // What was stored although refused comes again; without repetitions the order is whole.
    let mut seen = Vec::new();
    for text in broker.texts() {
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    assert_eq!(seen, (0..30).map(|i| i.to_string()).collect::<Vec<_>>());
    assert_eq!(broker.texts().last().map(String::as_str), Some("29"));
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_retries_keep_order() {
    retries_keep_order(AnyOutbox::pg(2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_retries_keep_order() {
    retries_keep_order(AnyOutbox::my(2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_retries_keep_order() {
    retries_keep_order(AnyOutbox::lite(2).await).await;
}

/// Poison parks its key; retry sends in order; skip leaves a record.
async fn poison_parks_its_key_only(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    broker.poison.lock().insert("bad".into());
    let relay = start(&outbox, &broker, quick());
    for text in ["1", "bad", "3", "4"] {
        outbox
            .enqueue(&[keyed("a", text), keyed("b", format!("b{text}"))], true)
            .await;
    }
    until_got(&broker, 5).await;
    outbox
        .enqueue(&[keyed("a", "5"), keyed("b", "last")], true)
        .await;
    until_got(&broker, 6).await;
    assert_eq!(
        broker
            .texts()
            .iter()
            .filter(|t| !t.starts_with('b') && *t != "last")
            .count(),
        1
    );
    let store = outbox.store();
    let parked = eventually("four are parked", || async {
        let parked = store.parked(None, 100).await.map_err(|e| e.to_string())?;
        if parked.len() == 4 {
            Ok(parked)
        } else {
            Err(format!("{parked:?}"))
        }
    })
    .await;
    let seqs: Vec<_> = parked.iter().map(|p| p.row.seq).collect();
    assert_eq!(seqs, [Some(2), Some(3), Some(4), Some(5)]);
    assert!(parked[0].reason.contains("told to"), "{:?}", parked[0]);
    let status = eventually("an alarm", || async {
        let status = relay.status();
        if status.alarm.is_some() {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    assert!(status.alarm.expect("there").contains("parked"));
    // Retry while it is still poison: nothing of the key may go.
    let stream = Which::Stream {
        topic: "t".into(),
        key: "a".into(),
    };
    assert_eq!(store.wish(&stream, Wish::Retry).await.expect("wishes"), 4);
    eventually("it is refused again", || async {
        let parked = store.parked(None, 100).await.map_err(|e| e.to_string())?;
        let again = parked.len() == 4 && parked[0].attempts == 2;
        if again {
            Ok(())
        } else {
            Err(format!("{parked:?}"))
        }
    })
    .await;
    let bad = Which::Message(parked[0].row.message_id);
    assert_eq!(store.wish(&bad, Wish::Skip).await.expect("wishes"), 1);
    until_got(&broker, 7).await;
    eventually("it is left out", || async {
        let parked = store.parked(None, 100).await.map_err(|e| e.to_string())?;
        if parked.len() == 3 {
            Ok(())
        } else {
            Err(format!("{parked:?}"))
        }
    })
    .await;
    assert_eq!(store.wish(&stream, Wish::Retry).await.expect("wishes"), 3);
    until_got(&broker, 10).await;
    outbox.enqueue(&[keyed("a", "6")], true).await;
    until_got(&broker, 11).await;
    relay.drain().await;
    let of_a: Vec<_> = broker
        .got
        .lock()
        .iter()
        .filter(|m| m.key.as_deref() == Some("a"))
        .cloned()
        .collect();
    let value = |m: &crate::broker::Outgoing, name: &str| {
        m.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
    };
    let seqs: Vec<_> = of_a
        .iter()
        .filter_map(|m| value(m, crate::HEADER_SEQ))
        .collect();
    assert_eq!(seqs, ["1", "2", "3", "4", "5", "6"], "in order, no gap");
    assert_eq!(value(&of_a[1], crate::HEADER_SKIP).as_deref(), Some("1"));
    assert!(of_a[1].payload.is_empty(), "a skip record has no content");
    assert!(store.parked(None, 10).await.expect("lists").is_empty());
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_poison_parks_its_key_only() {
    poison_parks_its_key_only(AnyOutbox::pg(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_poison_parks_its_key_only() {
    poison_parks_its_key_only(AnyOutbox::my(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_poison_parks_its_key_only() {
    poison_parks_its_key_only(AnyOutbox::lite(1).await).await;
}

/// A relay whose lease was taken over can't write, whatever it believes.
async fn a_lost_lease_fences(outbox: AnyOutbox) {
    let store = outbox.store();
    outbox.enqueue(&[keyed("a", "1")], true).await;
    let short = Duration::from_millis(1);
    let first = store.hold("one", &[], short).await.expect("holds");
    assert_eq!(first.claimed.len(), 1);
    let old = first.claimed[0].fence;
    let second = eventually("the lease ends", || async {
        let held = store.hold("two", &[], Duration::from_millis(500)).await;
        let held = held.map_err(|e| e.to_string())?;
        if held.claimed.len() == 1 {
            Ok(held)
        } else {
            Err(format!("{held:?}"))
        }
    })
    .await;
    let new = second.claimed[0].fence;
    assert_eq!(new.epoch, old.epoch + 1);
    let progress = Progress {
        floor: 99,
        ..Progress::default()
    };
    let refused = store.save(old, &progress, &Change::default()).await;
    assert_eq!(refused.expect_err("fenced").kind(), ErrorKind::Fenced);
    let kept = store
        .hold("one", &[old], Duration::from_secs(60))
        .await
        .expect("asks");
    assert!(kept.kept.is_empty(), "what is lost is not kept");
    store.release(&[old]).await.expect("nothing to give back");
    let read = store
        .read(new, &Progress::default(), Most::ALL)
        .await
        .expect("reads");
    assert_eq!(read.rows.len(), 1, "nothing was marked by the old one");
    outbox.end().await;
}

#[tokio::test]
async fn relay_postgres_lost_lease_fences() {
    a_lost_lease_fences(AnyOutbox::pg(1).await).await;
}

#[tokio::test]
async fn relay_mysql_lost_lease_fences() {
    a_lost_lease_fences(AnyOutbox::my(1).await).await;
}

#[tokio::test]
async fn relay_sqlite_lost_lease_fences() {
    a_lost_lease_fences(AnyOutbox::lite(1).await).await;
}

/// A clock that steps an hour ahead ends leases early: another relay takes over, and order and
/// completeness hold.
async fn clock_step_hands_parts_over_without_loss(outbox: AnyOutbox, hour: &str) {
    let broker = Arc::new(Keeps::default());
    let relays = [
        start(&outbox, &broker, quick()),
        start(&outbox, &broker, quick()),
    ];
    for i in 0..60 {
        outbox.enqueue(&[keyed("a", i), keyed("b", i)], true).await;
        if i % 20 == 10 {
            // What a step of the database's clock does to leases.
            let step =
                format!("UPDATE quorate_outbox_relay SET lease_until = lease_until - {hour}");
            outbox.run(&step).await;
        }
    }
    until_got(&broker, 120).await;
    for relay in relays {
        relay.drain().await;
    }
    for key in ["a", "b"] {
        let got = broker.got.lock().clone();
        let mut last = -1i64;
        for message in got.iter().filter(|m| m.key.as_deref() == Some(key)) {
            let number: i64 = String::from_utf8_lossy(&message.payload)
                .parse()
                .expect("a number");
            assert!(
                number <= last + 1,
                "{number} came after {last}: one is missing between"
            );
            last = last.max(number);
        }
        assert_eq!(last, 59);
    }
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_clock_step_hands_parts_over_without_loss() {
    clock_step_hands_parts_over_without_loss(AnyOutbox::pg(2).await, "interval '1 hour'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_clock_step_hands_parts_over_without_loss() {
    clock_step_hands_parts_over_without_loss(AnyOutbox::my(2).await, "interval 1 hour").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_ten_relays_share_parts_and_hand_them_over() {
    ten_relays_share_parts(AnyOutbox::pg(10).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_ten_relays_share_parts_and_hand_them_over() {
    ten_relays_share_parts(AnyOutbox::my(10).await).await;
}

async fn ten_relays_share_parts(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    let options = || RelayOptions {
        lease: Duration::from_millis(600),
        ..quick()
    };
    let mut relays: Vec<Relay> = (0..10)
        .map(|_| start(&outbox, &broker, options()))
        .collect();
    eventually("each has a part", || async {
        let counts: Vec<usize> = relays.iter().map(|r| r.status().parts.len()).collect();
        if counts.iter().all(|c| *c == 1) {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await;
    for i in 0..100 {
        outbox
            .enqueue(&[keyed(&format!("k{}", i % 20), i)], true)
            .await;
        if i % 25 == 10 {
            relays.pop().expect("one left").drain().await;
        }
    }
    until_got(&broker, 100).await;
    for relay in relays {
        relay.drain().await;
    }
    assert_eq!(
        broker.got.lock().len(),
        100,
        "drained relays repeat nothing"
    );
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_broker_gone_keeps_everything_and_says_so() {
    broker_gone_keeps_everything(AnyOutbox::pg(2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_broker_gone_keeps_everything_and_says_so() {
    broker_gone_keeps_everything(AnyOutbox::my(2).await).await;
}

async fn broker_gone_keeps_everything(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    broker.gone.store(true, Ordering::SeqCst);
    let relay = start(&outbox, &broker, quick());
    for i in 0..20 {
        outbox.enqueue(&[keyed("a", i)], true).await;
    }
    eventually("it says so", || async {
        let status = relay.status();
        let said = status.failure.is_some() && status.lag.waiting == 20 && status.retries > 3;
        if said {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    assert!(broker.got.lock().is_empty());
    broker.gone.store(false, Ordering::SeqCst);
    until_got(&broker, 20).await;
    relay.drain().await;
    assert_eq!(
        broker.texts(),
        (0..20).map(|i| i.to_string()).collect::<Vec<_>>()
    );
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_at_most_once_never_repeats() {
    at_most_once_never_repeats(AnyOutbox::pg(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_at_most_once_never_repeats() {
    at_most_once_never_repeats(AnyOutbox::my(1).await).await;
}

async fn at_most_once_never_repeats(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    broker.refuse.store(1, Ordering::SeqCst);
    outbox.enqueue(&[keyed("a", "lost")], true).await;
    let options = RelayOptions {
        level: Level::AtMostOnce,
        ..quick()
    };
    let relay = start(&outbox, &broker, options);
    eventually("the first is given up", || async {
        let left = broker.refuse.load(Ordering::SeqCst);
        if left == 0 {
            Ok(())
        } else {
            Err("not tried yet".into())
        }
    })
    .await;
    outbox.enqueue(&[keyed("a", "kept")], true).await;
    until_got(&broker, 1).await;
    relay.drain().await;
    assert_eq!(broker.texts(), ["kept"]);
    outbox.end().await;
}

/// Space of published rows is freed, by truncating or deleting.
async fn published_rows_are_trimmed(outbox: AnyOutbox, count: &'static str) {
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    let many: Vec<Message> = (0..500).map(|i| keyed(&format!("k{}", i % 9), i)).collect();
    outbox.enqueue(&many, true).await;
    until_got(&broker, 500).await;
    if let AnyOutbox::Pg(pg, _) = &outbox {
        // Small tables are left alone while they are fresh.
        let age = "UPDATE quorate_outbox SET created = created - interval '1 minute'";
        sqlx::query(age).execute(&pg.pool).await.expect("ages");
    }
    eventually("no rows are left", || async {
        let left = outbox.number(count).await;
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} rows"))
        }
    })
    .await;
    outbox.enqueue(&[keyed("k0", "after")], true).await;
    until_got(&broker, 501).await;
    relay.drain().await;
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_published_rows_are_trimmed() {
    published_rows_are_trimmed(
        AnyOutbox::pg(2).await,
        "SELECT count(*) FROM quorate_outbox",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_published_rows_are_trimmed() {
    published_rows_are_trimmed(
        AnyOutbox::my(2).await,
        "SELECT count(*) FROM quorate_outbox",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_published_rows_are_trimmed() {
    published_rows_are_trimmed(
        AnyOutbox::lite(2).await,
        "SELECT count(*) FROM quorate_outbox",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_notify_from_another_process_wakes_it() {
    let outbox = AnyOutbox::pg(1).await;
    let AnyOutbox::Pg(pg, inner) = &outbox else {
        unreachable!()
    };
    let other = crate::postgres::PgOutbox::open(pg.pool.clone())
        .await
        .expect("opens");
    let hints = inner.listen().await.expect("listens");
    let broker = Arc::new(Keeps::default());
    // Polling alone would take a minute.
    let slow = Duration::from_secs(60);
    let relay = start(
        &outbox,
        &broker,
        RelayOptions {
            poll_min: slow,
            poll_max: slow,
            ..quick()
        },
    );
    eventually("it has the part", || async {
        let parts = relay.status().parts;
        if parts == [0] {
            Ok(())
        } else {
            Err(format!("{parts:?}"))
        }
    })
    .await;
    outbox.enqueue(&[keyed("a", "1")], true).await;
    eventually("the hint is heard", || async {
        other.notify().await.map_err(|e| e.to_string())?;
        if broker.got.lock().is_empty() {
            Err("not yet".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    drop(hints);
    relay.drain().await;
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_publishes_what_is_committed() {
    publishes_what_is_committed(AnyOutbox::kv(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_retries_keep_order() {
    retries_keep_order(AnyOutbox::kv(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_poison_parks_its_key_only() {
    poison_parks_its_key_only(AnyOutbox::kv(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_lost_lease_fences() {
    a_lost_lease_fences(AnyOutbox::kv(1)).await;
}

/// A save that fails must not leave a message marked that was to be parked.
async fn parks_what_could_not_be_parked_at_first(outbox: AnyOutbox) {
    let hide = "ALTER TABLE quorate_outbox_parked RENAME TO hidden";
    let show = "ALTER TABLE hidden RENAME TO quorate_outbox_parked";
    let broker = Arc::new(Keeps::default());
    broker.poison.lock().insert("bad".into());
    let relay = start(&outbox, &broker, quick());
    outbox.enqueue(&[keyed("b", "good")], true).await;
    until_got(&broker, 1).await;
    outbox.run(hide).await;
    outbox
        .enqueue(&[keyed("a", "bad"), keyed("b", "more")], true)
        .await;
    eventually("saving fails", || async {
        let status = relay.status();
        if status.retries > 2 {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    outbox.run(show).await;
    let store = outbox.store();
    eventually("it is parked", || async {
        let parked = store.parked(None, 10).await.map_err(|e| e.to_string())?;
        if parked.len() == 1 {
            Ok(())
        } else {
            Err(format!("{parked:?}"))
        }
    })
    .await;
    relay.drain().await;
    assert!(broker.texts().contains(&"more".to_owned()));
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_parks_what_could_not_be_parked_at_first() {
    parks_what_could_not_be_parked_at_first(AnyOutbox::pg(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_parks_what_could_not_be_parked_at_first() {
    parks_what_could_not_be_parked_at_first(AnyOutbox::my(1).await).await;
}

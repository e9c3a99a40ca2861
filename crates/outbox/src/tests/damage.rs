//! Stored messages that can't be read, and messages whose topic will never be there.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_kv::memory::MemoryKv;
use quorate_kv::{
    Batch, BatchResult, Compare, CompareResult, Delete, Domain, Entry, Get, Kv, Put, Scan,
    ScanPage, Written,
};

use super::relays::{keyed, quick, start, until_got};
use super::support::{AnyOutbox, Keeps, eventually};
use crate::kv::KvOutbox;
use crate::store::{BoxFuture, Parked, Store, Which, Wish};

fn stream(key: &str) -> Which {
    Which::Stream {
        topic: "t".into(),
        key: key.into(),
    }
}

async fn until_parked(
    store: &Arc<dyn Store>,
    what: &str,
    holds: impl Fn(&[Parked]) -> bool,
) -> Vec<Parked> {
    eventually(what, || async {
        let parked = store.parked(None, 100).await.map_err(|e| e.to_string())?;
        if holds(&parked) {
            Ok(parked)
        } else {
            Err(format!("{parked:?}"))
        }
    })
    .await
}

/// The texts of a key, in the order in which the broker got them.
fn of_key(broker: &Keeps, key: &str) -> Vec<String> {
    let got = broker.got.lock();
    let of = got.iter().filter(|m| m.key.as_deref() == Some(key));
    of.map(|m| String::from_utf8_lossy(&m.payload).into_owned())
        .collect()
}

async fn run(outbox: &AnyOutbox, text: &str) {
    assert_eq!(outbox.run(text).await, 1, "a row is changed");
}

/// A row is spoilt; the others of its key wait behind it, other keys go on; once mended all go in order.
async fn damaged_row_parks_its_key_only(outbox: AnyOutbox, spoil: &str, mend: &str) {
    for i in 1..=3 {
        outbox
            .enqueue(&[keyed("a", i), keyed("b", format!("b{i}"))], true)
            .await;
    }
    run(&outbox, &format!("UPDATE quorate_outbox SET {spoil}")).await;
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    until_got(&broker, 4).await;
    outbox
        .enqueue(&[keyed("a", 4), keyed("b", "b4")], true)
        .await;
    until_got(&broker, 5).await;
    assert_eq!(of_key(&broker, "a"), ["1"]);
    assert_eq!(of_key(&broker, "b"), ["b1", "b2", "b3", "b4"]);
    let store = outbox.store();
    let parked = until_parked(&store, "three are parked", |p| p.len() == 3).await;
    let seqs: Vec<_> = parked.iter().map(|p| p.row.seq).collect();
    assert_eq!(seqs, [Some(2), Some(3), Some(4)]);
    assert!(parked[0].row.damage.is_some(), "{:?}", parked[0]);
    let why = &parked[0].reason;
    assert!(why.contains("headers") || why.contains("column"), "{why}");
    assert!(parked[1].reason.contains("behind"), "{:?}", parked[1]);
    assert_eq!(parked[1].row.damage, None);
    // Not before it is mended.
    store.wish(&stream("a"), Wish::Retry).await.expect("wishes");
    until_parked(&store, "all are refused again", |parked| {
        let again = |p: &Parked| p.attempts == 2 && p.wish == Wish::None;
        parked.len() == 3 && parked.iter().all(again)
    })
    .await;
    assert_eq!(of_key(&broker, "a"), ["1"]);
    let mend = format!("UPDATE quorate_outbox_parked SET {mend} WHERE seq = 2");
    run(&outbox, &mend).await;
    store.wish(&stream("a"), Wish::Retry).await.expect("wishes");
    until_got(&broker, 8).await;
    relay.drain().await;
    assert_eq!(of_key(&broker, "a"), ["1", "2", "3", "4"]);
    assert!(store.parked(None, 10).await.expect("lists").is_empty());
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_damaged_row_parks_its_key_only() {
    let spoil = "headers = 'oops' WHERE key = 'a' AND seq = 2";
    damaged_row_parks_its_key_only(AnyOutbox::pg(1).await, spoil, "headers = '[]'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_damaged_row_parks_its_key_only() {
    let spoil = "headers = 'oops' WHERE `key` = 'a' AND seq = 2";
    damaged_row_parks_its_key_only(AnyOutbox::my(1).await, spoil, "headers = '[]'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_damaged_row_parks_its_key_only() {
    let spoil = "headers = '[[1', message_id = x'07' WHERE key = 'a' AND seq = 2";
    damaged_row_parks_its_key_only(AnyOutbox::lite(1).await, spoil, "headers = '[]'").await;
}

/// SQLite takes anything in any column, MySQL any bytes: what the row belongs to may be lost with it.
async fn row_without_a_readable_topic_is_parked_alone(outbox: AnyOutbox, spoil: &str) {
    for i in 1..=3 {
        outbox.enqueue(&[keyed("a", i)], true).await;
    }
    let spoil = format!("UPDATE quorate_outbox SET {spoil} WHERE seq = 2");
    run(&outbox, &spoil).await;
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    until_got(&broker, 2).await;
    let store = outbox.store();
    let parked = until_parked(&store, "one is parked", |p| p.len() == 1).await;
    assert!(parked[0].row.damage.is_some(), "{parked:?}");
    let one = Which::Message(parked[0].row.message_id);
    assert_eq!(store.wish(&one, Wish::Drop).await.expect("wishes"), 1);
    until_parked(&store, "it is forgotten", <[Parked]>::is_empty).await;
    relay.drain().await;
    assert_eq!(of_key(&broker, "a"), ["1", "3"], "consumers see the gap");
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_row_without_a_readable_topic_is_parked_alone() {
    let spoil = "topic = x'ff', created_ms = 'long ago'";
    row_without_a_readable_topic_is_parked_alone(AnyOutbox::lite(1).await, spoil).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_row_without_a_readable_topic_is_parked_alone() {
    row_without_a_readable_topic_is_parked_alone(AnyOutbox::my(1).await, "topic = x'ff'").await;
}

/// A topic that will never be there: not even a skip record can be sent. Then the message is dropped.
async fn message_without_a_topic_can_be_dropped(outbox: AnyOutbox) {
    let broker = Arc::new(Keeps::default());
    // A skip record has no content.
    broker.poison.lock().extend(["1".to_owned(), String::new()]);
    let relay = start(&outbox, &broker, quick());
    outbox.enqueue(&[keyed("a", 1), keyed("a", 2)], true).await;
    let store = outbox.store();
    let parked = until_parked(&store, "two are parked", |p| p.len() == 2).await;
    let first = Which::Message(parked[0].row.message_id);
    store.wish(&first, Wish::Skip).await.expect("wishes");
    until_parked(&store, "its skip record is refused", |parked| {
        parked[0].attempts == 2 && parked[0].reason.contains("skip record")
    })
    .await;
    store.wish(&first, Wish::Drop).await.expect("wishes");
    until_parked(&store, "it is forgotten", |p| p.len() == 1).await;
    store.wish(&stream("a"), Wish::Retry).await.expect("wishes");
    until_got(&broker, 1).await;
    outbox.enqueue(&[keyed("a", 3)], true).await;
    until_got(&broker, 2).await;
    relay.drain().await;
    assert_eq!(of_key(&broker, "a"), ["2", "3"]);
    outbox.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_message_without_a_topic_can_be_dropped() {
    message_without_a_topic_can_be_dropped(AnyOutbox::pg(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_message_without_a_topic_can_be_dropped() {
    message_without_a_topic_can_be_dropped(AnyOutbox::my(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sqlite_message_without_a_topic_can_be_dropped() {
    message_without_a_topic_can_be_dropped(AnyOutbox::lite(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_message_without_a_topic_can_be_dropped() {
    message_without_a_topic_can_be_dropped(AnyOutbox::kv(1)).await;
}

/// A relay that is frozen in the middle of a transaction keeps no locks: another takes its part over.
#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_lock_of_a_frozen_relay_is_ended() {
    let outbox = AnyOutbox::pg(1).await;
    let AnyOutbox::Pg(pg, _) = &outbox else {
        unreachable!()
    };
    let frozen = pg.pool.begin_with(crate::postgres::BEGIN).await;
    let mut frozen = frozen.expect("begins");
    let lock = "UPDATE quorate_outbox_relay SET saves = saves";
    sqlx::query(lock)
        .execute(&mut *frozen)
        .await
        .expect("locks");
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    outbox.enqueue(&[keyed("a", 1)], true).await;
    until_got(&broker, 1).await;
    frozen.commit().await.expect_err("it is over");
    relay.drain().await;
    outbox.end().await;
}

/// Notes how much of parked messages is read.
struct Noting {
    kv: MemoryKv,
    read: Mutex<Vec<String>>,
}

impl Noting {
    fn outbox() -> (Arc<Noting>, AnyOutbox) {
        let domain = Domain {
            cluster: 1,
            namespace: 1,
            incarnation: 0,
        };
        let noting = Arc::new(Noting {
            kv: MemoryKv::new(domain),
            read: Mutex::default(),
        });
        let outbox = KvOutbox::new(noting.clone(), "kv-test", vec!["p0".into()]);
        (noting, AnyOutbox::Kv(outbox.expect("opens")))
    }

    async fn value(&self, key: &str) -> bytes::Bytes {
        let entry = self.kv.get(Get::new(key.to_owned())).await.expect("reads");
        entry.expect("is there").value
    }

    async fn set(&self, key: &str, value: impl Into<bytes::Bytes>) {
        let put = Put::new(key.to_owned(), value.into());
        self.kv.put(put).await.expect("writes");
    }

    fn note<'a>(&self, keys: impl Iterator<Item = &'a bytes::Bytes>) {
        let text = |key: &bytes::Bytes| String::from_utf8_lossy(key).into_owned();
        self.read.lock().extend(keys.map(text));
    }
}

impl Kv for Noting {
    fn domain(&self) -> Domain {
        self.kv.domain()
    }
    fn get(&self, get: Get) -> BoxFuture<'_, quorate_kv::Result<Option<Entry>>> {
        self.note(std::iter::once(&get.key));
        self.kv.get(get)
    }
    fn put(&self, put: Put) -> BoxFuture<'_, quorate_kv::Result<Written>> {
        self.kv.put(put)
    }
    fn delete(&self, delete: Delete) -> BoxFuture<'_, quorate_kv::Result<Written>> {
        self.kv.delete(delete)
    }
    fn batch(&self, batch: Batch) -> BoxFuture<'_, quorate_kv::Result<BatchResult>> {
        self.kv.batch(batch)
    }
    fn compare(&self, compare: Compare) -> BoxFuture<'_, quorate_kv::Result<CompareResult>> {
        self.kv.compare(compare)
    }
    fn scan(&self, scan: Scan) -> BoxFuture<'_, quorate_kv::Result<ScanPage>> {
        Box::pin(async move {
            let page = self.kv.scan(scan).await?;
            self.note(page.entries.iter().map(|entry| &entry.key));
            Ok(page)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_damaged_message_is_parked_and_goes_once_it_is_mended() {
    let (kv, outbox) = Noting::outbox();
    for i in 1..=3 {
        outbox.enqueue(&[keyed("a", i)], true).await;
    }
    let key = "p0/~outbox/m/00000000000000000002";
    let good = kv.value(key).await;
    kv.set(key, "oops").await;
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    // Which key it had is not known: others go on, and consumers wait at the gap.
    until_got(&broker, 2).await;
    let store = outbox.store();
    let parked = until_parked(&store, "one is parked", |p| p.len() == 1).await;
    assert!(parked[0].row.damage.is_some(), "{parked:?}");
    let aside = "p0/~outbox/d/00000000000000000002";
    assert_eq!(kv.value(aside).await, "oops", "kept as it is stored");
    let one = Which::Message(parked[0].row.message_id);
    assert_eq!(store.wish(&one, Wish::Retry).await.expect("wishes"), 1);
    until_parked(&store, "it is refused again", |p| p[0].attempts == 2).await;
    kv.set(aside, good).await;
    assert_eq!(store.wish(&one, Wish::Retry).await.expect("wishes"), 1);
    until_got(&broker, 3).await;
    until_parked(&store, "nothing is parked", <[Parked]>::is_empty).await;
    relay.drain().await;
    assert_eq!(of_key(&broker, "a"), ["1", "3", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_note_of_a_parked_message_that_is_damaged_keeps_it_parked() {
    let (kv, outbox) = Noting::outbox();
    let broker = Arc::new(Keeps::default());
    broker.poison.lock().insert("1".into());
    let relay = start(&outbox, &broker, quick());
    outbox.enqueue(&[keyed("a", 1)], true).await;
    let store = outbox.store();
    until_parked(&store, "one is parked", |p| p.len() == 1).await;
    kv.set("p0/~outbox/p/00000000000000000001", "oops").await;
    let parked = until_parked(&store, "it is seen", |p| p[0].reason.contains("parked")).await;
    assert_eq!(parked[0].row.payload, "1", "the message is whole");
    relay.drain().await;
}

/// The lag is asked for every second: it must not cost what is parked.
#[tokio::test(flavor = "multi_thread")]
async fn relay_kv_lag_reads_no_parked_message() {
    let (kv, outbox) = Noting::outbox();
    let broker = Arc::new(Keeps::default());
    broker.poison.lock().insert("0".into());
    let relay = start(&outbox, &broker, quick());
    for i in 0..20 {
        outbox.enqueue(&[keyed("a", i)], true).await;
    }
    let store = outbox.store();
    until_parked(&store, "all are parked", |p| p.len() == 20).await;
    relay.drain().await;
    kv.read.lock().clear();
    assert_eq!(store.lag().await.expect("measures").parked, 20);
    let held = store.hold("next", &[], Duration::from_secs(9)).await;
    assert_eq!(held.expect("holds").claimed[0].parked.len(), 1);
    let read = kv.read.lock().clone();
    let is_payload = |key: &&String| key.contains("/~outbox/d/") || key.contains("/~outbox/m/");
    assert_eq!(read.iter().filter(is_payload).count(), 0, "{read:?}");
}

//! Positions and turns: databases that go back, claims that come too late, keys that begin dead, gaps that
//! stay.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::consumers::{
    Base, Effects, OnMy, OnPg, memory, on_lite, on_my, on_pg, options, over_all, publish, sent,
    start, until_texts,
};
use super::support::{FromStart, eventually};
use crate::broker::{Broker, Outgoing};
use crate::inbox::{Baseline, Handler, Ledger, LedgerTx, OnGap, State, Stream};
use crate::store::{Which, Wish};
use crate::{Consumer, ConsumerOptions, ErrorKind, Partition};

/// A failover: positions, numbers and effects of the last moments are gone. They are fetched again.
async fn database_that_went_back_is_caught_up<B: Base>(
    base: B,
    run: impl AsyncFn(&B, &'static str),
    back: &'static str,
) where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    // Another group that never commits keeps the broker from forgetting.
    let topics = ["t".to_owned()];
    let keeps = broker
        .subscribe("keeps", &topics, Arc::new(FromStart))
        .await;
    let keeps = keeps.expect("subscribes");
    let consumer = start(&base, &broker, &effects, options()).await;
    publish(&broker, &[sent("a", 1, "1"), sent("b", 1, "1")]).await;
    until_texts(&base, "a", &["1"]).await;
    until_texts(&base, "b", &["1"]).await;
    let keep = "CREATE TABLE kept_position AS SELECT * FROM quorate_inbox_position;
                CREATE TABLE kept_key AS SELECT * FROM quorate_inbox_key";
    run(&base, keep).await;
    publish(&broker, &[sent("a", 2, "2"), sent("b", 2, "2")]).await;
    until_texts(&base, "a", &["1", "2"]).await;
    until_texts(&base, "b", &["1", "2"]).await;
    run(&base, back).await;
    publish(&broker, &[sent("a", 3, "3"), sent("b", 3, "3")]).await;
    until_texts(&base, "a", &["1", "2", "3"]).await;
    until_texts(&base, "b", &["1", "2", "3"]).await;
    assert!(consumer.status().fenced >= 1, "{:?}", consumer.status());
    consumer.drain().await;
    drop(keeps);
    base.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_postgres_database_that_went_back_is_caught_up() {
    let run = async |base: &OnPg, text: &'static str| {
        let done = sqlx::raw_sql(text).execute(&base.0.pool).await;
        done.expect("runs");
    };
    let back = "UPDATE quorate_inbox_position p SET next = k.next FROM kept_position k
                WHERE k.topic = p.topic AND k.number = p.number;
                UPDATE quorate_inbox_key p SET last_seq = k.last_seq FROM kept_key k
                WHERE k.key = p.key;
                DELETE FROM effects WHERE text = '2'";
    database_that_went_back_is_caught_up(on_pg().await, run, back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_mysql_database_that_went_back_is_caught_up() {
    let run = async |base: &OnMy, text: &'static str| {
        let done = sqlx::raw_sql(text).execute(&base.0.pool).await;
        done.expect("runs");
    };
    let back = "START TRANSACTION;
                UPDATE quorate_inbox_position p JOIN kept_position k
                ON k.topic = p.topic AND k.number = p.number SET p.next = k.next;
                UPDATE quorate_inbox_key p JOIN kept_key k ON k.key = p.key SET p.last_seq = k.last_seq;
                DELETE FROM effects WHERE text = '2';
                COMMIT";
    database_that_went_back_is_caught_up(on_my().await, run, back).await;
}

over_all!(
    a_late_claim_is_outlived,
    consumer_postgres_late_claim_of_another_is_outlived,
    consumer_mysql_late_claim_of_another_is_outlived,
    consumer_sqlite_late_claim_of_another_is_outlived
);
/// A process that was frozen in the middle of a claim finishes it long after the partition went to this one.
async fn a_late_claim_is_outlived<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    let options = ConsumerOptions {
        rejoin: Duration::from_millis(50),
        ..options()
    };
    let consumer = start(&base, &broker, &effects, options).await;
    publish(&broker, &[sent("a", 1, "1")]).await;
    until_texts(&base, "a", &["1"]).await;
    for number in 0..4 {
        let topic = "t".to_owned();
        let partition = Partition { topic, number };
        let claimed = base.inbox().claim("test", &partition).await;
        claimed.expect("claims");
    }
    publish(&broker, &[sent("a", 2, "2"), sent("a", 3, "3")]).await;
    until_texts(&base, "a", &["1", "2", "3"]).await;
    assert!(consumer.status().fenced >= 1, "{:?}", consumer.status());
    consumer.drain().await;
    base.end().await;
}

over_all!(
    first_seen_dead_holds_its_key,
    consumer_postgres_first_seen_message_that_dies_holds_its_key,
    consumer_mysql_first_seen_message_that_dies_holds_its_key,
    consumer_sqlite_first_seen_message_that_dies_holds_its_key
);
async fn first_seen_dead_holds_its_key<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    effects.fail("dies", u32::MAX, true);
    let options = ConsumerOptions {
        baseline: Baseline::FirstSeen,
        ..options()
    };
    let consumer = start(&base, &broker, &effects, options).await;
    publish(
        &broker,
        &[
            sent("a", 57, "dies"),
            sent("a", 58, "58"),
            sent("b", 9, "9"),
        ],
    )
    .await;
    until_texts(&base, "b", &["9"]).await;
    let inbox = base.inbox();
    eventually("one is dead, one waits behind it", || async {
        let waiting = inbox
            .waiting("test", None, 10)
            .await
            .map_err(|e| e.to_string())?;
        let states: Vec<State> = waiting.iter().map(|w| w.state).collect();
        if states == [State::Dead, State::Waiting] {
            Ok(())
        } else {
            Err(format!("{waiting:?}"))
        }
    })
    .await;
    effects.heal("dies");
    let stream = Which::Stream {
        topic: "t".into(),
        key: "a".into(),
    };
    let wished = inbox.wish("test", &stream, Wish::Retry).await;
    assert_eq!(wished.expect("wishes"), 1);
    until_texts(&base, "a", &["dies", "58"]).await;
    consumer.drain().await;
    base.end().await;
}

over_all!(
    a_gap_can_be_given_up,
    consumer_postgres_gap_that_stays_can_be_given_up,
    consumer_mysql_gap_that_stays_can_be_given_up,
    consumer_sqlite_gap_that_stays_can_be_given_up
);
/// What is missing was lost outside, by the retention of a topic perhaps: an operator goes on without it.
async fn a_gap_can_be_given_up<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    let consumer = start(&base, &broker, &effects, options()).await;
    let messages = [
        sent("a", 1, "1"),
        sent("a", 3, "3"),
        sent("a", 4, "4"),
        sent("a", 6, "6"),
    ];
    publish(&broker, &messages).await;
    let inbox = base.inbox();
    let waiting = eventually("three wait", || async {
        let waiting = inbox
            .waiting("test", None, 10)
            .await
            .map_err(|e| e.to_string())?;
        if waiting.len() == 3 {
            Ok(waiting)
        } else {
            Err(format!("{waiting:?}"))
        }
    })
    .await;
    // Not over the head of what waits before it.
    let last = Which::Message(waiting[2].id);
    inbox
        .wish("test", &last, Wish::Retry)
        .await
        .expect("wishes");
    assert!(inbox.ready("test", 10).await.expect("looks").is_empty());
    let first = Which::Message(waiting[0].id);
    let wished = inbox.wish("test", &first, Wish::Retry).await;
    assert_eq!(wished.expect("wishes"), 1);
    until_texts(&base, "a", &["1", "3", "4", "6"]).await;
    publish(&broker, &[sent("a", 2, "2"), sent("a", 7, "7")]).await;
    until_texts(&base, "a", &["1", "3", "4", "6", "7"]).await;
    consumer.drain().await;
    base.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_accepting_gaps_and_parking_keys_is_refused() {
    let base = on_lite().await;
    let options = ConsumerOptions {
        on_gap: OnGap::Accept,
        ..options()
    };
    let handler = Arc::new(Effects::default());
    let started = Consumer::start(base.inbox(), Arc::new(memory()), handler, options).await;
    let refused = started.err().expect("refused");
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
}

/// A ledger whose commits succeed, but now and then nobody hears of it.
#[derive(Clone)]
struct Unheard<L>(L, Arc<std::sync::atomic::AtomicU32>);

struct UnheardTx<T>(T, Arc<std::sync::atomic::AtomicU32>);

impl<L: Ledger> Ledger for Unheard<L> {
    type Connection = L::Connection;
    type Tx = UnheardTx<L::Tx>;

    async fn begin(&self, patience: Duration) -> crate::Result<Self::Tx> {
        Ok(UnheardTx(
            self.0.begin(patience).await?,
            Arc::clone(&self.1),
        ))
    }
    async fn claim(&self, c: &str, p: &Partition) -> crate::Result<crate::inbox::Position> {
        self.0.claim(c, p).await
    }
    async fn ready(&self, c: &str, limit: usize) -> crate::Result<Vec<crate::inbox::Waiting>> {
        self.0.ready(c, limit).await
    }
    async fn waiting(
        &self,
        c: &str,
        which: Option<&Which>,
        limit: usize,
    ) -> crate::Result<Vec<crate::inbox::Waiting>> {
        self.0.waiting(c, which, limit).await
    }
    async fn consumers(&self) -> crate::Result<Vec<String>> {
        self.0.consumers().await
    }
    async fn count(&self, c: &str) -> crate::Result<i64> {
        self.0.count(c).await
    }
    async fn wish(&self, c: &str, which: &Which, wish: Wish) -> crate::Result<u64> {
        self.0.wish(c, which, wish).await
    }
    async fn forget(&self, c: &str, before_ms: i64) -> crate::Result<u64> {
        self.0.forget(c, before_ms).await
    }
}

impl<T: LedgerTx> LedgerTx for UnheardTx<T> {
    type Connection = T::Connection;

    fn connection(&mut self) -> &mut T::Connection {
        self.0.connection()
    }
    async fn advance(
        &mut self,
        c: &str,
        p: &Partition,
        generation: i64,
        next: i64,
    ) -> crate::Result<i64> {
        self.0.advance(c, p, generation, next).await
    }
    async fn last_seqs(
        &mut self,
        c: &str,
        streams: &[Stream],
    ) -> crate::Result<HashMap<Stream, i64>> {
        self.0.last_seqs(c, streams).await
    }
    async fn set_seqs(&mut self, c: &str, seqs: &[(Stream, i64)]) -> crate::Result<()> {
        self.0.set_seqs(c, seqs).await
    }
    async fn note(&mut self, c: &str, ids: &[uuid::Uuid]) -> crate::Result<HashSet<uuid::Uuid>> {
        self.0.note(c, ids).await
    }
    async fn check(&mut self) -> crate::Result<()> {
        self.0.check().await
    }
    async fn park(&mut self, c: &str, waiting: &crate::inbox::Waiting) -> crate::Result<()> {
        self.0.park(c, waiting).await
    }
    async fn unpark(&mut self, c: &str, id: uuid::Uuid) -> crate::Result<bool> {
        self.0.unpark(c, id).await
    }
    async fn commit(self) -> crate::Result<()> {
        self.0.commit().await?;
        if self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 3 == 1 {
            let lost = crate::Error::new(ErrorKind::Unavailable, "the answer was lost");
            return Err(lost.outcome_unknown());
        }
        Ok(())
    }
}

/// Messages that no outbox sent have only the position to tell a repetition: an answer that was lost must
/// neither double them nor be taken for a topic that was made anew.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_commit_whose_answer_is_lost_counts_once() {
    let base = on_lite().await;
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    let bare = |text: String| Outgoing {
        topic: "t".into(),
        key: Some("a".into()),
        headers: Vec::new(),
        payload: text.into_bytes().into(),
    };
    for batch in [1, 5] {
        let name = format!("test-{batch}");
        let options = ConsumerOptions {
            batch,
            name,
            ..options()
        };
        let ledger = Unheard(base.inbox(), Arc::default());
        let shared = Arc::new(broker.clone());
        let consumer = Consumer::start(ledger, shared, effects.clone(), options).await;
        let consumer = consumer.expect("starts");
        let expected: Vec<String> = (0..20).map(|i| format!("{batch}-{i}")).collect();
        for text in &expected {
            publish(&broker, &[bare(text.clone())]).await;
        }
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        eventually("every effect is there once", || async {
            let texts = base.texts("a").await;
            let ours = format!("{batch}-");
            let of_this: Vec<&String> = texts.iter().filter(|t| t.starts_with(&ours)).collect();
            let status = consumer.status();
            assert!(status.halted.is_empty(), "{status:?}");
            if of_this == expected {
                Ok(())
            } else {
                Err(format!("{of_this:?} {status:?}"))
            }
        })
        .await;
        consumer.drain().await;
    }
    base.end().await;
}

/// A message that waits in the database and can't be read any more: its key waits, others go on, and it can be
/// skipped.
async fn waiting_message_that_is_damaged_holds_its_key_only<B: Base>(
    base: B,
    run: impl AsyncFn(&B, &'static str),
) where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    let consumer = start(&base, &broker, &effects, options()).await;
    publish(&broker, &[sent("a", 2, "2"), sent("a", 3, "3")]).await;
    let inbox = base.inbox();
    let both = |waiting: &[crate::inbox::Waiting]| waiting.len() == 2;
    until_waiting(&inbox, both).await;
    let spoil = "UPDATE quorate_inbox_parked SET headers = 'oops' WHERE seq = 2";
    run(&base, spoil).await;
    publish(&broker, &[sent("a", 1, "1"), sent("b", 2, "b2")]).await;
    until_texts(&base, "a", &["1"]).await;
    publish(&broker, &[sent("b", 1, "b1")]).await;
    until_texts(&base, "b", &["b1", "b2"]).await;
    let waiting = until_waiting(&inbox, both).await;
    assert!(waiting[0].reason.contains("headers"), "{waiting:?}");
    let one = Which::Message(waiting[0].id);
    let wished = inbox.wish("test", &one, Wish::Skip).await;
    assert_eq!(wished.expect("wishes"), 1);
    until_texts(&base, "a", &["1", "3"]).await;
    consumer.drain().await;
    base.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_waiting_message_that_is_damaged_holds_its_key_only() {
    let run = async |base: &OnPg, text: &'static str| {
        let done = sqlx::query(text).execute(&base.0.pool).await;
        done.expect("spoils");
    };
    waiting_message_that_is_damaged_holds_its_key_only(on_pg().await, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_mysql_waiting_message_that_is_damaged_holds_its_key_only() {
    let run = async |base: &OnMy, text: &'static str| {
        let done = sqlx::query(text).execute(&base.0.pool).await;
        done.expect("spoils");
    };
    waiting_message_that_is_damaged_holds_its_key_only(on_my().await, run).await;
}

async fn until_waiting(
    inbox: &impl Ledger,
    holds: impl Fn(&[crate::inbox::Waiting]) -> bool,
) -> Vec<crate::inbox::Waiting> {
    eventually("what waits", || async {
        let waiting = inbox
            .waiting("test", None, 10)
            .await
            .map_err(|e| e.to_string())?;
        if holds(&waiting) {
            Ok(waiting)
        } else {
            Err(format!("{waiting:?}"))
        }
    })
    .await
}

/// A consumer that is frozen in the middle of a transaction keeps no locks: another claims its partition.
async fn lock_of_a_frozen_consumer_is_ended<B: Base>(base: B) {
    let inbox = base.inbox();
    let topic = "t".to_owned();
    let partition = Partition { topic, number: 0 };
    let old = inbox.claim("test", &partition).await.expect("claims");
    let mut frozen = inbox.begin(Duration::ZERO).await.expect("begins");
    let moved = frozen.advance("test", &partition, old.generation, 1).await;
    assert_eq!(moved.expect("moves"), -1);
    let new = inbox.claim("test", &partition).await.expect("claims");
    assert_eq!(new.generation, old.generation + 1);
    assert_eq!(new.next, None, "nothing of the frozen one is left");
    let late = frozen.commit().await;
    late.expect_err("it is over");
    base.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_postgres_lock_of_a_frozen_consumer_is_ended() {
    lock_of_a_frozen_consumer_is_ended(on_pg().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_mysql_lock_of_a_frozen_consumer_is_ended() {
    lock_of_a_frozen_consumer_is_ended(on_my().await).await;
}

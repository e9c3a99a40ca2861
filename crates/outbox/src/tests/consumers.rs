//! Consumers over all databases, with the broker in this process.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::{MySqlConnection, PgConnection, SqliteConnection};

use super::support::{Lite, My, Pg, eventually};
use crate::broker::local::{LocalBroker, LocalOptions};
use crate::broker::{Broker, Outbatch, Outgoing};
use crate::inbox::{
    Baseline, Consumer, ConsumerOptions, Failure, Handler, Ledger, MySqlInbox, OnFailure, OnGap,
    PgInbox, SqliteInbox, State,
};
use crate::store::{BoxFuture, Fence, Which, Wish};
use crate::{Delivery, ErrorKind, HEADER_ID, HEADER_SEQ, HEADER_SKIP, HEADER_SOURCE, Level};

/// Writes each message into the table `effects`, and fails as it is told.
#[derive(Default)]
pub struct Effects {
    /// What a payload does: fail so many times, and whether that is final.
    fails: Mutex<HashMap<String, (u32, bool)>>,
    panics: AtomicBool,
    calls: AtomicU32,
}

impl Effects {
    pub fn fail(&self, text: &str, times: u32, last: bool) {
        self.fails.lock().insert(text.into(), (times, last));
    }

    pub fn heal(&self, text: &str) {
        self.fails.lock().remove(text);
    }

    fn judge(&self, text: &str) -> Result<(), Failure> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if text == "panic" && self.panics.load(Ordering::SeqCst) {
            panic!("told to panic");
        }
        let mut fails = self.fails.lock();
        match fails.get_mut(text) {
            Some((times, last)) if *times > 0 => {
                *times -= 1;
                Err(Failure {
                    retry: !*last,
                    reason: "told to fail".into(),
                })
            }
            _ => Ok(()),
        }
    }
}

pub const EFFECT: &str = "INSERT INTO effects (k, text) VALUES ($1, $2)";
pub const EFFECT_MY: &str = "INSERT INTO effects (k, text) VALUES (?, ?)";

macro_rules! effects_of {
    ($connection:ty, $effect:ident) => {
        impl Handler<$connection> for Effects {
            fn handle<'a>(
                &'a self,
                tx: &'a mut $connection,
                message: &'a Delivery,
            ) -> BoxFuture<'a, Result<(), Failure>> {
                Box::pin(async move {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    // The effect first: a failure after it must leave nothing.
                    sqlx::query($effect)
                        .bind(&message.key)
                        .bind(&text)
                        .execute(tx)
                        .await?;
                    self.judge(&text)
                })
            }
        }
    };
}
effects_of!(PgConnection, EFFECT);
effects_of!(MySqlConnection, EFFECT_MY);
effects_of!(SqliteConnection, EFFECT);

/// One of the databases, with a table for effects.
pub trait Base: Sized {
    type Inbox: Ledger;
    fn inbox(&self) -> Self::Inbox;
    /// Payloads of a key, in the order of their effects.
    async fn texts(&self, key: &str) -> Vec<String>;
    async fn end(self);
}

const TABLE_PG: &str = "CREATE TABLE effects (id bigserial PRIMARY KEY, k text, text text)";
const TABLE_MY: &str = "\
    CREATE TABLE effects (id BIGINT AUTO_INCREMENT PRIMARY KEY, k VARCHAR(255), text VARCHAR(255))
    CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";
const TABLE_LITE: &str = "CREATE TABLE effects (id INTEGER PRIMARY KEY, k TEXT, text TEXT)";
const TEXTS: &str = "SELECT text FROM effects WHERE k = $1 ORDER BY id";

pub struct OnPg(pub Pg, pub PgInbox);
pub struct OnMy(pub My, pub MySqlInbox);
pub struct OnLite(pub Lite, pub SqliteInbox);

pub async fn on_pg() -> OnPg {
    let pg = Pg::new().await;
    sqlx::query(TABLE_PG)
        .execute(&pg.pool)
        .await
        .expect("makes a table");
    let inbox = PgInbox::migrate(pg.pool.clone()).await.expect("migrates");
    OnPg(pg, inbox)
}

pub async fn on_my() -> OnMy {
    let my = My::new().await;
    sqlx::query(TABLE_MY)
        .execute(&my.pool)
        .await
        .expect("makes a table");
    let inbox = MySqlInbox::migrate(my.pool.clone())
        .await
        .expect("migrates");
    OnMy(my, inbox)
}

pub async fn on_lite() -> OnLite {
    let lite = Lite::new().await;
    sqlx::query(TABLE_LITE)
        .execute(&lite.pool)
        .await
        .expect("makes a table");
    let inbox = SqliteInbox::migrate(lite.pool.clone())
        .await
        .expect("migrates");
    OnLite(lite, inbox)
}

impl Base for OnPg {
    type Inbox = PgInbox;
    fn inbox(&self) -> PgInbox {
        self.1.clone()
    }
    async fn texts(&self, key: &str) -> Vec<String> {
        sqlx::query_scalar(TEXTS)
            .bind(key)
            .fetch_all(&self.0.pool)
            .await
            .expect("reads")
    }
    async fn end(self) {
        self.0.end().await;
    }
}

impl Base for OnMy {
    type Inbox = MySqlInbox;
    fn inbox(&self) -> MySqlInbox {
        self.1.clone()
    }
    async fn texts(&self, key: &str) -> Vec<String> {
        sqlx::query_scalar("SELECT text FROM effects WHERE k = ? ORDER BY id")
            .bind(key)
            .fetch_all(&self.0.pool)
            .await
            .expect("reads")
    }
    async fn end(self) {
        self.0.end().await;
    }
}

impl Base for OnLite {
    type Inbox = SqliteInbox;
    fn inbox(&self) -> SqliteInbox {
        self.1.clone()
    }
    async fn texts(&self, key: &str) -> Vec<String> {
        sqlx::query_scalar(TEXTS)
            .bind(key)
            .fetch_all(&self.0.pool)
            .await
            .expect("reads")
    }
    async fn end(self) {}
}

/// A message as a relay would send it.
pub fn sent(key: &str, seq: i64, text: &str) -> Outgoing {
    let id = uuid::Uuid::from_u128(xxhash_rust::xxh3::xxh3_128(
        format!("{key}{seq}").as_bytes(),
    ));
    let pair = |name: &str, value: String| (name.to_owned(), value);
    Outgoing {
        topic: "t".into(),
        key: Some(key.into()),
        headers: vec![
            pair(HEADER_ID, id.to_string()),
            pair(HEADER_SEQ, seq.to_string()),
            pair(HEADER_SOURCE, "test".into()),
        ],
        payload: text.as_bytes().to_vec().into(),
    }
}

fn skip(key: &str, seq: i64) -> Outgoing {
    let mut message = sent(key, seq, "");
    message.headers.push((HEADER_SKIP.into(), "1".into()));
    message
}

pub async fn publish(broker: &LocalBroker, messages: &[Outgoing]) {
    let batch = Outbatch {
        source: "test",
        fence: Fence { part: 0, epoch: 1 },
        number: 0,
        messages,
        alone: false,
    };
    let outcomes = broker.publish(batch).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

pub fn options() -> ConsumerOptions {
    ConsumerOptions {
        retry_min: Duration::from_millis(2),
        retry_max: Duration::from_millis(20),
        upkeep: Duration::from_millis(20),
        attempts: 3,
        ..ConsumerOptions::new("test", &["t"])
    }
}

pub async fn start<B: Base>(
    base: &B,
    broker: &LocalBroker,
    effects: &Arc<Effects>,
    options: ConsumerOptions,
) -> Consumer<B::Inbox>
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let broker = Arc::new(broker.clone());
    let started = Consumer::start(base.inbox(), broker, effects.clone(), options).await;
    started.expect("starts")
}

pub async fn until_texts<B: Base>(base: &B, key: &str, expected: &[&str]) {
    eventually(&format!("effects of {key}"), || async {
        let texts = base.texts(key).await;
        if texts == expected {
            Ok(())
        } else {
            Err(format!("{texts:?}, not {expected:?}"))
        }
    })
    .await;
}

pub fn memory() -> LocalBroker {
    LocalBroker::in_memory(LocalOptions::default())
}

/// Runs a test over all databases.
macro_rules! over_all {
    ($check:ident, $pg:ident, $my:ident, $lite:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $pg() {
            $check(on_pg().await).await;
        }
        #[tokio::test(flavor = "multi_thread")]
        async fn $my() {
            $check(on_my().await).await;
        }
        #[tokio::test(flavor = "multi_thread")]
        async fn $lite() {
            $check(on_lite().await).await;
        }
    };
}
pub(super) use over_all;

over_all!(
    repetitions_have_one_effect,
    consumer_postgres_repetitions_have_one_effect,
    consumer_mysql_repetitions_have_one_effect,
    consumer_sqlite_repetitions_have_one_effect
);
async fn repetitions_have_one_effect<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    let consumer = start(&base, &broker, &effects, options()).await;
    let mut free = sent("free", 0, "free");
    free.headers.retain(|(name, _)| name == HEADER_ID);
    let messages = [
        sent("a", 1, "1"),
        sent("a", 2, "2"),
        free.clone(),
        sent("a", 3, "3"),
    ];
    publish(&broker, &messages).await;
    publish(&broker, &messages).await;
    publish(&broker, &[sent("a", 2, "2"), free, sent("a", 4, "4")]).await;
    until_texts(&base, "a", &["1", "2", "3", "4"]).await;
    until_texts(&base, "free", &["free"]).await;
    let status = eventually("all are counted", || async {
        let status = consumer.status();
        if status.applied + status.duplicates == 11 {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    assert_eq!((status.applied, status.duplicates), (5, 6), "{status:?}");
    consumer.drain().await;
    // Another process, from the beginning: the positions and numbers are in the database.
    let again = start(&base, &broker, &effects, options()).await;
    publish(&broker, &[sent("a", 4, "4"), sent("a", 5, "5")]).await;
    until_texts(&base, "a", &["1", "2", "3", "4", "5"]).await;
    again.drain().await;
    base.end().await;
}

over_all!(
    gap_waits_for_what_is_missing,
    consumer_postgres_gap_waits_for_what_is_missing,
    consumer_mysql_gap_waits_for_what_is_missing,
    consumer_sqlite_gap_waits_for_what_is_missing
);
async fn gap_waits_for_what_is_missing<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    let consumer = start(&base, &broker, &effects, options()).await;
    publish(
        &broker,
        &[
            sent("a", 1, "1"),
            sent("a", 4, "4"),
            sent("a", 3, "3"),
            sent("b", 1, "b"),
        ],
    )
    .await;
    until_texts(&base, "b", &["b"]).await;
    eventually("two wait", || async {
        let waiting = base
            .inbox()
            .waiting("test", None, 10)
            .await
            .map_err(|e| e.to_string())?;
        let both = waiting.len() == 2 && waiting.iter().all(|w| w.state == State::Waiting);
        if both {
            Ok(())
        } else {
            Err(format!("{waiting:?}"))
        }
    })
    .await;
    assert_eq!(base.texts("a").await, ["1"]);
    publish(&broker, &[sent("a", 2, "2"), sent("a", 5, "5")]).await;
    until_texts(&base, "a", &["1", "2", "3", "4", "5"]).await;
    publish(&broker, &[skip("a", 6), sent("a", 7, "7")]).await;
    until_texts(&base, "a", &["1", "2", "3", "4", "5", "7"]).await;
    eventually("nothing waits", || async {
        let waiting = base
            .inbox()
            .waiting("test", None, 10)
            .await
            .map_err(|e| e.to_string())?;
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(format!("{waiting:?}"))
        }
    })
    .await;
    consumer.drain().await;
    base.end().await;
}

over_all!(
    failures_are_tried_again_then_dead_then_replayed_in_order,
    consumer_postgres_failures_are_tried_again_then_dead_then_replayed_in_order,
    consumer_mysql_failures_are_tried_again_then_dead_then_replayed_in_order,
    consumer_sqlite_failures_are_tried_again_then_dead_then_replayed_in_order
);
async fn failures_are_tried_again_then_dead_then_replayed_in_order<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    effects.fail("passes", 2, false);
    effects.fail("dies", u32::MAX, false);
    effects.fail("last", u32::MAX, true);
    effects.panics.store(true, Ordering::SeqCst);
    let consumer = start(&base, &broker, &effects, options()).await;
    publish(
        &broker,
        &[
            sent("a", 1, "passes"),
            sent("a", 2, "dies"),
            sent("a", 3, "3"),
            sent("a", 4, "4"),
        ],
    )
    .await;
    publish(
        &broker,
        &[
            sent("b", 1, "last"),
            sent("c", 1, "panic"),
            sent("d", 1, "d"),
        ],
    )
    .await;
    until_texts(&base, "d", &["d"]).await;
    until_texts(&base, "a", &["passes"]).await;
    let inbox = base.inbox();
    let dead = eventually("three are dead, two wait", || async {
        let waiting = inbox
            .waiting("test", None, 10)
            .await
            .map_err(|e| e.to_string())?;
        let dead: Vec<_> = waiting
            .iter()
            .filter(|w| w.state == State::Dead)
            .cloned()
            .collect();
        if waiting.len() == 5 && dead.len() == 3 {
            Ok(dead)
        } else {
            Err(format!("{waiting:?}"))
        }
    })
    .await;
    let of = |key: &str| {
        dead.iter()
            .find(|d| d.message.key.as_deref() == Some(key))
            .expect("dead")
    };
    assert_eq!(of("a").attempts, 3, "as often as the settings say");
    assert_eq!(of("b").attempts, 1, "a final failure is not tried again");
    assert!(of("c").reason.contains("told to panic"), "{:?}", of("c"));
    assert_eq!(
        base.texts("a").await,
        ["passes"],
        "what follows waits, and nothing is half done"
    );
    eventually("an alarm", || async {
        let status = consumer.status();
        if status.alarm.is_some() {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    // Replayed once too early, then in order.
    let stream = Which::Stream {
        topic: "t".into(),
        key: "a".into(),
    };
    assert_eq!(
        inbox
            .wish("test", &stream, Wish::Retry)
            .await
            .expect("wishes"),
        1
    );
    eventually("it failed again", || async {
        let waiting = inbox
            .waiting("test", None, 10)
            .await
            .map_err(|e| e.to_string())?;
        let again = waiting
            .iter()
            .any(|w| w.attempts == 4 && w.wish == Wish::None);
        if again {
            Ok(())
        } else {
            Err(format!("{waiting:?}"))
        }
    })
    .await;
    effects.heal("dies");
    inbox
        .wish("test", &stream, Wish::Retry)
        .await
        .expect("wishes");
    until_texts(&base, "a", &["passes", "dies", "3", "4"]).await;
    let one = Which::Message(of("b").id);
    assert_eq!(
        inbox.wish("test", &one, Wish::Skip).await.expect("wishes"),
        1
    );
    effects.panics.store(false, Ordering::SeqCst);
    inbox
        .wish("test", &Which::Message(of("c").id), Wish::Retry)
        .await
        .expect("wishes");
    publish(&broker, &[sent("b", 2, "b2"), sent("c", 2, "c2")]).await;
    until_texts(&base, "b", &["b2"]).await;
    until_texts(&base, "c", &["panic", "c2"]).await;
    consumer.drain().await;
    assert!(
        inbox
            .waiting("test", None, 10)
            .await
            .expect("lists")
            .is_empty()
    );
    base.end().await;
}

over_all!(
    policies_halt_skip_and_accept,
    consumer_postgres_policies_halt_skip_and_accept,
    consumer_mysql_policies_halt_skip_and_accept,
    consumer_sqlite_policies_halt_skip_and_accept
);
async fn policies_halt_skip_and_accept<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let effects = Arc::new(Effects::default());
    effects.fail("dies", u32::MAX, true);
    let named = |name: &str| ConsumerOptions {
        name: name.into(),
        ..options()
    };
    let halted = async |broker: &LocalBroker, options: ConsumerOptions, says: &str| {
        let consumer = start(&base, broker, &effects, options).await;
        eventually("it halts", || async {
            let status = consumer.status();
            let said = status.halted.iter().any(|(_, why)| why.contains(says));
            if said && status.alarm.is_some() {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await;
        consumer.drain().await;
    };
    let broker = memory();
    publish(&broker, &[sent("h", 1, "h1"), sent("h", 3, "h3")]).await;
    halted(
        &broker,
        ConsumerOptions {
            on_gap: OnGap::Halt,
            ..named("gap")
        },
        "2 is missing",
    )
    .await;
    until_texts(&base, "h", &["h1"]).await;
    let broker = memory();
    publish(&broker, &[sent("f", 1, "dies"), sent("f", 2, "f2")]).await;
    let on_failure = OnFailure::Halt;
    halted(
        &broker,
        ConsumerOptions {
            on_failure,
            ..named("fail")
        },
        "told to fail",
    )
    .await;
    until_texts(&base, "f", &[]).await;
    let on_failure = OnFailure::SkipMessage;
    let consumer = start(
        &base,
        &broker,
        &effects,
        ConsumerOptions {
            on_failure,
            ..named("skip")
        },
    )
    .await;
    until_texts(&base, "f", &["f2"]).await;
    let passed = base.inbox().waiting("skip", None, 10).await.expect("lists");
    assert_eq!(passed[0].state, State::Passed, "{passed:?}");
    effects.heal("dies");
    base.inbox()
        .wish("skip", &Which::Message(passed[0].id), Wish::Retry)
        .await
        .expect("wishes");
    until_texts(&base, "f", &["f2", "dies"]).await;
    consumer.drain().await;
    let broker = memory();
    publish(
        &broker,
        &[sent("g", 5, "g5"), sent("g", 8, "g8"), sent("g", 7, "g7")],
    )
    .await;
    let (on_gap, baseline) = (OnGap::Accept, Baseline::FirstSeen);
    let accepting = ConsumerOptions {
        on_gap,
        on_failure,
        baseline,
        ..named("accept")
    };
    let consumer = start(&base, &broker, &effects, accepting).await;
    until_texts(&base, "g", &["g5", "g8"]).await;
    eventually("the late one is dropped", || async {
        let status = consumer.status();
        if status.duplicates == 1 {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    consumer.drain().await;
    base.end().await;
}

over_all!(
    a_newer_claim_fences,
    consumer_postgres_newer_claim_fences,
    consumer_mysql_newer_claim_fences,
    consumer_sqlite_newer_claim_fences
);
async fn a_newer_claim_fences<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    use crate::inbox::LedgerTx;
    let inbox = base.inbox();
    let partition = crate::Partition {
        topic: "t".into(),
        number: 0,
    };
    let old = inbox.claim("c", &partition).await.expect("claims");
    let new = inbox.claim("c", &partition).await.expect("claims");
    assert_eq!((old.next, new.generation), (None, old.generation + 1));
    let mut tx = inbox.begin(Duration::from_secs(60)).await.expect("begins");
    let refused = tx.advance("c", &partition, old.generation, 5).await;
    assert_eq!(refused.expect_err("fenced").kind(), ErrorKind::Fenced);
    drop(tx);
    let mut tx = inbox.begin(Duration::from_secs(60)).await.expect("begins");
    tx.advance("c", &partition, new.generation, 5)
        .await
        .expect("moves");
    tx.commit().await.expect("commits");
    let third = inbox.claim("c", &partition).await.expect("claims");
    assert_eq!(third.next, Some(5));
    base.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_members_come_and_go_and_every_effect_is_there_once() {
    members_come_and_go(on_pg().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_mysql_members_come_and_go_and_every_effect_is_there_once() {
    members_come_and_go(on_my().await).await;
}

async fn members_come_and_go<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    let mut consumers = Vec::new();
    for round in 0..30i64 {
        let batch: Vec<Outgoing> = (0..12)
            .map(|k| sent(&format!("k{k}"), round + 1, &round.to_string()))
            .collect();
        publish(&broker, &batch).await;
        match round % 6 {
            0 | 2 => consumers.push(start(&base, &broker, &effects, options()).await),
            3 => drop(consumers.remove(0)),
            5 if consumers.len() > 1 => consumers.remove(0).drain().await,
            _ => {}
        }
    }
    let expected: Vec<String> = (0..30).map(|r| r.to_string()).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    for k in 0..12 {
        until_texts(&base, &format!("k{k}"), &expected).await;
    }
    for consumer in consumers {
        consumer.drain().await;
    }
    base.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_levels_differ_in_what_they_repeat() {
    levels_differ(on_pg().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_mysql_levels_differ_in_what_they_repeat() {
    levels_differ(on_my().await).await;
}

async fn levels_differ<B: Base>(base: B)
where
    Effects: Handler<<B::Inbox as Ledger>::Connection>,
{
    let effects = Arc::new(Effects::default());
    let twice = [sent("a", 1, "1"), sent("a", 1, "1")];
    for (level, expected) in [
        (Level::AtLeastOnce, &["1", "1"][..]),
        (Level::EffectivelyOnce, &["1", "1", "1"]),
        (Level::AtMostOnce, &["1", "1", "1", "1", "1"]),
    ] {
        let broker = memory();
        publish(&broker, &twice).await;
        let name = format!("{level:?}");
        let consumer = start(
            &base,
            &broker,
            &effects,
            ConsumerOptions {
                name,
                level,
                ..options()
            },
        )
        .await;
        until_texts(&base, "a", expected).await;
        consumer.drain().await;
        assert_eq!(base.texts("a").await, expected);
    }
    // At most once: a failure loses the message.
    let broker = memory();
    effects.fail("gone", u32::MAX, false);
    publish(&broker, &[sent("z", 1, "gone"), sent("z", 2, "z2")]).await;
    let level = Level::AtMostOnce;
    let consumer = start(
        &base,
        &broker,
        &effects,
        ConsumerOptions { level, ..options() },
    )
    .await;
    until_texts(&base, "z", &["z2"]).await;
    consumer.drain().await;
    base.end().await;
}

/// A handler whose transaction is broken and who says it went well must not lose the message. MySQL goes on with a
/// transaction in which a statement failed, but not with one that a deadlock has ended.
struct Swallows(AtomicBool);

macro_rules! swallows {
    ($connection:ty, $effect:ident, $breaks:literal) => {
        impl Handler<$connection> for Swallows {
            fn handle<'a>(
                &'a self,
                tx: &'a mut $connection,
                message: &'a Delivery,
            ) -> BoxFuture<'a, Result<(), Failure>> {
                Box::pin(async move {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    sqlx::query($effect)
                        .bind(&message.key)
                        .bind(&text)
                        .execute(&mut *tx)
                        .await?;
                    if self.0.swap(false, Ordering::SeqCst) {
                        let _ = sqlx::raw_sql($breaks).execute(tx).await;
                    }
                    Ok(())
                })
            }
        }
    };
}
swallows!(PgConnection, EFFECT, "SELECT * FROM no_such_table");
swallows!(MySqlConnection, EFFECT_MY, "ROLLBACK");

async fn broken_transaction_is_not_taken_for_success<B: Base>(base: B)
where
    Swallows: Handler<<B::Inbox as Ledger>::Connection>,
{
    let broker = memory();
    let mut free = sent("free", 0, "free");
    free.headers.retain(|(name, _)| name == HEADER_ID);
    for (at, message) in [sent("a", 1, "1"), free].into_iter().enumerate() {
        let (key, text) = (message.key.clone().expect("a key"), message.payload.clone());
        let text = String::from_utf8_lossy(&text).into_owned();
        publish(&broker, &[message]).await;
        let options = ConsumerOptions {
            name: format!("c{at}"),
            ..options()
        };
        let handler = Arc::new(Swallows(AtomicBool::new(true)));
        let shared = Arc::new(broker.clone());
        let consumer = Consumer::start(base.inbox(), shared, handler, options)
            .await
            .expect("starts");
        eventually("the effect is there", || async {
            let texts = base.texts(&key).await;
            if texts.contains(&text) {
                Ok(())
            } else {
                Err(format!("{texts:?}"))
            }
        })
        .await;
        consumer.drain().await;
    }
    base.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_postgres_broken_transaction_is_not_taken_for_success() {
    broken_transaction_is_not_taken_for_success(on_pg().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_mysql_ended_transaction_is_not_taken_for_success() {
    broken_transaction_is_not_taken_for_success(on_my().await).await;
}

//! Fences: what comes twice, late, in the wrong order, or at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_outbox::inbox::{Failure, Handler};
use quorate_outbox::store::BoxFuture;
use quorate_outbox::{Delivery, Partition};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::shop::Shop;
use super::support::Pg;
use crate::Op;
use crate::machine::Outcome;
use crate::message::{Command, Reply};
use crate::participant::locks::{Grant, Locks, reread};
use crate::participant::{External, ExternalParticipant, Participant, PgFences};

struct Bench {
    pg: Pg,
    fences: PgFences,
}

impl Bench {
    async fn new() -> Bench {
        let pg = Pg::new().await;
        let make =
            "CREATE TABLE effects (saga TEXT NOT NULL, branch TEXT NOT NULL, op TEXT NOT NULL)";
        sqlx::raw_sql(make).execute(&pg.pool).await.expect("makes");
        let fences = PgFences::migrate(pg.outbox().await)
            .await
            .expect("migrates");
        Bench { pg, fences }
    }

    fn shop(&self) -> Participant<PgFences, Shop> {
        Participant::new(self.fences.clone(), Shop::default())
    }

    async fn effects(&self) -> Vec<String> {
        let rows = sqlx::query("SELECT op FROM effects")
            .fetch_all(&self.pg.pool)
            .await;
        rows.expect("reads").iter().map(|row| row.get(0)).collect()
    }

    /// What was enqueued since the last look: replies, and commands to come again.
    async fn sent(&self) -> Vec<(String, Vec<u8>)> {
        let text = "WITH gone AS (DELETE FROM quorate_outbox RETURNING id, topic, payload)
            SELECT topic, payload FROM gone ORDER BY id";
        let rows = sqlx::query(text)
            .fetch_all(&self.pg.pool)
            .await
            .expect("reads");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn replies(&self) -> Vec<Outcome> {
        let sent = self.sent().await;
        let replies = sent.iter().filter(|(topic, _)| topic == "replies");
        let read = |(_, payload): &(String, Vec<u8>)| {
            serde_json::from_slice::<Reply>(payload)
                .expect("a reply")
                .outcome
        };
        replies.map(read).collect()
    }
}

fn command(saga: Uuid, op: Op, input: Value) -> Delivery {
    let command = Command {
        saga,
        name: "s".into(),
        key: "k".into(),
        started_ms: 5,
        branch: "b".into(),
        op,
        attempt: 1,
        input,
        output: None,
        reply_to: "replies".into(),
    };
    let message = command
        .message("shop", Some("00-ab-cd-01"))
        .expect("a message");
    Delivery {
        partition: Partition {
            topic: "shop".into(),
            number: 0,
        },
        offset: 0,
        assignment: 1,
        key: message.key,
        headers: message.headers,
        payload: message.payload,
    }
}

async fn give(
    pool: &PgPool,
    handler: &impl Handler<PgConnection>,
    delivery: &Delivery,
) -> Result<(), Failure> {
    let mut tx = pool.begin().await.expect("begins");
    handler.handle(&mut tx, delivery).await?;
    tx.commit().await.expect("commits");
    Ok(())
}

fn done() -> Outcome {
    Outcome::Done(Value::Null)
}

#[tokio::test]
async fn tcc_empty_cancel_does_nothing_and_a_late_try_is_barred() {
    let bench = Bench::new().await;
    let (shop, saga) = (bench.shop(), Uuid::now_v7());
    for op in [Op::Undo, Op::Act, Op::Undo] {
        let delivery = command(saga, op, json!({}));
        give(&bench.pg.pool, &shop, &delivery)
            .await
            .expect("handles");
    }
    let replies = bench.replies().await;
    assert_eq!(replies[0], done(), "an empty cancel is a cancel");
    assert!(matches!(&replies[1], Outcome::Refused(why) if why.contains("before")));
    assert_eq!(replies[2], done());
    assert!(
        bench.effects().await.is_empty(),
        "nothing was done, nothing undone"
    );
    bench.pg.end().await;
}

#[tokio::test]
async fn tcc_repeated_commands_have_one_effect_and_the_same_answer() {
    let bench = Bench::new().await;
    let (shop, saga) = (bench.shop(), Uuid::now_v7());
    for op in [Op::Act, Op::Act, Op::Confirm, Op::Confirm, Op::Act] {
        let delivery = command(saga, op, json!({}));
        give(&bench.pg.pool, &shop, &delivery)
            .await
            .expect("handles");
    }
    let tried = Outcome::Done(json!("b"));
    let expected = [tried.clone(), tried.clone(), done(), done(), tried];
    assert_eq!(bench.replies().await, expected);
    assert_eq!(bench.effects().await, ["act", "confirm"]);
    bench.pg.end().await;
}

#[tokio::test]
async fn tcc_refused_try_leaves_nothing_and_unknown_is_tried_anew() {
    let bench = Bench::new().await;
    let (shop, saga) = (bench.shop(), Uuid::now_v7());
    for (saga, input) in [
        (saga, json!({"refuse": "b"})),
        (Uuid::now_v7(), json!({"unknown": "b"})),
    ] {
        let delivery = command(saga, Op::Act, input);
        give(&bench.pg.pool, &shop, &delivery)
            .await
            .expect("handles");
        assert!(!matches!(bench.replies().await[0], Outcome::Done(_)));
        assert!(bench.effects().await.is_empty());
    }
    let unknown = Uuid::now_v7();
    for input in [json!({"unknown": "b"}), json!({})] {
        let delivery = command(unknown, Op::Act, input);
        give(&bench.pg.pool, &shop, &delivery)
            .await
            .expect("handles");
    }
    assert_eq!(bench.effects().await, ["act"], "the second try is one");
    bench.pg.end().await;
}

#[tokio::test]
async fn tcc_confirm_without_a_try_is_refused_and_can_come_again() {
    let bench = Bench::new().await;
    let (shop, saga) = (bench.shop(), Uuid::now_v7());
    for op in [Op::Confirm, Op::Act, Op::Confirm] {
        let delivery = command(saga, op, json!({}));
        give(&bench.pg.pool, &shop, &delivery)
            .await
            .expect("handles");
    }
    let replies = bench.replies().await;
    assert!(matches!(replies[0], Outcome::Refused(_)));
    assert_eq!(replies[2], done());
    bench.pg.end().await;
}

/// dtm #458: what was done, and whose answer was lost, is asked for again. #559: the second cancel is counted as another
/// call, so that its barrier lets it pass; and the barrier is not in the transaction of the effect. Here the key is
/// (saga, branch, operation) whatever try it is and whoever gets it, and fence and effect commit together.
#[tokio::test]
async fn tcc_dtm_458_559_answer_that_was_lost_brings_no_second_effect_and_no_second_cancel() {
    let bench = Bench::new().await;
    let saga = Uuid::now_v7();
    // It dies before it commits: no fence stays without its effect.
    let act = command(saga, Op::Act, json!({}));
    let mut tx = bench.pg.pool.begin().await.expect("begins");
    bench.shop().handle(&mut tx, &act).await.expect("handles");
    tx.rollback().await.expect("rolls back");
    assert!(bench.effects().await.is_empty());
    for op in [Op::Act, Op::Undo] {
        for attempt in 1..=3 {
            let mut again = Command::read(&command(saga, op, json!({}))).expect("a command");
            again.attempt = attempt;
            let mut delivery = command(saga, op, json!({}));
            delivery.payload = serde_json::to_vec(&again).expect("encodes").into();
            // Each time another process.
            give(&bench.pg.pool, &bench.shop(), &delivery)
                .await
                .expect("handles");
        }
    }
    let tried = Outcome::Done(json!("b"));
    let expected = [tried.clone(), tried.clone(), tried, done(), done(), done()];
    assert_eq!(bench.replies().await, expected, "the same answer each time");
    assert_eq!(bench.effects().await, ["act", "undo"]);
    bench.pg.end().await;
}

/// Seata #6679: a lock on a gap at repeatable read was a deadlock of try and cancel. Here tries and cancels of many
/// sagas come at once, many times, two of one branch at the same time too, and none fails.
#[tokio::test(flavor = "multi_thread")]
async fn tcc_seata_6679_try_and_cancel_at_once_never_deadlock() {
    let bench = Arc::new(Bench::new().await);
    let shop = Arc::new(bench.shop());
    let sagas: Vec<Uuid> = (0..40).map(|_| Uuid::now_v7()).collect();
    let mut tasks = Vec::new();
    for saga in &sagas {
        for op in [Op::Act, Op::Undo, Op::Act, Op::Undo] {
            let (bench, shop) = (Arc::clone(&bench), Arc::clone(&shop));
            let delivery = command(*saga, op, json!({}));
            tasks.push(tokio::spawn(async move {
                give(&bench.pg.pool, shop.as_ref(), &delivery).await
            }));
        }
    }
    for task in tasks {
        task.await
            .expect("no panic")
            .expect("no deadlock, no failure");
    }
    let effects = bench.effects().await;
    let count = |op: &str| effects.iter().filter(|effect| *effect == op).count();
    assert_eq!(
        count("act"),
        count("undo"),
        "every try that came first was cancelled"
    );
    assert!(count("act") <= sagas.len());
    let bench = Arc::into_inner(bench).expect("the tasks have ended");
    bench.pg.end().await;
}

/// A bank that is not in our database.
#[derive(Clone, Default)]
struct Bank {
    acts: Arc<AtomicU64>,
    undos: Arc<AtomicU64>,
}

impl External for Bank {
    fn act<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Outcome> {
        self.acts.fetch_add(1, Ordering::SeqCst);
        let fails = command.input["fails"] == json!(true);
        Box::pin(async move {
            if fails {
                return Outcome::Refused("the bank said no, and kept the money".into());
            }
            Outcome::Done(Value::Null)
        })
    }

    fn undo<'a>(&'a self, _: &'a Command) -> BoxFuture<'a, Outcome> {
        self.undos.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Outcome::Done(Value::Null) })
    }
}

/// Seata #4530 #5256 #6374: a try outside of the database that failed never got its cancel.
#[tokio::test]
async fn tcc_seata_4530_5256_6374_failed_try_outside_the_database_is_cancelled() {
    let bench = Bench::new().await;
    let bank = Bank::default();
    let participant = ExternalParticipant::new(bench.fences.clone(), bank.clone());
    let saga = Uuid::now_v7();
    let act = command(saga, Op::Act, json!({"fails": true}));
    give(&bench.pg.pool, &participant, &act)
        .await
        .expect("handles");
    let sent = bench.sent().await;
    assert_eq!(
        (sent.len(), sent[0].0.as_str()),
        (1, "shop"),
        "it is noted, and comes again"
    );
    assert_eq!(bank.acts.load(Ordering::SeqCst), 0);
    give(&bench.pg.pool, &participant, &act)
        .await
        .expect("handles");
    assert_eq!(bank.acts.load(Ordering::SeqCst), 1);
    assert!(matches!(bench.replies().await[0], Outcome::Refused(_)));
    for _ in 0..2 {
        let undo = command(saga, Op::Undo, json!({}));
        give(&bench.pg.pool, &participant, &undo)
            .await
            .expect("handles");
    }
    assert_eq!(
        bank.undos.load(Ordering::SeqCst),
        1,
        "the cancel came, once"
    );
    // Of what never was attempted nothing is cancelled.
    let undo = command(Uuid::now_v7(), Op::Undo, json!({}));
    give(&bench.pg.pool, &participant, &undo)
        .await
        .expect("handles");
    assert_eq!(bank.undos.load(Ordering::SeqCst), 1);
    bench.pg.end().await;
}

/// The process dies between the note of the attempt and the call: the cancel comes all the same.
#[tokio::test]
async fn tcc_attempt_that_was_only_noted_is_cancelled_and_barred() {
    let bench = Bench::new().await;
    let bank = Bank::default();
    let participant = ExternalParticipant::new(bench.fences.clone(), bank.clone());
    let saga = Uuid::now_v7();
    for op in [Op::Act, Op::Undo, Op::Act] {
        let delivery = command(saga, op, json!({}));
        give(&bench.pg.pool, &participant, &delivery)
            .await
            .expect("handles");
    }
    assert_eq!(bank.undos.load(Ordering::SeqCst), 1);
    assert_eq!(
        bank.acts.load(Ordering::SeqCst),
        0,
        "after the cancel nothing is called"
    );
    bench.pg.end().await;
}

#[tokio::test]
async fn participant_message_that_is_no_command_is_refused_for_good() {
    let bench = Bench::new().await;
    let mut delivery = command(Uuid::now_v7(), Op::Act, json!({}));
    delivery.payload = "no command".into();
    let failure = give(&bench.pg.pool, &bench.shop(), &delivery)
        .await
        .expect_err("refused");
    assert!(!failure.retry);
    assert!(failure.reason.contains("`shop`"), "{}", failure.reason);
    bench.pg.end().await;
}

#[tokio::test]
async fn lock_older_saga_waits_and_younger_one_dies() {
    let bench = Bench::new().await;
    let asks = |started_ms: i64| Command {
        started_ms,
        ..Command::read(&command(Uuid::now_v7(), Op::Act, json!({}))).expect("a command")
    };
    let (middle, older, younger) = (asks(5), asks(1), asks(9));
    let mut tx = bench.pg.pool.begin().await.expect("begins");
    let fences = &bench.fences;
    let first = fences.lock(&mut tx, "seat 7", &middle).await.expect("asks");
    let again = fences.lock(&mut tx, "seat 7", &middle).await.expect("asks");
    assert_eq!((first, again), (Grant::Held, Grant::Held));
    let waits = fences.lock(&mut tx, "seat 7", &older).await.expect("asks");
    assert_eq!(waits, Grant::Wait(middle.saga));
    assert!(matches!(waits.refusal("seat 7"), Some(Outcome::Unknown(_))));
    let dies = fences
        .lock(&mut tx, "seat 7", &younger)
        .await
        .expect("asks");
    assert_eq!(dies, Grant::Die(middle.saga));
    assert!(matches!(dies.refusal("seat 7"), Some(Outcome::Refused(_))));
    assert_eq!(
        fences
            .release(&mut tx, middle.saga)
            .await
            .expect("gives back"),
        1
    );
    let free = fences
        .lock(&mut tx, "seat 7", &younger)
        .await
        .expect("asks");
    assert_eq!(free, Grant::Held);
    tx.commit().await.expect("commits");
    assert_eq!(reread("price", 3, Some(3)), None);
    assert!(matches!(
        reread("price", 3, Some(4)),
        Some(Outcome::Refused(_))
    ));
    assert!(matches!(
        reread("price", 3, None),
        Some(Outcome::Refused(_))
    ));
    bench.pg.end().await;
}

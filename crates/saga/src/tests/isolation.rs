//! What sagas lack, isolation, and what semantic locks give back of it. The same two interleavings are forced with
//! and without locks: without them a read is dirty and an update is lost; with them neither happens.
//!
//! An interleaving is forced by gates: a step answers `Unknown`, and is tried again, until its gate is open.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_outbox::Consumer;
use quorate_outbox::inbox::{Failure, PgInbox, SqliteInbox};
use serde_json::{Value, json};

use super::shop::{Place, World};
use super::support::eventually;
use crate::machine::{Event, Status};
use crate::message::Command;
use crate::participant::locks::{Grant, Locks};
use crate::participant::{Answer, Participant, PgFences, Service, SqliteFences, options};
use crate::{Begin, Coordinator, Outcome, Registry, Retry, Saga, Step};

const TOPIC: &str = "ledger";
const TABLE: &str = "CREATE TABLE account (name TEXT PRIMARY KEY, amount BIGINT NOT NULL)";
/// What the account has at first.
const FIRST: i64 = 100;

/// Gates that are open, by key of the saga and branch.
#[derive(Clone, Default)]
struct Gates(Arc<Mutex<HashSet<String>>>);

impl Gates {
    fn open(&self, key: &str, branch: &str) {
        self.0.lock().insert(format!("{key}/{branch}"));
    }

    fn is_open(&self, command: &Command) -> bool {
        let name = format!("{}/{}", command.key, command.branch);
        let is_gated = command.input["gates"].as_array().is_some_and(|gates| {
            gates
                .iter()
                .any(|gate| gate.as_str() == Some(command.branch.as_str()))
        });
        !is_gated || self.0.lock().contains(&name)
    }
}

/// One account. `locks` says whether a saga that is at work on it locks it.
struct Ledger<F> {
    fences: F,
    gates: Gates,
    locks: bool,
}

macro_rules! ledger {
    ($name:ident, $fences:ty, $connection:ty) => {
        mod $name {
            use super::*;

            async fn amount(tx: &mut $connection) -> Result<i64, Failure> {
                let read = sqlx::query_scalar("SELECT amount FROM account");
                Ok(read.fetch_one(tx).await?)
            }

            async fn set(tx: &mut $connection, amount: i64) -> Result<Outcome, Failure> {
                let write = sqlx::query("UPDATE account SET amount = $1").bind(amount);
                write.execute(tx).await?;
                Ok(Outcome::Done(Value::Null))
            }

            impl Ledger<$fences> {
                async fn locked(
                    &self,
                    tx: &mut $connection,
                    command: &Command,
                ) -> Result<Option<Outcome>, Failure> {
                    if !self.locks {
                        return Ok(None);
                    }
                    let grant: Grant = self.fences.lock(tx, "account", command).await?;
                    Ok(grant.refusal("account"))
                }

                async fn free(
                    &self,
                    tx: &mut $connection,
                    command: &Command,
                ) -> Result<(), Failure> {
                    if self.locks {
                        self.fences.release(tx, command.saga).await?;
                    }
                    Ok(())
                }

                async fn done(
                    &self,
                    tx: &mut $connection,
                    command: &Command,
                ) -> Result<Outcome, Failure> {
                    if !self.gates.is_open(command) {
                        return Ok(Outcome::Unknown("its gate is shut".into()));
                    }
                    if let Some(refusal) = self.locked(tx, command).await? {
                        return Ok(refusal);
                    }
                    let by = command.input["by"].as_i64().unwrap_or(0);
                    let now = amount(tx).await?;
                    match command.branch.as_str() {
                        // An update in two steps: what was read is written by the second, changed.
                        "read" => return Ok(Outcome::Done(json!(now))),
                        "write" => {
                            let read = command.input["read"].as_i64().unwrap_or(0);
                            set(tx, read + by).await?;
                        }
                        // An update that does not go by what was read: it commutes with others.
                        "add" => {
                            let add = sqlx::query("UPDATE account SET amount = amount + $1");
                            add.bind(by).execute(&mut *tx).await?;
                        }
                        // A deposit that may be taken back.
                        "deposit" => return set(tx, now + by).await,
                        "confirm" => return Ok(Outcome::Refused("the cheque bounced".into())),
                        // Only what is there can be spent.
                        _ if now < by => return Ok(Outcome::Refused("not enough".into())),
                        _ => {
                            set(tx, now - by).await?;
                        }
                    }
                    self.free(tx, command).await?;
                    Ok(Outcome::Done(Value::Null))
                }
            }

            impl Service<$connection> for Ledger<$fences> {
                fn act<'a>(&'a self, tx: &'a mut $connection, command: &'a Command) -> Answer<'a> {
                    Box::pin(self.done(tx, command))
                }

                fn undo<'a>(&'a self, tx: &'a mut $connection, command: &'a Command) -> Answer<'a> {
                    Box::pin(async move {
                        if command.branch == "deposit" {
                            let by = command.input["by"].as_i64().unwrap_or(0);
                            let now = amount(tx).await?;
                            set(tx, now - by).await?;
                        }
                        self.free(tx, command).await?;
                        Ok(Outcome::Done(Value::Null))
                    })
                }
            }
        }
    };
}

ledger!(pg, PgFences, sqlx::PgConnection);
ledger!(lite, SqliteFences, sqlx::SqliteConnection);

fn registry() -> Registry {
    let retry = Retry {
        attempts: 100_000,
        first: Duration::from_millis(5),
        max: Duration::from_millis(20),
    };
    let step = |name: &str| Step::new(name, TOPIC).retry(retry).undo_retry(retry);
    let with_read = |context: &crate::Context<'_>| {
        let mut input = context.input.clone();
        input["read"] = context
            .outputs
            .get("read")
            .map_or(Value::Null, |v| (*v).clone());
        input
    };
    let update = Saga::named("update").step(step("read"));
    let update = update.pivot(step("write").input(with_read)).build();
    let sum = Saga::named("sum").step(step("read"));
    let sum = sum.pivot(step("add")).build();
    let deposit = Saga::named("deposit").step(step("deposit"));
    let deposit = deposit.pivot(step("confirm")).build();
    let spend = Saga::named("spend").pivot(step("spend")).build();
    Registry::new()
        .with(update.expect("builds"))
        .and_then(|all| all.with(sum?)?.with(deposit?)?.with(spend?))
        .expect("a registry")
}

/// A world with the ledger as one more participant.
struct Scene {
    world: World,
    gates: Gates,
    coordinator: Coordinator,
    _ledger: Box<dyn Send + Sync>,
}

impl Scene {
    async fn new(on_postgres: bool, locks: bool) -> Scene {
        let world = match on_postgres {
            true => World::pg(registry(), false).await,
            false => World::lite(registry(), false).await,
        };
        let gates = Gates::default();
        let first = format!("{TABLE}; INSERT INTO account VALUES ('till', {FIRST})");
        let first = sqlx::AssertSqlSafe(first);
        let (settings, broker) = (options("ledger", &[TOPIC]), world.broker.clone());
        let ledger: Box<dyn Send + Sync> = match &world.place {
            Place::Pg(pg) => {
                sqlx::raw_sql(first).execute(&pg.pool).await.expect("makes");
                let fences = PgFences::migrate(pg.outbox().await)
                    .await
                    .expect("migrates");
                let inbox = PgInbox::migrate(pg.pool.clone()).await.expect("migrates");
                let service = Ledger {
                    fences: fences.clone(),
                    gates: gates.clone(),
                    locks,
                };
                let handler = Arc::new(Participant::new(fences, service));
                let started = Consumer::start(inbox, broker, handler, settings).await;
                Box::new(started.expect("starts"))
            }
            Place::Lite(lite) => {
                sqlx::raw_sql(first)
                    .execute(&lite.pool)
                    .await
                    .expect("makes");
                let fences = SqliteFences::migrate(lite.outbox().await)
                    .await
                    .expect("migrates");
                let inbox = SqliteInbox::migrate(lite.pool.clone())
                    .await
                    .expect("migrates");
                let service = Ledger {
                    fences: fences.clone(),
                    gates: gates.clone(),
                    locks,
                };
                let handler = Arc::new(Participant::new(fences, service));
                let started = Consumer::start(inbox, broker, handler, settings).await;
                Box::new(started.expect("starts"))
            }
        };
        let coordinator = world.coordinator(&world.registry).await;
        Scene {
            world,
            gates,
            coordinator,
            _ledger: ledger,
        }
    }

    async fn begin(&self, name: &str, by: i64, gates: &[&str]) {
        let begin = Begin::new(name, self.key(name, by), json!({"by": by, "gates": gates}));
        self.coordinator
            .sagas()
            .begin(&begin)
            .await
            .expect("begins");
    }

    fn key(&self, name: &str, by: i64) -> String {
        format!("{name}-{by}")
    }

    fn open(&self, name: &str, by: i64, branch: &str) {
        self.gates.open(&self.key(name, by), branch);
    }

    /// Waits until an event of that saga is as wanted.
    async fn until(&self, name: &str, by: i64, what: &str, wanted: impl Fn(&Event) -> bool) {
        let (operations, key) = (self.world.operations(), self.key(name, by));
        eventually(&format!("{key}: {what}"), || async {
            let shown = operations.show_key(name, &key).await.expect("shows");
            match shown.history.iter().any(|entry| wanted(&entry.event)) {
                true => Ok(()),
                false => Err(shown.record.log),
            }
        })
        .await;
    }

    async fn first_step_is_done(&self, name: &str, by: i64) {
        self.until(name, by, "its first step is done", |event| {
            matches!(event, Event::Done(0, ..))
        })
        .await;
    }

    async fn ended(&self, name: &str, by: i64) -> Status {
        self.until(name, by, "it has ended", |event| {
            matches!(event, Event::Ended(_))
        })
        .await;
        let shown = self
            .world
            .operations()
            .show_key(name, &self.key(name, by))
            .await;
        shown.expect("shows").record.status
    }

    /// What the account has, once all have ended.
    async fn end(self) -> i64 {
        let text = "SELECT amount FROM account";
        let amount: i64 = match &self.world.place {
            Place::Pg(pg) => sqlx::query_scalar(text)
                .fetch_one(&pg.pool)
                .await
                .expect("reads"),
            Place::Lite(lite) => sqlx::query_scalar(text)
                .fetch_one(&lite.pool)
                .await
                .expect("reads"),
        };
        assert!(self.coordinator.drain().await);
        drop(self._ledger);
        self.world.end().await;
        amount
    }
}

const BOTH: [bool; 2] = [false, true];

/// Both read 100; one writes 120, then the other 110. Both have completed, and 20 are gone.
#[tokio::test(flavor = "multi_thread")]
async fn isolation_without_locks_an_update_is_lost() {
    for on_postgres in BOTH {
        let scene = Scene::new(on_postgres, false).await;
        scene.begin("update", 10, &["write"]).await;
        scene.first_step_is_done("update", 10).await;
        scene.begin("update", 20, &[]).await;
        assert_eq!(scene.ended("update", 20).await, Status::Completed);
        scene.open("update", 10, "write");
        assert_eq!(scene.ended("update", 10).await, Status::Completed);
        assert_eq!(
            scene.end().await,
            FIRST + 10,
            "the anomaly, on PostgreSQL: {on_postgres}"
        );
    }
}

/// The same interleaving without locks, of updates that commute.
#[tokio::test(flavor = "multi_thread")]
async fn isolation_without_locks_updates_that_commute_are_not_lost() {
    for on_postgres in BOTH {
        let scene = Scene::new(on_postgres, false).await;
        scene.begin("sum", 10, &["add"]).await;
        scene.first_step_is_done("sum", 10).await;
        scene.begin("sum", 20, &[]).await;
        assert_eq!(scene.ended("sum", 20).await, Status::Completed);
        scene.open("sum", 10, "add");
        assert_eq!(scene.ended("sum", 10).await, Status::Completed);
        assert_eq!(
            scene.end().await,
            FIRST + 30,
            "on PostgreSQL: {on_postgres}"
        );
    }
}

/// The same interleaving: the second, younger, is refused while the first is at work, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn isolation_with_locks_the_younger_is_refused_and_no_update_is_lost() {
    for on_postgres in BOTH {
        let scene = Scene::new(on_postgres, true).await;
        scene.begin("update", 10, &["write"]).await;
        scene.first_step_is_done("update", 10).await;
        scene.begin("update", 20, &[]).await;
        assert_eq!(scene.ended("update", 20).await, Status::Compensated);
        scene.until("update", 20, "why", |event| {
            matches!(event, Event::Refused(0, why) if why.contains("locked by the older saga"))
        })
        .await;
        scene.open("update", 10, "write");
        assert_eq!(scene.ended("update", 10).await, Status::Completed);
        // The lock is free again.
        scene.begin("update", 30, &[]).await;
        assert_eq!(scene.ended("update", 30).await, Status::Completed);
        assert_eq!(
            scene.end().await,
            FIRST + 40,
            "on PostgreSQL: {on_postgres}"
        );
    }
}

/// The older asks while the younger is at work: it waits, and both count.
#[tokio::test(flavor = "multi_thread")]
async fn isolation_with_locks_the_older_waits_and_no_update_is_lost() {
    for on_postgres in BOTH {
        let scene = Scene::new(on_postgres, true).await;
        scene.begin("update", 10, &["read"]).await;
        let shut = |event: &Event| matches!(event, Event::Failed(0, ..));
        scene.until("update", 10, "it was tried", shut).await;
        scene.begin("update", 20, &["write"]).await;
        scene.first_step_is_done("update", 20).await;
        scene.open("update", 10, "read");
        scene.until("update", 10, "it waits", |event| {
            matches!(event, Event::Failed(0, _, why, _) if why.contains("locked by the younger saga"))
        })
        .await;
        scene.open("update", 20, "write");
        assert_eq!(scene.ended("update", 20).await, Status::Completed);
        assert_eq!(scene.ended("update", 10).await, Status::Completed);
        assert_eq!(
            scene.end().await,
            FIRST + 30,
            "on PostgreSQL: {on_postgres}"
        );
    }
}

/// A deposit of 50 is seen and spent, with all else, before it is taken back: the account is overdrawn.
#[tokio::test(flavor = "multi_thread")]
async fn isolation_without_locks_a_dirty_read_overdraws_the_account() {
    for on_postgres in BOTH {
        let scene = Scene::new(on_postgres, false).await;
        scene.begin("deposit", 50, &["confirm"]).await;
        scene.first_step_is_done("deposit", 50).await;
        scene.begin("spend", FIRST + 50, &[]).await;
        assert_eq!(scene.ended("spend", FIRST + 50).await, Status::Completed);
        scene.open("deposit", 50, "confirm");
        assert_eq!(scene.ended("deposit", 50).await, Status::Compensated);
        assert_eq!(
            scene.end().await,
            -50,
            "the anomaly, on PostgreSQL: {on_postgres}"
        );
    }
}

/// The same interleaving: nobody sees the deposit before it is there for good.
#[tokio::test(flavor = "multi_thread")]
async fn isolation_with_locks_there_is_no_dirty_read() {
    for on_postgres in BOTH {
        let scene = Scene::new(on_postgres, true).await;
        scene.begin("deposit", 50, &["confirm"]).await;
        scene.first_step_is_done("deposit", 50).await;
        scene.begin("spend", FIRST + 50, &[]).await;
        assert_eq!(scene.ended("spend", FIRST + 50).await, Status::Compensated);
        scene.open("deposit", 50, "confirm");
        assert_eq!(scene.ended("deposit", 50).await, Status::Compensated);
        scene.begin("spend", FIRST, &[]).await;
        assert_eq!(scene.ended("spend", FIRST).await, Status::Completed);
        assert_eq!(scene.end().await, 0, "on PostgreSQL: {on_postgres}");
    }
}

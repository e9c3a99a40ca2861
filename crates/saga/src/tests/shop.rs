//! A service, the same over both databases, and all that makes its sagas run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::inbox::{Failure, PgInbox, SqliteInbox};
use quorate_outbox::store::BoxFuture;
use quorate_outbox::{Consumer, Relay, RelayOptions};
use serde_json::json;

use super::support::{Lite, Pg};
use crate::journal::{Journal, PgJournal, SqliteJournal};
use crate::message::Command;
use crate::participant::{Answer, Answers, Participant, PgFences, Service, SqliteFences, options};
use crate::{Coordinator, CoordinatorOptions, Operations, Outcome, Planner, Registry};

/// The topic of its commands.
pub const TOPIC: &str = "shop";

/// Notes what it does in the table `effects`. The input says what goes wrong.
#[derive(Clone, Default)]
pub struct Shop {
    /// Undoing does not work for now.
    pub broken: Arc<AtomicBool>,
}

/// An effect: key of the saga, branch, operation.
pub type Effect = (String, String, String);

const EFFECTS: &str =
    "CREATE TABLE effects (saga TEXT NOT NULL, branch TEXT NOT NULL, op TEXT NOT NULL)";

/// Whether the saga's input names this branch under `what`.
fn is_named(command: &Command, what: &str) -> bool {
    command.input[what].as_str() == Some(command.branch.as_str())
}

fn verdict(command: &Command) -> Outcome {
    if is_named(command, "refuse") {
        Outcome::Refused("no".into())
    } else if is_named(command, "unknown") {
        Outcome::Unknown("who knows".into())
    } else {
        Outcome::Done(json!(command.branch))
    }
}

macro_rules! shop {
    ($name:ident, $connection:ty) => {
        mod $name {
            use super::*;

            async fn note(
                tx: &mut $connection,
                command: &Command,
                op: &str,
            ) -> Result<Outcome, Failure> {
                let text = "INSERT INTO effects (saga, branch, op) VALUES ($1, $2, $3)";
                let insert = sqlx::query(text).bind(command.key.clone());
                let insert = insert.bind(command.branch.clone()).bind(op.to_owned());
                insert.execute(tx).await?;
                Ok(Outcome::Done(serde_json::Value::Null))
            }

            impl Service<$connection> for Shop {
                fn act<'a>(&'a self, tx: &'a mut $connection, command: &'a Command) -> Answer<'a> {
                    Box::pin(async move {
                        // Also what is refused writes first: nothing may be left of it.
                        note(tx, command, "act").await?;
                        Ok(verdict(command))
                    })
                }

                fn undo<'a>(&'a self, tx: &'a mut $connection, command: &'a Command) -> Answer<'a> {
                    Box::pin(async move {
                        if self.broken.load(Ordering::SeqCst) {
                            return Ok(Outcome::Refused("it is broken".into()));
                        }
                        note(tx, command, "undo").await
                    })
                }

                fn confirm<'a>(
                    &'a self,
                    tx: &'a mut $connection,
                    command: &'a Command,
                ) -> Answer<'a> {
                    Box::pin(note(tx, command, "confirm"))
                }

                fn act_all<'a>(
                    &'a self,
                    tx: &'a mut $connection,
                    all: &'a [Command],
                ) -> Option<Answers<'a>> {
                    Some(Box::pin(async move {
                        let mut outcomes = Vec::new();
                        for command in all {
                            let outcome = verdict(command);
                            if matches!(outcome, Outcome::Done(_)) {
                                note(tx, command, "act").await?;
                            }
                            outcomes.push(outcome);
                        }
                        Ok(outcomes)
                    }))
                }
            }
        }
    };
}

shop!(pg, sqlx::PgConnection);
shop!(lite, sqlx::SqliteConnection);

/// A database, with what tells its effects.
pub enum Place {
    Pg(Pg),
    Lite(Lite),
}

impl Place {
    pub async fn effects(&self) -> Vec<Effect> {
        let text = "SELECT saga, branch, op FROM effects ORDER BY saga, branch, op";
        let rows = match self {
            Place::Pg(pg) => sqlx::query_as(text).fetch_all(&pg.pool).await,
            Place::Lite(lite) => sqlx::query_as(text).fetch_all(&lite.pool).await,
        };
        rows.expect("reads")
    }
}

/// Journal, relay, broker, participant; coordinators are started by the tests.
pub struct World {
    pub place: Place,
    pub journal: Arc<dyn Journal>,
    pub broker: Arc<LocalBroker>,
    pub shop: Shop,
    pub registry: Registry,
    _relay: Relay,
    _consumer: Box<dyn Send + Sync>,
}

impl World {
    pub async fn pg(registry: Registry, batches: bool) -> World {
        let pg = Pg::new().await;
        sqlx::raw_sql(EFFECTS)
            .execute(&pg.pool)
            .await
            .expect("makes");
        let outbox = pg.outbox().await;
        let journal = PgJournal::migrate(outbox.clone()).await.expect("migrates");
        let fences = PgFences::migrate(outbox.clone()).await.expect("migrates");
        let inbox = PgInbox::migrate(pg.pool.clone()).await.expect("migrates");
        let shop = Shop::default();
        let mut handler = Participant::new(fences, shop.clone());
        if batches {
            handler = handler.in_batches();
        }
        let broker = Arc::new(LocalBroker::in_memory(LocalOptions::default()));
        let settings = options("shop", &[TOPIC]);
        let consumer = Consumer::start(inbox, broker.clone(), Arc::new(handler), settings).await;
        World {
            _relay: Relay::start(Arc::new(outbox), broker.clone(), RelayOptions::default())
                .expect("starts"),
            _consumer: Box::new(consumer.expect("starts")),
            journal: Arc::new(journal),
            place: Place::Pg(pg),
            broker,
            shop,
            registry,
        }
    }

    pub async fn lite(registry: Registry, batches: bool) -> World {
        let lite = Lite::new().await;
        sqlx::raw_sql(EFFECTS)
            .execute(&lite.pool)
            .await
            .expect("makes");
        let outbox = lite.outbox().await;
        let journal = SqliteJournal::migrate(outbox.clone())
            .await
            .expect("migrates");
        let fences = SqliteFences::migrate(outbox.clone())
            .await
            .expect("migrates");
        let inbox = SqliteInbox::migrate(lite.pool.clone())
            .await
            .expect("migrates");
        let shop = Shop::default();
        let mut handler = Participant::new(fences, shop.clone());
        if batches {
            handler = handler.in_batches();
        }
        let broker = Arc::new(LocalBroker::in_memory(LocalOptions::default()));
        let settings = options("shop", &[TOPIC]);
        let consumer = Consumer::start(inbox, broker.clone(), Arc::new(handler), settings).await;
        World {
            _relay: Relay::start(Arc::new(outbox), broker.clone(), RelayOptions::default())
                .expect("starts"),
            _consumer: Box::new(consumer.expect("starts")),
            journal: Arc::new(journal),
            place: Place::Lite(lite),
            broker,
            shop,
            registry,
        }
    }

    pub async fn coordinator(&self, registry: &Registry) -> Coordinator {
        let options = CoordinatorOptions {
            lease: Duration::from_secs(3),
            tick: Duration::from_millis(100),
            ..CoordinatorOptions::default()
        };
        let journal = Arc::clone(&self.journal);
        let broker = self.broker.clone();
        let started = Coordinator::start(journal, broker, registry.clone(), options).await;
        started.expect("starts")
    }

    pub fn operations(&self) -> Operations {
        let planner = Planner::new(self.registry.clone(), "saga-replies");
        Operations::new(Arc::clone(&self.journal), planner)
    }

    pub async fn end(self) {
        let World {
            place,
            _relay,
            _consumer,
            ..
        } = self;
        drop((_relay, _consumer));
        if let Place::Pg(pg) = place {
            pg.end().await;
        }
    }
}

/// A story over one of the databases.
pub type Story = for<'a> fn(&'a World) -> BoxFuture<'a, ()>;

/// Tells a story over both databases, one command at a time and in batches.
pub async fn tell(registry: Registry, story: Story) {
    for batches in [false, true] {
        let world = World::lite(registry.clone(), batches).await;
        story(&world).await;
        world.end().await;
        let world = World::pg(registry.clone(), batches).await;
        story(&world).await;
        world.end().await;
    }
}

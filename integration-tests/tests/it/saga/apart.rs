//! Coordinators and participants in processes apart, over two schemas of PostgreSQL and a Kafka-compatible broker: each
//! is killed by SIGKILL at its own named points, and coordinators are frozen past their leases and wake up.

use futures_util::StreamExt;
use rustix::process::Signal;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::os::unix::process::ExitStatusExt;

use super::{AT_ONCE, Process, SAGAS, SOON, Schema, books_of_schemas, expected, variable};
use crate::support::{Share, eventually};

const COORDINATOR: [&str; 9] = [
    "coordinator.stepped",
    "coordinator.appended",
    "journal.begun",
    "journal.written",
    "journal.enqueued",
    "journal.committed",
    "relay.read",
    "relay.published",
    "relay.saved",
];
const PARTICIPANT: [&str; 13] = [
    "participant.fenced",
    "bank.booked",
    "participant.acted",
    "participant.replied",
    "participant.attempted",
    "post.acted",
    "participant.called",
    "inbox.advanced",
    "inbox.applied",
    "inbox.committed",
    "relay.read",
    "relay.published",
    "relay.saved",
];

/// Schemas for the coordinators and for the participants.
struct Apart {
    coordinators: Schema,
    participants: Schema,
    settings: Vec<String>,
    sagas: i64,
}

impl Apart {
    /// `kafka` is the variable that names the broker.
    async fn new(kafka: &str, sagas: i64, seed: usize) -> Apart {
        let (coordinators, participants) = (Schema::new().await, Schema::new().await);
        let settings = vec![
            format!("postgres={}", coordinators.url),
            format!("kafka={}", variable(kafka)),
            format!("prefix={}-", coordinators.name),
            format!("sagas={sagas}"),
            format!("seed={seed}"),
            "batch=1".to_owned(),
        ];
        Apart {
            coordinators,
            participants,
            settings,
            sagas,
        }
    }

    fn coordinator(&self, owner: &str, crash: Option<&str>) -> Process {
        let mut settings = self.settings.clone();
        settings.push("role=coordinator".into());
        settings.push(format!("owner={owner}"));
        settings.push(format!("schema={}", self.coordinators.name));
        Process::start(&settings, crash)
    }

    fn participant(&self, crash: Option<&str>) -> Process {
        let mut settings = self.settings.clone();
        settings.push("role=participant".into());
        settings.push(format!("schema={}", self.participants.name));
        Process::start(&settings, crash)
    }

    /// Once the coordinators have ended: what is in the books.
    async fn end(self, what: &str) {
        let schemas = format!("{},{}", self.coordinators.name, self.participants.name);
        let books = books_of_schemas(&self.coordinators.url, &schemas).await;
        assert_eq!(books, expected(self.sagas), "{what}");
        self.coordinators.drop().await;
        self.participants.drop().await;
    }
}

/// Kills one of the two at a point and starts it again.
async fn one(is_coordinator: bool, point: &'static str, number: usize) {
    let at = format!("{point}:{}", 1 + number % 3);
    let role = if is_coordinator {
        "coordinator"
    } else {
        "participant"
    };
    let what = format!("{role} killed at {at}, seed {number}");
    let apart = Apart::new("QUORATE_KAFKA", SAGAS, number).await;
    let crash = |is_victim: bool| is_victim.then_some(at.as_str());
    let mut coordinator = apart.coordinator("one", crash(is_coordinator));
    let mut participant = apart.participant(crash(!is_coordinator));
    if is_coordinator {
        let killed = coordinator.ended(&what).await;
        assert_eq!(killed.signal(), Some(9), "{what}: {killed}");
        coordinator = apart.coordinator("two", None);
    } else {
        let killed = participant.ended(&what).await;
        assert_eq!(killed.signal(), Some(9), "{what}: {killed}");
        participant = apart.participant(None);
    }
    let ended = coordinator.ended(&what).await;
    assert!(ended.success(), "{what}: it ended with {ended}");
    assert!(
        participant.is_running(),
        "{what}: the participant has ended"
    );
    drop(participant);
    apart.end(&what).await;
}

async fn all_points(is_coordinator: bool, points: &[&'static str]) {
    let only = std::env::var("QUORATE_TEST_POINT").ok();
    let wanted = points.iter().enumerate();
    let wanted = wanted.filter(|(_, point)| only.as_deref().is_none_or(|only| only == **point));
    let cases = wanted.map(|(number, point)| one(is_coordinator, point, number));
    let cases: Vec<_> = cases.collect();
    futures_util::stream::iter(cases)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_coordinator_process_killed_at_every_point_leaves_balanced_books() {
    let _share = Share::of(1).await;
    all_points(true, &COORDINATOR).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_participant_process_killed_at_every_point_leaves_balanced_books() {
    let _share = Share::of(1).await;
    all_points(false, &PARTICIPANT).await;
}

/// What the test sees of the coordinators' schema.
struct View(PgPool);

impl View {
    async fn new(schema: &Schema) -> View {
        let options: PgConnectOptions = schema.url.parse().expect("a URL");
        let options = options.options([("search_path", schema.name.as_str())]);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await;
        View(pool.expect("connects"))
    }

    /// How many sagas have ended. An error as long as there are no tables.
    async fn ended(&self) -> Result<i64, String> {
        let text = "SELECT count(*) FROM quorate_saga WHERE status IN (3, 4)";
        let ended = sqlx::query_scalar(text).fetch_one(&self.0).await;
        ended.map_err(|error| error.to_string())
    }

    async fn until_ended(&self, count: i64) {
        eventually(&format!("{count} sagas have ended"), SOON, || async {
            let ended = self.ended().await?;
            if ended >= count {
                Ok(())
            } else {
                Err(format!("{ended}"))
            }
        })
        .await;
    }

    /// The epoch of a coordinator's lease, once it is as wanted.
    async fn lease(
        &self,
        owner: &str,
        what: &str,
        wanted: impl Fn(Option<i64>) -> bool,
    ) -> Option<i64> {
        let text = "SELECT epoch FROM quorate_saga_member WHERE owner = $1";
        eventually(&format!("{owner} {what}"), SOON, || async {
            let epoch = sqlx::query_scalar(text)
                .bind(owner)
                .fetch_optional(&self.0)
                .await;
            let epoch: Option<i64> = epoch.map_err(|error| error.to_string())?;
            if wanted(epoch) {
                Ok(epoch)
            } else {
                Err(format!("{epoch:?}"))
            }
        })
        .await
    }
}

/// Of two coordinators one is frozen in the middle of its work for longer than its lease; the other buries it and goes on;
/// then it wakes up, with all that it had in hand. The participant is held meanwhile, so that there is work before, during
/// and after the sleep however slow the machine is.
#[tokio::test(flavor = "multi_thread")]
async fn saga_coordinator_process_frozen_past_its_lease_doubles_nothing() {
    let _share = Share::of(1).await;
    let sagas = 600;
    // On a slow machine the frozen are taken for dead by their groups too.
    let apart = Apart::new("QUORATE_KAFKA_GROUPS", sagas, 0).await;
    let mut coordinators = [apart.coordinator("a", None), apart.coordinator("b", None)];
    let mut participant = apart.participant(None);
    let view = View::new(&apart.coordinators).await;
    for round in 0..2 {
        let (sleeper, owner) = [(0, "a"), (1, "b")][round];
        view.until_ended(20 + 60 * round as i64).await;
        let before = view
            .lease(owner, "has a lease", |epoch| epoch.is_some())
            .await;
        coordinators[sleeper].signal(Signal::STOP);
        participant.signal(Signal::STOP);
        view.lease(owner, "is buried", |epoch| epoch.is_none())
            .await;
        let ended = view.ended().await.expect("counts");
        participant.signal(Signal::CONT);
        view.until_ended(ended + 20).await;
        participant.signal(Signal::STOP);
        let left = sagas - view.ended().await.expect("counts");
        assert!(
            left > 0,
            "round {round}: nothing is left to be done after the sleep"
        );
        coordinators[sleeper].signal(Signal::CONT);
        view.lease(owner, "takes part again", |epoch| epoch > before)
            .await;
        participant.signal(Signal::CONT);
    }
    for coordinator in &mut coordinators {
        let ended = coordinator.ended("a coordinator that slept").await;
        assert!(ended.success(), "it ended with {ended}");
    }
    assert!(participant.is_running());
    drop(participant);
    view.0.close().await;
    apart.end("frozen coordinators").await;
}

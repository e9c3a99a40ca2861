//! `quorate saga`: sagas that are stuck are seen and ordered from a shell while a coordinator runs, on PostgreSQL and
//! SQLite.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_outbox::broker::Broker;
use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::inbox::{Ledger, PgInbox, SqliteInbox};
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::store::Store;
use quorate_outbox::{Consumer, Relay, RelayOptions};
use quorate_saga::journal::{Journal, PgJournal, SqliteJournal};
use quorate_saga::message::Command;
use quorate_saga::participant::{self, Answer, Fences, PgFences, Service, SqliteFences};
use quorate_saga::{
    Begin, Coordinator, CoordinatorOptions, Definition, Outcome, Participant, Registry, Retry,
    Saga, Step,
};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use uuid::Uuid;

use super::Schema;
use crate::support::{Ended, eventually, quorate};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(90);

/// Does what it is asked for, but for `pay` while it is away, and never `wait`.
#[derive(Clone, Default)]
struct Shop {
    is_away: Arc<AtomicBool>,
}

impl<C: Send> Service<C> for Shop {
    fn act<'a>(&'a self, _: &'a mut C, command: &'a Command) -> Answer<'a> {
        let is_away = self.is_away.load(Ordering::SeqCst);
        let outcome = match command.branch.as_str() {
            "pay" if is_away => Outcome::Unknown("the bank is away".into()),
            "wait" => Outcome::Unknown("not yet".into()),
            _ => Outcome::Done(Value::Null),
        };
        Box::pin(async move { Ok(outcome) })
    }

    fn undo<'a>(&'a self, _: &'a mut C, _: &'a Command) -> Answer<'a> {
        Box::pin(async { Ok(Outcome::Done(Value::Null)) })
    }
}

fn step(name: &str, attempts: u32, wait: Duration) -> Step {
    Step::new(name, "shop").retry(Retry {
        attempts,
        first: wait,
        max: wait,
    })
}

/// An order whose pivot is tried once; and one whose second step is tried again in an hour.
fn definitions() -> Registry {
    let often = |name| step(name, 10, Duration::from_millis(10));
    let order = Saga::named("order").step(often("reserve"));
    let order = order.pivot(step("pay", 1, Duration::from_millis(10)));
    let order: Definition = order.then(often("ship")).build().expect("builds");
    let slow = Saga::named("slow").step(often("reserve"));
    let slow = slow.step(step("wait", 9, Duration::from_secs(3600)));
    Registry::new()
        .with(order)
        .and_then(|all| all.with(slow.build()?))
        .expect("a registry")
}

struct Shell {
    url: String,
}

impl Shell {
    async fn run(&self, arguments: &[&str]) -> Ended {
        let mut all = vec!["saga"];
        all.extend(arguments);
        all.extend(["--database", self.url.as_str()]);
        quorate(&all).await
    }

    async fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        let said = self.run(&all).await.out;
        let lines = said.lines().map(serde_json::from_str);
        lines.map(|line| line.expect("JSON")).collect()
    }

    /// Gives an order by the name and key of a saga.
    async fn order(&self, arguments: &[&str], key: &str) -> Ended {
        let mut all = arguments.to_vec();
        all.extend(["--name", "order", "--key", key]);
        self.run(&all).await
    }

    async fn show(&self, name: &str, key: &str) -> Value {
        let shown = self.json(&["show", "--name", name, "--key", key]).await;
        shown.into_iter().next().expect("it is there")
    }

    /// Waits until a saga stands so, and shows it.
    async fn until(&self, name: &str, key: &str, status: &str) -> Value {
        eventually(&format!("`{key}` is {status}"), SOON, || async {
            let shown = self.show(name, key).await;
            match shown["status"] == status {
                true => Ok(shown),
                false => Err(shown.to_string()),
            }
        })
        .await
    }

    /// Waits until the history says it.
    async fn until_said(&self, name: &str, key: &str, what: &str) -> Value {
        eventually(&format!("`{what}` is said of `{key}`"), SOON, || async {
            let shown = self.show(name, key).await;
            match said(&shown).iter().any(|text| text.contains(what)) {
                true => Ok(shown),
                false => Err(shown.to_string()),
            }
        })
        .await
    }
}

/// The history in words.
fn said(shown: &Value) -> Vec<String> {
    let all = shown["history"].as_array().expect("a history");
    let texts = all.iter().map(|entry| entry["text"].as_str());
    texts.map(|text| text.expect("a text").to_owned()).collect()
}

/// A relay and a participant, while they live.
struct Running<L: Ledger> {
    _relay: Relay,
    _shop: Consumer<L>,
    broker: Arc<dyn Broker>,
    shop: Shop,
}

async fn serve<L, F>(store: Arc<dyn Store>, ledger: L, fences: F) -> Running<L>
where
    L: Ledger,
    F: Fences<Connection = L::Connection>,
    L::Connection: Send,
{
    let broker: Arc<dyn Broker> = Arc::new(LocalBroker::in_memory(LocalOptions::default()));
    let shop = Shop::default();
    let handler = Arc::new(Participant::new(fences, shop.clone()));
    let options = participant::options("shop", &["shop"]);
    let consumer = Consumer::start(ledger, Arc::clone(&broker), handler, options).await;
    let relay = Relay::start(store, Arc::clone(&broker), RelayOptions::default());
    Running {
        _relay: relay.expect("starts"),
        _shop: consumer.expect("starts"),
        broker,
        shop,
    }
}

async fn coordinate<L: Ledger>(running: &Running<L>, journal: Arc<dyn Journal>) -> Coordinator {
    let options = CoordinatorOptions {
        tick: Duration::from_millis(100),
        ..CoordinatorOptions::default()
    };
    let broker = Arc::clone(&running.broker);
    let started = Coordinator::start(journal, broker, definitions(), options).await;
    started.expect("starts")
}

async fn begin(coordinator: &Coordinator, name: &str, key: &str) -> Uuid {
    let begin = Begin::new(name, key, json!({"books": 2}));
    let begun = coordinator.sagas().begin(&begin).await;
    begun.expect("begins").id
}

/// All of it, once the tables are there.
async fn story<L: Ledger>(shell: &Shell, running: &Running<L>, journal: Arc<dyn Journal>) {
    let coordinator = coordinate(running, Arc::clone(&journal)).await;
    let calm = shell.run(&["stuck"]).await;
    assert_eq!(calm.code, Some(0), "{calm:?}");
    assert!(calm.out.contains("nothing is stuck"), "{calm:?}");

    running.shop.is_away.store(true, Ordering::SeqCst);
    let keys = ["retried", "skipped", "forced", "refused"];
    let mut ids = Vec::new();
    for key in keys {
        ids.push(begin(&coordinator, "order", key).await);
        shell.until("order", key, "stuck").await;
    }
    stuck_ones_are_shown(shell, ids[0]).await;
    wrong_orders_are_refused(shell, ids[0]).await;
    orders_are_followed(shell, running).await;
    slow_one_is_aborted(shell, &coordinator).await;
    assert!(coordinator.drain().await);
    order_waits_for_a_coordinator(shell, running, journal).await;
}

async fn stuck_ones_are_shown(shell: &Shell, first: Uuid) {
    let alarm = shell.run(&["stuck"]).await;
    assert_eq!(alarm.code, Some(1), "{alarm:?}");
    assert!(alarm.out.contains("the bank is away"), "{alarm:?}");
    let stuck = shell.json(&["stuck"]).await;
    assert_eq!(stuck.len(), 4);
    assert_eq!(
        (&stuck[0]["key"], &stuck[0]["step"]),
        (&json!("retried"), &json!("pay"))
    );
    assert_eq!(stuck[0]["way"], "action");
    let counts = shell.json(&["count"]).await;
    assert_eq!((counts.len(), &counts[0]["sagas"]), (1, &json!(4)));
    let listed = shell
        .json(&["list", "--status", "stuck", "--name", "order"])
        .await;
    assert_eq!(listed.len(), 4);
    assert_eq!(shell.json(&["list", "--limit", "1"]).await.len(), 1);
    assert!(
        shell
            .json(&["list", "--status", "completed"])
            .await
            .is_empty()
    );
    let text = shell.run(&["show", &first.to_string()]).await.good();
    for part in [
        "key: retried",
        "status: stuck",
        "reserve  done",
        "pay      action stuck",
        "ship     waits",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let shown = shell.show("order", "retried").await;
    assert_eq!(
        (&shown["id"], &shown["input"]["books"]),
        (&json!(first), &json!(2))
    );
}

async fn wrong_orders_are_refused(shell: &Shell, first: Uuid) {
    let first = first.to_string();
    let stranger = Uuid::now_v7().to_string();
    let why = ["--reason", "why"];
    let cases: [(&[&str], &str); 10] = [
        (&["retry", &stranger, "--reason", "why"], "there is no saga"),
        (&["show", &stranger], "there is no saga"),
        (&["retry", &first], "--reason"),
        (&["retry", &first, "--reason", " "], "an order has a reason"),
        (&["retry", "--reason", "why"], "--name and --key"),
        (
            &["skip", &first, "--step", "nobody", "--reason", "why"],
            "it has: reserve, pay, ship",
        ),
        (&["skip", &first, "--reason", "why"], "--step"),
        (&["list", "--status", "dead"], "it is one of running"),
        (
            &[
                "force",
                &first,
                "--step",
                "pay",
                "--outcome",
                "done",
                "--value",
                "{",
                why[0],
                why[1],
            ],
            "no JSON",
        ),
        (
            &[
                "force",
                &first,
                "--step",
                "pay",
                "--outcome",
                "refused",
                "--value",
                "1",
                why[0],
                why[1],
            ],
            "--outcome done",
        ),
    ];
    for (arguments, expected) in cases {
        let said = shell.run(arguments).await.bad();
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let shown = shell.show("order", "retried").await;
    assert!(
        !said(&shown).iter().any(|text| text.contains("wants")),
        "nothing was noted"
    );
}

async fn orders_are_followed<L: Ledger>(shell: &Shell, running: &Running<L>) {
    let skip = [
        "skip", "--step", "pay", "--reason", "by phone", "--by", "ann",
    ];
    let noted = shell.order(&skip, "skipped").await.good();
    assert!(noted.contains("skip pay"), "{noted}");
    let shown = shell.until("order", "skipped", "completed").await;
    assert!(
        said(&shown).contains(&"ann ordered: skip pay: by phone".to_owned()),
        "{shown}"
    );

    let force = [
        "force",
        "--step",
        "pay",
        "--reason",
        "seen in the books",
        "--by",
        "ann",
    ];
    let done = [
        &force[..],
        &["--outcome", "done", "--value", r#"{"by":"hand"}"#],
    ]
    .concat();
    shell.order(&done, "forced").await.good();
    let shown = shell.until("order", "forced", "completed").await;
    assert!(
        said(&shown).contains(&r#"pay: action done with {"by":"hand"}"#.to_owned()),
        "{shown}"
    );

    let refused = [&force[..], &["--outcome", "refused", "--why", "no money"]].concat();
    shell.order(&refused, "refused").await.good();
    let shown = shell.until("order", "refused", "compensated").await;
    assert!(
        said(&shown).contains(&"pay: refused: no money".to_owned()),
        "{shown}"
    );

    // While the bank is away a retry comes to nothing, and it is stuck again.
    let retry = ["retry", "--reason", "perhaps", "--by", "ann"];
    shell.order(&retry, "retried").await.good();
    shell
        .until_said(
            "order",
            "retried",
            "ann ordered: retry what is stuck: perhaps",
        )
        .await;
    shell.until("order", "retried", "stuck").await;
    running.shop.is_away.store(false, Ordering::SeqCst);
    let retry = ["retry", "--step", "pay", "--reason", "the bank is back"];
    shell.order(&retry, "retried").await.good();
    let shown = shell.until("order", "retried", "completed").await;
    let followed = |text: &String| text.ends_with(" ordered: retry pay: the bank is back");
    assert!(
        said(&shown).iter().any(followed),
        "by the login name: {shown}"
    );

    let late = shell.order(&retry, "retried").await.bad();
    assert!(late.contains("has ended, completed"), "{late}");
    let calm = shell.run(&["stuck"]).await;
    assert_eq!(calm.code, Some(0), "{calm:?}");
}

/// An order that can't be followed is declined, and does no harm; one that can, later, is followed.
async fn slow_one_is_aborted(shell: &Shell, coordinator: &Coordinator) {
    let id = begin(coordinator, "slow", "s").await.to_string();
    shell.until_said("slow", "s", "wait: action failed").await;
    let skip = [
        "skip", &id, "--step", "wait", "--reason", "too slow", "--by", "bob",
    ];
    shell.run(&skip).await.good();
    let declined = "declined what bob wanted: skip wait: `wait` is not stuck";
    let shown = shell.until_said("slow", "s", declined).await;
    assert_eq!(
        (&shown["status"], &shown["waiting"]),
        (&json!("running"), &json!([]))
    );
    let abort = ["abort", &id, "--reason", "too slow", "--by", "bob"];
    shell.run(&abort).await.good();
    let shown = shell.until("slow", "s", "compensated").await;
    assert!(
        said(&shown).contains(&"bob ordered: abort: too slow".to_owned()),
        "{shown}"
    );
}

/// Without a coordinator an order waits, and is shown.
async fn order_waits_for_a_coordinator<L: Ledger>(
    shell: &Shell,
    running: &Running<L>,
    journal: Arc<dyn Journal>,
) {
    running.shop.is_away.store(true, Ordering::SeqCst);
    let coordinator = coordinate(running, Arc::clone(&journal)).await;
    begin(&coordinator, "order", "waits").await;
    shell.until("order", "waits", "stuck").await;
    assert!(coordinator.drain().await);
    let skip = [
        "skip", "--step", "pay", "--reason", "by phone", "--by", "ann",
    ];
    shell.order(&skip, "waits").await.good();
    let shown = shell.show("order", "waits").await;
    assert_eq!(shown["status"], "stuck");
    assert_eq!(shown["waiting"][0]["by"], "ann");
    let text = shell.order(&["show"], "waits").await.good();
    assert!(text.contains("ORDER THAT WAITS"), "{text}");
    let coordinator = coordinate(running, journal).await;
    shell.until("order", "waits", "completed").await;
    assert!(coordinator.drain().await);
}

/// The tables are not there, or are a newer program's.
async fn said_of_tables(shell: &Shell, expected: &str) {
    for command in [
        &["stuck"][..],
        &["abort", "--name", "n", "--key", "k", "--reason", "why"],
    ] {
        let said = shell.run(command).await.bad();
        assert!(said.contains(expected), "{said}");
    }
}

const NEWER: &str = "UPDATE quorate_saga_schema SET version = 99";

#[tokio::test(flavor = "multi_thread")]
async fn saga_commands_show_and_order_what_is_stuck_in_postgres() {
    let schema = Schema::new().await;
    let shell = Shell {
        url: format!("{}?options[search_path]={}", schema.url, schema.name),
    };
    let options: PgConnectOptions = schema.url.parse().expect("a URL");
    let options = options.options([("search_path", schema.name.as_str())]);
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect_with(options)
        .await;
    let pool = pool.expect("connects");
    said_of_tables(&shell, "no outbox yet").await;
    let outbox = PgOutbox::migrate(pool.clone(), 1).await.expect("migrates");
    said_of_tables(&shell, "no sagas yet").await;
    let journal = PgJournal::migrate(outbox.clone()).await.expect("migrates");
    let fences = PgFences::migrate(outbox.clone()).await.expect("migrates");
    let inbox = PgInbox::migrate(pool.clone()).await.expect("migrates");
    let running = serve(Arc::new(outbox), inbox, fences).await;
    story(&shell, &running, Arc::new(journal)).await;
    drop(running);
    sqlx::query(NEWER).execute(&pool).await.expect("changes");
    said_of_tables(&shell, "version 99").await;
    pool.close().await;
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_commands_show_and_order_what_is_stuck_in_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("shop.db");
    let shell = Shell {
        url: format!("sqlite:{}", file.display()),
    };
    said_of_tables(&shell, "shop.db").await;
    let options = SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(20));
    let pool = SqlitePoolOptions::new()
        .max_connections(8)
        .connect_with(options)
        .await;
    let pool = pool.expect("opens");
    said_of_tables(&shell, "no outbox yet").await;
    let outbox = SqliteOutbox::migrate(pool.clone(), 1)
        .await
        .expect("migrates");
    said_of_tables(&shell, "no sagas yet").await;
    let journal = SqliteJournal::migrate(outbox.clone())
        .await
        .expect("migrates");
    let fences = SqliteFences::migrate(outbox.clone())
        .await
        .expect("migrates");
    let inbox = SqliteInbox::migrate(pool.clone()).await.expect("migrates");
    let running = serve(Arc::new(outbox), inbox, fences).await;
    story(&shell, &running, Arc::new(journal)).await;
    drop(running);
    sqlx::query(NEWER).execute(&pool).await.expect("changes");
    said_of_tables(&shell, "version 99").await;
}

//! `quorate outbox`: what is set aside is seen and ordered from a shell, on PostgreSQL, MySQL and SQLite.

use std::time::Duration;

use quorate_outbox::Message;
use quorate_outbox::inbox::{Ledger, LedgerTx, MySqlInbox, PgInbox, SqliteInbox, State, Waiting};
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::store::{Change, Most, Park, Parked, Store, Which, Wish};
use quorate_outbox::{Delivery, HEADER_CREATED, HEADER_ID, HEADER_SEQ, HEADER_SOURCE, Partition};
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use uuid::Uuid;

use super::process::{Base, Bench, MYSQL, variable};
use crate::support::{Ended, quorate};

/// Sets everything of one part aside, as a relay does.
async fn park_all(store: &dyn Store) -> Vec<Parked> {
    let held = store.hold("a relay", &[], Duration::from_secs(30)).await;
    for claim in held.expect("holds").claimed {
        let read = store.read(claim.fence, &claim.progress, Most::ALL).await;
        let parks = read.expect("reads").rows.into_iter().map(|row| Park {
            row,
            reason: "the broker refuses it".into(),
        });
        let change = Change {
            parks: parks.collect(),
            ..Change::default()
        };
        let mut progress = claim.progress.clone();
        let ids = change.parks.iter().map(|park| park.row.id);
        progress.floor = ids.max().unwrap_or(progress.floor);
        let saved = store.save(claim.fence, &progress, &change).await;
        saved.expect("saves");
    }
    store.parked(None, 100).await.expect("lists")
}

/// Sets a message aside that a handler refused.
async fn kill_one<L: Ledger>(inbox: &L, consumer: &str) -> Uuid {
    let id = Uuid::now_v7();
    let partition = Partition {
        topic: "orders".into(),
        number: 0,
    };
    inbox.claim(consumer, &partition).await.expect("claims");
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let waiting = Waiting {
        id,
        message: Delivery {
            partition,
            offset: 7,
            assignment: 0,
            key: Some("bob".into()),
            headers: vec![
                header(HEADER_ID, &id.to_string()),
                header(HEADER_SEQ, "3"),
                header(HEADER_SOURCE, "shop"),
                header(HEADER_CREATED, "1"),
            ],
            payload: vec![0xff, 0x00].into(),
        },
        state: State::Dead,
        reason: "no such account".into(),
        attempts: 5,
        wish: Wish::None,
    };
    let mut tx = inbox.begin(Duration::from_secs(5)).await.expect("begins");
    tx.park(consumer, &waiting).await.expect("parks");
    tx.commit().await.expect("commits");
    id
}

struct Shell {
    url: String,
}

impl Shell {
    async fn run(&self, arguments: &[&str]) -> Ended {
        let mut all = vec!["outbox"];
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
}

async fn relays_are_ordered(shell: &Shell, store: &dyn Store) {
    let calm = shell.run(&["lag"]).await;
    assert_eq!(calm.code, Some(0), "{calm:?}");
    let parked = park_all(store).await;
    assert_eq!(parked.len(), 3);
    let alarm = shell.run(&["lag"]).await;
    assert_eq!(alarm.code, Some(1), "{alarm:?}");
    assert!(alarm.out.contains("alarm: 3 messages are parked"));
    let listed = shell.json(&["list"]).await;
    assert_eq!(listed.len(), 3);
    let of_ann = ["list", "--topic", "orders", "--key", "ann"];
    assert_eq!(shell.json(&of_ann).await.len(), 2);
    let text = shell.run(&["list", "--limit", "1"]).await.good();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("the broker refuses it"), "{text}");

    let second = parked.iter().find(|one| one.row.seq == Some(2));
    let id = second.expect("two of ann").row.message_id.to_string();
    let shown = shell.json(&["show", &id]).await;
    assert_eq!(shown[0]["payload"], "second");
    assert_eq!(shown[0]["headers"][0][0], "traceparent");
    assert_eq!(shown[0]["order"], "none");
    let said = shell.run(&["skip", &id]).await.good();
    assert_eq!(said.trim(), "to skip: 1");
    let of_ann = ["retry", "--topic", "orders", "--key", "ann"];
    assert_eq!(shell.run(&of_ann).await.good().trim(), "to retry: 2");
    let which = Which::Message(second.expect("two of ann").row.message_id);
    let now = store.parked(Some(&which), 10).await.expect("lists");
    assert_eq!((now.len(), now[0].wish), (1, Wish::Retry));

    let stranger = Uuid::now_v7().to_string();
    assert_eq!(shell.run(&["drop", &stranger]).await.code, Some(1));
    let said = shell.run(&["show", &stranger]).await.bad();
    assert!(said.contains("no relay has set aside"), "{said}");
    let said = shell.run(&["retry"]).await.bad();
    assert!(said.contains("--topic"), "{said}");
}

async fn consumers_are_ordered<L: Ledger>(shell: &Shell, inbox: &L) {
    let id = kill_one(inbox, "billing").await.to_string();
    let listed = shell.json(&["dlq", "list"]).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["consumer"], "billing");
    assert_eq!(listed[0]["state"], "dead");
    let shown = ["dlq", "show", "--consumer", "billing", &id];
    let shown = shell.json(&shown).await;
    assert_eq!(shown[0]["payload_hex"], "ff00");
    let replay = ["dlq", "replay", "--consumer", "billing", &id];
    assert_eq!(shell.run(&replay).await.good().trim(), "to retry: 1");
    let now = inbox.waiting("billing", None, 10).await.expect("lists");
    assert_eq!(now[0].wish, Wish::Retry);
    let lag = shell.json(&["lag"]).await;
    assert_eq!(lag[0]["consumers"][0]["set_aside"], 1);
    let unknown = ["dlq", "list", "--consumer", "bilings"];
    let said = shell.run(&unknown).await.bad();
    assert!(said.contains("there are: billing"), "{said}");
    kill_one(inbox, "shipping").await;
    let limited = shell.json(&["dlq", "list", "--limit", "1"]).await;
    assert_eq!(limited.len(), 1);
    assert_eq!(shell.json(&["dlq", "list"]).await.len(), 2);
}

fn messages() -> [Message; 3] {
    [
        Message::keyed("orders", "ann", "first"),
        Message::keyed("orders", "ann", "second").header("traceparent", "00-1-2-01"),
        Message::keyed("orders", "eve", "third"),
    ]
}

#[tokio::test]
async fn outbox_commands_show_and_order_what_is_set_aside_in_postgres() {
    let bench = Bench::new("QUORATE_KAFKA", &[]).await;
    let url = variable("QUORATE_POSTGRES");
    let shell = Shell {
        url: format!("{url}?options[search_path]={}", bench.topic()),
    };
    let Base::Pg(pool, outbox) = &bench.base else {
        unreachable!("it was made on PostgreSQL")
    };
    let mut tx = pool.begin().await.expect("begins");
    for message in messages() {
        outbox.enqueue(&mut tx, &message).await.expect("enqueues");
    }
    tx.commit().await.expect("commits");
    relays_are_ordered(&shell, outbox).await;
    let inbox = PgInbox::open(pool.clone()).await.expect("opens");
    consumers_are_ordered(&shell, &inbox).await;
    bench.end().await;
}

#[tokio::test]
async fn outbox_commands_show_and_order_what_is_set_aside_in_mysql() {
    let bench = Bench::new("QUORATE_KAFKA", &[MYSQL]).await;
    let Base::MySql(pool, outbox) = &bench.base else {
        unreachable!("it was made on MySQL")
    };
    let url: sqlx::mysql::MySqlConnectOptions = variable("QUORATE_MYSQL").parse().expect("a URL");
    let url = sqlx::ConnectOptions::to_url_lossy(&url.database(bench.topic()));
    let shell = Shell { url: url.into() };
    let mut tx = pool.begin().await.expect("begins");
    for message in messages() {
        outbox.enqueue(&mut tx, &message).await.expect("enqueues");
    }
    tx.commit().await.expect("commits");
    relays_are_ordered(&shell, outbox).await;
    let inbox = MySqlInbox::open(pool.clone()).await.expect("opens");
    consumers_are_ordered(&shell, &inbox).await;
    bench.end().await;
}

#[tokio::test]
async fn outbox_commands_show_and_order_what_is_set_aside_in_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("shop.db");
    let shell = Shell {
        url: format!("sqlite:{}", file.display()),
    };
    let said = shell.run(&["lag"]).await.bad();
    assert!(said.contains("shop.db"), "{said}");
    let options = SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(20));
    let pool = SqlitePoolOptions::new().connect_with(options).await;
    let pool = pool.expect("opens");
    let said = shell.run(&["lag"]).await.bad();
    assert!(said.contains("no tables"), "{said}");
    let outbox = SqliteOutbox::migrate(pool.clone(), 2).await;
    let outbox = outbox.expect("migrates");
    let said = shell.run(&["dlq", "list"]).await.bad();
    assert!(said.contains("no inbox yet"), "{said}");
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.expect("begins");
    for message in messages() {
        outbox.enqueue(&mut tx, &message).await.expect("enqueues");
    }
    tx.commit().await.expect("commits");
    relays_are_ordered(&shell, &outbox).await;
    let inbox = SqliteInbox::migrate(pool).await.expect("migrates");
    consumers_are_ordered(&shell, &inbox).await;
}

#[tokio::test]
async fn outbox_commands_refuse_what_is_no_database_and_show_no_password() {
    for url in ["oracle://u@h/d", "shop.db", ""] {
        let shell = Shell { url: url.into() };
        let said = shell.run(&["list"]).await.bad();
        assert!(said.contains("postgres://USER@HOST/NAME"), "{url}: {said}");
    }
    for scheme in ["postgres", "mysql"] {
        let url = format!("{scheme}://ann:sesame@127.0.0.1:1/shop");
        let said = Shell { url }.run(&["list"]).await.bad();
        assert!(
            said.contains("127.0.0.1:1") && !said.contains("sesame"),
            "{said}"
        );
    }
}

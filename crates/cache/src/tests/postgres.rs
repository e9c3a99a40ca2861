//! Following what a real PostgreSQL notifies, through sessions that end and connections that are cut.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_kv::{BoxFuture, Domain};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

use super::proxy::{Flow, Proxy};
use super::support::{DOMAIN, options, text, value};
use crate::core::planted::{self, Bug};
use crate::invalidations::{Invalidations, PgInvalidations, Position, Told};
use crate::source::{Source, Stamped};
use crate::tier::Memory;
use crate::{
    Cache, CacheOptions, Error, ErrorKind, FollowOptions, Invalidation, Level, Need, Origin,
    Result, Tiers, Version,
};

const BOUND: Duration = Duration::from_millis(400);
/// Nothing listens there.
const NOWHERE: &str = "127.0.0.1:1";

fn at_server() -> PgConnectOptions {
    let url = std::env::var("QUORATE_POSTGRES").unwrap_or_else(|_| {
        panic!(
            "QUORATE_POSTGRES is not set: run `cargo xtask test`, or `cargo xtask services -- cargo test -p \
             quorate-cache --features postgres`"
        )
    });
    url.parse().expect("a URL")
}

async fn pool(options: PgConnectOptions) -> PgPool {
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(1));
    pool.connect_lazy_with(options)
}

/// A table of one's own, whose trigger notifies the channel of its name.
struct Table {
    pool: PgPool,
    name: String,
}

impl Table {
    async fn new(what: &str) -> Arc<Table> {
        let pool = pool(at_server()).await;
        let name = format!("cache_{what}_{}", std::process::id());
        let table = Table { pool, name };
        let name = &table.name;
        for statement in [
            format!("DROP TABLE IF EXISTS {name}"),
            format!("CREATE TABLE {name} (k text PRIMARY KEY, v text NOT NULL, n bigint NOT NULL)"),
            format!(
                "CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 PERFORM pg_notify('{name}', NEW.k); RETURN NULL; END $$"
            ),
            format!(
                "CREATE TRIGGER tell AFTER INSERT OR UPDATE ON {name} FOR EACH ROW EXECUTE FUNCTION {name}()"
            ),
        ] {
            table.run(statement).await;
        }
        Arc::new(table)
    }

    async fn run(&self, statement: String) {
        let done = sqlx::query(AssertSqlSafe(statement))
            .execute(&self.pool)
            .await;
        done.expect("runs");
    }

    async fn set(&self, key: &str, value: &str) {
        let name = &self.name;
        self.run(format!(
            "INSERT INTO {name} VALUES ('{key}', '{value}', 1) ON CONFLICT (k) DO UPDATE SET v = '{value}', \
             n = {name}.n + 1"
        ))
        .await;
    }

    async fn read(&self, key: &Bytes) -> Result<Stamped> {
        let key = String::from_utf8_lossy(key).into_owned();
        let name = &self.name;
        let row: Option<(String, i64)> = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT v, n FROM {name} WHERE k = $1"
        )))
        .bind(key)
        .fetch_optional(&self.pool)
        .await
        .map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))?;
        Ok(match row {
            Some((value, n)) => Stamped::newest(Some(value.into()), Version::new(n as u64)),
            None => Stamped::newest(None, Version::ZERO),
        })
    }
}

impl Source for Table {
    fn domain(&self) -> Domain {
        DOMAIN
    }

    fn load<'a>(&'a self, key: &'a Bytes, _: Need) -> BoxFuture<'a, Result<Stamped>> {
        Box::pin(self.read(key))
    }
}

fn following(table: &Arc<Table>, of: PgInvalidations) -> Cache {
    let long = Duration::from_secs(3600);
    let tiers = Tiers {
        local: Some(Memory::new(1 << 22)),
        remote: None,
    };
    let options = CacheOptions {
        ttl: long,
        local_ttl: long,
        ..options()
    };
    let cache = Cache::new(table.clone(), tiers, options);
    let bound = FollowOptions {
        staleness_max: BOUND,
    };
    cache.follow(of, bound).expect("follows");
    cache
}

async fn soon(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn believed(cache: &Cache) {
    soon("it is proven", async || cache.is_local_believed()).await;
}

/// The server through a proxy.
async fn through_proxy() -> (Proxy, PgPool, String) {
    let server = at_server();
    let address = format!("{}:{}", server.get_host(), server.get_port());
    let proxy = Proxy::new(&address).await;
    let port = proxy
        .url()
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok());
    let through = server.host("127.0.0.1").port(port.expect("a port"));
    (proxy, pool(through).await, address)
}

#[tokio::test]
async fn postgres_notification_is_heard_when_the_row_is_visible_and_no_key_is_stuck() {
    let table = Table::new("visible").await;
    let told = PgInvalidations::new(table.pool.clone(), &table.name).expect("a channel");
    let cache = following(&table, told);
    believed(&cache).await;
    table.set("kept", "kept").await;
    soon("it is heard", async || cache.stats().heard == 1).await;
    value(&cache, "kept").await;
    for n in 0..100 {
        table.set("a", &n.to_string()).await;
        // Read all the while: what is loaded too early must not stay.
        soon("the new value", async || {
            value(&cache, "a").await == Some(n.to_string())
        })
        .await;
    }
    believed(&cache).await;
    let read = cache.get("kept", Level::Any).await.expect("reads");
    assert_eq!(read.tier, Origin::Local);
    assert_eq!(cache.stats().gaps, 1, "the beginning");
}

/// What is read by one whose connection was lost while a row was written; and how many gaps it saw.
async fn read_after_a_loss(what: &str) -> (Option<String>, u64) {
    let table = Table::new(what).await;
    let (proxy, through, address) = through_proxy().await;
    let told = PgInvalidations::new(through, &table.name).expect("a channel");
    let cache = following(&table, told);
    believed(&cache).await;
    table.set("a", "old").await;
    soon("it is heard", async || cache.stats().heard == 1).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("old"));
    proxy.turn_to(NOWHERE).await;
    soon("it is cut off", async || !cache.is_local_believed()).await;
    table.set("a", "new").await;
    proxy.turn_to(&address).await;
    believed(&cache).await;
    (value(&cache, "a").await, cache.stats().gaps)
}

/// sqlx's trap: a `PgListener` makes a new session by itself, and what was notified in between is lost.
#[tokio::test]
async fn pglistener_loss_on_reconnect_drops_what_was_there() {
    assert_eq!(read_after_a_loss("loss").await, (Some("new".to_owned()), 2));
    planted::plant(Some(Bug::FeedBeginsWithWhatIsThere));
    let (found, _) = read_after_a_loss("loss_unseen").await;
    planted::plant(None);
    assert_eq!(found.as_deref(), Some("old"), "the guard has teeth");
}

#[tokio::test]
async fn pglistener_by_itself_loses_what_was_notified_while_it_was_cut_off() {
    let table = Table::new("bare").await;
    let (proxy, through, address) = through_proxy().await;
    let mut listener = PgListener::connect_with(&through).await.expect("connects");
    listener.listen(&table.name).await.expect("listens");
    proxy.turn_to(NOWHERE).await;
    table.set("lost", "1").await;
    proxy.turn_to(&address).await;
    // It is connected again before the next row is written.
    assert!(listener.try_recv().await.expect("connects").is_none());
    table.set("heard", "1").await;
    let heard = listener.recv().await.expect("hears");
    assert_eq!(
        heard.payload(),
        "heard",
        "without an error, and without the one before"
    );
}

#[tokio::test]
async fn postgres_session_that_is_ended_by_the_server_is_another_stream() {
    let table = Table::new("ended").await;
    let name = format!("quorate-cache-{}", std::process::id());
    let listening = pool(at_server().application_name(&name)).await;
    let told = PgInvalidations::new(listening, &table.name).expect("a channel");
    let cache = following(&table, told);
    believed(&cache).await;
    table.set("a", "old").await;
    soon("it is heard", async || cache.stats().heard == 1).await;
    value(&cache, "a").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
    sqlx::query(end)
        .bind(&name)
        .execute(&table.pool)
        .await
        .expect("ends");
    soon("the next session", async || cache.stats().gaps == 2).await;
    table.set("a", "new").await;
    soon("the new value", async || {
        value(&cache, "a").await.as_deref() == Some("new")
    })
    .await;
}

#[tokio::test]
async fn postgres_that_is_held_is_believed_no_longer_than_the_bound() {
    let table = Table::new("held").await;
    let (proxy, through, _) = through_proxy().await;
    let told = PgInvalidations::new(through, &table.name).expect("a channel");
    let cache = following(&table, told);
    believed(&cache).await;
    table.set("a", "old").await;
    soon("it is heard", async || cache.stats().heard == 1).await;
    value(&cache, "a").await;
    proxy.set(Flow::Held);
    table.set("a", "new").await;
    let written = Instant::now();
    loop {
        let began = Instant::now();
        let read = cache.get("a", Level::Any).await.expect("reads");
        if text(read.value).as_deref() == Some("new") {
            break;
        }
        assert!(
            began < written + BOUND,
            "served {:?} after it was written",
            began - written
        );
    }
    assert!(!cache.is_local_believed());
    proxy.set(Flow::Open);
    believed(&cache).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn postgres_payloads_are_read_as_told_and_what_cannot_be_read_is_everything() {
    let pool = pool(at_server()).await;
    let channel = format!("payloads {}", std::process::id());
    let told = PgInvalidations::new(pool.clone(), &channel).expect("a channel");
    let mut told = told.read_by(|payload| {
        let (n, key) = payload.split_once(':')?;
        let version = Version::new(n.parse().ok()?);
        Some((
            Bytes::copy_from_slice(key.as_bytes()),
            Invalidation::At(version),
        ))
    });
    let begun = told.after(None, BOUND).await.expect("begins");
    let notify = async |payload: &str| {
        let notify = sqlx::query("SELECT pg_notify($1, $2)")
            .bind(&channel)
            .bind(payload);
        notify.execute(&pool).await.expect("notifies");
    };
    for payload in ["7:a", "no version", "8:b:c"] {
        notify(payload).await;
    }
    let mut said = Vec::new();
    let mut position = Position {
        stream: begun.stream,
        number: 0,
    };
    while said.len() < 3 {
        let batch = told.after(Some(&position), BOUND).await.expect("answers");
        assert_eq!(batch.stream, position.stream);
        for message in batch.messages {
            assert_eq!(message.number, position.number + 1);
            position.number += 1;
            said.push(message.told);
        }
    }
    let at = |n| Invalidation::At(Version::new(n));
    let expected = [
        Told::Key("a".into(), at(7)),
        Told::All,
        Told::Key("b:c".into(), at(8)),
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn postgres_channel_that_cannot_be_is_invalid() {
    let pool = pool(at_server()).await;
    for channel in ["", "zero\0", &"x".repeat(41)] {
        let failed = PgInvalidations::new(pool.clone(), channel).map(drop);
        assert_eq!(failed.expect_err("is refused").kind(), ErrorKind::Invalid);
    }
}

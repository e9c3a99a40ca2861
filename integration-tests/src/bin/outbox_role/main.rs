//! One process of the outbox's crash tests: `outbox-role ROLE SETTING=VALUE...`
//!
//! Roles: `producer` writes orders and messages about them; `relay` publishes; `consumer` applies;
//! `embedded` does all three over SQLite files; `abandon` ends the runtime under a consumer.
//! `QUORATE_CRASH_AT=point:n` kills the process by SIGKILL when it passes that point for the nth time.
//! Producers end by themselves, the others run until they are killed.

mod abandon;
mod consumer;
mod embedded;
mod picky;
mod producer;
mod relay;

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use quorate_outbox::broker::kafka::{KafkaBroker, KafkaMode, KafkaOptions};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{MySqlPool, PgPool};

/// What the command line says.
pub struct Settings(HashMap<String, String>);

impl Settings {
    fn read(words: impl Iterator<Item = String>) -> Result<Settings> {
        let pair = |word: String| {
            let (name, value) = word.split_once('=').context("SETTING=VALUE")?;
            Ok((name.to_owned(), value.to_owned()))
        };
        Ok(Settings(words.map(pair).collect::<Result<_>>()?))
    }

    /// A setting that has to be there.
    pub fn get(&self, name: &str) -> Result<&str> {
        let value = self.0.get(name).map(String::as_str);
        value.with_context(|| format!("the setting {name} is missing"))
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<u64> {
        self.get(name)?
            .parse()
            .with_context(|| format!("{name} is no number"))
    }

    /// Connects to the schema of the test.
    pub async fn pool(&self) -> Result<PgPool> {
        let options: PgConnectOptions = self.get("postgres")?.parse()?;
        let options = options.options([("search_path", self.get("schema")?)]);
        let pool = PgPoolOptions::new().max_connections(12);
        Ok(pool.connect_with(options).await?)
    }

    /// Whether the test's database is one of MySQL's protocol.
    pub fn is_mysql(&self) -> bool {
        self.get("database")
            .is_ok_and(|database| database == "mysql")
    }

    /// Connects to it.
    pub async fn mysql(&self) -> Result<MySqlPool> {
        let options: MySqlConnectOptions = self.get("mysql")?.parse()?;
        let options = options.database(self.get("schema")?);
        let pool = MySqlPoolOptions::new().max_connections(12);
        Ok(pool.connect_with(options).await?)
    }

    /// Connects to the broker of the test.
    pub fn kafka(&self) -> Result<KafkaBroker> {
        let mut options = KafkaOptions::new(self.get("kafka")?);
        if self.get("mode").is_ok_and(|mode| mode == "transactional") {
            options.mode = KafkaMode::Transactional {
                prefix: "crash".into(),
                progress_topic: "quorate-outbox-progress".into(),
            };
        }
        for (name, value) in [
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "500"),
            ("topic.metadata.refresh.interval.ms", "300"),
        ] {
            options.consumer.push((name.into(), value.into()));
        }
        if let Ok(level) = self.get("isolation") {
            options
                .consumer
                .push(("isolation.level".into(), level.into()));
        }
        Ok(KafkaBroker::new(options)?)
    }
}

/// Numbers that depend on the seed alone.
pub struct Random(pub u64);

impl Random {
    /// The next number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let role = words.next().context("which role?")?;
    let settings = Settings::read(words)?;
    match role.as_str() {
        "producer" => producer::run(&settings).await,
        "relay" => relay::run(&settings).await,
        "consumer" => consumer::run(&settings).await,
        "embedded" => embedded::run(&settings).await,
        "abandon" => tokio::task::spawn_blocking(|| abandon::run(settings)).await?,
        other => bail!("there is no role {other}"),
    }
}

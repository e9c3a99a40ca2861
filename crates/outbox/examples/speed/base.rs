//! A schema of its own, and the broker.

use quorate_outbox::broker::kafka::{KafkaBroker, KafkaOptions};
use quorate_outbox::postgres::PgOutbox;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

use crate::Outcome;

/// 200 bytes that do not compress to nothing.
pub fn payload() -> Vec<u8> {
    (0..200u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// A schema, removed by [`Base::end`].
pub struct Base {
    pub pool: PgPool,
    pub outbox: PgOutbox,
    name: String,
}

impl Base {
    pub async fn new(parts: u16) -> Outcome<Base> {
        let url = std::env::var("QUORATE_POSTGRES")?;
        let name = format!("quorate_bench_{}", uuid::Uuid::now_v7().simple());
        let options: PgConnectOptions = url.parse()?;
        let options = options.options([("search_path", name.as_str())]);
        let pool = PgPoolOptions::new()
            .max_connections(40)
            .connect_with(options)
            .await?;
        sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {name}")))
            .execute(&pool)
            .await?;
        let outbox = PgOutbox::migrate(pool.clone(), parts).await?;
        Ok(Base { pool, outbox, name })
    }

    /// A topic of this schema's own.
    pub fn topic(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    pub async fn end(self) -> Outcome<()> {
        let drop = format!("DROP SCHEMA {} CASCADE", self.name);
        sqlx::query(AssertSqlSafe(drop)).execute(&self.pool).await?;
        Ok(())
    }
}

pub fn kafka() -> Outcome<KafkaBroker> {
    let mut options = KafkaOptions::new(std::env::var("QUORATE_KAFKA")?);
    for (name, value) in [
        ("topic.metadata.refresh.interval.ms", "300"),
        // The broker of the tests answers a fetch only when its time is over, whatever came meanwhile.
        ("fetch.wait.max.ms", "5"),
    ] {
        options.consumer.push((name.into(), value.into()));
    }
    Ok(KafkaBroker::new(options)?)
}

/// The value at a share of sorted values.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

//! How fast the SQL layer is, on PostgreSQL: `cargo xtask bench sql`.
//!
//! Server and load run on this machine at once. `QUORATE_POSTGRES` names the server. The first argument is the JSON file for the results;
//! a second one names the only part to measure.

mod bulk;
mod routed;
mod scatter;

use std::error::Error;

use quorate_sql::{Database, Options, PoolOptions};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool, Postgres};

/// Anything may fail here, and then the run ends.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PARTS: [&str; 3] = ["routed", "bulk", "scatter"];

#[tokio::main]
async fn main() -> Outcome<()> {
    let file = std::env::args()
        .nth(1)
        .ok_or("which file for the results?")?;
    let short = std::env::var_os("QUORATE_BENCH_SHORT").is_some();
    let only = std::env::args().nth(2);
    if let Some(only) = only.as_deref().filter(|only| !PARTS.contains(only)) {
        return Err(format!("there is no part {only}: {}", PARTS.join(", ")).into());
    }
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only == part);
    let mut results = json!({ "short": short });
    if wanted("routed") {
        results["routed"] = routed::run(if short { 200 } else { 5_000 }).await?;
    }
    if wanted("bulk") {
        results["bulk"] = bulk::run(if short { 2_000 } else { 200_000 }).await?;
    }
    if wanted("scatter") {
        results["scatter"] = scatter::run(if short { 20_000 } else { 1_000_000 }).await?;
    }
    std::fs::write(&file, serde_json::to_string_pretty(&results)?)?;
    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}

/// A schema, removed by [`Base::end`].
pub struct Base {
    /// Of sqlx, bare.
    pub pool: PgPool,
    url: String,
    name: String,
}

impl Base {
    /// A schema of that number.
    pub async fn new(number: usize) -> Outcome<Base> {
        let server = std::env::var("QUORATE_POSTGRES")?;
        let name = format!("quorate_bench_{}_{number}", std::process::id());
        let url = format!("{server}?options=-c%20search_path%3D{name}");
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect(&url)
            .await?;
        let base = Base { pool, url, name };
        base.run(&format!("CREATE SCHEMA {}", base.name)).await?;
        Ok(base)
    }

    /// The same through the crate, with as many connections.
    pub async fn database(&self) -> Outcome<Database<Postgres>> {
        let mut options = Options::new(&self.url);
        options.pool = PoolOptions::up_to(4);
        Ok(Database::connect(options).await?)
    }

    /// Runs a statement.
    pub async fn run(&self, text: &str) -> Outcome<()> {
        let text = AssertSqlSafe(text.to_owned());
        sqlx::query(text).execute(&self.pool).await?;
        Ok(())
    }

    /// Removes it.
    pub async fn end(self) -> Outcome<()> {
        self.run(&format!("DROP SCHEMA {} CASCADE", self.name))
            .await
    }
}

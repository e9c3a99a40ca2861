//! One query by its key: through router, session and lease, beside sqlx's pool.

use std::time::{Duration, Instant};

use quorate_sql::Read;
use quorate_sql::shard::{Router, Shards};
use serde_json::{Value, json};

use crate::{Base, Outcome};

const ROWS: i64 = 10_000;
const ROUNDS: usize = 11;
const LOOK: &str = "SELECT n FROM t WHERE id = $1";

pub async fn run(queries: i64) -> Outcome<Value> {
    let base = Base::new(0).await?;
    base.run("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL)")
        .await?;
    let fill = format!(
        "INSERT INTO t SELECT g, g FROM generate_series(0, {}) g",
        ROWS - 1
    );
    base.run(&fill).await?;
    let shards = Shards::new(Router::hash_evenly(1, 64)?, vec![base.database().await?])?;
    let key = |n: i64| n * 7_919 % ROWS;
    // By turns, so that what else the machine does falls upon both; the first round warms up.
    let (mut bare, mut routed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for n in (0..queries).map(key) {
            let found: i64 = sqlx::query_scalar(LOOK)
                .bind(n)
                .fetch_one(&base.pool)
                .await?;
            check(found, n)?;
        }
        bare.push(begun.elapsed());
        let begun = Instant::now();
        for n in (0..queries).map(key) {
            let session = shards.for_key(n)?.session();
            let mut lease = session.read(Read::Primary).await?;
            let found: i64 = sqlx::query_scalar(LOOK)
                .bind(n)
                .fetch_one(&mut *lease)
                .await?;
            check(found, n)?;
        }
        routed.push(begun.elapsed());
    }
    drop(shards);
    base.end().await?;
    let (bare, routed) = (median(bare), median(routed));
    let each = |time: Duration| time.as_secs_f64() * 1e6 / queries as f64;
    Ok(json!({
        "queries": queries,
        "rounds": ROUNDS - 1,
        "sqlx_us": each(bare),
        "routed_us": each(routed),
        "times_sqlx": routed.as_secs_f64() / bare.as_secs_f64(),
        "bar": 1.05,
    }))
}

fn check(found: i64, wanted: i64) -> Outcome<()> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("row {wanted} has {found}").into())
}

fn median(mut rounds: Vec<Duration>) -> Duration {
    rounds.remove(0);
    rounds.sort_unstable();
    rounds[rounds.len() / 2]
}

//! Loading rows: by `Bulk`, beside one insert for each row, in one transaction and in one each.

use std::time::Instant;

use futures_util::stream;
use quorate_sql::bulk::{Bulk, Cell};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{Base, Outcome};

const PUT: &str = "INSERT INTO t (id, word) VALUES ($1, $2)";

pub async fn run(rows: i64) -> Outcome<Value> {
    let base = Base::new(0).await?;
    base.run("CREATE TABLE t (id bigint PRIMARY KEY, word text NOT NULL)")
        .await?;
    let few = rows / 10;
    let mut connection = base.pool.acquire().await?;

    let begun = Instant::now();
    sqlx::query("BEGIN").execute(&mut *connection).await?;
    insert(&mut connection, 0..few).await?;
    sqlx::query("COMMIT").execute(&mut *connection).await?;
    let one_transaction = few as f64 / begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let fewer = few / 4;
    insert(&mut connection, few..few + fewer).await?;
    let one_each = fewer as f64 / begun.elapsed().as_secs_f64();
    drop(connection);
    base.run("TRUNCATE t").await?;

    let session = base.database().await?.session();
    let load = Bulk::new("speed", "t", ["id", "word"]);
    let all = (0..rows).map(|id| Ok(vec![Cell::Int(id), Cell::Text(word(id))]));
    let begun = Instant::now();
    let done = load.load(&session, stream::iter(all), |_| {}).await?;
    let bulk = done.rows as f64 / begun.elapsed().as_secs_f64();
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&base.pool)
        .await?;
    if count != rows {
        return Err(format!("{count} rows of {rows} were loaded").into());
    }
    drop(session);
    base.end().await?;
    Ok(json!({
        "rows": rows,
        "bulk_rows_per_s": bulk,
        "row_by_row_in_one_transaction_rows_per_s": one_transaction,
        "row_by_row_rows_per_s": one_each,
        "times_row_by_row_in_one_transaction": bulk / one_transaction,
        "times_row_by_row": bulk / one_each,
        "bar": 10.0,
    }))
}

async fn insert(connection: &mut PgConnection, ids: std::ops::Range<i64>) -> Outcome<()> {
    for id in ids {
        let put = sqlx::query(PUT).bind(id).bind(word(id));
        put.execute(&mut *connection).await?;
    }
    Ok(())
}

fn word(id: i64) -> String {
    format!("the word of row {id}, which is as long as most")
}

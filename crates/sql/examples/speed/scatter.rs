//! Questions to four shards: all rows in order, groups, pages; how long each takes, and how much memory.

use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::TryStreamExt;
use quorate_sql::shard::{
    Aggregate, Direction, Kind, Listing, Router, Sender, Shards, Value as Sum, merge,
};
use quorate_sql::{Lease, Read};
use serde_json::{Value, json};
use sqlx::{Postgres, Row};

use crate::{Base, Outcome};

const SHARDS: i64 = 4;
const GROUPS: i64 = 1_000;
const PAGE: usize = 100;

pub async fn run(rows: i64) -> Outcome<Value> {
    let mut bases = Vec::new();
    let mut databases = Vec::new();
    for shard in 0..SHARDS {
        let base = Base::new(shard as usize).await?;
        base.run("CREATE TABLE t (id bigint PRIMARY KEY, part bigint NOT NULL, n bigint NOT NULL)")
            .await?;
        let fill = format!(
            "INSERT INTO t SELECT g, g % {GROUPS}, g FROM generate_series({shard}, {}, {SHARDS}) g",
            rows - 1
        );
        base.run(&fill).await?;
        base.run("ANALYZE t").await?;
        databases.push(base.database().await?);
        bases.push(base);
    }
    let shards = Shards::new(Router::hash_evenly(SHARDS as usize, 256)?, databases)?;
    let results = json!({
        "rows": rows,
        "shards": SHARDS,
        "ordered": ordered(&shards, rows).await?,
        "groups": groups(&shards, rows).await?,
        "pages": pages(&shards, rows).await?,
    });
    drop(shards);
    for base in bases {
        base.end().await?;
    }
    Ok(results)
}

async fn ordered(shards: &Shards<Postgres>, rows: i64) -> Outcome<Value> {
    let before = Memory::reset()?;
    let begun = Instant::now();
    let query = |_, mut lease: Lease<Postgres>, sender: Sender<i64>| {
        Box::pin(async move {
            let mut found = sqlx::query("SELECT id FROM t ORDER BY id").fetch(&mut *lease);
            while let Some(row) = found.try_next().await? {
                if !sender.send(row.try_get(0)?).await {
                    break;
                }
            }
            Ok(())
        }) as BoxFuture<'static, quorate_sql::Result<()>>
    };
    let mut merged = std::pin::pin!(merge(shards.scatter(Read::Primary, 64, query), i64::cmp));
    let mut next = 0;
    while let Some(id) = merged.try_next().await? {
        if id != next {
            return Err(format!("row {id} comes where {next} should").into());
        }
        next += 1;
    }
    expect(next, rows)?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(json!({
        "seconds": seconds,
        "rows_per_s": rows as f64 / seconds,
        "memory_grew_by_kib": before.grown()?,
    }))
}

async fn groups(shards: &Shards<Postgres>, rows: i64) -> Outcome<Value> {
    let before = Memory::reset()?;
    let begun = Instant::now();
    let ask = Aggregate::over("t")
        .group_by("part", Kind::Int)
        .count()
        .sum("n", Kind::Int)
        .average("n", Kind::Int);
    let mut groups = std::pin::pin!(shards.aggregate(Read::Primary, &ask)?);
    let (mut count, mut sum, mut number) = (0, 0, 0);
    while let Some(group) = groups.try_next().await? {
        let [Sum::Int(own), Sum::Int(total), _] = group.values[..] else {
            return Err(format!("a group of another kind: {group:?}").into());
        };
        (count, sum, number) = (count + own, sum + total, number + 1);
    }
    expect(count as i64, rows)?;
    expect(sum as i64, rows * (rows - 1) / 2)?;
    Ok(json!({
        "groups": number,
        "seconds": begun.elapsed().as_secs_f64(),
        "memory_grew_by_kib": before.grown()?,
    }))
}

async fn pages(shards: &Shards<Postgres>, rows: i64) -> Outcome<Value> {
    let listing = Listing::of("t", ["n"]).order_by("id", Kind::Int, Direction::Descending);
    let mut token = None;
    let (mut first, mut last, mut number) = (0.0, 0.0, 0);
    // As deep as a hundred pages: the last must cost no more than the first.
    while number < 100 {
        let begun = Instant::now();
        let page = shards
            .page(Read::Primary, &listing, PAGE, token.as_ref())
            .await?;
        last = begun.elapsed().as_secs_f64() * 1e3;
        if number == 1 {
            first = last;
        }
        let id: i64 = page.rows.first().ok_or("an empty page")?.try_get(1)?;
        expect(id, rows - 1 - number * PAGE as i64)?;
        number += 1;
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    Ok(json!({ "rows": PAGE, "second_ms": first, "hundredth_ms": last }))
}

fn expect(got: i64, wanted: i64) -> Outcome<()> {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{got} where {wanted} was expected").into())
}

/// The process's memory, of which Linux tells the peak.
struct Memory {
    before: i64,
}

impl Memory {
    /// The peak begins anew.
    fn reset() -> Outcome<Memory> {
        std::fs::write("/proc/self/clear_refs", "5")?;
        Ok(Memory { before: peak()? })
    }

    /// By how many KiB the peak has grown.
    fn grown(&self) -> Outcome<i64> {
        Ok(peak()? - self.before)
    }
}

fn peak() -> Outcome<i64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("no VmHWM in /proc/self/status")?.parse()?)
}

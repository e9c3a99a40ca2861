//! How fast the outbox is, on PostgreSQL and a Kafka-compatible broker: `cargo xtask bench outbox`.
//!
//! Everything runs on this machine at once: server, broker and load. `QUORATE_POSTGRES` and `QUORATE_KAFKA` name the
//! servers. The first argument is the JSON file for the results; a second one names the only part to measure.

mod base;
mod drain;
mod enqueue;
mod latency;

use std::error::Error;

use serde_json::json;

/// Anything may fail here, and then the run ends.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PARTS: [&str; 3] = ["enqueue", "end_to_end", "drain"];

#[tokio::main]
async fn main() -> Outcome<()> {
    let file = std::env::args()
        .nth(1)
        .ok_or("which file for the results?")?;
    let short = std::env::var_os("QUORATE_BENCH_SHORT").is_some();
    let rows = if short { 20_000 } else { 1_000_000 };
    let seconds = if short { 1 } else { 5 };
    let only = std::env::args().nth(2);
    if let Some(only) = only.as_deref().filter(|only| !PARTS.contains(only)) {
        return Err(format!("there is no part {only}: {}", PARTS.join(", ")).into());
    }
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only == part);
    let mut results = json!({});
    if wanted("enqueue") {
        results["enqueue"] = enqueue::run(seconds).await?;
    }
    if wanted("end_to_end") {
        results["end_to_end"] = latency::run(if short { 2 } else { 20 }).await?;
    }
    if wanted("drain") {
        results["drain"] = drain::run(rows).await?;
    }
    std::fs::write(&file, serde_json::to_string_pretty(&results)?)?;
    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}

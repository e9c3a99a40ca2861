//! The page `docs/cache-consistency.md`.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use quorate_bench::cache::Outcome;
use quorate_cache::Estimate;

use crate::consistency::{ConsistencyArgs, Line, Total};
use crate::host;

/// The whole page.
pub fn text(lines: &[Line], totals: &[Total], args: &ConsistencyArgs, elapsed: Duration) -> String {
    let mut page = HEAD.to_owned();
    let ConsistencyArgs {
        commit,
        cell_ms,
        reads,
        ..
    } = args;
    // Writing to a string does not fail.
    let _ = writeln!(
        page,
        "Measured at commit {commit} in {:.0} s on {}; {cell_ms} ms a cell, {} reads a strategy at least.\n",
        elapsed.as_secs_f64(),
        host::line(),
        grouped(*reads),
    );
    page += TOTALS;
    for total in totals {
        for (schedule, of) in [
            ("natural", &total.natural),
            ("adversarial", &total.adversarial),
        ] {
            let _ = writeln!(
                page,
                "| {} | {schedule} | {} | {} | {} | {} | {} |",
                total.strategy,
                grouped(of.reads),
                grouped(of.near),
                rate(of.stale, of.reads),
                of.broken,
                bound(of.broken, of.reads),
            );
        }
    }
    for (title, is_adversarial) in [("Natural", false), ("Adversarial", true)] {
        let _ = write!(page, "\n## {title}\n\n{COLUMNS}");
        for line in lines
            .iter()
            .filter(|line| line.is_adversarial == is_adversarial)
        {
            page += &row(line);
        }
    }
    page
}

/// A line for who waits.
pub fn short(line: &Line) -> String {
    let of = &line.outcome;
    let schedule = if line.is_adversarial {
        "adversarial"
    } else {
        "natural"
    };
    format!(
        "{schedule:<12} {:<32} {:<24} {:>9} reads, {:>7} stale, {:>5} past promise, {:>3} stuck, {:>6} errors",
        line.cache,
        line.fault.name(),
        of.reads,
        of.stale,
        of.broken,
        of.stuck,
        of.errors + of.write_errors
    )
}

fn row(line: &Line) -> String {
    let of = &line.outcome;
    let asked = of.reads + of.errors;
    let staleness = |share| of_histogram(&of.staleness, share, 1_000.0);
    let latency = |share| of_histogram(&of.latency, share, 1_000.0);
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {} | {} | {} |\n",
        line.cache,
        line.fault.name(),
        grouped(of.reads),
        rate(of.stale, of.reads),
        if line.promises {
            of.broken.to_string()
        } else {
            "-".to_owned()
        },
        staleness(0.5),
        staleness(0.99),
        staleness(1.0),
        of.stuck,
        per_million(of.resurrected, of.reads),
        per_million(of.own_missed, of.reads),
        loads_per_miss(of),
        100.0 * (1.0 - of.misses as f64 / of.reads.max(1) as f64),
        latency(0.5),
        latency(0.99),
        per_million(of.errors, asked),
    )
}

fn loads_per_miss(of: &Outcome) -> String {
    match of.misses {
        0 => "-".to_owned(),
        misses => format!("{:.2}", of.loads as f64 / misses as f64),
    }
}

/// A rate with its interval.
fn rate(hits: u64, of: u64) -> String {
    let Estimate {
        rate, low, high, ..
    } = Estimate::per_million(hits, of);
    match hits {
        0 => format!("0 (< {})", number(high)),
        _ => format!("{} ({} to {})", number(rate), number(low), number(high)),
    }
}

fn bound(hits: u64, of: u64) -> String {
    number(Estimate::per_million(hits, of).high)
}

fn per_million(hits: u64, of: u64) -> String {
    number(Estimate::per_million(hits, of.max(1)).rate)
}

fn number(of: f64) -> String {
    match of {
        0.0 => "0".to_owned(),
        of if of < 10.0 => format!("{of:.2}"),
        of => grouped(of.round() as u64),
    }
}

fn of_histogram(histogram: &Histogram<u64>, share: f64, unit: f64) -> String {
    match histogram.is_empty() {
        true => "-".to_owned(),
        false => number(histogram.value_at_quantile(share) as f64 / unit),
    }
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

const HEAD: &str = "\
# How stale caches are

Written by `cargo xtask bench cache --consistency`; do not edit. What is measured, and how the ledger knows the
truth, stands at the head of [`bench/src/cache`](../crates/bench/src/cache/mod.rs); the promises in
[cache.md](cache.md).

A read is *stale* if something newer had been acknowledged to its writer before the read began. It is *past its
promise* if it is staler than the strategy says: at `Any` a process sees its own writes at once, those of others at
once without a tier of its own and within `local_ttl` (100 ms here) with one, and what nobody was told of, since the
writer died or Redis did not answer, within the TTL. `no cache`, tokens and linearizable reads promise no stale read
whatever happens. Naive caches promise nothing.

Three processes, 256 keys by Zipf's law, eight writers, of whose writes one in ten deletes; a source in the process
whose loads take 1 ms, so that commit times are exact; Redis and its replica are real. The load is a closed loop, so
latencies show what a read costs when the machine is full. The TTL of Redis is longer than a run. *Stuck* are keys
still wrong in some process after all writers have ended, the fault is over and `local_ttl` has passed. Where a writer
was killed or Redis not told, ours keep them until the TTL, as they say. Intervals are Wilson's, of 95 %, as if reads
were independent of each other.

The adversarial schedule stops every fourth passage of a named point for up to 20 ms: between reading and answering in
the source, between commit and invalidation, before a put into Redis, before an invalidation, after a look.
Faults: a loader of which every tenth answer takes 20 to 50 ms; writers of which every tenth dies between commit and
invalidation; Redis down for half of the time; Redis failed over to a replica that lacks the last 150 ms; every fifth
invalidation lost; all of them twice; all of them late by up to 10 ms, so that they overtake each other; a replica of
the source that is 30 ms behind, which naive caches read, and ours wherever it will do; the clock of Redis 30 ms forward
and back again, each 40 ms, which only ages are read from: the bound of the bounded row is wider by that.

*Coherent* are processes that follow what others write (`staleness_max` 25 ms). Faults of theirs alone: they hear nothing
for half of the time; every third answer lacks a message; all messages come twice; two of each answer have changed places.
These are done to what Redis answered, before a cache looks at it. A *careless* replica is a source that can't give
its newest state: what it gave stays until its TTL, unless the key is deleted once more when it has caught up (*twice*,
after 60 ms). The naive double delete has its second one after 100 ms.

";

const TOTALS: &str = "\
## All reads of a strategy

| strategy | schedule | reads | within 10 ms of a write to their key | stale of a million | past promise | of a million, at most |
|---|---|---|---|---|---|---|
";

const COLUMNS: &str = "\
| cache | fault | reads | stale of a million (95 %) | past promise | P50 ms | P99 ms | longest ms | stuck keys | \
back from deletion, of a million | own writes missed, of a million | loads a miss | hits % | latency P50 µs | P99 µs \
| errors of a million |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

//! The tables of staleness: each cache in each weather, natural and adversarial, over real Redis servers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use quorate_bench::cache::{
    Cell, Fault, Outcome, PROCESSES, Promise, ROWS, Row, Shared, Strike, Subject, Tiering, Truth,
    Weather, direct, run,
};
use quorate_cache::CacheOptions;
use quorate_cache::tier::redis::{Redis, RedisOptions};

use crate::naive::{KINDS, Kind, Naive};
use crate::page;
use crate::servers::{Servers, Way};

const KEYS: usize = 256;
const WRITES_MAX: usize = 2_000_000;
/// Readers where what counts is how much is read.
const MANY_READERS: usize = 1_024;
/// Of so many reads of a strategy, so many begin within 10 ms of an acknowledged write to their key.
const NEAR_MIN: u64 = 100_000;

/// How much is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct ConsistencyArgs {
    /// The page to be written
    #[arg(long)]
    pub page: PathBuf,
    /// The commit that is measured
    #[arg(long, default_value = "unknown")]
    pub commit: String,
    /// Milliseconds of each cell of the tables
    #[arg(long, default_value_t = 1_000)]
    pub cell_ms: u64,
    /// Reads of each strategy of ours, over all
    #[arg(long, default_value_t = 10_000_000)]
    pub reads: u64,
    /// Only caches whose names have this in them
    #[arg(long)]
    pub only: Option<String>,
}

/// A cache of the tables.
#[derive(Clone, Copy)]
enum Cache {
    None,
    Naive(Kind),
    Ours(&'static Row),
}

impl Cache {
    fn all() -> Vec<Cache> {
        let naive = KINDS.into_iter().map(Cache::Naive);
        let ours = ROWS.iter().map(Cache::Ours);
        [Cache::None].into_iter().chain(naive).chain(ours).collect()
    }

    fn name(&self) -> &'static str {
        match self {
            Cache::None => "no cache",
            Cache::Naive(kind) => kind.name,
            Cache::Ours(row) => row.name,
        }
    }

    /// Whether a fault means anything to it. The naive ones look at no clock and follow nobody.
    fn knows(&self, fault: Fault) -> bool {
        match self {
            Cache::None => !fault.is_of_remote() && !fault.is_of_messages(),
            Cache::Naive(_) => fault != Fault::ClockStepped && !fault.is_of_messages(),
            Cache::Ours(row) => row.knows(fault),
        }
    }

    fn promise(&self, fault: Fault) -> Option<Promise> {
        match self {
            Cache::None => Some(Promise::AT_ONCE),
            Cache::Naive(_) => None,
            Cache::Ours(row) => Some(row.promise(&options(), fault)),
        }
    }

    fn may_stick(&self, fault: Fault) -> bool {
        match self {
            Cache::None => false,
            Cache::Naive(_) => true,
            Cache::Ours(row) => row.may_stick(fault),
        }
    }
}

/// One line of a table.
pub struct Line {
    pub cache: &'static str,
    /// Whether it promises anything.
    pub promises: bool,
    /// Whether keys may stay wrong until their TTL.
    pub may_stick: bool,
    pub fault: Fault,
    pub is_adversarial: bool,
    pub outcome: Outcome,
}

/// All that is told of a strategy of ours: its lines, and the reads that were made beyond them.
pub struct Total {
    pub strategy: &'static str,
    pub natural: Outcome,
    pub adversarial: Outcome,
}

fn options() -> CacheOptions {
    CacheOptions {
        local_ttl: Duration::from_millis(100),
        breaker_pause: Duration::from_millis(20),
        ..CacheOptions::default()
    }
}

/// Runs everything, and writes the page.
pub async fn measure(args: &ConsistencyArgs) -> Result<()> {
    let bench = Bench {
        servers: Servers::from_environment()?,
        args: args.clone(),
        cells: AtomicU64::new(0),
    };
    bench.servers.restore().await?;
    let began = Instant::now();
    let mut caches = Cache::all();
    caches.retain(|cache| {
        args.only
            .as_ref()
            .is_none_or(|only| cache.name().contains(only.as_str()))
    });
    if caches.is_empty() {
        bail!("no cache of the tables has {:?} in its name", args.only);
    }
    let lines = bench.tables(&caches).await?;
    let totals = bench.totals(&caches, &lines).await?;
    let elapsed = began.elapsed();
    std::fs::write(&args.page, page::text(&lines, &totals, args, elapsed))?;
    println!(
        "written to {} after {:.0} s",
        args.page.display(),
        elapsed.as_secs_f64()
    );
    let missed = missed_bars(&lines, &totals, args);
    match missed.is_empty() {
        true => Ok(()),
        false => bail!("bars that were missed:\n  {}", missed.join("\n  ")),
    }
}

/// The bars that were missed. Of a run with `--only`, those of which it can tell.
fn missed_bars(lines: &[Line], totals: &[Total], args: &ConsistencyArgs) -> Vec<String> {
    let mut missed = Vec::new();
    for total in totals {
        let mut both = total.natural.clone();
        both.merge(&total.adversarial);
        let name = total.strategy;
        if both.broken > 0 {
            missed.push(format!("{name}: {} reads past its promise", both.broken));
        }
        if both.foreign > 0 {
            missed.push(format!("{name}: {} values of other keys", both.foreign));
        }
        if both.reads < args.reads || both.near < NEAR_MIN.min(args.reads / 100) {
            missed.push(format!(
                "{name}: {} reads, {} near a write",
                both.reads, both.near
            ));
        }
    }
    for line in lines {
        let Line { cache, fault, .. } = line;
        let Outcome { stale, stuck, .. } = line.outcome;
        if stuck > 0 && !line.may_stick {
            missed.push(format!("{cache}, {}: {stuck} keys are stuck", fault.name()));
        }
        if line.cache == Cache::None.name() && stale > 0 {
            missed.push(format!(
                "without a cache {stale} reads were stale: the ledger is wrong"
            ));
        }
    }
    for kind in KINDS {
        let mut of = lines
            .iter()
            .filter(|line| line.cache == kind.name)
            .peekable();
        if of.peek().is_some() && of.all(|line| line.outcome.stale == 0) {
            missed.push(format!("{} was not found stale", kind.name));
        }
    }
    missed
}

struct Bench {
    servers: Servers,
    args: ConsistencyArgs,
    cells: AtomicU64,
}

impl Bench {
    async fn tables(&self, caches: &[Cache]) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for is_adversarial in [false, true] {
            for cache in caches {
                for fault in Fault::ALL {
                    if !cache.knows(fault) {
                        continue;
                    }
                    let cell = Cell {
                        readers: 48,
                        writers: 8,
                        duration: Duration::from_millis(self.args.cell_ms),
                        reads_max: u64::MAX,
                        seed: lines.len() as u64,
                        rest: options().local_ttl + Duration::from_millis(200),
                    };
                    let outcome = self.cell(*cache, fault, is_adversarial, &cell).await?;
                    let line = Line {
                        cache: cache.name(),
                        promises: cache.promise(fault).is_some(),
                        may_stick: cache.may_stick(fault),
                        fault,
                        is_adversarial,
                        outcome,
                    };
                    println!("{}", page::short(&line));
                    lines.push(line);
                }
            }
        }
        Ok(lines)
    }

    /// Adds to what the tables have of each strategy what its reads lack, half of them in each schedule.
    async fn totals(&self, caches: &[Cache], lines: &[Line]) -> Result<Vec<Total>> {
        let mut totals = Vec::new();
        let rows: Vec<&Row> = ROWS
            .iter()
            .filter(|row| caches.iter().any(|c| c.name() == row.name))
            // Nothing is promised of what a careless source gave.
            .filter(|row| !row.is_careless)
            .collect();
        for strategy in strategies(&rows) {
            let of: Vec<&&Row> = rows
                .iter()
                .filter(|row| strategy_of(row) == strategy)
                .collect();
            // The one that reads the fastest.
            let fast = of
                .iter()
                .min_by_key(|row| (row.tiering == Tiering::Remote, row.tiering == Tiering::Both));
            let Some(fast) = fast else {
                continue;
            };
            let mut sums = Vec::new();
            for is_adversarial in [false, true] {
                let mut sum = Outcome::new();
                let is_of = |line: &&Line| {
                    line.is_adversarial == is_adversarial
                        && of.iter().any(|row| row.name == line.cache)
                };
                lines
                    .iter()
                    .filter(is_of)
                    .for_each(|line| sum.merge(&line.outcome));
                self.read_more(fast, is_adversarial, &mut sum).await?;
                println!(
                    "{strategy}, adversarial {is_adversarial}: {} reads, {} broken",
                    sum.reads, sum.broken
                );
                sums.push(sum);
            }
            let mut sums = sums.into_iter();
            if let (Some(natural), Some(adversarial)) = (sums.next(), sums.next()) {
                totals.push(Total {
                    strategy,
                    natural,
                    adversarial,
                });
            }
        }
        Ok(totals)
    }

    async fn read_more(
        &self,
        row: &'static Row,
        is_adversarial: bool,
        sum: &mut Outcome,
    ) -> Result<()> {
        /// So that a run ends on a slow machine too: then the bar is missed.
        const LONGEST: Duration = Duration::from_secs(120);
        let lacking = self.args.reads.div_ceil(2).saturating_sub(sum.reads);
        if lacking == 0 {
            return Ok(());
        }
        let cell = Cell {
            readers: MANY_READERS,
            writers: 8,
            duration: LONGEST,
            reads_max: lacking,
            seed: sum.reads,
            rest: options().local_ttl + Duration::from_millis(200),
        };
        let outcome = self
            .cell(Cache::Ours(row), Fault::None, is_adversarial, &cell)
            .await?;
        sum.merge(&outcome);
        Ok(())
    }

    async fn cell(
        &self,
        cache: Cache,
        fault: Fault,
        is_adversarial: bool,
        cell: &Cell,
    ) -> Result<Outcome> {
        let weather = Arc::new(Weather::new(fault, is_adversarial, cell.seed));
        let truth = Arc::new(Truth::new(KEYS, WRITES_MAX, weather));
        let fails_over = fault == Fault::RemoteFailedOver;
        let mut url = self.servers.master.clone();
        let mut strike: Option<Strike> = None;
        // As long as it is there, it leads somewhere.
        let mut kept = None;
        if fails_over {
            let way = kept.insert(Way::to(&url).await?).clone();
            url = way.url();
            let servers = self.servers.clone();
            strike = Some(Box::new(move || {
                Box::pin(async move {
                    if let Err(error) = servers.fail_over(&way).await {
                        panic!("the failover failed: {error:#}");
                    }
                })
            }));
        }
        // What another cell left in Redis is of another truth.
        let prefix = format!("cell/{}/", self.cells.fetch_add(1, Relaxed));
        let subject = self.subject(cache, &truth, &url, &prefix).await?;
        let outcome = run(cell, subject, truth, cache.promise(fault), strike).await;
        if fails_over || cell.reads_max < u64::MAX {
            self.servers.restore().await?;
        }
        drop(kept);
        Ok(outcome)
    }

    async fn subject(
        &self,
        cache: Cache,
        truth: &Arc<Truth>,
        url: &str,
        prefix: &str,
    ) -> Result<Arc<dyn Subject>> {
        let options = options();
        Ok(match cache {
            Cache::None => Arc::new(direct(truth)),
            Cache::Naive(kind) => {
                Arc::new(Naive::connect(kind, truth, url, prefix, options.local_ttl).await?)
            }
            Cache::Ours(row) => {
                let redis = || RedisOptions {
                    prefix: prefix.to_owned(),
                    ..RedisOptions::default()
                };
                let mut shared = Vec::new();
                for _ in 0..PROCESSES {
                    let tier = Redis::new(url, redis())?;
                    let told = Box::new(tier.invalidations()?);
                    let tier = Arc::new(tier);
                    shared.push(Shared { tier, told });
                }
                let mut shared = shared.into_iter();
                Arc::new(row.caches(truth, &options, move || {
                    shared.next().expect("one a process")
                })?)
            }
        })
    }
}

/// The name of a strategy: its rows' up to the tiers.
fn strategy_of(row: &Row) -> &'static str {
    row.name.split(',').next().unwrap_or(row.name)
}

fn strategies(rows: &[&Row]) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = rows.iter().map(|row| strategy_of(row)).collect();
    names.dedup();
    names
}

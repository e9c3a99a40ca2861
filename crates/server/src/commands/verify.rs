//! `verify`: reads back what a file says, linearizable, and compares.
//!
//! The file is read twice: first to know which record of each key is the last, then to compare.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use quorate_kv::{Entry, Get, Kv};
use serde_json::json;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::feed::{Feed, Item};
use super::load::is_passing;
use super::output::{printable, size};
use super::progress::{Progress, rate};
use super::{BAD_NEWS, open};
use crate::args::{OnError, Output, VerifyArgs};
use crate::input::{InputError, Position, Record, Records, Source};

/// How many wrong records are named.
const NAMED_MAX: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// What the file says: of each key, by its hash, the number of its last record.
struct Survey {
    last: HashMap<u128, u64>,
    records: u64,
    malformed: u64,
}

/// What was found.
#[derive(Debug, Default)]
struct Findings {
    same: u64,
    missing: u64,
    different: u64,
    bytes: u64,
    named: Vec<String>,
}

/// `quorate verify`.
///
/// # Errors
/// When the input cannot be read, or the cluster does not answer.
pub async fn verify(args: VerifyArgs) -> Result<ExitCode> {
    let kv = open(&args.target).await?;
    verify_against(&kv, args).await
}

/// Verifies against a store.
///
/// # Errors
/// Like [`verify`].
pub async fn verify_against(kv: &dyn Kv, args: VerifyArgs) -> Result<ExitCode> {
    anyhow::ensure!(
        args.file.as_os_str() != "-",
        "verify reads its file twice, so it takes no standard input"
    );
    let survey = survey(&args).await?;
    let (records, position) = read(&args)?;
    let progress = Progress::new("verifying", position, args.input.quiet);
    let findings = compare(&args, kv, &survey, Feed::start(records)?, &progress).await;
    let time = progress.end();
    let findings = findings?;
    report(&args, &survey, &findings, time);
    Ok(if findings.missing + findings.different == 0 {
        ExitCode::SUCCESS
    } else {
        BAD_NEWS.into()
    })
}

fn read(args: &VerifyArgs) -> Result<(Records, Position)> {
    let (source, position) = Source::open(&args.file)?;
    let records = Records::open(source, args.input.format, args.input.key.as_deref())?;
    Ok((records, position))
}

async fn survey(args: &VerifyArgs) -> Result<Survey> {
    let (records, position) = read(args)?;
    let progress = Progress::new("reading", position, args.input.quiet);
    let mut feed = Feed::start(records)?;
    let mut survey = Survey {
        last: HashMap::new(),
        records: 0,
        malformed: 0,
    };
    while let Some(item) = feed.next().await {
        match item.record {
            Ok(record) => {
                let counted = args.first.is_none_or(|first| item.number < first);
                survey.records += u64::from(counted);
                survey.last.insert(xxh3_128(&record.key), item.number);
                if survey.records.is_multiple_of(1024) {
                    progress.show(survey.records);
                }
            }
            Err(InputError::Malformed { .. }) if args.input.on_error == OnError::Skip => {
                survey.malformed += 1;
            }
            Err(error) => {
                progress.end();
                return Err(error).context(args.file.display().to_string());
            }
        }
    }
    progress.end();
    Ok(survey)
}

async fn compare(
    args: &VerifyArgs,
    kv: &dyn Kv,
    survey: &Survey,
    mut feed: Feed,
    progress: &Progress,
) -> Result<Findings> {
    type Flight<'a> = BoxFuture<'a, (Item, quorate_kv::Result<Option<Entry>>)>;
    let mut flights: FuturesUnordered<Flight<'_>> = FuturesUnordered::new();
    let mut findings = Findings::default();
    let mut tick = tokio::time::interval(Progress::step());
    let mut ended = false;
    while !ended || !flights.is_empty() {
        let room = !ended && flights.len() < args.input.concurrency as usize;
        tokio::select! {
            Some((item, found)) = flights.next(), if !flights.is_empty() => {
                let Ok(record) = &item.record else { continue };
                let found = found.map_err(|error| {
                    anyhow!("{}: line {}: {error}", args.file.display(), record.line)
                })?;
                findings.judge(record, found);
            }
            item = feed.next(), if room => {
                let Some(item) = item else {
                    ended = true;
                    continue;
                };
                if args.first.is_some_and(|first| item.number >= first) {
                    ended = true;
                    continue;
                }
                let Ok(record) = &item.record else { continue };
                if survey.last.get(&xxh3_128(&record.key)) == Some(&item.number) {
                    let key = record.key.clone();
                    let give_up = Instant::now() + Duration::from_millis(args.input.retry_ms);
                    flights.push(Box::pin(async move {
                        (item, fetch(kv, key, give_up).await)
                    }));
                }
            }
            _ = tick.tick() => progress.show(findings.total()),
        }
    }
    Ok(findings)
}

/// Reads one key, again while the cluster cannot serve it, until time is up.
async fn fetch(
    kv: &dyn Kv,
    key: bytes::Bytes,
    give_up: Instant,
) -> quorate_kv::Result<Option<Entry>> {
    loop {
        match kv.get(Get::new(key.clone())).await {
            Err(error) if is_passing(&error) && Instant::now() < give_up => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

impl Findings {
    fn total(&self) -> u64 {
        self.same + self.missing + self.different
    }

    fn judge(&mut self, record: &Record, found: Option<Entry>) {
        let wrong = match found {
            Some(entry) if entry.value == record.value => {
                self.same += 1;
                self.bytes += (record.key.len() + record.value.len()) as u64;
                return;
            }
            Some(_) => {
                self.different += 1;
                "different"
            }
            None => {
                self.missing += 1;
                "missing"
            }
        };
        if self.named.len() < NAMED_MAX {
            let key = printable(&record.key);
            self.named
                .push(format!("{wrong}: `{key}` of line {}", record.line));
        }
    }
}

fn report(args: &VerifyArgs, survey: &Survey, findings: &Findings, time: Duration) {
    let rate = rate(findings.total(), time);
    let repeated = match args.first {
        None => survey.records - survey.last.len() as u64,
        Some(_) => survey.records - findings.total(),
    };
    if args.target.output == Output::Json {
        let report = json!({
            "records": survey.records,
            "keys": findings.total(),
            "repeated": repeated,
            "malformed": survey.malformed,
            "same": findings.same,
            "missing": findings.missing,
            "different": findings.different,
            "bytes": findings.bytes,
            "named": findings.named,
            "time_ms": time.as_millis() as u64,
            "keys_per_s": rate,
        });
        println!("{report}");
        return;
    }
    for line in &findings.named {
        println!("{line}");
    }
    println!(
        "{} keys compared in {:.1} s, {rate:.0} a second: {} the same ({}), {} missing, {} different",
        findings.total(),
        time.as_secs_f64(),
        findings.same,
        size(findings.bytes),
        findings.missing,
        findings.different,
    );
    if repeated > 0 {
        println!("{repeated} records repeated a key: the last one of each was expected");
    }
    if survey.malformed > 0 {
        println!("{} malformed records were passed over", survey.malformed);
    }
}

//! `load`: writes the records of a file, many at once, those of one key in their order.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use quorate_kv::{Error, ErrorKind, Kv, Put};
use serde_json::json;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::checkpoint::Checkpoint;
use super::feed::{Feed, Item};
use super::open;
use super::order::Order;
use super::progress::{Progress, rate};
use crate::args::{LoadArgs, OnError, Output};
use crate::input::{InputError, Records, Source};

/// How often the checkpoint is written.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// The pauses between attempts at one record.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What a command that was interrupted ends with.
const INTERRUPTED: u8 = 130;

/// What was counted.
#[derive(Debug, Default)]
struct Tally {
    /// Records that the cluster acknowledged.
    stored: u64,
    /// Bytes of their keys and values.
    bytes: u64,
    /// Records whose key was there before in the file.
    repeated: u64,
    /// Records that were malformed or refused.
    skipped: u64,
    /// Writes that were sent again.
    retried: u64,
}

/// A record that was written, or not.
struct Done {
    item: Item,
    retried: u64,
    result: quorate_kv::Result<()>,
}

struct Load<'a> {
    kv: &'a dyn Kv,
    args: &'a LoadArgs,
    first: u64,
    order: Order<Item>,
    flights: FuturesUnordered<BoxFuture<'a, Done>>,
    keys: HashSet<u128>,
    tally: Tally,
    checkpoint: Option<Checkpoint>,
    progress: Progress,
}

/// `quorate load`.
///
/// # Errors
/// When the input cannot be read, a record makes no sense (unless skipped), or the cluster does
/// not take it; the message says how to go on.
pub async fn load(args: LoadArgs) -> Result<ExitCode> {
    let kv = open(&args.target).await?;
    load_into(&kv, args).await
}

/// Loads into a store.
///
/// # Errors
/// Like [`load`].
pub async fn load_into(kv: &dyn Kv, args: LoadArgs) -> Result<ExitCode> {
    let checkpoint = args
        .checkpoint
        .clone()
        .map(|path| Checkpoint::new(path, &args.file, &args.target.namespace));
    let first = match &checkpoint {
        Some(checkpoint) if args.resume => checkpoint.read()?,
        _ => args.skip,
    };
    let (source, position) = Source::open(&args.file)?;
    let records = Records::open(source, args.input.format, args.input.key.as_deref())?;
    let mut load = Load {
        kv,
        args: &args,
        first,
        order: Order::new(first),
        flights: FuturesUnordered::new(),
        keys: HashSet::new(),
        tally: Tally::default(),
        checkpoint,
        progress: Progress::new("loading", position, args.input.quiet),
    };
    let result = load.run(Feed::start(records)?).await;
    let time = load.progress.end();
    let kept = load.keep_place();
    match result {
        Ok(()) => {
            kept?;
            load.report(time);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let interrupted = error.is::<Interrupted>();
            eprintln!("error: {error:#}");
            eprintln!("{}", load.how_to_go_on());
            kept?;
            Ok(if interrupted {
                INTERRUPTED.into()
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

/// The user asked for the end.
#[derive(Debug)]
struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl<'a> Load<'a> {
    async fn run(&mut self, mut feed: Feed) -> Result<()> {
        let concurrency = self.args.input.concurrency as usize;
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut tick = tokio::time::interval(Progress::step());
        let mut kept_at = Instant::now();
        let mut ended = false;
        // What is wrong with the input. What lies before it is still stored.
        let mut wrong = Ok(());
        while !ended || !self.flights.is_empty() {
            let room = !ended && self.order.open() < concurrency;
            tokio::select! {
                Some(done) = self.flights.next(), if !self.flights.is_empty() => self.finish(done)?,
                item = feed.next(), if room => match item {
                    Some(item) => {
                        wrong = self.take(item);
                        ended = wrong.is_err();
                    }
                    None => ended = true,
                },
                _ = tick.tick() => {
                    self.progress.show(self.tally.stored);
                    if kept_at.elapsed() >= CHECKPOINT_EVERY {
                        self.keep_place()?;
                        kept_at = Instant::now();
                    }
                }
                _ = &mut interrupt => return Err(Interrupted.into()),
            }
        }
        wrong
    }

    fn take(&mut self, item: Item) -> Result<()> {
        let record = match &item.record {
            Ok(record) => record,
            Err(InputError::Unreadable { .. }) => return self.cannot_go_on(item),
            Err(error) => {
                let what = format!("{}: {error}", self.args.file.display());
                // What an earlier load passed over, it reported.
                if item.number >= self.first {
                    self.skip(what)?;
                    self.order.pass(item.number);
                }
                return Ok(());
            }
        };
        if !self.keys.insert(xxh3_128(&record.key)) {
            self.tally.repeated += 1;
        }
        if item.number < self.first {
            return Ok(());
        }
        let key = record.key.clone();
        if let Some(item) = self.order.admit(&key, item) {
            self.begin(item);
        }
        Ok(())
    }

    fn cannot_go_on(&self, item: Item) -> Result<()> {
        let name = self.args.file.display().to_string();
        item.record.map(drop).context(name)
    }

    fn begin(&mut self, item: Item) {
        let give_up = Instant::now() + Duration::from_millis(self.args.input.retry_ms);
        self.flights.push(Box::pin(store(self.kv, item, give_up)));
    }

    fn finish(&mut self, done: Done) -> Result<()> {
        let Done {
            item,
            retried,
            result,
        } = done;
        self.tally.retried += retried;
        let Ok(record) = &item.record else {
            return Ok(());
        };
        if let Err(error) = result {
            let name = self.args.file.display();
            let what = format!("{name}: line {}: {error}", record.line);
            let its_own_fault = matches!(
                error.kind(),
                ErrorKind::TooLarge | ErrorKind::InvalidArgument
            );
            if !its_own_fault {
                return Err(anyhow!(what));
            }
            self.skip(what)?;
        } else {
            self.tally.stored += 1;
            self.tally.bytes += (record.key.len() + record.value.len()) as u64;
        }
        if let Some(next) = self.order.finish(item.number, &record.key) {
            self.begin(next);
        }
        Ok(())
    }

    /// Passes over a record, if that is wanted.
    fn skip(&mut self, what: String) -> Result<()> {
        if self.args.input.on_error == OnError::Stop {
            return Err(anyhow!("{what} (--on-error skip goes on)"));
        }
        self.progress.note(&format!("skipped: {what}"));
        self.tally.skipped += 1;
        Ok(())
    }

    fn keep_place(&self) -> Result<()> {
        match &self.checkpoint {
            Some(checkpoint) => checkpoint.write(self.order.prefix()),
            None => Ok(()),
        }
    }

    fn how_to_go_on(&self) -> String {
        let done = self.order.prefix();
        let how = match &self.checkpoint {
            Some(checkpoint) => format!("--checkpoint {} --resume", checkpoint.path().display()),
            None => format!("--skip {done}"),
        };
        format!("the first {done} records are done: go on with {how}")
    }

    fn report(&self, time: Duration) {
        let tally = &self.tally;
        let rate = rate(tally.stored, time);
        if self.args.target.output == Output::Json {
            let report = json!({
                "stored": tally.stored,
                "passed_over": self.first,
                "repeated": tally.repeated,
                "skipped": tally.skipped,
                "retried": tally.retried,
                "bytes": tally.bytes,
                "time_ms": time.as_millis() as u64,
                "records_per_s": rate,
            });
            println!("{report}");
            return;
        }
        println!(
            "stored {} records ({}) in {:.1} s, {rate:.0} a second",
            tally.stored,
            super::output::size(tally.bytes),
            time.as_secs_f64(),
        );
        for (count, what) in [
            (self.first, "passed over, stored by an earlier load"),
            (
                tally.repeated,
                "repeated a key: of each key the last one counts",
            ),
            (tally.skipped, "skipped: malformed or refused"),
            (tally.retried, "writes were sent again"),
        ] {
            if count > 0 {
                println!("{count} {what}");
            }
        }
    }
}

/// Writes one record until it is acknowledged, refused, or time is up. Its outcome may be unknown
/// in between: the same value is written again, and no later record of its key is in flight.
async fn store(kv: &dyn Kv, item: Item, give_up: Instant) -> Done {
    let mut retried = 0;
    let mut pause = PAUSE_MIN;
    let result = loop {
        let put = match &item.record {
            Ok(record) => Put::new(record.key.clone(), record.value.clone()),
            Err(_) => break Ok(()),
        };
        match kv.put(put).await {
            Ok(_) => break Ok(()),
            Err(error) if is_passing(&error) && Instant::now() < give_up => {
                retried += 1;
                tokio::time::sleep(error.retry_after().unwrap_or(pause)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(error) => break Err(error),
        }
    };
    Done {
        item,
        retried,
        result,
    }
}

/// Whether an operation that may be repeated is worth it.
pub fn is_passing(error: &Error) -> bool {
    error.kind().is_retryable() || error.kind() == ErrorKind::DeadlineExceeded
}

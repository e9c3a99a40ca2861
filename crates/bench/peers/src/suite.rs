//! The suite: every case, engine after engine, round after round, and the report.
//!
//! A *chain* is a list of cases that share a directory: the first fills it, the others read and change it.
//! In each round every engine runs a chain before the next chain begins, ours and RocksDB one after the
//! other in alternating order, so that what the machine does meanwhile meets both. A ratio is that of a
//! round; what is reported is the median of the ratios, with its 95 % interval.

mod chains;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::engines;
use crate::measure::Metrics;
use chains::{Chain, Step};
use report::Report;

/// What the suite is told.
#[derive(Debug, Clone, clap::Args)]
pub struct SuiteArgs {
    /// Where the report goes.
    #[arg(long)]
    out: PathBuf,
    /// The commit that is measured.
    #[arg(long)]
    commit: String,
    /// Where the engines keep their files while they are measured.
    #[arg(long, default_value = "target/bench/storage")]
    dir: PathBuf,
    /// Rounds of ours and RocksDB; the others run in the first only.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The time after which no row is repeated to narrow its interval, in minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Only chains whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// The engines, ours first; `--full` adds sled, which takes long.
    #[arg(long, value_delimiter = ',', default_values_t = DEFAULT_ENGINES.map(String::from))]
    engines: Vec<String>,
    /// Also the long chains: 20 M keys, ten minutes of overwrites.
    #[arg(long)]
    full: bool,
    /// A tiny run that shows that everything works: thousandths of the keys, no time to speak of.
    #[arg(long)]
    tiny: bool,
}

/// What is known so far: by workload, metric and engine, the value of each round.
pub type Results = BTreeMap<(String, String), BTreeMap<String, Vec<f64>>>;

struct Suite {
    args: SuiteArgs,
    results: Results,
    /// Engines that can't do a workload, and why.
    unable: BTreeMap<(String, String), String>,
    seed: u64,
}

/// A row's 95 % interval is narrow enough at this half-width, of its ratio.
const NARROW: f64 = 0.05;
const PAIR: usize = 2;
const DEFAULT_ENGINES: [&str; 4] = ["quorate", "rocksdb", "fjall", "redb"];
const SLOW_ENGINE: &str = "sled";

/// Runs the suite and writes its report.
pub fn run(mut args: SuiteArgs) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds is at least 1");
    ensure!(!args.engines.is_empty(), "--engines names none");
    for engine in &args.engines {
        ensure!(
            engines::NAMES.contains(&engine.as_str()),
            "`{engine}` is none of {:?}",
            engines::NAMES
        );
    }
    if args.full && args.engines == DEFAULT_ENGINES {
        args.engines.push(SLOW_ENGINE.to_owned());
    }
    let chains = chains::all(args.full, args.tiny);
    let chains: Vec<Chain> = chains
        .into_iter()
        .filter(|c| c.name.contains(&args.only))
        .collect();
    ensure!(
        !chains.is_empty(),
        "no chain is called like `{}`",
        args.only
    );
    let end = Instant::now() + Duration::from_secs(60 * args.minutes);
    let mut suite = Suite {
        args,
        results: Results::new(),
        unable: BTreeMap::new(),
        seed: 1,
    };
    for round in 0..suite.args.rounds {
        for chain in &chains {
            suite.round(chain, round)?;
            suite.write(false)?;
        }
    }
    suite.narrow(&chains, end)?;
    suite.write(true)
}

impl Suite {
    /// All engines run a chain once.
    fn round(&mut self, chain: &Chain, round: usize) -> Result<()> {
        let count = match round {
            0 => self.args.engines.len(),
            _ => PAIR.min(self.args.engines.len()),
        };
        let mut order: Vec<String> = self.args.engines[..count].to_vec();
        if round % 2 == 1 {
            order.reverse();
        }
        self.seed += 1;
        for engine in order {
            let dir = self.args.dir.join(&engine);
            remove(&dir)?;
            for step in &chain.steps {
                self.step(&engine, &dir, step)?;
            }
            remove(&dir)?;
        }
        Ok(())
    }

    fn step(&mut self, engine: &str, dir: &Path, step: &Step) -> Result<()> {
        if step.fresh {
            remove(dir)?;
        }
        let unable = (step.workload.clone(), engine.to_owned());
        if self.unable.contains_key(&unable) {
            return Ok(());
        }
        eprint!("{:<40} {engine:<8} ", step.workload);
        let metrics = self.run_case(engine, dir, step);
        match metrics {
            Ok(metrics) => {
                let rate = metrics.get("throughput_ops").copied().unwrap_or(0.0);
                eprintln!("{rate:>12.0}/s");
                if step.reported {
                    self.add(engine, step, metrics);
                }
                Ok(())
            }
            // An engine may lack an operation; the report says so.
            Err(error) => {
                eprintln!("{error:#}");
                self.unable.insert(unable, format!("{error:#}"));
                Ok(())
            }
        }
    }

    fn run_case(&self, engine: &str, dir: &Path, step: &Step) -> Result<Metrics> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["run", "--engine", engine, "--case", &step.case]);
        command.arg("--dir").arg(dir);
        command.args(&step.options);
        command.args(["--seed", &self.seed.to_string()]);
        let limit = step.memory_bytes.map(crate::cgroup::Limit::new);
        let limit = limit.transpose()?;
        if let Some(limit) = &limit {
            limit.hold(&mut command);
        }
        let output = command.output().context("a case can't be started")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            let line = error.lines().next().unwrap_or("no message");
            bail!("{}: {line}", output.status);
        }
        let line = text.lines().last().context("a case printed nothing")?;
        serde_json::from_str(line).with_context(|| format!("a case printed `{line}`"))
    }

    fn add(&mut self, engine: &str, step: &Step, metrics: Metrics) {
        for (metric, value) in metrics {
            let row = self
                .results
                .entry((step.workload.clone(), metric))
                .or_default();
            row.entry(engine.to_owned()).or_default().push(value);
        }
    }

    /// Repeats chains with rows that are too wide, while there is time.
    fn narrow(&mut self, chains: &[Chain], end: Instant) -> Result<()> {
        let mut round = self.args.rounds;
        while self.args.rounds > 1 && Instant::now() < end {
            let wide: Vec<&Chain> = chains.iter().filter(|chain| self.is_wide(chain)).collect();
            if wide.is_empty() {
                break;
            }
            for chain in wide {
                if Instant::now() < end {
                    self.round(chain, round)?;
                }
            }
            round += 1;
            self.write(false)?;
        }
        Ok(())
    }

    fn is_wide(&self, chain: &Chain) -> bool {
        let Some(peer) = self.args.engines.get(1) else {
            return false;
        };
        chain.steps.iter().filter(|step| step.reported).any(|step| {
            let row = self
                .results
                .get(&(step.workload.clone(), "throughput_ops".into()));
            let ratio = row.and_then(|row| report::ratio(row, "throughput_ops", peer));
            ratio.is_some_and(|(ratio, width)| width > NARROW * ratio)
        })
    }

    fn write(&self, print: bool) -> Result<()> {
        let report = Report::new(
            &self.args.commit,
            &self.args.engines,
            &self.results,
            &self.unable,
        );
        if let Some(folder) = self.args.out.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.args.out, serde_json::to_string_pretty(&report)?)?;
        if print {
            print!("{}", report.table());
            println!("written to {}", self.args.out.display());
        }
        Ok(())
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

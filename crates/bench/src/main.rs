//! `quorate-bench`: three nodes of ours beside three of etcd, on one machine, in turn.

mod etcd;
mod failover;
mod groups;
mod overload;
mod processes;
mod sides;
mod throughput;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use quorate_bench::Report;

use failover::Fault;
use processes::Processes;
use sides::{Ours, connect_etcd};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compares clusters on this machine.
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct Args {
    /// Our server
    #[arg(long)]
    quorate: PathBuf,
    /// The peer's; without it only ours is measured
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Where the report goes
    #[arg(long)]
    out: PathBuf,
    /// The commit that is measured
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// How often each side runs; medians are reported
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    clients: Vec<usize>,
    /// Shards of our namespace; 1 is what etcd has
    #[arg(long, default_value_t = 1)]
    shards: u32,
    /// Instead of throughput: how long writes stop when the leader is killed, and when it is frozen. So many faults
    /// of each kind on each side
    #[arg(long, value_name = "FAULTS")]
    failover: Option<usize>,
    /// So many of them on the side of etcd [default: as many]
    #[arg(long, value_name = "FAULTS", requires = "failover")]
    peer_faults: Option<usize>,
    /// etcd's heartbeat and election time, in milliseconds, instead of its defaults
    #[arg(long, value_name = "HEARTBEAT,ELECTION", value_parser = times)]
    etcd_times: Option<(u32, u32)>,
    /// Instead of throughput: what so many groups cost that nobody uses
    #[arg(long, value_name = "GROUPS")]
    groups: Option<u32>,
    /// Instead of throughput: what is left of it when up to ten times as much is asked
    #[arg(long)]
    overload: bool,
    /// Of the overload, only this mix: put, get, get90-put10
    #[arg(long, value_name = "MIX")]
    mix: Option<String>,
    /// A file of settings for our nodes
    #[arg(long)]
    settings: Option<PathBuf>,
}

fn times(text: &str) -> Result<(u32, u32)> {
    let (heartbeat, election) = text.split_once(',').context("two numbers, as in 100,500")?;
    Ok((heartbeat.parse()?, election.parse()?))
}

impl Args {
    fn settings(&self) -> Result<String> {
        let read = |path: &PathBuf| std::fs::read_to_string(path);
        Ok(self
            .settings
            .as_ref()
            .map(read)
            .transpose()?
            .unwrap_or_default())
    }
}

/// Every value of every metric, by side, workload and metric.
type Samples = BTreeMap<(bool, String, &'static str), Vec<f64>>;

fn main() -> Result<()> {
    let args = Args::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all();
    if args.overload {
        // The servers are started by this thread, whose priority they take over.
        runtime.on_thread_start(|| {
            if let Err(error) = rustix::process::nice(overload::NICE) {
                eprintln!("the generator's priority stays as it is: {error}");
            }
        });
    }
    let runtime = runtime.build()?;
    if args.overload {
        return measure_overload(&args, &runtime);
    }
    let samples = runtime.block_on(async {
        match (args.groups, args.failover) {
            (Some(groups), _) => measure_groups(&args, groups).await,
            (_, Some(faults)) => measure_failover(&args, faults).await,
            _ => throughput::measure(&args).await,
        }
    })?;
    save(&args, &report(&args, &samples))
}

/// What is left under overload, of ours alone.
fn measure_overload(args: &Args, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let settings = args.settings()?;
    let measured = overload::measure(
        &args.quorate,
        args.shards,
        &settings,
        args.seconds,
        args.mix.as_deref(),
    );
    let found = runtime.block_on(measured)?;
    let mut report = report(args, &Samples::new());
    report.suite = "overload".into();
    for (workload, metric, value) in &found.rows {
        report.add(workload, metric, *value, None);
    }
    report.series = found.series;
    save(args, &report)
}

fn save(args: &Args, report: &Report) -> Result<()> {
    print!("{}", report.table());
    if let Some(folder) = args.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&args.out, report.json()?)?;
    println!("written to {}", args.out.display());
    Ok(())
}

/// Both sides in turn, a share of the faults in each round.
async fn measure_failover(args: &Args, faults: usize) -> Result<Samples> {
    let mut gaps: BTreeMap<(bool, &'static str), Vec<f64>> = BTreeMap::new();
    let share = |faults: usize| faults.div_ceil(args.rounds.max(1));
    let (each, each_of_peer) = (share(faults), share(args.peer_faults.unwrap_or(faults)));
    for round in 0..args.rounds {
        println!("round {} of {}", round + 1, args.rounds);
        for fault in [Fault::Kill, Fault::Freeze] {
            if let Some(binary) = &args.etcd {
                let dir = tempfile::tempdir()?;
                let mut processes = Processes::etcd(binary, dir.path(), args.etcd_times)?;
                let target = Arc::new(connect_etcd(&processes.endpoints).await?);
                let found = failover::gaps(&mut processes, &target, fault, each_of_peer).await?;
                gaps.entry((false, fault.name())).or_default().extend(found);
            }
            let dir = tempfile::tempdir()?;
            let mut processes =
                Processes::quorate(&args.quorate, dir.path(), args.shards, &args.settings()?)?;
            let target = Arc::new(Ours::connect(&processes.endpoints, sides::options()).await?);
            let found = failover::gaps(&mut processes, &target, fault, each).await?;
            gaps.entry((true, fault.name())).or_default().extend(found);
        }
    }
    let mut samples = Samples::new();
    for ((ours, fault), mut gaps) in gaps {
        gaps.sort_by(f64::total_cmp);
        let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share).round() as usize];
        let name = format!("failover/{fault}/rate={}", failover::RATE);
        for (metric, value) in [
            ("gap_p50_ms", at(0.5)),
            ("gap_p95_ms", at(0.95)),
            ("gap_p99_ms", at(0.99)),
            ("gap_max_ms", at(1.0)),
        ] {
            samples.insert((ours, name.clone(), metric), vec![value]);
        }
    }
    Ok(samples)
}

/// What idle groups cost, of ours alone.
async fn measure_groups(args: &Args, count: u32) -> Result<Samples> {
    let mut samples = Samples::new();
    let settings = args.settings()?;
    for _ in 0..args.rounds {
        for (metric, value) in groups::cost(&args.quorate, count, &settings).await? {
            let workload = format!("idle/groups={count}");
            samples
                .entry((true, workload, metric))
                .or_default()
                .push(value);
        }
    }
    Ok(samples)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn report(args: &Args, samples: &Samples) -> Report {
    let mut report = Report {
        suite: "cluster".into(),
        host: host(args.etcd.as_deref()),
        commit: args.commit.clone(),
        rows: Vec::new(),
        series: Vec::new(),
    };
    for ((ours, workload, metric), values) in samples {
        if !ours {
            continue;
        }
        // A row without our client's batching stands beside the same of the peer.
        let theirs = workload.trim_end_matches("/unbatched").to_owned();
        let theirs = samples.get(&(false, theirs, *metric));
        let peer = theirs.map(|values| ("etcd", median(values)));
        report.add(workload, metric, median(values), peer);
    }
    report
}

/// The machine, in a line.
fn host(etcd: Option<&Path>) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model
        .unwrap_or("")
        .trim_start_matches(['\t', ' ', ':'])
        .to_owned();
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let version = etcd.and_then(|path| {
        let output = std::process::Command::new(path)
            .arg("--version")
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().map(str::to_owned)
    });
    let peer = version.unwrap_or_else(|| "no peer".into());
    format!("{model}, {cores} cores, Linux {kernel}, {peer}")
}

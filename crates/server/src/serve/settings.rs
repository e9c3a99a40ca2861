//! Configuration: a TOML file, then the environment, then flags; the later wins.
//!
//! The file is read into [`File`], where everything is optional and an unknown field is an error.
//! The environment and the flags are [`Flags`]. [`Settings::resolve`] puts them together once, checks
//! every value, and names the field of one that can't be.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use quorate_kv::Limits;
use quorate_replication::{LEASE_MAX, Timing};
use serde::Deserialize;

/// What a server runs with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Nodes of the cluster to join or to hear of the map from, `host:port`.
    pub seeds: Vec<String>,
    /// Its data.
    pub data_dir: PathBuf,
    /// What `tracing` shows, as in `info,quorate_node=debug`.
    pub log_filter: String,
    /// Whether logs are JSON lines.
    pub log_json: bool,
    /// Threads that carry clients and peers.
    pub threads: usize,
    /// Of the node.
    pub node: quorate_node::Config,
}

/// Flags of `quorate serve`; each may also come from the environment.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// The configuration file; `quorate.example.toml` shows every field
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:7001]
    #[arg(long, env = "QUORATE_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where clients and peers reach this node [default: as --listen]
    #[arg(long, env = "QUORATE_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The data directory [default: quorate-data]
    #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Nodes of the cluster to join
    #[arg(
        long,
        env = "QUORATE_SEEDS",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub seeds: Option<Vec<String>>,
    /// Stop when standard input ends: for a process that lives with another
    #[arg(long, hide = true)]
    pub stop_at_eof: bool,
    /// What to log, as in info or info,quorate_node=debug
    #[arg(long, env = "QUORATE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// The file, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    listen: Option<String>,
    advertise: Option<String>,
    data_dir: Option<PathBuf>,
    seeds: Option<Vec<String>>,
    threads: Option<usize>,
    log: LogPart,
    limits: LimitsPart,
    storage: StoragePart,
    raft: RaftPart,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogPart {
    filter: Option<String>,
    json: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsPart {
    key_bytes: Option<usize>,
    value_bytes: Option<usize>,
    batch_bytes: Option<usize>,
    queue_bytes: Option<usize>,
    queue_delay_ms: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StoragePart {
    memtable_bytes: Option<usize>,
    cache_bytes: Option<u64>,
    free_bytes_min: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RaftPart {
    log_bytes_max: Option<u64>,
    log_segment_bytes: Option<u64>,
    timing: Option<Preset>,
    heartbeat_ms: Option<u64>,
    election_min_ms: Option<u64>,
    election_max_ms: Option<u64>,
    silence_min_ms: Option<u64>,
    lease_ms: Option<u64>,
    quiet_after_ms: Option<u64>,
    coordinator_replicas: Option<usize>,
}

/// Times that suit each other.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Preset {
    Fast,
    Slow,
    Far,
}

impl Preset {
    fn timing(self) -> Timing {
        match self {
            Preset::Fast => Timing::FAST,
            Preset::Slow => Timing::SLOW,
            Preset::Far => Timing::FAR,
        }
    }
}

impl Settings {
    /// Reads the file that the flags name, and puts everything together.
    pub fn resolve(flags: Flags) -> Result<Settings> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let listen = flags
            .listen
            .or(file.listen)
            .unwrap_or_else(|| "127.0.0.1:7001".into());
        let listen_at: SocketAddr = listen.parse().with_context(|| {
            format!("listen: `{listen}` is not an address: it takes IP:PORT, as in 127.0.0.1:7001")
        })?;
        let advertise = flags
            .advertise
            .or(file.advertise)
            .unwrap_or_else(|| listen.clone());
        check_endpoint("advertise", &advertise)?;
        ensure!(
            !listen_at.ip().is_unspecified() || advertise != listen,
            "advertise: with `listen` on all interfaces it must name the host:port at which others \
             reach this node"
        );
        let seeds = flags.seeds.or(file.seeds).unwrap_or_default();
        seeds
            .iter()
            .try_for_each(|seed| check_endpoint("seeds", seed))?;
        let mut node = quorate_node::Config::new(advertise);
        file.limits.resolve(&mut node)?;
        file.storage.resolve(&mut node)?;
        file.raft.resolve(&mut node)?;
        let most = node.log_segment_bytes as usize / 2 - (4 << 20);
        ensure!(
            node.limits.batch_bytes <= most,
            "limits.batch_bytes: {} does not fit a log segment: it takes at most {most} with \
             raft.log_segment_bytes = {}",
            node.limits.batch_bytes,
            node.log_segment_bytes
        );
        let threads = file.threads.unwrap_or_else(default_threads);
        check("threads", threads as u64, 1, 1024)?;
        Ok(Settings {
            listen: listen_at,
            seeds,
            data_dir: flags
                .data_dir
                .or(file.data_dir)
                .unwrap_or_else(|| "quorate-data".into()),
            log_filter: flags
                .log
                .or(file.log.filter)
                .unwrap_or_else(|| "info,openraft=error".into()),
            log_json: file.log.json.unwrap_or(false),
            threads,
            node,
        })
    }
}

fn default_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(2, |n| n.get())
        .clamp(2, 16)
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the configuration file {} can't be read", path.display()))?;
    // The error of the parser names line and field.
    toml::from_str(&text).with_context(|| format!("in the configuration file {}", path.display()))
}

fn check_endpoint(field: &str, text: &str) -> Result<()> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|p| p != 0)
    });
    ensure!(
        good,
        "{field}: `{text}` is not host:port, as in 10.0.0.1:7001"
    );
    Ok(())
}

fn check(field: &str, value: u64, min: u64, max: u64) -> Result<()> {
    if !(min..=max).contains(&value) {
        bail!("{field}: {value} is out of bounds: it takes {min} to {max}");
    }
    Ok(())
}

/// Takes a value from the file if it is there and within its bounds.
macro_rules! take {
    ($field:literal, $from:expr, $to:expr, $min:expr, $max:expr) => {
        if let Some(value) = $from {
            check($field, value as u64, $min as u64, $max as u64)?;
            $to = value;
        }
    };
}

impl LimitsPart {
    fn resolve(self, node: &mut quorate_node::Config) -> Result<()> {
        take!(
            "limits.queue_bytes",
            self.queue_bytes,
            node.queue_bytes_max,
            MIB,
            TIB
        );
        let mut delay_ms = node.queue_delay_max.as_millis() as u64;
        take!(
            "limits.queue_delay_ms",
            self.queue_delay_ms,
            delay_ms,
            1,
            60_000
        );
        node.queue_delay_max = Duration::from_millis(delay_ms);
        let to = &mut node.limits;
        take!(
            "limits.key_bytes",
            self.key_bytes,
            to.key_bytes,
            16,
            Limits::KEY_BYTES_CAP
        );
        take!(
            "limits.value_bytes",
            self.value_bytes,
            to.value_bytes,
            1,
            Limits::VALUE_BYTES_CAP
        );
        take!(
            "limits.batch_bytes",
            self.batch_bytes,
            to.batch_bytes,
            1,
            Limits::BATCH_BYTES_CAP
        );
        ensure!(
            to.batch_bytes >= to.key_bytes + to.value_bytes,
            "limits.batch_bytes: {} is less than one key and one value take",
            to.batch_bytes
        );
        Ok(())
    }
}

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

impl StoragePart {
    fn resolve(self, to: &mut quorate_node::Config) -> Result<()> {
        let engine = &mut to.engine;
        take!(
            "storage.memtable_bytes",
            self.memtable_bytes,
            engine.memtable_bytes,
            MIB,
            1 << 30
        );
        take!(
            "storage.cache_bytes",
            self.cache_bytes,
            engine.cache_bytes,
            MIB,
            TIB
        );
        take!(
            "storage.free_bytes_min",
            self.free_bytes_min,
            to.free_bytes_min,
            0,
            1024 * TIB
        );
        Ok(())
    }
}

impl RaftPart {
    fn resolve(self, to: &mut quorate_node::Config) -> Result<()> {
        take!(
            "raft.log_segment_bytes",
            self.log_segment_bytes,
            to.log_segment_bytes,
            16 * MIB,
            2048 * MIB
        );
        take!(
            "raft.log_bytes_max",
            self.log_bytes_max,
            to.log_bytes_max,
            64 * MIB,
            TIB
        );
        ensure!(
            to.log_bytes_max >= 2 * to.log_segment_bytes,
            "raft.log_bytes_max: {} is less than two segments of raft.log_segment_bytes",
            to.log_bytes_max
        );
        let most = &mut to.coordinator_replicas;
        take!(
            "raft.coordinator_replicas",
            self.coordinator_replicas,
            *most,
            1,
            7
        );
        self.times(to)?;
        let mut lease = to.lease.as_millis() as u64;
        let lease_max = LEASE_MAX.as_millis() as u64;
        take!("raft.lease_ms", self.lease_ms, lease, 0, lease_max);
        to.lease = Duration::from_millis(lease);
        let mut quiet_after = to.quiet_after.as_millis() as u64;
        let most = 3_600_000;
        take!(
            "raft.quiet_after_ms",
            self.quiet_after_ms,
            quiet_after,
            0,
            most
        );
        to.quiet_after = Duration::from_millis(quiet_after);
        Ok(())
    }

    /// Heartbeats and elections, which have to suit each other.
    fn times(&self, to: &mut quorate_node::Config) -> Result<()> {
        let preset = self.timing.map_or(to.timing, Preset::timing);
        let ms = |duration: Duration| duration.as_millis() as u64;
        let mut heartbeat = ms(preset.heartbeat);
        let (mut min, mut max) = (ms(preset.election_min), ms(preset.election_max));
        let mut silence = ms(preset.silence_min).min(self.election_max_ms.unwrap_or(max));
        take!(
            "raft.heartbeat_ms",
            self.heartbeat_ms,
            heartbeat,
            10,
            60_000
        );
        take!(
            "raft.election_min_ms",
            self.election_min_ms,
            min,
            30,
            600_000
        );
        take!(
            "raft.election_max_ms",
            self.election_max_ms,
            max,
            40,
            600_000
        );
        ensure!(
            heartbeat * 2 <= min && min < max,
            "raft.election_min_ms: it takes at least twice raft.heartbeat_ms ({heartbeat}) and less \
             than raft.election_max_ms ({max}), not {min}: a leader would be voted out while it lives"
        );
        take!(
            "raft.silence_min_ms",
            self.silence_min_ms,
            silence,
            0,
            600_000
        );
        ensure!(
            silence == 0 || (20..=max).contains(&silence),
            "raft.silence_min_ms: it takes 20 up to raft.election_max_ms ({max}), or 0 to leave silent nodes to \
             the timers of elections, not {silence}: a node would be taken for gone while it lives"
        );
        to.timing = Timing {
            silence_min: Duration::from_millis(silence),
            heartbeat: Duration::from_millis(heartbeat),
            election_min: Duration::from_millis(min),
            election_max: Duration::from_millis(max),
        };
        Ok(())
    }
}

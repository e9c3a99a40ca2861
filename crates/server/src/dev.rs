//! `quorate dev`: a cluster of three processes on this machine, for trying things out.
//!
//! Everything is as in a real cluster: each node is a process with its own data directory, founded
//! and joined in the same way. The data survives; the next `quorate dev` goes on with it. A node that
//! is killed stays down until somebody starts it again with the line that was printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_client::{Client, ClientOptions};
use quorate_kv::ErrorKind;
use quorate_sharding::{Encoding, NamespaceKind, NamespaceSpec, RoutingPrefix};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::init;

const NODES: u16 = 3;
const SHARDS: u32 = 8;
const NAMESPACE: &str = "default";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(50);

/// Flags of `quorate dev`.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Where the nodes keep their data
    #[arg(
        long,
        env = "QUORATE_DATA_DIR",
        default_value = "quorate-data",
        value_name = "DIR"
    )]
    pub data_dir: PathBuf,
    /// The first node's port; the others take the next ones
    #[arg(long, default_value_t = 7001, value_name = "PORT")]
    pub port: u16,
    /// Found the cluster and its namespace, say that all is well, and stop again
    #[arg(long, hide = true)]
    pub once: bool,
}

/// Runs the cluster until Ctrl-C.
pub fn run(flags: Flags) -> Result<()> {
    ensure!(
        (1..=u16::MAX - NODES).contains(&flags.port),
        "--port: {} leaves no room for {NODES} ports",
        flags.port
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut cluster = Cluster::start(&flags)?;
        let ended = cluster.live(&flags).await;
        cluster.stop().await;
        ended
    })
}

struct Cluster {
    nodes: Vec<DevNode>,
}

struct DevNode {
    id: u16,
    address: String,
    config: PathBuf,
    log: PathBuf,
    /// `None` after it ended; somebody may have started another in its place.
    process: Option<Child>,
}

impl Cluster {
    fn start(flags: &Flags) -> Result<Cluster> {
        let dir = &flags.data_dir;
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let nodes = (1..=NODES).map(|id| DevNode::start(&dir, id, flags.port));
        Ok(Cluster {
            nodes: nodes.collect::<Result<_>>()?,
        })
    }

    fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    async fn live(&mut self, flags: &Flags) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            ready = self.make_ready() => ready?,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
        self.greet(flags);
        if flags.once {
            return Ok(());
        }
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = ticks.tick() => self.report_ended(),
            }
        }
    }

    /// Founds the cluster if the first node has none, and sees to it that the namespace is there.
    async fn make_ready(&mut self) -> Result<()> {
        let end = Instant::now() + START;
        self.wait_until_founded(end).await?;
        loop {
            self.check_alive()?;
            match self.ensure_namespace().await {
                Ok(()) => break,
                Err(error) if Instant::now() > end => {
                    return Err(error.context("the cluster did not become ready"));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        Ok(())
    }

    async fn wait_until_founded(&mut self, end: Instant) -> Result<()> {
        loop {
            self.check_alive()?;
            let first = self.nodes[0].address.clone();
            match init::init(&first).await {
                Ok(_) => return Ok(()),
                Err(error) if is_kind(&error, ErrorKind::AlreadyExists) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(error.context("the first node does not answer"));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn ensure_namespace(&self) -> Result<()> {
        let client = Client::connect(&self.endpoints(), ClientOptions::default()).await?;
        if client.map().nodes.len() < usize::from(NODES) {
            bail!("not all nodes have joined");
        }
        let spec = NamespaceSpec {
            name: NAMESPACE.into(),
            kind: NamespaceKind::Wide {
                encoding: Encoding::Hashed {
                    prefix: RoutingPrefix::WholeKey,
                },
            },
            shards: SHARDS,
            replicas: u32::from(NODES),
            splits: Vec::new(),
        };
        match client.create_namespace(&spec).await {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let status = client.status().await;
        for (node, status) in &status {
            let status = status
                .as_ref()
                .map_err(|e| anyhow::anyhow!("{}: {e}", node.address))?;
            let led = status
                .groups
                .iter()
                .filter(|group| group.leader.is_some())
                .count();
            ensure!(
                led > SHARDS as usize,
                "node {} has groups without a leader",
                node.id
            );
        }
        Ok(())
    }

    fn check_alive(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else {
                continue;
            };
            if let Some(status) = process.try_wait()? {
                node.process = None;
                let log = fs::read_to_string(&node.log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!(
                    "node {} did not start ({status}):\n{}",
                    node.id,
                    tail.join("\n")
                );
            }
        }
        Ok(())
    }

    fn report_ended(&mut self) {
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else {
                continue;
            };
            if let Ok(Some(status)) = process.try_wait() {
                node.process = None;
                println!(
                    "node {} ended ({status}); start it again: {}",
                    node.id,
                    node.restart()
                );
            }
        }
    }

    fn greet(&self, flags: &Flags) {
        let program = program();
        println!(
            "\nthree nodes, {SHARDS} shards, each on all three; data in {}",
            flags.data_dir.display()
        );
        for node in &self.nodes {
            let pid = node
                .process
                .as_ref()
                .and_then(Child::id)
                .unwrap_or_default();
            println!(
                "  node {}  http://{}  pid {pid}  log {}",
                node.id,
                node.address,
                node.log.display()
            );
        }
        let to = match flags.port {
            7001 => String::new(),
            _ => format!(" --endpoints {}", self.endpoints().join(",")),
        };
        println!("\ntry it, in another terminal:");
        println!("  {program} put{to} hello world");
        println!("  {program} get{to} hello");
        println!("  {program} scan{to} --unordered --limit 10");
        println!("  {program} load{to} /var/lib/dpkg/status");
        println!("  {program} status{to}");
        println!("\nkill a node, and start it again:");
        if let Some(node) = self.nodes.get(1) {
            let pid = node
                .process
                .as_ref()
                .and_then(Child::id)
                .unwrap_or_default();
            println!("  kill -9 {pid}");
            println!("  {}", node.restart());
        }
        println!("\nCtrl-C stops all; the data stays.");
    }

    async fn stop(mut self) {
        for node in &mut self.nodes {
            // The end of its standard input tells a node to stop.
            if let Some(process) = &mut node.process {
                drop(process.stdin.take());
            }
        }
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else {
                continue;
            };
            if tokio::time::timeout(STOP, process.wait()).await.is_err() {
                println!("node {} does not stop: killed", node.id);
                if let Err(error) = process.kill().await {
                    println!("node {} could not be killed: {error}", node.id);
                }
            }
        }
    }
}

fn is_kind(error: &anyhow::Error, kind: ErrorKind) -> bool {
    error
        .downcast_ref::<quorate_kv::Error>()
        .is_some_and(|error| error.kind() == kind)
}

/// How this program is called from here.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| "quorate".into());
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .unwrap_or(&path)
        .display()
        .to_string()
}

impl DevNode {
    fn start(dir: &Path, id: u16, first_port: u16) -> Result<DevNode> {
        let address = |id: u16| format!("127.0.0.1:{}", first_port + id - 1);
        let data = dir.join(format!("node-{id}"));
        let config = dir.join(format!("node-{id}.toml"));
        let log = dir.join(format!("node-{id}.log"));
        let seeds: Vec<String> = (1..=NODES)
            .filter(|n| *n != id)
            .map(|n| format!("\"{}\"", address(n)))
            .collect();
        // The first node founds the cluster; it must not wait for others to take it in.
        let seeds = if id == 1 {
            String::new()
        } else {
            seeds.join(", ")
        };
        let text = format!(
            "# Written by `quorate dev`.\nlisten = \"{}\"\ndata_dir = {:?}\nseeds = [{seeds}]\nthreads = 2\n",
            address(id),
            data.display().to_string()
        );
        fs::write(&config, text).with_context(|| format!("can't write {}", config.display()))?;
        let output =
            fs::File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let process = Command::new(std::env::current_exe()?)
            .args(["serve", "--stop-at-eof", "--config"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("node {id} could not be started"))?;
        Ok(DevNode {
            id,
            address: address(id),
            config,
            log,
            process: Some(process),
        })
    }

    fn restart(&self) -> String {
        format!("{} serve --config {}", program(), self.config.display())
    }
}

//! `xtask cluster`: a cluster of real processes to be killed and paused by hand.
//!
//! Its folder, `target/cluster`, holds each node's configuration, data, log and process id. A process
//! is signalled only if it is still the one that was started: its command line names our folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::ci;

const NODES: u32 = 3;
const FIRST_PORT: u32 = 7101;
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs one of the verbs: `start`, `stop`, or `kill|pause|resume|restart NODE`.
pub fn run(root: &Path, words: &[&str]) -> Result<()> {
    let cluster = Cluster {
        root: root.to_owned(),
        folder: root.join("target/cluster"),
    };
    match words {
        ["start"] => cluster.start(),
        ["stop"] => (1..=NODES).try_for_each(|node| cluster.stop(node)),
        ["kill", node] => cluster.signal(number(node)?, Signal::KILL),
        ["pause", node] => cluster.signal(number(node)?, Signal::STOP),
        ["resume", node] => cluster.signal(number(node)?, Signal::CONT),
        ["restart", node] => cluster.start_node(number(node)?),
        _ => bail!("usage: cargo xtask cluster start|stop|kill N|pause N|resume N|restart N"),
    }
}

fn number(text: &str) -> Result<u32> {
    let node: u32 = text
        .parse()
        .with_context(|| format!("`{text}` is not a node's number"))?;
    ensure!(
        (1..=NODES).contains(&node),
        "there are nodes 1 to {NODES}, not {node}"
    );
    Ok(node)
}

struct Cluster {
    root: PathBuf,
    folder: PathBuf,
}

impl Cluster {
    fn binary(&self) -> PathBuf {
        self.root.join("target/release/quorate")
    }

    fn start(&self) -> Result<()> {
        ci::cargo(
            &self.root,
            &["build", "--release", "--package", "quorate-server"],
        )?;
        fs::create_dir_all(&self.folder)?;
        let fresh = !self.folder.join("node-1/IDENTITY").exists();
        for node in 1..=NODES {
            self.start_node(node)?;
        }
        if fresh {
            self.init()?;
        }
        println!(
            "endpoints: {}",
            (1..=NODES).map(address).collect::<Vec<_>>().join(",")
        );
        Ok(())
    }

    /// Founds the cluster, as soon as the first node listens.
    fn init(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut command = Command::new(self.binary());
            command.args(["init", "--endpoint", &address(1)]);
            let output = command.output()?;
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("init: {}", String::from_utf8_lossy(&output.stderr));
            }
            std::thread::yield_now();
        }
    }

    fn start_node(&self, node: u32) -> Result<()> {
        if self.process(node).is_some() {
            println!("node {node} runs already");
            return Ok(());
        }
        let seeds = if node == 1 {
            String::new()
        } else {
            format!("\"{}\"", address(1))
        };
        let config = self.folder.join(format!("node-{node}.toml"));
        let data = self
            .folder
            .join(format!("node-{node}"))
            .display()
            .to_string();
        let text = format!(
            "listen = \"{}\"\ndata_dir = {data:?}\nseeds = [{seeds}]\n",
            address(node)
        );
        fs::write(&config, text)?;
        let log = fs::File::create(self.folder.join(format!("node-{node}.log")))?;
        let child = Command::new(self.binary())
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("node {node} could not be started"))?;
        fs::write(self.pid_file(node), child.id().to_string())?;
        println!("node {node}: {} pid {}", address(node), child.id());
        Ok(())
    }

    fn pid_file(&self, node: u32) -> PathBuf {
        self.folder.join(format!("node-{node}.pid"))
    }

    /// The node's process, if it is still the one that was started.
    fn process(&self, node: u32) -> Option<Pid> {
        let text = fs::read_to_string(self.pid_file(node)).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = self
            .folder
            .join(format!("node-{node}.toml"))
            .display()
            .to_string();
        let same = command
            .split(|byte| *byte == 0)
            .any(|word| word == ours.as_bytes());
        same.then(|| Pid::from_raw(pid)).flatten()
    }

    fn signal(&self, node: u32, signal: Signal) -> Result<()> {
        let pid = self
            .process(node)
            .with_context(|| format!("node {node} does not run"))?;
        kill_process(pid, signal)?;
        Ok(())
    }

    fn stop(&self, node: u32) -> Result<()> {
        let Some(pid) = self.process(node) else {
            return Ok(());
        };
        kill_process(pid, Signal::TERM)?;
        let end = Instant::now() + PATIENCE;
        while self.process(node).is_some() {
            ensure!(
                Instant::now() < end,
                "node {node} does not stop: see its log"
            );
            std::thread::yield_now();
        }
        println!("node {node} stopped");
        Ok(())
    }
}

fn address(node: u32) -> String {
    format!("127.0.0.1:{}", FIRST_PORT + node - 1)
}

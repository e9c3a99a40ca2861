//! Server processes under measurement: started on free ports, watched, ended.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);

/// The processes of one cluster. They are ended when this is dropped.
pub struct Processes {
    children: Vec<Child>,
    /// How each was started.
    commands: Vec<Command>,
    /// Where clients reach them.
    pub endpoints: Vec<String>,
}

/// What processes used so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub memory_bytes: u64,
}

/// Ports that are free now.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    held.iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}

impl Processes {
    /// Three nodes of ours with these settings, lines of the configuration file, and a namespace of `shards` shards
    /// named `bench`.
    pub fn quorate(binary: &Path, dir: &Path, shards: u32, settings: &str) -> Result<Processes> {
        let config = dir.join("quorate.toml");
        fs::write(&config, settings)?;
        let ports = free_ports(3)?;
        let endpoints: Vec<String> = ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let mut all = Processes {
            children: Vec::new(),
            commands: Vec::new(),
            endpoints: endpoints.clone(),
        };
        for (n, address) in endpoints.iter().enumerate() {
            let mut command = Command::new(binary);
            command.args(["serve", "--listen", address, "--data-dir"]);
            command.arg(dir.join(format!("node-{n}")));
            command.arg("--config").arg(&config);
            if n > 0 {
                command.args(["--seeds", &endpoints[0]]);
            }
            all.spawn(command, &dir.join(format!("node-{n}.log")))?;
        }
        let joined = endpoints.join(",");
        until_it_works(binary, &["init", "--endpoint", &endpoints[0]])?;
        let shards = shards.to_string();
        let create = [
            "namespace",
            "create",
            "bench",
            "--shards",
            &shards,
            "--replicas",
            "3",
            "--endpoints",
            &joined,
        ];
        until_it_works(binary, &create)?;
        Ok(all)
    }

    /// Three members of etcd, as Debian ships it, on its defaults but for heartbeat and election time in milliseconds.
    pub fn etcd(binary: &Path, dir: &Path, times: Option<(u32, u32)>) -> Result<Processes> {
        let ports = free_ports(6)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let members: Vec<String> = (0..3)
            .map(|n| format!("m{n}={}", url(ports[3 + n])))
            .collect();
        let endpoints = ports[..3]
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let mut all = Processes {
            children: Vec::new(),
            commands: Vec::new(),
            endpoints,
        };
        for n in 0..3 {
            let mut command = Command::new(binary);
            command.args(["--name", &format!("m{n}"), "--data-dir"]);
            command.arg(dir.join(format!("m{n}")));
            command.args(["--listen-client-urls", &url(ports[n])]);
            command.args(["--advertise-client-urls", &url(ports[n])]);
            command.args(["--listen-peer-urls", &url(ports[3 + n])]);
            command.args(["--initial-advertise-peer-urls", &url(ports[3 + n])]);
            command.args(["--initial-cluster", &members.join(",")]);
            command.args(["--log-level", "error"]);
            if let Some((heartbeat, election)) = times {
                command.args(["--heartbeat-interval", &heartbeat.to_string()]);
                command.args(["--election-timeout", &election.to_string()]);
            }
            all.spawn(command, &dir.join(format!("m{n}.log")))?;
        }
        Ok(all)
    }

    fn spawn(&mut self, mut command: Command, log: &Path) -> Result<()> {
        let output = fs::File::create(log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("can't start {command:?}"))?;
        self.children.push(child);
        self.commands.push(command);
        Ok(())
    }

    fn signal(&self, place: usize, signal: Signal) -> Result<()> {
        let id = self.children[place].id();
        let pid = Pid::from_raw(id.cast_signed()).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Ends one by SIGKILL.
    pub fn kill(&mut self, place: usize) -> Result<()> {
        self.signal(place, Signal::KILL)
    }

    /// Starts one anew that was killed, on its data.
    pub fn start_again(&mut self, place: usize) -> Result<()> {
        self.children[place].wait()?;
        self.children[place] = self.commands[place].spawn()?;
        Ok(())
    }

    /// Has one stand still.
    pub fn freeze(&mut self, place: usize) -> Result<()> {
        self.signal(place, Signal::STOP)
    }

    /// Has it go on.
    pub fn thaw(&mut self, place: usize) -> Result<()> {
        self.signal(place, Signal::CONT)
    }

    /// What all processes together used so far.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage {
            cpu_seconds: 0.0,
            memory_bytes: 0,
        };
        for child in &self.children {
            let one = usage_of(&child.id().to_string())?;
            usage.cpu_seconds += one.cpu_seconds;
            usage.memory_bytes += one.memory_bytes;
        }
        Ok(usage)
    }

    /// The resident memory of one.
    pub fn memory_bytes(&self, place: usize) -> Result<u64> {
        Ok(usage_of(&self.children[place].id().to_string())?.memory_bytes)
    }
}

/// The CPU time of this process so far.
pub fn own_cpu_seconds() -> Result<f64> {
    Ok(usage_of("self")?.cpu_seconds)
}

fn usage_of(process: &str) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // After the name, which ends with the last bracket: state is field 3.
    let (_, rest) = stat
        .rsplit_once(')')
        .context("/proc/PID/stat has no name")?;
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    ensure!(fields.len() > 21, "/proc/PID/stat is short");
    Ok(Usage {
        cpu_seconds: (fields[11] + fields[12]) as f64 / ticks_per_second(),
        memory_bytes: fields[21] * page_bytes(),
    })
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// Runs a command of ours again until it succeeds.
fn until_it_works(binary: &Path, args: &[&str]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let output = Command::new(binary).args(args).output()?;
        if output.status.success() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let end = Instant::now() + Duration::from_secs(10);
        for child in &mut self.children {
            while Instant::now() < end && matches!(child.try_wait(), Ok(None)) {
                std::thread::yield_now();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

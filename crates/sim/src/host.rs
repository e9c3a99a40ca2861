//! A machine: a disk, clocks, and at times a node that runs on it.
//!
//! Each node has a tokio runtime of its own, with a clock that stands still; the simulation gives it a
//! millisecond after the other. So a node can be killed with all that it holds, frozen, or have time go
//! faster for it than for others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_env::sim::{Crash, SimDisk};
use quorate_env::{Disk, Env, Random};
use quorate_node::{Config, DataDir, Node, Replies, ReplyBatch};
use quorate_sharding::{NodeId, Response};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use crate::clock::NodeClock;
use crate::jobs::StepJobs;
use crate::network::{Mail, Network, Parcel};

/// Where a node keeps its data.
pub const DATA: &str = "/data";

/// A machine.
pub struct Host {
    /// The node's id.
    pub id: NodeId,
    /// Its disk.
    pub disk: SimDisk,
    /// Its clocks.
    pub clock: NodeClock,
    /// Its randomness.
    pub random: Random,
    /// The node, while it runs.
    pub life: Option<Life>,
    /// How many lives there were.
    pub lives: u64,
    /// How fast its time goes, in thousandths.
    pub pace: u64,
    pace_left: u64,
    /// It does nothing until then.
    pub frozen_until_us: u64,
    /// Since when it does nothing, and whether the machine sleeps, its clock too, or the process alone stands still.
    frozen: Option<(u64, bool)>,
    /// What arrived while it was frozen.
    pub held: Vec<Parcel>,
    /// Why it does not open any more.
    pub refused: Option<String>,
}

/// A node that runs.
pub struct Life {
    /// The node.
    pub node: Node,
    /// Its jobs.
    pub jobs: StepJobs,
    runtime: Option<Runtime>,
    replies: Replies,
    answers: mpsc::UnboundedReceiver<ReplyBatch>,
    waiting: BTreeMap<u64, (u64, oneshot::Sender<Response>)>,
    next_request: u64,
}

/// A runtime whose time is given to it.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads and files needs nothing of the system")
}

/// Gives a runtime so much time.
pub fn give_time(runtime: &Runtime, ms: u64) {
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(ms)).await });
}

impl Host {
    /// A machine that is switched off.
    pub fn new(id: NodeId, random: Random) -> Host {
        Host {
            id,
            disk: SimDisk::new(random.clone()),
            clock: NodeClock::default(),
            random,
            life: None,
            lives: 0,
            pace: 1000,
            pace_left: 0,
            frozen_until_us: 0,
            frozen: None,
            held: Vec::new(),
            refused: None,
        }
    }

    /// The address of its node.
    pub fn address(id: NodeId) -> String {
        format!("node-{id}")
    }

    fn env(&self, jobs: &StepJobs) -> Env {
        Env {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.clock.clone()),
            jobs: Arc::new(jobs.clone()),
            random: self.random.clone(),
        }
    }

    /// Takes the data directory, without starting the node: for joining. Gives the data id.
    pub fn data_id(&self) -> Result<u64, String> {
        let jobs = StepJobs::new(self.random.clone(), self.clock.clone());
        let dir = DataDir::open(Path::new(DATA), self.env(&jobs));
        dir.map(|dir| dir.data_id()).map_err(|e| e.to_string())
    }

    /// Writes the node's identity.
    pub fn become_node(&self, cluster: u128, founder: bool) -> Result<(), String> {
        let jobs = StepJobs::new(self.random.clone(), self.clock.clone());
        let dir = DataDir::open(Path::new(DATA), self.env(&jobs));
        let mut dir = dir.map_err(|e| e.to_string())?;
        let become_it = dir.become_node(cluster, self.id, founder);
        become_it.map(|_| ()).map_err(|e| e.to_string())
    }

    /// Starts the node on what the disk holds.
    ///
    /// # Errors
    /// What the node says that keeps it from opening.
    pub fn start(&mut self, config: Config, network: &Network) -> Result<(), String> {
        let runtime = runtime();
        let jobs = StepJobs::new(self.random.clone(), self.clock.clone());
        self.disk.set_capacity(None);
        let opened = {
            let _inside = runtime.enter();
            let dir = DataDir::open(Path::new(DATA), self.env(&jobs));
            dir.and_then(|dir| Node::open(config, dir, network.transport(self.id)))
        };
        let node = match opened {
            Ok(node) => node,
            Err(error) => {
                self.stop_disk(Crash::Random);
                jobs.end();
                drop(runtime);
                return Err(error.to_string());
            }
        };
        {
            let _inside = runtime.enter();
            jobs.start();
        }
        let (replies, answers) = Replies::channel();
        self.life = Some(Life {
            node,
            jobs,
            runtime: Some(runtime),
            replies,
            answers,
            waiting: BTreeMap::new(),
            next_request: 1,
        });
        self.lives += 1;
        network.set_down(self.id, false);
        Ok(())
    }

    fn stop_disk(&mut self, crash: Crash) {
        self.disk = self.disk.crash_with(crash);
    }

    /// The process ends at once; of the disk remains what `crash` says.
    pub fn kill(&mut self, crash: Crash, network: &Network) {
        // Where nodes are told that a peer's connection was refused, they are told so here.
        network.set_down(self.id, true);
        self.stop_disk(crash);
        self.frozen_until_us = 0;
        self.frozen = None;
        self.held.clear();
        if let Some(mut life) = self.life.take() {
            life.jobs.end();
            if let Some(runtime) = life.runtime.take() {
                let _inside = runtime.enter();
                drop(life);
                drop(_inside);
                runtime.shutdown_background();
            }
        }
    }

    /// Whether it does nothing just now.
    pub fn is_frozen(&self, now_us: u64) -> bool {
        self.frozen_until_us > now_us
    }

    /// Nothing goes on until then. The clock that does not count sleep stands still if the machine `sleeps`.
    pub fn freeze(&mut self, now_us: u64, until_us: u64, sleeps: bool) {
        self.frozen_until_us = until_us;
        self.frozen = self.frozen.or(Some((now_us, sleeps)));
    }

    /// When a frozen process goes on, its clock has gone on without it.
    pub fn wake(&mut self, now_us: u64) {
        if self.is_frozen(now_us) {
            return;
        }
        let Some((since_us, slept)) = self.frozen.take() else {
            return;
        };
        let missed = Duration::from_millis((now_us - since_us) / 1000);
        if slept {
            self.clock.sleep(missed);
            return;
        }
        self.clock.advance(missed);
        if let Some(runtime) = self.life.as_ref().and_then(|life| life.runtime.as_ref()) {
            runtime.block_on(tokio::time::advance(missed));
        }
    }

    /// A millisecond passes in the world; what the node answers meanwhile goes into the network.
    pub fn step(&mut self, network: &Network) {
        self.pace_left += self.pace;
        let ms = self.pace_left / 1000;
        self.pace_left %= 1000;
        if ms == 0 {
            return;
        }
        self.clock.advance(Duration::from_millis(ms));
        if let Some(life) = &mut self.life {
            life.step(ms);
            life.send_answers(self.id, network);
        }
    }

    /// Takes in what the network brings.
    pub fn receive(&mut self, parcel: Parcel, network: &Network) {
        let id = self.id;
        if let Some(life) = &mut self.life {
            life.receive(id, parcel, network);
        }
    }

    /// Loses all but the node's identity.
    pub fn wipe(&self) {
        for path in self.files() {
            let name = path.file_name().unwrap_or_default();
            if name != "IDENTITY" && name != "MAP" {
                // It is a fault, whether it is done in full or not.
                let _ = self.disk.remove(&path);
            }
        }
        for folder in ["", "/engine", "/log", "/snapshots"] {
            let _ = self.disk.sync_dir(Path::new(&format!("{DATA}{folder}")));
        }
    }

    /// The bytes of all files.
    pub fn used_bytes(&self) -> u64 {
        let bytes = |path: &std::path::PathBuf| {
            let file = self.disk.open_read(path);
            file.and_then(|file| file.size()).unwrap_or(0)
        };
        self.files().iter().map(bytes).sum()
    }

    /// The files of the node, largest first.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        for folder in ["", "/engine", "/log", "/snapshots"] {
            let folder = format!("{DATA}{folder}");
            let folder = Path::new(&folder);
            for name in self.disk.list(folder).unwrap_or_default() {
                let path = folder.join(name);
                if let Ok(file) = self.disk.open_read(&path) {
                    found.push((file.size().unwrap_or(0), path));
                }
            }
        }
        found.sort();
        found.into_iter().rev().map(|(_, path)| path).collect()
    }
}

impl Life {
    /// Runs something inside the node's runtime, as a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    fn step(&mut self, ms: u64) {
        if let Some(runtime) = &self.runtime {
            let inside = runtime.enter();
            self.jobs.look_again();
            drop(inside);
            give_time(runtime, ms);
        }
    }

    fn send_answers(&mut self, id: NodeId, network: &Network) {
        while let Ok(batch) = self.answers.try_recv() {
            for (request, response) in batch {
                let Some((client, reply)) = self.waiting.remove(&request) else {
                    continue;
                };
                let back = move || {
                    // Who asked may have given up.
                    let _ = reply.send(response);
                };
                network.send_loose(id, client, Mail::Back(Box::new(back)));
            }
        }
    }

    fn receive(&mut self, id: NodeId, parcel: Parcel, network: &Network) {
        let Some(runtime) = &self.runtime else { return };
        let _inside = runtime.enter();
        let from = parcel.from;
        match parcel.mail {
            Mail::Peer {
                class,
                group,
                payload,
                reply,
            } => {
                let answer = self.node.handle_peer(from, class, group, payload);
                let network = network.clone();
                runtime.spawn(async move {
                    let answer = answer.await;
                    let back = move || {
                        let _ = reply.send(answer);
                    };
                    network.send_loose(id, from, Mail::Back(Box::new(back)));
                });
            }
            Mail::Request { mut request, reply } => {
                request.request_id = self.next_request;
                self.next_request += 1;
                self.waiting.insert(request.request_id, (from, reply));
                self.node.execute(vec![*request], &self.replies);
            }
            Mail::Ask(ask) => ask(self),
            Mail::Back(back) => back(),
        }
    }
}

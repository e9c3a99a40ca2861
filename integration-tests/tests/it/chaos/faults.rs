//! [`Fault`]: what can befall a cluster of real processes, and [`World`], which it befalls.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quorate_client::Client;
use tempfile::TempDir;

use super::disks::{Ballast, mount_image};
use super::network::{End, Network};
use super::system;
use crate::damage::{damage, files};
use crate::support::{Cluster, Node, Random, SOON, Settings, eventually};

const NODES: usize = 3;
/// A fault that lasts, lasts so long: past all time-outs, or not.
const LASTS_MS: std::ops::Range<u64> = 500..5000;
/// How far a clock is set, one way or the other.
const STEP_SECONDS: std::ops::Range<u64> = 1..7200;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillLeader,
    KillTwo,
    KillAll,
    FreezeLeader,
    IsolateLeader,
    CutLeaderFromPeers,
    CutTwoFromEachOther,
    MuteLeader,
    DeafenLeader,
    FillDisk,
    StallDiskOfLeader,
    DamageLog,
    DamageTable,
    RollingRestart,
    StepClock,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 15] = [
        Fault::KillLeader,
        Fault::KillTwo,
        Fault::KillAll,
        Fault::FreezeLeader,
        Fault::IsolateLeader,
        Fault::CutLeaderFromPeers,
        Fault::CutTwoFromEachOther,
        Fault::MuteLeader,
        Fault::DeafenLeader,
        Fault::FillDisk,
        Fault::StallDiskOfLeader,
        Fault::DamageLog,
        Fault::DamageTable,
        Fault::RollingRestart,
        Fault::StepClock,
    ];

    /// In words, for people.
    pub fn words(self) -> &'static str {
        match self {
            Fault::KillLeader => "a leader is killed (SIGKILL)",
            Fault::KillTwo => "two nodes are killed; from their restart on",
            Fault::KillAll => "all nodes are killed; from their restart on",
            Fault::FreezeLeader => "a leader is frozen (SIGSTOP), and goes on",
            Fault::IsolateLeader => "a leader is cut off from all",
            Fault::CutLeaderFromPeers => "a leader is cut off from its peers, not from clients",
            Fault::CutTwoFromEachOther => "two nodes are cut off from each other",
            Fault::MuteLeader => "what a leader sends to its peers is lost",
            Fault::DeafenLeader => "what peers send to a leader is lost",
            Fault::FillDisk => "a disk is full to its last byte",
            Fault::StallDiskOfLeader => "the disk of a leader stalls (fsfreeze)",
            Fault::DamageLog => "a killed node finds its log damaged",
            Fault::DamageTable => "a killed node finds a table damaged",
            Fault::RollingRestart => "all nodes are restarted in turn (SIGTERM)",
            Fault::StepClock => "the clock of a node is set, and set back",
        }
    }
}

/// A cluster whose nodes have networks, disks and clocks of their own.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    client: Client,
    network: Network,
    random: Random,
}

impl World {
    /// Makes it.
    pub async fn new(random: Random) -> World {
        let dir = TempDir::new().expect("a temporary directory");
        let faketime = std::env::var("QUORATE_CHAOS_FAKETIME");
        let faketime = faketime.expect("the path of libfaketime: run by `cargo xtask chaos`");
        let network = Network::new(NODES);
        let nodes = (0..NODES).map(|n| {
            let mut node = Node::new(dir.path(), &format!("node-{}", n + 1), 0);
            node.address = Network::endpoint(n);
            node.launcher = Network::launcher(n);
            set_clock(&node, 0);
            let clock = clock_of(&node).to_string_lossy().into_owned();
            node.environment = [
                ("LD_PRELOAD", faketime.as_str()),
                ("FAKETIME_TIMESTAMP_FILE", clock.as_str()),
                ("FAKETIME_CACHE_DURATION", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ("NO_FAKE_STAT", "1"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
            // What fills and stalls is a real one.
            mount_image(&node.data.with_extension("disk"), &node.data);
            node
        });
        let nodes = nodes.collect();
        let cluster = Cluster::of(dir, nodes, &Settings::nodes(NODES)).await;
        World {
            client: cluster.client().await,
            cluster,
            network,
            random,
        }
    }

    /// Lets it happen and pass. Gives the moment from which on service is owed.
    pub async fn strike(&mut self, fault: Fault) -> Instant {
        let leader = self.cluster.leader(&self.client, None).await;
        let begun = Instant::now();
        match fault {
            Fault::KillLeader => {
                self.cluster.nodes[leader].kill();
                self.last().await;
                self.cluster.nodes[leader].start();
                begun
            }
            Fault::KillTwo => self.kill(&[leader, (leader + 1) % NODES]).await,
            Fault::KillAll => self.kill(&[0, 1, 2]).await,
            Fault::FreezeLeader => {
                self.cluster.nodes[leader].pause();
                self.last().await;
                self.cluster.nodes[leader].resume();
                begun
            }
            Fault::RollingRestart => {
                for n in 0..NODES {
                    let ended = self.cluster.nodes[n].terminate().await;
                    assert!(ended.success(), "node {}: {ended}", n + 1);
                    self.cluster.nodes[n].start();
                    self.cluster.healthy().await;
                }
                begun
            }
            Fault::DamageLog => self.damage(leader, "log", ".log").await,
            Fault::DamageTable => self.damage(leader, "engine", ".table").await,
            Fault::FillDisk | Fault::StallDiskOfLeader => self.hurt_disk(fault, leader).await,
            Fault::StepClock => self.step_clock(leader).await,
            cut => {
                self.cut(cut, leader);
                self.last().await;
                self.network.heal();
                begun
            }
        }
    }

    /// Waits as long as a fault shall last.
    async fn last(&mut self) {
        let span = LASTS_MS.end - LASTS_MS.start;
        let time = LASTS_MS.start + self.random.below(span);
        tokio::time::sleep(Duration::from_millis(time)).await;
    }

    async fn kill(&mut self, places: &[usize]) -> Instant {
        places.iter().for_each(|n| self.cluster.nodes[*n].kill());
        self.last().await;
        self.cluster.start_all();
        Instant::now()
    }

    fn cut(&mut self, fault: Fault, leader: usize) {
        let own = End::Node(leader);
        let peers = [1, 2].map(|n| End::Node((leader + n) % NODES));
        let network = &mut self.network;
        match fault {
            Fault::CutTwoFromEachOther => network.part(own, peers[self.random.below(2) as usize]),
            Fault::MuteLeader => peers.iter().for_each(|peer| network.cut(own, *peer)),
            Fault::DeafenLeader => peers.iter().for_each(|peer| network.cut(*peer, own)),
            Fault::CutLeaderFromPeers => peers.iter().for_each(|peer| network.part(own, *peer)),
            Fault::IsolateLeader => {
                let all = peers.into_iter().chain([End::Clients]);
                all.for_each(|other| network.part(own, other));
            }
            other => unreachable!("{other:?} is not the network's"),
        }
    }

    /// Flips bits in a file of a node that was killed.
    async fn damage(&mut self, leader: usize, folder: &str, ending: &str) -> Instant {
        let folder = self.cluster.nodes[leader].data.join(folder);
        // There is one soon: memtables are small.
        let found = eventually("a file to damage", SOON, || {
            let written = |file: &PathBuf| end_of(file) > 4096;
            let found: Vec<PathBuf> = files(&folder, ending).into_iter().filter(written).collect();
            std::future::ready(
                (!found.is_empty())
                    .then_some(found)
                    .ok_or("none".to_owned()),
            )
        });
        found.await;
        let begun = Instant::now();
        self.cluster.nodes[leader].kill();
        let mut found = files(&folder, ending);
        found.retain(|file| end_of(file) > 4096);
        let file = &found[self.random.below(found.len() as u64) as usize];
        // In what was written, far from a torn tail.
        let at = self.random.below(end_of(file) as u64 / 2) as usize;
        println!("damaged: {} at {at}", file.display());
        damage(file, at);
        self.cluster.nodes[leader].start();
        begun
    }

    async fn hurt_disk(&mut self, fault: Fault, leader: usize) -> Instant {
        let begun = Instant::now();
        if fault == Fault::FillDisk {
            let ballast = Ballast::fill(&self.cluster.nodes[leader].data);
            self.last().await;
            drop(ballast);
        } else {
            let frozen = Frozen::disk(&self.cluster.nodes[leader].data);
            self.last().await;
            drop(frozen);
        }
        begun
    }

    async fn step_clock(&mut self, leader: usize) -> Instant {
        let begun = Instant::now();
        let span = STEP_SECONDS.end - STEP_SECONDS.start;
        let seconds = (STEP_SECONDS.start + self.random.below(span)) as i64;
        let sign = if self.random.below(2) == 0 { 1 } else { -1 };
        set_clock(&self.cluster.nodes[leader], sign * seconds);
        self.last().await;
        set_clock(&self.cluster.nodes[leader], 0);
        begun
    }
}

/// Where the bytes that are not zero end.
fn end_of(file: &Path) -> usize {
    let bytes = fs::read(file).unwrap_or_default();
    bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0)
}

fn clock_of(node: &Node) -> PathBuf {
    node.data.with_extension("clock")
}

/// Sets a node's clock so many seconds off; it hears of that within a second.
fn set_clock(node: &Node, seconds: i64) {
    // A file that is read while it is written: so it is put in place as a whole.
    let (file, text) = (clock_of(node), format!("{seconds:+}\n"));
    let new = file.with_extension("new");
    fs::write(&new, text).expect("the test's directory is writable");
    fs::rename(new, file).expect("the test's directory is writable");
}

/// A file system where every write waits, until it is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn disk(at: &Path) -> Frozen {
        system(&["fsfreeze", "--freeze", &at.to_string_lossy()]);
        Frozen(at.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        system(&["fsfreeze", "--unfreeze", &self.0.to_string_lossy()]);
    }
}

//! What goes wrong, when, and that it is mended in the end.
//!
//! Each seed picks some kinds of fault and leaves the others out, so that runs differ in kind and not only in
//! order. A fault that lasts is mended by a plan: a list of what is to be done when.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_env::sim::Fault;
use quorate_env::{Disk, Random};

use crate::cluster::Cluster;
use crate::history::Violation;
use crate::host::DATA;
use crate::run::any_crash;

mod kinds;
mod leases;
mod members;

pub use kinds::KINDS;

/// What is to be done later.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mend {
    Start(u64),
    Kill(u64),
    Unblock(u64, u64),
    Unclog(u64, u64),
    NoLoss,
    UsualDelay,
    UsualPace(u64),
    RightClock(u64),
    FastDisk(u64),
    Space(u64),
    /// Of a leader and one of its voters, who forgets what it promised.
    Forget(u64, u64),
    /// A leader that hands over is cut off from the others.
    CutOff(u64),
    /// The others are told that a node is dead.
    Tell(u64),
}

/// The faults of a run.
pub struct Faults {
    kinds: Vec<&'static str>,
    next_us: u64,
    pause_us: u64,
    plan: BTreeMap<(u64, u64), Mend>,
    planned: u64,
    counts: BTreeMap<&'static str, u64>,
    /// Nodes whose files were damaged: they come back whole, but those that refuse to open.
    damaged: BTreeSet<u64>,
    /// Those that refuse: identity, map, manifest or the header of a log segment was hit.
    refusing: BTreeSet<u64>,
    /// Nodes whose disk failed: their data is sound, and they work again once started anew.
    failed: BTreeSet<u64>,
    /// Nodes that are down or about to be.
    down: BTreeSet<u64>,
    late: BTreeSet<u64>,
    members: members::Members,
    errors: Arc<Mutex<Vec<String>>>,
}

fn is_log(path: &Path) -> bool {
    path.starts_with(Path::new(DATA).join("log")) && path.extension().is_some_and(|e| e == "log")
}

impl Faults {
    /// What the seed chooses of them.
    pub fn new(
        random: &Random,
        nodes: u64,
        late: u64,
        leased: bool,
        errors: Arc<Mutex<Vec<String>>>,
    ) -> Faults {
        let mut kinds: Vec<&'static str> = KINDS.to_vec();
        kinds.retain(|_| random.one_in(3));
        // Something always dies.
        kinds.push("kill");
        if leased && !kinds.contains(&"promise_forgotten") {
            kinds.push("promise_forgotten");
        }
        Faults {
            kinds,
            next_us: 0,
            pause_us: 100_000 + random.below(900_000),
            plan: BTreeMap::new(),
            planned: 0,
            counts: BTreeMap::new(),
            damaged: BTreeSet::new(),
            refusing: BTreeSet::new(),
            failed: BTreeSet::new(),
            down: BTreeSet::new(),
            late: (nodes - late + 1..=nodes).collect(),
            members: members::Members::default(),
            errors,
        }
    }

    fn plan(&mut self, at_us: u64, mend: Mend) {
        self.planned += 1;
        self.plan.insert((at_us, self.planned), mend);
    }

    fn count(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }

    /// Perhaps breaks or mends something.
    ///
    /// # Errors
    /// A node that should open and does not.
    pub fn step(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        while let Some(((at_us, n), mend)) =
            self.plan.first_key_value().map(|(k, m)| (*k, m.clone()))
        {
            if at_us > cluster.now_us {
                break;
            }
            self.plan.remove(&(at_us, n));
            self.mend(cluster, mend)?;
        }
        if cluster.now_us < self.next_us || self.kinds.is_empty() {
            return Ok(());
        }
        self.next_us = cluster.now_us + 20_000 + cluster.random.below(2 * self.pause_us);
        let pick = cluster.random.below(self.kinds.len() as u64) as usize;
        let kind = self.kinds[pick];
        if kinds::strike(self, cluster, kind)? {
            self.count(kind);
            let of = KINDS.iter().position(|known| *known == kind).unwrap_or(99);
            cluster.trace.note("fault", &[of as u64]);
        }
        Ok(())
    }

    fn mend(&mut self, cluster: &mut Cluster, mend: Mend) -> Result<(), Violation> {
        match mend {
            Mend::Start(id) => {
                self.down.remove(&id);
                self.start(cluster, id)
            }
            Mend::Kill(id) => {
                let crash = any_crash(&cluster.random);
                cluster.kill(id, crash);
                self.failed.remove(&id);
                self.plan(cluster.now_us + 50_000, Mend::Start(id));
                Ok(())
            }
            Mend::Forget(leader, voter) => {
                leases::forget(self, cluster, leader, voter);
                Ok(())
            }
            Mend::Tell(dead) => {
                leases::tell_of_death(cluster, dead);
                Ok(())
            }
            Mend::CutOff(leader) => {
                let until_us = self.lasting(cluster, 500);
                leases::cut_off(self, cluster, leader, until_us);
                Ok(())
            }
            other => {
                self.mend_quietly(cluster, other);
                Ok(())
            }
        }
    }

    fn mend_quietly(&mut self, cluster: &mut Cluster, mend: Mend) {
        let jobs = |cluster: &Cluster, id: u64| {
            let life = cluster.hosts.get(&id).and_then(|host| host.life.as_ref());
            life.map(|life| life.jobs.clone())
        };
        match mend {
            Mend::Unblock(from, to) => cluster.network.mend(from, to),
            Mend::Unclog(from, to) => cluster.network.clog(from, to, 0),
            Mend::NoLoss => cluster.network.lose_one_in(0),
            Mend::UsualDelay => cluster.network.set_delay_us(1_500),
            Mend::UsualPace(id) => {
                if let Some(host) = cluster.hosts.get_mut(&id) {
                    host.pace = 1000;
                }
            }
            Mend::RightClock(id) => {
                if let Some(host) = cluster.hosts.get(&id) {
                    host.clock.set_right();
                }
            }
            Mend::FastDisk(id) => {
                if let Some(jobs) = jobs(cluster, id) {
                    jobs.set_slow(0);
                }
            }
            Mend::Space(id) => {
                if let Some(host) = cluster.hosts.get(&id) {
                    host.disk.set_capacity(None);
                }
                if let Some(jobs) = jobs(cluster, id) {
                    jobs.set_on_threads(false);
                }
            }
            Mend::Start(_) | Mend::Kill(_) | Mend::Forget(..) | Mend::CutOff(_) | Mend::Tell(_) => {
            }
        }
    }

    /// Starts a node; one whose files were not damaged must open.
    fn start(&mut self, cluster: &mut Cluster, id: u64) -> Result<(), Violation> {
        let running = |cluster: &Cluster| {
            cluster
                .hosts
                .get(&id)
                .is_some_and(|host| host.life.is_some())
        };
        if running(cluster) || cluster.start(id) {
            return Ok(());
        }
        if self.damaged.contains(&id) {
            self.refusing.insert(id);
            return Ok(());
        }
        let host = cluster.hosts.get(&id);
        let why = host
            .and_then(|host| host.refused.clone())
            .unwrap_or_default();
        let message = format!("node {id}, whose disk is sound, does not open: {why}");
        Err(Violation::new("recovery", message))
    }

    /// Mends everything, and starts every node that may be.
    ///
    /// # Errors
    /// A node that should open and does not.
    pub fn heal(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        cluster.trace.note("heal", &[]);
        for mend in std::mem::take(&mut self.plan).into_values() {
            match mend {
                Mend::Start(_) => {}
                Mend::Kill(id) => {
                    self.failed.insert(id);
                }
                other => self.mend_quietly(cluster, other),
            }
        }
        cluster.network.heal();
        let now_us = cluster.now_us;
        for host in cluster.hosts.values_mut() {
            host.frozen_until_us = now_us;
        }
        // A disk that failed is whole again once the node is started anew.
        for id in std::mem::take(&mut self.failed) {
            let crash = any_crash(&cluster.random);
            cluster.kill(id, crash);
        }
        self.down.clear();
        let ids: Vec<u64> = cluster.hosts.keys().copied().collect();
        for id in ids {
            if !self.late.contains(&id) {
                self.start(cluster, id)?;
            }
        }
        self.members.heal(cluster);
        Ok(())
    }

    /// Whether a node need not come up to date any more.
    pub fn is_excused(&self, id: u64) -> bool {
        self.refusing.contains(&id) || self.late.contains(&id)
    }

    /// Whether files were damaged.
    pub fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// What must go on being true of members until replicas meet.
    pub fn keep_members(&mut self, cluster: &mut Cluster) {
        self.members.step(cluster);
    }

    /// Errors that no fault explains.
    ///
    /// # Errors
    /// The first of them.
    pub fn judge_errors(&self) -> Result<(), Violation> {
        if !self.damaged.is_empty() || self.counts.keys().any(|kind| kind.starts_with("disk_")) {
            return Ok(());
        }
        match self.errors.lock().first() {
            Some(error) => Err(Violation::new("no_odd_errors", error.clone())),
            None => Ok(()),
        }
    }

    /// Faults by kind.
    pub fn counts(&self, cluster: &Cluster) -> BTreeMap<&'static str, u64> {
        let mut counts = self.counts.clone();
        let (lost, late) = cluster.network.counts();
        counts.insert("message_lost", lost);
        counts.insert("message_late", late);
        counts
    }

    /// A node that runs and is not about to be stopped, if one more may be.
    fn victim(&self, cluster: &Cluster) -> Option<u64> {
        let alive = cluster.alive();
        let fit: Vec<u64> = alive
            .into_iter()
            .filter(|id| !self.down.contains(id))
            .collect();
        let count = fit.len() as u64;
        (count > 0).then(|| fit[cluster.random.below(count) as usize])
    }

    fn kill_for(&mut self, cluster: &mut Cluster, id: u64, most_us: u64) {
        let crash = any_crash(&cluster.random);
        cluster.kill(id, crash);
        if cluster.board.has_bug("wiped_node_returns")
            && let Some(host) = cluster.hosts.get(&id)
        {
            host.wipe();
        }
        self.failed.remove(&id);
        self.down.insert(id);
        let up_us = cluster.now_us + 20_000 + cluster.random.below(most_us);
        self.plan(up_us, Mend::Start(id));
    }

    /// A sync, write or read that fails; the node is started anew some time later.
    fn fail_disk(&mut self, cluster: &mut Cluster, fault: Fault) -> bool {
        let Some(id) = self.victim(cluster) else {
            return false;
        };
        let folder = match cluster.random.one_in(2) {
            true => "log",
            false => "engine",
        };
        if let Some(host) = cluster.hosts.get(&id) {
            host.disk.inject_under(fault, &Path::new(DATA).join(folder));
        }
        self.failed.insert(id);
        self.down.insert(id);
        let at_us = cluster.now_us + 500_000 + cluster.random.below(2_500_000);
        self.plan(at_us, Mend::Kill(id));
        true
    }

    /// One bit of a stopped node's files, where damage can be told from the end of a log.
    fn damage(&mut self, cluster: &mut Cluster) -> bool {
        // The others must be a quorum of every group, now and later.
        if !self.damaged.is_empty() || !cluster.all_have_three_voters() {
            return false;
        }
        let Some(id) = self.victim(cluster) else {
            return false;
        };
        self.kill_for(cluster, id, 1_000_000);
        let random = cluster.random.clone();
        let Some(host) = cluster.hosts.get(&id) else {
            return false;
        };
        let files = host.files();
        if files.is_empty() {
            return false;
        }
        // The log is what replicas promise by.
        let logs: Vec<_> = files.iter().filter(|path| is_log(path)).cloned().collect();
        let files = match logs.is_empty() || random.one_in(2) {
            true => files,
            false => logs,
        };
        let path = &files[random.below(files.len() as u64) as usize];
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == "spare" || name == "LOCK" {
            return false;
        }
        let Ok(bytes) = host.disk.read(path) else {
            return false;
        };
        // What nothing proves to have been synced is taken for torn, as it must be.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        let part = match is_log(path) {
            true => used / 2,
            false => used,
        };
        if part == 0 || host.disk.flip_bit(path, random.below(part * 8)).is_err() {
            return false;
        }
        self.damaged.insert(id);
        true
    }

    /// One bit of a table or value file of a node that runs.
    fn damage_running(&mut self, cluster: &mut Cluster) -> bool {
        if !self.damaged.is_empty() || !cluster.all_have_three_voters() {
            return false;
        }
        let Some(id) = self.victim(cluster) else {
            return false;
        };
        let random = cluster.random.clone();
        let Some(host) = cluster.hosts.get(&id) else {
            return false;
        };
        let is_kept = |path: &Path| {
            let kind = path.extension();
            kind.is_some_and(|kind| kind == "table" || kind == "values")
        };
        let files: Vec<_> = host
            .files()
            .into_iter()
            .filter(|path| is_kept(path))
            .collect();
        if files.is_empty() {
            return false;
        }
        let path = &files[random.below(files.len() as u64) as usize];
        let Ok(bytes) = host.disk.read(path) else {
            return false;
        };
        let bits = bytes.len() as u64 * 8;
        if bits == 0 || host.disk.flip_bit(path, random.below(bits)).is_err() {
            return false;
        }
        self.damaged.insert(id);
        true
    }

    fn lasting(&self, cluster: &Cluster, most_ms: u64) -> u64 {
        let ms = 100 + cluster.random.below(most_ms);
        cluster.now_us + Duration::from_millis(ms).as_micros() as u64
    }
}

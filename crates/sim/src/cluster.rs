//! A cluster of simulated machines, and the loop that gives them time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_env::Random;
use quorate_env::sim::Crash;
use quorate_kv::Limits;
use quorate_node::{ClusterCommand, Config};
use quorate_replication::Timing;
use quorate_sharding::{
    COORDINATOR_GROUP, Encoding, NamespaceKind, NamespaceSpec, NodeId, RoutingPrefix, ShardMap,
};
use quorate_storage::Options;
use tokio::runtime::Runtime;

use crate::history::Violation;
use crate::host::{self, Host};
use crate::network::{CLIENTS, Mail, Network};
use crate::oracle::Oracles;
use crate::switches::Board;
use crate::trace::Trace;

/// A step of time, in microseconds.
pub const STEP_US: u64 = 1_000;

/// How often a node that does not hear of new maps by itself asks for one.
const MAP_PERIOD_US: u64 = 300_000;

/// What was found of the cluster's one thing asked of a node.
type Answer<T> = Arc<Mutex<Option<T>>>;

/// The cluster with all around it.
pub struct Cluster {
    /// The machines, by id.
    pub hosts: BTreeMap<NodeId, Host>,
    /// What connects them.
    pub network: Network,
    /// Where clients live.
    pub clients: Option<Runtime>,
    /// The time.
    pub now_us: u64,
    /// Choices of the simulator itself.
    pub random: Random,
    /// The product's switches.
    pub board: Board,
    /// What happened.
    pub trace: Trace,
    /// Who judges it.
    pub oracles: Oracles,
    /// Sizes that the seed chose.
    pub sizes: Sizes,
    /// Hears of the time.
    pub on_step: Box<dyn Fn(u64)>,
    /// The cluster's id.
    pub cluster: u128,
    made: u64,
}

/// Sizes of a run: small ones make rare things frequent.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    memtable_bytes: usize,
    segment_bytes: u64,
    log_bytes_max: u64,
    coordinator_replicas: usize,
    /// After how long idle groups go quiet; zero: never.
    pub quiet_after_ms: u64,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// How long leaders read without asking; zero: not at all.
    pub lease_ms: u64,
}

impl Sizes {
    /// What a seed chooses.
    pub fn random(random: &Random) -> Sizes {
        Sizes {
            memtable_bytes: 16 << (10 + random.below(4)),
            segment_bytes: 2_500_000 + random.below(2_000_000),
            log_bytes_max: match random.one_in(2) {
                true => 6 << 20,
                false => 64 << 20,
            },
            coordinator_replicas: 3,
            timing: Timing::FAST,
            quiet_after_ms: [0, 20, 100, 300][random.below(4) as usize],
            lease_ms: [0, 0, 20, 100, 100][random.below(5) as usize],
        }
    }

    fn config(&self, id: NodeId) -> Config {
        let limits = Limits {
            key_bytes: 256,
            value_bytes: 16 << 10,
            batch_bytes: 64 << 10,
        };
        let engine = Options {
            memtable_bytes: self.memtable_bytes,
            cache_bytes: 1 << 20,
            block_bytes: 1024,
            table_bytes: 32 << 10,
            level_base_bytes: 128 << 10,
            large_value_bytes: 2048,
            value_file_bytes: 64 << 10,
            ..Options::default()
        };
        Config {
            limits,
            engine,
            log_bytes_max: self.log_bytes_max,
            log_segment_bytes: self.segment_bytes,
            free_bytes_min: 256 << 10,
            coordinator_replicas: self.coordinator_replicas,
            lease: Duration::from_millis(self.lease_ms),
            quiet_after: Duration::from_millis(self.quiet_after_ms),
            timing: self.timing,
            ..Config::new(Host::address(id))
        }
    }
}

impl Cluster {
    /// Machines that are switched off.
    pub fn new(nodes: u64, random: Random, board: Board, trace: Trace) -> Cluster {
        let fork = |random: &Random| Random::from_seed(random.next_u64());
        let network = Network::new(fork(&random), trace.clone());
        let hosts = (1..=nodes).map(|id| (id, Host::new(id, fork(&random))));
        Cluster {
            hosts: hosts.collect(),
            network,
            clients: Some(host::runtime()),
            now_us: 0,
            sizes: Sizes::random(&random),
            cluster: u128::from(random.next_u64()) | 1,
            random,
            made: 0,
            board,
            trace,
            oracles: Oracles::default(),
            on_step: Box::new(|_| {}),
        }
    }

    /// Starts a node on its disk; false if it refuses.
    pub fn start(&mut self, id: NodeId) -> bool {
        let Some(host) = self.hosts.get_mut(&id) else {
            return false;
        };
        let config = self.sizes.config(id);
        let started = host.start(config, &self.network);
        self.trace.note("start", &[id, u64::from(started.is_ok())]);
        match started {
            Ok(()) => {
                host.refused = None;
                true
            }
            Err(why) => {
                host.refused = Some(why);
                false
            }
        }
    }

    /// Kills a node.
    pub fn kill(&mut self, id: NodeId, crash: Crash) {
        if let Some(host) = self.hosts.get_mut(&id) {
            self.trace.note("kill", &[id]);
            host.kill(crash, &self.network);
            self.tell_of_death(id);
        }
    }

    /// A process that dies has its connections closed: most of the others notice, and ask its address in vain. A
    /// few are told of the death of one that is up again by then, which must do no harm.
    fn tell_of_death(&self, id: NodeId) {
        for other in self.alive() {
            if self.random.one_in(4) {
                continue;
            }
            let notices = Duration::from_millis(1 + self.random.below(60));
            drop(self.ask(other, move |node| async move {
                tokio::time::sleep(notices).await;
                node.peer_gone(id);
            }));
        }
    }

    /// The nodes that run.
    pub fn alive(&self) -> Vec<NodeId> {
        let alive = self.hosts.values().filter(|host| host.life.is_some());
        alive.map(|host| host.id).collect()
    }

    /// Time goes on by one step.
    pub fn step(&mut self) -> Result<(), Violation> {
        self.now_us += STEP_US;
        self.trace.set_now(self.now_us);
        (self.on_step)(self.now_us);
        for host in self.hosts.values_mut() {
            host.wake(self.now_us);
        }
        self.deliver();
        let mut order: Vec<NodeId> = self.hosts.keys().copied().collect();
        let first = self.random.below(order.len() as u64) as usize;
        order.rotate_left(first);
        for id in order {
            if let Some(host) = self.hosts.get_mut(&id)
                && !host.is_frozen(self.now_us)
            {
                host.step(&self.network);
            }
        }
        if let Some(clients) = &self.clients {
            host::give_time(clients, STEP_US / 1000);
        }
        if self.now_us.is_multiple_of(MAP_PERIOD_US) {
            self.spread_maps();
            self.settle();
        }
        self.judge()
    }

    fn deliver(&mut self) {
        for host in self.hosts.values_mut() {
            if !host.is_frozen(self.now_us) {
                for parcel in std::mem::take(&mut host.held) {
                    host.receive(parcel, &self.network);
                }
            }
        }
        for parcel in self.network.advance(self.now_us) {
            if parcel.to >= CLIENTS {
                if let Mail::Back(back) = parcel.mail {
                    back();
                }
                continue;
            }
            let Some(host) = self.hosts.get_mut(&parcel.to) else {
                continue;
            };
            if host.is_frozen(self.now_us) {
                host.held.push(parcel);
            } else {
                host.receive(parcel, &self.network);
            }
        }
    }

    /// Nodes that make no maps ask another for a newer one, as servers do.
    fn spread_maps(&mut self) {
        let alive = self.alive();
        for id in &alive {
            let Some(life) = self.hosts.get(id).and_then(|host| host.life.as_ref()) else {
                continue;
            };
            if life.node.leads_coordinator() || alive.len() < 2 {
                continue;
            }
            let other = alive[self.random.below(alive.len() as u64) as usize];
            let (asker, known) = (life.node.clone(), life.node.map().version);
            let (network, id) = (self.network.clone(), *id);
            let ask = move |life: &host::Life| {
                let map = life.node.map();
                if map.version > known {
                    let newer = ShardMap::clone(&map);
                    let back = move || {
                        asker.adopt_map(newer);
                    };
                    network.send_loose(other, id, Mail::Back(Box::new(back)));
                }
            };
            self.network.send_loose(id, other, Mail::Ask(Box::new(ask)));
        }
    }

    /// Nodes tell the coordinator what their groups have become, as servers do.
    fn settle(&mut self) {
        let Some(leader) = self.leads(COORDINATOR_GROUP) else {
            return;
        };
        for (id, host) in &self.hosts {
            let unsettled = host.life.as_ref().map(|life| life.node.unsettled());
            for command in unsettled.into_iter().flatten() {
                let ask = move |life: &host::Life| {
                    let node = life.node.clone();
                    // It is told again until it is noted.
                    life.spawn(async move {
                        let _ = node.coordinate(command, Duration::from_secs(3)).await;
                    });
                };
                self.network
                    .send_loose(*id, leader, Mail::Ask(Box::new(ask)));
            }
        }
    }

    fn judge(&mut self) -> Result<(), Violation> {
        for (name, numbers) in self.board.take_notes() {
            self.trace.note(name, &numbers);
            self.oracles.hear(name, &numbers)?;
        }
        Ok(())
    }

    /// Steps until a condition holds; an error if it does not in time.
    pub fn step_until(
        &mut self,
        what: &'static str,
        most: Duration,
        mut holds: impl FnMut(&mut Cluster) -> bool,
    ) -> Result<(), Violation> {
        let end_us = self.now_us + most.as_micros() as u64;
        while !holds(self) {
            if self.now_us >= end_us {
                let message = format!("not within {most:?}: {what}; {}", self.state());
                return Err(Violation::new("liveness", message));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Whether every group has three voters or more, as its leader knows, and the newest map has no other wish.
    pub fn all_have_three_voters(&self) -> bool {
        let lives = self.hosts.values().filter_map(|host| host.life.as_ref());
        let newest = lives
            .map(|life| life.node.map())
            .max_by_key(|map| map.version);
        let is_whole = |map: &Arc<ShardMap>| {
            let mut shards = map.shards();
            shards.all(|shard| shard.is_settled() && shard.replicas.len() >= 3)
        };
        if !newest.is_some_and(|map| is_whole(&map)) {
            return false;
        }
        let has = |group: u64| {
            let host = self.leads(group).and_then(|id| self.hosts.get(&id));
            let life = host.and_then(|host| host.life.as_ref());
            let group = life.and_then(|life| life.node.group(group));
            let members = group.map(|group| group.status().members);
            members.is_some_and(|members| members.voters.len() >= 3 && !members.joint)
        };
        std::iter::once(1).chain(self.shards()).all(has)
    }

    /// How all nodes are, in words.
    fn state(&self) -> String {
        let of = |host: &Host| match &host.life {
            None => format!("node {}: down {:?}", host.id, host.refused),
            Some(life) => {
                let status = life.node.status();
                let replicas = status.replicas.iter().map(|r| {
                    let g = &r.group;
                    let voters: Vec<_> = g.members.voters.keys().collect();
                    format!(
                        "{}/{} {:?} term {} applied {:?} of {:?} voters {voters:?} {:?}",
                        r.shard, g.replica, g.role, g.term, g.applied, g.last_index, g.health
                    )
                });
                let replicas: Vec<String> = replicas.collect();
                format!("node {}: {replicas:?} {:?}", host.id, status.broken)
            }
        };
        let each: Vec<String> = self.hosts.values().map(of).collect();
        each.join("; ")
    }

    /// Runs something on a node, as a task of it, and hands out what it answers.
    pub fn ask<T, F>(&self, id: NodeId, ask: impl FnOnce(quorate_node::Node) -> F) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let answer: Answer<T> = Arc::default();
        if let Some(life) = self.hosts.get(&id).and_then(|host| host.life.as_ref()) {
            let (place, asked) = (Arc::clone(&answer), ask(life.node.clone()));
            life.spawn(async move {
                let found = asked.await;
                *place.lock() = Some(found);
            });
        }
        answer
    }

    /// Has the coordinator's leader do something, again until it does.
    pub fn coordinate(&mut self, command: ClusterCommand) -> Result<u64, Violation> {
        let end_us = self.now_us + 20_000_000;
        while self.now_us < end_us {
            for id in self.alive() {
                let sent = command.clone();
                let asked = self.ask(id, |node| async move {
                    node.coordinate(sent, Duration::from_secs(2)).await
                });
                let answered = self.step_until("an answer", Duration::from_secs(3), |_| {
                    asked.lock().is_some()
                });
                answered?;
                if let Some(Ok(found)) = asked.lock().take() {
                    return Ok(found);
                }
            }
            (0..50).try_for_each(|_| self.step())?;
        }
        Err(Violation::new("liveness", "the coordinator did not answer"))
    }

    /// Lets a machine join and starts its node.
    pub fn join(&mut self, id: NodeId) -> Result<(), Violation> {
        let failed = |why: String| Violation::new("setup", why);
        let host = self.hosts.get(&id);
        let host = host.ok_or_else(|| failed(format!("there is no machine {id}")))?;
        let command = ClusterCommand::Join {
            address: Host::address(id),
            data_id: host.data_id().map_err(failed)?,
        };
        let given = self.coordinate(command)?;
        if given != id {
            return Err(failed(format!("machine {id} became node {given}")));
        }
        if let Some(host) = self.hosts.get(&id) {
            host.become_node(self.cluster, false).map_err(failed)?;
        }
        match self.start(id) {
            true => Ok(()),
            false => Err(failed(format!("node {id} does not open"))),
        }
    }

    /// Founds the cluster, lets all but the last `late` machines join, makes two namespaces.
    pub fn set_up(&mut self, late: u64) -> Result<(), Violation> {
        let failed = |why: String| Violation::new("setup", why);
        if let Some(first) = self.hosts.get(&1) {
            first.become_node(self.cluster, true).map_err(failed)?;
        }
        if !self.start(1) {
            return Err(failed("the founder does not open".into()));
        }
        let count = self.hosts.len() as u64 - late;
        for id in 2..=count {
            self.join(id)?;
        }
        for host in self.hosts.values_mut().filter(|host| host.life.is_none()) {
            self.network.set_down(host.id, true);
        }
        self.create_namespace("wide", true, 2)?;
        self.create_namespace("compact", false, 1)?;
        self.step_until("all shards lead", Duration::from_secs(20), |cluster| {
            let map = match cluster.hosts.get(&1).and_then(|host| host.life.as_ref()) {
                Some(life) => life.node.map(),
                None => return false,
            };
            map.namespaces().count() >= 2
                && map.shards().all(|shard| cluster.leads(shard.id).is_some())
        })
    }

    /// Makes a namespace of three replicas.
    pub fn create_namespace(
        &mut self,
        name: &str,
        wide: bool,
        shards: u32,
    ) -> Result<(), Violation> {
        let spec = Self::spec(name, wide, shards);
        self.coordinate(ClusterCommand::CreateNamespace(spec))
            .map(|_| ())
    }

    fn spec(name: &str, wide: bool, shards: u32) -> NamespaceSpec {
        let prefix = RoutingPrefix::default();
        let encoding = Encoding::Hashed { prefix };
        let kind = match wide {
            true => NamespaceKind::Wide { encoding },
            false => NamespaceKind::Compact,
        };
        NamespaceSpec {
            name: name.into(),
            kind,
            shards,
            replicas: 3,
            splits: Vec::new(),
        }
    }

    /// The shards of clients' namespaces, as the first node that runs knows them.
    pub fn shards(&self) -> Vec<u64> {
        let life = self.hosts.values().find_map(|host| host.life.as_ref());
        let map = life.map(|life| life.node.map());
        let shards = map.iter().flat_map(|map| map.shards());
        shards.map(|s| s.id).filter(|id| *id != 1).collect()
    }

    /// Asks for one more namespace, whether that comes about or not.
    pub fn make_namespace_some_time(&mut self) -> bool {
        if self.made >= 2 {
            return false;
        }
        self.made += 1;
        let spec = Self::spec(&format!("more-{}", self.made), true, 1);
        for id in self.alive() {
            let command = ClusterCommand::CreateNamespace(spec.clone());
            drop(self.ask(id, |node| async move {
                node.coordinate(command, Duration::from_secs(2))
                    .await
                    .is_ok()
            }));
        }
        true
    }

    /// Lets a machine join if the coordinator answers at once.
    ///
    /// # Errors
    /// What must not be meanwhile, or a node that does not open.
    pub fn join_once(&mut self, id: NodeId) -> Result<bool, Violation> {
        let failed = |why: String| Violation::new("setup", why);
        let Some(host) = self.hosts.get(&id) else {
            return Ok(false);
        };
        let command = ClusterCommand::Join {
            address: Host::address(id),
            data_id: host.data_id().map_err(failed)?,
        };
        let asked: Vec<_> = self
            .alive()
            .into_iter()
            .map(|node| {
                let sent = command.clone();
                self.ask(node, |node| async move {
                    node.coordinate(sent, Duration::from_millis(500)).await
                })
            })
            .collect();
        (0..600).try_for_each(|_| self.step())?;
        let given = asked.iter().find_map(|answer| match &*answer.lock() {
            Some(Ok(given)) => Some(*given),
            _ => None,
        });
        if given != Some(id) {
            return Ok(false);
        }
        if let Some(host) = self.hosts.get(&id) {
            host.become_node(self.cluster, false).map_err(failed)?;
        }
        match self.start(id) {
            true => Ok(true),
            false => Err(failed(format!("node {id}, which joined, does not open"))),
        }
    }

    /// The node that leads a group, as far as it knows itself.
    pub fn leads(&self, group: u64) -> Option<NodeId> {
        let leads = |host: &&Host| {
            let life = host.life.as_ref();
            life.and_then(|life| life.node.group(group))
                .is_some_and(|group| group.is_leader())
        };
        self.hosts.values().find(leads).map(|host| host.id)
    }
}

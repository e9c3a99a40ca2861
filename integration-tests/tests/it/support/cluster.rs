//! [`Cluster`]: nodes that belong together, founded and joined as in life.

use std::time::Duration;

use futures_util::future::join_all;
use quorate_client::{Client, ClientOptions, NamespaceKv};
use quorate_sharding::{
    COORDINATOR_GROUP, Encoding, GroupId, NamespaceKind, NamespaceSpec, ReplicaHash, Role,
    RoutingPrefix,
};
use tempfile::TempDir;

use super::{Node, SOON, Share, eventually, free_ports, quorate};

/// What the nodes of a test's cluster run with: small, so that flushes and compactions happen.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many nodes.
    pub nodes: usize,
    /// `storage.free_bytes_min`.
    pub free_bytes_min: u64,
    /// What else stands under `[raft]`.
    pub raft: &'static str,
}

impl Settings {
    /// A cluster of so many nodes.
    pub fn nodes(nodes: usize) -> Settings {
        Settings {
            nodes,
            free_bytes_min: 1 << 20,
            raft: "",
        }
    }

    fn text(&self) -> String {
        format!(
            "[storage]\nmemtable_bytes = 2097152\ncache_bytes = 16777216\nfree_bytes_min = {}\n\
             [raft]\nlog_segment_bytes = 16777216\nlog_bytes_max = 67108864\n{}",
            self.free_bytes_min, self.raft
        )
    }
}

/// A cluster of real processes. All end with it.
pub struct Cluster {
    /// The nodes; those that are down too.
    pub nodes: Vec<Node>,
    /// Where all its files are; after the nodes, which write into it.
    pub dir: TempDir,
    share: Option<Share>,
}

impl Cluster {
    /// Three nodes, ready.
    pub async fn three() -> Cluster {
        Cluster::start(&Settings::nodes(3)).await
    }

    /// A cluster of one node, ready: for what needs no others.
    pub async fn one() -> Cluster {
        Cluster::start(&Settings::nodes(1)).await
    }

    /// A cluster, ready: all nodes joined, the coordinator on as many as it should be.
    pub async fn start(settings: &Settings) -> Cluster {
        let share = Share::of(settings.nodes).await;
        let mut cluster = Cluster::start_within(&share, settings).await;
        cluster.share = Some(share);
        cluster
    }

    /// The same for a test with several clusters, which took a share for all of them at once: to
    /// take one and wait for another could wait for ever.
    pub async fn start_within(_share: &Share, settings: &Settings) -> Cluster {
        let dir = TempDir::new().expect("a temporary directory");
        let count = u32::try_from(settings.nodes).expect("few");
        let first = free_ports(count);
        let names = (1_u16..).take(settings.nodes);
        let nodes = names.map(|n| Node::new(dir.path(), &format!("node-{n}"), first + n - 1));
        let nodes = nodes.collect();
        Cluster::of(dir, nodes, settings).await
    }

    /// Nodes that do not run yet become a cluster, which is ready then. `dir` holds their files.
    pub async fn of(dir: TempDir, nodes: Vec<Node>, settings: &Settings) -> Cluster {
        let mut cluster = Cluster {
            nodes,
            dir,
            share: None,
        };
        cluster.configure(settings);
        cluster.start_all();
        cluster.nodes[0].answers().await;
        let founder = cluster.nodes[0].address.clone();
        quorate(&["init", "--endpoint", &founder]).await.good();
        cluster.healthy().await;
        cluster.joined(settings.nodes).await;
        cluster
    }

    /// Writes the configuration of all nodes anew; they take it at their next start.
    pub fn configure(&self, settings: &Settings) {
        for (n, node) in self.nodes.iter().enumerate() {
            // The first founds the cluster, the others join it.
            let seeds = match n {
                0 => Vec::new(),
                _ => vec![self.nodes[0].address.clone()],
            };
            node.configure(&seeds, &settings.text());
        }
    }

    async fn joined(&self, nodes: usize) {
        let client = self.client().await;
        eventually("all nodes joined", SOON, || async {
            client.refresh().await;
            let map = client.map();
            // On its way from one replica to two or three it needs the newest one.
            let settled = map.shard(COORDINATOR_GROUP).filter(|s| s.is_settled());
            let coordinators = settled.map_or(0, |s| s.replicas.len());
            match (map.nodes.len(), coordinators) {
                (known, grown) if known == nodes && grown == nodes.min(3) => Ok(()),
                other => Err(format!("(nodes, coordinators) = {other:?}")),
            }
        })
        .await;
    }

    /// Starts all nodes that are down, and waits for none.
    pub fn start_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| !node.is_running()) {
            node.start();
        }
    }

    /// Kills all nodes.
    pub fn kill_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
    }

    /// Waits until all nodes are healthy.
    pub async fn healthy(&mut self) {
        join_all(self.nodes.iter_mut().map(Node::healthy)).await;
    }

    /// All addresses.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// All addresses, as the option `--endpoints` takes them.
    pub fn endpoints_option(&self) -> String {
        self.endpoints().join(",")
    }

    /// A client of its own.
    pub async fn client(&self) -> Client {
        let options = ClientOptions {
            timeout: Duration::from_secs(10),
            ..ClientOptions::default()
        };
        self.client_with(options).await
    }

    /// A client with other settings.
    pub async fn client_with(&self, options: ClientOptions) -> Client {
        let client = Client::connect(&self.endpoints(), options).await;
        client.expect("some node answers")
    }

    /// Makes a namespace, and waits until all its shards have a leader.
    pub async fn namespace(&mut self, client: &Client, spec: &NamespaceSpec) -> NamespaceKv {
        client.create_namespace(spec).await.expect("made");
        self.healthy().await;
        client.namespace(&spec.name).await.expect("just made")
    }

    /// The place in `nodes` of the node that leads a shard of the map with this client; of some
    /// data shard, when `shard` is none.
    pub async fn leader(&self, client: &Client, shard: Option<GroupId>) -> usize {
        eventually("some node leads", SOON, || async {
            let states = client.status().await;
            let leads = states.iter().find(|(_, state)| {
                state.as_ref().is_ok_and(|state| {
                    state.groups.iter().any(|group| {
                        group.role == Role::Leader
                            && group.group != COORDINATOR_GROUP
                            && shard.is_none_or(|shard| shard == group.group)
                    })
                })
            });
            let address = leads.map(|(node, _)| node.address.clone());
            let address = address.ok_or("no node says that it leads")?;
            let place = self.nodes.iter().position(|node| node.address == address);
            place.ok_or_else(|| format!("{address} is not ours"))
        })
        .await
    }

    /// The shards of the data, not the coordinator's.
    pub async fn shards(&self, client: &Client) -> Vec<GroupId> {
        client.refresh().await;
        let map = client.map();
        let all = map.shards().map(|shard| shard.id);
        all.filter(|id| *id != COORDINATOR_GROUP).collect()
    }

    /// Asserts that the replicas of each shard hold the same; gives the number of keys in all. A
    /// replica that is still being opened or catching up is waited for, one that differs is not.
    pub async fn assert_replicas_agree(&self, client: &Client) -> u64 {
        let mut keys = 0;
        for shard in self.shards(client).await {
            let what = format!("all replicas of shard {shard} give their hash");
            let hashes = eventually(&what, SOON, || all_hashes(client, shard)).await;
            assert_eq!(hashes.len(), self.nodes.len().min(3), "shard {shard}");
            for other in &hashes[1..] {
                let same = (other.index, other.hash, other.keys)
                    == (hashes[0].index, hashes[0].hash, hashes[0].keys);
                assert!(same, "the replicas of shard {shard} differ: {hashes:#?}");
            }
            keys += hashes[0].keys;
        }
        keys
    }
}

async fn all_hashes(client: &Client, shard: GroupId) -> Result<Vec<ReplicaHash>, String> {
    let hashes = client.replica_hashes(shard).await;
    let hashes = hashes.map_err(|error| error.to_string())?;
    let each = hashes
        .into_iter()
        .map(|hash| hash.map_err(|e| e.to_string()));
    each.collect()
}

/// A wide namespace of hashed keys with replicas on so many nodes.
pub fn hashed(name: &str, shards: u32, replicas: u32) -> NamespaceSpec {
    let encoding = Encoding::Hashed {
        prefix: RoutingPrefix::WholeKey,
    };
    NamespaceSpec {
        name: name.into(),
        kind: NamespaceKind::Wide { encoding },
        shards,
        replicas,
        splits: Vec::new(),
    }
}

/// A wide namespace of ordered keys, split at these.
pub fn ordered(name: &str, splits: &[&'static str], replicas: u32) -> NamespaceSpec {
    let encoding = Encoding::Ordered;
    NamespaceSpec {
        kind: NamespaceKind::Wide { encoding },
        splits: splits.iter().map(|split| (*split).into()).collect(),
        ..hashed(
            name,
            u32::try_from(splits.len() + 1).expect("few"),
            replicas,
        )
    }
}

/// A compact namespace.
pub fn compact(name: &str, replicas: u32) -> NamespaceSpec {
    NamespaceSpec {
        kind: NamespaceKind::Compact,
        ..hashed(name, 1, replicas)
    }
}

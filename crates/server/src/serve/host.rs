//! [`Host`]: the server's process, before and after it is a node of a cluster.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::{Mutex, RwLock};
use quorate_kv::{Error, ErrorKind};
use quorate_node::{DataDir, Node};

use super::metrics::Metrics;
use super::peers::PeerTransport;
use super::settings::Settings;

/// What all services of the process share. It waits until `init` or a join makes it a node.
pub struct Host {
    pub settings: Settings,
    pub metrics: Metrics,
    /// The directory, while it waits.
    waiting: Mutex<Option<DataDir>>,
    running: RwLock<Option<Node>>,
    data_id: u64,
}

/// How long a founded cluster may take to have its map.
const FOUNDING: Duration = Duration::from_secs(20);

impl Host {
    /// Opens the node, if the directory is one's.
    pub fn open(settings: Settings, dir: DataDir) -> Result<Arc<Host>> {
        let host = Arc::new(Host {
            settings,
            metrics: Metrics::default(),
            data_id: dir.data_id(),
            waiting: Mutex::default(),
            running: RwLock::default(),
        });
        if dir.identity().is_some() {
            host.start(dir)?;
        } else {
            *host.waiting.lock() = Some(dir);
        }
        Ok(host)
    }

    /// The node, or why there is none yet.
    pub fn node(&self) -> Result<Node, Error> {
        self.running.read().clone().ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "this server belongs to no cluster yet: run `quorate init` once against one server, \
                 the others join it by their seeds",
            )
        })
    }

    pub fn data_id(&self) -> u64 {
        self.data_id
    }

    fn start(&self, dir: DataDir) -> Result<Node> {
        let identity = dir.identity().context("a node without identity")?;
        let transport = Arc::new(PeerTransport::new(identity));
        let node = Node::open(self.settings.node.clone(), dir, transport.clone());
        let node = node.map_err(|error| self.explained(error, identity.node))?;
        transport.follow(node.map_changes());
        *self.running.write() = Some(node.clone());
        tracing::info!(
            node = identity.node,
            cluster = format!("{:032x}", identity.cluster),
            "the node runs"
        );
        Ok(node)
    }

    /// The same error, with what to do about damage that the node can't contain.
    fn explained(&self, error: quorate_node::Error, node: u64) -> anyhow::Error {
        use quorate_node::Error;
        use quorate_storage::ErrorKind;
        let damaged = match &error {
            Error::Corruption(_) => true,
            Error::Storage(error) => error.kind() == ErrorKind::Corruption,
            _ => false,
        };
        let engine = self.settings.data_dir.join("engine");
        match damaged {
            true => anyhow::anyhow!(
                "{error}; let the others take its place: `quorate node remove {node}` there, then start it with an \
                 empty data directory; what only it has can be read after `quorate storage repair {}`",
                engine.display()
            ),
            false => error.into(),
        }
    }

    /// Makes this server the first node of a new cluster.
    pub async fn init(&self) -> Result<Node, Error> {
        let random = |dir: &DataDir| u128::from(dir.data_id()) << 64 | u128::from(fresh_u64());
        let node = self.become_node(|dir| (random(dir), 1, true))?;
        let mut changes = node.map_changes();
        let founded = async {
            while changes.borrow_and_update().cluster == 0 {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        match tokio::time::timeout(FOUNDING, founded).await {
            Ok(()) => Ok(node),
            Err(_) => {
                let message =
                    "the cluster is founded on disk, but its coordinator does not run yet";
                Err(Error::new(ErrorKind::DeadlineExceeded, message))
            }
        }
    }

    /// Makes this server a node that a cluster took in.
    pub fn joined(&self, cluster: u128, node: u64) -> Result<Node, Error> {
        self.become_node(|_| (cluster, node, false))
    }

    fn become_node(
        &self,
        identity: impl FnOnce(&DataDir) -> (u128, u64, bool),
    ) -> Result<Node, Error> {
        let mut waiting = self.waiting.lock();
        let Some(mut dir) = waiting.take() else {
            let message = "this server is a node of a cluster already";
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        };
        let (cluster, node, founder) = identity(&dir);
        let internal = |error: String| Error::new(ErrorKind::Internal, error);
        if let Err(error) = dir.become_node(cluster, node, founder) {
            *waiting = Some(dir);
            return Err(internal(error.to_string()));
        }
        // From here on the directory is the node's; a failure to open it needs a restart.
        self.start(dir)
            .map_err(|error| internal(format!("{error:#}")))
    }

    /// Stops the node, if there is one.
    pub async fn stop(&self) -> Result<()> {
        let node = self.running.write().take();
        if let Some(node) = node {
            node.shutdown().await?;
        }
        Ok(())
    }
}

fn fresh_u64() -> u64 {
    quorate_env::Random::from_os().next_u64()
}

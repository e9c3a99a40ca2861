//! [`Store`]: a node of its own, inside this process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::{Client, ClientOptions, NamespaceKv};
use quorate_env::Env;
use quorate_kv::{
    Batch, BatchResult, BoxFuture, Compare, CompareResult, Delete, Domain, Entry, Error, ErrorKind,
    Get, Kv, Put, Result, Scan, ScanPage, Written,
};
use quorate_node::{Config, DataDir, Node};
use quorate_sharding::{NamespaceKind, NamespaceSpec};
use tokio::runtime::Runtime;

use crate::transport::{Local, NoPeers};

/// How an embedded store is run.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Memory of writes that are not on disk in tables yet, in bytes.
    pub memtable_bytes: usize,
    /// Memory of the block cache, in bytes.
    pub cache_bytes: u64,
    /// Threads that carry requests.
    pub threads: usize,
    /// How long opening may take until all shards are there.
    pub open_timeout: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            memtable_bytes: 16 << 20,
            cache_bytes: 64 << 20,
            threads: 2,
            open_timeout: Duration::from_secs(30),
        }
    }
}

/// An embedded store: durable, versioned, the same data format as a cluster's node. Every write is
/// synced before it is answered. One process at a time has it open.
pub struct Store {
    /// Taken out when the store closes.
    runtime: Option<Runtime>,
    node: Node,
    client: Client,
}

/// The only address there is.
const HERE: &str = "local";

impl Store {
    /// Opens the store in a directory, making it if there is none.
    ///
    /// # Errors
    /// `Unavailable` if another process has it open, `Corruption` naming a damaged file,
    /// `DeadlineExceeded` if it does not come up in time.
    pub fn open(dir: impl AsRef<Path>, options: StoreOptions) -> Result<Store> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .thread_name("quorate")
            .enable_all()
            .build()
            .map_err(|e| Error::new(ErrorKind::Internal, format!("no async runtime: {e}")))?;
        let (node, client) = {
            let _inside = runtime.enter();
            let node = open_node(dir.as_ref(), &options)?;
            let opened = runtime.block_on(connect(&node, options.open_timeout));
            (node, opened?)
        };
        Ok(Store {
            runtime: Some(runtime),
            node,
            client,
        })
    }

    /// A namespace by its name, made if there is none: compact, so its versions are dense and its
    /// keys in order.
    pub fn namespace(&self, name: &str) -> Result<StoreNamespace> {
        let spec = NamespaceSpec {
            name: name.to_owned(),
            kind: NamespaceKind::Compact,
            shards: 1,
            replicas: 1,
            splits: Vec::new(),
        };
        match self.create_namespace(&spec) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let handle = self.runtime().handle().clone();
        let kv = handle.block_on(self.client.namespace(name))?;
        Ok(StoreNamespace {
            kv: Arc::new(kv),
            handle,
        })
    }

    /// Creates a namespace as the spec says; an embedded store has one replica of each shard.
    pub fn create_namespace(&self, spec: &NamespaceSpec) -> Result<()> {
        self.runtime().block_on(self.client.create_namespace(spec))
    }

    fn runtime(&self) -> &Runtime {
        match &self.runtime {
            Some(runtime) => runtime,
            // It is taken only by `close` and `drop`, after which nobody has `self`.
            None => unreachable!("the store is closed"),
        }
    }

    /// Stops the store; what was answered is on disk.
    pub fn close(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        let Some(runtime) = self.runtime.take() else {
            return Ok(());
        };
        let stopped = runtime.block_on(self.node.shutdown());
        runtime.shutdown_background();
        stopped.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Whoever wants to hear of an error calls `close`; the log has all that was answered.
        let _ = self.stop();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

fn open_node(dir: &Path, options: &StoreOptions) -> Result<Node> {
    let mut dir = DataDir::open(dir, Env::real(1)).map_err(open_error)?;
    if dir.identity().is_none() {
        let random = quorate_env::Random::from_os();
        let cluster = u128::from(random.next_u64()) << 64 | u128::from(dir.data_id());
        dir.become_node(cluster, 1, true).map_err(open_error)?;
    }
    let mut config = Config::new(HERE);
    config.coordinator_replicas = 1;
    config.engine.memtable_bytes = options.memtable_bytes;
    config.engine.cache_bytes = options.cache_bytes;
    Node::open(config, dir, Arc::new(NoPeers)).map_err(open_error)
}

fn open_error(error: quorate_node::Error) -> Error {
    let kind = match &error {
        quorate_node::Error::AlreadyOpen(_) => ErrorKind::Unavailable,
        quorate_node::Error::Corruption(_) => ErrorKind::Corruption,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, error.to_string())
}

async fn connect(node: &Node, timeout: Duration) -> Result<Client> {
    let mut changes = node.map_changes();
    let founded = changes.wait_for(|map| map.cluster != 0);
    match tokio::time::timeout(timeout, founded).await {
        Ok(Ok(_)) => {}
        _ => {
            let message = format!("the store did not come up within {timeout:?}");
            return Err(Error::new(ErrorKind::DeadlineExceeded, message));
        }
    }
    let transport = Arc::new(Local::new(node.clone()));
    Client::with_transport(transport, &[HERE.to_owned()], ClientOptions::default()).await
}

/// One namespace of an embedded store. Its futures may be awaited on any executor.
#[derive(Clone)]
pub struct StoreNamespace {
    kv: Arc<NamespaceKv>,
    handle: tokio::runtime::Handle,
}

impl StoreNamespace {
    /// Runs an operation on the store's own threads.
    fn run<T, F>(
        &self,
        operation: impl FnOnce(Arc<NamespaceKv>) -> F,
    ) -> BoxFuture<'static, Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let task = self.handle.spawn(operation(Arc::clone(&self.kv)));
        Box::pin(async move {
            task.await.unwrap_or_else(|_| {
                let error = Error::new(ErrorKind::Unavailable, "the store is closed");
                Err(error.with_outcome(quorate_kv::Outcome::Unknown))
            })
        })
    }
}

impl Kv for StoreNamespace {
    fn domain(&self) -> Domain {
        self.kv.domain()
    }

    fn get(&self, get: Get) -> BoxFuture<'_, Result<Option<Entry>>> {
        self.run(|kv| async move { kv.get(get).await })
    }

    fn put(&self, put: Put) -> BoxFuture<'_, Result<Written>> {
        self.run(|kv| async move { kv.put(put).await })
    }

    fn delete(&self, delete: Delete) -> BoxFuture<'_, Result<Written>> {
        self.run(|kv| async move { kv.delete(delete).await })
    }

    fn batch(&self, batch: Batch) -> BoxFuture<'_, Result<BatchResult>> {
        self.run(|kv| async move { kv.batch(batch).await })
    }

    fn compare(&self, compare: Compare) -> BoxFuture<'_, Result<CompareResult>> {
        self.run(|kv| async move { kv.compare(compare).await })
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<ScanPage>> {
        self.run(|kv| async move { kv.scan(scan).await })
    }
}

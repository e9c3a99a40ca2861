//! `quorate init`: founds a cluster, once.

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_proto::v1;
use tonic::Request;

use crate::serve;

const CALL: Duration = Duration::from_secs(30);

/// Flags of `quorate init`.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// The server that becomes the first node
    #[arg(
        long,
        env = "QUORATE_ENDPOINT",
        default_value = "127.0.0.1:7001",
        value_name = "HOST:PORT"
    )]
    pub endpoint: String,
}

/// Asks the server to found a cluster, and says which one it is.
pub fn run(flags: Flags) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (cluster, node) = runtime.block_on(init(&flags.endpoint))?;
    println!(
        "cluster {cluster:032x} is founded; {} is node {node}",
        flags.endpoint
    );
    println!(
        "others join it: quorate serve --listen HOST:PORT --seeds {}",
        flags.endpoint
    );
    Ok(())
}

/// Founds a cluster at a server that belongs to none; answers its id and the node's.
pub async fn init(endpoint: &str) -> Result<(u128, u64)> {
    let mut client = serve::connect(endpoint).await?;
    let mut request = Request::new(v1::InitRequest {});
    request.set_timeout(CALL);
    let answer = client
        .init(request)
        .await
        .map_err(|status| serve::call_error(&status));
    let answer = answer
        .with_context(|| format!("{endpoint} founded no cluster"))?
        .into_inner();
    let cluster = quorate_proto::cluster_from_wire(&answer.cluster)?.unwrap_or_default();
    Ok((cluster, answer.node))
}

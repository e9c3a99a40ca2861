//! `quorate serve`: one server process, from its settings to its clean end.

mod cluster_service;
mod health;
mod host;
mod kv_service;
mod liveness;
mod membership;
mod metrics;
mod peer_service;
mod peers;
mod settings;
mod status;

use std::future::Future;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::response::IntoResponse;
use axum::routing::get;
use quorate_env::{Env, ThreadJobs};
use quorate_node::DataDir;
use quorate_proto::MESSAGE_BYTES_MAX;
use quorate_proto::v1::cluster_server::ClusterServer;
use quorate_proto::v1::kv_server::KvServer;
use quorate_proto::v1::peer_server::PeerServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::server::TcpIncoming;

pub use cluster_service::{call_error, connect};
pub use settings::{Flags, Settings};

use host::Host;

/// When the node has stopped, calls under way are answered so, and peers' streams end, within this time.
const GRACE: Duration = Duration::from_secs(1);
/// Files that a node may have open: tables, segments, connections.
const FILES: u64 = 65_536;

/// Runs a server until it is told to stop.
pub fn run(flags: Flags) -> Result<()> {
    let stop_at_eof = flags.stop_at_eof;
    let settings = Settings::resolve(flags)?;
    start_logging(&settings)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads)
        .thread_name("serve")
        .enable_all()
        .build()
        .context("the async runtime did not start")?;
    let ended = runtime.block_on(serve(settings, stop_at_eof));
    // A read of standard input that never ends must not hold the process.
    runtime.shutdown_background();
    ended
}

fn start_logging(settings: &Settings) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log_filter)
        .with_context(|| format!("log.filter: `{}` is not a filter", settings.log_filter))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if settings.log_json {
        logs.json().try_init()
    } else {
        logs.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("logging did not start: {error}"))
}

/// Asks for enough open files; with fewer the server still runs, and says so.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES, |most| most.min(FILES));
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = Some(wanted);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
    }
}

async fn serve(settings: Settings, stop_at_eof: bool) -> Result<()> {
    let listen = settings.listen;
    // The port first: what can't be reached must not take part in elections.
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("can't listen on {listen}: stop what uses the port, or choose another by --listen")
    })?;
    let jobs = ThreadJobs::with_panic_hook(1, Box::new(abort));
    let dir = DataDir::open(&settings.data_dir, Env::real_with(jobs))?;
    membership::check_place(&settings, &dir).await?;
    let host = Host::open(settings, dir)?;
    let mut member = tokio::spawn(membership::run(Arc::clone(&host)));
    tracing::info!(%listen, data_dir = %host.settings.data_dir.display(), "listening");
    if host.node().is_err() && host.settings.seeds.is_empty() {
        tracing::info!("waiting: run `quorate init --endpoint {listen}` to found a cluster here");
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let server = tokio::spawn(run_services(Arc::clone(&host), listener, until(stopped)));
    let refused = tokio::select! {
        signal = wait_for_signal(stop_at_eof) => {
            signal?;
            Ok(())
        }
        ended = &mut member => ended.context("the membership ended badly")?,
    };
    tracing::info!("stopping");
    member.abort();
    // Leadership goes to others while peers can still be reached; then the calls end.
    let closed = host.stop().await;
    stop.send_replace(true);
    match tokio::time::timeout(GRACE, server).await {
        Ok(ended) => ended.context("the services ended badly")??,
        Err(_) => tracing::info!("connections were open after {GRACE:?}: cut off"),
    }
    tracing::info!("stopped");
    // The first reason is the one that helps.
    refused.and(closed)
}

/// A job panicked, and left something half done: going on could hang or harm. The disk is as after a
/// crash now, which a restart recovers from; until then others lead.
fn abort(why: &str) {
    tracing::error!(
        why,
        "a bug: the process ends; please report it, and start the server again"
    );
    std::process::abort();
}

async fn until(mut stopped: tokio::sync::watch::Receiver<bool>) {
    // If the sender is gone the process ends anyway.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn wait_for_signal(stop_at_eof: bool) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = end_of_input(), if stop_at_eof => {}
    }
    Ok(())
}

async fn end_of_input() {
    use tokio::io::AsyncReadExt;
    let mut buffer = [0; 256];
    let mut input = tokio::io::stdin();
    while input.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

async fn run_services(
    host: Arc<Host>,
    listener: TcpListener,
    stopped: impl Future<Output = ()>,
) -> Result<()> {
    let limit = MESSAGE_BYTES_MAX;
    let kv = KvServer::new(kv_service::KvService(Arc::clone(&host)))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let cluster = ClusterServer::new(cluster_service::ClusterService(Arc::clone(&host)))
        .max_encoding_message_size(limit);
    let peer = PeerServer::new(peer_service::PeerService::new(Arc::clone(&host)))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let mut routes = tonic::service::Routes::new(kv);
    routes = routes.add_service(cluster).add_service(peer);
    let (of_health, of_metrics) = (Arc::clone(&host), host);
    let router = routes
        .into_axum_router()
        .route(
            "/health",
            get(move || async move { health::health(&of_health) }),
        )
        .route("/live", get(|| async { "alive\n" }))
        .route(
            "/metrics",
            get(move || async move { metrics_page(&of_metrics) }),
        );
    tonic::transport::Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_routes(tonic::service::Routes::from(router))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stopped,
        )
        .await
        .context("the listener failed")
}

fn metrics_page(host: &Host) -> impl IntoResponse + use<> {
    let node = host.node().ok();
    let text = host.metrics.render(node.as_ref());
    (
        [(
            axum::http::header::CONTENT_TYPE,
            "text/plain; version=0.0.4",
        )],
        text,
    )
}

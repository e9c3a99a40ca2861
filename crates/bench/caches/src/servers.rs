//! The Redis servers of a run: a master and its replica, a way between that can be turned, and a failover that loses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// A master and its replica.
#[derive(Debug, Clone)]
pub struct Servers {
    pub master: String,
    pub replica: String,
}

/// How long the old master still serves once its replica has taken over: what is written then is lost.
const OVERLAP: Duration = Duration::from_millis(150);

impl Servers {
    /// Those that `cargo xtask services` names.
    pub fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).with_context(|| {
                format!(
                    "{name} is not set: run `cargo xtask bench cache`, which starts the servers"
                )
            })
        };
        Ok(Servers {
            master: variable("QUORATE_REDIS")?,
            replica: variable("QUORATE_REDIS_REPLICA")?,
        })
    }

    /// The replica takes over as it is; the way leads there a little later.
    pub async fn fail_over(&self, way: &Way) -> Result<()> {
        ask(&self.replica, &["REPLICAOF", "NO", "ONE"]).await?;
        sleep(OVERLAP).await;
        way.turn_to(&self.replica);
        Ok(())
    }

    /// Empties the master, and makes the replica one again that has caught up.
    pub async fn restore(&self) -> Result<()> {
        ask(&self.master, &["FLUSHALL"]).await?;
        let (host, port) = address(&self.master)
            .split_once(':')
            .context("a port in the URL")?;
        ask(&self.replica, &["REPLICAOF", host, port]).await?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let info = ask(&self.replica, &["INFO", "replication"]).await?;
            if info.contains("master_link_status:up") {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the replica of Redis does not find its master again:\n{info}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn ask(url: &str, words: &[&str]) -> Result<String> {
    let mut connection = connect(url).await?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let answer = command.query_async(&mut connection).await;
    answer.with_context(|| format!("Redis: {words:?}"))
}

/// A plain connection.
pub async fn connect(url: &str) -> Result<MultiplexedConnection> {
    let client = redis::Client::open(url)?;
    Ok(client.get_multiplexed_async_connection().await?)
}

fn address(url: &str) -> &str {
    url.trim_start_matches("redis://").trim_end_matches('/')
}

/// A way to a server that can be turned to another one: then all connections end.
pub struct Way {
    port: u16,
    target: watch::Sender<String>,
}

impl Way {
    pub async fn to(url: &str) -> Result<Arc<Way>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (target, seen) = watch::channel(address(url).to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, seen.clone()));
            }
        });
        Ok(Arc::new(Way { port, target }))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn turn_to(&self, url: &str) {
        self.target.send_replace(address(url).to_owned());
    }
}

/// Both directions, until one ends or the way is turned.
async fn carry(client: TcpStream, mut target: watch::Receiver<String>) {
    let address = target.borrow_and_update().clone();
    let Ok(server) = TcpStream::connect(&address).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        _ = copy(&mut from_server, &mut to_client) => {}
        _ = target.changed() => {}
    }
    // Either side learns that it is over; that it may be gone already does not matter.
    let _ = to_client.shutdown().await;
    let _ = to_server.shutdown().await;
}

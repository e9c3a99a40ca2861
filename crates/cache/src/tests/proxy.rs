//! [`Proxy`]: between a client and a server, to hold what they say, cut them off, or turn to another server.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Open,
    /// They wait.
    Held,
}

#[derive(Debug, Clone)]
struct State {
    flow: Flow,
    target: Arc<str>,
    /// Raised to end all connections.
    era: u64,
}

/// Ends with its runtime.
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
}

fn address(url: &str) -> Arc<str> {
    url.trim_start_matches("redis://")
        .trim_end_matches('/')
        .into()
}

impl Proxy {
    pub async fn new(url: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("an address").port();
        let (state, seen) = watch::channel(State {
            flow: Flow::Open,
            target: address(url),
            era: 0,
        });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let target = seen.borrow().target.clone();
                let Ok(server) = TcpStream::connect(&*target).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(carry(from_client, to_server, seen.clone()));
                tokio::spawn(carry(from_server, to_client, seen.clone()));
            }
        });
        Proxy { port, state }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, flow: Flow) {
        self.state.send_modify(|state| state.flow = flow);
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.era += 1);
    }

    /// Ends all connections; new ones go to another server.
    pub async fn turn_to(&self, url: &str) {
        self.state.send_modify(|state| {
            state.target = address(url);
            state.era += 1;
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let era = state.borrow().era;
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            ended = state.wait_for(|state| state.era != era) => {
                drop(ended);
                return;
            }
            read = from.read(&mut bytes) => read,
        };
        let Some(length) = read.ok().filter(|length| *length > 0) else {
            return;
        };
        let goes_on = |state: &State| state.era != era || state.flow == Flow::Open;
        let is_of_now = match state.wait_for(goes_on).await {
            Ok(state) => state.era == era,
            Err(_) => false,
        };
        if !is_of_now || to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

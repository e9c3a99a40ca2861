//! A TCP proxy that can be turned elsewhere, cut, and told to break at a commit.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens when a client sends `COMMIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtCommit {
    /// It passes.
    Pass,
    /// It reaches the server; the client is cut off before the answer.
    CutAfter,
    /// It does not reach the server, and both are cut off.
    CutBefore,
    /// It is swallowed, and nobody hears more.
    Swallow,
    /// Whatever a client sends is swallowed, from now on.
    Freeze,
}

struct State {
    to: u16,
    at_commit: AtCommit,
}

pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Raised to cut all.
    cut: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State {
            to: port,
            at_commit: AtCommit::Pass,
        }));
        let cut = watch::Sender::new(0);
        let shared = Arc::clone(&state);
        let cuts = cut.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = cut.changed() => {}
                        () = serve(client, state) => {}
                    }
                });
            }
        });
        Proxy {
            address,
            state,
            cut,
            task,
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on it leads to another port; port 9 leads nowhere. What is open is cut.
    pub fn turn(&self, port: u16) {
        self.state.lock().to = port;
        self.cut.send_modify(|n| *n += 1);
    }

    /// From now on new connections lead to another port; what is open stays.
    pub fn lead(&self, port: u16) {
        self.state.lock().to = port;
    }

    pub fn at_commit(&self, what: AtCommit) {
        self.state.lock().at_commit = what;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut.send_modify(|n| *n += 1);
    }
}

async fn serve(mut client: TcpStream, state: Arc<Mutex<State>>) {
    let to = state.lock().to;
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else {
        return;
    };
    let mut up = vec![0; 1 << 16];
    let mut down = vec![0; 1 << 16];
    loop {
        tokio::select! {
            count = client.read(&mut up) => {
                let count = count.unwrap_or(0);
                let commits = up[..count].windows(7).any(|w| w == b"COMMIT\0");
                let what = state.lock().at_commit;
                if count == 0 || commits && what == AtCommit::CutBefore {
                    return;
                }
                if commits && what == AtCommit::Swallow || what == AtCommit::Freeze {
                    std::future::pending::<()>().await;
                }
                if server.write_all(&up[..count]).await.is_err() {
                    return;
                }
                if commits && what == AtCommit::CutAfter {
                    // The answer shows that the server has done it; the client does not get it.
                    let _ = server.read(&mut down).await;
                    return;
                }
            }
            count = server.read(&mut down) => {
                let count = count.unwrap_or(0);
                if count == 0 || client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

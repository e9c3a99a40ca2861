//! Finding out at once that the process of a peer is dead.
//!
//! A process that dies has its connections closed by its kernel, so its streams end in the same moment. That alone
//! may be the network's doing. But then its address is asked for a connection: if that is refused, nobody listens
//! there, and whoever led from there leads no more. A machine that dies as a whole, a frozen process and a cut
//! cable are silent: they are found by Raft's timers.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_node::Node;
use quorate_replication::NodeId;
use tokio::net::TcpStream;

/// A process that is about to end may still accept for a moment: it is asked again after these waits.
const PROBES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(50),
];
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// Looks after peers whose streams have ended.
#[derive(Default)]
pub struct Lookouts {
    /// The peers that are being asked: all streams of a peer end together, and one is enough to ask.
    asked: Mutex<BTreeSet<NodeId>>,
}

impl Lookouts {
    /// A peer's stream has ended: if its process has too, others lead at once what it led.
    pub async fn stream_ended(&self, node: &Node, peer: NodeId) {
        let address = node.map().nodes.get(&peer).map(|n| n.address.clone());
        let Some(address) = address.filter(|_| self.asked.lock().insert(peer)) else {
            return;
        };
        let is_dead = is_dead(&address).await;
        self.asked.lock().remove(&peer);
        if is_dead {
            tracing::info!(node = peer, "its process is dead");
            node.peer_gone(peer);
        }
    }
}

/// Whether nobody listens at an address any more.
async fn is_dead(address: &str) -> bool {
    for wait in PROBES {
        tokio::time::sleep(wait).await;
        let asked = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await;
        let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if asked.is_ok_and(|answer| answer.is_err_and(|error| is_refused(&error))) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn peer_is_dead_when_nobody_listens_and_alive_while_somebody_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address").to_string();
        assert!(!is_dead(&address).await);
        drop(listener);
        assert!(is_dead(&address).await);
        assert!(!is_dead("no such address").await);
    }
}

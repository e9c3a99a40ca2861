//! What can be set about a client.

use std::time::Duration;

/// Settings of a client; plain data.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The most time an operation takes that does not say otherwise.
    pub timeout: Duration,
    /// How long one node is waited for when a read could go to another one.
    pub attempt_timeout: Duration,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// Connections to each node.
    pub connections: usize,
    /// Whether operations that are in flight together share frames. Without it each is a call of
    /// its own, which is slower: for comparison.
    pub batching: bool,
    /// Whether linearizable reads go to any replica and not only to leaders. A follower asks its leader how far it must
    /// be, which many reads share: a little slower, and the leader has less to do.
    pub read_any_replica: bool,
    /// Of a hundred operations so many may be repeated after a node had too much to do or did not answer in time.
    pub retry_percent: u32,
    /// So many such repetitions are saved up at most, for when many are needed at once.
    pub retry_burst: u32,
    /// Operations in flight to one node; what is more is refused here. Less while the node refuses.
    pub in_flight_max: usize,
    /// The memory of the operations in flight to one node, in bytes; what is more is refused here.
    pub in_flight_bytes_max: usize,
    /// What this client's writes are named by; `None`: a random number.
    pub client_id: Option<u64>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            connections: 1,
            batching: true,
            read_any_replica: false,
            retry_percent: 10,
            retry_burst: 1000,
            in_flight_max: 64 << 10,
            in_flight_bytes_max: 256 << 20,
            client_id: None,
        }
    }
}

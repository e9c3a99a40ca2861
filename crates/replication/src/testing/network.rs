//! A network in memory. Each (sender, receiver, class) is a stream: in order, possibly slow, possibly
//! cut. A message that is lost is silence: the sender learns of it by its own deadline.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use quorate_env::Random;
use tokio::sync::{mpsc, oneshot};

use crate::groups::Groups;
use crate::transport::{Class, Reply, Transport, TransportError};
use crate::types::{GroupId, NodeId};

/// The network that the nodes of a test share. Clones are one network.
#[derive(Clone)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
    random: Random,
}

#[derive(Default)]
struct State {
    nodes: HashMap<NodeId, Groups>,
    streams: HashMap<(NodeId, NodeId, Class), mpsc::UnboundedSender<Letter>>,
    cuts: HashSet<(NodeId, NodeId)>,
    lose_one_in: u64,
    delay_max: Duration,
    delivered: HashMap<Class, u64>,
    delivered_of: HashMap<GroupId, u64>,
}

struct Letter {
    group: GroupId,
    payload: Bytes,
    reply: oneshot::Sender<Bytes>,
}

impl MemoryNetwork {
    /// A network without faults; `seed` decides which messages the faults to come will hit.
    pub fn new(seed: u64) -> MemoryNetwork {
        MemoryNetwork {
            state: Arc::default(),
            random: Random::from_seed(seed),
        }
    }

    /// What a node sends by.
    pub fn transport(&self, from: NodeId) -> Arc<dyn Transport> {
        Arc::new(Sender {
            network: self.clone(),
            from,
        })
    }

    /// Lets a node receive.
    pub fn join(&self, node: NodeId, groups: Groups) {
        self.state.lock().nodes.insert(node, groups);
    }

    /// Takes a node off the network, as when its process ends.
    pub fn leave(&self, node: NodeId) {
        self.state.lock().nodes.remove(&node);
    }

    /// Cuts one direction.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state.lock().cuts.insert((from, to));
    }

    /// Cuts a node off from these others, both ways.
    pub fn isolate(&self, node: NodeId, others: &[NodeId]) {
        for other in others {
            self.cut(node, *other);
            self.cut(*other, node);
        }
    }

    /// Mends all cuts.
    pub fn heal(&self) {
        self.state.lock().cuts.clear();
    }

    /// Loses one message or reply in so many; 0 loses none.
    pub fn lose_one_in(&self, n: u64) {
        self.state.lock().lose_one_in = n;
    }

    /// Delays each message by up to this, keeping the order of a stream.
    pub fn delay_up_to(&self, max: Duration) {
        self.state.lock().delay_max = max;
    }

    /// How many messages of a class were delivered.
    pub fn delivered(&self, class: Class) -> u64 {
        self.state
            .lock()
            .delivered
            .get(&class)
            .copied()
            .unwrap_or(0)
    }

    /// How many messages of a group were delivered; of group 0, from node to node.
    pub fn delivered_of(&self, group: GroupId) -> u64 {
        let state = self.state.lock();
        state.delivered_of.get(&group).copied().unwrap_or(0)
    }

    fn passes(&self, from: NodeId, to: NodeId) -> bool {
        let state = self.state.lock();
        let lost = state.lose_one_in > 0 && self.random.one_in(state.lose_one_in);
        !lost && !state.cuts.contains(&(from, to))
    }

    fn delay(&self) -> Duration {
        let max = self.state.lock().delay_max;
        match max.as_micros() as u64 {
            0 => Duration::ZERO,
            us => Duration::from_micros(self.random.below(us)),
        }
    }

    async fn carry(
        self,
        from: NodeId,
        to: NodeId,
        class: Class,
        mut letters: mpsc::UnboundedReceiver<Letter>,
    ) {
        while let Some(letter) = letters.recv().await {
            let delay = self.delay();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if !self.passes(from, to) {
                continue;
            }
            let groups = {
                let mut state = self.state.lock();
                *state.delivered.entry(class).or_default() += 1;
                *state.delivered_of.entry(letter.group).or_default() += 1;
                state.nodes.get(&to).cloned()
            };
            let Some(groups) = groups else { continue };
            let answer = groups.handle(from, class, letter.group, letter.payload);
            let network = self.clone();
            tokio::spawn(async move {
                let answer = answer.await;
                if network.passes(to, from) {
                    let _ = letter.reply.send(answer);
                }
            });
        }
    }
}

struct Sender {
    network: MemoryNetwork,
    from: NodeId,
}

impl Transport for Sender {
    fn send(&self, to: NodeId, class: Class, group: GroupId, payload: Bytes) -> Reply {
        let (reply, answer) = oneshot::channel();
        let mut state = self.network.state.lock();
        if !state.nodes.contains_key(&to) {
            let gone = TransportError::Unreachable(format!("node {to} is down"));
            return std::future::ready(Err(gone)).boxed();
        }
        let stream = state
            .streams
            .entry((self.from, to, class))
            .or_insert_with(|| {
                let (tx, rx) = mpsc::unbounded_channel();
                tokio::spawn(self.network.clone().carry(self.from, to, class, rx));
                tx
            });
        let _ = stream.send(Letter {
            group,
            payload,
            reply,
        });
        async move {
            match answer.await {
                Ok(bytes) => Ok(bytes),
                // Lost: nobody will say so.
                Err(_) => std::future::pending().await,
            }
        }
        .boxed()
    }
}

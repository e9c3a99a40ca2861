//! The network between nodes, and between clients and nodes.
//!
//! What one side sends another in one class goes over a *connection*: in order, each message as late as the
//! seed says. A message that is lost breaks its connection. Of what was under way on it some arrives all the
//! same, after what the next connection carries: that is how messages come twice (they are sent again) and in
//! another order; their replies go nowhere. Who waits for a reply learns at once that the connection is gone,
//! later, or by its own deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use quorate_env::Random;
use quorate_replication::{
    Class, GroupId, NodeId, Reply as PeerReply, Transport as Peers, TransportError,
};
use quorate_sharding::{Request, Response};
use tokio::sync::oneshot;

use crate::trace::{Trace, digest};

/// Nodes have ids from 1, clients from here on.
pub const CLIENTS: u64 = 1000;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Messages of Raft.
    Peer(Class),
    /// Requests of a client.
    Client,
}

/// A message on its way.
pub enum Mail {
    /// From a node to a node.
    Peer {
        /// What it is about.
        class: Class,
        /// The group.
        group: GroupId,
        /// What it says.
        payload: Bytes,
        /// Where the reply goes.
        reply: oneshot::Sender<Bytes>,
    },
    /// From a client to a node.
    Request {
        /// What is asked.
        request: Box<Request>,
        /// Where the response goes.
        reply: oneshot::Sender<Response>,
    },
    /// Asks a node for something that needs no order.
    Ask(Box<dyn FnOnce(&crate::host::Life) + Send>),
    /// Something that comes back.
    Back(Box<dyn FnOnce() + Send>),
}

/// A message with its way.
pub struct Parcel {
    /// Who sent it.
    pub from: u64,
    /// Who gets it.
    pub to: u64,
    lane: Option<Lane>,
    generation: u64,
    /// What is in it.
    pub mail: Mail,
}

impl Parcel {
    /// The same, whose reply goes nowhere, and what waited for it.
    fn without_reply(self) -> (Parcel, Mail) {
        let (mail, waits) = match self.mail {
            Mail::Peer {
                class,
                group,
                payload,
                reply,
            } => {
                let mail = Mail::Peer {
                    class,
                    group,
                    payload,
                    reply: oneshot::channel().0,
                };
                (mail, Mail::Back(Box::new(move || drop(reply))))
            }
            Mail::Request { request, reply } => {
                let mail = Mail::Request {
                    request,
                    reply: oneshot::channel().0,
                };
                (mail, Mail::Back(Box::new(move || drop(reply))))
            }
            other => (other, Mail::Back(Box::new(|| ()))),
        };
        (Parcel { mail, ..self }, waits)
    }
}

#[derive(Default)]
struct Link {
    generation: u64,
    last_us: u64,
    /// Broken, and nobody has noticed yet.
    broken: bool,
}

/// The network. Clones are one network.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
}

struct State {
    now_us: u64,
    random: Random,
    trace: Trace,
    sequence: u64,
    under_way: BTreeMap<(u64, u64), Parcel>,
    /// Lost messages whose senders do not know yet.
    limbo: BTreeMap<(u64, u64), Mail>,
    links: BTreeMap<(u64, u64, Lane), Link>,
    cut: BTreeSet<(u64, u64)>,
    clogged: BTreeMap<(u64, u64), u64>,
    down: BTreeSet<u64>,
    lose_one_in: u64,
    delay_us: u64,
    lost: u64,
    late: u64,
}

impl Network {
    /// A network without faults.
    pub fn new(random: Random, trace: Trace) -> Network {
        let state = State {
            now_us: 0,
            random,
            trace,
            sequence: 0,
            under_way: BTreeMap::new(),
            limbo: BTreeMap::new(),
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            clogged: BTreeMap::new(),
            down: BTreeSet::new(),
            lose_one_in: 0,
            delay_us: 1_500,
            lost: 0,
            late: 0,
        };
        Network {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// What a node sends by.
    pub fn transport(&self, from: NodeId) -> Arc<dyn Peers> {
        Arc::new(Sender {
            network: self.clone(),
            from,
        })
    }

    /// Time goes on: gives what arrives by now, in order.
    pub fn advance(&self, now_us: u64) -> Vec<Parcel> {
        let mut state = self.state.lock();
        state.now_us = now_us;
        let limit = (now_us + 1, 0);
        let later = state.under_way.split_off(&limit);
        let due = std::mem::replace(&mut state.under_way, later);
        let noticed_later = state.limbo.split_off(&limit);
        let noticed = std::mem::replace(&mut state.limbo, noticed_later);
        let cut = state.cut.clone();
        let mut arrived = Vec::new();
        let mut lost = Vec::new();
        for parcel in due.into_values() {
            match cut.contains(&(parcel.from, parcel.to)) {
                true => lost.push(parcel.mail),
                false => arrived.push(parcel),
            }
        }
        for mail in lost {
            state.forget_later(mail);
        }
        drop(state);
        // Outside of the lock: dropping a reply's place wakes who waits for it.
        drop(noticed);
        arrived
    }

    /// Sends over a connection, in order.
    pub fn send(&self, from: u64, to: u64, lane: Lane, mail: Mail) {
        let dropped = self.state.lock().send(from, to, lane, mail);
        drop(dropped);
    }

    /// Sends something for which order does not matter.
    pub fn send_loose(&self, from: u64, to: u64, mail: Mail) {
        let mut state = self.state.lock();
        if state.is_lost(from, to) {
            state.lost += 1;
            state.forget_later(mail);
            return;
        }
        let at_us = state.now_us + state.delay(from, to);
        state.put(at_us, from, to, None, 0, mail);
    }

    /// A process is there, or not.
    pub fn set_down(&self, node: u64, down: bool) {
        let mut state = self.state.lock();
        if !down {
            state.down.remove(&node);
            return;
        }
        state.down.insert(node);
        // What it was to receive is gone with it, and its connections.
        let of = |parcel: &Parcel| parcel.to == node;
        let gone: Vec<_> = state.under_way.extract_if(.., |_, p| of(p)).collect();
        let links = state.links.iter_mut();
        for ((from, to, _), link) in links {
            if *from == node || *to == node {
                link.generation += 1;
                link.broken = false;
            }
        }
        drop(state);
        drop(gone);
    }

    /// Whether no process is there.
    pub fn is_down(&self, node: u64) -> bool {
        self.state.lock().down.contains(&node)
    }

    /// Loses one message in so many; 0 loses none.
    pub fn lose_one_in(&self, n: u64) {
        self.state.lock().lose_one_in = n;
    }

    /// The usual delay is up to this.
    pub fn set_delay_us(&self, delay_us: u64) {
        self.state.lock().delay_us = delay_us;
    }

    /// Nothing goes this way any more.
    pub fn cut(&self, from: u64, to: u64) {
        self.state.lock().cut.insert((from, to));
    }

    /// It goes again.
    pub fn mend(&self, from: u64, to: u64) {
        let mut state = self.state.lock();
        state.cut.remove(&(from, to));
    }

    /// All goes this way so much later; 0 is no later.
    pub fn clog(&self, from: u64, to: u64, by_us: u64) {
        let mut state = self.state.lock();
        match by_us {
            0 => state.clogged.remove(&(from, to)),
            _ => state.clogged.insert((from, to), by_us),
        };
    }

    /// No faults any more.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        state.clogged.clear();
        state.lose_one_in = 0;
        state.delay_us = 1_500;
    }

    /// Messages lost, and messages that came late and out of order.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.lost, state.late)
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn is_lost(&self, from: u64, to: u64) -> bool {
        let unlucky = self.lose_one_in > 0 && self.random.one_in(self.lose_one_in);
        unlucky || self.cut.contains(&(from, to))
    }

    fn delay(&self, from: u64, to: u64) -> u64 {
        let usual = 100 + self.random.below(self.delay_us.max(1));
        // A few take much longer.
        let rare = match self.random.one_in(200) {
            true => self.random.below(30_000),
            false => 0,
        };
        let clogged = self.clogged.get(&(from, to)).copied().unwrap_or(0);
        usual + rare + clogged
    }

    fn put(
        &mut self,
        at_us: u64,
        from: u64,
        to: u64,
        lane: Option<Lane>,
        generation: u64,
        mail: Mail,
    ) {
        let sequence = self.next();
        let parcel = Parcel {
            from,
            to,
            lane,
            generation,
            mail,
        };
        self.under_way.insert((at_us, sequence), parcel);
    }

    /// Its sender learns some time that it was lost, if not by its own deadline.
    fn forget_later(&mut self, mail: Mail) {
        let at_us = self.now_us + 20_000 + self.random.below(1_500_000);
        let sequence = self.next();
        self.limbo.insert((at_us, sequence), mail);
    }

    /// Returns what was dropped: to be dropped outside of the lock.
    fn send(&mut self, from: u64, to: u64, lane: Lane, mail: Mail) -> Vec<Mail> {
        if let Mail::Peer {
            class,
            group,
            payload,
            ..
        } = &mail
        {
            let numbers = [from, to, *class as u64, *group, digest(payload)];
            self.trace.note("send", &numbers);
        }
        let lost = self.is_lost(from, to);
        let now_us = self.now_us;
        let arrives_us = now_us + self.delay(from, to);
        let link = self.links.entry((from, to, lane)).or_default();
        let was_broken = link.broken;
        if was_broken && self.random.one_in(3) {
            // The sender notices, and connects anew.
            link.broken = false;
            link.generation += 1;
        }
        let link = self.links.entry((from, to, lane)).or_default();
        let generation = link.generation;
        if lost || link.broken {
            let breaks = !link.broken;
            link.broken = true;
            self.lost += 1;
            self.forget_later(mail);
            return match breaks {
                true => self.break_connection(from, to, lane, generation),
                false => Vec::new(),
            };
        }
        let at_us = arrives_us.max(link.last_us);
        link.last_us = at_us;
        self.put(at_us, from, to, Some(lane), generation, mail);
        Vec::new()
    }

    /// Of what is under way on a connection some is lost, and some comes late.
    fn break_connection(&mut self, from: u64, to: u64, lane: Lane, generation: u64) -> Vec<Mail> {
        let is_on = |parcel: &Parcel| {
            (parcel.from, parcel.to, parcel.lane, parcel.generation)
                == (from, to, Some(lane), generation)
        };
        let taken: Vec<_> = self.under_way.extract_if(.., |_, p| is_on(p)).collect();
        let mut gone = Vec::new();
        // In their order, but behind what comes next.
        let later_us = self.random.below(400_000);
        if let Some(link) = self.links.get_mut(&(from, to, lane)) {
            link.last_us = 0;
        }
        let cut_at = self.random.below(taken.len() as u64 + 1);
        for (n, ((at_us, sequence), parcel)) in taken.into_iter().enumerate() {
            if (n as u64) < cut_at {
                self.late += 1;
                let (parcel, reply) = parcel.without_reply();
                gone.push(reply);
                let at = (at_us.max(self.now_us) + later_us, sequence);
                self.under_way.insert(at, parcel);
            } else {
                gone.push(parcel.mail);
            }
        }
        gone
    }
}

struct Sender {
    network: Network,
    from: NodeId,
}

impl Peers for Sender {
    fn send(&self, to: NodeId, class: Class, group: GroupId, payload: Bytes) -> PeerReply {
        if self.network.state.lock().down.contains(&to) {
            let gone = TransportError::Unreachable(format!("node {to} is down"));
            return std::future::ready(Err(gone)).boxed();
        }
        let (reply, answer) = oneshot::channel();
        let mail = Mail::Peer {
            class,
            group,
            payload,
            reply,
        };
        self.network.send(self.from, to, Lane::Peer(class), mail);
        let broken = || TransportError::Broken("the connection broke".into());
        async move { answer.await.map_err(|_| broken()) }.boxed()
    }
}

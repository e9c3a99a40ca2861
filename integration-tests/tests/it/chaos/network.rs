//! [`Network`]: a network namespace for each node, joined by a bridge, where each direction between two can be cut.
//!
//! A direction is cut by telling the sender a hardware address for the receiver that nobody has: what it sends leaves,
//! and arrives nowhere, as when a switch loses it. Nobody is told, and what goes the other way still arrives.

use super::system;

/// Where everybody listens.
pub const PORT: u16 = 7001;
const NOBODY: &str = "02:00:00:00:00:ff";

/// Who sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A node, by its place.
    Node(usize),
    /// The test itself, with all its clients.
    Clients,
}

impl End {
    fn address(self) -> String {
        match self {
            End::Node(n) => format!("10.77.0.{}", n + 1),
            End::Clients => "10.77.0.254".to_owned(),
        }
    }

    /// The words with which `ip` works on what this end knows of the others.
    fn neighbours(self) -> (Vec<String>, &'static str) {
        match self {
            End::Node(n) => (vec!["-n".to_owned(), name(n)], "eth0"),
            End::Clients => (Vec::new(), "bridge"),
        }
    }
}

fn name(n: usize) -> String {
    format!("quorate-{}", n + 1)
}

/// The network of a test that runs in a network namespace of its own.
pub struct Network {
    cuts: Vec<(End, End)>,
}

impl Network {
    /// Makes it for so many nodes. There can be one in a namespace; it goes with it.
    pub fn new(nodes: usize) -> Network {
        std::fs::create_dir_all("/run/netns").expect("run as root by `cargo xtask chaos`");
        system(&["mount", "-t", "tmpfs", "none", "/run/netns"]);
        ip("link add bridge type bridge");
        ip(&format!(
            "addr add {}/24 dev bridge",
            End::Clients.address()
        ));
        ip("link set bridge up");
        for n in 0..nodes {
            let (name, address) = (name(n), End::Node(n).address());
            ip(&format!("netns add {name}"));
            ip(&format!(
                "link add veth-{n} type veth peer name eth0 netns {name}"
            ));
            ip(&format!("link set veth-{n} master bridge up"));
            ip(&format!("-n {name} addr add {address}/24 dev eth0"));
            ip(&format!("-n {name} link set eth0 up"));
            ip(&format!("-n {name} link set lo up"));
        }
        Network { cuts: Vec::new() }
    }

    /// What starts a program at a node.
    pub fn launcher(n: usize) -> Vec<String> {
        ["ip", "netns", "exec", &name(n)]
            .map(str::to_owned)
            .to_vec()
    }

    /// Where a node is reached.
    pub fn endpoint(n: usize) -> String {
        format!("{}:{PORT}", End::Node(n).address())
    }

    /// From now on nothing that one sends reaches the other.
    pub fn cut(&mut self, from: End, to: End) {
        let (mut words, device) = from.neighbours();
        let rest = ["neigh", "replace", &to.address(), "lladdr", NOBODY];
        words.extend(rest.map(str::to_owned));
        words.extend(["dev", device, "nud", "permanent"].map(str::to_owned));
        ip(&words.join(" "));
        self.cuts.push((from, to));
    }

    /// Both directions.
    pub fn part(&mut self, one: End, other: End) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// All that was cut is joined again.
    pub fn heal(&mut self) {
        for (from, to) in self.cuts.drain(..) {
            let (mut words, device) = from.neighbours();
            words.extend(["neigh", "del", &to.address(), "dev", device].map(str::to_owned));
            ip(&words.join(" "));
        }
    }
}

fn ip(words: &str) {
    let all: Vec<&str> = ["ip"].into_iter().chain(words.split(' ')).collect();
    system(&all);
}

//! `/metrics`: what the process counts itself, and the node's state at the moment of asking, in
//! Prometheus' text format.

mod storage;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_kv::ErrorKind;
use quorate_node::{Latency, Node, NodeStatus, ReplyBatch, Shed};
use quorate_sharding::{Operation, Request};

/// What the services count.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: [AtomicU64; OPERATIONS.len()],
    failures: [AtomicU64; ErrorKind::ALL.len()],
}

const OPERATIONS: [&str; 6] = ["get", "put", "delete", "batch", "compare", "scan"];

fn place(operation: &Operation) -> usize {
    match operation {
        Operation::Get { .. } => 0,
        Operation::Put { .. } => 1,
        Operation::Delete { .. } => 2,
        Operation::Batch { .. } => 3,
        Operation::Compare { .. } => 4,
        Operation::Scan { .. } => 5,
    }
}

impl Metrics {
    /// Counts requests that came in.
    pub fn took(&self, requests: &[Request]) {
        for request in requests {
            self.requests[place(&request.operation)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts answers that went out.
    pub fn answered(&self, answers: &ReplyBatch) {
        for (_, answer) in answers {
            if let Err(failure) = answer {
                let place = failure.error.kind().code() as usize - 1;
                self.failures[place].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// All metrics as text.
    pub fn render(&self, node: Option<&Node>) -> String {
        let mut page = Page::default();
        page.family(
            "quorate_up",
            "gauge",
            "Whether this server is a node of a cluster.",
        );
        page.sample("quorate_up", "", u64::from(node.is_some()));
        page.family(
            "quorate_requests_total",
            "counter",
            "Requests taken, by operation.",
        );
        for (name, count) in OPERATIONS.iter().zip(&self.requests) {
            let labels = format!("operation=\"{name}\"");
            page.sample(
                "quorate_requests_total",
                &labels,
                count.load(Ordering::Relaxed),
            );
        }
        page.family(
            "quorate_failures_total",
            "counter",
            "Requests that failed, by error kind.",
        );
        for (kind, count) in ErrorKind::ALL.iter().zip(&self.failures) {
            let labels = format!("kind=\"{kind:?}\"");
            page.sample(
                "quorate_failures_total",
                &labels,
                count.load(Ordering::Relaxed),
            );
        }
        if let Some(node) = node {
            page.latency(node);
            page.overload(node);
            let status = node.status();
            page.node(&status);
            page.health(&status);
            page.storage(&status.engine);
            page.raft(&status);
        }
        page.text
    }
}

/// A text as the value of a label.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace('\n', "\\n")
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string can't fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }

    fn latency(&mut self, node: &Node) {
        let name = "quorate_request_seconds";
        self.family(name, "histogram", "From a request's arrival to its answer.");
        let latencies = node.latencies();
        let kinds: [(&str, &Latency); 2] =
            [("read", &latencies.reads), ("write", &latencies.writes)];
        for (kind, latency) in kinds {
            for (bound, count) in latency.cumulative() {
                let labels = format!("kind=\"{kind}\",le=\"{bound}\"");
                self.sample("quorate_request_seconds_bucket", &labels, count);
            }
            let labels = format!("kind=\"{kind}\"");
            let endless = format!("{labels},le=\"+Inf\"");
            self.sample("quorate_request_seconds_bucket", &endless, latency.count());
            self.sample(
                "quorate_request_seconds_sum",
                &labels,
                latency.sum_seconds(),
            );
            self.sample("quorate_request_seconds_count", &labels, latency.count());
        }
    }

    fn overload(&mut self, node: &Node) {
        let name = "quorate_shed_total";
        let help = "Requests turned away under load, or thrown away unserved, by reason.";
        self.family(name, "counter", help);
        for why in Shed::ALL {
            let labels = format!("reason=\"{}\"", why.name());
            self.sample(name, &labels, node.shed().get(why));
        }
        let help = "Memory of the writes that wait in the queues of shards.";
        let bytes = node.queued_bytes();
        self.single("quorate_queued_write_bytes", "gauge", help, bytes);
    }

    fn node(&mut self, status: &NodeStatus) {
        let labels = format!(
            "node=\"{}\",cluster=\"{:032x}\",version=\"{}\"",
            status.identity.node,
            status.identity.cluster,
            env!("CARGO_PKG_VERSION")
        );
        self.family("quorate_node_info", "gauge", "Who this node is.");
        self.sample("quorate_node_info", &labels, 1);
        let uptime = status.uptime.as_secs_f64();
        self.single(
            "quorate_uptime_seconds",
            "gauge",
            "Since the node was opened.",
            uptime,
        );
        let help = "The version of the shard map known here.";
        self.single("quorate_map_version", "gauge", help, status.map_version);
        let help = "Whether client writes are refused for want of disk space.";
        self.single(
            "quorate_disk_full",
            "gauge",
            help,
            u64::from(status.disk_full),
        );
        let help = "Space left on the data directory's disk.";
        self.single("quorate_disk_free_bytes", "gauge", help, status.free_bytes);
        let help = "The shared Raft log's files.";
        self.single("quorate_log_bytes", "gauge", help, status.log_bytes);
        let help = "What the Raft log's files may be together.";
        self.single("quorate_log_bytes_max", "gauge", help, status.log_bytes_max);
        let help = "Seconds in which the Raft log was at more than four fifths of that.";
        let name = "quorate_log_near_bound_seconds_total";
        self.single(name, "counter", help, status.log_near_bound);
        let help = "Shards of this node whose replica is damaged and is made anew.";
        let damaged = status.damaged.len();
        self.single("quorate_damaged_shards", "gauge", help, damaged);
        let help = "Damaged replicas of this node that were replaced.";
        let name = "quorate_repaired_replicas_total";
        self.single(name, "counter", help, status.repaired);
        let help = "Shards of this node that could not be opened.";
        self.single("quorate_broken_shards", "gauge", help, status.broken.len());
    }

    fn health(&mut self, status: &NodeStatus) {
        let faults = status.faults();
        let replicas = status.replicas.iter().map(|replica| replica.shard);
        let others = status.broken.iter().map(|(shard, _)| *shard);
        let all: BTreeSet<_> = replicas
            .chain(others)
            .chain(status.opening.clone())
            .collect();
        let help =
            "Whether the shard is served here: the replica runs and its group's leader works.";
        self.family("quorate_shard_healthy", "gauge", help);
        for shard in all {
            let healthy = faults.iter().all(|fault| fault.shard != shard);
            let labels = format!("shard=\"{shard}\"");
            self.sample("quorate_shard_healthy", &labels, u64::from(healthy));
        }
        let help = "1 for each shard that should be served here and is not, and why.";
        self.family("quorate_shard_fault", "gauge", help);
        for fault in &faults {
            let labels = format!(
                "shard=\"{}\",fault=\"{}\",reason=\"{}\"",
                fault.shard,
                fault.kind.name(),
                escaped(&fault.reason)
            );
            self.sample("quorate_shard_fault", &labels, 1);
        }
    }

    fn raft(&mut self, status: &NodeStatus) {
        let of = |replica: &quorate_node::ReplicaStatus| format!("shard=\"{}\"", replica.shard);
        self.family(
            "quorate_raft_leader",
            "gauge",
            "Whether this replica leads its group.",
        );
        for replica in &status.replicas {
            let leads = replica.group.role == quorate_replication::Role::Leader;
            self.sample("quorate_raft_leader", &of(replica), u64::from(leads));
        }
        self.family("quorate_raft_term", "gauge", "The group's term.");
        for replica in &status.replicas {
            self.sample("quorate_raft_term", &of(replica), replica.group.term);
        }
        self.family(
            "quorate_raft_index",
            "gauge",
            "Positions in the group's log, by what they mean.",
        );
        for replica in &status.replicas {
            let group = &replica.group;
            let positions = [
                ("last", group.last_index),
                ("committed", group.committed),
                ("applied", group.applied),
                ("flushed", group.flushed),
                ("purged", group.purged),
            ];
            for (position, index) in positions {
                let labels = format!("{},position=\"{position}\"", of(replica));
                self.sample("quorate_raft_index", &labels, index.unwrap_or_default());
            }
        }
    }
}

//! Random commands for a shard, each with what the contract says it does.
//!
//! The judge is `MemoryKv`, which counts versions densely. A wide namespace's versions are stamps, so
//! a [`Script`] keeps for each dense version the one that the shard must give.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quorate_env::Random;
use quorate_kv::memory::MemoryKv;
use quorate_kv::{
    Batch, Compare, Condition, Delete, Domain, Entry, Kv, Mutation, Op, OpResult, Put, Scan,
    Version,
};
use quorate_replication::{Command as Committed, CommandBody, EntryId};
use quorate_sharding::{
    Answer, Encoding, NamespaceKind, Operation, Replica, RoutingPrefix, Shard, ShardEpoch, WriteId,
};

use crate::apply::Position;
use crate::command::{WritesBuilder, hash_command};
use crate::outcome::Outcome;

pub(super) const ORDERED: NamespaceKind = NamespaceKind::Wide {
    encoding: Encoding::Ordered,
};
pub(super) const HASHED: NamespaceKind = NamespaceKind::Wide {
    encoding: Encoding::Hashed {
        prefix: RoutingPrefix::WholeKey,
    },
};
pub(super) const KINDS: [NamespaceKind; 3] = [ORDERED, HASHED, NamespaceKind::Compact];

/// The shard that scripts are for. An ordered one begins behind the keys that begin with `a`.
pub(super) fn shard(kind: NamespaceKind) -> Shard {
    let start: &'static [u8] = if kind == ORDERED { b"b" } else { b"" };
    Shard {
        id: 11,
        namespace: 3,
        start: Bytes::from_static(start),
        end: Bytes::new(),
        epoch: ShardEpoch {
            range: 4,
            members: 1,
        },
        replicas: vec![Replica { id: 21, node: 1 }],
        leaving: Vec::new(),
        settled: 1,
    }
}

/// A shard's data: its entries by encoded key.
pub(super) type Data = BTreeMap<Bytes, Entry>;

/// What is so after a command.
#[derive(Debug, Clone, Default)]
pub(super) struct Expected {
    /// Of a command of writes.
    pub outcomes: Option<Vec<Outcome>>,
    pub data: Data,
    pub position: Position,
    pub membership: Bytes,
}

/// Commands of a shard from its beginning, and the state after each.
pub(super) struct Script {
    pub kind: NamespaceKind,
    pub commands: Vec<Committed>,
    /// One more than there are commands: the first is the empty state.
    pub expected: Vec<Expected>,
}

/// Runs what never waits.
fn now<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("the model waits"),
    }
}

struct Writer {
    kind: NamespaceKind,
    shard: Shard,
    random: Random,
    value_bytes: u64,
    model: MemoryKv,
    /// What the shard gives for each dense version; the first stands for none.
    versions: Vec<Version>,
    /// The newest version of the group.
    last: Version,
    stamp: Version,
}

impl Script {
    /// `count` commands with values of up to `value_bytes`.
    pub(super) fn random(seed: u64, kind: NamespaceKind, count: u64, value_bytes: u64) -> Script {
        let domain = Domain {
            cluster: 1,
            namespace: 3,
            incarnation: 0,
        };
        let mut writer = Writer {
            kind,
            shard: shard(kind),
            random: Random::from_seed(seed),
            value_bytes,
            model: MemoryKv::new(domain),
            versions: vec![0],
            last: 0,
            stamp: 1_000,
        };
        let mut script = Script {
            kind,
            commands: Vec::new(),
            expected: vec![Expected::default()],
        };
        for index in 0..count {
            writer.command(&mut script, index);
        }
        script
    }
}

impl Writer {
    fn command(&mut self, script: &mut Script, index: u64) {
        let mut expected = script.expected.last().cloned().unwrap_or_default();
        expected.outcomes = None;
        let body = match self.random.below(12) {
            0 => CommandBody::Blank,
            1 => {
                expected.membership = Bytes::from(format!("members since {index}"));
                CommandBody::Membership(expected.membership.clone())
            }
            2 => CommandBody::Write(hash_command()),
            _ => {
                let (body, outcomes) = self.writes();
                expected.outcomes = Some(outcomes);
                CommandBody::Write(body)
            }
        };
        let id = EntryId {
            term: 1 + index / 7,
            leader: 21,
            index,
        };
        expected.data = self.data();
        expected.position = Position {
            entry: Some(id),
            version: self.last,
        };
        script.commands.push(Committed { id, body });
        script.expected.push(expected);
    }

    fn writes(&mut self) -> (Bytes, Vec<Outcome>) {
        // A new leader's clock may be behind.
        self.stamp = self.stamp + self.random.below(60) - 20;
        if self.kind != NamespaceKind::Compact {
            self.last = self.last.max(self.stamp - 1);
        }
        let mut builder = WritesBuilder::new(self.stamp, u32::MAX);
        let mut outcomes = Vec::new();
        for _ in 0..1 + self.random.below(4) {
            let operation = self.operation();
            let mut epoch = self.shard.epoch.range;
            let outcome = if self.random.one_in(10) {
                epoch += 1;
                Outcome::WrongEpoch
            } else if !self.in_range(&operation) {
                Outcome::OutOfRange
            } else {
                self.run(operation.clone())
            };
            builder.push(WriteId::default(), epoch, &self.real(operation));
            outcomes.push(outcome);
        }
        (builder.finish(), outcomes)
    }

    fn in_range(&self, operation: &Operation) -> bool {
        let holds = |key: &Bytes| self.shard.contains(&self.kind.encoding().encode(key));
        match operation {
            Operation::Put { key, .. } | Operation::Delete { key, .. } => holds(key),
            Operation::Batch { mutations } => mutations.iter().all(|m| holds(m.key())),
            Operation::Compare {
                conditions,
                then_ops,
                else_ops,
            } => {
                let mut ops = then_ops.iter().chain(else_ops);
                conditions.iter().all(|(key, _)| holds(key)) && ops.all(|op| holds(op.key()))
            }
            _ => false,
        }
    }

    fn key(&self) -> Bytes {
        if self.random.one_in(25) {
            return Bytes::from_static(b"a key below the range of the ordered shard");
        }
        Bytes::from(format!("key {:02}", self.random.below(24)))
    }

    fn value(&self) -> Bytes {
        let byte = self.random.below(256) as u8;
        vec![byte; self.random.below(self.value_bytes) as usize].into()
    }

    /// In dense versions.
    fn condition(&self, key: &Bytes) -> Condition {
        match self.random.below(6) {
            0 => Condition::Absent,
            1 => Condition::Present,
            2 => Condition::Version(self.random.below(self.versions.len() as u64)),
            3 => {
                let found = now(self.model.get(quorate_kv::Get::new(key.clone())));
                let version = found.expect("the model answers").map_or(0, |e| e.version);
                Condition::Version(version)
            }
            _ => Condition::None,
        }
    }

    fn mutation(&self) -> Mutation {
        if self.random.one_in(3) {
            Mutation::delete(self.key())
        } else {
            Mutation::put(self.key(), self.value())
        }
    }

    fn op(&self) -> Op {
        match self.random.below(3) {
            0 => Op::Get { key: self.key() },
            _ => Op::Mutate(self.mutation()),
        }
    }

    fn ops(&self) -> Vec<Op> {
        (0..self.random.below(4)).map(|_| self.op()).collect()
    }

    /// In dense versions.
    fn operation(&self) -> Operation {
        let key = self.key();
        let condition = self.condition(&key);
        match self.random.below(8) {
            0..=2 => Operation::Put {
                condition,
                key,
                value: self.value(),
            },
            3 => Operation::Delete { key, condition },
            4..=5 => Operation::Batch {
                mutations: (0..1 + self.random.below(5))
                    .map(|_| self.mutation())
                    .collect(),
            },
            _ => Operation::Compare {
                conditions: (0..self.random.below(3))
                    .map(|_| self.key())
                    .map(|key| (key.clone(), self.condition(&key)))
                    .collect(),
                then_ops: self.ops(),
                else_ops: self.ops(),
            },
        }
    }

    /// What the model says of a write, with the versions that the shard gives.
    fn run(&mut self, operation: Operation) -> Outcome {
        let model = &self.model;
        Outcome::Done(match operation {
            Operation::Put {
                key,
                value,
                condition,
            } => {
                let written = now(model.put(Put::new(key, value).when(condition)));
                self.written(written.expect("the model puts"))
            }
            Operation::Delete { key, condition } => {
                let written = now(model.delete(Delete::new(key).when(condition)));
                self.written(written.expect("the model deletes"))
            }
            Operation::Batch { mutations } => {
                let done = now(model.batch(Batch::new(mutations))).expect("the model writes");
                let version = self.give(done.version);
                Answer::Batch { version }
            }
            Operation::Compare {
                conditions,
                then_ops,
                else_ops,
            } => {
                let mut compare = Compare::new();
                compare.conditions = conditions;
                compare.then_ops = then_ops;
                compare.else_ops = else_ops;
                let done = now(model.compare(compare)).expect("the model compares");
                self.give(done.version);
                let results = done.results.into_iter().map(|result| match result {
                    OpResult::Entry(Some(entry)) => OpResult::Entry(Some(self.real_entry(entry))),
                    other => other,
                });
                Answer::Compare {
                    succeeded: done.succeeded,
                    results: results.collect(),
                    version: self.last,
                }
            }
            other => panic!("{other:?} is no write"),
        })
    }

    fn written(&mut self, written: quorate_kv::Written) -> Answer {
        if written.applied {
            self.give(written.version);
        }
        Answer::Written {
            applied: written.applied,
            version: self.versions[written.version as usize],
            group_version: self.last,
        }
    }

    /// The shard's version of a dense one, which is given now if it is new.
    fn give(&mut self, dense: Version) -> Version {
        if dense as usize == self.versions.len() {
            self.last += 1;
            self.versions.push(self.last);
        }
        self.versions[dense as usize]
    }

    fn real_entry(&self, entry: Entry) -> Entry {
        Entry {
            version: self.versions[entry.version as usize],
            create_version: self.versions[entry.create_version as usize],
            ..entry
        }
    }

    /// An operation with the shard's versions in its conditions.
    fn real(&self, operation: Operation) -> Operation {
        let real = |condition| match condition {
            Condition::Version(dense) => Condition::Version(self.versions[dense as usize]),
            other => other,
        };
        match operation {
            Operation::Put {
                key,
                value,
                condition,
            } => Operation::Put {
                key,
                value,
                condition: real(condition),
            },
            Operation::Delete { key, condition } => Operation::Delete {
                key,
                condition: real(condition),
            },
            Operation::Compare {
                conditions,
                then_ops,
                else_ops,
            } => Operation::Compare {
                conditions: conditions.into_iter().map(|(k, c)| (k, real(c))).collect(),
                then_ops,
                else_ops,
            },
            other => other,
        }
    }

    fn data(&self) -> Data {
        let mut scan = Scan::range("", "");
        scan.limit = usize::MAX;
        let page = now(self.model.scan(scan)).expect("the model scans");
        let entries = page.entries.into_iter().map(|e| self.real_entry(e));
        entries
            .map(|e| (self.kind.encoding().encode(&e.key), e))
            .collect()
    }
}

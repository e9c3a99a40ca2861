//! A group: members that share partitions, and what they have committed.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::Partition;

/// A group of consumers.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Each member's topics with their numbers of partitions.
    members: BTreeMap<u64, HashMap<String, i32>>,
    committed: HashMap<Partition, i64>,
    topics: HashSet<String>,
}

impl Group {
    pub(super) fn join(&mut self, member: u64, topics: HashMap<String, i32>) {
        self.topics.extend(topics.keys().cloned());
        self.members.insert(member, topics);
    }

    pub(super) fn leave(&mut self, member: u64) {
        self.members.remove(&member);
    }

    /// Whether it ever read the topic.
    pub(super) fn reads(&self, topic: &str) -> bool {
        self.topics.contains(topic)
    }

    pub(super) fn commit(&mut self, partition: Partition, next: i64) {
        self.topics.insert(partition.topic.clone());
        self.committed.insert(partition, next);
    }

    pub(super) fn position(&self, partition: &Partition) -> Option<i64> {
        self.committed.get(partition).copied()
    }

    /// The partitions of one member: of each topic every nth, for the nth of its readers.
    pub(super) fn assigned(&self, member: u64) -> Vec<Partition> {
        let Some(topics) = self.members.get(&member) else {
            return Vec::new();
        };
        let mut mine = Vec::new();
        for (topic, partitions) in topics {
            let readers = self.members.iter().filter(|(_, t)| t.contains_key(topic));
            let readers: Vec<u64> = readers.map(|(id, _)| *id).collect();
            let place = readers.iter().position(|id| *id == member).unwrap_or(0);
            let numbers = (0..*partitions).filter(|n| *n as usize % readers.len() == place);
            mine.extend(numbers.map(|number| Partition {
                topic: topic.clone(),
                number,
            }));
        }
        mine.sort();
        mine
    }
}

//! One level, and runs of its tables.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::TableFile;
use crate::options::KeyspaceId;

/// The tables of a level. Many levels of before and after an edit share those that it does not change.
#[derive(Default)]
pub(crate) struct Level {
    tables: Vec<Arc<TableFile>>,
    facts: OnceLock<Facts>,
}

/// What iterators ask about all tables of a level, gathered when the first one asks.
#[derive(Default)]
struct Facts {
    /// The places of those with range deletions, ascending.
    with_ranges: Vec<usize>,
    /// The highest version in any.
    max_versions: BTreeMap<KeyspaceId, u64>,
}

impl Clone for Level {
    fn clone(&self) -> Self {
        Level {
            tables: self.tables.clone(),
            facts: OnceLock::new(),
        }
    }
}

impl Level {
    pub(crate) fn tables(&self) -> &[Arc<TableFile>] {
        &self.tables
    }

    /// The tables, to be changed.
    pub(super) fn change(&mut self) -> &mut Vec<Arc<TableFile>> {
        self.facts = OnceLock::new();
        &mut self.tables
    }

    fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| {
            let mut facts = Facts::default();
            for (n, table) in self.tables.iter().enumerate() {
                let properties = &table.meta.properties;
                if properties.range_deletions > 0 {
                    facts.with_ranges.push(n);
                }
                for of in &properties.keyspaces {
                    let highest = facts.max_versions.entry(of.id).or_default();
                    *highest = of.max_version.max(*highest);
                }
            }
            facts
        })
    }
}

/// Tables that are disjoint and ascend.
pub(crate) enum Run {
    /// Some that were picked.
    Picked(Vec<Arc<TableFile>>),
    /// Those of a level from one place to before another: whatever their number, an iterator over them
    /// costs the same.
    Part(Arc<Level>, Range<usize>),
}

impl Run {
    pub(crate) fn tables(&self) -> &[Arc<TableFile>] {
        match self {
            Run::Picked(tables) => tables,
            Run::Part(level, range) => level.tables.get(range.clone()).unwrap_or_default(),
        }
    }

    /// Those with range deletions.
    pub(crate) fn with_ranges(&self) -> Vec<Arc<TableFile>> {
        match self {
            Run::Picked(tables) => {
                let has_some = |t: &&Arc<TableFile>| t.meta.properties.range_deletions > 0;
                tables.iter().filter(has_some).cloned().collect()
            }
            Run::Part(level, range) => {
                let all = &level.facts().with_ranges;
                let from = all.partition_point(|n| *n < range.start);
                let within = all[from..].iter().take_while(|n| **n < range.end);
                within.map(|n| Arc::clone(&level.tables[*n])).collect()
            }
        }
    }

    /// The highest version of a keyspace in any of them, or something higher; 0 if there is none.
    pub(crate) fn max_version(&self, keyspace: KeyspaceId) -> u64 {
        let highest = match self {
            Run::Picked(tables) => {
                let each = tables.iter();
                each.filter_map(|t| t.meta.properties.max_version(keyspace))
                    .max()
            }
            Run::Part(level, _) => level.facts().max_versions.get(&keyspace).copied(),
        };
        highest.unwrap_or(0)
    }
}

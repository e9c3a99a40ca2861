//! Versions only grow: those that a group gives along its log, and those that its clients get.

use std::collections::BTreeMap;

use crate::history::{History, Outcome, Violation};

/// The newest version of each group at each index.
#[derive(Debug, Default)]
pub struct Positions {
    groups: BTreeMap<u64, BTreeMap<u64, u64>>,
}

impl Positions {
    /// A replica stands at an index, with this newest version.
    pub fn position(&mut self, group: u64, index: u64, version: u64) -> Result<(), Violation> {
        let known = self.groups.entry(group).or_default();
        let before = known.range(..=index).next_back();
        let after = known.range(index..).next();
        let fits = before.is_none_or(|(at, v)| *v <= version && (*at < index || *v == version))
            && after.is_none_or(|(at, v)| version <= *v && (*at > index || *v == version));
        if !fits {
            let message = format!(
                "group {group} is at version {version} at {index}, with {before:?} before and {after:?} after"
            );
            return Err(Violation::new("versions_grow", message));
        }
        known.insert(index, version);
        Ok(())
    }
}

/// Writes of one shard that follow one another in time have versions that do.
pub fn check(history: &History, shard_of: &dyn Fn(u64) -> u64) -> Result<(), Violation> {
    let mut shards: BTreeMap<u64, Vec<(u64, u64, u64)>> = BTreeMap::new();
    for op in history.ops.iter().filter(|op| op.is_write()) {
        if let Outcome::Done {
            applied: true,
            version,
            ..
        } = op.outcome
        {
            let of = shards.entry(shard_of(op.key)).or_default();
            of.push((op.began_us, op.ended_us, version));
        }
    }
    for (shard, mut writes) in shards {
        // The greatest version of those that ended before each began.
        let mut ends: Vec<(u64, u64)> = writes.iter().map(|(_, end, v)| (*end, *v)).collect();
        ends.sort_unstable();
        writes.sort_unstable();
        let (mut ended, mut newest) = (ends.into_iter().peekable(), 0);
        for (began, _, version) in writes {
            while let Some((_, older)) = ended.next_if(|(end, _)| *end < began) {
                newest = newest.max(older);
            }
            if version <= newest {
                let message = format!(
                    "shard {shard}: a write got version {version} after {newest} was acknowledged"
                );
                return Err(Violation::new("versions_grow", message));
            }
        }
    }
    Ok(())
}

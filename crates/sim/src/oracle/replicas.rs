//! Replicas are equal at equal index: their hashes are.

use std::collections::BTreeMap;

use crate::history::Violation;

/// The hashes that were made.
#[derive(Debug, Default)]
pub struct States {
    hashes: BTreeMap<(u64, u64), (u64, u64)>,
    /// How many were compared with another's.
    pub compared: u64,
}

impl States {
    /// A replica has hashed its state at an index.
    pub fn hash(&mut self, group: u64, index: u64, hash: u64, keys: u64) -> Result<(), Violation> {
        let known = self.hashes.entry((group, index)).or_insert((hash, keys));
        if *known == (hash, keys) {
            self.compared += 1;
            return Ok(());
        }
        let message = format!(
            "group {group} at {index}: one replica has {} keys with hash {:x}, another {keys} with {hash:x}",
            known.1, known.0
        );
        Err(Violation::new("replicas_equal", message))
    }
}

//! What must hold, one oracle a file.
//!
//! Some listen while a run goes on, to what the product's probes tell: entries appended, applied, hashes of
//! states. The others judge the history of the clients when it is over.

pub mod acknowledged;
pub mod committed;
pub mod intervals;
pub mod leaders;
pub mod leases;
pub mod linearizable;
pub mod log_matching;
pub mod replicas;
pub mod tokens;
pub mod versions;

use crate::history::{History, Violation};

/// Of an entry: under whom it was written. Ordered as Raft orders leaders.
pub type Leadership = (u64, u64);

/// Those that listen while a run goes on.
#[derive(Debug, Default)]
pub struct Oracles {
    logs: log_matching::Logs,
    committed: committed::Committed,
    leaders: leaders::Leaders,
    states: replicas::States,
    versions: versions::Positions,
}

impl Oracles {
    /// Hears of a probe.
    ///
    /// # Errors
    /// What must not be.
    pub fn hear(&mut self, name: &str, numbers: &[u64]) -> Result<(), Violation> {
        match (name, numbers) {
            ("opened", [group, replica]) => {
                self.leaders.opened((*group, *replica));
                Ok(())
            }
            ("appended", [group, replica, index, term, leader, hash]) => {
                let (of, by) = ((*group, *replica), (*term, *leader));
                self.logs.append(of, *index, by, *hash)?;
                self.leaders
                    .appended(of, *index, by, &self.logs, &self.committed)
            }
            ("truncated", [group, replica, from]) => {
                self.logs.truncate((*group, *replica), *from);
                Ok(())
            }
            ("installed", [group, replica, index, term, leader]) => {
                let of = (*group, *replica);
                self.logs.install(of, *index, (*term, *leader));
                Ok(())
            }
            ("recovered", [group, replica, index, term, leader]) => {
                let of = (*group, *replica);
                self.logs.recover(of, *index, (*term, *leader));
                Ok(())
            }
            ("applied", [group, replica, index, term, leader, hash]) => {
                let newest = self.leaders.newest(*group);
                let entry = (*term, *leader, *hash);
                self.committed
                    .applied(*group, *replica, *index, entry, newest)
            }
            ("leased", [group, replica, term]) => {
                let newest = self.leaders.newest(*group);
                leases::read(*group, (*term, *replica), newest)
            }
            ("position", [group, index, version]) => {
                self.versions.position(*group, *index, *version)
            }
            ("hash", [group, index, hash, keys]) => self.states.hash(*group, *index, *hash, *keys),
            _ => Ok(()),
        }
    }

    /// How much was heard: entries appended, entries applied, states compared.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.logs.count, self.committed.count, self.states.compared)
    }
}

/// Judges the whole history; gives the number of operations judged.
///
/// # Errors
/// The first thing that must not be.
pub fn judge(history: &History, shard_of: &dyn Fn(u64) -> u64) -> Result<u64, Violation> {
    acknowledged::check(history)?;
    for key in history.keys() {
        let ops = history.of(key);
        // Two checkers that know nothing of each other: where they differ, one of them is wrong.
        let by_search = linearizable::check(key, &ops);
        let by_version = intervals::check(key, &ops);
        match (by_search, by_version) {
            (Ok(()), Ok(())) => {}
            (Err(search), Err(version)) => {
                let message = format!("{}; and {}", search.message, version.message);
                return Err(Violation::new(search.oracle, message));
            }
            (Err(search), Ok(())) => {
                let message = format!("{}, which the versions alone do not show", search.message);
                return Err(Violation::new(search.oracle, message));
            }
            (Ok(()), Err(version)) => {
                let message = format!("{}, though values alone allow it", version.message);
                return Err(Violation::new(version.oracle, message));
            }
        }
        tokens::check(key, &ops)?;
    }
    versions::check(history, shard_of)?;
    Ok(history.ops.len() as u64)
}

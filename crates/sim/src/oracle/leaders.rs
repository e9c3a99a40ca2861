//! One leader a term, and it has all that was committed before.
//!
//! openraft's terms are pairs of a number and the replica that stood for election: two may lead under one
//! number, the greater pair deposing the smaller. So what must not be is that a pair leads twice: that a
//! replica is elected again, after it was opened anew, in a term that it already led.
//!
//! A replica leads from the moment when it appends an entry of its own.

use std::collections::BTreeMap;

use super::Leadership;
use super::committed::Committed;
use super::log_matching::{Logs, Of};
use crate::history::Violation;

/// How many committed entries of a new leader's log are looked at.
const LOOKED_AT: usize = 400;

/// Who led when.
#[derive(Debug, Default)]
pub struct Leaders {
    lives: BTreeMap<Of, u64>,
    led: BTreeMap<(u64, Leadership), u64>,
    newest: BTreeMap<u64, Leadership>,
}

impl Leaders {
    /// A replica is opened.
    pub fn opened(&mut self, of: Of) {
        *self.lives.entry(of).or_default() += 1;
    }

    /// The greatest leadership that there was in a group.
    pub fn newest(&self, group: u64) -> Leadership {
        self.newest.get(&group).copied().unwrap_or_default()
    }

    /// A replica appends an entry.
    pub fn appended(
        &mut self,
        of: Of,
        index: u64,
        by: Leadership,
        logs: &Logs,
        committed: &Committed,
    ) -> Result<(), Violation> {
        let (group, replica) = of;
        if by.1 != replica || by.0 == 0 {
            return Ok(());
        }
        let life = self.lives.get(&of).copied().unwrap_or_default();
        match self.led.get(&(group, by)) {
            // It gets an entry back that it lost.
            Some(_) if self.newest(group) > by => return Ok(()),
            Some(led) if *led == life => return Ok(()),
            Some(_) => {
                let message = format!(
                    "group {group}: replica {replica} leads in term {} a second time",
                    by.0
                );
                return Err(Violation::new("one_leader", message));
            }
            None => {}
        }
        self.led.insert((group, by), life);
        let before = committed.before(group, by).take(LOOKED_AT);
        for (at, entry) in before.filter(|(at, _)| *at < index) {
            if let Some(mine) = logs.at(of, at)
                && mine != Some(entry)
            {
                let message = format!(
                    "group {group}: replica {replica} leads in term {} and has {mine:?} at {at}, \
                     where {entry:?} was committed",
                    by.0
                );
                return Err(Violation::new("one_leader", message));
            }
        }
        let newest_committed = committed.before(group, by).next();
        if let Some((at, _)) = newest_committed.filter(|(at, _)| *at >= index) {
            let message = format!(
                "group {group}: replica {replica} leads in term {} from {index}, though {at} was \
                 committed",
                by.0
            );
            return Err(Violation::new("one_leader", message));
        }
        let newest = self.newest.entry(group).or_default();
        *newest = (*newest).max(by);
        Ok(())
    }
}

//! Recovery: what is prepared is brought to its end, or shown.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use sqlx::{PgPool, Row};

use super::transaction::settle;
use super::{BranchName, TwoPhase, TwoPhaseOutcome, failed};
use crate::{Result, points};

/// A prepared transaction in a database.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The name of the database.
    pub database: String,
    /// Its name there.
    pub gid: String,
    /// What that says, if it is of this coordinator and its log.
    pub ours: Option<BranchName>,
    /// How long it has been prepared.
    pub age: Duration,
}

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TwoPhaseSwept {
    /// Branches that were committed.
    pub committed: u64,
    /// Branches that were rolled back.
    pub rolled_back: u64,
    /// Transactions of which nothing is left to do.
    pub ended: u64,
    /// Prepared transactions, of whomever, older than the alarm's age.
    pub alarms: u64,
    /// Databases that did not answer, or refused, with the error. The next sweep tries again.
    pub failures: Vec<(String, String)>,
}

impl TwoPhase {
    /// What is prepared in every database: ours and others'. For metrics: their number and the greatest age.
    ///
    /// # Errors
    /// Never of a database: those that do not answer are in the second list, with the error.
    pub async fn prepared(&self) -> (Vec<Prepared>, Vec<(String, String)>) {
        let mut all = Vec::new();
        let mut failures = Vec::new();
        for (database, pool) in &self.inner.databases {
            match self.prepared_in(database, pool).await {
                Ok(some) => all.extend(some),
                Err(error) => failures.push((database.clone(), error.to_string())),
            }
        }
        (all, failures)
    }

    async fn prepared_in(&self, database: &str, pool: &PgPool) -> Result<Vec<Prepared>> {
        let read = "SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8
             FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared, gid";
        let rows = sqlx::query(read).fetch_all(pool).await;
        let rows = rows.map_err(|error| failed(database, error))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let gid: String = row.try_get(0)?;
            let is_ours = |name: &BranchName| {
                name.coordinator == self.inner.name && name.log == self.inner.log.name
            };
            let age: f64 = row.try_get(1)?;
            found.push(Prepared {
                database: database.to_owned(),
                ours: BranchName::parse(&gid).filter(is_ours),
                gid,
                age: Duration::try_from_secs_f64(age).unwrap_or_default(),
            });
        }
        Ok(found)
    }

    /// Commits what is decided, rolls back what is undecided past the time-out, and warns of what is prepared for too
    /// long. Call it when a service starts, and every few seconds.
    ///
    /// # Errors
    /// Of the log, without which nothing can be decided.
    pub async fn sweep(&self) -> Result<TwoPhaseSwept> {
        let mut swept = TwoPhaseSwept::default();
        // Before the databases are looked at: what is decided later may be prepared later.
        let unfinished = self.inner.log.unfinished().await?;
        points::pass("2pc.sweep-listed");
        let (found, failures) = self.prepared().await;
        swept.failures = failures;
        for prepared in found
            .iter()
            .filter(|some| some.age >= self.inner.options.alarm_age)
        {
            let Prepared {
                database, gid, age, ..
            } = prepared;
            tracing::warn!(
                database,
                gid,
                ?age,
                "a transaction is prepared for too long"
            );
            swept.alarms += 1;
        }
        let left = self.settle_all(&found, &mut swept).await?;
        self.end_all(unfinished, &left, &mut swept).await?;
        self.inner.log.forget(self.inner.options.retention).await?;
        Ok(swept)
    }

    /// Answers the transactions of which something is left.
    async fn settle_all(
        &self,
        found: &[Prepared],
        swept: &mut TwoPhaseSwept,
    ) -> Result<HashSet<String>> {
        let ours = || {
            found
                .iter()
                .filter_map(|some| Some((some, some.ours.as_ref()?)))
        };
        let names: Vec<String> = ours().map(|(_, name)| name.transaction.clone()).collect();
        let mut outcomes = self.inner.log.outcomes(&names).await?;
        let mut left = HashSet::new();
        for (prepared, name) in ours() {
            let mut outcome = outcomes.get(&name.transaction).copied();
            if outcome.is_none() && prepared.age >= self.inner.options.timeout {
                // The abort is written first: a coordinator that wakes up learns it.
                let aborted = TwoPhaseOutcome::Aborted;
                let decided = self
                    .inner
                    .log
                    .decide(&name.transaction, aborted, &[])
                    .await?;
                points::pass("2pc.sweep-aborted");
                outcomes.insert(name.transaction.clone(), decided);
                outcome = Some(decided);
            }
            let Some(outcome) = outcome else {
                left.insert(name.transaction.clone());
                continue;
            };
            let pool = self.database(&prepared.database)?;
            let commits = outcome.is_commit();
            match settle(pool, &prepared.database, &prepared.gid, commits).await {
                Ok(()) if commits => swept.committed += 1,
                Ok(()) => swept.rolled_back += 1,
                Err(error) => {
                    left.insert(name.transaction.clone());
                    swept
                        .failures
                        .push((prepared.database.clone(), error.to_string()));
                }
            }
            points::pass("2pc.sweep-settled");
        }
        Ok(left)
    }

    /// Marks those as ended whose databases all answered and have nothing of them.
    async fn end_all(
        &self,
        unfinished: Vec<(String, Vec<String>)>,
        left: &HashSet<String>,
        swept: &mut TwoPhaseSwept,
    ) -> Result<()> {
        let failed: BTreeMap<&str, ()> = swept
            .failures
            .iter()
            .map(|(database, _)| (database.as_str(), ()))
            .collect();
        let mut unknown: Vec<(String, String)> = Vec::new();
        let mut ended = Vec::new();
        for (transaction, branches) in unfinished {
            for branch in &branches {
                if !self.inner.databases.contains_key(branch) {
                    let text = format!(
                        "transaction {transaction} is decided and has a branch there: name it"
                    );
                    unknown.push((branch.clone(), text));
                }
            }
            let is_known = |branch: &String| {
                self.inner.databases.contains_key(branch) && !failed.contains_key(branch.as_str())
            };
            if branches.iter().all(is_known) && !left.contains(&transaction) {
                ended.push(transaction);
            }
        }
        swept.failures.extend(unknown);
        points::pass("2pc.sweep-ending");
        swept.ended += self.inner.log.end(&ended).await?;
        Ok(())
    }
}

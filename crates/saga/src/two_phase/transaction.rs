//! A transaction over several databases.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Row, Transaction};
use uuid::Uuid;

use super::{BranchName, TwoPhase, TwoPhaseOutcome, failed};
use crate::{Error, ErrorKind, Result, points};

/// How far a commit has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Committed everywhere.
    Complete,
    /// It is committed; a database does not answer and has it prepared still. A sweep completes it.
    Pending(String),
}

/// A transaction over several databases. Dropping it rolls it back.
pub struct TwoPhaseTransaction {
    coordinator: TwoPhase,
    name: String,
    began: (Instant, SystemTime),
    branches: BTreeMap<String, Transaction<'static, Postgres>>,
}

impl TwoPhaseTransaction {
    pub(super) fn new(coordinator: TwoPhase) -> TwoPhaseTransaction {
        TwoPhaseTransaction {
            coordinator,
            name: Uuid::now_v7().simple().to_string(),
            began: (Instant::now(), SystemTime::now()),
            branches: BTreeMap::new(),
        }
    }

    /// Its name, under which its outcome is known.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch in a database; begins it.
    ///
    /// # Errors
    /// `NotFound` when the coordinator has no database of that name; `Unavailable`.
    pub async fn branch(&mut self, database: &str) -> Result<&mut PgConnection> {
        let pool = self.coordinator.database(database)?.clone();
        let branch = match self.branches.entry(database.to_owned()) {
            std::collections::btree_map::Entry::Occupied(branch) => branch.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let begun = pool
                    .begin()
                    .await
                    .map_err(|error| failed(database, error))?;
                place.insert(begun)
            }
        };
        Ok(branch)
    }

    /// Prepares every branch, decides, and commits every branch.
    ///
    /// # Errors
    /// When a branch can't be prepared, of that branch: all are rolled back. `Fenced` past the time-out. `Unavailable`
    /// with an unknown outcome when the log did not answer: [`TwoPhase::outcome`] tells it once a sweep has settled it.
    pub async fn commit(mut self) -> Result<Settled> {
        let databases: Vec<String> = self.branches.keys().cloned().collect();
        if let Err(error) = self.prepare_all().await {
            self.abort(&databases).await;
            return Err(error);
        }
        points::pass("2pc.prepared-all");
        if self.is_late() {
            self.abort(&databases).await;
            return Err(self.late());
        }
        let log = &self.coordinator.inner.log;
        let decided = log
            .decide(&self.name, TwoPhaseOutcome::Committing, &databases)
            .await?;
        points::pass("2pc.decided");
        if !decided.is_commit() {
            self.abort(&databases).await;
            return Err(self.late());
        }
        let mut pending = None;
        for database in &databases {
            let pool = self.coordinator.database(database)?;
            if let Err(error) =
                settle(pool, database, &self.branch_name(database).checked()?, true).await
            {
                pending = Some(error.to_string());
            }
            points::pass("2pc.committed-one");
        }
        if let Some(why) = pending {
            return Ok(Settled::Pending(why));
        }
        points::pass("2pc.committed-all");
        // What is not marked here, a sweep marks.
        let _ = log.end(std::slice::from_ref(&self.name)).await;
        points::pass("2pc.ended");
        Ok(Settled::Complete)
    }

    /// Rolls every branch back.
    ///
    /// # Errors
    /// `Unavailable`; the databases roll back all the same.
    pub async fn rollback(self) -> Result<()> {
        for (database, branch) in self.branches {
            branch
                .rollback()
                .await
                .map_err(|error| failed(&database, error))?;
        }
        Ok(())
    }

    async fn prepare_all(&mut self) -> Result<()> {
        while let Some((database, mut branch)) = self.branches.pop_first() {
            let name = self.branch_name(&database).checked()?;
            // Of a transaction that has failed, PREPARE makes a ROLLBACK, and says so by no error: it is looked up.
            let text = format!(
                "PREPARE TRANSACTION '{name}'; BEGIN; SELECT count(*) FROM pg_prepared_xacts
                 WHERE gid = '{name}' AND database = current_database()"
            );
            let row = sqlx::raw_sql(AssertSqlSafe(text))
                .fetch_one(&mut *branch)
                .await;
            let row = row.map_err(|error| failed(&database, error))?;
            points::pass("2pc.prepared-one");
            let count: i64 = row.try_get(0)?;
            branch
                .commit()
                .await
                .map_err(|error| failed(&database, error))?;
            if count != 1 {
                let text = format!(
                    "database `{database}`: a statement of this transaction had failed, so it can't be committed"
                );
                return Err(Error::new(ErrorKind::Conflict, text));
            }
        }
        Ok(())
    }

    /// Rolls back what is prepared, and what is not. What can't be reached is left to a sweep.
    async fn abort(&mut self, databases: &[String]) {
        self.branches.clear();
        for database in databases {
            let name = self.branch_name(database).checked();
            let (Ok(pool), Ok(name)) = (self.coordinator.database(database), name) else {
                continue;
            };
            if let Err(error) = settle(pool, database, &name, false).await {
                tracing::warn!(%error, name, "a prepared transaction is left to the sweep");
            }
            points::pass("2pc.aborted-one");
        }
    }

    fn branch_name(&self, database: &str) -> BranchName {
        BranchName {
            coordinator: self.coordinator.inner.name.clone(),
            log: self.coordinator.inner.log.name.clone(),
            transaction: self.name.clone(),
            branch: database.to_owned(),
        }
    }

    /// By both clocks: the one stands still while the machine sleeps, the other may be set.
    fn is_late(&self) -> bool {
        let timeout = self.coordinator.inner.options.timeout;
        let (steady, set) = self.began;
        steady.elapsed() > timeout || set.elapsed().is_ok_and(|passed| passed > timeout)
    }

    fn late(&self) -> Error {
        let text = format!(
            "transaction {} took longer than its time-out: it is rolled back",
            self.name
        );
        Error::new(ErrorKind::Fenced, text)
    }
}

/// Ends a prepared transaction. One that is not there has been ended.
pub(super) async fn settle(pool: &PgPool, database: &str, name: &str, commits: bool) -> Result<()> {
    let what = if commits { "COMMIT" } else { "ROLLBACK" };
    // The name has been checked: it has no quotes.
    let text = format!("{what} PREPARED '{name}'");
    match sqlx::raw_sql(AssertSqlSafe(text)).execute(pool).await {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(from)) if from.code().as_deref() == Some("42704") => Ok(()),
        Err(error) => Err(failed(database, error)),
    }
}

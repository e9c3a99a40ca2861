//! Who decides, and sees to it that what is decided happens everywhere.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Decision, Difference, Global, GlobalStatus, Home, Order, Ordered, Resource, Undone, Which, Work,
};
use crate::{Error, ErrorKind, Result, points};

/// So many global transactions at a time in a sweep.
const BATCH: i64 = 200;

/// Begins global transactions, and ends them. Cheap to clone; several may work on the same databases.
///
/// Every coordinator of a home names all resources in which its global transactions can have branches: one
/// that is not named is neither committed nor undone.
#[derive(Clone)]
pub struct AtCoordinator {
    home: Arc<dyn Home>,
    resources: Vec<Arc<dyn Resource>>,
}

/// How far the end of a global transaction has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Done everywhere: no lock is left.
    Complete,
    /// Decided, and not done everywhere: a resource did not answer. A sweep completes it.
    Pending(String),
    /// Decided, and these rows of a resource wait for an operator.
    NeedsOperator(Vec<(String, Vec<Difference>)>),
}

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Committed everywhere.
    pub committed: u64,
    /// Undone everywhere.
    pub rolled_back: u64,
    /// Among those, how many were past their deadline.
    pub expired: u64,
    /// How many began to wait for an operator.
    pub needs_operator: u64,
    /// What could not be reached, with the error. The next sweep tries again.
    pub failures: Vec<(String, String)>,
}

impl AtCoordinator {
    /// # Errors
    /// `Invalid` when there is no resource, or two have one name.
    pub fn new(home: Arc<dyn Home>, resources: Vec<Arc<dyn Resource>>) -> Result<AtCoordinator> {
        let mut names: Vec<&str> = resources.iter().map(|resource| resource.name()).collect();
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        if let Some(pair) = twice {
            let text = format!("two resources are named `{}`", pair[0]);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if resources.is_empty() {
            let text = "a coordinator needs a resource: a database with branches";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(AtCoordinator { home, resources })
    }

    /// Begins a global transaction. When it is not ended in time, a sweep rolls it back.
    pub fn begin(&self, timeout: Duration) -> Global {
        Global::begin(self.home.name(), timeout)
    }

    /// Decides to commit, and commits everywhere. All branches have to have committed by then.
    ///
    /// # Errors
    /// `Fenced` when it has been rolled back, by its deadline perhaps. `Unavailable` when the home did not
    /// answer: whether it is decided is then not known, and the same call may be made again.
    pub async fn commit(&self, global: &Global) -> Result<Ending> {
        self.decide_commit(global).await?;
        self.complete(&[(global.gid().to_owned(), Decision::Commit)])
            .await
    }

    /// Decides to commit, and leaves the rest to [`AtCoordinator::complete`] or a sweep: locks stay until
    /// then.
    ///
    /// # Errors
    /// As [`AtCoordinator::commit`].
    pub async fn decide_commit(&self, global: &Global) -> Result<()> {
        match self.decide(global, Decision::Commit).await? {
            Decision::Commit => Ok(()),
            Decision::Rollback => {
                let text = format!(
                    "global transaction {} was rolled back; its deadline has passed, or somebody \
                     decided so: begin anew",
                    global.gid()
                );
                Err(Error::new(ErrorKind::Fenced, text))
            }
        }
    }

    /// Decides to roll back, and undoes every branch.
    ///
    /// # Errors
    /// `Fenced` when it has been committed. `Unavailable` as for [`AtCoordinator::commit`].
    pub async fn rollback(&self, global: &Global) -> Result<Ending> {
        match self.decide(global, Decision::Rollback).await? {
            Decision::Rollback => {
                self.complete(&[(global.gid().to_owned(), Decision::Rollback)])
                    .await
            }
            Decision::Commit => {
                let text = format!("global transaction {} is committed", global.gid());
                Err(Error::new(ErrorKind::Fenced, text))
            }
        }
    }

    async fn decide(&self, global: &Global, decision: Decision) -> Result<Decision> {
        if global.home() != self.home.name() {
            let text = format!(
                "global transaction {} belongs to home `{}`, not to `{}`",
                global.gid(),
                global.home(),
                self.home.name()
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        points::pass("at.deciding");
        let decided = self.home.decide(global.gid(), decision).await?;
        points::pass("at.decided");
        Ok(decided)
    }

    /// What is known of a global transaction, by its name.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn status(&self, gid: &str) -> Result<GlobalStatus> {
        if let Some(status) = self.home.status(gid).await? {
            return Ok(status);
        }
        for resource in &self.resources {
            if resource.find(self.home.name(), gid).await?.is_some() {
                return Ok(GlobalStatus::Begun);
            }
        }
        Ok(GlobalStatus::Unknown)
    }

    /// Does everywhere what is decided. Each resource commits all of them at once, and undoes one by one.
    ///
    /// # Errors
    /// Of the home. A resource that does not answer is no error: the rest is [`Ending::Pending`].
    pub async fn complete(&self, decided: &[(String, Decision)]) -> Result<Ending> {
        let mut swept = Swept::default();
        let dirty = self.complete_some(decided, &mut swept).await?;
        if !dirty.is_empty() {
            return Ok(Ending::NeedsOperator(dirty));
        }
        Ok(match swept.failures.first() {
            Some((name, why)) => Ending::Pending(format!("{name}: {why}")),
            None => Ending::Complete,
        })
    }

    async fn complete_some(
        &self,
        decided: &[(String, Decision)],
        swept: &mut Swept,
    ) -> Result<Vec<(String, Vec<Difference>)>> {
        let of = |wanted| {
            let some = decided
                .iter()
                .filter(move |(_, decision)| *decision == wanted);
            some.map(|(gid, _)| gid.clone()).collect::<Vec<String>>()
        };
        let commits = of(Decision::Commit);
        if !commits.is_empty() && self.finish(&commits, swept).await {
            points::pass("at.finished-all");
            let (from, to) = (GlobalStatus::Committing, GlobalStatus::Committed);
            swept.committed += self.home.advance(&commits, from, to).await?;
            points::pass("at.ended");
        }
        let mut dirty = Vec::new();
        for gid in of(Decision::Rollback) {
            dirty.extend(self.undo(gid, swept).await?);
        }
        Ok(dirty)
    }

    async fn finish(&self, gids: &[String], swept: &mut Swept) -> bool {
        let mut is_complete = true;
        for resource in &self.resources {
            if let Err(error) = resource.finish(self.home.name(), gids).await {
                swept
                    .failures
                    .push((resource.name().to_owned(), error.to_string()));
                is_complete = false;
            }
            points::pass("at.finished-one");
        }
        is_complete
    }

    /// Undoes one everywhere: what is dirty in one resource keeps no other from being undone.
    async fn undo(&self, gid: String, swept: &mut Swept) -> Result<Vec<(String, Vec<Difference>)>> {
        let mut dirty = Vec::new();
        let mut is_complete = true;
        for resource in &self.resources {
            match resource.undo(self.home.name(), &gid, None).await {
                Ok(Undone::Done) => {}
                Ok(Undone::NeedsOperator(found)) => dirty.push((resource.name().to_owned(), found)),
                Err(error) => {
                    swept
                        .failures
                        .push((resource.name().to_owned(), error.to_string()));
                    is_complete = false;
                }
            }
            points::pass("at.undone-one");
        }
        let rolling = GlobalStatus::RollingBack;
        if !is_complete {
            return Ok(dirty);
        }
        points::pass("at.undone-all");
        if dirty.is_empty() {
            swept.rolled_back += self
                .home
                .advance(&[gid], rolling, GlobalStatus::RolledBack)
                .await?;
        } else {
            let dirty = GlobalStatus::NeedsOperator;
            swept.needs_operator += self.home.advance(&[gid], rolling, dirty).await?;
        }
        points::pass("at.ended");
        Ok(dirty)
    }

    /// Rolls back what is past its deadline, and completes what is decided. May be killed and repeated at any
    /// point, and run by several at once. Call it when a service starts, and every few seconds.
    ///
    /// # Errors
    /// Of the home, without which nothing can be decided.
    pub async fn sweep(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        self.expire(&mut swept).await?;
        let mut after = String::new();
        loop {
            let some = self.home.unfinished(&after, BATCH).await?;
            let Some((last, _)) = some.last() else {
                return Ok(swept);
            };
            after.clone_from(last);
            self.complete_some(&some, &mut swept).await?;
        }
    }

    /// Decides those that are past their deadline. One that ended already, where a branch came late, is
    /// completed in that resource.
    async fn expire(&self, swept: &mut Swept) -> Result<()> {
        for resource in &self.resources {
            let mut after = String::new();
            loop {
                let found = resource
                    .work(self.home.name(), Which::Expired, &after, BATCH)
                    .await;
                let some = match found {
                    Ok(some) => some,
                    Err(error) => {
                        swept
                            .failures
                            .push((resource.name().to_owned(), error.to_string()));
                        break;
                    }
                };
                let Some(last) = some.last() else { break };
                after.clone_from(&last.gid);
                for work in &some {
                    self.expire_one(resource.as_ref(), work, swept).await?;
                }
            }
        }
        Ok(())
    }

    async fn expire_one(
        &self,
        resource: &dyn Resource,
        work: &Work,
        swept: &mut Swept,
    ) -> Result<()> {
        let known = self.home.status(&work.gid).await?;
        let decided = self.home.decide(&work.gid, Decision::Rollback).await?;
        points::pass("at.expired");
        if known.is_none() && decided == Decision::Rollback {
            swept.expired += 1;
        }
        let has_ended = matches!(
            known,
            Some(GlobalStatus::Committed | GlobalStatus::RolledBack)
        );
        if !has_ended {
            return Ok(());
        }
        let done = match decided {
            Decision::Commit => {
                let gids = std::slice::from_ref(&work.gid);
                resource.finish(self.home.name(), gids).await
            }
            Decision::Rollback => match resource.undo(self.home.name(), &work.gid, None).await {
                Ok(Undone::NeedsOperator(_)) => {
                    let (from, to) = (GlobalStatus::RolledBack, GlobalStatus::NeedsOperator);
                    let gids = std::slice::from_ref(&work.gid);
                    self.home.advance(gids, from, to).await.map(|_| ())
                }
                done => done.map(|_| ()),
            },
        };
        if let Err(error) = done {
            swept
                .failures
                .push((resource.name().to_owned(), error.to_string()));
        }
        Ok(())
    }

    /// What waits for an operator, with the name of its resource.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn stuck(&self) -> Result<Vec<(String, Work)>> {
        self.list(Which::Dirty).await
    }

    /// What has branches that are neither kept nor undone, with the name of its resource.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn open(&self) -> Result<Vec<(String, Work)>> {
        self.list(Which::Open).await
    }

    async fn list(&self, which: Which) -> Result<Vec<(String, Work)>> {
        let mut all = Vec::new();
        for resource in &self.resources {
            let mut after = String::new();
            loop {
                let some = resource
                    .work(self.home.name(), which, &after, BATCH)
                    .await?;
                let Some(last) = some.last() else { break };
                after.clone_from(&last.gid);
                all.extend(
                    some.into_iter()
                        .map(|work| (resource.name().to_owned(), work)),
                );
            }
        }
        Ok(all)
    }

    /// Carries out an operator's order on what waits in a resource.
    ///
    /// # Errors
    /// `NotFound` when there is no such resource, or nothing of that name waits there; `Invalid` without a name
    /// or a reason; `Unavailable`.
    pub async fn order(&self, resource: &str, gid: &str, ordered: &Ordered) -> Result<Ending> {
        if ordered.who.trim().is_empty() || ordered.why.trim().is_empty() {
            let text = format!("to {} takes a name and a reason", ordered.order.name());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let found = self.resources.iter().find(|some| some.name() == resource);
        let found = found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no resource `{resource}`"),
            )
        })?;
        let work = found.find(self.home.name(), gid).await?;
        if work.is_none_or(|work| work.differences.is_empty()) {
            let text = format!("{gid} does not wait for an operator in `{resource}`");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        // First it is taken up again: killed after that, a sweep goes on, and finds out how far this came.
        let gids = [gid.to_owned()];
        let (from, to) = (GlobalStatus::NeedsOperator, GlobalStatus::RollingBack);
        self.home.advance(&gids, from, to).await?;
        points::pass("at.resumed");
        found.undo(self.home.name(), gid, Some(ordered)).await?;
        points::pass("at.ordered");
        self.complete(&[(gid.to_owned(), Decision::Rollback)]).await
    }

    /// Forgets what ended so long ago, in the resources first. Longer than any caller may still try to run a
    /// branch, or ask for an outcome: a day is good.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn forget(&self, age: Duration) -> Result<u64> {
        let mut forgotten = 0;
        for resource in &self.resources {
            forgotten += resource.forget(self.home.name(), age).await?;
        }
        points::pass("at.forgotten");
        self.home.forget(age.saturating_mul(2)).await?;
        Ok(forgotten)
    }
}

/// `order` with little to write.
impl Ordered {
    /// An order, by whom, and why.
    pub fn new(order: Order, who: impl Into<String>, why: impl Into<String>) -> Ordered {
        Ordered {
            order,
            who: who.into(),
            why: why.into(),
        }
    }
}

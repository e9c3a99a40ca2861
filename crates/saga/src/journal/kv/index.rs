//! The index of sagas over a `Kv`: where each stands, in the order in which they began. So nobody reads those that have
//! ended to find those that have not, and nobody reads logs to count.
//!
//! An entry is written when a saga begins and when its standing changes, in the same compare as the saga itself.

use bytes::Bytes;
use quorate_kv::{Compare, Condition, Entry, Mutation, Op, Scan};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{KvJournal, decode, encode, key, record};
use crate::journal::{Append, Filter, Record};
use crate::machine::Status;
use crate::{Error, ErrorKind, Result};

/// What lies together: those that go on by themselves, those that are stuck, those that have ended.
const CLASSES: [u8; 3] = [0, 1, 2];

fn class(status: Status) -> u8 {
    match status {
        Status::Running | Status::Compensating => 0,
        Status::Stuck => 1,
        Status::Completed | Status::Compensated => 2,
    }
}

#[derive(Serialize, Deserialize)]
struct Standing {
    name: String,
    version: u32,
    status: i16,
}

/// A saga as the index has it.
pub(super) struct Indexed {
    pub id: Uuid,
    pub started_ms: i64,
    pub name: String,
    pub version: u32,
    pub status: Status,
}

fn index_key(prefix: &str, class: u8, started_ms: i64, id: Uuid) -> Bytes {
    let started_ms = started_ms.max(0);
    key(
        prefix,
        &format!("i/{class}/{started_ms:020}/{}", id.simple()),
    )
}

fn read(entry: &Entry) -> Result<Indexed> {
    let text = String::from_utf8_lossy(&entry.key);
    let mut parts = text.rsplit('/');
    let id = parts.next().and_then(|id| id.parse().ok());
    let started_ms = parts.next().and_then(|at| at.parse().ok());
    let standing: Standing = decode(&entry.value)?;
    let status = Status::of(standing.status.into());
    let (Some(id), Some(started_ms), Some(status)) = (id, started_ms, status) else {
        let text =
            format!("`{text}` names no time, saga or standing: an entry of the journal is damaged");
        return Err(Error::new(ErrorKind::Corrupt, text));
    };
    Ok(Indexed {
        id,
        started_ms,
        name: standing.name,
        version: standing.version,
        status,
    })
}

/// Adds what a write changes of the index.
pub(super) fn change(
    mut changes: Compare,
    prefix: &str,
    one: &Append,
    was: Option<Status>,
) -> Result<Compare> {
    if was == Some(one.status) {
        return Ok(changes);
    }
    let at = |status| index_key(prefix, class(status), one.started_ms, one.id);
    if let Some(was) = was.filter(|was| class(*was) != class(one.status)) {
        changes = changes.then(Op::Mutate(Mutation::delete(at(was))));
    }
    let standing = Standing {
        name: one.name.clone(),
        version: one.version,
        status: one.status.number(),
    };
    let put = Mutation::put(at(one.status), encode(&standing)?);
    Ok(changes.then(Op::Mutate(put)))
}

impl KvJournal {
    /// Sagas of some classes that fit and began before a moment, the oldest first, at most so many.
    async fn look_up(
        &self,
        classes: &[u8],
        before_ms: Option<i64>,
        most: usize,
        fits: impl Fn(&Indexed) -> bool,
    ) -> Result<Vec<Indexed>> {
        let mut all = Vec::new();
        for prefix in self.outbox.prefixes() {
            for class in classes {
                let start = key(prefix, &format!("i/{class}/"));
                let mut scan = Scan::prefix(start.clone());
                if let Some(ms) = before_ms {
                    let end = key(prefix, &format!("i/{class}/{:020}/", ms.max(0)));
                    scan = Scan::range(start, end);
                }
                scan = scan.limit(most.clamp(1, 1000));
                let mut found = 0;
                while found < most {
                    let page = self.outbox.kv().scan(scan.clone()).await?;
                    for entry in &page.entries {
                        let one = read(entry)?;
                        if found < most && fits(&one) {
                            all.push(one);
                            found += 1;
                        }
                    }
                    if page.next.is_none() {
                        break;
                    }
                    scan = scan.page(page.next);
                }
            }
        }
        all.sort_by_key(|one| (one.started_ms, one.id));
        all.truncate(most);
        Ok(all)
    }

    /// All that have not ended, or all.
    pub(super) async fn standings(&self, with_ended: bool) -> Result<Vec<Indexed>> {
        let classes = if with_ended {
            &CLASSES[..]
        } else {
            &CLASSES[..2]
        };
        self.look_up(classes, None, usize::MAX, |_| true).await
    }

    pub(super) async fn listed(&self, filter: &Filter, limit: usize) -> Result<Vec<Record>> {
        let fits = |status: Status, name: &str| {
            filter.status.is_none_or(|wanted| status == wanted)
                && filter.name.as_ref().is_none_or(|wanted| name == *wanted)
        };
        let one = filter.status.map(|status| [class(status)]);
        let classes = one.as_ref().map_or(&CLASSES[..], |one| &one[..]);
        let look_up = self.look_up(classes, None, limit, |one| fits(one.status, &one.name));
        let mut found = Vec::new();
        for one in look_up.await? {
            if let Some(entry) = self.get(self.saga_key(one.id)).await? {
                found.push(record(&entry)?);
            }
        }
        // One may stand otherwise by now.
        found.retain(|saga| fits(saga.status, &saga.name));
        Ok(found)
    }

    pub(super) async fn forgotten(&self, before_ms: i64, limit: usize) -> Result<u64> {
        let mut gone = 0;
        for one in self
            .look_up(&CLASSES[2..], Some(before_ms), limit, |_| true)
            .await?
        {
            let at = self.saga_key(one.id);
            let Some(entry) = self.get(at.clone()).await? else {
                continue;
            };
            let index = index_key(
                self.prefix(one.id),
                class(one.status),
                one.started_ms,
                one.id,
            );
            let delete = Compare::new()
                .when(at.clone(), Condition::Version(entry.version))
                .then(Op::Mutate(Mutation::delete(at)))
                .then(Op::Mutate(Mutation::delete(index)));
            gone += u64::from(self.outbox.kv().compare(delete).await?.succeeded);
        }
        Ok(gone)
    }
}

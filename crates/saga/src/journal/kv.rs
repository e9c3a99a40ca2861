//! The journal over a [`Kv`](quorate_kv::Kv), beside a [`KvOutbox`]: a saga lies in one of its prefixes, and so in
//! one shard with the messages that it sends.
//!
//! ```text
//! <prefix>/~saga/s/<id>              the saga: a line of JSON, then its events
//! <prefix>/~saga/w/<time>/<id>       when to look at it; not when it has ended
//! <prefix>/~saga/i/<class>/<began>/<id>  how it stands: open, stuck or ended (see `index`)
//! <prefix>/~saga/e/<owner>/<epoch>   there as long as this epoch's lease is not lost
//! <first prefix>/~saga/m/<owner>     the member: its epoch, and how often it was heard
//! <first prefix>/~saga/epoch         the last epoch that was given
//! ```
//!
//! A write is one compare on the saga's entry and the member's epoch. There is no common clock: a member is buried when
//! another has seen its entry unchanged for a lease, by its own monotonic clock. Sagas of different prefixes
//! are written one prefix after the other.

mod index;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kv::{Compare, Condition, Delete, Entry, Get, Mutation, Op, Put, Scan, Version};
use quorate_outbox::kv::KvOutbox;
use quorate_outbox::store::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::memory::{counted, opened};
use super::{Append, Count, Due, Fence, Filter, Journal, Open, Record, Share, fenced, part};
use crate::machine::{Status, write_log};
use crate::{Error, ErrorKind, Result};

/// At most so many sagas in one compare.
const TOGETHER: usize = 64;
/// So often a write that others come between is tried.
const TRIES: usize = 64;

/// The first line of a saga's entry.
#[derive(Serialize, Deserialize)]
struct Head {
    name: String,
    version: u32,
    key: String,
    seq: i64,
    status: i16,
    wake_ms: Option<i64>,
    started_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct Member {
    epoch: i64,
    beat: u64,
}

/// Sagas over a `Kv`. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct KvJournal {
    outbox: KvOutbox,
    /// What was seen of each member, and since when it has not changed.
    seen: Arc<Mutex<HashMap<String, (Version, Instant)>>>,
}

impl KvJournal {
    /// A journal beside this outbox, in its prefixes.
    pub fn new(outbox: KvOutbox) -> KvJournal {
        KvJournal {
            outbox,
            seen: Arc::default(),
        }
    }

    fn first(&self) -> &str {
        self.outbox.prefixes().first().map_or("", String::as_str)
    }

    fn prefix(&self, id: Uuid) -> &str {
        let all = self.outbox.prefixes();
        &all[part(id) as usize % all.len()]
    }

    fn saga_key(&self, id: Uuid) -> Bytes {
        key(self.prefix(id), &format!("s/{}", id.simple()))
    }

    async fn get(&self, key: Bytes) -> Result<Option<Entry>> {
        Ok(self.outbox.kv().get(Get::new(key)).await?)
    }

    async fn scan(&self, mut scan: Scan) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        loop {
            let page = self.outbox.kv().scan(scan.clone()).await?;
            entries.extend(page.entries);
            if page.next.is_none() {
                return Ok(entries);
            }
            scan = scan.page(page.next);
        }
    }

    async fn take_lease(&self, owner: &str) -> Result<Fence> {
        let counter = key(self.first(), "epoch");
        for _ in 0..TRIES {
            let was = self.get(counter.clone()).await?;
            let last: i64 = was.as_ref().map_or(Ok(0), |entry| decode(&entry.value))?;
            let epoch = last + 1;
            let put = Put::new(counter.clone(), epoch.to_string()).when(condition(&was));
            if !self.outbox.kv().put(put).await?.applied {
                continue;
            }
            let fence = Fence {
                owner: owner.to_owned(),
                epoch,
            };
            let member = key(self.first(), &format!("m/{owner}"));
            if let Some(before) = self.get(member.clone()).await? {
                let before: Member = decode(&before.value)?;
                self.close(owner, before.epoch).await?;
            }
            for prefix in self.outbox.prefixes() {
                let put = Put::new(epoch_key(prefix, &fence), "1");
                self.outbox.kv().put(put).await?;
            }
            let value = encode(&Member { epoch, beat: 0 })?;
            self.outbox.kv().put(Put::new(member, value)).await?;
            return Ok(fence);
        }
        Err(busy())
    }

    /// From here on nothing is written in this epoch.
    async fn close(&self, owner: &str, epoch: i64) -> Result<()> {
        let fence = Fence {
            owner: owner.to_owned(),
            epoch,
        };
        for prefix in self.outbox.prefixes() {
            let delete = Delete::new(epoch_key(prefix, &fence));
            self.outbox.kv().delete(delete).await?;
        }
        Ok(())
    }

    async fn renew(&self, fence: &Fence, ttl: Duration) -> Result<Share> {
        let own = key(self.first(), &format!("m/{}", fence.owner));
        let entry = self.get(own.clone()).await?;
        let entry = entry.ok_or_else(|| fenced(fence))?;
        let mut member: Member = decode(&entry.value)?;
        if member.epoch != fence.epoch {
            return Err(fenced(fence));
        }
        member.beat += 1;
        let put = Put::new(own.clone(), encode(&member)?).when(Condition::Version(entry.version));
        if !self.outbox.kv().put(put).await?.applied {
            return Err(fenced(fence));
        }
        let start = key(self.first(), "m/");
        let members = self.scan(Scan::prefix(start.clone())).await?;
        let mut living = Vec::new();
        for entry in members {
            let owner = String::from_utf8_lossy(&entry.key[start.len()..]).into_owned();
            if owner != fence.owner && self.is_gone(&owner, entry.version, ttl) {
                let member: Member = decode(&entry.value)?;
                self.close(&owner, member.epoch).await?;
                let delete = Delete::new(entry.key).when(Condition::Version(entry.version));
                self.outbox.kv().delete(delete).await?;
            } else {
                living.push(owner);
            }
        }
        living.sort();
        let rank = living.iter().position(|owner| *owner == fence.owner);
        Ok(Share {
            rank: rank.unwrap_or(0) as u32,
            of: living.len().max(1) as u32,
        })
    }

    fn is_gone(&self, owner: &str, version: Version, ttl: Duration) -> bool {
        let mut seen = self.seen.lock();
        let now = (version, Instant::now());
        let since = seen.entry(owner.to_owned()).or_insert(now);
        if since.0 != version {
            *since = now;
        }
        since.1.elapsed() > ttl
    }

    /// Sagas of one prefix, all or none but those that have other events.
    async fn append_some(
        &self,
        fence: Option<&Fence>,
        prefix: &str,
        appends: &[&Append],
    ) -> Result<Vec<bool>> {
        for _ in 0..TRIES {
            let mut changes = Compare::new();
            if let Some(fence) = fence {
                let epoch = epoch_key(prefix, fence);
                if self.get(epoch.clone()).await?.is_none() {
                    return Err(fenced(fence));
                }
                changes = changes.when(epoch, Condition::Present);
            }
            let mut written = Vec::with_capacity(appends.len());
            let mut messages = Vec::new();
            for one in appends {
                let was = self.get(self.saga_key(one.id)).await?;
                let saga = was.as_ref().map(record).transpose()?;
                let fits = saga.as_ref().map_or(0, |saga| saga.seq) == one.seq;
                written.push(fits);
                if fits {
                    changes = self.change(changes, one, &was, saga)?;
                    messages.extend(one.messages.iter().cloned());
                }
            }
            let done = self.outbox.enqueue_all(prefix, changes, &messages).await?;
            if done.is_some() {
                return Ok(written);
            }
        }
        Err(busy())
    }

    fn change(
        &self,
        mut changes: Compare,
        one: &Append,
        was: &Option<Entry>,
        saga: Option<Record>,
    ) -> Result<Compare> {
        let at = self.saga_key(one.id);
        changes = changes.when(at.clone(), condition(was));
        let old = saga.as_ref().and_then(|saga| saga.wake_ms);
        if old != one.wake_ms {
            if let Some(ms) = old {
                let gone = Mutation::delete(wake_key(self.prefix(one.id), ms, one.id));
                changes = changes.then(Op::Mutate(gone));
            }
            if let Some(ms) = one.wake_ms {
                let of = encode(&(&one.name, one.version))?;
                let wake = Mutation::put(wake_key(self.prefix(one.id), ms, one.id), of);
                changes = changes.then(Op::Mutate(wake));
            }
        }
        let stood = saga.as_ref().map(|saga| saga.status);
        changes = index::change(changes, self.prefix(one.id), one, stood)?;
        let head = Head {
            name: one.name.clone(),
            version: one.version,
            key: one.key.clone(),
            seq: one.seq + one.events.len() as i64,
            status: one.status.number(),
            wake_ms: one.wake_ms,
            started_ms: one.started_ms,
        };
        let mut value = String::from_utf8_lossy(&encode(&head)?).into_owned();
        value.push('\n');
        value.push_str(saga.as_ref().map_or("", |saga| saga.log.as_str()));
        write_log(&mut value, &one.events)?;
        Ok(changes.then(Op::Mutate(Mutation::put(at, value))))
    }

    async fn look_for_due(
        &self,
        share: Share,
        known: &[(String, u32)],
        now_ms: i64,
        limit: usize,
    ) -> Result<Due> {
        let mut wakes = Vec::new();
        for prefix in self.outbox.prefixes() {
            let start = key(prefix, "w/");
            let (mut scan, mut found) = (Scan::prefix(start.clone()), 0);
            'prefix: loop {
                let page = self.outbox.kv().scan(scan.clone()).await?;
                for entry in &page.entries {
                    let (at, id) = wake_of(&entry.key[start.len()..])?;
                    let of: (String, u32) = decode(&entry.value)?;
                    if !share.has(id) || !known.contains(&of) {
                        continue;
                    }
                    wakes.push((at, id));
                    found += 1;
                    // One more than is due, so that the next time is known.
                    if at > now_ms || found > limit {
                        break 'prefix;
                    }
                }
                if page.next.is_none() {
                    break;
                }
                scan = scan.page(page.next);
            }
        }
        wakes.sort();
        let due = wakes.iter().take_while(|(at, _)| *at <= now_ms).take(limit);
        let ids: Vec<Uuid> = due.map(|(_, id)| *id).collect();
        let next_ms = wakes.get(ids.len()).map(|(at, _)| *at);
        Ok(Due { ids, next_ms })
    }
}

fn key(prefix: &str, rest: &str) -> Bytes {
    Bytes::from(format!("{prefix}/~saga/{rest}"))
}

fn epoch_key(prefix: &str, fence: &Fence) -> Bytes {
    key(prefix, &format!("e/{}/{}", fence.owner, fence.epoch))
}

fn wake_key(prefix: &str, at_ms: i64, id: Uuid) -> Bytes {
    key(prefix, &format!("w/{:020}/{}", at_ms.max(0), id.simple()))
}

fn wake_of(rest: &[u8]) -> Result<(i64, Uuid)> {
    let text = String::from_utf8_lossy(rest);
    let parts = text.split_once('/');
    let read = parts.and_then(|(at, id)| Some((at.parse().ok()?, id.parse().ok()?)));
    read.ok_or_else(|| {
        let text = format!("`{text}` is no time and saga: an entry of the journal is damaged");
        Error::new(ErrorKind::Corrupt, text)
    })
}

fn condition(was: &Option<Entry>) -> Condition {
    was.as_ref()
        .map_or(Condition::Absent, |entry| Condition::Version(entry.version))
}

fn encode(value: &impl Serialize) -> Result<Bytes> {
    let bytes = serde_json::to_vec(value);
    let bytes = bytes.map_err(|e| Error::new(ErrorKind::Invalid, format!("encode: {e}")))?;
    Ok(Bytes::from(bytes))
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(ErrorKind::Corrupt, format!("an entry of the journal: {e}")))
}

fn busy() -> Error {
    let text = "the journal is written by too many at once: nothing was written";
    Error::new(ErrorKind::Unavailable, text)
}

fn record(entry: &Entry) -> Result<Record> {
    let text = std::str::from_utf8(&entry.value)
        .map_err(|e| Error::new(ErrorKind::Corrupt, format!("a saga's entry: {e}")))?;
    let (head, log) = text.split_once('\n').unwrap_or((text, ""));
    let head: Head = decode(head.as_bytes())?;
    let id = entry
        .key
        .rsplit(|byte| *byte == b'/')
        .next()
        .unwrap_or_default();
    let id = Uuid::try_parse_ascii(id)
        .map_err(|e| Error::new(ErrorKind::Corrupt, format!("a saga's key: {e}")))?;
    let status = Status::of(head.status.into()).ok_or_else(|| {
        let text = format!(
            "a saga stands at {}, which this program does not know",
            head.status
        );
        Error::new(ErrorKind::Corrupt, text)
    })?;
    Ok(Record {
        id,
        name: head.name,
        version: head.version,
        key: head.key,
        seq: head.seq,
        status,
        wake_ms: head.wake_ms,
        started_ms: head.started_ms,
        log: log.to_owned(),
    })
}

impl Journal for KvJournal {
    fn join<'a>(&'a self, owner: &'a str, _ttl: Duration) -> BoxFuture<'a, Result<Fence>> {
        Box::pin(self.take_lease(owner))
    }

    fn beat<'a>(&'a self, fence: &'a Fence, ttl: Duration) -> BoxFuture<'a, Result<Share>> {
        Box::pin(self.renew(fence, ttl))
    }

    fn leave<'a>(&'a self, fence: &'a Fence) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.close(&fence.owner, fence.epoch).await?;
            let own = key(self.first(), &format!("m/{}", fence.owner));
            if let Some(entry) = self.get(own.clone()).await? {
                let member: Member = decode(&entry.value)?;
                if member.epoch == fence.epoch {
                    let delete = Delete::new(own).when(Condition::Version(entry.version));
                    self.outbox.kv().delete(delete).await?;
                }
            }
            Ok(())
        })
    }

    fn append<'a>(
        &'a self,
        fence: Option<&'a Fence>,
        appends: &'a [Append],
    ) -> BoxFuture<'a, Result<Vec<bool>>> {
        Box::pin(async move {
            let mut groups: BTreeMap<&str, Vec<&Append>> = BTreeMap::new();
            for one in appends {
                groups.entry(self.prefix(one.id)).or_default().push(one);
            }
            let mut written = HashSet::new();
            for (prefix, group) in groups {
                for some in group.chunks(TOGETHER) {
                    let kept = self.append_some(fence, prefix, some).await?;
                    let kept = some.iter().zip(kept).filter(|(_, kept)| *kept);
                    written.extend(kept.map(|(one, _)| one.id));
                }
            }
            Ok(appends
                .iter()
                .map(|one| written.contains(&one.id))
                .collect())
        })
    }

    fn load<'a>(&'a self, ids: &'a [Uuid]) -> BoxFuture<'a, Result<Vec<Record>>> {
        Box::pin(async move {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                let entry = self.get(self.saga_key(*id)).await?;
                found.extend(entry.as_ref().map(record).transpose()?);
            }
            Ok(found)
        })
    }

    fn due<'a>(
        &'a self,
        share: Share,
        known: &'a [(String, u32)],
        now_ms: i64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Due>> {
        Box::pin(self.look_for_due(share, known, now_ms, limit))
    }

    fn list<'a>(&'a self, filter: &'a Filter, limit: usize) -> BoxFuture<'a, Result<Vec<Record>>> {
        Box::pin(self.listed(filter, limit))
    }

    fn count(&self) -> BoxFuture<'_, Result<Vec<Count>>> {
        Box::pin(async move {
            let all = self.standings(true).await?;
            let all = all.iter();
            Ok(counted(all.map(|one| {
                ((one.name.as_str(), one.version, one.status), one.started_ms)
            })))
        })
    }

    fn open(&self) -> BoxFuture<'_, Result<Open>> {
        Box::pin(async move {
            let open = self.standings(false).await?;
            Ok(opened(open.iter().map(|one| (one.status, one.started_ms))))
        })
    }

    fn forget(&self, before_ms: i64, limit: usize) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.forgotten(before_ms, limit))
    }
}

//! The store over a `Kv`: every write is a compare on the part's relay entry.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_kv::{Compare, Entry, Mutation, Op, Scan, ScanOrder};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::enqueue::{condition, number};
use super::{KvOutbox, decode, encode, version};
use crate::inbox::now_ms;
use crate::store::{
    BoxFuture, Change, Claim, Fence, Held, Lag, Most, Parked, Progress, Read, Store, Which, Wish,
};
use crate::{Error, ErrorKind, Ranges, Result};

/// So many entries a page.
const PAGE: usize = 1000;
/// At most so much is read at once: all of it may have to be parked by one batch of the store.
pub(super) const READ_BYTES: usize = 2 << 20;
/// At most so many published messages are deleted at once.
const TRIM: i64 = 500;

/// A part's relay entry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Holder {
    epoch: i64,
    owner: String,
    /// Counts heartbeats: an entry that does not change has a holder that is gone.
    beat: u64,
    floor: i64,
    done: Vec<i64>,
    batch: i64,
    plan: Vec<i64>,
    /// Everything up to here is deleted.
    trimmed: i64,
}

impl Holder {
    fn progress(&self) -> Result<Progress> {
        let ranges = |flat: &[i64]| {
            Ranges::from_flat(flat).ok_or_else(|| {
                let text = "the outbox's relay entry: the list of published ids is not one";
                Error::new(ErrorKind::Corrupt, text)
            })
        };
        Ok(Progress {
            floor: self.floor,
            done: ranges(&self.done)?,
            batch: self.batch,
            plan: ranges(&self.plan)?,
        })
    }
}

fn fenced(fence: Fence) -> Error {
    let text = format!(
        "part {} is no longer held in epoch {}: another relay has it",
        fence.part, fence.epoch
    );
    Error::new(ErrorKind::Fenced, text)
}

impl KvOutbox {
    async fn holder(&self, part: u16) -> Result<(Option<Entry>, Holder)> {
        let entry = self.get(self.key(part, "relay")).await?;
        let holder = match &entry {
            Some(entry) => decode(&entry.value, "relay entry")?,
            None => Holder::default(),
        };
        Ok((entry, holder))
    }

    /// A compare that writes the relay entry if it is still as it was read.
    fn swap(&self, part: u16, was: &Option<Entry>, holder: &Holder) -> Result<Compare> {
        let key = self.key(part, "relay");
        let compare = Compare::new().when(key.clone(), condition(version(was)));
        Ok(compare.then(Op::Mutate(Mutation::put(key, encode(holder)?))))
    }

    /// Changes the relay entry under an epoch, and more, again if somebody else's write came between.
    async fn alter(
        &self,
        fence: Fence,
        alter: impl Fn(&mut Holder),
        change: &Change,
    ) -> Result<()> {
        loop {
            let (entry, mut holder) = self.holder(fence.part).await?;
            if holder.epoch != fence.epoch {
                return Err(fenced(fence));
            }
            alter(&mut holder);
            let compare = self.swap(fence.part, &entry, &holder)?;
            let compare = self.add_change(fence.part, change, compare).await?;
            if self.kv.compare(compare).await?.succeeded {
                return Ok(());
            }
        }
    }

    async fn hold_leases(&self, owner: &str, held: &[Fence], ttl: Duration) -> Result<Held> {
        let mut answer = Held::default();
        let mut owners = HashSet::from([owner.to_owned()]);
        let mut free = Vec::new();
        for part in 0..self.parts() {
            if let Some(fence) = held.iter().find(|fence| fence.part == part) {
                let beat = |holder: &mut Holder| holder.beat += 1;
                match self.alter(*fence, beat, &Change::default()).await {
                    Ok(()) => answer.kept.push(part),
                    Err(error) if error.kind() == ErrorKind::Fenced => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let (entry, holder) = self.holder(part).await?;
            let now = version(&entry);
            let mut seen = self.inner.seen.lock();
            let since = seen.entry(part).or_insert((now, Instant::now()));
            if since.0 != now {
                *since = (now, Instant::now());
            }
            if holder.owner.is_empty() || since.1.elapsed() > ttl {
                free.push((part, entry, holder));
            } else {
                owners.insert(holder.owner);
            }
        }
        // There is no list of members: relays that hold something are the ones that count.
        let share = usize::from(self.parts()).div_ceil(owners.len());
        answer.surplus = answer.kept.len().saturating_sub(share);
        for (part, entry, mut holder) in free {
            if answer.kept.len() + answer.claimed.len() >= share {
                break;
            }
            holder.epoch += 1;
            holder.owner = owner.to_owned();
            holder.beat += 1;
            let compare = self.swap(part, &entry, &holder)?;
            if self.kv.compare(compare).await?.succeeded {
                answer.claimed.push(Claim {
                    fence: Fence {
                        part,
                        epoch: holder.epoch,
                    },
                    progress: holder.progress()?,
                    parked: self.streams(part).await?,
                });
            }
        }
        Ok(answer)
    }

    async fn release_leases(&self, held: &[Fence]) -> Result<()> {
        for fence in held {
            let clear = |holder: &mut Holder| holder.owner.clear();
            match self.alter(*fence, clear, &Change::default()).await {
                Err(error) if error.kind() != ErrorKind::Fenced => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Entries of a part in order, from a key on; all of one page, or page after page.
    pub(super) async fn scan(
        &self,
        part: u16,
        from: &str,
        to: &str,
        limit: usize,
    ) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let mut next = None;
        loop {
            let range = Scan::range(self.key(part, from), self.key(part, to));
            let rest = limit.saturating_sub(found.len()).clamp(1, PAGE);
            let scan = range.limit(rest).order(ScanOrder::Key).page(next);
            let page = self.kv.scan(scan).await?;
            found.extend(page.entries);
            next = page.next;
            if next.is_none() || found.len() >= limit {
                return Ok(found);
            }
        }
    }

    async fn read_rows(&self, fence: Fence, progress: &Progress, most: Most) -> Result<Read> {
        let mut read = Read {
            settled: progress.floor,
            ..Read::default()
        };
        let (mut bytes, mut next) = (0, None);
        loop {
            let from = self.message_key(fence.part, progress.floor + 1);
            let page = PAGE.min(most.rows.saturating_add(1));
            let range = Scan::range(from, self.key(fence.part, "m0")).limit(page);
            let page = self.kv.scan(range.order(ScanOrder::Key).page(next)).await?;
            for entry in &page.entries {
                let row = self.read_row(fence.part, "m/", entry)?;
                let id = row.id;
                if !progress.done.contains(id) {
                    bytes += row.size();
                    let is_full = bytes > most.bytes.min(READ_BYTES) && !read.rows.is_empty();
                    if is_full || read.rows.len() >= most.rows {
                        read.cut = true;
                        return Ok(read);
                    }
                    read.rows.push(row);
                }
                read.settled = id;
            }
            next = page.next;
            if next.is_none() {
                return Ok(read);
            }
        }
    }

    async fn save_progress(
        &self,
        fence: Fence,
        progress: &Progress,
        change: &Change,
    ) -> Result<()> {
        let alter = |holder: &mut Holder| {
            holder.floor = progress.floor;
            holder.done = progress.done.to_flat();
            holder.batch = progress.batch;
            holder.plan = progress.plan.to_flat();
        };
        self.alter(fence, alter, change).await
    }

    /// Deletes what is below the floor; only as far as nobody else did.
    async fn delete_published(&self, parts: &[u16]) -> Result<i64> {
        let mut deleted = 0;
        for part in parts.iter().copied() {
            let (entry, mut holder) = self.holder(part).await?;
            let end = holder.floor.min(holder.trimmed + TRIM);
            let ids = holder.trimmed + 1..=end;
            let count = end - holder.trimmed;
            if count <= 0 {
                continue;
            }
            holder.trimmed = end;
            let mut compare = self.swap(part, &entry, &holder)?;
            for id in ids {
                let delete = Mutation::delete(self.message_key(part, id));
                compare = compare.then(Op::Mutate(delete));
            }
            if self.kv.compare(compare).await?.succeeded {
                deleted += count;
            }
        }
        Ok(deleted)
    }

    async fn measure(&self) -> Result<Lag> {
        let mut lag = Lag::default();
        for part in 0..self.parts() {
            let head = number(&self.get(self.key(part, "head")).await?)?;
            let (_, holder) = self.holder(part).await?;
            let progress = holder.progress()?;
            let waiting = head - progress.floor - progress.done.count();
            lag.waiting += waiting.max(0);
            if waiting > 0 {
                let fence = Fence { part, epoch: 0 };
                let most = Most {
                    rows: 1,
                    ..Most::ALL
                };
                let read = self.read_rows(fence, &progress, most).await?;
                let first = read.rows.iter().find(|row| row.damage.is_none());
                let created = first.map(|row| row.created_ms);
                lag.oldest_ms = lag.oldest_ms.max(created.map_or(0, |ms| now_ms() - ms));
            }
            lag.parked += self.asides(part, usize::MAX).await?.len() as i64;
        }
        Ok(lag)
    }
}

impl Store for KvOutbox {
    fn parts(&self) -> u16 {
        self.inner.prefixes.len() as u16
    }

    fn source(&self) -> &str {
        &self.inner.source
    }

    fn sequences(&self, part: u16) -> String {
        format!("{}/{part}", self.inner.source)
    }

    fn hint(&self) -> Arc<Notify> {
        Arc::clone(&self.inner.hint)
    }

    fn hold<'a>(
        &'a self,
        owner: &'a str,
        held: &'a [Fence],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Held>> {
        Box::pin(self.hold_leases(owner, held, ttl))
    }

    fn release<'a>(&'a self, held: &'a [Fence]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.release_leases(held))
    }

    fn read<'a>(
        &'a self,
        fence: Fence,
        progress: &'a Progress,
        most: Most,
    ) -> BoxFuture<'a, Result<Read>> {
        Box::pin(self.read_rows(fence, progress, most))
    }

    fn save<'a>(
        &'a self,
        fence: Fence,
        progress: &'a Progress,
        change: &'a Change,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.save_progress(fence, progress, change))
    }

    fn wishes(&self, part: u16, most: Most) -> BoxFuture<'_, Result<Vec<Parked>>> {
        Box::pin(self.wanted(part, most))
    }

    fn parked_streams(&self, part: u16) -> BoxFuture<'_, Result<HashSet<(String, String)>>> {
        Box::pin(self.streams(part))
    }

    fn trim<'a>(&'a self, parts: &'a [u16]) -> BoxFuture<'a, Result<i64>> {
        Box::pin(self.delete_published(parts))
    }

    fn lag(&self) -> BoxFuture<'_, Result<Lag>> {
        Box::pin(self.measure())
    }

    fn parked<'a>(
        &'a self,
        which: Option<&'a Which>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Parked>>> {
        Box::pin(self.list_parked(which, limit))
    }

    fn wish<'a>(&'a self, which: &'a Which, wish: Wish) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.set_wish(which, wish))
    }
}

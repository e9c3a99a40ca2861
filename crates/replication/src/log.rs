//! One log for all groups of a node.
//!
//! Each replica's entries, votes, truncations and purges go into one stream of records, so one sync
//! serves every group that waits. What is read back is decided by the stream's order alone: the
//! later record wins. In memory each replica keeps where its entries lie, and a node-wide cache keeps
//! the newest payloads.
//!
//! # How it stays bounded
//!
//! A segment can go when no replica has an entry in it and when the votes and purges it holds are
//! written again elsewhere. [`SharedLog::release_segments`] therefore writes one `state` record with
//! the vote and the purged id of *every* replica, waits until it is durable, and then lets go of the
//! segments below the oldest entry of all. A replica with old entries pins segments;
//! [`SharedLog::pinning`] names those, so that the node can flush its engine and purge them.
//!
//! # What is promised
//!
//! Records of a replica become durable in the order they were submitted, and a completion that is
//! called says so of everything before it. After a crash a prefix of the stream is read back that
//! holds everything completed. A purge or truncation may be lost with the tail, which is harmless:
//! the entries come back, and what made them void comes again.
//!
//! It does not know what an entry says, nor when it is committed.

mod cache;
mod record;
mod replay;
mod replica;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_env::{Env, switch};
use quorate_log::{Completion, Durability, Heard, Log, LogOptions, Lost, Position, WhenFull};

use crate::codec::{decode_payload, payload_size};
use crate::error::{Error, Result};
use crate::raft::{Entry, EntryPayload, LogId, Vote};
use crate::types::{GroupId, ReplicaId};

use cache::Cache;
pub(crate) use record::Of;
use record::Place;
use replay::Replaying;
use replica::{Meta, Replica};

pub(crate) use storage::GroupLog;

/// A record holds at most about this much of an append, so that it always fits a segment.
const RECORD_BYTES: usize = 4 << 20;

/// The log of a node. Clones are one log.
#[derive(Clone)]
pub(crate) struct SharedLog {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    log: Log,
    cache: Cache,
    /// Guards who exists. Held while a state record is made and queued, and while a replica comes or
    /// goes, so that a state record is never wrong about that. Taken before any replica's lock.
    replicas: Mutex<BTreeMap<GroupId, Arc<Replica>>>,
    damages: Mutex<Vec<LogDamage>>,
    is_damaged: AtomicBool,
}

/// Records of the log that are damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDamage {
    /// The replicas whose they are; `None` if that can't be told: all of the node.
    pub replicas: Option<BTreeSet<(GroupId, ReplicaId)>>,
    /// What is wrong, and where.
    pub what: String,
}

/// Hears of damage, as the log is opened; an error text keeps it from opening.
pub type OnDamage<'a> = &'a mut dyn FnMut(&[LogDamage]) -> std::result::Result<(), String>;

impl SharedLog {
    /// Opens a log that must be sound.
    #[cfg(test)]
    pub fn open(env: &Env, dir: &Path, segment_bytes: u64, cache_bytes: usize) -> Result<Self> {
        let mut refuse = |damages: &[LogDamage]| {
            let whats = damages.iter().map(|damage| damage.what.as_str());
            Err(whats.collect::<Vec<_>>().join("; "))
        };
        Self::open_with_damage(env, dir, (segment_bytes, cache_bytes), &mut refuse)
    }

    /// Opens the log in `dir`, replaying what is there. Blocks. Of damage the owner hears before it is mended, and must
    /// see to it then that none of the replicas it names is ever opened again. Nothing of them is here any more.
    pub fn open_with_damage(
        env: &Env,
        dir: &Path,
        (segment_bytes, cache_bytes): (u64, usize),
        on_damage: OnDamage<'_>,
    ) -> Result<Self> {
        let cache = Cache::new(cache_bytes);
        let mut replaying = Replaying::default();
        let options = LogOptions {
            segment_bytes,
            // A replica can't take back an entry or a vote.
            when_full: WhenFull::Wait,
            ..LogOptions::default()
        };
        let mut hear = |heard: Heard<'_>| match heard {
            Heard::Record(at, bytes) => {
                let record = record::decode(Bytes::copy_from_slice(bytes));
                let record = record.map_err(|e| e.to_string())?;
                replaying.replay(&cache, at, record);
                Ok(())
            }
            Heard::Lost(lost, payload) => {
                replaying.lose(lost, payload.and_then(record::owner));
                Ok(())
            }
        };
        let opened = Log::open_with_damage(env, dir, options, &mut hear);
        let (log, lost) = opened.map_err(log_error)?;
        let (replicas, damages) = replaying.end();
        if !damages.is_empty() {
            on_damage(&damages).map_err(Error::Corrupt)?;
        }
        for replica in replicas.values() {
            let mut state = replica.state.lock();
            if !state.is_whole() {
                let group = replica.of.group;
                return Err(Error::Corrupt(format!(
                    "the log of group {group} has a hole"
                )));
            }
            if state.committed.is_none() {
                state.committed = state.purged;
            }
        }
        let replicas = Mutex::new(replicas);
        let log = SharedLog {
            inner: Arc::new(Inner {
                env: env.clone(),
                log,
                cache,
                replicas,
                damages: Mutex::default(),
                is_damaged: AtomicBool::new(false),
            }),
        };
        if !lost.is_empty() {
            log.mend(&lost)?;
        }
        Ok(log)
    }

    /// First it is durable that nothing of damaged replicas counts, then what told of the damage goes.
    fn mend(&self, lost: &[Lost]) -> Result<()> {
        let states: Vec<_> = {
            let replicas = self.inner.replicas.lock();
            let state = |replica: &Arc<Replica>| replica.state.lock().checkpoint(replica.of);
            replicas.values().map(state).collect()
        };
        let record = record::state(&states);
        self.submit(&record, None).map_err(log_error)?;
        self.inner.log.sync().map_err(log_error)?;
        self.inner.log.mend(lost).map_err(log_error)
    }

    /// Whether a record was found damaged that was not asked for since.
    pub fn is_damaged(&self) -> bool {
        self.inner.is_damaged.load(Ordering::Acquire)
    }

    /// What was found damaged by reading since this was last asked.
    pub fn take_damages(&self) -> Vec<LogDamage> {
        let mut damages = self.inner.damages.lock();
        self.inner.is_damaged.store(false, Ordering::Release);
        std::mem::take(&mut *damages)
    }

    fn note_damage(&self, of: Of, error: &quorate_log::Error) {
        if error.kind() == quorate_log::ErrorKind::Corruption {
            self.inner.damages.lock().push(LogDamage {
                replicas: Some(BTreeSet::from([(of.group, of.replica)])),
                what: error.to_string(),
            });
            self.inner.is_damaged.store(true, Ordering::Release);
        }
    }

    /// The replicas that have something in the log.
    pub fn stored(&self) -> Vec<(GroupId, ReplicaId)> {
        let replicas = self.inner.replicas.lock();
        let stored = replicas
            .values()
            .filter(|replica| !replica.state.lock().is_blank());
        stored
            .map(|replica| (replica.of.group, replica.of.replica))
            .collect()
    }

    /// The log of one replica, new or stored.
    pub fn open_replica(&self, group: GroupId, replica: ReplicaId) -> Result<GroupLog> {
        let of = Of { group, replica };
        let mut replicas = self.inner.replicas.lock();
        let found = replicas
            .entry(group)
            .or_insert_with(|| Arc::new(Replica::new(of)));
        if found.of != of && found.state.lock().is_blank() {
            *found = Arc::new(Replica::new(of));
        }
        if found.of != of {
            let message = format!(
                "group {group} is stored here as replica {}",
                found.of.replica
            );
            return Err(Error::Invalid(message));
        }
        Ok(GroupLog::new(self.clone(), Arc::clone(found)))
    }

    /// Forgets a replica for good; `done` hears when that is durable.
    pub fn remove_replica(&self, group: GroupId, done: Completion) -> Result<()> {
        let mut replicas = self.inner.replicas.lock();
        let Some(replica) = replicas.remove(&group) else {
            done(Ok(()));
            return Ok(());
        };
        self.submit(&record::removed(replica.of), Some(done))
            .map(|_| ())
            .map_err(log_error)
    }

    /// The size of the log on disk, in bytes.
    pub fn bytes(&self) -> u64 {
        self.inner.log.size_bytes()
    }

    /// Whether entries and votes wait because the disk is full.
    pub fn is_full(&self) -> bool {
        self.inner.log.is_full()
    }

    /// Why nothing is written any more, if the disk failed.
    pub fn failure(&self) -> Option<Error> {
        self.inner.log.failure().map(log_error)
    }

    /// The node stops: what waits for space fails.
    pub fn stop_waiting(&self) {
        self.inner.log.refuse_when_full();
    }

    /// Waits until all submitted so far is durable. Blocks.
    pub fn sync(&self) -> Result<()> {
        self.inner.log.sync().map_err(log_error)
    }

    /// The groups whose entries pin the `segments` oldest segments, each with the index up to which
    /// it must be purged to let go of them.
    pub fn pinning(&self, segments: u64) -> BTreeMap<GroupId, u64> {
        let below = self.inner.log.first_segment() + segments;
        let replicas = self.inner.replicas.lock();
        let pins = |replica: &Arc<Replica>| {
            let upto = replica.state.lock().last_below(below)?;
            Some((replica.of.group, upto))
        };
        replicas.values().filter_map(pins).collect()
    }

    /// Releases the segments that nobody needs; returns the bytes freed. Blocks.
    pub fn release_segments(&self) -> Result<u64> {
        let log = &self.inner.log;
        if log.is_full() {
            // The record that must come first would wait too.
            return Ok(0);
        }
        let before = log.size_bytes();
        let keep = {
            let replicas = self.inner.replicas.lock();
            // Whatever is submitted from here on lies in this segment or later.
            let tail = log.end().segment;
            let oldest = |replica: &Arc<Replica>| replica.state.lock().oldest_segment();
            let keep = replicas
                .values()
                .filter_map(oldest)
                .min()
                .map_or(tail, |at| at.min(tail));
            if keep <= log.first_segment() {
                return Ok(0);
            }
            let states: Vec<_> = replicas
                .values()
                .map(|r| r.state.lock().checkpoint(r.of))
                .collect();
            if !broken(Break::StateLeftOut) && !switch::bug("votes_released_with_segments") {
                let record = record::state(&states);
                self.submit(&record, None).map_err(log_error)?;
            }
            keep
        };
        log.sync().map_err(log_error)?;
        log.release(keep).map_err(log_error)?;
        Ok(before.saturating_sub(log.size_bytes()))
    }

    fn submit(&self, record: &[u8], done: Option<Completion>) -> quorate_log::Result<Position> {
        self.inner.log.submit(&[record], Durability::Synced, done)
    }

    /// Appends entries that follow those there. They can be read when this returns; `done` hears
    /// when they, and everything before them, are durable.
    fn append(&self, replica: &Arc<Replica>, entries: Vec<Entry>, done: Completion) -> Result<()> {
        let Some(first) = entries.first().map(|entry| entry.log_id.index) else {
            self.submit_empty(replica, done)?;
            return Ok(());
        };
        let count = entries.len();
        let payload_bytes: usize = entries.iter().map(payload_size).sum();
        let mut done = Some(done);
        let mut state = replica.state.lock();
        let mut rest = entries;
        while !rest.is_empty() {
            let later = rest.split_off(chunk_len(&rest));
            let mut places = Vec::with_capacity(rest.len());
            let committed = state.committed;
            let record = record::entries(replica.of, committed.as_ref(), &rest, &mut places);
            let done = if later.is_empty() { done.take() } else { None };
            let at = self.submit(&record, done).map_err(log_error)?;
            for (entry, (offset, length)) in rest.into_iter().zip(places) {
                switch::probe("appended", || probe_of(replica.of, &entry));
                let place = Place {
                    record: at,
                    at: offset,
                    length,
                };
                let pushed = state.push(Meta::new(entry, place));
                debug_assert!(pushed, "an append leaves a hole");
            }
            rest = later;
        }
        drop(state);
        self.inner.cache.added(replica, first, count, payload_bytes);
        Ok(())
    }

    /// Nothing to append, but the completion has its place in the order.
    fn submit_empty(&self, replica: &Arc<Replica>, done: Completion) -> Result<()> {
        let state = replica.state.lock();
        let record = record::entries(replica.of, state.committed.as_ref(), &[], &mut Vec::new());
        self.submit(&record, Some(done))
            .map(|_| ())
            .map_err(log_error)
    }

    /// Keeps a vote; `done` hears when it is durable.
    fn save_vote(&self, replica: &Replica, vote: &Vote, done: Completion) -> Result<()> {
        let mut state = replica.state.lock();
        if switch::bug("vote_not_kept") {
            state.vote = Some(*vote);
            drop(state);
            done(Ok(()));
            return Ok(());
        }
        let record = record::vote(replica.of, vote);
        let durability = match broken(Break::VoteUnsynced) {
            true => Durability::Buffered,
            false => Durability::Synced,
        };
        let queued = self.inner.log.submit(&[&record], durability, Some(done));
        queued.map_err(log_error)?;
        state.vote = Some(*vote);
        Ok(())
    }

    /// Drops the entries past `after`.
    fn truncate(&self, replica: &Replica, after: Option<LogId>) -> Result<()> {
        let mut state = replica.state.lock();
        let record = record::truncate(replica.of, after.as_ref());
        self.inner
            .log
            .submit(&[&record], Durability::Buffered, None)
            .map_err(log_error)?;
        let from = after.map(|id| id.index + 1);
        let of = replica.of;
        switch::probe("truncated", || [of.group, of.replica, from.unwrap_or(0)]);
        if !switch::bug("conflicting_entries_kept") {
            state.truncate(from);
        }
        Ok(())
    }

    /// Drops the entries up to `upto`.
    fn purge(&self, replica: &Replica, upto: LogId) -> Result<()> {
        let mut state = replica.state.lock();
        let record = record::purge(replica.of, &upto);
        self.inner
            .log
            .submit(&[&record], Durability::Buffered, None)
            .map_err(log_error)?;
        state.purge(upto);
        Ok(())
    }

    /// The entries of this range that are here, as many as fit `bytes_max` and at least one. Those
    /// whose payload the cache lost come as a place to read.
    fn collect(replica: &Replica, indexes: Range<u64>, bytes_max: usize) -> Vec<Found> {
        let state = replica.state.lock();
        let mut found = Vec::new();
        let mut bytes = 0;
        for meta in state.entries.range(state.positions(indexes)) {
            bytes += meta.place.length as usize;
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(match &meta.cached {
                Some(payload) if !switch::fires("replication.cache_is_cold") => {
                    Found::Here(Entry {
                        log_id: meta.id,
                        payload: payload.clone(),
                    })
                }
                _ => Found::At(meta.id, meta.tag, meta.place),
            });
        }
        found
    }

    /// Reads what [`SharedLog::collect`] found only the places of. Blocks.
    fn load(&self, of: Of, found: Vec<Found>) -> io::Result<Vec<Entry>> {
        let mut record: Option<(Position, Bytes)> = None;
        let mut entries = Vec::with_capacity(found.len());
        for item in found {
            let (log_id, tag, place) = match item {
                Found::Here(entry) => {
                    entries.push(entry);
                    continue;
                }
                Found::At(id, tag, place) => (id, tag, place),
            };
            let bytes = match record.take() {
                Some((at, bytes)) if at == place.record => bytes,
                _ => Bytes::from(
                    self.inner
                        .log
                        .read(place.record)
                        .inspect_err(|error| self.note_damage(of, error))
                        .map_err(io::Error::other)?,
                ),
            };
            let payload = payload_at(&bytes, tag, place)?;
            record = Some((place.record, bytes));
            entries.push(Entry { log_id, payload });
        }
        Ok(entries)
    }
}

/// What the crash check breaks on purpose, to prove that it notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// A vote is called durable when it is not.
    VoteUnsynced,
    /// Segments go without a record of the votes and purges in them.
    StateLeftOut,
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Break>> = const { std::cell::Cell::new(None) };
}

/// Whether a test has broken this, on this thread.
#[cfg(test)]
fn broken(what: Break) -> bool {
    BROKEN.get() == Some(what)
}

#[cfg(not(test))]
fn broken(_what: Break) -> bool {
    false
}

/// An entry, or where it lies.
enum Found {
    Here(Entry),
    At(LogId, u8, Place),
}

fn payload_at(record: &Bytes, tag: u8, place: Place) -> io::Result<EntryPayload> {
    let range = place.at as usize..place.at as usize + place.length as usize;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "an entry is not where it was");
    if range.end > record.len() {
        return Err(damaged());
    }
    decode_payload(tag, record.slice(range)).map_err(|_| damaged())
}

/// What the oracles of a simulation hear of an entry.
pub(crate) fn probe_of(of: Of, entry: &Entry) -> [u64; 6] {
    let id = entry.log_id;
    let (term, leader) = (id.leader_id.term, id.leader_id.node_id);
    let says = crate::codec::checksum(entry);
    [of.group, of.replica, id.index, term, leader, says]
}

/// How many entries go into one record: at least one.
fn chunk_len(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fits = entries.iter().take_while(|entry| {
        bytes += payload_size(entry) + crate::codec::ENTRY_HEADER;
        bytes <= RECORD_BYTES
    });
    fits.count().max(1)
}

fn log_error(error: quorate_log::Error) -> Error {
    match error.kind() {
        quorate_log::ErrorKind::Corruption | quorate_log::ErrorKind::NewerFormat => {
            Error::Corrupt(error.to_string())
        }
        _ => Error::Io(error.to_string()),
    }
}

//! The shared log as openraft sees it: [`GroupLog`], one replica's log storage and reader.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;

use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use quorate_env::{JobClass, switch};
use tokio::sync::oneshot;

use super::replica::Replica;
use super::{Found, Of, SharedLog};
use crate::error::Error;
use crate::raft::{Entry, LogId, TypeConfig, Vote};

/// One replica's part of the shared log. Clones are one log.
#[derive(Clone)]
pub(crate) struct GroupLog {
    shared: SharedLog,
    replica: Arc<Replica>,
    append_bytes_max: usize,
    apply_bytes_max: usize,
}

impl GroupLog {
    pub(super) fn new(shared: SharedLog, replica: Arc<Replica>) -> GroupLog {
        GroupLog {
            shared,
            replica,
            append_bytes_max: 1 << 20,
            apply_bytes_max: 4 << 20,
        }
    }

    /// The same log with other limits: bytes of entries in one message to a peer, and in one step of
    /// applying.
    pub fn with_limits(mut self, append_bytes_max: usize, apply_bytes_max: usize) -> GroupLog {
        self.append_bytes_max = append_bytes_max;
        self.apply_bytes_max = apply_bytes_max;
        self
    }

    /// The id of the entry at this index, if it is here or the last one purged.
    pub fn id_at(&self, index: u64) -> Option<LogId> {
        let state = self.replica.state.lock();
        if let Some(purged) = state.purged.filter(|id| id.index == index) {
            return Some(purged);
        }
        let at = state.positions(index..index.saturating_add(1));
        state.entries.range(at).next().map(|meta| meta.id)
    }

    /// The vote that is stored, or about to be.
    pub fn vote(&self) -> Option<Vote> {
        self.replica.state.lock().vote
    }

    /// Which replica's it is.
    pub fn of(&self) -> Of {
        self.replica.of
    }

    /// The last id purged.
    pub fn purged(&self) -> Option<LogId> {
        self.replica.state.lock().purged
    }

    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let found = SharedLog::collect(&self.replica, start..end, bytes_max);
        if found.iter().all(|item| matches!(item, Found::Here(_))) {
            return self.shared.load(self.replica.of, found);
        }
        let (tx, rx) = oneshot::channel();
        let (shared, of) = (self.shared.clone(), self.replica.of);
        let job = move || {
            let _ = tx.send(shared.load(of, found));
        };
        self.shared
            .inner
            .env
            .jobs
            .spawn(JobClass::Read, Box::new(job));
        match rx.await.map_err(|_| stopped())? {
            Ok(entries) => Ok(entries),
            Err(error) => {
                // Entries purged meanwhile may be gone from the disk; that is no failure.
                let purged = self.purged().is_some_and(|purged| purged.index >= start);
                if purged { Ok(Vec::new()) } else { Err(error) }
            }
        }
    }
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let bytes_max = match switch::fires("replication.append_of_one_entry") {
            true => 0,
            false => self.append_bytes_max,
        };
        self.read(start, end, bytes_max).await
    }

    /// What is to be applied, read in steps, so that a replica that is far behind does not take all
    /// of it into memory.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let log = self.clone();
        let step = (log, start, Vec::new().into_iter());
        Box::pin(stream::try_unfold(
            step,
            move |(log, start, mut ready)| async move {
                if let Some(entry) = ready.next() {
                    return Ok(Some((entry, (log, start, ready))));
                }
                if start >= end {
                    return Ok(None);
                }
                let mut ready = log.read(start, end, log.apply_bytes_max).await?.into_iter();
                let start = start + ready.len() as u64;
                let next = ready.next();
                Ok(next.map(|entry| (entry, (log, start, ready))))
            },
        ))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.replica.state.lock().vote)
    }

    /// From memory. The *last* id under each leader: the trait's documentation says the first ones,
    /// but openraft's own reading of the list is this.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        let (first, last) = (range.start().index, range.end().index);
        let state = self.replica.state.lock();
        let mut keys: Vec<LogId> = Vec::new();
        for meta in state
            .entries
            .range(state.positions(first..last.saturating_add(1)))
        {
            match keys
                .last_mut()
                .filter(|key| key.leader_id == meta.id.leader_id)
            {
                Some(key) => *key = meta.id,
                None => keys.push(meta.id),
            }
        }
        Ok(keys)
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.replica.state.lock();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last(),
        })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        let done = Box::new(move |result| {
            let _ = tx.send(result);
        });
        self.shared
            .save_vote(&self.replica, vote, done)
            .map_err(io_error)?;
        rx.await.map_err(|_| stopped())?.map_err(io::Error::other)
    }

    /// In memory only: it rides along with the next entries.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.replica.state.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.replica.state.lock().committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = <TypeConfig as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect();
        let done = Box::new(move |result: quorate_log::Result<()>| {
            callback.io_completed(result.map_err(io::Error::other));
        });
        self.shared
            .append(&self.replica, entries, done)
            .map_err(io_error)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.shared
            .truncate(&self.replica, last_log_id)
            .map_err(io_error)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.shared.purge(&self.replica, log_id).map_err(io_error)
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn io_error(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}

fn stopped() -> io::Error {
    io::Error::other("the log has stopped")
}

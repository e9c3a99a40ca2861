//! The state machine as openraft sees it: [`Machine`] takes committed entries in steps, has the
//! [`StateMachine`] apply each step on a thread of `env::Jobs`, and answers those who proposed.
//!
//! Two kinds of snapshot meet here. What openraft "builds" only names the flushed position, so that
//! it lets the log be purged up to there: it holds no data and costs nothing. What is sent to a
//! replica that is too far behind is opened at that moment, at the position applied then.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::errors::Fatal;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use quorate_env::{JobClass, Jobs, switch};
use tokio::sync::{oneshot, watch};

use crate::codec::{Reader, payload_size, put_membership, put_stored_membership};
use crate::log::{GroupLog, Of, probe_of};
use crate::raft::{
    Entry, EntryPayload, LogId, Payload, StoredMembership, TypeConfig, entry_id, log_id,
};
use crate::state_machine::{
    Applied, Command, CommandBody, SnapshotSink, SnapshotSource, StateMachine,
};
use crate::types::StopReason;
use crate::watch::AppliedWatch;

pub(crate) type SnapshotMeta = openraft::SnapshotMeta<crate::raft::LeaderId, u64, u64>;
pub(crate) type Snapshot = openraft::Snapshot<crate::raft::LeaderId, u64, u64, SnapshotData>;

/// How late a simulation may have entries applied.
const LATE_MAX: Duration = Duration::from_millis(60);

const COPY_CHUNK_BYTES: usize = 1 << 20;

/// What a snapshot carries.
pub(crate) enum SnapshotData {
    /// Nothing but its position.
    Position,
    /// To be read and sent.
    Source(Box<dyn SnapshotSource>),
    /// Received in full, to be installed.
    Received(Box<dyn SnapshotSink>),
}

/// One replica's state machine.
pub(crate) struct Machine {
    machine: Arc<dyn StateMachine>,
    jobs: Arc<dyn Jobs>,
    log: GroupLog,
    watch: Arc<AppliedWatch>,
    apply_bytes_max: usize,
    last: Option<LogId>,
    /// The membership in force at the flushed position, and those since; never empty.
    memberships: VecDeque<StoredMembership>,
    /// Set once openraft has read the initial state.
    live: Arc<AtomicBool>,
    failure: Arc<Failure>,
    /// Closes when openraft lets go of the machine, and so no job of it is under way any more.
    held: watch::Sender<()>,
}

/// The first thing that the state machine failed of: openraft keeps only its text.
#[derive(Default)]
pub(crate) struct Failure {
    first: OnceLock<(io::ErrorKind, String)>,
}

impl Failure {
    fn note<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done {
            let _ = self.first.set((error.kind(), error.to_string()));
        }
        done
    }

    /// Why a replica stopped, of what openraft says of it.
    pub fn stop_reason(&self, fatal: &Fatal<TypeConfig>) -> StopReason {
        let mut message = fatal.to_string();
        let mut may_pass = false;
        if let Some((kind, text)) = self.first.get() {
            if message.ends_with(MACHINE_GONE) {
                message = format!("{message}: {text}");
            }
            let passes = matches!(*kind, io::ErrorKind::StorageFull | DROPPED);
            may_pass = passes && message.contains(text);
        }
        StopReason { message, may_pass }
    }
}

/// How what openraft says ends when it has more to apply before it has heard why its state machine
/// ended.
const MACHINE_GONE: &str = ": channel closed";

/// The kind of error of a job that was dropped.
const DROPPED: io::ErrorKind = io::ErrorKind::Interrupted;

/// Runs work that may block on a thread for it.
pub(crate) async fn run_job<T: Send + 'static>(
    jobs: &Arc<dyn Jobs>,
    class: JobClass,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (tx, rx) = oneshot::channel();
    let job = move || {
        let _ = tx.send(work());
    };
    jobs.spawn(class, Box::new(job));
    rx.await
        .map_err(|_| io::Error::new(DROPPED, "a job was dropped: the node is stopping"))
}

/// The position of a state machine in openraft's terms.
pub(crate) fn decode_applied(applied: &Applied) -> io::Result<(Option<LogId>, StoredMembership)> {
    let membership = if applied.membership.is_empty() {
        StoredMembership::default()
    } else {
        let mut reader = Reader::new(applied.membership.clone());
        let stored = reader.stored_membership();
        stored.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?
    };
    Ok((applied.entry.map(log_id), membership))
}

/// And back.
pub(crate) fn encode_applied(meta: &SnapshotMeta) -> Applied {
    let mut membership = Vec::new();
    put_stored_membership(&mut membership, &meta.last_membership);
    Applied {
        entry: meta.last_log_id.as_ref().map(entry_id),
        membership: membership.into(),
    }
}

impl Machine {
    /// Wraps a state machine that stands at `applied`. `live` is set by the caller once openraft runs.
    pub fn new(
        machine: Arc<dyn StateMachine>,
        jobs: Arc<dyn Jobs>,
        log: GroupLog,
        watch: Arc<AppliedWatch>,
        applied: &Applied,
        apply_bytes_max: usize,
        live: Arc<AtomicBool>,
    ) -> io::Result<Machine> {
        let (last, membership) = decode_applied(applied)?;
        if let Some(last) = last {
            watch.advance(last.index);
        }
        let memberships = VecDeque::from([membership]);
        Ok(Machine {
            machine,
            jobs,
            log,
            watch,
            apply_bytes_max,
            last,
            memberships,
            live,
            failure: Arc::default(),
            held: watch::Sender::new(()),
        })
    }

    /// What is left to the group when openraft has the machine.
    pub fn handle(&self) -> Handle {
        Handle {
            failure: Arc::clone(&self.failure),
            let_go: self.held.subscribe(),
        }
    }

    /// The flushed position, and the membership there.
    fn flushed(&mut self) -> Option<SnapshotMeta> {
        let flushed = self.machine.flushed()?;
        let last = self.last.filter(|last| last.index <= flushed);
        let last = last.or_else(|| self.log.id_at(flushed))?;
        let follows = |membership: &StoredMembership| {
            membership
                .log_id()
                .as_ref()
                .is_none_or(|id| id.index <= last.index)
        };
        while self.memberships.get(1).is_some_and(follows) {
            self.memberships.pop_front();
        }
        let last_membership = self.memberships.front().cloned()?;
        Some(SnapshotMeta {
            last_log_id: Some(last),
            last_membership,
        })
    }

    async fn apply_step(&mut self, step: &mut Step) -> io::Result<()> {
        let Some(last) = step.last else { return Ok(()) };
        if let Some(late) = switch::delay("replication.apply_late", LATE_MAX) {
            tokio::time::sleep(late).await;
        }
        let commands = std::mem::take(&mut step.commands);
        let machine = Arc::clone(&self.machine);
        let count = commands.len();
        let work = move || machine.apply(&commands);
        let results = run_job(&self.jobs, JobClass::Apply, work).await;
        let results = self.failure.note(results.flatten())?;
        if results.len() != count {
            return Err(io::Error::other(
                "the state machine answered not every command",
            ));
        }
        self.last = Some(last);
        self.memberships.extend(step.memberships.drain(..));
        // First those who wait for the index, then those who proposed: both may read at once.
        self.watch.advance(last.index);
        for (result, responder) in results.into_iter().zip(step.responders.drain(..)) {
            if let Some(responder) = responder {
                responder.send(result);
            }
        }
        step.bytes = 0;
        step.last = None;
        Ok(())
    }
}

/// What is left to the group of a machine that openraft holds.
pub(crate) struct Handle {
    pub failure: Arc<Failure>,
    let_go: watch::Receiver<()>,
}

impl Handle {
    /// Waits until openraft has let go of the machine. REQUIRES: it was told to stop.
    pub async fn let_go(&self) {
        let mut let_go = self.let_go.clone();
        // Nothing is ever sent: this ends when the sender is gone.
        while let_go.changed().await.is_ok() {}
    }
}

/// openraft lets go of it when the replica stops, for whatever reason: nobody shall wait on.
impl Drop for Machine {
    fn drop(&mut self) {
        self.watch.close();
    }
}

/// Entries gathered to be applied in one call.
#[derive(Default)]
struct Step {
    commands: Vec<Command>,
    responders: Vec<Option<openraft::storage::ApplyResponder<TypeConfig>>>,
    memberships: Vec<StoredMembership>,
    bytes: usize,
    last: Option<LogId>,
}

impl Step {
    fn add(&mut self, of: Of, (entry, responder): EntryResponder<TypeConfig>) {
        switch::probe("applied", || probe_of(of, &entry));
        self.bytes += payload_size(&entry) + 64;
        self.last = Some(entry.log_id);
        self.responders.push(responder);
        let command = command(entry, &mut self.memberships);
        self.commands.push(command);
    }
}

fn command(entry: Entry, memberships: &mut Vec<StoredMembership>) -> Command {
    let id = entry_id(&entry.log_id);
    let body = match entry.payload {
        EntryPayload::Blank => CommandBody::Blank,
        EntryPayload::Normal(Payload(bytes)) => CommandBody::Write(bytes),
        EntryPayload::Membership(membership) => {
            let mut out = Vec::new();
            crate::codec::put_opt_log_id(&mut out, Some(&entry.log_id));
            put_membership(&mut out, &membership);
            memberships.push(StoredMembership::new(Some(entry.log_id), membership));
            CommandBody::Membership(Bytes::from(out))
        }
    };
    Command { id, body }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = PositionBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((
            self.last,
            self.memberships.back().cloned().unwrap_or_default(),
        ))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut step = Step::default();
        while let Some(item) = entries.next().await {
            step.add(self.log.of(), self.failure.note(item)?);
            let alone = switch::fires("replication.apply_one_by_one");
            if step.bytes >= self.apply_bytes_max || alone {
                self.apply_step(&mut step).await?;
            }
        }
        self.apply_step(&mut step).await
    }

    /// When forced, there must be one: of the position before the first entry if nothing is flushed.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<PositionBuilder> {
        let meta = self.flushed();
        (meta.is_some() || force).then_some(PositionBuilder { meta })
    }

    async fn get_snapshot_builder(&mut self) -> PositionBuilder {
        PositionBuilder {
            meta: self.flushed(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let applied = encode_applied(meta);
        let machine = Arc::clone(&self.machine);
        let work = move || match snapshot {
            SnapshotData::Received(sink) => sink.install(&applied),
            SnapshotData::Source(source) => copy(source, machine.receive()?)?.install(&applied),
            SnapshotData::Position => Err(io::Error::other(
                "a snapshot without data can't be installed",
            )),
        };
        let installed = run_job(&self.jobs, JobClass::Control, work).await;
        self.failure.note(installed.flatten())?;
        self.last = meta.last_log_id;
        if let Some(last) = self.last {
            let (of, by) = (self.log.of(), last.leader_id);
            switch::probe("installed", || {
                [of.group, of.replica, last.index, by.term, by.node_id]
            });
        }
        self.memberships = VecDeque::from([meta.last_membership.clone()]);
        if let Some(last) = self.last {
            self.watch.advance(last.index);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        if !self.live.load(Ordering::Acquire) {
            let meta = self.flushed();
            return Ok(meta.map(|meta| Snapshot {
                meta,
                snapshot: SnapshotData::Position,
            }));
        }
        if self.last.is_none() {
            return Ok(None);
        }
        let machine = Arc::clone(&self.machine);
        let source = run_job(&self.jobs, JobClass::Read, move || machine.snapshot()).await;
        let source = self.failure.note(source.flatten())?;
        let (last_log_id, last_membership) = decode_applied(source.applied())?;
        let meta = SnapshotMeta {
            last_log_id,
            last_membership,
        };
        Ok(Some(Snapshot {
            meta,
            snapshot: SnapshotData::Source(source),
        }))
    }
}

/// Hands a snapshot over within the node.
fn copy(
    mut source: Box<dyn SnapshotSource>,
    mut sink: Box<dyn SnapshotSink>,
) -> io::Result<Box<dyn SnapshotSink>> {
    while let Some(chunk) = source.next_chunk(COPY_CHUNK_BYTES)? {
        sink.write(chunk)?;
    }
    Ok(sink)
}

/// "Builds" a snapshot that is only a position.
pub(crate) struct PositionBuilder {
    meta: Option<SnapshotMeta>,
}

impl RaftSnapshotBuilder<TypeConfig> for PositionBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let meta = self.meta.clone().unwrap_or_default();
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Position,
        })
    }
}

#[cfg(test)]
mod tests {
    use openraft::StorageError;
    use openraft::type_config::TypeConfigExt;

    use super::*;
    use crate::raft::LeaderId;

    fn stopped(failure: io::Result<()>, said: &str) -> StopReason {
        let noted = Failure::default();
        let _ = noted.note(failure);
        let id = LogId {
            leader_id: LeaderId {
                term: 1,
                node_id: 6,
            },
            index: 3,
        };
        let error = StorageError::apply(id, TypeConfig::err_from_string(said));
        noted.stop_reason(&Fatal::StorageError(error))
    }

    #[test]
    fn stop_reason_names_the_failure_also_where_openraft_found_the_machine_gone() {
        let full = || Err(io::Error::new(io::ErrorKind::StorageFull, "no space"));
        for said in ["no space", "channel closed"] {
            let reason = stopped(full(), said);
            assert!(reason.may_pass, "{reason:?}");
            assert!(reason.message.ends_with("no space"), "{reason:?}");
        }
        // The log failed of something else, or nothing is known.
        let others = [
            (full(), "log"),
            (full(), "callback channel closed"),
            (Ok(()), "channel closed"),
        ];
        for (failure, said) in others {
            let reason = stopped(failure, said);
            assert!(
                !reason.may_pass && reason.message.ends_with(said),
                "{reason:?}"
            );
        }
        let damage = Err(io::Error::new(io::ErrorKind::InvalidData, "damaged"));
        let reason = stopped(damage, "channel closed");
        assert!(
            !reason.may_pass && reason.message.ends_with("damaged"),
            "{reason:?}"
        );
    }
}

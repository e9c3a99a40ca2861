//! The shared log: openraft's own suite, recovery, releasing, and a crash at every disk operation.

mod crash;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::StorageError;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use quorate_env::sim::SimDisk;
use quorate_env::{Env, Random, RealClock, ThreadJobs};

use super::{GroupLog, SharedLog};
use crate::machine::Machine;
use crate::raft::{Entry, EntryPayload, LeaderId, LogId, Payload, TypeConfig, Vote};
use crate::state_machine::{Applied, StateMachine};
use crate::testing::MemoryMachine;
use crate::watch::AppliedWatch;

pub(super) fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 1 }, index)
}

pub(super) fn entry(term: u64, index: u64, size: usize) -> Entry {
    let text = format!("{term}.{index}.");
    let payload: Vec<u8> = text.bytes().cycle().take(size).collect();
    Entry {
        log_id: id(term, index),
        payload: EntryPayload::Normal(Payload(payload.into())),
    }
}

fn vote(term: u64) -> Vote {
    Vote {
        leader_id: LeaderId { term, node_id: 1 },
        committed: false,
    }
}

fn real_env(disk: &SimDisk) -> Env {
    Env {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(RealClock::new()),
        jobs: Arc::new(ThreadJobs::new(1)),
        random: Random::from_seed(1),
    }
}

fn open(disk: &SimDisk, cache_bytes: usize) -> SharedLog {
    SharedLog::open(&real_env(disk), Path::new("/log"), 64 << 10, cache_bytes).expect("opens")
}

fn disk() -> SimDisk {
    SimDisk::new(Random::from_seed(7))
}

async fn append(log: &mut GroupLog, entries: Vec<Entry>) {
    use openraft::storage::RaftLogStorageExt;
    log.blocking_append(entries).await.expect("appends");
}

fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test);
}

struct Builder;

impl StoreBuilder<TypeConfig, GroupLog, Machine> for Builder {
    async fn build(&self) -> Result<((), GroupLog, Machine), StorageError<TypeConfig>> {
        let disk = disk();
        let env = real_env(&disk);
        // A cache of nothing: every read goes to the disk.
        let shared = SharedLog::open(&env, Path::new("/log"), 64 << 10, 0).expect("opens");
        let log = shared.open_replica(1, 0).expect("opens");
        let inner: Arc<dyn StateMachine> = Arc::new(Loose(MemoryMachine::flushing()));
        let live = Arc::new(true.into());
        let watch = Arc::new(AppliedWatch::default());
        let applied = Applied::default();
        let machine = Machine::new(
            inner,
            Arc::clone(&env.jobs),
            log.clone(),
            watch,
            &applied,
            1 << 20,
            live,
        );
        Ok(((), log, machine.expect("is empty")))
    }
}

/// The suite applies entries with holes, which no group does.
struct Loose(MemoryMachine);

impl StateMachine for Loose {
    fn applied(&self) -> std::io::Result<Applied> {
        self.0.applied()
    }

    fn apply(&self, commands: &[crate::Command]) -> std::io::Result<Vec<Bytes>> {
        self.0.apply_with_holes(commands)
    }

    fn flushed(&self) -> Option<u64> {
        self.0.flushed()
    }

    fn snapshot(&self) -> std::io::Result<Box<dyn crate::SnapshotSource>> {
        self.0.snapshot()
    }

    fn receive(&self) -> std::io::Result<Box<dyn crate::SnapshotSink>> {
        self.0.receive()
    }
}

#[test]
fn openraft_storage_suite_passes() {
    run(async {
        Suite::test_all(Builder).await.expect("the suite passes");
    });
}

#[test]
fn reopened_log_holds_entries_votes_and_purges_of_all_groups() {
    run(async {
        let disk = disk();
        {
            let shared = open(&disk, 0);
            for group in 1..=3 {
                let mut log = shared.open_replica(group, group * 10).expect("opens");
                log.save_vote(&vote(group)).await.expect("votes");
                append(&mut log, (0..20).map(|n| entry(1, n, 50)).collect()).await;
                log.truncate_after(Some(id(1, 14)))
                    .await
                    .expect("truncates");
                append(&mut log, (15..18).map(|n| entry(2, n, 50)).collect()).await;
                log.save_committed(Some(id(1, 14))).await.expect("notes");
                append(&mut log, vec![entry(2, 18, 50)]).await;
                log.purge(id(1, group)).await.expect("purges");
            }
            shared.sync().expect("syncs");
        }
        let shared = open(&disk.crash(), 0);
        assert_eq!(shared.stored(), vec![(1, 10), (2, 20), (3, 30)]);
        for group in 1..=3 {
            let mut log = shared.open_replica(group, group * 10).expect("opens");
            assert_eq!(log.read_vote().await.expect("reads"), Some(vote(group)));
            assert_eq!(log.read_committed().await.expect("reads"), Some(id(1, 14)));
            let state = log.get_log_state().await.expect("reads");
            assert_eq!(state.last_purged_log_id, Some(id(1, group)));
            assert_eq!(state.last_log_id, Some(id(2, 18)));
            let found = log.try_get_log_entries(..).await.expect("reads");
            let expected: Vec<_> = (group + 1..15)
                .map(|n| entry(1, n, 50))
                .chain((15..19).map(|n| entry(2, n, 50)))
                .collect();
            assert_eq!(found, expected);
            let keys = log
                .get_key_log_ids(id(1, group + 1)..=id(2, 18))
                .await
                .expect("reads");
            assert_eq!(keys, vec![id(1, 14), id(2, 18)]);
        }
    });
}

#[test]
fn released_segments_take_no_vote_with_them() {
    run(async {
        let disk = disk();
        {
            let shared = open(&disk, 1 << 20);
            let mut quiet = shared.open_replica(1, 10).expect("opens");
            quiet.save_vote(&vote(5)).await.expect("votes");
            let mut busy = shared.open_replica(2, 20).expect("opens");
            for n in 0..300 {
                append(&mut busy, vec![entry(1, n, 2000)]).await;
            }
            let before = shared.bytes();
            assert!(shared.pinning(1).contains_key(&2));
            assert_eq!(shared.release_segments().expect("releases"), 0);
            busy.purge(id(1, 290)).await.expect("purges");
            assert!(shared.release_segments().expect("releases") > 0);
            assert!(shared.bytes() < before);
            assert!(shared.pinning(1).is_empty() || shared.pinning(1).contains_key(&2));
        }
        let shared = open(&disk.crash(), 1 << 20);
        let mut quiet = shared.open_replica(1, 10).expect("opens");
        assert_eq!(quiet.read_vote().await.expect("reads"), Some(vote(5)));
        let mut busy = shared.open_replica(2, 20).expect("opens");
        let found = busy.try_get_log_entries(..).await.expect("reads");
        assert_eq!(
            found,
            (291..300).map(|n| entry(1, n, 2000)).collect::<Vec<_>>()
        );
    });
}

#[test]
fn entries_for_a_peer_are_bounded_in_bytes_and_at_least_one() {
    run(async {
        let disk = disk();
        let shared = open(&disk, 1 << 20);
        let mut log = shared
            .open_replica(1, 10)
            .expect("opens")
            .with_limits(1000, 1000);
        append(&mut log, (0..10).map(|n| entry(1, n, 400)).collect()).await;
        append(&mut log, vec![entry(1, 10, 5000)]).await;
        let found = log.limited_get_log_entries(0, 11).await.expect("reads");
        assert_eq!(found.len(), 2);
        let found = log.limited_get_log_entries(10, 11).await.expect("reads");
        assert_eq!(found.len(), 1);
    });
}

#[test]
fn removed_replica_is_gone_and_another_may_take_its_place() {
    run(async {
        let disk = disk();
        {
            let shared = open(&disk, 1 << 20);
            let mut log = shared.open_replica(1, 10).expect("opens");
            log.save_vote(&vote(5)).await.expect("votes");
            assert!(shared.open_replica(1, 11).is_err());
            let (tx, rx) = tokio::sync::oneshot::channel();
            let done = Box::new(move |result| drop(tx.send(result)));
            shared.remove_replica(1, done).expect("removes");
            rx.await.expect("is told").expect("removes");
        }
        let shared = open(&disk.crash(), 1 << 20);
        assert!(shared.stored().is_empty());
        let mut log = shared.open_replica(1, 11).expect("opens");
        assert_eq!(log.read_vote().await.expect("reads"), None);
    });
}

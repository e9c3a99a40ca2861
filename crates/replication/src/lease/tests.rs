//! When a lease holds and when a promise does, on a clock that the test moves.

use std::sync::atomic::{AtomicU64, Ordering};

use quorate_env::RealClock;

use super::*;
use crate::raft::LeaderId;

const MS: Duration = Duration::from_millis(1);
const LENGTH: Duration = Duration::from_millis(40);
const OWN: ReplicaId = 1;

/// A machine that may sleep.
#[derive(Default)]
struct Sleeper(AtomicU64);

impl Clock for Sleeper {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn unix_ms(&self) -> u64 {
        0
    }

    fn slept(&self) -> Option<Duration> {
        let ms = self.0.load(Ordering::Relaxed);
        (ms != u64::MAX).then(|| Duration::from_millis(ms))
    }
}

fn lease() -> Lease {
    Lease::new(LENGTH, Arc::new(Sleeper::default()), OWN, None)
}

fn vote(replica: ReplicaId, committed: bool) -> Vote {
    let leader_id = LeaderId {
        term: 4,
        node_id: replica,
    };
    Vote {
        leader_id,
        committed,
    }
}

fn voters(sets: &[&[ReplicaId]]) -> Vec<BTreeSet<ReplicaId>> {
    sets.iter()
        .map(|set| set.iter().copied().collect())
        .collect()
}

fn three() -> Vec<BTreeSet<ReplicaId>> {
    voters(&[&[1, 2, 3]])
}

#[tokio::test(start_paused = true)]
async fn lease_holds_for_its_length_from_when_a_promised_message_was_sent() {
    let lease = lease();
    assert_eq!(lease.sending().asks, Duration::ZERO, "nobody reads");
    lease.want();
    let sent = lease.sending();
    assert_eq!(sent.asks, LENGTH);
    tokio::time::advance(10 * MS).await;
    assert_eq!(lease.left(OWN, &three()), None, "nobody promised");
    lease.acked(2, sent);
    assert_eq!(lease.left(OWN, &three()), Some(LENGTH / 2));
    tokio::time::advance(15 * MS).await;
    assert_eq!(
        lease.left(OWN, &three()),
        Some(Duration::ZERO),
        "less than half"
    );
    tokio::time::advance(15 * MS).await;
    assert_eq!(lease.left(OWN, &three()), None, "to the end, and no longer");
}

#[tokio::test(start_paused = true)]
async fn lease_needs_a_quorum_of_every_set_and_learners_are_no_help() {
    let lease = lease();
    lease.want();
    let sent = lease.sending();
    lease.acked(9, sent);
    assert_eq!(lease.left(OWN, &three()), None);
    lease.acked(2, sent);
    assert!(lease.left(OWN, &three()).is_some());
    assert_eq!(lease.left(OWN, &voters(&[&[1, 2, 3], &[1, 4, 5]])), None);
    assert_eq!(
        lease.left(OWN, &voters(&[&[2, 3, 4]])),
        None,
        "it votes no more"
    );
    lease.acked(4, sent);
    assert!(
        lease
            .left(OWN, &voters(&[&[1, 2, 3], &[1, 4, 5]]))
            .is_some()
    );
    assert_eq!(lease.left(OWN, &[]), None);
}

#[tokio::test(start_paused = true)]
async fn message_that_asked_for_no_promise_confirms_and_gives_no_lease() {
    let lease = lease();
    let begin = Instant::now();
    let sent = lease.sending();
    lease.want();
    lease.acked(2, sent);
    assert_eq!(lease.left(OWN, &three()), None);
    assert!(lease.is_confirmed(OWN, &three(), begin));
    assert!(!lease.is_confirmed(OWN, &three(), begin + MS));
    tokio::time::advance(WANTED).await;
    assert_eq!(
        lease.sending().asks,
        Duration::ZERO,
        "nobody reads any more"
    );
}

#[tokio::test(start_paused = true)]
async fn sleep_of_the_machine_ends_the_lease() {
    let clock = Arc::new(Sleeper::default());
    let lease = Lease::new(LENGTH, clock.clone(), OWN, None);
    lease.want();
    lease.acked(2, lease.sending());
    assert!(lease.left(OWN, &three()).is_some());
    clock.0.store(1000, Ordering::Relaxed);
    assert_eq!(lease.left(OWN, &three()), None, "it slept for a second");
    assert_eq!(lease.left(OWN, &three()), None, "and that is not forgotten");
    tokio::time::advance(MS).await;
    lease.acked(2, lease.sending());
    assert!(lease.left(OWN, &three()).is_some());
    clock.0.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(
        lease.left(OWN, &three()),
        None,
        "nobody can tell whether it slept"
    );
}

#[tokio::test(start_paused = true)]
async fn promise_lasts_for_twice_the_lease_and_the_longest_counts() {
    let lease = lease();
    assert!(lease.kept().await, "nothing was promised");
    let begin = Instant::now();
    lease.promise(50 * MS);
    lease.promise(20 * MS);
    assert_eq!(lease.owes_until(), Some(begin + 100 * MS));
    assert!(lease.kept().await);
    assert_eq!(begin.elapsed(), 100 * MS);
    lease.promise(Duration::from_secs(3600));
    assert_eq!(lease.owes_until(), Some(Instant::now() + 2 * LEASE_MAX));
}

#[tokio::test(start_paused = true)]
async fn promise_given_anew_while_the_old_one_is_waited_out_is_told() {
    let lease = Arc::new(lease());
    lease.promise(20 * MS);
    let waiting = Arc::clone(&lease);
    let waiter = tokio::spawn(async move { waiting.kept().await });
    tokio::time::sleep(30 * MS).await;
    lease.promise(20 * MS);
    assert!(!waiter.await.expect("ends"));
}

#[tokio::test(start_paused = true)]
async fn voter_that_comes_back_keeps_the_longest_promise_unless_it_can_have_given_none() {
    let opened = |stored| Lease::new(Duration::ZERO, Arc::new(RealClock::new()), OWN, stored);
    let gate = Some(Instant::now() + 2 * LEASE_MAX);
    assert_eq!(
        opened(Some(vote(2, true))).owes_until(),
        gate,
        "it followed"
    );
    assert_eq!(opened(Some(vote(2, false))).owes_until(), gate, "it voted");
    assert_eq!(
        opened(Some(vote(OWN, false))).owes_until(),
        gate,
        "it stood"
    );
    assert_eq!(opened(Some(vote(OWN, true))).owes_until(), None, "it led");
    assert_eq!(opened(None).owes_until(), None, "it is new");
}

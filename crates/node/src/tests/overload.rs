//! More than a node can do: what is refused, what is dropped, and that all goes on by itself.

use std::time::Duration;

use quorate_env::JobClass;
use quorate_kv::{Error, ErrorKind, Outcome, ReadLevel};
use quorate_sharding::{Request, Response};
use tokio::time::Instant;

use super::requests::*;
use crate::{Replies, Shed};

fn refusal(response: &Response) -> &Error {
    let error = &response.as_ref().expect_err("refused").error;
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(error.retry_after().is_some(), "a refusal without a hint");
    error
}

fn stale(id: u64, shard: &quorate_sharding::Shard, timeout: Duration) -> Request {
    let mut request = request(id, shard, get("key", ReadLevel::Stale));
    request.timeout = timeout;
    request
}

#[test]
fn engine_behind_refuses_writes_until_it_has_caught_up() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let leader = cluster.leader(shard.id).await;
        let node = &cluster.nodes[&leader];
        cluster.hold_jobs(leader, JobClass::Flush);
        let large = "x".repeat(64 << 10);
        let end = Instant::now() + SOON;
        let mut written = 0;
        let refused = loop {
            assert!(Instant::now() < end, "{written} writes were taken");
            let operation = put(&format!("key {written}"), &large);
            let response = cluster.call(leader, &shard, operation).await;
            match response {
                Ok(_) => written += 1,
                Err(failure) if failure.error.kind() == ErrorKind::Overloaded => {
                    break Err(failure);
                }
                Err(failure) => panic!("{}", failure.error),
            }
        };
        assert!(refusal(&refused).message().contains("engine is behind"));
        assert!(node.shed().get(Shed::EngineBehind) >= 1);
        assert!(node.inner.engine.debt().pressure >= 1.0);
        // It leads on, and serves what needs no memory.
        assert!(
            value(
                cluster
                    .call(leader, &shard, get("key", ReadLevel::Linearizable))
                    .await
            )
            .is_some()
        );
        assert_eq!(cluster.leader(shard.id).await, leader);
        cluster.release_jobs(leader, JobClass::Flush);
        until("writes to be taken again", || async {
            let again = cluster.call(leader, &shard, put("key", "again")).await;
            again.is_ok().then_some(())
        })
        .await;
        cluster.assert_replicas_agree(shard.id).await;
    });
}

#[test]
fn expired_write_is_not_proposed() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "before").await;
        let leader = cluster.leader(shard.id).await;
        cluster.network.isolate(leader, &[1, 2, 3]);
        let mut first = request(1, &shard, put("other", "under way"));
        first.timeout = Duration::from_millis(800);
        let mut late = request(2, &shard, put("key", "late"));
        late.timeout = Duration::from_millis(50);
        // The second waits behind the command of the first.
        let (replies, mut answers) = Replies::channel();
        let node = &cluster.nodes[&leader];
        node.execute(vec![first], &replies);
        until("the first to be under way", || async {
            (node.queued_bytes() == 0).then_some(())
        })
        .await;
        node.execute(vec![late], &replies);
        drop(replies);
        let mut found = None;
        while let Some(batch) = answers.recv().await {
            found = found.or(batch.into_iter().find(|(id, _)| *id == 2));
        }
        let error = found.expect("answered").1.expect_err("late").error;
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
        assert_eq!(node.shed().get(Shed::WriteExpired), 1);
        assert_eq!(node.queued_bytes(), 0);
        cluster.network.heal();
        let leader = cluster.leader(shard.id).await;
        let read = cluster
            .answered(leader, &shard, get("key", ReadLevel::Linearizable))
            .await;
        assert_eq!(value(read).as_deref(), Some(&b"before"[..]));
    });
}

#[test]
fn expired_read_is_not_done() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let leader = cluster.leader(shard.id).await;
        let node = &cluster.nodes[&leader];
        cluster.hold_jobs(leader, JobClass::Read);
        let (replies, mut answers) = Replies::channel();
        let short = Duration::from_millis(20);
        node.execute(
            vec![stale(1, &shard, short), stale(2, &shard, SOON)],
            &replies,
        );
        tokio::time::sleep(2 * short).await;
        cluster.release_jobs(leader, JobClass::Read);
        let mut batch = answers.recv().await.expect("answers");
        batch.sort_by_key(|(id, _)| *id);
        let late = &batch[0].1.as_ref().expect_err("late").error;
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
        assert!(batch[1].1.is_ok());
        assert_eq!(node.shed().get(Shed::ReadExpired), 1);
    });
}

#[test]
fn reads_that_would_wait_too_long_are_refused_and_taken_again_later() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let leader = cluster.leader(shard.id).await;
        let node = &cluster.nodes[&leader];
        let many = |count: u64| (0..count).map(|id| stale(id, &shard, SOON)).collect();
        let slowly = Duration::from_millis(200);
        // So few in such a time: that is the rate.
        cluster.hold_jobs(leader, JobClass::Read);
        let (replies, mut answers) = Replies::channel();
        node.execute(many(10), &replies);
        tokio::time::sleep(slowly).await;
        cluster.release_jobs(leader, JobClass::Read);
        assert_eq!(answers.recv().await.expect("answers").len(), 10);
        cluster.hold_jobs(leader, JobClass::Read);
        node.execute(many(5000), &replies);
        node.execute(many(10), &replies);
        let refused = tokio::time::timeout(SOON, answers.recv()).await;
        let refused = refused.expect("refused at once").expect("answers");
        assert_eq!(refused.len(), 10);
        refused.iter().for_each(|(_, response)| {
            refusal(response);
        });
        assert_eq!(node.shed().get(Shed::ReadDelay), 10);
        cluster.release_jobs(leader, JobClass::Read);
        let mut served = 0;
        while served < 5000 {
            let batch = answers.recv().await.expect("answers");
            served += batch
                .iter()
                .filter(|(_, response)| response.is_ok())
                .count();
        }
        node.execute(many(10), &replies);
        let again = answers.recv().await.expect("answers");
        assert!(again.iter().all(|(_, response)| response.is_ok()));
    });
}

#[test]
fn reader_that_takes_no_answers_gets_no_more() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", &"x".repeat(10_000)).await;
        let leader = cluster.leader(shard.id).await;
        let node = &cluster.nodes[&leader];
        let (replies, mut answers, unsent) = Replies::bounded(10_000);
        node.execute(vec![stale(1, &shard, SOON)], &replies);
        let first = answers.recv().await.expect("answers");
        assert!(first[0].1.is_ok());
        node.execute(vec![stale(2, &shard, SOON)], &replies);
        let second = answers.recv().await.expect("answers");
        assert!(refusal(&second[0].1).message().contains("does not take"));
        assert_eq!(node.shed().get(Shed::SlowReader), 1);
        for (_, response) in first.iter().chain(&second) {
            unsent.taken(crate::answer_bytes(response));
        }
        node.execute(vec![stale(3, &shard, SOON)], &replies);
        assert!(answers.recv().await.expect("answers")[0].1.is_ok());
    });
}

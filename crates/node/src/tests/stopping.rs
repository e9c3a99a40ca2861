//! Replicas that stop, and what is opened again.

use std::path::Path;

use quorate_env::sim::Fault as DiskFault;
use quorate_kv::{ErrorKind, Outcome, ReadLevel};
use quorate_replication::Health;
use quorate_sharding::{Replica, Shard};

use super::requests::*;
use crate::{Fault, FaultKind, Node, reconcile};

/// Waits until a node says that its replica of a shard has stopped.
async fn stopped(node: &Node, shard: &Shard) -> Fault {
    until("the replica to stop", || async {
        let faults = node.status().faults();
        let of = faults.into_iter().find(|fault| fault.shard == shard.id);
        of.filter(|fault| fault.kind == FaultKind::Stopped)
    })
    .await
}

#[test]
fn stopped_replica_says_why_and_sends_clients_to_the_others() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let leader = cluster.leader(shard.id).await;
        let follower = cluster.follower(shard.id).await;
        // The engine of one node fails, so what is applied there next does.
        let node = &cluster.nodes[&follower];
        cluster.disks[&follower].inject_under(DiskFault::Sync, Path::new("/data/engine"));
        let flushed = node.inner.engine.flush();
        flushed.expect_err("the sync fails, and nobody knows what the disk holds");
        cluster.put(&shard, "key", "more").await;
        let fault = stopped(node, &shard).await;
        assert!(fault.reason.contains("sync"), "{fault:?}");
        for operation in [get("key", ReadLevel::Stale), put("key", "not here")] {
            let answer = cluster.call(follower, &shard, operation).await;
            let failure = answer.expect_err("is refused");
            assert_eq!(failure.error.kind(), ErrorKind::Unavailable);
            assert_eq!(failure.error.outcome(), Outcome::NotApplied);
            let message = failure.error.message();
            assert!(message.contains(&fault.reason), "{message}");
            let redirect = failure.redirect.expect("others are named");
            assert_eq!(redirect.shards, std::slice::from_ref(&shard));
            assert_ne!(redirect.leader, Some(follower));
        }
        // Such a failure does not pass: it is not opened again.
        let group = node.inner.groups.group(shard.id).expect("is there");
        assert!(!group.stop_reason().expect("has stopped").may_pass);
        let read = cluster.answered(leader, &shard, get("key", ReadLevel::Linearizable));
        assert_eq!(value(read.await).as_deref(), Some(&b"more"[..]));
    });
}

#[test]
fn stopped_replica_is_opened_again_when_the_cause_may_have_passed() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let follower = cluster.follower(shard.id).await;
        let node = &cluster.nodes[&follower];
        cluster.put(&shard, "key", "value").await;
        let shards = || node.inner.shards.read();
        let before = shards().get(&shard.id).cloned().expect("is open");
        let waited = before
            .group
            .wait_applied(before.group.applied_index().unwrap_or(0), SOON);
        waited.await.expect("is applied");
        cluster.drop_next_apply(follower);
        cluster.put(&shard, "key", "more").await;
        let fault = stopped(node, &shard).await;
        assert!(fault.reason.contains("dropped"), "{fault:?}");
        cluster.put(&shard, "key", "the last").await;
        until("the replica to be back", || async {
            let faults = node.status().faults();
            let read = cluster
                .call(follower, &shard, get("key", ReadLevel::Stale))
                .await;
            let is_last = read.is_ok() && value(read).as_deref() == Some(b"the last");
            (faults.is_empty() && is_last).then_some(())
        })
        .await;
        let now = shards().get(&shard.id).cloned().expect("is open");
        assert_eq!(now.group.status().health, Health::Works);
        assert!(before.group.stop_reason().is_some(), "it is another one");
        cluster.assert_replicas_agree(shard.id).await;
    });
}

#[test]
fn shard_that_could_not_be_bootstrapped_opens_at_the_next_attempt() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let known = cluster.namespace("n", hashed()).await;
        let inner = &cluster.nodes[&1].inner;
        let map = inner.context.map();
        let on = |node| Shard {
            id: 900,
            replicas: vec![Replica { id: 901, node }],
            ..known.clone()
        };
        // Its members do not have it here: the group is open by then, and can't be bootstrapped.
        let failed = reconcile::open_shard(inner, &map, &on(2), 901).await;
        let error = failed.expect_err("is not among the members").to_string();
        assert!(error.contains("first members"), "{error}");
        let opened = reconcile::open_shard(inner, &map, &on(1), 901).await;
        opened.expect("opens");
        until("the group of one to serve", || async {
            let read = get("key", ReadLevel::Linearizable);
            let answer = cluster.call(1, &on(1), read).await;
            (answer.is_ok() && value(answer).is_none()).then_some(())
        })
        .await;
    });
}

//! What a client sees of three nodes.

use std::time::Duration;

use bytes::Bytes;
use quorate_env::{Disk, JobClass};
use quorate_kv::{Condition, ErrorKind, Mutation, Op, Outcome, ReadLevel};
use quorate_sharding::{Answer, NamespaceKind, Operation, Shard, ShardEpoch};

use super::requests::*;

fn text(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

const LINEARIZABLE: ReadLevel = ReadLevel::Linearizable;

#[test]
fn cluster_reads_on_every_node_see_what_was_written() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        for (name, kind) in [("wide", hashed()), ("compact", NamespaceKind::Compact)] {
            let shard = cluster.namespace(name, kind).await;
            for n in 0..20 {
                let version = cluster.put(&shard, "key", &format!("value {n}")).await;
                for node in 1..=3 {
                    let newest = cluster.answered(node, &shard, get("key", LINEARIZABLE));
                    let level = at_least(&shard, version);
                    let new_enough = cluster.call(node, &shard, get("key", level));
                    for read in [newest.await, new_enough.await] {
                        assert_eq!(value(read), text(&format!("value {n}")), "node {node}");
                    }
                    let stale = cluster
                        .call(node, &shard, get("key", ReadLevel::Stale))
                        .await;
                    assert!(stale.is_ok());
                }
            }
            let read = cluster.answered(1, &shard, get("key", LINEARIZABLE)).await;
            assert_eq!(entry(read).map(|e| e.write_count), Some(20));
            assert_eq!(cluster.assert_replicas_agree(shard.id).await.keys, 1);
        }
    });
}

#[test]
fn cluster_many_requests_at_once_get_one_answer_each() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let leader = cluster.leader(shard.id).await;
        let key = |n: u64| format!("key {}", n % 50);
        let operation = |n: u64| match n % 7 {
            0 => get(&key(n), LINEARIZABLE),
            1 => get(&key(n), ReadLevel::Stale),
            2 => scan(LINEARIZABLE),
            3 => Operation::Batch {
                mutations: vec![Mutation::put(key(n), "batch"), Mutation::delete(key(n + 1))],
            },
            4 => Operation::Compare {
                conditions: vec![(key(n).into(), Condition::Present)],
                then_ops: vec![Op::Mutate(Mutation::put(key(n), "then"))],
                else_ops: vec![Op::Get { key: key(n).into() }],
            },
            // Refused: an empty key.
            5 => put("", "value"),
            _ => put(&key(n), "put"),
        };
        for _ in 0..5 {
            let requests = (0..500).map(|n| request(n, &shard, operation(n))).collect();
            let answers = cluster.execute(leader, requests).await;
            for (n, answer) in answers.iter().enumerate() {
                match n % 7 {
                    5 => assert_eq!(kind(answer), ErrorKind::InvalidArgument),
                    _ => assert!(answer.is_ok(), "{n}: {answer:?}"),
                }
            }
        }
        cluster.assert_replicas_agree(shard.id).await;
    });
}

#[test]
fn cluster_write_at_a_follower_is_sent_to_the_leader() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let leader = cluster.leader(shard.id).await;
        let follower = cluster.follower(shard.id).await;
        let failure = cluster.call(follower, &shard, put("key", "value")).await;
        let failure = failure.expect_err("is redirected");
        assert_eq!(failure.error.kind(), ErrorKind::NotLeader);
        assert_eq!(failure.error.outcome(), Outcome::NotApplied);
        assert_eq!(failure.redirect.and_then(|r| r.leader), Some(leader));
    });
}

#[test]
fn cluster_requests_that_fit_no_shard_are_refused() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let leader = cluster.leader(shard.id).await;
        let read = || get("key", LINEARIZABLE);

        let unknown = Shard {
            namespace: 99,
            id: 99,
            ..shard.clone()
        };
        let answer = cluster.call(leader, &unknown, read()).await;
        assert_eq!(kind(&answer), ErrorKind::UnknownNamespace);
        let unknown = Shard {
            id: 99,
            ..shard.clone()
        };
        let answer = cluster.call(leader, &unknown, read()).await;
        assert_eq!(kind(&answer), ErrorKind::WrongEpoch);

        let old = Shard {
            epoch: ShardEpoch {
                range: 9,
                ..shard.epoch
            },
            ..shard.clone()
        };
        for operation in [read(), put("key", "value")] {
            let failure = cluster.call(leader, &old, operation).await;
            let failure = failure.expect_err("is refused");
            assert_eq!(failure.error.kind(), ErrorKind::WrongEpoch);
            let shards = failure.redirect.map(|r| r.shards);
            assert_eq!(shards, Some(vec![shard.clone()]));
        }
    });
}

#[test]
fn cluster_request_under_another_namespace_is_refused_and_changes_nothing() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("one", hashed()).await;
        let other = cluster.namespace("two", NamespaceKind::Compact).await;
        cluster.put(&shard, "key", "value").await;
        let leader = cluster.leader(shard.id).await;
        let mixed = |namespace| Shard {
            namespace,
            ..shard.clone()
        };
        let operations = [
            get("key", LINEARIZABLE),
            get("key", ReadLevel::Stale),
            scan(LINEARIZABLE),
            put("key", "foreign"),
        ];
        for operation in operations {
            let answer = cluster
                .call(leader, &mixed(other.namespace), operation)
                .await;
            let failure = answer.expect_err("is refused");
            assert_eq!(failure.error.kind(), ErrorKind::InvalidArgument);
            assert_eq!(failure.error.outcome(), Outcome::NotApplied);
            let message = failure.error.message();
            assert!(message.contains("not of namespace"), "{message}");
        }
        let read = cluster
            .answered(leader, &shard, get("key", LINEARIZABLE))
            .await;
        assert_eq!(entry(read).map(|e| e.write_count), Some(1));

        // Nor does a shard that is not here, or the coordinator's, take such a request.
        let replica = cluster.nodes[&leader]
            .inner
            .shards
            .write()
            .remove(&shard.id);
        let foreign = mixed(other.namespace);
        let answer = cluster.call(leader, &foreign, put("key", "x")).await;
        assert_eq!(kind(&answer), ErrorKind::InvalidArgument);
        cluster.nodes[&leader]
            .inner
            .shards
            .write()
            .extend(replica.map(|r| (shard.id, r)));
        let coordinator = Shard {
            id: quorate_sharding::COORDINATOR_GROUP,
            ..mixed(quorate_sharding::SYSTEM_NAMESPACE)
        };
        let answer = cluster
            .call(leader, &coordinator, get("key", LINEARIZABLE))
            .await;
        assert_eq!(kind(&answer), ErrorKind::InvalidArgument);
    });
}

#[test]
fn node_whose_job_panicked_refuses_everything_at_once_and_closes() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let leader = cluster.leader(shard.id).await;
        let node = cluster.nodes.remove(&leader).expect("a node");
        let jobs = node.inner.env().jobs.clone();
        jobs.spawn(JobClass::Flush, Box::new(|| panic!("on purpose")));
        until("the panic", || async { jobs.fault().map(drop) }).await;
        cluster.nodes.insert(leader, node);
        for operation in [put("key", "more"), get("key", ReadLevel::Stale)] {
            let call = cluster.call(leader, &shard, operation);
            let answer = tokio::time::timeout(Duration::from_secs(5), call).await;
            let failure = answer.expect("at once").expect_err("is refused");
            assert_eq!(failure.error.kind(), ErrorKind::Internal);
            let message = failure.error.message();
            assert!(message.contains("on purpose"), "{message}");
        }
        let node = cluster.nodes.remove(&leader).expect("a node");
        cluster.network.leave(leader);
        let closed = tokio::time::timeout(Duration::from_secs(5), node.shutdown()).await;
        let error = closed.expect("at once").expect_err("says why");
        assert!(matches!(error, crate::Error::Panicked(_)), "{error}");
        drop(node);
        // The others go on.
        cluster.put(&shard, "key", "more").await;
    });
}

#[test]
fn cluster_tokens_of_elsewhere_or_ahead_are_refused() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", NamespaceKind::Compact).await;
        let version = cluster.put(&shard, "key", "value").await;
        let other = Shard {
            namespace: shard.namespace + 1,
            ..shard.clone()
        };
        for node in 1..=3 {
            let elsewhere = get("key", at_least(&other, version));
            let answer = cluster.call(node, &shard, elsewhere).await;
            assert_eq!(kind(&answer), ErrorKind::WrongDomain);
            let ahead = get("key", at_least(&shard, version + 1_000));
            let answer = cluster.call(node, &shard, ahead).await;
            assert_eq!(kind(&answer), ErrorKind::Unavailable);
        }
    });
}

#[test]
fn cluster_without_a_quorum_answers_by_the_deadline_and_reads_stale() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let leader = cluster.leader(shard.id).await;
        cluster.network.isolate(leader, &[1, 2, 3]);
        let short = |id, operation| {
            let mut request = request(id, &shard, operation);
            request.timeout = Duration::from_millis(150);
            request
        };
        let requests = vec![
            short(1, put("key", "lost")),
            short(2, get("key", LINEARIZABLE)),
            short(3, get("key", ReadLevel::Stale)),
        ];
        let began = std::time::Instant::now();
        let answers = cluster.execute(leader, requests).await;
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(kind(&answers[0]), ErrorKind::DeadlineExceeded);
        let failure = answers[0].as_ref().expect_err("no quorum");
        assert_eq!(failure.error.outcome(), Outcome::Unknown);
        let refused = [ErrorKind::DeadlineExceeded, ErrorKind::NoQuorum];
        assert!(refused.contains(&kind(&answers[1])), "{:?}", answers[1]);
        assert_eq!(value(answers[2].clone()), text("value"));

        let mut late = request(4, &shard, put("key", "late"));
        late.timeout = Duration::ZERO;
        let answers = cluster.execute(leader, vec![late]).await;
        let refused = [ErrorKind::DeadlineExceeded, ErrorKind::NotLeader];
        assert!(refused.contains(&kind(&answers[0])), "{:?}", answers[0]);

        cluster.network.heal();
        cluster.put(&shard, "key", "again").await;
        for node in 1..=3 {
            let read = cluster
                .answered(node, &shard, get("key", LINEARIZABLE))
                .await;
            assert_eq!(value(read), text("again"));
        }
        cluster.assert_replicas_agree(shard.id).await;
    });
}

#[test]
fn cluster_short_deadline_is_kept_beside_a_long_one() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let leader = cluster.leader(shard.id).await;
        cluster.network.isolate(leader, &[1, 2, 3]);
        let (replies, mut answers) = crate::Replies::channel();
        let mut short = request(1, &shard, put("key", "short"));
        short.timeout = Duration::from_millis(100);
        let mut read = request(2, &shard, get("key", LINEARIZABLE));
        read.timeout = Duration::from_millis(100);
        let long = request(3, &shard, put("key", "long"));
        let long_read = request(4, &shard, get("key", LINEARIZABLE));
        cluster.nodes[&leader].execute(vec![long, short, long_read, read], &replies);
        let first = async {
            let mut found = std::collections::BTreeSet::new();
            while !(found.contains(&1) && found.contains(&2)) {
                let batch = answers.recv().await.expect("answers");
                found.extend(batch.into_iter().map(|(id, _)| id));
            }
        };
        let kept = tokio::time::timeout(Duration::from_secs(3), first).await;
        assert!(kept.is_ok(), "the short ones waited for the long ones");
    });
}

#[test]
fn cluster_full_queue_refuses_writes_with_a_hint() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let leader = cluster.leader(shard.id).await;
        cluster.network.isolate(leader, &[1, 2, 3]);
        let large = "x".repeat(1 << 20);
        let requests = (0..60).map(|n| {
            let mut request = request(n, &shard, put(&format!("key {n}"), &large));
            request.timeout = Duration::from_secs(2);
            request
        });
        let answers = cluster.execute(leader, requests.collect()).await;
        let full = |answer: &&quorate_sharding::Response| {
            let error = &answer.as_ref().expect_err("no quorum").error;
            error.kind() == ErrorKind::Overloaded && error.retry_after().is_some()
        };
        let refused = answers.iter().filter(full).count();
        assert!((20..60).contains(&refused), "{refused} were refused");
        cluster.network.heal();
        cluster.put(&shard, "key", "value").await;
        cluster.assert_replicas_agree(shard.id).await;
    });
}

#[test]
fn cluster_write_too_large_for_a_command_does_not_take_others_along() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let leader = cluster.leader(shard.id).await;
        // Its keys are within their limits each, and many.
        let long_key = Bytes::from(vec![b'k'; 4096]);
        let huge = Operation::Compare {
            conditions: vec![(long_key, Condition::Absent); 5000],
            then_ops: Vec::new(),
            else_ops: Vec::new(),
        };
        let many = Operation::Batch {
            mutations: (0..1_000_000).map(|_| Mutation::put("k", "")).collect(),
        };
        let requests = vec![
            request(1, &shard, put("one", "value")),
            request(2, &shard, huge),
            request(3, &shard, many),
            request(4, &shard, put("two", "value")),
        ];
        let answers = cluster.execute(leader, requests).await;
        assert!(answers[0].is_ok(), "{:?}", answers[0]);
        assert_eq!(kind(&answers[1]), ErrorKind::TooLarge);
        assert_eq!(kind(&answers[2]), ErrorKind::TooLarge);
        assert!(answers[3].is_ok(), "{:?}", answers[3]);
    });
}

#[test]
fn cluster_disk_nearly_full_refuses_writes_and_serves_reads() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        cluster.put(&shard, "key", "value").await;
        let leader = cluster.leader(shard.id).await;
        let disk = &cluster.disks[&leader];
        let space = disk.space(std::path::Path::new("/data")).expect("looks");
        // Less than the reserve of 256 MiB, and enough for what goes on inside.
        disk.set_capacity(Some(space.total - space.free + (100 << 20)));
        let node = &cluster.nodes[&leader];
        until("the disk to count as full", || async {
            node.status().disk_full.then_some(())
        })
        .await;
        // First it asks the others to lead; only where it still leads after that, clients hear of the disk.
        until("the disk to be said, or another to lead", || async {
            let refused = cluster.call(leader, &shard, put("key", "more")).await;
            match kind(&refused) {
                ErrorKind::Unavailable => None,
                said => {
                    assert!(
                        matches!(said, ErrorKind::DiskFull | ErrorKind::NotLeader),
                        "{refused:?}"
                    );
                    Some(())
                }
            }
        })
        .await;
        let stale = cluster.call(leader, &shard, get("key", ReadLevel::Stale));
        // It may just hand its leadership over.
        let newest = cluster.answered(leader, &shard, get("key", LINEARIZABLE));
        for read in [stale.await, newest.await] {
            assert_eq!(value(read), text("value"));
        }
        disk.set_capacity(None);
        until("the disk to have space", || async {
            (!node.status().disk_full).then_some(())
        })
        .await;
        cluster.put(&shard, "key", "more").await;
    });
}

#[test]
fn cluster_node_stopped_or_crashed_comes_back_with_its_data() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        for (round, crash) in [false, true, true].into_iter().enumerate() {
            for n in 0..30 {
                cluster
                    .put(&shard, &format!("key {n}"), &format!("{round}"))
                    .await;
            }
            let id = match round {
                1 => cluster.follower(shard.id).await,
                _ => cluster.leader(shard.id).await,
            };
            let disk = match crash {
                true => cluster.crash(id).await,
                false => cluster.stop(id).await,
            };
            for n in 20..40 {
                cluster
                    .put(
                        &shard,
                        &format!("key {n}"),
                        &format!("{round} without {id}"),
                    )
                    .await;
            }
            cluster.restart(id, disk).await;
            let node = &cluster.nodes[&id];
            until("the replica", || async {
                cluster.spread();
                node.inner
                    .shards
                    .read()
                    .contains_key(&shard.id)
                    .then_some(())
            })
            .await;
            cluster.leader(shard.id).await;
            for n in [0, 25, 39] {
                let read = get(&format!("key {n}"), LINEARIZABLE);
                let expected = if n < 20 {
                    format!("{round}")
                } else {
                    format!("{round} without {id}")
                };
                let found = cluster.answered(id, &shard, read).await;
                assert_eq!(value(found), text(&expected));
            }
            assert_eq!(cluster.assert_replicas_agree(shard.id).await.keys, 40);
            assert!(node.inner.coordinator.read().is_some() && node.status().broken.is_empty());
        }
    });
}

#[test]
fn cluster_scan_pages_through_a_shard_in_both_directions() {
    runtime().block_on(async {
        let cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", NamespaceKind::Compact).await;
        let mutations = (0..25)
            .map(|n| Mutation::put(format!("{n:02}"), "v"))
            .collect();
        cluster.write(&shard, Operation::Batch { mutations }).await;
        for reverse in [false, true] {
            let (mut start, mut end) = (Bytes::new(), Bytes::new());
            let mut keys = Vec::new();
            loop {
                let page = Operation::Scan {
                    start: start.clone(),
                    end: end.clone(),
                    limit: 7,
                    limit_bytes: 1 << 20,
                    reverse,
                    level: LINEARIZABLE,
                };
                let answer = cluster.answered(2, &shard, page).await.expect("scans");
                let Answer::Scan {
                    entries,
                    more,
                    last,
                } = answer
                else {
                    panic!("{answer:?}");
                };
                assert!(entries.len() <= 7);
                keys.extend(entries.into_iter().map(|entry| entry.key));
                let Some(last) = last.filter(|_| more) else {
                    break;
                };
                match reverse {
                    true => end = last,
                    false => start = [&last[..], &[0]].concat().into(),
                }
            }
            let mut expected: Vec<Bytes> = (0..25).map(|n| format!("{n:02}").into()).collect();
            if reverse {
                expected.reverse();
            }
            assert_eq!(keys, expected);
        }
    });
}

#[test]
fn cluster_node_that_stops_answers_what_it_was_asked() {
    runtime().block_on(async {
        let mut cluster = Cluster::of_three().await;
        let shard = cluster.namespace("n", hashed()).await;
        let leader = cluster.leader(shard.id).await;
        let node = cluster.nodes[&leader].clone();
        let requests: Vec<_> = (0..200)
            .map(|n| match n % 2 {
                0 => request(n, &shard, put("key", "value")),
                _ => request(n, &shard, get("key", LINEARIZABLE)),
            })
            .collect();
        let (before, _) = tokio::join!(cluster.execute(leader, requests.clone()), node.shutdown());
        assert_eq!(before.len(), 200);
        let after = cluster.execute(leader, requests).await;
        // Reads may go on: another node leads, and says up to where this one has to be.
        let written = after.iter().step_by(2).filter(|answer| answer.is_ok());
        assert_eq!(written.count(), 0);
        drop(node);
        let disk = cluster.disks.remove(&leader).expect("a disk");
        cluster.nodes.remove(&leader);
        cluster.network.leave(leader);
        cluster.restart(leader, disk).await;
        cluster.put(&shard, "key", "again").await;
        cluster.assert_replicas_agree(shard.id).await;
    });
}

//! The outbox over a cluster of ours: message and data in one batch of one shard, relayed while the process
//! that holds the data is killed.

use std::sync::Arc;
use std::time::Duration;

use quorate_kv::{Get, Kv, Mutation};
use quorate_outbox::broker::Broker;
use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::kv::KvOutbox;
use quorate_outbox::store::Store;
use quorate_outbox::{ErrorKind, Message, Relay, RelayOptions};
use quorate_sharding::{Encoding, NamespaceKind, NamespaceSpec, RoutingPrefix};

use crate::support::{Cluster, SOON, eventually, hashed};

use super::check::FromStart;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outbox_over_a_cluster_is_atomic_within_a_shard_and_refuses_to_cross() {
    let mut cluster = Cluster::one().await;
    let kind = NamespaceKind::Wide {
        encoding: Encoding::Hashed {
            prefix: RoutingPrefix::Until(b'/'),
        },
    };
    let spec = NamespaceSpec {
        kind,
        ..hashed("outbox", 8, 1)
    };
    let client = cluster.client().await;
    let kv: Arc<dyn Kv> = Arc::new(cluster.namespace(&client, &spec).await);
    let prefixes: Vec<String> = (0..4).map(|i| format!("shop{i}")).collect();
    let outbox = KvOutbox::new(Arc::clone(&kv), "cluster", prefixes.clone()).expect("opens");
    // Of eight other prefixes one at least is in another shard than the first.
    let mut refused = 0;
    for i in 0..8 {
        let far = Mutation::put(format!("far{i}/x"), "x");
        let message = Message::keyed("orders", "crossing", "x");
        match outbox.enqueue("shop0", vec![far], &message).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::CrossShard, "{error}");
                assert!(error.is_outcome_known());
                let there = kv.get(Get::new(format!("far{i}/x"))).await.expect("reads");
                assert!(there.is_none(), "nothing was written");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "some of eight prefixes are elsewhere");
    let unknown = outbox
        .enqueue("nowhere", vec![], &Message::keyed("orders", "k", "x"))
        .await;
    assert_eq!(
        unknown.expect_err("no such part").kind(),
        ErrorKind::Invalid
    );
    let broker = LocalBroker::in_memory(LocalOptions::default());
    let options = RelayOptions {
        lease: Duration::from_secs(2),
        ..RelayOptions::default()
    };
    let store: Arc<dyn Store> = Arc::new(outbox.clone());
    let relay = Relay::start(store.clone(), Arc::new(broker.clone()), options).expect("starts");
    for round in 0..20 {
        for prefix in &prefixes {
            let data = Mutation::put(format!("{prefix}/state"), round.to_string());
            let message = Message::keyed("orders", prefix, round.to_string());
            outbox
                .enqueue(prefix, vec![data], &message)
                .await
                .expect("enqueues");
        }
    }
    eventually("nothing waits", SOON, || async {
        let lag = store.lag().await.map_err(|e| e.to_string())?;
        if lag.waiting == 0 {
            Ok(())
        } else {
            Err(format!("{lag:?} {:?}", relay.status()))
        }
    })
    .await;
    relay.drain().await;
    let topics = ["orders".to_owned()];
    let reader = broker.subscribe("all", &topics, Arc::new(FromStart)).await;
    let mut reader = reader.expect("subscribes");
    let found = reader
        .next(1000, Duration::from_secs(10))
        .await
        .expect("reads");
    for prefix in &prefixes {
        let of_key = found.iter().filter(|d| d.key.as_deref() == Some(prefix));
        let texts: Vec<_> = of_key.map(|d| (d.seq(), d.payload.clone())).collect();
        let expected: Vec<_> = (0..20i64)
            .map(|r| (Some(r + 1), r.to_string().into()))
            .collect();
        assert_eq!(texts, expected, "in order, numbered, once");
        let state = kv
            .get(Get::new(format!("{prefix}/state")))
            .await
            .expect("reads");
        assert_eq!(state.expect("is there").value, "19");
    }
}

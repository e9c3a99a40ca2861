//! The suite of the contract, through the remote client, on every kind of namespace.

use quorate_kv::conformance::{Suite, run};
use quorate_sharding::{Encoding, NamespaceKind, NamespaceSpec, RoutingPrefix};

use crate::support::{Cluster, compact, hashed, ordered};

/// Runs the suite on a namespace; what the suite may expect depends on where its keys are.
async fn conforms(cluster: &mut Cluster, spec: NamespaceSpec, one_shard: bool, is_ordered: bool) {
    println!("conformance of `{}`", spec.name);
    let client = cluster.client().await;
    let kv = cluster.namespace(&client, &spec).await;
    let mut suite = Suite::new("suite");
    suite.one_shard = one_shard;
    suite.ordered = is_ordered;
    run(&kv, &suite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_namespaces_of_every_kind_conform_to_the_contract() {
    let mut cluster = Cluster::three().await;
    let until = NamespaceKind::Wide {
        encoding: Encoding::Hashed {
            prefix: RoutingPrefix::Until(b'/'),
        },
    };
    let hashed_until = NamespaceSpec {
        kind: until,
        ..hashed("hashed-until", 5, 3)
    };
    conforms(&mut cluster, hashed("hashed", 5, 3), false, false).await;
    conforms(&mut cluster, hashed_until, true, true).await;
    conforms(
        &mut cluster,
        ordered("ordered", &["a", "suite/", "t"], 3),
        true,
        true,
    )
    .await;
    // The suite's own keys are spread over shards here.
    let split = ordered(
        "split",
        &["suite/batch-b", "suite/k", "suite/unordered-05"],
        3,
    );
    conforms(&mut cluster, split, false, true).await;
    conforms(&mut cluster, compact("compact", 3), true, true).await;
    let client = cluster.client().await;
    cluster.assert_replicas_agree(&client).await;
}

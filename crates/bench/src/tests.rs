//! The generator and the report, tiny.

use std::sync::Arc;
use std::time::Duration;

use quorate_kv::memory::MemoryKv;
use quorate_kv::{Domain, Kv};

use crate::{Operation, Report, Workload, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_generator_measures_every_operation() {
    let domain = Domain {
        cluster: 1,
        namespace: 1,
        incarnation: 0,
    };
    let store: Arc<dyn Kv> = Arc::new(MemoryKv::new(domain));
    let target = Arc::new(store);
    for operation in [
        Operation::Put,
        Operation::Get,
        Operation::StaleGet,
        Operation::Mix,
        Operation::Batch,
    ] {
        let workload = Workload {
            operation,
            clients: 4,
            duration: Duration::from_millis(50),
            warmup: Duration::from_millis(5),
            keys: 100,
            value_bytes: 100,
            seed: 1,
        };
        let measured = run(Arc::clone(&target), &workload).await;
        assert!(measured.operations > 0, "{}", operation.name());
        assert_eq!(measured.failures, 0);
        assert!(measured.p50_micros <= measured.p99_micros);
        assert!(measured.throughput() > 0.0);
    }
}

#[test]
fn bench_report_ratio_is_above_one_when_ours_is_better() {
    let mut report = Report {
        suite: "t".into(),
        host: "h".into(),
        commit: "c".into(),
        rows: Vec::new(),
        series: Vec::new(),
    };
    report.add(
        "put/clients=1",
        "throughput_ops",
        200.0,
        Some(("etcd", 100.0)),
    );
    report.add("put/clients=1", "p99_ms", 5.0, Some(("etcd", 10.0)));
    report.add("put/clients=1/unbatched", "throughput_ops", 5.0, None);
    assert!((report.rows[0].ratio["etcd"] - 2.0).abs() < 1e-9);
    assert!((report.rows[1].ratio["etcd"] - 2.0).abs() < 1e-9);
    assert!(report.rows[2].ratio.is_empty());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["rows"][0]["workload"], "put/clients=1");
    assert_eq!(report.table().lines().count(), 4);
}

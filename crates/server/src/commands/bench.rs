//! `bench`: a load against a cluster, and how fast it was.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use quorate_bench::{Measured, Operation, Workload, run};
use quorate_client::Client;
use quorate_kv::Kv;
use serde_json::json;

use crate::args::{BenchArgs, BenchOperation, Output};

/// `quorate bench`.
///
/// # Errors
/// When the cluster cannot be reached, or nothing succeeded.
pub async fn bench(args: BenchArgs) -> Result<ExitCode> {
    let mut options = args.target.connect.options();
    options.batching = !args.unbatched;
    let client = Client::connect(&args.target.connect.endpoints, options).await?;
    let store: Arc<dyn Kv> = Arc::new(client.namespace(&args.target.namespace).await?);
    let workload = Workload {
        operation: match args.operation {
            BenchOperation::Put => Operation::Put,
            BenchOperation::Get => Operation::Get,
            BenchOperation::StaleGet => Operation::StaleGet,
        },
        clients: args.clients,
        duration: Duration::from_secs(args.seconds),
        warmup: Duration::from_secs(1),
        keys: args.keys,
        value_bytes: args.value_bytes,
        seed: 1,
    };
    let measured = run(Arc::new(store), &workload).await;
    if measured.operations == 0 {
        let why = measured
            .first_error
            .as_deref()
            .unwrap_or("no operation ended in time");
        bail!("nothing succeeded: {why}");
    }
    print(&args, &workload, &measured);
    Ok(ExitCode::SUCCESS)
}

fn print(args: &BenchArgs, workload: &Workload, measured: &Measured) {
    let ms = |micros: u64| micros as f64 / 1e3;
    if args.target.output == Output::Json {
        let line = json!({
            "operation": workload.operation.name(),
            "clients": workload.clients,
            "seconds": measured.seconds,
            "operations": measured.operations,
            "failures": measured.failures,
            "throughput_ops": measured.throughput(),
            "p50_ms": ms(measured.p50_micros),
            "p99_ms": ms(measured.p99_micros),
            "p999_ms": ms(measured.p999_micros),
        });
        println!("{line}");
        return;
    }
    println!(
        "{} with {} clients for {} s: {:.0} a second, P50 {:.2} ms, P99 {:.2} ms, P99.9 {:.2} ms",
        workload.operation.name(),
        workload.clients,
        measured.seconds,
        measured.throughput(),
        ms(measured.p50_micros),
        ms(measured.p99_micros),
        ms(measured.p999_micros)
    );
    if let Some(error) = &measured.first_error {
        println!(
            "{} operations failed; the first: {error}",
            measured.failures
        );
    }
}

//! Throughput and latency of both sides, in turn.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_bench::{BATCH, Measured, Operation, Target, Workload, run};
use quorate_client::ClientOptions;

use crate::processes::Processes;
use crate::sides::{CONNECTIONS, Ours, connect_etcd, options};
use crate::{Args, Samples};

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 100;
/// Clients of the rows with batches.
const BATCHING_CLIENTS: usize = 100;
/// Operations in flight over all connections, where as many are in flight as a connection takes.
const PIPELINED: usize = 4096;

/// What clients do, how many, and what is special about them.
struct Row {
    operation: Operation,
    clients: usize,
    suffix: &'static str,
}

/// Rows for every number of clients.
fn each(args: &Args, operations: &[Operation], suffix: &'static str) -> Vec<Row> {
    let of = |&clients: &usize| {
        let row = move |&operation: &Operation| Row {
            operation,
            clients,
            suffix,
        };
        operations.iter().map(row)
    };
    args.clients.iter().flat_map(of).collect()
}

/// What is asked of both sides.
fn of_both(args: &Args) -> Vec<Row> {
    let mut rows = each(args, &[Operation::Put, Operation::Get, Operation::Mix], "");
    // A batch is of one shard.
    if args.shards == 1 {
        rows.push(Row {
            operation: Operation::Batch,
            clients: BATCHING_CLIENTS,
            suffix: "",
        });
    }
    rows
}

/// What is asked of ours alone, each with settings of its own.
fn of_ours(args: &Args) -> Vec<(ClientOptions, Vec<Row>)> {
    let pipelined = [Operation::Put, Operation::Get].map(|operation| Row {
        operation,
        clients: PIPELINED,
        suffix: "/pipelined",
    });
    let any = ClientOptions {
        read_any_replica: true,
        ..options()
    };
    let alone = ClientOptions {
        batching: false,
        ..options()
    };
    let singly = each(args, &[Operation::Put, Operation::Get], "/unbatched");
    vec![
        (options(), pipelined.into()),
        (any, each(args, &[Operation::Get], "/any-replica")),
        (alone, singly),
    ]
}

pub async fn measure(args: &Args) -> Result<Samples> {
    let mut samples = Samples::new();
    for round in 0..args.rounds {
        println!("round {} of {}", round + 1, args.rounds);
        if let Some(binary) = &args.etcd {
            let dir = tempfile::tempdir()?;
            let processes = Processes::etcd(binary, dir.path(), args.etcd_times)?;
            let target = Arc::new(connect_etcd(&processes.endpoints).await?);
            let mut side = Side {
                args,
                ours: false,
                processes: &processes,
                samples: &mut samples,
            };
            side.measure_all(&target, &of_both(args)).await?;
        }
        let dir = tempfile::tempdir()?;
        let processes =
            Processes::quorate(&args.quorate, dir.path(), args.shards, &args.settings()?)?;
        let mut all = vec![(options(), of_both(args))];
        all.extend(of_ours(args));
        for (options, rows) in all {
            let target = Arc::new(Ours::connect(&processes.endpoints, options).await?);
            let mut side = Side {
                args,
                ours: true,
                processes: &processes,
                samples: &mut samples,
            };
            side.measure_all(&target, &rows).await?;
        }
    }
    Ok(samples)
}

struct Side<'a> {
    args: &'a Args,
    ours: bool,
    processes: &'a Processes,
    samples: &'a mut Samples,
}

impl Side<'_> {
    async fn measure_all<T: Target>(&mut self, target: &Arc<T>, rows: &[Row]) -> Result<()> {
        // A cluster that has just started elects, and learns who leads: not what is measured.
        let prime = Workload {
            operation: Operation::Put,
            clients: 16,
            duration: Duration::from_secs(2),
            warmup: Duration::ZERO,
            keys: KEYS,
            value_bytes: VALUE_BYTES,
            seed: 0,
        };
        run(Arc::clone(target), &prime).await;
        for row in rows {
            let workload = Workload {
                operation: row.operation,
                clients: row.clients,
                duration: Duration::from_secs(self.args.seconds),
                warmup: Duration::from_secs(1),
                keys: KEYS,
                value_bytes: VALUE_BYTES,
                seed: row.clients as u64,
            };
            let name = format!(
                "{}/clients={}/conns={CONNECTIONS}{}",
                row.operation.name(),
                row.clients,
                row.suffix
            );
            self.measure(target, &workload, name).await?;
        }
        Ok(())
    }

    async fn measure<T: Target>(
        &mut self,
        target: &Arc<T>,
        workload: &Workload,
        name: String,
    ) -> Result<()> {
        let warm = async {
            tokio::time::sleep(workload.warmup).await;
            self.processes.usage()
        };
        let (measured, before) = tokio::join!(run(Arc::clone(target), workload), warm);
        let (before, after) = (before?, self.processes.usage()?);
        ensure!(
            measured.failures * 100 <= measured.operations,
            "{name}: {} of {} operations failed: {}",
            measured.failures,
            measured.operations,
            measured.first_error.as_deref().unwrap_or_default()
        );
        let cpu =
            (after.cpu_seconds - before.cpu_seconds) * 1e6 / measured.operations.max(1) as f64;
        self.keep(&name, &measured, cpu, after.memory_bytes as f64 / 1e6);
        if workload.operation == Operation::Batch {
            let changes = measured.throughput() * BATCH as f64;
            println!("  {:<8} {name:<40} {changes:>9.0} changes/s", "");
        }
        Ok(())
    }

    fn keep(&mut self, name: &str, measured: &Measured, cpu_micros: f64, memory_mb: f64) {
        let side = if self.ours { "quorate" } else { "etcd" };
        println!(
            "  {side:<8} {name:<40} {:>9.0} ops/s  p50 {:>6.2} ms  p99 {:>7.2} ms",
            measured.throughput(),
            measured.p50_micros as f64 / 1e3,
            measured.p99_micros as f64 / 1e3
        );
        let metrics = [
            ("throughput_ops", measured.throughput()),
            ("p50_ms", measured.p50_micros as f64 / 1e3),
            ("p99_ms", measured.p99_micros as f64 / 1e3),
            ("p999_ms", measured.p999_micros as f64 / 1e3),
            ("cpu_per_op_micros", cpu_micros),
            ("memory_mb", memory_mb),
        ];
        for (metric, value) in metrics {
            self.samples
                .entry((self.ours, name.to_owned(), metric))
                .or_default()
                .push(value);
        }
    }
}

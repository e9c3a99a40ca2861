//! Tasks of the workspace: `cargo xtask <task>`.

mod bench;
mod chaos;
mod ci;
mod cluster;
mod codegen;
mod services;
mod sim;
mod tidy;
mod torture;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask <task>

  ci                  everything that must hold: fmt, tidy, codegen, clippy, docs, test
  test [FILTER...]    all tests; they bring up what they need
  services [-- CMD...]
                      install and start what tests and benchmarks need: PostgreSQL and a replica,
                      MariaDB, Kafka-compatible brokers; run a command with them, or wait for Enter; then stop them
  chaos [--minutes N] [--seed S] [--release] [FILTER...]
                      tests whose faults need mounts and networks of their own, as root; with --minutes every
                      kind of fault under load for so long, and figures in target/chaos
  tidy                arrows between crates, sizes of files and functions, heads of files
  codegen [--check]   make the Rust code of proto/; with --check compare only
  bench cluster [--rounds N] [--seconds N] [--clients N,N] [--shards N]
                      three nodes of ours against three of etcd, on this machine
  bench failover [--failover N] [--peer-faults N] [--etcd-times HEARTBEAT,ELECTION] [--rounds N] [--shards N]
                      how long writes stop when the leader is killed or frozen, N times each
  bench groups [--groups N] [--settings FILE]
                      memory and idle CPU of 1,000 groups that nobody uses, and how long until all are led
  bench overload [--seconds N] [--shards N] [--mix put|get|get90-put10]
                      goodput, refusals, memory when up to ten times as much is asked as can be done, and after
  bench outbox [enqueue|end_to_end|drain]
                      enqueuing, end to end, draining a backlog, on PostgreSQL and a Kafka-compatible broker
  bench saga          three-step sagas and TCC a second, and what AT costs, on PostgreSQL and SQLite
  bench sql [routed|bulk|scatter]
                      a routed query beside sqlx, bulk loads beside inserts, questions to four shards of PostgreSQL
  bench cache [--rounds N] [--divide N]
                      hits, misses, stampedes and batches of the cache, against moka, foyer and plain Redis
  bench cache --consistency [--cell-ms N] [--reads N] [--only NAME] [--page FILE]
                      stale reads of each strategy and of naive caches under faults; writes docs/cache-consistency.md
  bench storage [--rounds N] [--minutes N] [--only CHAIN] [--engines A,B] [--full] [--tiny]
                      our storage engine against RocksDB, fjall and redb; with --full sled too
  torture storage [--minutes N] [--seed S] [--only PART]
                      crashes, faults, damage, threads, kills: the engine's safety checks, for long
  sim [--seeds N] [--seed S] [--twice] [--minutes M]
                      whole clusters in simulated time, from seeds; faults, oracles; twice: the same traces
  sim --bugs [--seeds N] [--only A,B]
                      plants known bugs and says which oracle finds each, after how many seeds
  cluster start|stop|kill N|pause N|resume N|restart N
                      a cluster of real processes, in target/cluster
";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let root = root()?;
    match words.as_slice() {
        ["ci"] => ci::ci(&root),
        ["test", filter @ ..] => ci::test(&root, filter),
        ["services"] => services::run(&root, &[]),
        ["services", "--", command @ ..] => services::run(&root, command),
        ["chaos", filter @ ..] => chaos::run(&root, filter),
        ["tidy"] => tidy::run(&root),
        ["codegen"] => codegen::run(&root, false),
        ["codegen", "--check"] => codegen::run(&root, true),
        ["bench", "cluster", more @ ..] => bench::cluster(&root, more),
        ["bench", "failover", more @ ..] => bench::failover(&root, more),
        ["bench", "groups", more @ ..] => bench::groups(&root, more),
        ["bench", "overload", more @ ..] => bench::overload(&root, more),
        ["bench", "outbox", more @ ..] => bench::outbox(&root, more),
        ["bench", "cache", more @ ..] => bench::cache(&root, more),
        ["bench", "saga"] => bench::saga(&root),
        ["bench", "sql", more @ ..] => bench::sql(&root, more),
        ["bench", "storage", more @ ..] => bench::storage(&root, more),
        ["torture", "storage", more @ ..] => torture::storage(&root, more),
        ["sim", more @ ..] => sim::run(&root, more),
        ["cluster", words @ ..] => cluster::run(&root, words),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown task: {}\n\n{USAGE}", words.join(" ")),
    }
}

/// The workspace's root folder.
fn root() -> Result<PathBuf> {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    parent
        .map(Path::to_path_buf)
        .context("xtask lies in the workspace's root folder")
}

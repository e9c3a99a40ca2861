//! Order and place of a load; the command line's own rules.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use clap::{CommandFactory, Parser};
use quorate_kv::memory::MemoryKv;
use quorate_kv::{
    Batch, BatchResult, BoxFuture, Delete, Domain, Entry, Error, ErrorKind, Get, Kv, Outcome, Put,
    Result, Written,
};

use super::checkpoint::Checkpoint;
use super::load::load_into;
use super::order::Order;
use super::parse_encoding;
use super::verify::verify_against;
use crate::args::{Cli, Command};

fn key(text: &'static str) -> Bytes {
    Bytes::from(text)
}

#[test]
fn order_keeps_records_of_one_key_apart_and_in_turn() {
    let mut order = Order::new(0);
    assert_eq!(order.admit(&key("a"), 0), Some(0));
    assert_eq!(order.admit(&key("a"), 1), None);
    assert_eq!(order.admit(&key("b"), 2), Some(2));
    assert_eq!(order.admit(&key("a"), 3), None);
    assert_eq!(order.open(), 4);
    assert_eq!(order.finish(0, &key("a")), Some(1));
    assert_eq!(order.finish(2, &key("b")), None);
    assert_eq!(order.finish(1, &key("a")), Some(3));
    assert_eq!(order.finish(3, &key("a")), None);
    assert_eq!(
        order.admit(&key("a"), 4),
        Some(4),
        "nothing of the key is in flight any more"
    );
}

#[test]
fn order_counts_only_what_is_done_without_a_gap() {
    let mut order = Order::new(10);
    for (number, name) in [(10, "a"), (11, "b"), (13, "c")] {
        order.admit(&key(name), number);
    }
    order.finish(11, &key("b"));
    assert_eq!(order.prefix(), 10);
    order.finish(10, &key("a"));
    assert_eq!(order.prefix(), 12);
    order.finish(13, &key("c"));
    assert_eq!(order.prefix(), 12, "12 is not done");
    order.pass(12);
    assert_eq!(order.prefix(), 14);
    order.pass(3);
    assert_eq!(
        order.prefix(),
        14,
        "what lies before the beginning is of no matter"
    );
}

#[test]
fn checkpoint_round_trips_and_refuses_another_loads_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("at");
    let checkpoint = Checkpoint::new(path.clone(), "in.tsv".as_ref(), "ns");
    assert_eq!(checkpoint.read().unwrap(), 0, "nothing is done yet");
    checkpoint.write(42).unwrap();
    assert_eq!(checkpoint.read().unwrap(), 42);
    let other = Checkpoint::new(path.clone(), "other.tsv".as_ref(), "ns");
    assert!(other.read().unwrap_err().to_string().contains("in.tsv"));
    std::fs::write(&path, "junk").unwrap();
    assert!(checkpoint.read().is_err());
}

#[test]
fn command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn command_line_refuses_what_does_not_go_together() {
    let parse = |line: &str| Cli::try_parse_from(line.split(' '));
    assert!(parse("quorate put k").is_err());
    assert!(parse("quorate put k v --if-absent --if-version 3").is_err());
    assert!(parse("quorate load f --resume").is_err());
    assert!(parse("quorate get k --timeout-ms 0").is_err());
    assert!(parse("quorate namespace create n --encoding odd").is_err());
    assert!(parse("quorate namespace create n --splits a,b --shards 3").is_err());
}

#[test]
fn command_line_splits_endpoints() {
    let cli = Cli::try_parse_from(["quorate", "get", "k", "--endpoints", "a:1,b:2"]).unwrap();
    let Command::Get(args) = cli.command else {
        panic!("get is get");
    };
    assert_eq!(args.target.connect.endpoints, ["a:1", "b:2"]);
}

#[test]
fn encoding_is_read_as_it_is_documented() {
    for good in ["ordered", "hashed", "hashed-until=/"] {
        assert!(parse_encoding(good).is_ok(), "{good}");
    }
    for bad in ["", "hash", "hashed-until=", "hashed-until=ab"] {
        assert!(parse_encoding(bad).is_err(), "{bad}");
    }
}

/// A store that takes a while, answers out of turn, and fails now and then: with nothing written,
/// or with the outcome unknown.
struct Shaky {
    store: MemoryKv,
    calls: AtomicU64,
    failing: bool,
}

impl Shaky {
    fn new(failing: bool) -> Self {
        let domain = Domain {
            cluster: 1,
            namespace: 1,
            incarnation: 0,
        };
        Shaky {
            store: MemoryKv::new(domain),
            calls: AtomicU64::new(0),
            failing,
        }
    }

    async fn waver(&self) -> u64 {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        for _ in 0..(call * 7919) % 23 {
            tokio::task::yield_now().await;
        }
        if self.failing { call } else { 1 }
    }
}

impl Kv for Shaky {
    fn domain(&self) -> Domain {
        self.store.domain()
    }

    fn get(&self, get: Get) -> BoxFuture<'_, Result<Option<Entry>>> {
        Box::pin(async move {
            if self.waver().await.is_multiple_of(101) {
                return Err(Error::new(ErrorKind::Unavailable, "now and then"));
            }
            self.store.get(get).await
        })
    }

    fn put(&self, put: Put) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            let call = self.waver().await;
            if call.is_multiple_of(101) {
                return Err(Error::new(ErrorKind::NoQuorum, "now and then"));
            }
            let written = self.store.put(put).await;
            if call.is_multiple_of(103) {
                let error = Error::new(ErrorKind::Unavailable, "broke off");
                return Err(error.with_outcome(Outcome::Unknown));
            }
            written
        })
    }

    fn delete(&self, delete: Delete) -> BoxFuture<'_, Result<Written>> {
        self.store.delete(delete)
    }

    fn batch(&self, batch: Batch) -> BoxFuture<'_, Result<BatchResult>> {
        self.store.batch(batch)
    }
}

/// Runs `load` or `verify` as the command line would, against a store.
async fn run(kv: &Shaky, line: &str, file: &Path) -> anyhow::Result<ExitCode> {
    let words = line.split_whitespace().map(PathBuf::from);
    let first = [PathBuf::from("quorate")];
    match Cli::try_parse_from(first.into_iter().chain(words).chain([file.to_owned()]))?.command {
        Command::Load(args) => load_into(kv, args).await,
        Command::Verify(args) => verify_against(kv, args).await,
        _ => anyhow::bail!("only load and verify"),
    }
}

fn input(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.tsv");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// Many records; every third repeats one of a few keys.
fn many() -> String {
    (0..6000u32)
        .map(|i| match i % 3 {
            0 => format!("repeated{}\t{i}\n", i % 7),
            _ => format!("key{i}\t{i}\n"),
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn load_over_a_shaky_store_stores_all_and_the_last_of_repeated_keys() {
    let (_folder, path) = input(&many());
    let kv = Shaky::new(true);
    assert_eq!(run(&kv, "load", &path).await.unwrap(), ExitCode::SUCCESS);
    assert_eq!(
        run(&kv, "verify -o json", &path).await.unwrap(),
        ExitCode::SUCCESS
    );
    let last = (0..6000)
        .filter(|i| i % 3 == 0 && i % 7 == 4)
        .max()
        .unwrap();
    let entry = kv.store.get(Get::new("repeated4")).await.unwrap().unwrap();
    assert_eq!(entry.value, last.to_string());
}

#[tokio::test(start_paused = true)]
async fn verify_finds_what_is_missing_and_what_is_different() {
    let (_folder, path) = input("a\t1\nb\t2\na\t3\n");
    let kv = Shaky::new(false);
    run(&kv, "load", &path).await.unwrap();
    for broken in ["a", "b"] {
        let before = kv.store.get(Get::new(broken)).await.unwrap().unwrap();
        kv.store.put(Put::new(broken, "wrong")).await.unwrap();
        assert_eq!(run(&kv, "verify", &path).await.unwrap(), ExitCode::from(1));
        kv.store.delete(Delete::new(broken)).await.unwrap();
        assert_eq!(run(&kv, "verify", &path).await.unwrap(), ExitCode::from(1));
        kv.store.put(Put::new(broken, before.value)).await.unwrap();
        assert_eq!(run(&kv, "verify", &path).await.unwrap(), ExitCode::SUCCESS);
    }
}

#[tokio::test(start_paused = true)]
async fn load_stops_at_a_malformed_line_and_goes_on_from_its_checkpoint() {
    let (folder, path) = input(&(many() + "malformed\n" + "z\tlast\n"));
    let at = folder.path().join("at");
    let load = format!("load -q --checkpoint {}", at.display());
    let kv = Shaky::new(true);
    assert_eq!(run(&kv, &load, &path).await.unwrap(), ExitCode::FAILURE);
    assert!(kv.store.get(Get::new("z")).await.unwrap().is_none());
    let done = Checkpoint::new(at.clone(), &path, "default")
        .read()
        .unwrap();
    assert_eq!(done, 6000, "all before the malformed line");
    let verify = format!("verify --on-error skip --first {done}");
    assert_eq!(run(&kv, &verify, &path).await.unwrap(), ExitCode::SUCCESS);
    let calls = kv.calls.load(Ordering::Relaxed);
    let resume = format!("{load} --resume --on-error skip");
    assert_eq!(run(&kv, &resume, &path).await.unwrap(), ExitCode::SUCCESS);
    let resumed = kv.calls.load(Ordering::Relaxed) - calls;
    assert!(resumed < 10, "only the rest is written again: {resumed}");
    let verify = "verify --on-error skip";
    assert_eq!(run(&kv, verify, &path).await.unwrap(), ExitCode::SUCCESS);
}

#[tokio::test(start_paused = true)]
async fn load_names_the_line_of_a_record_that_the_server_refuses() {
    let huge = format!("a\t1\n{}\tx\nb\t2\n", "k".repeat(5000));
    let (_folder, path) = input(&huge);
    let kv = Shaky::new(false);
    assert_eq!(run(&kv, "load", &path).await.unwrap(), ExitCode::FAILURE);
    let skip = "load --on-error skip";
    assert_eq!(run(&kv, skip, &path).await.unwrap(), ExitCode::SUCCESS);
    assert!(kv.store.get(Get::new("b")).await.unwrap().is_some());
}

#[tokio::test]
async fn load_of_this_machines_package_lists_verifies() {
    let mut lists = vec![PathBuf::from("/var/lib/dpkg/status")];
    let fetched = std::fs::read_dir("/var/lib/apt/lists")
        .into_iter()
        .flatten()
        .flatten();
    lists.extend(
        fetched
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().contains("security_main_binary")),
    );
    // Elsewhere than on Debian there are none.
    for path in lists.iter().filter(|path| path.exists()) {
        let kv = Shaky::new(false);
        let loaded = run(&kv, "load --format deb", path).await.unwrap();
        assert_eq!(loaded, ExitCode::SUCCESS, "{}", path.display());
        let same = run(&kv, "verify --format deb", path).await.unwrap();
        assert_eq!(same, ExitCode::SUCCESS, "{}", path.display());
    }
}

//! The suite that every [`Kv`] passes: memory, embedded, remote. It panics where an implementation
//! breaks the contract, so it is run from tests.
//!
//! All its keys begin with one prefix, which ends in `/`, and it never deletes others' keys: it may
//! run beside other work, on ordered namespaces and on hashed ones that route by what stands
//! before the first `/` (there even scans in order work) or by the whole key.

use bytes::Bytes;

use crate::{
    Batch, Compare, Condition, Delete, Domain, Entry, ErrorKind, Get, Kv, Limits, Mutation, Op,
    OpResult, Put, ReadLevel, Result, Scan, ScanOrder, Token,
};

/// Where and how the suite runs.
#[derive(Debug, Clone)]
pub struct Suite {
    /// What all keys begin with, without the `/` that follows it. Nothing else may use it.
    pub prefix: String,
    /// Whether keys with this prefix are in one shard, so that batches and compares may span them.
    pub one_shard: bool,
    /// Whether keys with this prefix can be scanned in order.
    pub ordered: bool,
}

impl Suite {
    /// A suite that demands everything, over keys that begin with `prefix` and `/`.
    pub fn new(prefix: impl Into<String>) -> Self {
        Suite {
            prefix: prefix.into(),
            one_shard: true,
            ordered: true,
        }
    }

    fn key(&self, name: &str) -> Bytes {
        Bytes::from(format!("{}/{name}", self.prefix))
    }

    /// A scan over the keys of one part of the suite.
    fn scan(&self, part: &str) -> Scan {
        Scan::prefix(format!("{}/{part}", self.prefix))
    }
}

/// Runs everything.
///
/// # Panics
/// Where `kv` breaks the contract.
pub async fn run(kv: &dyn Kv, suite: &Suite) {
    reads_and_writes(kv, suite).await;
    versions_and_counts(kv, suite).await;
    conditions_on_puts(kv, suite).await;
    conditions_on_deletes(kv, suite).await;
    bad_input(kv, suite).await;
    tokens(kv, suite).await;
    batches(kv, suite).await;
    compares(kv, suite).await;
    compares_that_read_too_much(kv, suite).await;
    scans_without_order(kv, suite).await;
    if suite.ordered {
        scans_forward(kv, suite).await;
        scans_reverse(kv, suite).await;
    }
}

async fn reads_and_writes(kv: &dyn Kv, suite: &Suite) {
    let key = suite.key("plain");
    assert_eq!(read(kv, &key).await, None, "an absent key reads as none");
    let first = write(kv, &key, "one").await;
    let entry = read(kv, &key).await.expect("a key is there once written");
    assert_eq!(entry.key, key, "an entry carries the user's key");
    assert_eq!(entry.value, "one");
    assert_eq!(entry.version, first);
    write(kv, &key, "").await;
    let entry = read(kv, &key).await.expect("an empty value is a value");
    assert_eq!(entry.value, "");
    let stale = Get::new(key.clone()).level(ReadLevel::Stale);
    ok(kv.get(stale).await, "a stale read");
    let gone = ok(kv.delete(Delete::new(key.clone())).await, "delete");
    assert!(gone.applied, "a delete of a key that is there is applied");
    assert_eq!(read(kv, &key).await, None, "a deleted key reads as none");
    let again = ok(kv.delete(Delete::new(key.clone())).await, "delete again");
    assert!(!again.applied, "a delete of an absent key is not applied");
    assert_eq!(again.version, 0, "an absent key has version 0");
}

async fn versions_and_counts(kv: &dyn Kv, suite: &Suite) {
    let key = suite.key("versions");
    let mut last = 0;
    let mut created = 0;
    for count in 1..=5 {
        let version = write(kv, &key, "v").await;
        assert!(version > last, "versions of a key grow");
        last = version;
        let entry = read(kv, &key).await.expect("written");
        created = if count == 1 { version } else { created };
        assert_eq!(entry.create_version, created, "created once");
        assert_eq!(entry.write_count, count, "counted from 1");
    }
    ok(kv.delete(Delete::new(key.clone())).await, "delete");
    let version = write(kv, &key, "new").await;
    assert!(version > last, "versions do not fall after a delete");
    let entry = read(kv, &key).await.expect("written");
    assert_eq!(
        (entry.create_version, entry.write_count),
        (version, 1),
        "a delete ends a key's life: the next write creates it"
    );
}

async fn conditions_on_puts(kv: &dyn Kv, suite: &Suite) {
    let key = suite.key("conditional");
    let put = |value: &'static str, condition| {
        let put = Put::new(key.clone(), value).when(condition);
        async move { ok(kv.put(put).await, "put under a condition") }
    };
    assert!(!put("a", Condition::Present).await.applied);
    assert!(!put("a", Condition::Version(1)).await.applied);
    assert_eq!(
        read(kv, &key).await,
        None,
        "a condition that fails changes nothing"
    );
    let made = put("a", Condition::Absent).await;
    assert!(made.applied);
    let refused = put("b", Condition::Absent).await;
    assert!(!refused.applied);
    assert_eq!(
        refused.version, made.version,
        "a refusal says the version that is there"
    );
    assert!(!put("b", Condition::Version(made.version + 1)).await.applied);
    let changed = put("b", Condition::Version(made.version)).await;
    assert!(changed.applied && changed.version > made.version);
    assert!(put("c", Condition::Present).await.applied);
    assert_eq!(read(kv, &key).await.expect("there").value, "c");
}

async fn conditions_on_deletes(kv: &dyn Kv, suite: &Suite) {
    let key = suite.key("conditional-delete");
    let version = write(kv, &key, "a").await;
    let delete = |condition| {
        let delete = Delete::new(key.clone()).when(condition);
        async move { ok(kv.delete(delete).await, "delete under a condition") }
    };
    let refused = delete(Condition::Version(version + 1)).await;
    assert!(!refused.applied);
    assert_eq!(refused.version, version);
    assert!(!delete(Condition::Absent).await.applied);
    assert!(
        read(kv, &key).await.is_some(),
        "a refused delete changes nothing"
    );
    assert!(delete(Condition::Version(version)).await.applied);
    assert_eq!(read(kv, &key).await, None);
}

async fn bad_input(kv: &dyn Kv, suite: &Suite) {
    let huge_key = vec![b'k'; Limits::KEY_BYTES_CAP + 1];
    let huge_value = vec![b'v'; Limits::VALUE_BYTES_CAP + 1];
    let key = suite.key("bad");
    let invalid = ErrorKind::InvalidArgument;
    fails(kv.get(Get::new("")).await, invalid, "an empty key, read");
    fails(
        kv.put(Put::new("", "v")).await,
        invalid,
        "an empty key, written",
    );
    fails(
        kv.delete(Delete::new("")).await,
        invalid,
        "an empty key, deleted",
    );
    fails(
        kv.batch(Batch::new(Vec::new())).await,
        invalid,
        "an empty batch",
    );
    let no_limit = suite.scan("bad").limit(0).order(ScanOrder::Unordered);
    fails(kv.scan(no_limit).await, invalid, "a scan of nothing");
    let large = ErrorKind::TooLarge;
    fails(
        kv.get(Get::new(huge_key.clone())).await,
        large,
        "a huge key, read",
    );
    fails(
        kv.put(Put::new(huge_key, "v")).await,
        large,
        "a huge key, written",
    );
    fails(
        kv.put(Put::new(key.clone(), huge_value.clone())).await,
        large,
        "a huge value",
    );
    let batch = Batch::new(vec![
        Mutation::put(key.clone(), "small"),
        Mutation::put(key.clone(), huge_value),
    ]);
    fails(kv.batch(batch).await, large, "a batch with a huge value");
    assert_eq!(
        read(kv, &key).await,
        None,
        "a refused write changes nothing"
    );
}

async fn tokens(kv: &dyn Kv, suite: &Suite) {
    let key = suite.key("token");
    let written = ok(kv.put(Put::new(key.clone(), "seen")).await, "put");
    assert_eq!(
        written.token.domain,
        kv.domain(),
        "tokens are of the namespace's domain"
    );
    assert!(
        written.token.version >= written.version,
        "a token covers the write that gave it"
    );
    let get = Get::new(key.clone()).level(ReadLevel::AtLeast(written.token));
    let entry = ok(kv.get(get).await, "a read at a token").expect("the token's write is seen");
    assert_eq!(entry.value, "seen");
    let foreign = Token {
        domain: Domain {
            incarnation: kv.domain().incarnation + 1,
            ..kv.domain()
        },
        ..written.token
    };
    let level = ReadLevel::AtLeast(foreign);
    let kind = ErrorKind::WrongDomain;
    fails(
        kv.get(Get::new(key).level(level)).await,
        kind,
        "a get at a foreign token",
    );
    let scan = suite.scan("token").level(level).order(ScanOrder::Unordered);
    fails(kv.scan(scan).await, kind, "a scan at a foreign token");
}

async fn batches(kv: &dyn Kv, suite: &Suite) {
    let a = suite.key("batch-a");
    // Where keys may be in several shards, one key stands for all.
    let b = if suite.one_shard {
        suite.key("batch-b")
    } else {
        a.clone()
    };
    let before = write(kv, &a, "old").await;
    let mutations = vec![
        Mutation::put(b.clone(), "first"),
        Mutation::put(b.clone(), "last"),
    ];
    let done = ok(kv.batch(Batch::new(mutations)).await, "batch");
    assert!(done.version > before || suite.one_shard);
    let entry = read(kv, &b).await.expect("written by the batch");
    assert_eq!(entry.value, "last", "of one key the last change counts");
    assert_eq!(
        entry.version, done.version,
        "all writes of a batch have its version"
    );
    if !suite.one_shard {
        return;
    }
    let mutations = vec![
        Mutation::delete(a.clone()),
        Mutation::put(b.clone(), "again"),
    ];
    let done = ok(kv.batch(Batch::new(mutations)).await, "batch with a delete");
    assert_eq!(read(kv, &a).await, None);
    assert_eq!(read(kv, &b).await.expect("there").version, done.version);
    let level = ReadLevel::AtLeast(done.token);
    let entry = ok(
        kv.get(Get::new(b).level(level)).await,
        "read at the batch's token",
    );
    assert_eq!(entry.expect("there").value, "again");
}

async fn compares(kv: &dyn Kv, suite: &Suite) {
    let a = suite.key("compare-a");
    let b = if suite.one_shard {
        suite.key("compare-b")
    } else {
        a.clone()
    };
    let compare = || {
        Compare::new()
            .when(a.clone(), Condition::Absent)
            .then(Op::Mutate(Mutation::put(a.clone(), "made")))
            .then(Op::Get { key: a.clone() })
            .or_else(Op::Get { key: a.clone() })
            .or_else(Op::Mutate(Mutation::put(b.clone(), "else")))
    };
    let first = ok(kv.compare(compare()).await, "compare, then");
    assert!(first.succeeded, "the condition held");
    let [OpResult::Done, OpResult::Entry(Some(seen))] = first.results.as_slice() else {
        panic!("one result for each operation: {:?}", first.results);
    };
    assert_eq!(seen.value, "made", "a get sees the operations before it");
    assert_eq!(seen.version, first.version);
    let second = ok(kv.compare(compare()).await, "compare, else");
    assert!(!second.succeeded, "the condition no longer holds");
    let [OpResult::Entry(Some(seen)), OpResult::Done] = second.results.as_slice() else {
        panic!("one result for each operation: {:?}", second.results);
    };
    assert_eq!(seen.value, "made");
    assert_eq!(read(kv, &b).await.expect("there").value, "else");
    let reads = Compare::new()
        .when(a.clone(), Condition::Present)
        .when(b.clone(), Condition::Version(second.version))
        .then(Op::Get { key: b.clone() });
    let third = ok(kv.compare(reads).await, "compare that only reads");
    assert!(third.succeeded);
    assert!(
        third.version >= second.version,
        "it answers the newest version"
    );
    assert_eq!(
        read(kv, &b).await.expect("there").version,
        second.version,
        "a branch without writes changes nothing"
    );
}

async fn compares_that_read_too_much(kv: &dyn Kv, suite: &Suite) {
    const VALUE_BYTES: usize = 128 << 10;
    let key = suite.key("compare-large");
    let get = || Op::Get { key: key.clone() };
    let put = |value: &Bytes| Op::Mutate(Mutation::put(key.clone(), value.clone()));
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let large = Bytes::from(vec![b'w'; VALUE_BYTES]);
    // More than any limit, and as much again is refused whether it was there or is written first.
    let gets = || (0..Limits::BATCH_BYTES_CAP / VALUE_BYTES + 1).map(|_| get());
    let before = ok(kv.put(Put::new(key.clone(), value.clone())).await, "put");
    let mut reads = Compare::new();
    reads.then_ops.extend(gets());
    fails(
        kv.compare(reads).await.map(|done| done.results.len()),
        ErrorKind::TooLarge,
        "a compare whose gets answer too much",
    );
    let mut writes = Compare::new().then(put(&large));
    writes.then_ops.extend(gets());
    fails(
        kv.compare(writes).await.map(|done| done.results.len()),
        ErrorKind::TooLarge,
        "a compare that writes and then reads too much",
    );
    let entry = read(kv, &key).await.expect("there");
    assert_eq!(
        (entry.version, entry.value),
        (before.version, value),
        "a compare that is refused changes nothing"
    );
    // What counts is what is read: the other branch, and what the branch made small.
    let mut small = Compare::new()
        .when(key.clone(), Condition::Present)
        .then(Op::Mutate(Mutation::put(key.clone(), "small")));
    small.then_ops.extend(gets());
    small.else_ops.extend(gets());
    let done = ok(kv.compare(small).await, "a compare that reads little");
    assert!(done.succeeded);
    let read = done.results.iter().filter(|result| match result {
        OpResult::Entry(entry) => entry.as_ref().is_some_and(|e| e.value == "small"),
        OpResult::Done => false,
    });
    assert_eq!(read.count(), gets().count(), "every get is answered");
}

const SCANNED: usize = 25;

async fn fill(kv: &dyn Kv, suite: &Suite, part: &str) -> Vec<Bytes> {
    let mut keys = Vec::new();
    for i in 0..SCANNED {
        let key = suite.key(&format!("{part}{i:03}"));
        write(kv, &key, "scanned").await;
        keys.push(key);
    }
    keys
}

/// Reads all pages of a scan; checks that none is larger than the limit.
async fn pages(kv: &dyn Kv, scan: Scan) -> Vec<Bytes> {
    let mut keys = Vec::new();
    let mut page = None;
    for _ in 0..10_000 {
        let found = ok(kv.scan(scan.clone().page(page)).await, "a page");
        assert!(
            found.entries.len() <= scan.limit,
            "a page keeps to its limit"
        );
        keys.extend(found.entries.into_iter().map(|e| e.key));
        page = found.next;
        if page.is_none() {
            return keys;
        }
    }
    panic!("the scan did not end");
}

async fn scans_without_order(kv: &dyn Kv, suite: &Suite) {
    let keys = fill(kv, suite, "unordered-").await;
    for limit in [1, 7, SCANNED, 1000] {
        let scan = suite
            .scan("unordered-")
            .order(ScanOrder::Unordered)
            .limit(limit);
        let mut found = pages(kv, scan).await;
        found.sort();
        assert_eq!(found, keys, "every key once, {limit} a page");
    }
}

async fn scans_forward(kv: &dyn Kv, suite: &Suite) {
    let keys = fill(kv, suite, "forward-").await;
    for limit in [1, 7, SCANNED, 1000] {
        let found = pages(kv, suite.scan("forward-").limit(limit)).await;
        assert_eq!(found, keys, "in order, every key once, {limit} a page");
    }
    let part = Scan::range(keys[3].clone(), keys[6].clone());
    assert_eq!(
        pages(kv, part).await,
        keys[3..6],
        "the start is inclusive, the end is not"
    );
    ok(kv.delete(Delete::new(keys[4].clone())).await, "delete");
    let part = Scan::range(keys[3].clone(), keys[6].clone());
    let expected = [keys[3].clone(), keys[5].clone()];
    assert_eq!(
        pages(kv, part).await,
        expected,
        "deleted keys are not scanned"
    );
    let nothing = Scan::range(keys[6].clone(), keys[3].clone());
    assert_eq!(
        pages(kv, nothing).await,
        [] as [Bytes; 0],
        "an empty range has no entries"
    );
    let page = ok(kv.scan(suite.scan("forward-").limit(2)).await, "a page");
    let whole: Vec<_> = page
        .entries
        .iter()
        .map(|e| (&e.key, &e.value[..]))
        .collect();
    assert_eq!(whole, [(&keys[0], &b"scanned"[..]), (&keys[1], b"scanned")]);
}

async fn scans_reverse(kv: &dyn Kv, suite: &Suite) {
    let mut keys = fill(kv, suite, "reverse-").await;
    let part = Scan::range(keys[3].clone(), keys[6].clone()).order(ScanOrder::KeyReverse);
    let expected: Vec<Bytes> = keys[3..6].iter().rev().cloned().collect();
    assert_eq!(pages(kv, part).await, expected, "the same range, downwards");
    keys.reverse();
    for limit in [1, 7, SCANNED, 1000] {
        let scan = suite
            .scan("reverse-")
            .order(ScanOrder::KeyReverse)
            .limit(limit);
        assert_eq!(pages(kv, scan).await, keys, "downwards, {limit} a page");
    }
}

async fn read(kv: &dyn Kv, key: &Bytes) -> Option<Entry> {
    ok(kv.get(Get::new(key.clone())).await, "get")
}

async fn write(kv: &dyn Kv, key: &Bytes, value: &'static str) -> u64 {
    let written = ok(kv.put(Put::new(key.clone(), value)).await, "put");
    assert!(written.applied, "a put without condition is applied");
    written.version
}

fn ok<T>(result: Result<T>, what: &str) -> T {
    result.unwrap_or_else(|error| panic!("{what} failed: {:?}: {error}", error.kind()))
}

fn fails<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, what: &str) {
    match result {
        Ok(done) => panic!("{what} is to fail with {kind:?}, and gave {done:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{what}: {error}"),
    }
}

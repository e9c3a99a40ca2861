//! The router, the merge, and questions to all shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use proptest::prelude::*;
use sqlx::{Row, Sqlite};

use super::support::{Lite, number, open, write};
use crate::shard::{Key, Router, Sender, Shards, merge};
use crate::{Error, ErrorKind, Lease, Read};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(future)
}

#[test]
fn router_places_keys_by_range_and_table_and_refuses_others() {
    let range = Router::range([(Key::from(0), 0), (Key::from(100), 1), (Key::from(200), 0)]);
    let range = range.expect("a router");
    let of = |n: i64| range.for_key(&Key::from(n)).ok();
    assert_eq!(
        [of(-1), of(0), of(99), of(100), of(199), of(i64::MAX)],
        [None, Some(0), Some(0), Some(1), Some(1), Some(0)]
    );
    let table = Router::lookup([(Key::from("ch"), 1)], None);
    assert_eq!(table.for_key(&Key::from("ch")).expect("is there"), 1);
    let error = table.for_key(&Key::from("de")).expect_err("is not");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let table = Router::lookup([(Key::from("ch"), 1)], Some(0));
    assert_eq!(table.for_key(&Key::from("de")).expect("otherwise"), 0);
    for bad in [
        Router::hash(Vec::new()),
        Router::hash_evenly(0, 8),
        Router::hash_evenly(9, 8),
        Router::range([]),
        Router::range([(Key::from(1), 0), (Key::from(1), 1)]),
    ] {
        assert_eq!(bad.expect_err("can't be").kind(), ErrorKind::Invalid);
    }
}

#[test]
fn router_by_hash_does_not_change() {
    // Data lies where the hash says: it is a format.
    let router = Router::hash((0..1024).collect()).expect("a router");
    let of = |key: Key| router.for_key(&key).expect("a bucket");
    assert_eq!([of(Key::from(7)), of(Key::from("customer-7"))], [814, 552]);
}

#[test]
fn router_by_hash_that_moves_a_bucket_moves_only_its_keys() {
    let before = Router::hash_evenly(3, 64).expect("a router");
    let mut buckets: Vec<usize> = (0..64).map(|bucket| bucket * 3 / 64).collect();
    buckets[5] = 3;
    let after = Router::hash(buckets).expect("a router");
    let moved = (0..10_000).filter(|n| {
        let key = Key::from(*n);
        let (from, to) = (before.for_key(&key), after.for_key(&key));
        let (from, to) = (from.expect("a shard"), to.expect("a shard"));
        assert!(from == to || to == 3);
        from != to
    });
    let moved = moved.count();
    assert!((80..250).contains(&moved), "about one in 64: {moved}");
}

#[test]
fn merge_ends_at_an_error_and_finds_what_is_not_in_order() {
    let run = |streams: Vec<Vec<crate::Result<i32>>>| {
        let streams = streams.into_iter().map(stream::iter).collect();
        block_on(merge(streams, i32::cmp).collect::<Vec<_>>())
    };
    let broken = vec![Ok(1), Err(Error::aborted("gone")), Ok(9)];
    let got = run(vec![broken, vec![Ok(2), Ok(3)]]);
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!(got[0].as_ref().expect_err("the error").message(), "gone");
    let got = run(vec![vec![Ok(1), Ok(5), Ok(4)], vec![Ok(2)]]);
    let last = got
        .last()
        .expect("some")
        .as_ref()
        .expect_err("out of order");
    assert_eq!(last.kind(), ErrorKind::Invalid);
    assert!(last.message().contains("stream 0"), "{last}");
}

proptest! {
    #[test]
    fn key_of_a_number_is_in_its_order(a: i64, b: i64) {
        prop_assert_eq!(a.cmp(&b), Key::from(a).cmp(&Key::from(b)));
    }

    #[test]
    fn merge_is_the_sorted_whole(mut lists in proptest::collection::vec(
        proptest::collection::vec(0i32..50, 0..40), 0..6))
    {
        lists.iter_mut().for_each(|list| list.sort_unstable());
        let mut whole: Vec<i32> = lists.concat();
        whole.sort_unstable();
        let streams = lists.into_iter().map(|list| stream::iter(list.into_iter().map(Ok))).collect();
        let merged: crate::Result<Vec<i32>> = block_on(merge(streams, i32::cmp).try_collect());
        prop_assert_eq!(merged.expect("no errors"), whole);
    }
}

/// Shards in files of their own, with rows 0 to `rows` spread over them by hash.
async fn filled(count: usize, rows: i64) -> (Vec<Lite>, Shards<Sqlite>) {
    let files: Vec<Lite> = (0..count).map(|_| Lite::new()).collect();
    let mut databases = Vec::new();
    for file in &files {
        let db = open::<Sqlite>(file.options()).await;
        write(&db.session(), &["CREATE TABLE t (n bigint PRIMARY KEY)"]).await;
        databases.push(db);
    }
    let router = Router::hash_evenly(count, 256).expect("a router");
    let shards = Shards::new(router, databases).expect("shards");
    let mut texts = vec![Vec::new(); count];
    for n in 0..rows {
        let shard = shards.router().for_key(&Key::from(n)).expect("a shard");
        texts[shard].push(format!("({n})"));
    }
    for (db, texts) in shards.all().iter().zip(texts) {
        write(
            &db.session(),
            &[&format!("INSERT INTO t VALUES {}", texts.join(","))],
        )
        .await;
    }
    (files, shards)
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_scatter_merges_in_order_and_reads_no_further_than_told() {
    const ROWS: i64 = 20_000;
    const AHEAD: usize = 16;
    let (_files, shards) = filled(4, ROWS).await;
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let query = move |_, mut lease: Lease<Sqlite>, rows: Sender<i64>| {
        let counter = Arc::clone(&counter);
        Box::pin(async move {
            let mut found = sqlx::query("SELECT n FROM t ORDER BY n").fetch(&mut *lease);
            while let Some(row) = found.try_next().await? {
                counter.fetch_add(1, Ordering::Relaxed);
                if !rows.send(row.try_get(0)?).await {
                    break;
                }
            }
            Ok(())
        }) as futures_util::future::BoxFuture<'static, crate::Result<()>>
    };
    let merged = merge(shards.scatter(Read::Any, AHEAD, query.clone()), i64::cmp);
    futures_util::pin_mut!(merged);
    for expected in 0..ROWS {
        let got = merged.next().await.expect("a row").expect("no error");
        assert_eq!(got, expected);
        // In hand, in the channel, and waiting to go there, of each shard.
        let ahead = read.load(Ordering::Relaxed) - expected as usize;
        assert!(ahead <= 4 * (AHEAD + 3), "{ahead} rows ahead");
    }
    assert!(merged.next().await.is_none());
    // Who wants ten rows has not the others read.
    read.store(0, Ordering::Relaxed);
    let merged = merge(shards.scatter(Read::Any, AHEAD, query), i64::cmp);
    let ten: Vec<i64> = merged.take(10).try_collect().await.expect("no error");
    assert_eq!(ten, (0..10).collect::<Vec<_>>());
    assert!(read.load(Ordering::Relaxed) < 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_have_a_key_where_the_router_says_and_errors_name_the_shard() {
    let (_files, shards) = filled(3, 300).await;
    for n in 0..300 {
        let db = shards.for_key(n).expect("a shard");
        let mut lease = db.session().read(Read::Any).await.expect("a connection");
        let found = number::<Sqlite>(&mut lease, &format!("SELECT n FROM t WHERE n = {n}")).await;
        assert_eq!(found.expect("reads"), Some(n));
    }
    write(&shards.all()[1].session(), &["DROP TABLE t"]).await;
    let query = |_, mut lease: Lease<Sqlite>, rows: Sender<i64>| {
        Box::pin(async move {
            let n = number::<Sqlite>(&mut lease, "SELECT count(*) FROM t").await?;
            rows.send(n.unwrap_or(0)).await;
            Ok(())
        }) as futures_util::future::BoxFuture<'static, crate::Result<()>>
    };
    let merged = merge(shards.scatter(Read::Any, 1, query), i64::cmp);
    let error = merged
        .try_collect::<Vec<i64>>()
        .await
        .expect_err("one has no table");
    assert!(error.message().starts_with("shard 1"), "{error}");
    let few = Shards::<Sqlite>::new(Router::hash_evenly(4, 8).expect("a router"), Vec::new());
    assert_eq!(few.err().expect("no databases").kind(), ErrorKind::Invalid);
}
